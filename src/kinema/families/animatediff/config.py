"""Sizes and sampling of AnimateDiff's image models and motion modules; published figures beside the presets.

Parameter counts are those of `build` on the meta device, held by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any, Literal

from kinema.checkpoints.settings import build_config
from kinema.conditioning.clip_text import BIG_G, ClipTextSize
from kinema.diffusion.schedules import Spacing

Motion = Literal["none", "v1", "v2", "v3", "sdxl", "hotshot", "lcm", "lightning", "pia"]
Norms = Literal["official", "diffusers"]
Betas = tuple[Literal["linear", "scaled_linear"], float, float]
Stage = Literal["", "image", "style", "motion", "sparsectrl"]

IMAGE_BETAS: Betas = ("scaled_linear", 0.00085, 0.012)
"""Of the image models, with which one frame is made; what LDM's code calls "linear"."""
MOTION_BETAS: Betas = ("linear", 0.00085, 0.012)
"""Of motion modules v1 to v3; what ComfyUI calls "sqrt_linear"."""


@dataclass(frozen=True)
class ControlSize:
    """A ControlNet beside the image model, whose channels and layers it shares."""

    name: str = "controlnet"
    """What requests call it."""
    depths: tuple[int | None, ...] = field(default=(1, 1, 1, None), metadata={"least": 0})
    """Transformer blocks of each level; None where a level has no transformers (0: their projections alone)."""
    middle: int | None = field(default=1, metadata={"least": 0})
    linear: bool = False
    hint: int = 3
    """Channels of the control picture."""
    bgr: bool = False
    """Whether it was trained on pictures with red and blue exchanged."""
    pooled: bool = False
    """Whether what it adds is averaged over the picture and left out of the unwanted branch (v1.1's "shuffle")."""


@dataclass(frozen=True)
class AdapterSize:
    """An IP-Adapter: pictures as further tokens of cross-attention."""

    name: str = "ip_adapter"
    """What requests call it."""
    kind: Literal["plain", "plus"] = "plain"
    """Whether it reads CLIP's one embedding of a picture, or its patches."""
    embedding: int = 1024
    """Width of what it reads."""
    tokens: int = 4
    width: int = 768
    """Of the resampler ("plus")."""
    inner: int = 768
    """Of its attention: heads of 64."""
    layers: int = 4


@dataclass(frozen=True)
class VisionSize:
    """CLIP's image encoder, which IP-Adapters look through; these sizes are ViT-H/14's."""

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
    """An image model, a motion module in it, and how the two are sampled."""

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
    """Transformer blocks of each level, 0 for none; the middle has the last that is not 0."""
    heads: tuple[int, ...] = (8, 8, 8, 8)
    context: int = 768
    """Width of a token of the prompt."""
    linear: bool = False
    """Whether the projections around transformers are stored as linear layers (SDXL) or 1×1 convolutions."""
    size_embedding: int = 0
    """SDXL: width of the sinusoids of each of the six numbers that tell size and crop; 0 for none."""
    in_channels: int = 4

    text: tuple[ClipTextSize, ...] = (ClipTextSize(),)
    words: tuple[str, ...] = ()
    """A vocabulary of the model's own, which then has no byte pairs."""

    latent_channels: int = 4
    latent_scale: float = 0.18215
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2

    motion: Motion = "v3"
    positions: int = 32
    """Frames the motion module was trained to place."""
    stretch: int | None = None
    """Frames over which the positions are stretched (interpolated); None leaves them as trained."""
    motion_mid: bool = False
    motion_heads: int = 8
    norms: Norms = "official"
    """Over what the motion module and the image layers normalise: as trained, or as diffusers does."""
    betas: Betas = MOTION_BETAS

    sparse: Literal["rgb", "scribble"] | None = None
    """What SparseCtrl is shown: frames of the clip, or drawings; None for a model without it."""
    sparse_positions: int = 32

    controls: tuple[ControlSize, ...] = ()
    adapters: tuple[AdapterSize, ...] = ()
    vision: VisionSize | None = None
    patch: int = 0
    """Of a model that works on pixels: those along a side of one latent cell; 0 for a model with a VAE."""
    groups: int = 32
    """Of the group norms. Few channels in 32 groups would be normalised almost one by one, and lose brightness."""
    predicts: Literal["eps", "x0"] = "eps"
    image_betas: Betas = IMAGE_BETAS
    """Of the noise levels that the image model is told."""
    stage: Stage = ""
    """What training changes: the image model ("image"; in "style" what of it makes a style), the motion module,
    SparseCtrl; "" is the motion module where there is one. With a LoRA, "image" makes a domain adapter and "motion" a
    MotionLoRA."""

    absent: tuple[Literal["vae", "text"], ...] = ()
    """What the image model's file lacked and nothing was added for: such a model can be opened, not run."""

    @property
    def codec(self) -> Literal["vae", "pixels"]:
        """What makes latents of frames: a VAE, or squares of ``patch`` pixels as they are."""
        return "pixels" if self.patch else "vae"

    @property
    def stride(self) -> int:
        """Pixels along a side of one latent cell."""
        return self.patch or 2 ** (len(self.vae_channels) - 1)

    @property
    def multiple(self) -> int:
        """Sides must be a multiple of this, so that every level of the U-Net halves evenly."""
        return self.stride * 2 ** (len(self.channels) - 1)

    @property
    def trains(self) -> Stage:
        """The stage, also where none is told."""
        return self.stage or ("image" if self.motion == "none" else "motion")

    @property
    def longest(self) -> int:
        """Frames seen at once."""
        return 1 if self.motion == "none" else self.stretch or self.positions

    @property
    def image_norm_over_clip(self) -> bool:
        """Whether residual blocks and the last norm see all frames together: v1, PIA and HotShot-XL were trained so."""
        return self.norms == "official" and self.motion in ("v1", "pia", "hotshot")

    @property
    def motion_norm_over_clip(self) -> bool:
        """Whether motion modules normalise all frames together: SDXL's was trained so, and diffusers does it always."""
        return self.norms == "diffusers" or self.motion == "sdxl"

    @property
    def pooled(self) -> int:
        """Width of the pooled embedding of the prompt, 0 without."""
        return self.text[-1].projection or 0 if self.size_embedding else 0


V3 = Config()  # motion 417,137,600 in 520 tensors; whole U-Net 1,276,658,564
V1 = replace(V3, motion="v1", positions=24)  # the same sizes
V2 = replace(V3, motion="v2", motion_mid=True)  # motion 453,209,280 in 546; whole U-Net 1,312,730,244
PIA = replace(V3, motion="pia")  # and 14,400 weights that read the first frame
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
    """Channels of the maps that the way down leaves for the way up, in the order they are made."""
    last = len(config.channels) - 1
    each = ([width] * (config.layers + (level < last)) for level, width in enumerate(config.channels))
    return [config.channels[0], *chain.from_iterable(each)]


def to_json(config: Config) -> dict[str, Any]:
    return asdict(config)


def from_json(told: Mapping[str, Any]) -> Config:
    """Raises BadRequest for a setting this version does not know, and for one of another type or size."""
    return build_config(Config, told, "the config of this file")
