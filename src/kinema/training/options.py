"""What ``kinema train`` takes: one dataclass for Python, the command line and config files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from kinema.schema import BadRequest


def option(
    help_: str, default: Any, least: float | None = None, most: float | None = None, *, path: bool = False
) -> Any:
    return field(default=default, metadata={"help": help_, "least": least, "most": most, "path": path})


def check_ranges(options: Any) -> None:
    """Refuse a number that is outside the range its field tells."""
    for f in fields(options):
        value, least, most = getattr(options, f.name), f.metadata["least"], f.metadata["most"]
        if value is not None and least is not None and not (math.isfinite(value) and least <= value <= most):
            raise BadRequest(f"{f.name} is {value}; expected {least:g} to {most:g}")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of a training run; ``None`` means the recipe's own figure.

    A run that is resumed keeps its model, data, seed, batch and precision; the number of steps, the learning
    rate and how often something is saved or shown may change.
    """

    model: str = option(
        "family/preset, or a file or the folder of a run to go on from (fine-tuning)", "zoetrope/base", path=True
    )
    variant: str | None = option("files of a folder (fp16), or the published model that weights are (svd-xt)", None)
    data: str = option(
        "playroom, a folder of clips with captions, or latents from `kinema data latents`", "playroom", path=True
    )
    out: str = option("folder of the run; an existing run there is resumed", "runs/train", path=True)
    steps: int | None = option("optimiser steps in all", None, 1, 1e9)
    batch: int | None = option("clips a step", None, 1, 1e6)
    accumulate: int = option("parts that a step's clips are taken in, one after the other, to save memory", 1, 1, 1e6)
    learning_rate: float | None = option("peak learning rate", None, 1e-12, 1e3)
    stage: str | None = option(
        "stage of the paper's training: of svd such as base or finetune; of animatediff image, style, motion, "
        "sparsectrl or scribble",
        None,
    )
    only: str | None = option("svd: train a part alone, such as temporal", None)
    add: str | None = option(
        "animatediff: a file in a slot of the model, such as motion=mm_sd_v15_v2.ckpt; several with commas",
        None,
        path=True,
    )
    lora: str | None = option("train a LoRA of this rank (or rank:alpha) instead of the network", None)
    frames: int | None = option("frames a clip, where the model takes any number", None, 1, 4096)
    height: int | None = option("height in pixels, likewise", None, 1, 8192)
    width: int | None = option("width in pixels, likewise", None, 1, 8192)
    seed: int = option("seed of weights, data, noise and canvases", 0, 0, 2**31 - 1)
    precision: Literal["auto", "fp32", "bf16"] = option("bf16 autocast where the device is fast in it", "auto")
    device: str | None = option("device; the GPU when there is one", None)
    threads: int | None = option("CPU threads", None, 1, 1024)
    save_every: int = option("steps between checkpoints; 0 is only the last", 250, 0, 1e9)
    sample_every: int = option("steps between sample sheets; 0 is never", 1000, 0, 1e9)
    validate_every: int = option("steps between validation losses; 0 is never", 250, 0, 1e9)
    keep: int = option("newest checkpoints kept, besides the best", 2, 1, 1e6)
    checkpoint_activations: bool = option(
        "keep only what enters each block and compute the rest again backwards: less memory, a slower step", False
    )
    compile: bool = option("compile the network's blocks: faster steps after a slow first one", False)
    grammar: Literal["simple", "full", "mixed", "scenic", "filmed"] | None = option(
        "playroom: simple, full, mixed; scenic or filmed (simple, with patterns, and some or many camera motions)", None
    )
    style: Literal["outline", "night"] | None = option("playroom: frames drawn anew, as outline or night", None)
    camera: Literal["pans left", "pans right", "zooms in", "zooms out"] | None = option(
        "playroom: the camera moves so in every clip, and no caption says it", None
    )
    frameskip: int | None = option(
        "real clips: take every n-th frame as filmed; left out, they are brought to the model's frame rate",
        None,
        1,
        1e4,
    )
    crop: Literal["centre", "random"] = option("real clips: where the frame is cut to the model's shape", "centre")
    flip: bool = option("real clips: mirror half of them, but none whose caption names a side", False)
    follow_links: bool = option("real clips: read what links in the folder of data lead to, outside of it too", False)
    max_bad_steps: int = option("stop after this many non-finite steps in a row", 20, 1, 1e9)

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, known in (
            ("precision", ("auto", "fp32", "bf16")),
            ("grammar", (None, "simple", "full", "mixed", "scenic", "filmed")),
            ("style", (None, "outline", "night")),
            ("camera", (None, "pans left", "pans right", "zooms in", "zooms out")),
            ("crop", ("centre", "random")),
        ):
            if getattr(self, name) not in known:
                expected = ", ".join(k for k in known if k)
                raise BadRequest(f"{name} is {getattr(self, name)!r}; expected one of {expected}")
        told = {"frameskip": self.frameskip, "crop": self.crop != "centre", "flip": self.flip}
        told |= {"follow_links": self.follow_links}
        if self.data == "playroom" and (extra := [name for name, value in told.items() if value]):
            raise BadRequest(f"{extra[0]} is an option of real clips; playroom has none: name a folder as data")
        if self.data != "playroom" and self.grammar:
            raise BadRequest(f"grammar is an option of playroom; the clips of {self.data} have their own captions")
        for name in ("style", "camera"):
            if self.data != "playroom" and getattr(self, name):
                raise BadRequest(f"{name} is an option of playroom; the clips of {self.data} are taken as they are")
