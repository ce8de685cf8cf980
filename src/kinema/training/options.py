"""What ``kinema train`` takes: one dataclass for Python, the command line and config files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def _option(help_: str, default: Any) -> Any:
    return field(default=default, metadata={"help": help_})


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of a training run; ``None`` means the recipe's own figure."""

    model: str = _option("family/preset, or a file to go on from (fine-tuning)", "zoetrope/base")
    data: str = _option("playroom, or a folder of clips with captions", "playroom")
    out: str = _option("folder of the run; an existing run there is resumed", "runs/train")
    steps: int | None = _option("optimiser steps in all", None)
    batch: int | None = _option("clips a step", None)
    learning_rate: float | None = _option("peak learning rate", None)
    seed: int = _option("seed of weights, data, noise and canvases", 0)
    precision: Literal["auto", "fp32", "bf16"] = _option("bf16 autocast where the device is fast in it", "auto")
    device: str | None = _option("device; the GPU when there is one", None)
    threads: int | None = _option("CPU threads", None)
    save_every: int = _option("steps between checkpoints", 250)
    sample_every: int = _option("steps between sample sheets; 0 is never", 1000)
    validate_every: int = _option("steps between validation losses; 0 is never", 250)
    keep: int = _option("newest checkpoints kept, besides the best", 2)
    compile: bool = _option("torch.compile the network", False)
    grammar: str | None = _option("playroom: simple, full or mixed", None)
    frameskip: int | None = _option("real clips: take every n-th frame", None)
    max_bad_steps: int = _option("stop after this many non-finite steps in a row", 20)
