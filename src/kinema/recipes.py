"""The recipe that a clip carries, which a stranger may have written: each value of its kind, or one sentence.

`kinema.provenance` writes recipes. Those of older versions are brought to the present one, so that what was made
then can be made again.
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
from kinema.values import misfit

MOST = 2**31
"""Of a whole number in a recipe."""
MOST_BLOCKS = 8192
"""Blocks of a clip: two for each of the most frames."""
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Lora:
    """A LoRA that was in use."""

    file: str
    weight: float
    hash: str


@dataclass(frozen=True)
class RecordedAddOn:
    """An addition to the model, such as a motion module; where its hash is not here, it is among the weights'."""

    slot: str
    file: str
    hash: str | None = None


@dataclass(frozen=True)
class RecordedStage:
    """One model's part. Any name may be absent."""

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
    """Where a clip was cancelled: the stage, its last step of how many, and the first frame that the file has."""

    stage: str
    step: int
    steps: int
    start: int


@dataclass(frozen=True)
class Recipe:
    """What `kinema.provenance` writes. Any name may be absent; only some may be null."""

    recipe: int
    kinema: str
    stages: list[Any]
    """Each a `RecordedStage`."""
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
    """Only of a clip that was cancelled."""


OF_STAGE = ("model", "family", "weights", "variant", "overrides", "added", "loras", "request")


def checked(recipe: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The recipe of the clip ``path``, of the present version. Raises `BadRequest` for a value of another kind than is
    written.
    """
    where = f"the recipe in {printable(path.name, 100)}"
    bounds.check(recipe, where, infinite=True)
    version = recipe.get("recipe", 1)
    if isinstance(version, int) and not 1 <= version <= VERSION:
        told = "install a later one" if version > VERSION else "it is damaged"
        raise BadRequest(f"{where} is of version {quoted(version)}, and this kinema reads up to {VERSION}: {told}")
    if "recipe" not in recipe:
        recipe = upgraded(recipe, f"the request in {printable(path.name, 100)}")
    if wrong := misfit(Recipe, recipe):
        raise BadRequest(f"{where} is damaged: {wrong}")
    _check_stages(recipe.get("stages", ()), where)
    if abs(recipe.get("threads", 1)) > MOST:
        raise BadRequest(f"{where} is damaged: its threads is {quoted(recipe['threads'])}")
    if recipe.get("dtype", DTYPES[0]) not in DTYPES:
        raise BadRequest(f"{where} is damaged: its dtype is {quoted(recipe['dtype'])}; expected {' or '.join(DTYPES)}")
    if recipe.get("noise"):
        raise BadRequest(
            f"{printable(path.name, 100)} was made from noise that its caller gave, which a recipe does not hold, "
            "so it cannot be made again"
        )
    return recipe


def _check_stages(stages: Sequence[Any], where: str) -> None:
    if not 1 <= len(stages) <= 2:
        raise BadRequest(f"{where} has {len(stages):,} stages; expected 1 or 2")
    for stage in stages:
        if not isinstance(stage, Mapping):
            raise BadRequest(f"{where} is damaged: a stage is {quoted(stage)}; expected a table")
        if wrong := misfit(RecordedStage, stage):
            raise BadRequest(f"{where} is damaged: {wrong}")
        if not stage.get("model") or not stage.get("request"):
            raise BadRequest(f"{where} names no model or no request, so it cannot be made again")
        if len(told := stage.get("blocks", ())) > MOST_BLOCKS:
            raise BadRequest(f"{where} has {len(told):,} blocks; expected at most {MOST_BLOCKS:,}")


def upgraded(recipe: Mapping[str, Any], where: str = "the request") -> dict[str, Any]:
    """A recipe of version 1, which told no version, as one of the present: one stage, of which blocks were not told."""
    told = {name: value for name, value in recipe.items() if name not in (*OF_STAGE, "halves_at_once", "noise")}
    stage = {"stage": "base"} | {name: recipe[name] for name in OF_STAGE if name in recipe}
    if isinstance(request := recipe.get("request"), str):  # once it was kept as its own JSON text
        stage["request"] = bounds.from_json(request, where, infinite=True)
    if "halves_at_once" in recipe:
        stage["memory"] = {"at_once": recipe["halves_at_once"]}
    if recipe.get("noise") is not None:
        told["noise"] = {"base": recipe["noise"]}
    return {"recipe": VERSION, **told, "stages": [stage]}


def requests_of(recipe: Mapping[str, Any], path: Path) -> list[Request]:
    """The request of each stage of a `checked` recipe."""
    made, damaged = [], f"the recipe in {printable(path.name, 60)} is damaged"
    for stage in recipe["stages"]:
        try:
            request = Request.from_table(stage["request"])
        except BadRequest as error:
            raise BadRequest(f"{damaged}: {error}") from None
        if request.loras is not None:  # sampling would open them by their paths
            raise BadRequest(f"{damaged}: its request names LoRAs, which a recipe lists under loras")
        made.append(request)
    second = [request.super_resolution is not None for request in made]
    if second != [False, True][: len(made)]:
        raise BadRequest(f"{damaged}: of two stages the second one, and no other, names a model of super-resolution")
    return made


def recorded(recipe: Mapping[str, Any], requests: Sequence[Request]) -> list[ReplayedStage]:
    """The stages of a recipe, with requests whose files are here."""
    made = []
    for stage, request in zip(recipe["stages"], requests, strict=True):
        blocks = tuple(
            Block(
                each.get("start", 0), each.get("frames", 0), each.get("way", "native"),
                tuple(each.get("releases", ())), each.get("prompt"),
            )
            for each in stage.get("blocks", ())
        )  # fmt: skip
        made.append(ReplayedStage(request, blocks))
    return made
