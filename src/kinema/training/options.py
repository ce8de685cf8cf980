"""The options of ``kinema train``, for Python, the command line and config files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from kinema.bounds import quoted
from kinema.schema import BadRequest, plain_number
from kinema.values import number


def option(
    help_: str, default: Any, least: float | None = None, most: float | None = None, *, path: bool = False
) -> Any:
    return field(default=default, metadata={"help": help_, "least": least, "most": most, "path": path})


def check_ranges(options: Any) -> None:
    """Raise BadRequest for a number outside the range of its field."""
    for f in fields(options):
        value, least, most = getattr(options, f.name), f.metadata["least"], f.metadata["most"]
        if value is not None and least is not None and not (math.isfinite(value) and least <= value <= most):
            raise BadRequest(f"{f.name} is {plain_number(value)}; expected {number(least)} to {number(most)}")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of a training run; ``None`` means the value of the family's training settings.

    A resumed run keeps its model, data, seed, batch and precision; the number of steps, the learning rate and the
    intervals between checkpoints, sample sheets and validation may change.
    """

    model: str = option(
        "family/preset, or a weight file or the folder of a run to fine-tune", "zoetrope/base", path=True
    )
    variant: str | None = option(
        "file variant in a folder (fp16), or the published model of the weights (svd-xt)", None
    )
    data: str = option(
        "playroom, a folder of clips with captions, or latents from `kinema data latents`", "playroom", path=True
    )
    out: str = option("folder of the run; an existing run is resumed", "runs/train", path=True)
    steps: int | None = option("total optimiser steps", None, 1, 1e9)
    batch: int | None = option("clips per step", None, 1, 1e6)
    buckets: str | None = option(
        "opensora: file of resolutions, each with {frames: (keep probability, clips per step)}, as Open-Sora's "
        "bucket_config (.json, .yaml or .py); each step has the size of one bucket",
        None,
        path=True,
    )
    accumulate: int = option("split each step into this many parts (gradient accumulation) to save memory", 1, 1, 1e6)
    learning_rate: float | None = option("peak learning rate", None, 1e-12, 1e3)
    stage: str | None = option(
        "training stage of the paper: for svd, such as base or finetune; for animatediff, image, style, motion, "
        "sparsectrl or scribble; for opensora 1.x, such as stage3 or adapt-i2v",
        None,
    )
    only: str | None = option(
        "train only a part: for svd, temporal; for opensora, temporal, given or all-but-text", None
    )
    add: str | None = option(
        "add-ons, such as motion=mm_sd_v15_v2.ckpt or vae=hunyuan_vae.safetensors, separated by commas",
        None,
        path=True,
    )
    lora: str | None = option("train a LoRA of this rank (or rank:alpha) instead of the network", None)
    frames: int | None = option("frames per clip, if the model supports any number", None, 1, 4096)
    height: int | None = option("height in pixels, if the model supports any size", None, 1, 8192)
    width: int | None = option("width in pixels, if the model supports any size", None, 1, 8192)
    seed: int = option("seed of weights, data, noise and canvases", 0, 0, 2**31 - 1)
    precision: Literal["auto", "fp32", "bf16"] = option("auto uses bf16 autocast if the device is fast in it", "auto")
    device: str | None = option("device (default: a GPU if available)", None)
    threads: int | None = option("CPU threads", None, 1, 1024)
    save_every: int = option("steps between checkpoints; 0 saves only the last", 250, 0, 1e9)
    sample_every: int = option("steps between sample sheets; 0 disables them", 1000, 0, 1e9)
    validate_every: int = option("steps between validation losses; 0 disables them", 250, 0, 1e9)
    keep: int = option("number of newest checkpoints to keep, besides the best", 2, 1, 1e6)
    checkpoint_activations: bool = option("activation checkpointing: less memory, slower steps", False)
    compile: bool = option("compile the network's blocks: faster steps after a slow first one", False)
    grammar: Literal["simple", "full", "mixed", "scenic", "filmed"] | None = option(
        "playroom: simple, full, mixed; scenic or filmed (simple, with patterns and some or many camera motions)", None
    )
    style: Literal["outline", "night"] | None = option("playroom: render frames in this style", None)
    camera: Literal["pans left", "pans right", "zooms in", "zooms out"] | None = option(
        "playroom: camera motion of every clip, not mentioned in captions", None
    )
    split: Literal["train", "train-v1"] | None = option(
        "playroom: share of the captions (default: train); train-v1 adds the evaluation's, as for the shipped weights",
        None,
    )
    frameskip: int | None = option(
        "real clips: take every n-th source frame (default: resample to the model's frame rate)",
        None,
        1,
        1e4,
    )
    crop: Literal["centre", "random"] = option("real clips: where frames are cropped to the model's shape", "centre")
    flip: bool = option("real clips: mirror half of them, except if the caption names a side", False)
    follow_links: bool = option("real clips: follow links in the data folder, even out of it", False)
    max_bad_steps: int = option("stop after this many non-finite steps in a row", 20, 1, 1e9)

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, known in (
            ("precision", ("auto", "fp32", "bf16")),
            ("grammar", (None, "simple", "full", "mixed", "scenic", "filmed")),
            ("style", (None, "outline", "night")),
            ("camera", (None, "pans left", "pans right", "zooms in", "zooms out")),
            ("split", (None, "train", "train-v1")),
            ("crop", ("centre", "random")),
        ):
            if getattr(self, name) not in known:
                expected = ", ".join(k for k in known if k)
                raise BadRequest(f"{name} is {getattr(self, name)!r}; expected one of {expected}")
        if self.buckets is not None and self.batch is not None:
            raise BadRequest("batch does not apply to buckets, which have batches of their own; leave out batch")
        given = {"frameskip": self.frameskip, "crop": self.crop != "centre", "flip": self.flip}
        given |= {"follow_links": self.follow_links}
        if self.data == "playroom" and (extra := [name for name, value in given.items() if value]):
            raise BadRequest(f"{extra[0]} applies only to real clips; name a folder as data")
        if self.data != "playroom" and self.grammar:
            raise BadRequest(f"grammar applies only to playroom, not to the clips in {self.data}")
        for name in ("style", "camera", "split"):
            if self.data != "playroom" and getattr(self, name):
                raise BadRequest(f"{name} applies only to playroom, not to the clips in {self.data}")


def parse_addons(text: str | None) -> dict[str, str]:
    """Parse ``motion=FILE,vae=FILE`` into files by slot."""
    pairs = [word.partition("=") for word in text.split(",")] if text else []
    if not all(slot and file for slot, _, file in pairs):
        raise BadRequest(f"add is {quoted(text)}; expected SLOT=FILE, such as motion=mm_sd_v15_v2.ckpt")
    return {slot: file for slot, _, file in pairs}
