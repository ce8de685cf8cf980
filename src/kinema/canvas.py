"""The canvas: a partly known video, the common input of every task. Its pieces are held until their release.

Shapes: B batch, T frames, H height, W width in pixels; pixels are float in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.schema import Shape


@dataclass(frozen=True)
class SoundSource:
    """A clip's sound: from second ``begin`` of ``file``, for ``seconds`` (None: to its end), placed at second ``at``.

    ``unfit`` is the reason, as a clause, why the sound cannot be used: the clip plays at another speed.
    """

    file: str
    begin: float = 0.0
    seconds: float | None = None
    at: float = 0.0
    unfit: str = ""


@dataclass(frozen=True)
class Release:
    """When sampling releases a piece: never, or at an ``amount`` in [0, 1] by one of three rules.

    "strength": before the last fraction ``amount`` of the steps (diffusers' truncation). "ratio": at the first noise
    level at or below that time of the process, where 1 is the noise end (Open-Sora's edit ratio). "level": at the noise
    level whose ``sigma / (alpha + sigma)`` is nearest (Time-to-Move).
    """

    by: Literal["never", "strength", "ratio", "level"] = "never"
    amount: float = 0.0


@dataclass(frozen=True, eq=False)
class Piece:
    """A known region: ``video`` B×3×T×H×W in [-1, 1] where ``mask`` B×1×T×H×W is 1, held until its release."""

    video: Tensor
    mask: Tensor
    release: Release = Release()


Way = Literal["native", "continuation", "replacement", "reconstruction"]


@dataclass(frozen=True)
class Block:
    """A block of frames that is sampled in one pass: ``frames`` frames starting at ``start``.

    ``way`` is how given pixels are held. ``releases`` are the sampler states after which each held piece is released:
    0 is the noise end, the number of steps is the clip. ``prompt`` is set if prompts change with blocks. ``anchor``
    B×3×H×W is the first frame of the whole clip, if known.
    """

    start: int = 0
    frames: int = 0
    way: Way = "native"
    releases: tuple[int, ...] = ()
    prompt: str | None = None
    anchor: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class LowResolution:
    """The small clip B×3×t×h×w that guides super-resolution with weight ``weight``.

    The generated video is downsampled to it: every ``every``-th frame, ``factor``×``factor`` pixels averaged into one.
    """

    video: Tensor
    factor: int
    every: int
    weight: float

    def part(self, block: Block) -> LowResolution:
        """Return the part for a block, which must start at a frame of the small clip."""
        first, last = block.start // self.every, (block.start + block.frames - 1) // self.every
        return replace(self, video=self.video[:, :, first : last + 1])

    def among(self, frames: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return which of these video frames the small clip has (as indices into ``frames``), and its own indices."""
        aligned = [(i, f // self.every) for i, f in enumerate(frames) if f % self.every == 0]
        known = [(i, at) for i, at in aligned if at < self.video.shape[2]]
        return [i for i, _ in known], [at for _, at in known]


@dataclass(frozen=True, eq=False)
class Canvas:
    """A partly known video.

    ``pieces`` are the known regions, all B×3×T×H×W of ``shape``; later ones cover earlier ones. ``block`` is the part
    of the whole clip that this canvas covers; options of single frames count from its start. ``small`` is the clip that
    super-resolution enlarges. ``heard`` is the sound of the given frames.
    """

    shape: Shape
    pieces: tuple[Piece, ...] = ()
    block: Block = Block()
    small: LowResolution | None = None
    heard: SoundSource | None = None

    @staticmethod
    def of(video_BCTHW: Tensor, mask_B1THW: Tensor, *held: Piece, heard: SoundSource | None = None) -> Canvas:
        """Build a canvas with ``video`` given where the mask is 1, and further pieces that are held until release."""
        return Canvas(Shape.of(video_BCTHW), (Piece(video_BCTHW, mask_B1THW), *held), heard=heard)

    @cached_property
    def given(self) -> Piece:
        """All pieces that are never released, merged."""
        first, *others = [piece for piece in self.pieces if piece.release.by == "never"] or [self._nothing()]
        for piece in others:
            whole = piece.mask.expand_as(piece.video)
            first = Piece(first.video.lerp(piece.video, whole), first.mask.maximum(piece.mask))
        return first

    def _nothing(self) -> Piece:
        """No given pixel. One zero stands for all: planning a large clip then takes no memory for its pixels."""
        b, _, *sides = self.shape.bcthw
        zero = torch.zeros(())
        return Piece(zero.expand(b, 3, *sides), zero.expand(b, 1, *sides))

    @property
    def held(self) -> tuple[Piece, ...]:
        """The pieces that sampling releases."""
        return tuple(piece for piece in self.pieces if piece.release.by != "never")

    @property
    def video(self) -> Tensor:
        return self.given.video

    @property
    def mask(self) -> Tensor:
        return self.given.mask

    @property
    def empty(self) -> bool:
        """Whether no pixel is given permanently."""
        return not bool(self.given_frames.touched.any())

    @cached_property
    def given_frames(self) -> GivenFrames:
        """Which frames are given permanently, entirely or in part."""
        return GivenFrames.of(self.mask)

    @property
    def permanent(self) -> Canvas:
        """The canvas without the pieces that are released."""
        given = any(piece.release.by == "never" for piece in self.pieces)
        return replace(self, pieces=(self.given,) if given else ())

    @property
    def skipped(self) -> int:
        """The number of initial steps to skip because a piece that covers the whole video is held during them."""
        pieces = zip(self.held, self.block.releases, strict=True)
        return max((release for piece, release in pieces if bool(piece.mask.all())), default=0)

    @property
    def first(self) -> Tensor | None:
        """The first frame that is entirely given, B×3×H×W."""
        whole = self.given_frames.whole.nonzero().flatten()
        return self.video[:, :, int(whole[0])] if len(whole) else None

    @property
    def kind(self) -> str:
        """The pattern of the given pixels; see `GivenFrames.kind`."""
        return self.given_frames.kind

    def part(self, block: Block, known: Piece) -> Canvas:
        """Return the canvas of a block, where ``known`` holds the pixels of the whole clip known so far."""
        frames = slice(block.start, block.start + block.frames)
        whole = [known, *self.held]
        pieces = [replace(each, video=each.video[:, :, frames], mask=each.mask[:, :, frames]) for each in whole]
        small = None if self.small is None else self.small.part(block)
        return Canvas(replace(self.shape, frames=block.frames), tuple(pieces), block, small)

    def longer(self, more: int, *, before: bool = False) -> Canvas:
        """Return the canvas with ``more`` unknown frames at the end or start; held pieces repeat their edge frame."""
        if more <= 0:
            return self
        ends = (more, 0) if before else (0, more)

        def padded(piece: Piece) -> Piece:
            mode = "constant" if piece.release.by == "never" else "replicate"
            video, mask = (F.pad(x, (0, 0, 0, 0, *ends), mode=mode) for x in (piece.video, piece.mask))
            return replace(piece, video=video, mask=mask)

        shape = replace(self.shape, frames=self.shape.frames + more)
        return replace(self, shape=shape, pieces=tuple(map(padded, self.pieces)))

    def items(self) -> list[Canvas]:
        """Return the canvas of each clip of the batch."""

        def item(i: int) -> Canvas:
            one = slice(i, i + 1)
            pieces = tuple(replace(each, video=each.video[one], mask=each.mask[one]) for each in self.pieces)
            anchor = None if self.block.anchor is None else self.block.anchor[one]
            block = replace(self.block, anchor=anchor)
            return replace(self, shape=replace(self.shape, batch=1), pieces=pieces, block=block)

        return [item(i) for i in range(self.shape.batch)]


@dataclass(frozen=True, eq=False)
class GivenFrames:
    """The frames of a clip that are given in each clip of the batch (``whole``) and in part (``touched``), bool T."""

    whole: Tensor
    touched: Tensor

    @staticmethod
    def of(mask_B1THW: Tensor) -> GivenFrames:
        # Where the mask repeats along a dimension, one element says it all.
        for dim in (0, 3, 4):
            if mask_B1THW.stride(dim) == 0:
                mask_B1THW = mask_B1THW.narrow(dim, 0, 1)
        pixels_BTS = mask_B1THW.flatten(3)[:, 0]
        return GivenFrames(pixels_BTS.amin(-1).amin(0) > 0, pixels_BTS.amax(-1).amax(0) > 0)

    def longer(self, more: int) -> GivenFrames:
        """Return them with ``more`` frames at the end, of which nothing is given."""
        return GivenFrames(F.pad(self.whole, (0, more)), F.pad(self.touched, (0, more)))

    def part(self, start: int, frames: int) -> GivenFrames:
        at = slice(start, start + frames)
        return GivenFrames(self.whole[at], self.touched[at])

    def give(self, start: int, frames: int) -> None:
        """Mark frames as entirely given from now on, in place."""
        for each in (self.whole, self.touched):
            each[start : start + frames] = True

    @property
    def kind(self) -> str:
        """The pattern: nothing | first | ends | prefix | suffix | frames (another pattern of whole frames) | region |
        all."""
        count = len(self.whole)
        if not self.touched.any():
            return "nothing"
        if not bool((self.whole == self.touched).all()):
            return "region"
        index = self.whole.nonzero().flatten().tolist()
        patterns = {
            "all": range(count), "first": [0], "ends": [0, count - 1], "prefix": range(len(index)),
            "suffix": range(count - len(index), count),
        }  # fmt: skip
        return next((name for name, frames in patterns.items() if index == [*frames]), "frames")
