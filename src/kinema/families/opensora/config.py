"""Sizes and sampling of Open-Sora 2.0; published figures next to the presets.

Parameter counts are those of `build` on the meta device, held by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from kinema.checkpoints.settings import build_config
from kinema.families.opensora.dc_ae import DCAEConfig
from kinema.families.opensora.mmdit import MMDiTConfig

VAE = Literal["hunyuan", "dc-ae", "pocket"]
Stage = Literal["codec", "flow"]


@dataclass(frozen=True)
class HunyuanConfig:
    """Sizes of HunyuanVideo's codec (246,478,803 in 248 tensors)."""

    latent: int = 16
    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    temporal: int = 2
    """How often the number of frames halves."""
    scale: float = 0.476986

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels of one latent cell along (time, height, width)."""
        side = 2 ** (len(self.channels) - 1)
        return (2**self.temporal, side, side)


@dataclass(frozen=True)
class PocketCodecConfig:
    """Sizes of a pocket model's codec."""

    latent: int = 32
    fold: int = 4
    """Side of the squares of pixels that are folded into channels."""
    channels: tuple[int, int, int] = (96, 96, 96)
    """At folded pixels, at half their size in space and time, and at the latents."""
    encoding: tuple[int, int, int] = (1, 1, 1)
    """Residual blocks of the encoder at each of these."""
    decoding: tuple[int, int, int] = (3, 2, 1)
    """Those of the decoder, which runs once, while encoding runs at every step of training."""

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels of one latent cell along (time, height, width)."""
        return (4, 2 * self.fold, 2 * self.fold)


@dataclass(frozen=True)
class Config:
    """One model: transformer, codec, and how it is sampled."""

    frames: int = 129
    height: int = 192
    width: int = 336
    fps: float = 24.0
    steps: int = 50
    guidance: float = 7.5
    """Of the prompt."""
    image_guidance: float = 3.0
    """Of given frames."""
    oscillates: bool = True
    """Whether guidance oscillates, and that of given images grows over the frames, unless a request says otherwise."""
    motion_score: float | None = 4.0
    """How much moves (VMAF motion), as a sentence at the end of the prompt after one with the frame rate; None: prompts
    are taken as they are, without either."""
    shift: float | None = field(default=None)
    """The flow's shift; None is the published function of tokens and frames."""

    transformer: MMDiTConfig = MMDiTConfig()
    vae: VAE = "hunyuan"
    hunyuan: HunyuanConfig = HunyuanConfig()
    dc_ae: DCAEConfig = DCAEConfig()
    pocket: PocketCodecConfig = PocketCodecConfig()

    text_length: int = 512
    """Tokens of T5, padding among them: nothing masks it, so the network attends to padding, as in training."""
    words: tuple[str, ...] = ()
    """The vocabulary of a small model that learns its own text embeddings; none: T5 and CLIP."""
    stage: Stage = "flow"
    """What is trained: the transformer with its words, or a pocket model's codec."""
    absent: tuple[Literal["vae"], ...] = ()
    """What the model's files do not have, so that it must be added."""

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels of one latent cell along (time, height, width)."""
        strides = {"hunyuan": self.hunyuan.stride, "dc-ae": self.dc_ae.stride, "pocket": self.pocket.stride}
        return strides[self.vae]

    @property
    def causal(self) -> bool:
        """Whether the codec gives the first frame a latent frame of its own."""
        return self.vae != "dc-ae"

    @property
    def scale(self) -> float:
        """By which latents are multiplied; the DC-AE's are not scaled in the published sampling."""
        return self.hunyuan.scale if self.vae == "hunyuan" else 1.0

    @property
    def multiple(self) -> int:
        """Sides must be a multiple of this: whole patches of latent cells."""
        return self.stride[1] * self.transformer.patch

    def tokens(self, height: int, width: int) -> int:
        """Tokens of one latent frame."""
        return (height // self.multiple) * (width // self.multiple)


V2 = Config()  # transformer 11,891,390,528 in 1082 tensors; Hunyuan VAE 246,478,803 in 248
V2_768 = replace(V2, height=576, width=1024)
V2_DC_AE = replace(
    V2_768,
    frames=128,
    transformer=MMDiTConfig(channels=128, patch=1),
    vae="dc-ae",
)  # transformer 11,891,971,200 in 1082; Video DC-AE 459,462,147 in 339
_WORDS = "a the red blue green ball star square rolls bounces spins left right fps motion score"
TINY = replace(
    V2,
    frames=9,
    height=32,
    width=48,
    steps=4,
    transformer=MMDiTConfig(
        channels=4,
        text=32,
        vector=32,
        width=48,
        heads=3,
        mlp=2.0,
        double_blocks=1,
        single_blocks=2,
        axes=(4, 6, 6),
    ),
    hunyuan=HunyuanConfig(latent=4, channels=(32, 32, 32), layers=1),
    text_length=16,
    words=(*_WORDS.split(), *map(str, range(31))),
)
TINY_DC_AE = replace(
    TINY,
    frames=16,
    transformer=replace(TINY.transformer, channels=16, patch=1),
    vae="dc-ae",
    dc_ae=DCAEConfig(16, (32, 32, 64, 64), (1, 1, 1, 1), (1, 1, 1, 1), attention_from=2, temporal=(1, 2)),
)
PRESETS: dict[str, Config] = {
    "tiny": TINY,
    "tiny-dc-ae": TINY_DC_AE,
    "v2": V2,
    "v2-768px": V2_768,
    "v2-dc-ae": V2_DC_AE,
}


def to_json(config: Config) -> dict[str, Any]:
    return asdict(config)


def from_json(data: Mapping[str, Any]) -> Config:
    """Raises BadRequest for a setting this version does not know, and for one of another type or size."""
    return build_config(Config, data, "the config of this file")
