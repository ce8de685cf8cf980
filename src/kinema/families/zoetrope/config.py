"""Zoetrope's sizes. Parameter counts are those of `build` on the meta device (a test holds them)."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Config:
    """A transformer over patches of ``patch`` = (frames, rows, columns) pixels.

    ``words`` is the tokenizer: it travels with the weights.
    """

    frames: int = 16
    side: int = 64
    fps: float = 8.0
    patch: tuple[int, int, int] = (4, 8, 8)
    width: int = 320
    depth: int = 4
    heads: int = 5
    mlp: int = 960
    modulation: int = 96
    """Rank of the shared modulation: full rank would cost a tenth of the weights for no gain."""
    text_width: int = 128
    text_depth: int = 2
    text_length: int = 20
    words: tuple[str, ...] = ()
    shift: float = 1.0
    """Shift of the rectified flow: above 1 spends more of the steps near noise."""


BASE = Config()
TINY = replace(BASE, frames=8, side=16, patch=(4, 8, 8), width=32, depth=2, heads=2, mlp=64, modulation=16, text_width=32, text_depth=1)

PRESETS = {"tiny": TINY, "base": BASE}
