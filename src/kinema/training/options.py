"""What ``kinema train`` takes: one dataclass for Python, the command line and config files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from kinema.schema import BadRequest


def _option(help_: str, default: Any, least: float | None = None, most: float | None = None) -> Any:
    return field(default=default, metadata={"help": help_, "least": least, "most": most})


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of a training run; ``None`` means the recipe's own figure.

    A run that is resumed keeps its model, data, seed, batch and precision; the number of steps, the learning
    rate and how often something is saved or shown may change.
    """

    model: str = _option("family/preset, or a file to go on from (fine-tuning)", "zoetrope/base")
    data: str = _option("playroom, or a folder of clips with captions", "playroom")
    out: str = _option("folder of the run; an existing run there is resumed", "runs/train")
    steps: int | None = _option("optimiser steps in all", None, 1, 1e9)
    batch: int | None = _option("clips a step", None, 1, 1e6)
    learning_rate: float | None = _option("peak learning rate", None, 1e-12, 1e3)
    seed: int = _option("seed of weights, data, noise and canvases", 0, 0, 2**31 - 1)
    precision: Literal["auto", "fp32", "bf16"] = _option("bf16 autocast where the device is fast in it", "auto")
    device: str | None = _option("device; the GPU when there is one", None)
    threads: int | None = _option("CPU threads", None, 1, 1024)
    save_every: int = _option("steps between checkpoints; 0 is only the last", 250, 0, 1e9)
    sample_every: int = _option("steps between sample sheets; 0 is never", 1000, 0, 1e9)
    validate_every: int = _option("steps between validation losses; 0 is never", 250, 0, 1e9)
    keep: int = _option("newest checkpoints kept, besides the best", 2, 1, 1e6)
    compile: bool = _option("torch.compile the network", False)
    grammar: Literal["simple", "full", "mixed"] | None = _option("playroom: simple, full or mixed", None)
    frameskip: int | None = _option(
        "real clips: take every n-th frame as filmed; left out, they are brought to the model's frame rate",
        None,
        1,
        1e4,
    )
    crop: Literal["centre", "random"] = _option("real clips: where the frame is cut to the model's shape", "centre")
    flip: bool = _option("real clips: mirror half of them, but none whose caption names a side", False)
    max_bad_steps: int = _option("stop after this many non-finite steps in a row", 20, 1, 1e9)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, least, most = getattr(self, f.name), f.metadata["least"], f.metadata["most"]
            if value is not None and least is not None and not (math.isfinite(value) and least <= value <= most):
                raise BadRequest(f"{f.name} is {value}; expected {least:g} to {most:g}")
        for name, known in (
            ("precision", ("auto", "fp32", "bf16")),
            ("grammar", (None, "simple", "full", "mixed")),
            ("crop", ("centre", "random")),
        ):
            if getattr(self, name) not in known:
                expected = ", ".join(k for k in known if k)
                raise BadRequest(f"{name} is {getattr(self, name)!r}; expected one of {expected}")
        told = {"frameskip": self.frameskip, "crop": self.crop != "centre", "flip": self.flip}
        if self.data == "playroom" and (extra := [name for name, value in told.items() if value]):
            raise BadRequest(f"{extra[0]} is an option of real clips; playroom has none: name a folder as data")
        if self.data != "playroom" and self.grammar:
            raise BadRequest(f"grammar is an option of playroom; the clips of {self.data} have their own captions")
