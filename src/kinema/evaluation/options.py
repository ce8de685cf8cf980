"""Options of ``kinema evaluate``: one dataclass for Python, the command line and config files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from kinema.schema import BadRequest, plain_number
from kinema.values import number

_Grammar = Literal["simple", "full", "mixed"]
_Split = Literal["evaluation", "tuning", "train", "all"]


def _option(
    help_: str, default: Any, *, least: float | None = None, most: float | None = None, path: bool = False
) -> Any:
    return field(default=default, metadata={"help": help_, "least": least, "most": most, "path": path})


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of an evaluation; ``None`` means the model's default, or what the help states."""

    model: str = _option("bundled model name, alias, hub id, folder or file", "zoetrope", path=True)
    preset: str | None = _option("untrained model of this preset, to test the evaluation itself", None)
    prompts: int | None = _option("number of prompts; default 128, or 64 for the report", None, least=1, most=100_000)
    grammar: _Grammar = _option("playroom grammar: simple, full or mixed", "simple")
    split: _Split | None = _option(
        "share of playroom's prompts: evaluation, tuning, train or all; default evaluation, or tuning for the curve",
        None,
    )
    prompts_file: str | None = _option(
        "your own prompts in playroom's grammar: a .txt with one a line, or a .csv, .json or .jsonl with a column "
        "of prompts; --prompts takes the first of them",
        None,
        path=True,
    )
    seed: int = _option("seed of prompts, clips and resampling; prompt i has seed + i", 0, least=0, most=2**31)
    steps: int | None = _option("sampling steps", None, least=1, most=10_000)
    sampler: str | None = _option("sampler, by name", None)
    guidance: float | None = _option("classifier-free guidance scale; 1 is off", None, least=-100, most=1000)
    batch: int = _option("clips per batch; results hardly depend on it", 4, least=1, most=256)
    device: str | None = _option("device; default: the GPU if there is one", None)
    threads: int | None = _option("CPU threads", None, least=1, most=1024)
    animate: bool = _option("also measure image to video", False)
    output: str | None = _option("JSON file for all results and the protocol", None, path=True)
    overwrite: bool = _option("replace an existing output", False)
    report: bool = _option(
        "write the temporal consistency report instead: video against frame-by-frame sampling", False
    )
    curve: str | None = _option(
        "folder of a training run: write its curve of scores against compute instead", None, path=True
    )
    evidence: str = _option("folder for the report and the curve", "docs/evidence", path=True)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, least, most = getattr(self, f.name), f.metadata["least"], f.metadata["most"]
            if value is not None and least is not None and not (math.isfinite(value) and least <= value <= most):
                raise BadRequest(f"{f.name} is {plain_number(value)}; expected {number(least)} to {number(most)}")
        for name, value, known in (("grammar", self.grammar, _Grammar), ("split", self.share, _Split)):
            if value is not None and value not in get_args(known):
                raise BadRequest(f"{name} is {value!r}; expected {', '.join(get_args(known))}")
        if self.report and self.curve is not None:
            raise BadRequest("report and curve cannot be combined")
        if self.prompts_file is not None:
            if given := [name for name in ("split", "curve") if getattr(self, name) is not None]:
                raise BadRequest(f"{given[0]} cannot be combined with prompts_file")
            if self.grammar != "simple":
                raise BadRequest("grammar cannot be combined with prompts_file")
        if self.animate and (self.report or self.curve is not None):
            raise BadRequest("animate cannot be combined with report or curve")

    @property
    def share(self) -> _Split | None:
        """The split of the prompts, None for own ones. A curve serves to choose, so it has tuning prompts."""
        if self.prompts_file is not None:
            return None
        return self.split or ("evaluation" if self.curve is None else "tuning")
