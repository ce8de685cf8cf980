"""Training clips, and what every source of them offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


class Clips(Protocol):
    """A source of clips by index; ``skipped`` holds messages on skipped clips."""

    @property
    def skipped(self) -> Sequence[str]: ...

    def clip(self, index: int) -> TrainingClip:
        """Any clip, for an index >= 0."""
        ...

    def drawn(self, step: int, count: int) -> tuple[str | None, Sequence[TrainingClip]]:
        """The bucket, if the source has any, and the clips of a step, all of one size.

        ``count`` is the number of clips of every step; a bucket has a number of its own.
        """
        ...


class InOrder(ABC):
    """A source of clips of one size, of which each step has the next ones."""

    @abstractmethod
    def clip(self, index: int) -> TrainingClip: ...

    def drawn(self, step: int, count: int) -> tuple[None, Sequence[TrainingClip]]:
        return None, [self.clip(step * count + i) for i in range(count)]
