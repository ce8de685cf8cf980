"""Sizes and sampling defaults of Stable Video Diffusion and its relatives.

Tests check the parameter counts given next to the presets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from kinema.checkpoints.settings import build_config
from kinema.data.motion import MIDDLE

Scalar = Literal["fps", "motion_bucket", "augmentation", "polar", "azimuth"]
NormEps = Literal["official", "diffusers"]
GuidanceShape = Literal["linear", "triangle", "trapezoid", "trapezoid-sgm"]
Stage = Literal["image", "video", "video-large", "text", "base", "finetune", "playroom", "codec"]


@dataclass(frozen=True)
class Config:
    """One image-to-video model: video U-Net, KL codec, CLIP image encoder and sampling defaults."""

    frames: int = 14
    height: int = 576
    width: int = 1024
    fps: float = 7.0
    """Of the clip. The network's condition is ``fps - 1``: the official scripts pass fps_id 6 and save at 7 fps."""
    steps: int = 25
    guidance: tuple[float, float] = (1.0, 2.5)
    """Guidance scale at the start and at the peak of the guidance shape (linear: of the first and last frame)."""
    guidance_shape: GuidanceShape = "linear"

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    heads: tuple[int, ...] = (5, 10, 20, 20)
    """Attention heads of each resolution level; the last level has attention only in the middle block."""
    context: int = 1024
    """Width of the image embedding."""
    scalars: tuple[tuple[Scalar, int], ...] = (("fps", 256), ("motion_bucket", 256), ("augmentation", 256))
    """Scalar conditions and the width of the sinusoidal embedding of each."""
    norm_eps: NormEps = "official"
    """GroupNorm eps of residual blocks: 1e-5 everywhere as trained; diffusers uses 1e-6 in up and attention blocks."""

    latent_channels: int = 4
    latent_scale: float = 0.18215
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    decoder: Literal["temporal", "image"] = "temporal"
    decode_chunk: int | None = None
    """Frames decoded together; None decodes all. Fewer frames need less memory and change every frame slightly."""

    clip_width: int = 1280
    clip_layers: int = 32
    clip_heads: int = 16
    clip_mlp: int = 5120
    clip_patch: int = 14
    clip_side: int = 224

    motion_bucket: float = 127.0
    motion_middle: float = MIDDLE
    """Motion (mean pixel speed in shorter sides per second) at the middle bucket."""
    augmentation: float = 0.02
    """Noise added to the image before it is encoded; also a condition of the network."""
    orbit: bool = False
    """SV3D: the frames are views around an object, and the network expects the given view last."""

    stage: Stage = "finetune"
    """Training stage of these weights: see `stages.STAGES`."""
    sigma_max: float = 700.0
    """Noise level at which sampling begins."""
    pocket: bool = False
    """Use Kinema's small, trainable autoencoder and image encoder instead of SD 2.1's and CLIP (`kinds`)."""
    patch: int = 1
    """Space-to-depth factor before the first layer of the pocket autoencoder."""

    @property
    def post_quant(self) -> bool:
        """Whether a 1×1 convolution precedes the decoder: in SVD's image decoder, but not in SV3D's."""
        return self.decoder == "image" and not self.orbit

    @property
    def stride(self) -> int:
        """Pixels along a side of one latent cell."""
        return self.patch * 2 ** (len(self.vae_channels) - 1)

    @property
    def multiple(self) -> int:
        """Factor that height and width must be a multiple of, so that every U-Net level halves evenly."""
        return self.stride * 2 ** (len(self.channels) - 1)


SVD = Config()  # U-Net 1,524,623,082 in 1,428 tensors; VAE 97,742,847 in 374; CLIP 632,076,800 in 520
SVD_XT = replace(SVD, frames=25, steps=30, guidance=(1.5, 3.0))  # diffusers samples it with 1.0 to 3.0, 25 steps
SVD_XT_1_1 = SVD_XT  # the same network, fine-tuned at fps_id 6 and motion bucket 127, which are the defaults
SV3D_U = replace(
    SVD,
    frames=21,
    height=576,
    width=576,
    steps=50,
    guidance_shape="triangle",
    scalars=(("augmentation", 256),),
    decoder="image",
    augmentation=1e-5,
    orbit=True,
)  # U-Net 1,523,967,722; VAE 83,653,843 in 246 (SVD's image decoder: 83,653,863 in 248)
SV3D_P = replace(SV3D_U, scalars=(("augmentation", 256), ("polar", 512), ("azimuth", 512)))  # U-Net 1,525,278,442
TINY = replace(
    SVD,
    frames=8,
    height=16,
    width=16,
    steps=4,
    channels=(32, 64),
    layers=1,
    heads=(1, 2),
    context=32,
    scalars=(("fps", 32), ("motion_bucket", 32), ("augmentation", 32)),
    vae_channels=(32, 64),
    vae_layers=1,
    clip_width=32,
    clip_layers=2,
    clip_heads=2,
    clip_mlp=64,
    clip_patch=8,
    clip_side=32,
)
PRESETS: dict[str, Config] = {
    "tiny": TINY,
    "svd": SVD,
    "svd-xt": SVD_XT,
    "svd-xt-1.1": SVD_XT_1_1,
    "sv3d-u": SV3D_U,
    "sv3d-p": SV3D_P,
}


def to_json(config: Config) -> dict[str, Any]:
    return asdict(config)


def from_json(data: Mapping[str, Any]) -> Config:
    """Build the config from a file's metadata. Raises BadRequest for an unknown setting or an invalid value."""
    return build_config(Config, data, "the config of this file")
