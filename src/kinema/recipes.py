"""Read and validate the recipe of a clip. Recipes are untrusted; invalid values raise `BadRequest`.

`kinema.provenance` writes recipes. Older versions are upgraded to the current one, so older clips can be replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinema import bounds
from kinema.bounds import printable, quoted
from kinema.canvas import Block
from kinema.provenance import VERSION
from kinema.schema import BadRequest, Request
from kinema.stages import ReplayedStage, Upscaling
from kinema.values import mismatch

MOST = 2**31
"""Maximum of a whole number in a recipe."""
MOST_BLOCKS = 8192
"""Maximum number of blocks: two per frame of the longest clip."""
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Lora:
    """A LoRA of the recipe."""

    file: str
    weight: float
    hash: str


@dataclass(frozen=True)
class RecordedAddOn:
    """An add-on, such as a motion module. Without a hash of its own, it is covered by the hash of the weights."""

    slot: str
    file: str
    hash: str | None = None


@dataclass(frozen=True)
class RecordedStage:
    """One generation stage. Any key may be absent."""

    stage: str
    model: str
    family: str
    weights: str
    variant: str
    overrides: Mapping[str, Any]
    added: list[RecordedAddOn]
    loras: list[Lora]
    request: Mapping[str, Any]
    frames: int
    blocks: list[Block]
    enlarging: Upscaling
    memory: Mapping[str, Any]


@dataclass(frozen=True)
class Partial:
    """Where a clip was cancelled: the stage, its last step, its number of steps, and the first frame of the file."""

    stage: str
    step: int
    steps: int
    start: int


@dataclass(frozen=True)
class Recipe:
    """A recipe as `kinema.provenance` writes it. Any key may be absent; only ``frames_hash`` may be null."""

    recipe: int
    kinema: str
    stages: list[Any]
    """One `RecordedStage` each."""
    inputs: Mapping[str, str]
    extra_inputs: Mapping[str, str]
    paths: Mapping[str, str]
    noise: Mapping[str, str]
    versions: Mapping[str, str]
    device: str
    dtype: str
    threads: int
    compiled: bool
    frames_hash: str | None
    zoom: int
    partial: Partial
    """Present in cancelled clips only."""


STAGE_KEYS = ("model", "family", "weights", "variant", "overrides", "added", "loras", "request")


def checked(recipe: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Validate the recipe of the clip ``path`` and upgrade it to the current version. Raises `BadRequest`."""
    where = f"the recipe in {printable(path.name, 100)}"
    bounds.check(recipe, where, infinite=True)
    version = recipe.get("recipe", 1)
    if isinstance(version, int) and not 1 <= version <= VERSION:
        hint = "install a newer kinema" if version > VERSION else "the recipe is damaged"
        raise BadRequest(f"{where} has version {quoted(version)}; expected 1 to {VERSION}: {hint}")
    if "recipe" not in recipe:
        recipe = upgraded(recipe, f"the request in {printable(path.name, 100)}")
    if wrong := mismatch(Recipe, recipe):
        raise BadRequest(f"{where} is damaged: {wrong}")
    _check_stages(recipe.get("stages", ()), where)
    if abs(recipe.get("threads", 1)) > MOST:
        raise BadRequest(f"{where} is damaged: its threads is {quoted(recipe['threads'])}; expected at most {MOST:,}")
    if recipe.get("dtype", DTYPES[0]) not in DTYPES:
        raise BadRequest(f"{where} is damaged: its dtype is {quoted(recipe['dtype'])}; expected {' or '.join(DTYPES)}")
    if recipe.get("noise"):
        raise BadRequest(
            f"{printable(path.name, 100)} cannot be replayed: it was generated from noise given by the caller, which "
            "recipes do not store"
        )
    return recipe


def _check_stages(stages: Sequence[Any], where: str) -> None:
    if not 1 <= len(stages) <= 2:
        raise BadRequest(f"{where} has {len(stages):,} stages; expected 1 or 2")
    for stage in stages:
        if not isinstance(stage, Mapping):
            raise BadRequest(f"{where} is damaged: a stage is {quoted(stage)}; expected a table")
        if wrong := mismatch(RecordedStage, stage):
            raise BadRequest(f"{where} is damaged: {wrong}")
        if not stage.get("model") or not stage.get("request"):
            raise BadRequest(f"{where} has no model or no request, so the clip cannot be replayed")
        if len(blocks := stage.get("blocks", ())) > MOST_BLOCKS:
            raise BadRequest(f"{where} has {len(blocks):,} blocks; expected at most {MOST_BLOCKS:,}")


def upgraded(recipe: Mapping[str, Any], where: str = "the request") -> dict[str, Any]:
    """Upgrade a recipe of version 1, which has no version key, one stage and no blocks."""
    upgrade = {name: value for name, value in recipe.items() if name not in (*STAGE_KEYS, "halves_at_once", "noise")}
    stage = {"stage": "base"} | {name: recipe[name] for name in STAGE_KEYS if name in recipe}
    if isinstance(request := recipe.get("request"), str):  # some recipes hold the request as JSON text
        stage["request"] = bounds.from_json(request, where, infinite=True)
    if "halves_at_once" in recipe:
        stage["memory"] = {"at_once": recipe["halves_at_once"]}
    if recipe.get("noise") is not None:
        upgrade["noise"] = {"base": recipe["noise"]}
    return {"recipe": VERSION, **upgrade, "stages": [stage]}


def requests_of(recipe: Mapping[str, Any], path: Path) -> list[Request]:
    """Return the request of each stage of a `checked` recipe."""
    requests, damaged = [], f"the recipe in {printable(path.name, 60)} is damaged"
    for stage in recipe["stages"]:
        try:
            request = Request.from_table(stage["request"])
        except BadRequest as error:
            raise BadRequest(f"{damaged}: {error}") from None
        if request.loras is not None:  # sampling would open these paths
            raise BadRequest(f"{damaged}: its request names LoRAs; expected them under loras")
        requests.append(request)
    enlarges = [request.super_resolution is not None for request in requests]
    if enlarges != [False, True][: len(requests)]:
        raise BadRequest(f"{damaged}: only the second of two stages may name a super-resolution model")
    return requests


def replayed_stages(recipe: Mapping[str, Any], requests: Sequence[Request]) -> list[ReplayedStage]:
    """Return the stages of a recipe, with requests that name local files."""
    stages = []
    for stage, request in zip(recipe["stages"], requests, strict=True):
        blocks = tuple(
            Block(
                each.get("start", 0), each.get("frames", 0), each.get("way", "native"),
                tuple(each.get("releases", ())), each.get("prompt"),
            )
            for each in stage.get("blocks", ())
        )  # fmt: skip
        stages.append(ReplayedStage(request, blocks))
    return stages
