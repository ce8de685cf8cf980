"""Sizes of the transformers of Open-Sora 1.0 to 1.3, and the published ones.

Parameter counts are those of `network.build` on the meta device, held by a test.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

Version = Literal["1.0", "1.1", "1.2", "1.3"]

PATCH = 2
"""Latent cells along a side of a token, in every version; a token is of one frame."""
IMAGE_FPS = 120.0
"""The frame rate that 1.1 to 1.3 get for a lone image."""
_ONLY: dict[str, tuple[Version, ...]] = {
    "space_scale": ("1.0",),
    "time_scale": ("1.0",),
    "side": ("1.1", "1.2", "1.3"),
    "rotate_first": ("1.1",),
    "norm_twice": ("1.1", "1.2", "1.3"),
    "window": ("1.3",),
    "spatial_rope": ("1.3",),
}


@dataclass(frozen=True)
class STDiTConfig:
    """One transformer; the defaults are Open-Sora 1.2's. Raises ValueError for sizes that do not fit each other, and
    for a setting that its version does not have."""

    version: Version = "1.2"
    channels: int = 4
    """Of the latents."""
    width: int = 1152
    heads: int = 16
    depth: int = 28
    """Blocks; of 1.2 and 1.3, pairs of a spatial and a temporal block."""
    mlp: float = 4.0
    text: int = 4096
    """Width of T5's states."""
    tokens: int = 300
    """Of a prompt at most: rows of the null text."""
    variance: bool = True
    """Whether the output has as many channels again: of 1.0 and 1.1 the learned variance; of 1.2 and 1.3 unused."""
    qk_norm: bool = True

    space_scale: float = 1.0
    """By which 1.0 divides positions in space: the side of its clips over 512 pixels."""
    time_scale: float = 1.0
    """By which 1.0 divides positions in time."""
    side: int = 512
    """Pixels of the side at which positions in space have unit steps."""
    window: tuple[int, int] | None = None
    """Rows and columns of tokens that 1.3's temporal blocks attend over together, at all times; None: one token."""
    spatial_rope: bool = False
    """Whether the spatial blocks of 1.3 turn queries and keys, too."""

    rotate_first: bool = False
    """Whether queries and keys are turned before they are normed, as published in 1.1; the norm's weights then mix
    with the angles. False is the order of 1.2."""
    norm_twice: bool = True
    """Whether the last layer norms conditioned frames after they were modulated as if they were generated, as
    published; False modulates each frame once."""

    def __post_init__(self) -> None:
        defaults = {f.name: f.default for f in fields(self)}
        for name, versions in _ONLY.items():
            if self.version not in versions and getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} is {getattr(self, name)}, a setting that STDiT {self.version} does not have")
        if self.width % self.heads or self.head % 2 or self.width % 4:
            raise ValueError(f"a width of {self.width} does not make {self.heads} even heads and positions of 4 parts")
        if self.version == "1.1" and self.width % 6:
            raise ValueError(f"a width of {self.width} does not divide into three embeddings of a size")
        if self.window and self.head % 6:
            raise ValueError(f"a head of {self.head} features does not divide into three even axes")
        if self.spatial_rope and not self.window:
            raise ValueError("spatial_rope needs a window, which decides how many features each axis rotates")

    @property
    def head(self) -> int:
        return self.width // self.heads

    @property
    def rotary(self) -> int:
        """Features of a head that turn with one axis; 1.0 turns none."""
        return 0 if self.version == "1.0" else self.head // 3 if self.window else self.head

    @property
    def out(self) -> int:
        """Channels of the output."""
        return self.channels * (2 if self.variance else 1)

    @property
    def hidden(self) -> int:
        """Width inside an MLP."""
        return int(self.width * self.mlp + 1e-6)  # a ratio that was read from a file is a rounded quotient

    @property
    def holds_frames(self) -> bool:
        """Whether some frames can be clean, at their own time (``generated_BT``)."""
        return self.version != "1.0"

    @property
    def takes_given(self) -> bool:
        """Whether it has inputs for given latents and their mask (``given``)."""
        return self.version == "1.3"


V1_0 = STDiTConfig("1.0", tokens=120, qk_norm=False, space_scale=0.5)  # 759,620,768 in 548; 16 frames of 256 px
V1_0_512 = replace(V1_0, space_scale=1.0)  # 16 frames of 512 px
V1_0_64 = replace(V1_0_512, time_scale=2 / 3)  # 64 frames of 512 px
V1_1 = STDiTConfig("1.1", tokens=200, rotate_first=True)  # 767,452,100 in 707
V1_2 = STDiTConfig("1.2")  # 1,207,643,972 in 973
V1_2_3B = replace(V1_2, width=1872, heads=26)
V1_3 = STDiTConfig("1.3", channels=16, window=(8, 8), spatial_rope=True)  # 1,207,959,692 in 977
PRESETS: dict[str, STDiTConfig] = {
    "1.0": V1_0,
    "1.0-512px": V1_0_512,
    "1.0-64f": V1_0_64,
    "1.1": V1_1,
    "1.2": V1_2,
    "1.2-3b": V1_2_3B,
    "1.3": V1_3,
}


def tiny(config: STDiTConfig) -> STDiTConfig:
    """The same version, small enough to run on a CPU in milliseconds."""
    window = (2, 2) if config.window else None
    return replace(config, width=48, heads=4, depth=2, mlp=2.0, text=32, tokens=16, window=window)
