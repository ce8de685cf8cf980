"""Zoetrope's sizes. Tests check the parameter counts on the meta device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

BlockKind: TypeAlias = Literal["conv", "place"]


@dataclass(frozen=True)
class Config:
    """Convolutions on pixel grids around a transformer over tokens.

    Each cell of ``cell``×``cell`` pixels is one place of the fine grid; the coarse grid has half the resolution;
    ``merge`` frames of a coarse place form one token. ``words`` is the tokenizer's vocabulary, stored with the weights.
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
    coarse_up: tuple[BlockKind, ...] = ("conv", "place", "place")
    fine_up: tuple[BlockKind, ...] = ("conv", "place", "conv", "place")
    """Blocks of each grid on the way up; on the way down there is one convolution block. One convolution block on the
    way up is not enough to turn the tokens' layout into sharp outlines (docs/decisions/0002)."""
    places: int = 4
    """Hidden units of a "place" block, as a multiple of its channels."""
    width: int = 320
    depth: int = 3
    heads: int = 5
    mlp: int = 928
    modulation: int = 64
    """Rank of the modulation; full rank would add a tenth to the weights for no gain."""
    text_width: int = 128
    text_depth: int = 2
    text_length: int = 20
    sprite: int = 0
    """Side of the sprite, the object image that all frames share, in texels; 0 disables it (the default for files
    without the key)."""
    words: tuple[str, ...] = ()
    shift: float = 6.0
    """Shift of the rectified flow toward noise. Colour and position of a 16×64×64 clip stay visible through all but
    the strongest noise, so the prompt matters only there; without the shift the model ignored it
    (docs/decisions/0002)."""

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
"""The network that ``base`` weights are grown into (docs/notes/0002, entry 10): under 12.0 MB in float16."""
TINY_SPRITE = replace(TINY, sprite=16)

PRESETS = {"tiny": TINY, "base": BASE, "sprite": SPRITE, "tiny-sprite": TINY_SPRITE}
