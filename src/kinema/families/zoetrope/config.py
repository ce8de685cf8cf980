"""Zoetrope's sizes. Parameter counts are those of `build` on the meta device (a test holds them)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Drawing: TypeAlias = Literal["conv", "place"]


@dataclass(frozen=True)
class Config:
    """Convolutions where pixels are, a transformer where meaning is.

    Frames are cut into ``cell``×``cell`` pixels (the fine grid), halved once (the coarse grid), and
    ``merge`` frames of a coarse place become one token. ``words`` is the tokenizer: it travels with the weights.
    """

    frames: int = 16
    side: int = 64
    fps: float = 8.0
    cell: int = 4
    merge: int = 4
    fine: int = 64
    """Channels of the fine grid."""
    coarse: int = 128
    """Channels of the coarse grid."""
    coarse_up: tuple[Drawing, ...] = ("conv", "place", "place")
    fine_up: tuple[Drawing, ...] = ("conv", "place", "conv", "place")
    """Blocks on the way up of each grid; on the way down there is one convolution. Where the tokens know what stands
    where, outlines are still to be drawn: with one convolution a grid they stayed round (docs/decisions/0002)."""
    places: int = 4
    """Hidden units of a "place" block, in channels."""
    width: int = 320
    depth: int = 3
    heads: int = 5
    mlp: int = 928
    modulation: int = 64
    """Rank of the modulation: full rank would cost a tenth of the weights for no gain."""
    text_width: int = 128
    text_depth: int = 2
    text_length: int = 20
    sprite: int = 0
    """Side of the picture of the object that all frames share, in texels; 0 is none, as in files without the word."""
    words: tuple[str, ...] = ()
    shift: float = 6.0
    """Shift of the rectified flow toward noise. A clip of 16×64×64 shows its colour and place through all but
    the strongest noise, so only there can the words matter: unshifted, the model ignored them (docs/decisions/0002)."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        places = self.side // (2 * self.cell)
        return (self.frames // self.merge, places, places)


BASE = Config()
TINY = replace(
    BASE,
    frames=8,
    side=16,
    fine=16,
    coarse=16,
    width=32,
    depth=2,
    heads=2,
    mlp=64,
    modulation=16,
    text_width=32,
    text_depth=1,
)

SPRITE = replace(BASE, sprite=32, mlp=736)
"""As the weights of ``base`` grow into (docs/decisions/0002, point 10): within 12.0 MB as halves."""
TINY_SPRITE = replace(TINY, sprite=16)

PRESETS = {"tiny": TINY, "base": BASE, "sprite": SPRITE, "tiny-sprite": TINY_SPRITE}
