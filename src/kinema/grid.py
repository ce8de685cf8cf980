"""The geometry of a codec and of a model: which pixels each latent cell stands for, and which sizes can be made.

The only place where frame arithmetic is written. Imports without torch. "Frames" are those of pixels; "cells" are
latent frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kinema.schema import MAX_SIDE, Shape


@dataclass(frozen=True)
class Cells:
    """What given frames come to on the latent grid: see `FrameGrid.cells`."""

    whole: tuple[int, ...]
    """The cells of which every frame is given."""
    lone: Mapping[int, int]
    """For each other cell that a given frame stands for: that frame."""


@dataclass(frozen=True)
class FrameGrid:
    """Which pixel frames each latent frame stands for: a codec's geometry in time.

    ``stride`` pixel frames become one latent frame. ``causal``: what is missing to whole cells is filled in before the
    first frame, which so has a latent frame of its own (``4k + 1`` frames make ``k + 1``). ``run``: so many frames are
    encoded at a time, each run by itself (Open-Sora 1.2: 17 frames make 5). ``multiple``: what a model makes without
    either is a whole multiple of so many latent frames. ``image``: a codec that is not causal and codes a single frame
    as an image, in one latent frame; one latent frame then decodes to one frame, so clips have two or more (Video
    DC-AE: 1, 8, 12… frames).
    """

    stride: int = 1
    causal: bool = False
    run: int | None = None
    multiple: int = 1
    image: bool = False

    def __post_init__(self) -> None:
        if self.image and (self.causal or self.run is not None or self.multiple > 1):
            raise ValueError("image is of codecs that are not causal and have neither runs nor multiples")
        if self.run is not None and not self.causal and self.run % self.stride:
            raise ValueError(f"runs of {self.run} frames are no whole cells of {self.stride}, unless they are causal")

    def ceil(self, frames: int) -> int:
        """The least frame count that can be made and holds ``frames``: a clip is made whole, then cut."""
        if self.run is not None and self.causal:
            return max(frames, 1)
        step = self.stride * self.multiple
        if self.causal:
            return max(math.ceil((frames - 1) / step), 0) * step + 1
        if self.image:
            return 1 if frames <= 1 else max(math.ceil(frames / step), 2) * step
        return max(math.ceil(frames / step), 1) * step

    def latent(self, frames: int) -> int:
        """Latent frames of so many pixel frames."""
        if self.image and frames == 1:
            return 1
        whole, rest = divmod(frames, self.run) if self.run is not None else (0, frames)
        cells = math.ceil(rest / self.stride) if self.causal else rest // self.stride
        return whole * math.ceil((self.run or 0) / self.stride) + cells

    def frames(self, latent: int) -> int:
        """The most pixel frames that so many latent frames stand for: the inverse of `latent` for what can be made."""
        if self.run is not None:
            whole, rest = divmod(latent, math.ceil(self.run / self.stride))
            return whole * self.run + min(rest * self.stride, self.run)
        if self.image and latent == 1:
            return 1
        return (latent - 1) * self.stride + 1 if self.causal else latent * self.stride

    def spans(self, frames: int) -> list[range]:
        """The pixel frames of each latent frame of a clip of so many."""
        if self.image and frames == 1:
            return [range(1)]
        made: list[range] = []
        for run in self.runs(frames):
            first = run.start - (-len(run) % self.stride if self.causal else 0)
            cells = range(first, run.stop - self.stride + 1, self.stride)
            made += [range(max(cell, run.start), cell + self.stride) for cell in cells]
        return made

    def runs(self, frames: int) -> list[range]:
        """The pixel frames that are encoded together; the last run may be a shorter one."""
        length = self.run or max(frames, 1)
        return [range(begin, min(begin + length, frames)) for begin in range(0, frames, length)]

    def cell(self, frame: int, frames: int) -> int:
        """The latent frame that stands for this pixel frame of a clip of so many, from 0; the inverse of `spans`."""
        for index, span in enumerate(self.spans(frames)):
            if frame in span:
                return index
        raise ValueError(f"no latent frame stands for frame {frame} of {frames}")

    def cells(self, frames: int, given: Sequence[bool]) -> Cells:
        """Where given frames of a clip of so many belong on the latent grid.

        A cell that is not wholly given may have the latent of a frame that is encoded alone, where the codec makes one
        of a single frame (a causal one does, and one with ``image``): so keyframes, and a lone last frame, have a place. Of several given
        frames in such a cell it is the last.
        """
        if len(given) != frames:
            raise ValueError(f"{len(given)} frames are given or not; expected all {frames} of the clip")
        told = [[frame for frame in span if given[frame]] for span in self.spans(frames)]
        whole = tuple(i for i, span in enumerate(self.spans(frames)) if len(told[i]) == len(span))
        alone = self.latent(1) == 1
        return Cells(whole, {i: each[-1] for i, each in enumerate(told) if alone and each and i not in whole})


@dataclass(frozen=True)
class LatentGrid:
    """A codec's geometry: its `FrameGrid` in time, (height, width) pixels per latent cell, latent channels."""

    time: FrameGrid = FrameGrid()
    stride: tuple[int, int] = (1, 1)
    channels: int = 3

    def latent(self, shape: Shape) -> Shape:
        """The latent shape of a video of this shape."""
        h, w = self.stride
        return Shape(shape.batch, self.channels, self.time.latent(shape.frames), shape.height // h, shape.width // w)


@dataclass(frozen=True)
class Lattice:
    """The sizes a model can make: what its codec's `LatentGrid` holds, sides a multiple of ``side_multiple``."""

    grid: LatentGrid = LatentGrid()
    side_multiple: int = 1
    min_side: int = 16
    max_side: int = MAX_SIDE
    max_frames: int | None = None

    def latent(self, shape: Shape) -> Shape:
        """The latent shape of a video of this shape."""
        return self.grid.latent(shape)

    def snap_side(self, side: int) -> int:
        """The nearest side on the lattice, within ``min_side`` and ``max_side`` (ties go up)."""
        m = self.side_multiple
        least, most = math.ceil(self.min_side / m) * m, self.max_side // m * m
        return min(max(math.floor(side / m + 0.5) * m, least), most)
