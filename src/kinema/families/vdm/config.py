"""The paper's models and two small Kinema models.

The paper publishes no parameter counts; those given here are of `VideoUNet` and checked by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, Literal

from kinema.checkpoints.settings import build_config
from kinema.data import playroom
from kinema.schema import BadRequest


@dataclass(frozen=True)
class Training:
    """The paper's training settings for one model. Batch and learning rate default to UCF101's where not published."""

    steps: int
    batch: int = 128
    learning_rate: float = 3e-4
    images: int = 0
    """Number K of independent images appended to every clip (§3.1)."""
    per_frame: bool = False
    """Train an image model: every frame of a clip is an independent image with its own noise level."""
    frameskip: int = 1
    text_drop: float = 0.1
    optimiser: Literal["adamw", "muon"] = "adamw"


@dataclass(frozen=True)
class Config:
    """One model: network sizes, conditioning, prediction target and sampling defaults."""

    frames: int = 16
    side: int = 64
    """Height and width in training; sampling accepts any multiple of `multiple`."""
    fps: float = 8.0
    patch: int = 1
    """Space-to-depth factor before the network (1 in the paper)."""

    channels: int = 256
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    blocks: int = 2
    """Residual blocks per resolution level on the way down; one more on the way up."""
    attention_sides: tuple[int, ...] = (8, 16, 32)
    """Feature-map sides, at the training size, whose blocks have spatial and temporal attention."""
    head_dim: int = 64
    dropout: float = 0.0

    text: Literal["none", "pocket", "bert"] = "none"
    words: tuple[str, ...] = ()
    """Vocabulary of the pocket tokenizer, stored with the weights."""
    text_width: int = 1024
    text_depth: int = 2
    text_length: int = 64
    classes: tuple[str, ...] = ()
    """Class names of a class-conditional model; its prompts must be one of them."""

    target: Literal["eps", "v", "x0"] = "eps"
    """What the network predicts: the paper's eps or v, or the clean clip, for a network narrower than its patches."""
    shift: float = 1.0
    """Ratio of noise to signal over that of the paper's schedule, at every time (`CosineLogSNR.shift`)."""
    gamma: float = 0.3
    """Interpolation of the ancestral sampler's variance between its lower (0) and upper (1) bound."""
    delta: float = 0.0
    """Step size of the Langevin corrector; 0 disables it."""
    sampling_steps: int = 256
    guidance: float = 1.0
    sampler: str = ""
    """Sampler name; "" selects the paper's: vdm-ancestral, or vdm-langevin if delta is not 0."""
    min_snr: float = 0.0
    """Gamma of min-SNR loss weighting; 0 is the paper's unweighted mean squared error."""
    training: Training = field(default_factory=lambda: Training(steps=200_000))

    def __post_init__(self) -> None:
        last = len(self.widths) - 1
        for i, width in enumerate(self.widths):
            if (self.attends(i) or i == last) and width % self.head_dim:
                raise BadRequest(f"vdm: channel width {width} is not a multiple of head_dim {self.head_dim}")
        if self.side % self.multiple:
            raise BadRequest(f"vdm: side is {self.side}; expected a multiple of {self.multiple}")
        if not self.shift > 0:
            raise BadRequest(f"vdm: shift is {self.shift}; expected a positive number")
        if self.training.per_frame and self.training.images:
            raise BadRequest("vdm: the training has both per_frame and images; an image model takes no further images")
        if self.text == "pocket" and not self.words:
            raise BadRequest("vdm: words is empty; the pocket text encoder needs a vocabulary")
        if self.text != "none" and self.classes:
            raise BadRequest(f"vdm: the config has both text ({self.text}) and classes; expected one of them")

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def multiple(self) -> int:
        """Factor that height and width must be a multiple of: the patch, doubled for every downsampling."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def conditional(self) -> bool:
        return self.text != "none" or bool(self.classes)

    def attends(self, resolution: int) -> bool:
        return self.side // self.patch // 2**resolution in self.attention_sides

    @property
    def clips_x0(self) -> bool:
        """Whether x0 estimates are clipped to [-1, 1]: with eps they are divided by alpha, 5e-5 at log-SNR -20."""
        return self.target == "eps"


# UCF101, unconditional, 16×64×64, on all 13,320 videos. FID 295 ± 3, IS 57 ± 0.62 (C3D, 10,000 samples). 1,142 M.
UCF101 = Config(dropout=0.1, gamma=0.1, training=Training(steps=60_000))
# BAIR robot pushing, 15 frames from 1. FVD 68.19 ancestral (512 steps), 66.92 Langevin (256 + 256). 132 M.
BAIR = Config(
    channels=128, multipliers=(1, 2, 3, 4), blocks=3, target="v", gamma=0.0, delta=0.1, training=Training(steps=660_000)
)
# Kinetics-600, 11 frames from 5. FVD 18.6 / IS 15.39 ancestral (256), 16.2 ± 0.34 / 15.64 Langevin (128 + 128).
KINETICS = Config(target="v", gamma=0.0, delta=0.1, sampling_steps=128, training=Training(steps=220_000))
# Text to video, 16×64×64, BERT-large, joint training on K = 8 images. Guidance scale 1 / 2 / 5 at frameskip 1:
# FVD 41.65 / 50.19 / 163.74, FID-avg 12.49 / 10.53 / 13.54, IS-avg 10.80 / 13.22 / 14.80.
# K = 0 / 4 / 8 (joint training): FVD 202.28 / 68.11 / 57.84, FID-avg 37.52 / 18.62 / 15.57. 289 M; large 1,147 M.
TEXT_SMALL = Config(channels=128, text="bert", training=Training(steps=200_000, images=8))
TEXT_LARGE = replace(TEXT_SMALL, channels=256, training=Training(steps=700_000, images=8))
# 9×128×128, the network of the spatial and temporal extension demo (64×128×128 from 16×64×64 at frameskip 4). 1,135 M.
TEXT_128 = replace(
    TEXT_SMALL,
    frames=9,
    side=128,
    multipliers=(1, 2, 4, 8, 16),
    head_dim=128,
    training=Training(steps=800_000, images=7),
)


@cache
def presets() -> Mapping[str, Config]:
    """Configs by preset name. Reads the playroom vocabulary on first use."""
    words = tuple(playroom.vocabulary())
    # Kinema's own: pocket trains on two CPU cores; tiny samples there in well under a second.
    pocket = Config(
        patch=4,
        channels=56,
        multipliers=(1, 2, 2),
        blocks=1,
        attention_sides=(8, 16),
        head_dim=28,
        text="pocket",
        words=words,
        text_width=128,
        text_length=20,
        target="v",
        sampling_steps=64,
        guidance=2.0,
        sampler="ddim",
        training=Training(steps=20_000, batch=16, learning_rate=1e-3),
    )
    tiny = replace(
        pocket,
        frames=8,
        side=16,
        patch=2,
        channels=12,
        multipliers=(1, 2),
        attention_sides=(4, 8),
        head_dim=12,
        text_width=32,
        text_depth=1,
        sampling_steps=4,
        training=Training(steps=200, batch=4, learning_rate=2e-3, images=2),
    )
    return {
        "tiny": tiny,
        "pocket": pocket,
        "ucf101": UCF101,
        "bair": BAIR,
        "kinetics": KINETICS,
        "text-small": TEXT_SMALL,
        "text-large": TEXT_LARGE,
        "text-128": TEXT_128,
    }


def to_json(config: Config) -> dict[str, Any]:
    """Return the config as plain JSON values, the inverse of `from_json`."""
    return asdict(config)


def from_json(data: Mapping[str, Any]) -> Config:
    """Build the config from a file's metadata. Raises BadRequest for an unknown setting or an invalid value."""
    return build_config(Config, data, "the config of this file")
