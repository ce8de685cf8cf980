"""The recipe that a clip carries, which a stranger may have written: each value of its kind, or one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinema import bounds
from kinema.bounds import quoted, shown
from kinema.cli import machine
from kinema.schema import BadRequest, Request
from kinema.values import misfit

MOST = 2**31
"""Of a whole number in a recipe."""


@dataclass(frozen=True)
class Lora:
    """A LoRA that was in use."""

    file: str
    weight: float
    hash: str


@dataclass(frozen=True)
class Added:
    """An addition to the model, such as a motion module; where its hash is not here, it is among the weights'."""

    slot: str
    file: str
    hash: str | None = None


@dataclass(frozen=True)
class Recipe:
    """What `kinema.provenance` writes. Any name may be absent; only some may be null."""

    model: str
    family: str
    weights: str
    variant: str
    overrides: Mapping[str, Any]
    added: list[Added]
    loras: list[Lora]
    request: Mapping[str, Any] | str
    inputs: Mapping[str, str]
    extra_inputs: Mapping[str, str]
    paths: Mapping[str, str]
    noise: str | None
    kinema: str
    versions: Mapping[str, str]
    device: str
    dtype: str
    threads: int
    halves_at_once: bool
    frames_hash: str | None
    zoom: int


def checked(recipe: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The recipe of the clip ``path``. Raises `BadRequest` for a value of another kind than is written."""
    where = f"the recipe in {shown(path.name, 100)}"
    bounds.check(recipe, where, infinite=True)
    if wrong := misfit(Recipe, recipe):
        raise BadRequest(f"{where} is damaged: {wrong}")
    if abs(recipe.get("threads", 1)) > MOST:
        raise BadRequest(f"{where} is damaged: its threads is {quoted(recipe['threads'])}")
    known = sorted(machine.DTYPES.values())
    if recipe.get("dtype", known[0]) not in known:
        raise BadRequest(f"{where} is damaged: its dtype is {quoted(recipe['dtype'])}; expected {' or '.join(known)}")
    if recipe.get("noise") is not None:
        raise BadRequest(
            f"{shown(path.name, 100)} was made from noise that its caller gave, which a recipe does not hold, "
            "so it cannot be made again"
        )
    return recipe


def request_of(recipe: Mapping[str, Any], path: Path) -> Request:
    """The request inside a recipe, whether it was kept as a table or as its own JSON text."""
    told = recipe.get("request")
    if not told or not recipe.get("model"):
        raise BadRequest(f"the recipe in {path.name} names no model or no request, so it cannot be made again")
    where = f"the request in {shown(path.name, 100)}"
    table = bounds.from_json(told, where, infinite=True) if isinstance(told, str) else told
    damaged = f"the recipe in {shown(path.name, 60)} is damaged"
    try:
        request = Request.from_table(table)
    except BadRequest as error:
        raise BadRequest(f"{damaged}: {error}") from None
    if request.loras is not None:  # sampling would open them by their paths
        raise BadRequest(f"{damaged}: its request names LoRAs, which a recipe lists under loras")
    return request
