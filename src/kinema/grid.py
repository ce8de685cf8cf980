"""The geometry of codecs and models: the pixels of each latent cell, and the supported sizes.

All frame arithmetic is here. "Frames" are pixel frames, "cells" are latent frames. Imports without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kinema.schema import MAX_SIDE, Shape


@dataclass(frozen=True)
class Cells:
    """The latent cells of given frames; see `FrameGrid.cells`."""

    whole: tuple[int, ...]
    """Cells whose frames are all given."""
    lone: Mapping[int, int]
    """Other cells that a single given frame represents, mapped to that frame."""


@dataclass(frozen=True)
class FrameGrid:
    """A codec's geometry in time: the pixel frames of each latent frame.

    ``stride`` pixel frames become one latent frame. ``causal``: incomplete cells are padded before the first frame,
    which therefore has its own latent frame (``4k + 1`` frames become ``k + 1``). ``run``: frames are encoded in
    independent runs of this length (Open-Sora 1.2: 17 frames become 5). ``multiple``: latent frame counts are multiples
    of this (plus one if causal); ignored for causal runs. ``image``: a non-causal codec encodes a single frame as an
    image, to one latent frame, and decodes one latent frame to one frame, so clips have two or more latent frames
    (Video DC-AE: 1, 8, 12… frames). ``shared``: neighbouring runs share this many frames, 0 or 1, and all but a single
    frame are whole runs (Open-Sora 1.3: ``16k + 1`` frames become ``5k``, each run's first frame having its own cell).
    """

    stride: int = 1
    causal: bool = False
    run: int | None = None
    multiple: int = 1
    image: bool = False
    shared: int = 0

    def __post_init__(self) -> None:
        if self.image and (self.causal or self.run is not None or self.multiple > 1):
            raise ValueError("image is true; expected a grid that is not causal, without run and multiple")
        if self.run is not None and not self.causal and self.run % self.stride:
            raise ValueError(f"run is {self.run}; expected a multiple of the stride {self.stride}, or a causal grid")
        whole = self.causal and self.run is not None and self.run > 1 and self.run % self.stride == 1 % self.stride
        if self.shared not in (0, 1) or (self.shared and not whole):
            raise ValueError(
                f"shared is {self.shared}; expected 0, or 1 with a causal grid whose runs have k·stride + 1 frames"
            )

    @property
    def pads(self) -> bool:
        """Whether several frame counts have the same number of latent frames, so that decoding needs to know which."""
        return self.causal and self.run is not None and not self.shared

    def ceil(self, frames: int) -> int:
        """Return the smallest supported frame count of at least ``frames``; the generated clip is then cut."""
        if self.run is not None and self.causal and not self.shared:
            return max(frames, 1)
        step = self.run - 1 if self.run is not None and self.shared else self.stride * self.multiple
        if self.causal:
            return max(math.ceil((frames - 1) / step), 0) * step + 1
        if self.image:
            return 1 if frames <= 1 else max(math.ceil(frames / step), 2) * step
        return max(math.ceil(frames / step), 1) * step

    def latent(self, frames: int) -> int:
        """Return the number of latent frames of ``frames`` pixel frames."""
        if self.image and frames == 1:
            return 1
        if self.shared:
            return sum(math.ceil(len(run) / self.stride) for run in self.runs(frames))
        whole, rest = divmod(frames, self.run) if self.run is not None else (0, frames)
        cells = math.ceil(rest / self.stride) if self.causal else rest // self.stride
        return whole * math.ceil((self.run or 0) / self.stride) + cells

    def frames(self, latent: int) -> int:
        """Return the largest number of pixel frames of ``latent`` latent frames: the inverse of `latent`.

        With runs that share a frame it is the number that is decoded, which for whole runs is the same.
        """
        if self.run is not None:
            whole, rest = divmod(latent, math.ceil(self.run / self.stride))
            if self.shared:
                return whole * (self.run - 1) + max((rest - 1) * self.stride, 0) + 1
            return whole * self.run + min(rest * self.stride, self.run)
        if self.image and latent == 1:
            return 1
        return (latent - 1) * self.stride + 1 if self.causal else latent * self.stride

    def spans(self, frames: int) -> list[range]:
        """Return the pixel frames of each latent frame of a clip of ``frames`` frames."""
        if self.image and frames == 1:
            return [range(1)]
        spans: list[range] = []
        for run in self.runs(frames):
            first = run.start - (-len(run) % self.stride if self.causal else 0)
            cells = range(first, run.stop - self.stride + 1, self.stride)
            spans += [range(max(cell, run.start), cell + self.stride) for cell in cells]
        return spans

    def runs(self, frames: int) -> list[range]:
        """Return the pixel frames that are encoded together; the last run may be shorter."""
        length = self.run or max(frames, 1)
        starts = range(0, max(frames - self.shared, min(frames, 1)), length - self.shared)
        return [range(begin, min(begin + length, frames)) for begin in starts]

    def cell(self, frame: int, frames: int) -> int:
        """Return the latent frame that contains this pixel frame, the earlier of two: the inverse of `spans`."""
        for index, span in enumerate(self.spans(frames)):
            if frame in span:
                return index
        raise ValueError(f"frame {frame} has no latent frame in a clip of {frames} frames")

    def cells(self, frames: int, given: Sequence[bool]) -> Cells:
        """Return the latent cells of the given frames, where ``given`` has one entry per frame of the clip.

        If the codec can encode a single frame (causal codecs, and those with ``image``), a cell with some given frames
        is represented by the last of them, encoded alone. This covers keyframes and a single last frame.
        """
        if len(given) != frames:
            raise ValueError(f"given has {len(given)} entries; expected one for each of {frames} frames")
        by_cell = [[frame for frame in span if given[frame]] for span in self.spans(frames)]
        whole = tuple(i for i, span in enumerate(self.spans(frames)) if len(by_cell[i]) == len(span))
        alone = self.latent(1) == 1
        return Cells(whole, {i: each[-1] for i, each in enumerate(by_cell) if alone and each and i not in whole})


@dataclass(frozen=True)
class LatentGrid:
    """A codec's geometry: its `FrameGrid` in time, (height, width) pixels per latent cell, latent channels."""

    time: FrameGrid = FrameGrid()
    stride: tuple[int, int] = (1, 1)
    channels: int = 3

    def latent(self, shape: Shape) -> Shape:
        """Return the latent shape of a video of this shape."""
        h, w = self.stride
        return Shape(shape.batch, self.channels, self.time.latent(shape.frames), shape.height // h, shape.width // w)


@dataclass(frozen=True)
class Resolution:
    """Sizes of about ``area`` pixels, by ratio: ``sizes`` are (height, width), ``ratios`` are height / width.

    A clip gets the size whose ratio is nearest to its own.
    """

    area: int
    sizes: Mapping[str, tuple[int, int]]
    ratios: Mapping[str, float]

    def nearest(self, height: int, width: int) -> str:
        """Return the name of the nearest ratio; the first of two at the same distance."""
        return min(self.ratios, key=lambda name: abs(height / width - self.ratios[name]))


@dataclass(frozen=True)
class Resolutions:
    """The named resolutions that a model can be trained at, and the rule that sorts clips into them.

    ``find`` returns the resolution of a name, and raises BadRequest for an unknown one. ``rule`` is the version of
    Open-Sora whose rule it is (`kinema.data.buckets.rule`). ``fewest`` is the number of frames of the shortest clip,
    images aside.
    """

    find: Callable[[str], Resolution]
    rule: Literal["1.2", "2.0"]
    fewest: int = 2


@dataclass(frozen=True)
class Lattice:
    """The sizes a model supports: those of its codec's `LatentGrid`, with sides a multiple of ``side_multiple``.

    ``resolutions`` are the sizes among which training may vary from batch to batch (``kinema train --buckets``); None
    for a model that is trained at one size.
    """

    grid: LatentGrid = LatentGrid()
    side_multiple: int = 1
    min_side: int = 16
    max_side: int = MAX_SIDE
    max_frames: int | None = None
    resolutions: Resolutions | None = field(default=None, compare=False)

    def latent(self, shape: Shape) -> Shape:
        """Return the latent shape of a video of this shape."""
        return self.grid.latent(shape)

    def snap_side(self, side: int) -> int:
        """Return the nearest supported side, within ``min_side`` and ``max_side`` (ties round up)."""
        m = self.side_multiple
        least, most = math.ceil(self.min_side / m) * m, self.max_side // m * m
        return min(max(math.floor(side / m + 0.5) * m, least), most)
