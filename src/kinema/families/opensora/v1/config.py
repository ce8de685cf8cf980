"""Sizes and sampling of Open-Sora 1.0 to 1.3; published figures next to the presets, held by tests of the parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kinema.checkpoints.settings import build_config
from kinema.families.opensora.first_line import sizes
from kinema.families.opensora.stdit.config import PRESETS as STDITS
from kinema.families.opensora.stdit.config import STDiTConfig, Version, tiny
from kinema.families.opensora.vae1x.vae12 import Sizes12
from kinema.families.opensora.vae1x.vae13 import Sizes13
from kinema.grid import FrameGrid, LatentGrid, Lattice, Resolution, Resolutions

IMAGE_GUIDED = 3
"""Channels of four that 1.0 and 1.1 guide."""


@dataclass(frozen=True)
class Config:
    """One model: transformer, codec, and how it is sampled. Its field ``stdit`` tells it from a config of 2.0."""

    stdit: STDiTConfig = STDiTConfig()
    vae12: Sizes12 = Sizes12()
    """The codec of 1.2; its image half alone is that of 1.0 and 1.1."""
    vae13: Sizes13 = Sizes13()

    frames: int = 51
    longest: int = 408
    """Most frames of a clip in training; longer ones are generated in blocks."""
    height: int = 240
    width: int = 424
    fps: float = 24.0
    told_fps: float | None = field(default=None)
    """The frame rate that the network gets; None: the clip's. As published 1.1 gets 24 for clips of 8."""
    steps: int = 30
    guidance: float = 7.0
    """Of the prompt."""
    image_guidance: float = 5.0
    """Of given frames (1.3)."""
    aesthetic: float | None = field(default=None)
    """An aesthetic score for the end of the prompt (1.2 and 1.3); None: no score."""
    align: int | None = field(default=None)
    """Mask strategies' frames are moved to the nearest multiple of it (1.2's sample.py: 5)."""
    stage: str = ""
    """The training stage (`training.stages`); "" is the version's last. It matters to training alone."""

    words: tuple[str, ...] = ()
    """The vocabulary of a small model that learns its own text embeddings; none: T5."""
    absent: tuple[str, ...] = ()
    """What the model's files do not have, so that it must be added: ``vae``, or nothing."""

    def __post_init__(self) -> None:
        channels, latent = self.stdit.channels, self.codec.latent
        if channels != latent:
            raise ValueError(f"the transformer has {channels} latent channels, and the codec {latent}")

    @property
    def version(self) -> Version:
        return self.stdit.version

    @property
    def codec(self) -> Sizes12 | Sizes13:
        return self.vae13 if self.version == "1.3" else self.vae12

    @property
    def by_image(self) -> bool:
        """Whether each frame is coded alone, by an image codec."""
        return self.version in ("1.0", "1.1")

    @property
    def fewest(self) -> int:
        """Frames of the shortest clip in training, images aside: 1.2's shift of fewer than 17 is 0."""
        return 17 if self.version == "1.2" else 2

    @property
    def is_flow(self) -> bool:
        return not self.by_image

    @property
    def multiple(self) -> int:
        """Sides are whole latent cells; the network pads odd numbers of them to whole patches."""
        return self.codec.stride[1]

    @property
    def grid(self) -> LatentGrid:
        time = FrameGrid() if self.by_image else self.codec.time
        return LatentGrid(time, self.codec.stride[1:], self.codec.latent)

    @property
    def lattice(self) -> Lattice:
        return Lattice(
            self.grid,
            self.multiple,
            min_side=2 * self.multiple,
            max_frames=self.longest,
            resolutions=None if self.version == "1.0" else Resolutions(self._trained, "1.2", self.fewest),
        )

    def _trained(self, name: str) -> Resolution:
        found = sizes.trained(name, "1.3" if self.version == "1.3" else "1.2")
        return replace(found, sizes={ratio: self.cut(size) for ratio, size in found.sizes.items()})

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """Named sizes, (height, width), cut to whole latent cells as the original cuts latents. 1.0 has none."""
        return {} if self.version == "1.0" else {name: self.cut(size) for name, size in self._published.items()}

    def published(self, height: int, width: int) -> tuple[int, int]:
        """The published size that is generated as this one, which the network and the flow's shift get."""
        if self.version == "1.0":
            return height, width
        return next((size for size in self._published.values() if self.cut(size) == (height, width)), (height, width))

    def cut(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = (side // self.multiple * self.multiple for side in size)
        return height, width

    @property
    def _published(self) -> Mapping[str, tuple[int, int]]:
        return sizes.named("1.3" if self.version == "1.3" else "1.2")


V1_0 = Config(STDITS["1.0"], frames=16, longest=16, height=256, width=256, fps=8.0, steps=100)
V1_0_512 = replace(V1_0, stdit=STDITS["1.0-512px"], height=512, width=512)
V1_0_64 = replace(V1_0_512, stdit=STDITS["1.0-64f"], frames=64, longest=64, fps=12.0)
V1_1 = replace(V1_0, stdit=STDITS["1.1"], longest=128, height=240, width=424, told_fps=24.0)  # 424 of 426 pixels
V1_2 = Config(STDITS["1.2"], aesthetic=6.5, align=5)
V1_2_3B = replace(V1_2, stdit=STDITS["1.2-3b"])
V1_3 = Config(STDITS["1.3"], frames=113, longest=113, height=720, width=1280, guidance=7.5)
V1_3_360 = replace(V1_3, height=360, width=640)
V1_3_I2V = replace(V1_3_360, aesthetic=7.0)  # as its v2v.py, for models with given frames

_SMALL_12 = Sizes12(image_channels=(32, 32, 32), image_layers=1, widths=(32, 32, 32, 64), layers=1)
_SMALL_13 = Sizes13(widths=(32, 32, 64), layers=1, temporal=(0, 1))
_WORDS = "a the red blue green ball star square rolls bounces spins left right aesthetic score motion strength good is"


def _tiny(config: Config, **changes: Any) -> Config:
    words = (*_WORDS.split(), *map(str, range(10)))
    small = {"vae12": _SMALL_12, "vae13": _SMALL_13, "height": 16, "width": 24, "steps": 4, "words": words}
    return replace(config, stdit=tiny(config.stdit), **{**small, **changes})


PRESETS: dict[str, Config] = {
    "v1.0": V1_0,
    "v1.0-512px": V1_0_512,
    "v1.0-64f": V1_0_64,
    "v1.1": V1_1,
    "v1.2": V1_2,
    "v1.2-3b": V1_2_3B,
    "v1.3": V1_3,
    "v1.3-360p": V1_3_360,
    "v1.3-i2v": V1_3_I2V,
    "tiny-1.0": _tiny(V1_0, frames=8, longest=8),
    "tiny-1.1": _tiny(V1_1, frames=8, longest=16),
    "tiny-1.2": _tiny(V1_2, frames=34, longest=51),
    "tiny-1.3": _tiny(V1_3, frames=33, longest=49),
}


def to_json(config: Config) -> dict[str, Any]:
    return asdict(config)


def from_json(data: Mapping[str, Any]) -> Config:
    """Raises BadRequest for a setting this version does not know, and for one of another type or size."""
    return build_config(Config, data, "the config of this file")
