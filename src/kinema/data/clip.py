"""What every source of training clips hands out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.data.playroom.scene import Scene


class Clip(NamedTuple):
    """``video`` 3×T×H×W in [-1, 1], its caption and, where the world is known, its scene graph."""

    video: Tensor
    caption: str
    scene: Scene | None = None
