"""Sizes and sampling settings of AnimateDiff's image models and motion modules.

The parameter counts next to the presets are those of `build` on the meta device; tests check them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any, Literal

from kinema.checkpoints.declared import Predicts
from kinema.checkpoints.settings import build_config
from kinema.conditioning.clip_text import BIG_G, ClipTextSize
from kinema.diffusion.schedules import BetaKind
from kinema.schema import Spacing

Motion = Literal["none", "v1", "v2", "v3", "sdxl", "hotshot", "lcm", "lightning", "pia"]
Norms = Literal["official", "diffusers"]
Betas = tuple[BetaKind, float, float]
CLIP_NOISE = ("betas", "trained_betas", "steps_offset", "karras", "clip")
"""Settings of the noise of clips, which a motion module brings; the image model keeps its own for single frames."""
Stage = Literal["", "image", "style", "motion", "sparsectrl"]

IMAGE_BETAS: Betas = ("scaled_linear", 0.00085, 0.012)
"""Betas of the image models, also used for single frames; LDM's code calls them "linear"."""
MOTION_BETAS: Betas = ("linear", 0.00085, 0.012)
"""Betas of motion modules v1 to v3; ComfyUI calls them "sqrt_linear"."""


@dataclass(frozen=True)
class ControlSize:
    """A ControlNet; it has the image model's channels and layers."""

    name: str = "controlnet"
    """Its name in requests."""
    depths: tuple[int | None, ...] = field(default=(1, 1, 1, None), metadata={"least": 0})
    """Transformer blocks per resolution level; 0 for projections alone, None for no transformers."""
    middle: int | None = field(default=1, metadata={"least": 0})
    linear: bool = False
    hint: int = 3
    """Channels of the control image."""
    bgr: bool = False
    """Whether it was trained on BGR images."""
    pooled: bool = False
    """Whether its residuals are averaged over the image and left out of the negative branch (v1.1's "shuffle")."""


@dataclass(frozen=True)
class AdapterSize:
    """An IP-Adapter: image prompts as additional cross-attention tokens."""

    name: str = "ip_adapter"
    """Its name in requests."""
    kind: Literal["plain", "plus"] = "plain"
    """Whether it reads CLIP's image embedding ("plain") or its patch embeddings ("plus")."""
    embedding: int = 1024
    """Width of that input."""
    tokens: int = 4
    width: int = 768
    """Width of the resampler ("plus")."""
    inner: int = 768
    """Width of the resampler's attention, in heads of 64."""
    layers: int = 4


@dataclass(frozen=True)
class VisionSize:
    """CLIP's image encoder for IP-Adapters; defaults are ViT-H/14."""

    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp: int = 5120
    patch: int = 14
    side: int = 224
    projection: int = 1024
    activation: Literal["gelu", "quick_gelu"] = "gelu"


@dataclass(frozen=True)
class Config:
    """An image model, its motion module, and their sampling settings."""

    frames: int = 16
    height: int = 512
    width: int = 512
    fps: float = 8.0
    steps: int = 25
    sampler: str = "ddim"
    spacing: Spacing = "leading"
    guidance: float = 7.5

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    depths: tuple[int, ...] = (1, 1, 1, 0)
    """Transformer blocks per resolution level, 0 for none; the middle block has the last nonzero number."""
    heads: tuple[int, ...] = (8, 8, 8, 8)
    context: int = 768
    """Width of a prompt token."""
    linear: bool = False
    """Whether transformer projections are stored as linear layers (SDXL) rather than 1×1 convolutions."""
    size_embedding: int = 0
    """SDXL: width of the sinusoidal embedding of each of the six size and crop values; 0 for none."""
    in_channels: int = 4

    text: tuple[ClipTextSize, ...] = (ClipTextSize(),)
    words: tuple[str, ...] = ()
    """Word-level vocabulary that replaces CLIP's byte pairs; empty for CLIP's."""

    latent_channels: int = 4
    latent_scale: float = 0.18215
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2

    motion: Motion = "v3"
    positions: int = 32
    """Positions of the motion module, in frames."""
    stretch: int | None = None
    """Number of frames that the positions are interpolated to; None leaves them as trained."""
    motion_mid: bool = False
    motion_heads: int = 8
    norms: Norms = "official"
    """Whether norms cover a frame or a clip as in training ("official") or as in diffusers."""
    betas: Betas = MOTION_BETAS

    sparse: Literal["rgb", "scribble"] | None = None
    """SparseCtrl's input: frames ("rgb") or scribbles; None for a model without SparseCtrl."""
    sparse_positions: int = 32

    controls: tuple[ControlSize, ...] = ()
    adapters: tuple[AdapterSize, ...] = ()
    vision: VisionSize | None = None
    patch: int = 0
    """Side of a latent cell in pixels for a pixel-space model; 0 for a model with a VAE."""
    groups: int = 32
    """Groups of the group norms; 32 groups of few channels would normalise each almost alone and lose brightness."""
    predicts: Predicts = "eps"
    image_betas: Betas = IMAGE_BETAS
    """Betas of the image model's noise levels."""
    trained_betas: tuple[float, ...] = ()
    """The betas of clips themselves, in place of ``betas``; those of the image model are ``image_trained_betas``."""
    image_trained_betas: tuple[float, ...] = ()
    timesteps: int = 1000
    zero_snr: bool = False
    """Whether betas are rescaled so that the last timestep is pure noise."""
    steps_offset: int = field(default=1, metadata={"least": 0})
    """First timestep of leading spacing."""
    karras: bool = False
    """Whether steps are spaced as in EDM between the ends of ``spacing``."""
    clip: float | None = None
    """Limit that x0 is clipped to at each step; None: no clipping."""
    stage: Stage = ""
    """Training stage: the image model ("image"), its finest layers ("style"), the motion module or SparseCtrl. "" means
    the motion module if there is one. With a LoRA, "image" trains a domain adapter and "motion" a MotionLoRA."""

    absent: tuple[Literal["vae", "text"], ...] = ()
    """Parts still missing from the image model's file; such a model can be opened but not run."""

    @property
    def codec(self) -> Literal["vae", "pixels"]:
        """Codec between frames and latents: a VAE, or squares of ``patch`` pixels."""
        return "pixels" if self.patch else "vae"

    @property
    def stride(self) -> int:
        """Side of a latent cell in pixels."""
        return self.patch or 2 ** (len(self.vae_channels) - 1)

    @property
    def multiple(self) -> int:
        """Factor that frame sides must be a multiple of, so that every resolution level halves evenly."""
        return self.stride * 2 ** (len(self.channels) - 1)

    @property
    def trains(self) -> Stage:
        """Training stage, with the default for an empty ``stage``."""
        return self.stage or ("image" if self.motion == "none" else "motion")

    @property
    def longest(self) -> int:
        """Number of frames handled at a time."""
        return 1 if self.motion == "none" else self.stretch or self.positions

    @property
    def image_norm_over_clip(self) -> bool:
        """Whether image norms cover the whole clip, as v1, PIA and HotShot-XL were trained."""
        return self.norms == "official" and self.motion in ("v1", "pia", "hotshot")

    @property
    def motion_norm_over_clip(self) -> bool:
        """Whether motion norms cover the whole clip, as SDXL's was trained and diffusers always does."""
        return self.norms == "diffusers" or self.motion == "sdxl"

    @property
    def pooled(self) -> int:
        """Width of the pooled prompt embedding; 0 for none."""
        return self.text[-1].projection or 0 if self.size_embedding else 0


V3 = Config()  # motion 417,137,600 in 520 tensors; whole U-Net 1,276,658,564
V1 = replace(V3, motion="v1", positions=24)  # the same sizes
V2 = replace(V3, motion="v2", motion_mid=True)  # motion 453,209,280 in 546; whole U-Net 1,312,730,244
PIA = replace(V3, motion="pia")  # plus 14,400 weights for the first frame
V3_RGB = replace(V3, sparse="rgb")  # SparseCtrl 496,730,880 in 478
V3_SCRIBBLE = replace(V3, sparse="scribble")  # 497,802,784 in 492
LCM = replace(V2, motion="lcm", steps=6, sampler="lcm", guidance=1.5, spacing="trailing")
LIGHTNING = replace(V2, motion="lightning", steps=4, sampler="euler", guidance=1.0, spacing="trailing")
IMAGE = replace(V3, motion="none", frames=1, betas=IMAGE_BETAS)  # Stable Diffusion 1.5: 859,520,964

SDXL = replace(
    V3,
    height=1024,
    width=1024,
    sampler="euler",
    channels=(320, 640, 1280),
    depths=(0, 2, 10),
    heads=(5, 10, 20),
    context=2048,
    linear=True,
    size_embedding=256,
    text=(ClipTextSize(), BIG_G),
    latent_scale=0.13025,
    motion="sdxl",
    betas=("scaled_linear", 0.00085, 0.02),
)  # motion 236,779,200 in 390; whole U-Net 2,804,242,884
HOTSHOT = replace(SDXL, frames=8, height=384, width=672, sampler="euler-ancestral", motion="hotshot", betas=IMAGE_BETAS)
SDXL_IMAGE = replace(SDXL, motion="none", frames=1, betas=IMAGE_BETAS)  # 2,567,463,684

TINY = replace(
    V2,
    frames=8,
    height=16,
    width=16,
    steps=4,
    guidance=2.0,
    channels=(32, 64),
    layers=1,
    depths=(1, 0),
    heads=(2, 2),
    context=32,
    text=(ClipTextSize(width=32, layers=2, heads=2, mlp=64, length=20),),
    vae_channels=(32, 64),
    vae_layers=1,
    positions=16,
    motion_heads=2,
)

PRESETS: dict[str, Config] = {
    "tiny": TINY,
    "v1": V1,
    "v2": V2,
    "v3": V3,
    "pia": PIA,
    "v3-rgb": V3_RGB,
    "v3-scribble": V3_SCRIBBLE,
    "lcm": LCM,
    "lightning": LIGHTNING,
    "sdxl": SDXL,
    "hotshot": HOTSHOT,
    "image": IMAGE,
    "sdxl-image": SDXL_IMAGE,
}


def skip_widths(config: Config) -> list[int]:
    """Channels of the U-Net's skip connections, in encoder order."""
    last = len(config.channels) - 1
    each = ([width] * (config.layers + (level < last)) for level, width in enumerate(config.channels))
    return [config.channels[0], *chain.from_iterable(each)]


def to_json(config: Config) -> dict[str, Any]:
    return asdict(config)


def from_json(data: Mapping[str, Any]) -> Config:
    """Parse a config; raises `BadRequest` for an unknown setting or one of the wrong type or size."""
    return build_config(Config, data, "the config of this file")
