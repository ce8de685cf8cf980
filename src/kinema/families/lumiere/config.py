"""Sizes and sampling settings of Space-Time U-Nets: those of the image model, and those of the temporal layers.

The paper publishes no sizes; parameter counts next to the presets are those of `build` and checked by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal

from kinema.checkpoints.settings import build_config
from kinema.conditioning.clip_text import ClipTextSize, WordTokenizer
from kinema.data import playroom
from kinema.diffusion.schedules import Spacing
from kinema.schema import BadRequest

Betas = tuple[Literal["linear", "scaled_linear"], float, float]

IMAGE_FIELDS = (
    "height", "width", "steps", "sampler", "spacing", "guidance", "channels", "layers", "depths", "heads", "context",
    "linear", "text", "words", "latent_channels", "latent_scale", "vae_channels", "vae_layers", "patch", "groups",
    "predicts", "betas",
)  # fmt: skip
"""Settings of the image model, which an image model that is added replaces."""
SAMPLING_FIELDS = ("height", "width", "steps", "sampler", "spacing", "guidance")
"""Those of them that a super-resolution model keeps."""


@dataclass(frozen=True)
class Config:
    """One model. The image part has the sizes and names of Stable Diffusion 1.5 by default."""

    frames: int = 80
    """Frames of a clip by default; a multiple of `factor`."""
    longest: int = 80
    """Frames that the model generates in one pass."""
    fps: float = 16.0
    height: int = 512
    width: int = 512
    steps: int = 50
    sampler: str = "ddim"
    spacing: Spacing = "leading"
    guidance: float = 7.5

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    depths: tuple[int, ...] = (1, 1, 1, 0)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    context: int = 768
    linear: bool = False
    text: ClipTextSize = ClipTextSize()
    words: tuple[str, ...] = ()
    """Word-level vocabulary that replaces CLIP's byte pairs; empty for CLIP's."""
    latent_channels: int = 4
    latent_scale: float = 0.18215
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    patch: int = 0
    """Side of a latent cell in pixels for a pixel-space model; 0 for a model with a VAE."""
    groups: int = 32
    predicts: Literal["eps", "x0"] = "eps"
    betas: Betas = ("scaled_linear", 0.00085, 0.012)

    temporal_layers: int = 2
    """Attention layers of each block at the coarsest level."""
    resamples: bool = True
    """Whether the network also halves the frames at each level; False for comparisons."""
    conditioned: bool = True
    """Whether the first convolution also takes given pixels and their mask."""
    enlarges: int = 1
    """For a super-resolution model, how many times the sides of the small clip that it takes; 1 for a base model."""
    overlap: int | None = None
    """For a model that works on windows of the clip, the frames that they share (§3.2); None: the clip is one pass."""
    inflated: bool = False
    """Whether the image part has the weights of an image model; random ones are of no use to temporal layers."""

    def __post_init__(self) -> None:
        if self.longest % self.factor or self.frames % self.factor:
            raise BadRequest(
                f"lumiere: a clip of {self.frames} frames, {self.longest} at most, is halved {len(self.channels) - 1} "
                f"times; expected multiples of {self.factor}"
            )
        if self.enlarges > 1 and self.predicts != "x0":
            raise BadRequest("lumiere: a super-resolution model adds to the small clip, so it predicts x0, not noise")
        if self.frames > self.longest:
            raise BadRequest(f"lumiere: frames is {self.frames}; expected at most longest, {self.longest}")

    @property
    def factor(self) -> int:
        """Frames for each frame at the coarsest level."""
        return 2 ** (len(self.channels) - 1) if self.resamples else 1

    @property
    def stride(self) -> int:
        """Side of a latent cell in pixels."""
        return self.patch or 2 ** (len(self.vae_channels) - 1)

    @property
    def multiple(self) -> int:
        """Factor that frame sides must be a multiple of, so that every resolution level halves evenly."""
        return self.stride * 2 ** (len(self.channels) - 1)

    @property
    def given_channels(self) -> int:
        """Channels of given content and mask, in addition to those of the noisy clip: 4 to 3 with pixels."""
        return self.latent_channels + (self.patch**2 or 1)


SD15 = Config()  # 1,538,407,787 parameters, of which 472,172,480 are new
BASE = Config(
    height=128,
    width=128,
    channels=(256, 512, 768, 1024),
    depths=(0, 1, 1, 1),
    latent_channels=3,
    latent_scale=1.0,
    vae_channels=(),
    patch=1,
)  # 80 frames of 128×128 at 16 fps, as the paper's base model: 938,913,283, of which 269,657,344 are new

_POCKET_BETAS: Betas = ("linear", 0.00085, 0.024)


def with_playroom_words(config: Config) -> Config:
    """Set the playroom's words as the vocabulary."""
    words = tuple(playroom.vocabulary())
    return replace(config, words=words, text=replace(config.text, vocabulary=WordTokenizer(words).size))


@cache
def presets() -> Mapping[str, Config]:
    """Configs by preset name. Reads the playroom vocabulary on first use."""
    # The image part of `pocket` is that of animatediff-pocket, whose weights it is inflated from.
    pocket = with_playroom_words(
        Config(
            frames=32,
            fps=6.0,
            height=64,
            width=64,
            steps=25,
            sampler="vdm-ancestral",
            spacing="trailing",
            guidance=3.0,
            channels=(64, 96),
            layers=1,
            depths=(0, 1),
            heads=(4, 4),
            context=96,
            text=ClipTextSize(width=96, layers=1, heads=4, mlp=288, length=24),
            latent_channels=48,
            latent_scale=1.0,
            vae_channels=(),
            patch=4,
            groups=8,
            predicts="x0",
            betas=_POCKET_BETAS,
        )
    )  # 4,103,600 with the playroom's words, of which 1,428,448 are new
    tiny = replace(
        pocket,
        frames=8,
        longest=16,
        height=16,
        width=16,
        steps=4,
        guidance=2.0,
        channels=(32, 64, 64),
        depths=(0, 1, 0),
        heads=(2, 2, 2),
        context=32,
        text=replace(pocket.text, width=32, heads=2, mlp=64),
        latent_channels=12,
        patch=2,
        temporal_layers=1,
    )
    return {
        "tiny": tiny,
        "tiny-sr": _enlarging(tiny, 32),
        "pocket": pocket,
        "pocket-sr": _enlarging(pocket, 128),
        # The cascade that Lumiere argues against: keyframes first, then the frames between them, window by window.
        # Neither halves the frames, and both together have 1.11 times as many new parameters as `pocket`.
        "pocket-keyframes": replace(pocket, frames=9, longest=9, fps=1.5, resamples=False, temporal_layers=1),
        "pocket-between": replace(pocket, frames=5, longest=5, resamples=False, temporal_layers=1, overlap=1),
        "sd15": SD15,
        "base-128px": BASE,
    }


def _enlarging(base: Config, side: int) -> Config:
    """The super-resolution model of a base model: 8 frames at a time, without guidance."""
    return replace(
        base, frames=8, longest=8, height=side, width=side, steps=6, guidance=1.0, conditioned=False, enlarges=2,
        overlap=2,
    )  # fmt: skip


def to_json(config: Config) -> dict[str, Any]:
    return asdict(config)


def from_json(data: Mapping[str, Any]) -> Config:
    """Parse a config; raises `BadRequest` for an unknown setting or one of the wrong type or size."""
    return build_config(Config, data, "the config of this file")
