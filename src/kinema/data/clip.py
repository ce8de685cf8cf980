"""The training clip that every source returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from kinema.data.playroom.scene import Scene


class TrainingClip(NamedTuple):
    """A video 3×T×H×W in [-1, 1] with its caption and, for rendered clips, its scene graph.

    ``fps`` is the playback rate of these frames and ``motion`` the motion score (`kinema.data.motion`); None means
    unknown. ``encoded`` holds precomputed outputs of a family's frozen networks; ``video`` is then the first frame of
    ``frames``.
    """

    video: Tensor
    caption: str
    scene: Scene | None = None
    fps: float | None = None
    motion: float | None = None
    encoded: Mapping[str, Tensor] | None = None
    frames: int | None = None
    """None: as many as ``video`` has."""
