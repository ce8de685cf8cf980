"""What every source of training clips hands out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from kinema.data.playroom.scene import Scene


class TrainingClip(NamedTuple):
    """``video`` 3×T×H×W in [-1, 1], its caption and, where the world is known, its scene graph.

    ``fps`` is the rate at which these frames play, ``motion`` how much the clip moves (`kinema.data.motion`); None is
    unknown. ``encoded`` is what a family's frozen networks made of it beforehand; then ``video`` is its first frame.
    """

    video: Tensor
    caption: str
    scene: Scene | None = None
    fps: float | None = None
    motion: float | None = None
    encoded: Mapping[str, Tensor] | None = None
