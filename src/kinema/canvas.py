"""A partly known video, which is the one shape that every task takes: pieces, and when sampling lets go of each.

Letters: B batch, T frames, H height, W width in pixels; pixels are float in [-1, 1].
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
    """Which sound belongs to a clip: from second ``begin`` of ``file``, for ``seconds`` (None: to its end), at ``at``.

    ``unfit`` is a clause that says why none does: frames are shown at other times than the sound was recorded with.
    """

    file: str
    begin: float = 0.0
    seconds: float | None = None
    at: float = 0.0
    unfit: str = ""


@dataclass(frozen=True)
class Release:
    """When sampling lets go of a piece of a canvas: never, or at an ``amount`` by one of three rules.

    "strength": before the last ``amount`` of the steps (diffusers' truncation). "ratio": at the first level at or below
    that time of the process, 1 its noise end (Open-Sora's edit ratio). "level": at the level whose noise
    ``sigma / (alpha + sigma)`` is nearest (Time-to-Move). All are in [0, 1].
    """

    by: Literal["never", "strength", "ratio", "level"] = "never"
    amount: float = 0.0


@dataclass(frozen=True, eq=False)
class Piece:
    """Something known of a video: ``video`` B×3×T×H×W in [-1, 1] where ``mask`` B×1×T×H×W is 1, until its release."""

    video: Tensor
    mask: Tensor
    release: Release = Release()


Way = Literal["native", "continuation", "replacement", "reconstruction"]


@dataclass(frozen=True)
class Block:
    """What is made in one pass: ``frames`` frames from ``start`` on, and what a later part knows of the whole clip.

    ``way`` is how given pixels are held. ``releases`` are the states after which the pieces that are released are free,
    in their order: 0 is the noise end, the number of steps the clip. ``prompt`` is the block's own, where prompts
    change with blocks. ``anchor`` B×3×H×W is the whole's first frame, once there is one.
    """

    start: int = 0
    frames: int = 0
    way: Way = "native"
    releases: tuple[int, ...] = ()
    prompt: str | None = None
    anchor: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class LowResolution:
    """A small clip B×3×t×h×w, which the video made small again is to be: ``weight`` is that of guidance by it.

    Made small, it has every ``every``-th frame, and ``factor``×``factor`` pixels averaged into one.
    """

    video: Tensor
    factor: int
    every: int
    weight: float

    def part(self, block: Block) -> LowResolution:
        """What of it belongs to a block, which begins at a frame that it has."""
        first, last = block.start // self.every, (block.start + block.frames - 1) // self.every
        return replace(self, video=self.video[:, :, first : last + 1])

    def among(self, frames: Sequence[int]) -> tuple[list[int], list[int]]:
        """Which of these frames of the video it has, and where in it they are."""
        told = [(i, f // self.every) for i, f in enumerate(frames) if f % self.every == 0]
        known = [(i, at) for i, at in told if at < self.video.shape[2]]
        return [i for i, _ in known], [at for _, at in known]


@dataclass(frozen=True, eq=False)
class Canvas:
    """A partly known video: the one shape that every task takes.

    ``pieces`` are what is known, later ones over earlier ones, all B×3×T×H×W of ``shape``. ``block`` is which part of
    the whole clip this is: options of single frames count from its start. ``small`` is the clip that super-resolution
    enlarges. ``heard`` is the sound of what is given.
    """

    shape: Shape
    pieces: tuple[Piece, ...] = ()
    block: Block = Block()
    small: LowResolution | None = None
    heard: SoundSource | None = None

    @staticmethod
    def of(video_BCTHW: Tensor, mask_B1THW: Tensor, *held: Piece, heard: SoundSource | None = None) -> Canvas:
        """A canvas on which ``video`` is given where the mask is 1, and other pieces are held for a while."""
        return Canvas(Shape.of(video_BCTHW), (Piece(video_BCTHW, mask_B1THW), *held), heard=heard)

    @cached_property
    def given(self) -> Piece:
        """All that is never released, as one piece."""
        first, *others = [piece for piece in self.pieces if piece.release.by == "never"] or [self._nothing()]
        for piece in others:
            whole = piece.mask.expand_as(piece.video)
            first = Piece(first.video.lerp(piece.video, whole), first.mask.maximum(piece.mask))
        return first

    def _nothing(self) -> Piece:
        b, _, *sides = self.shape.bcthw
        return Piece(torch.zeros(b, 3, *sides), torch.zeros(b, 1, *sides))

    @property
    def held(self) -> tuple[Piece, ...]:
        """The pieces that sampling lets go of."""
        return tuple(piece for piece in self.pieces if piece.release.by != "never")

    @property
    def video(self) -> Tensor:
        return self.given.video

    @property
    def mask(self) -> Tensor:
        return self.given.mask

    @property
    def empty(self) -> bool:
        """Whether nothing is given for good."""
        return not bool(self.mask.any())

    @property
    def skipped(self) -> int:
        """Steps that have nothing to do, since pieces that cover the whole video are held over them."""
        told = zip(self.held, self.block.releases, strict=True)
        return max((release for piece, release in told if bool(piece.mask.all())), default=0)

    @property
    def first(self) -> Tensor | None:
        """The first frame that is given whole, B×3×H×W."""
        whole = (self.mask.flatten(3).amin(-1).amin(0)[0] > 0).nonzero().flatten()
        return self.video[:, :, int(whole[0])] if len(whole) else None

    @property
    def kind(self) -> str:
        """What is given, in the words families use: see `kind_of`."""
        return kind_of(self.mask)

    def part(self, block: Block, known: Piece) -> Canvas:
        """What of it a block is made from, where ``known`` is what is given of the whole by now."""
        frames = slice(block.start, block.start + block.frames)
        told = [known, *self.held]
        pieces = [replace(each, video=each.video[:, :, frames], mask=each.mask[:, :, frames]) for each in told]
        small = None if self.small is None else self.small.part(block)
        return Canvas(replace(self.shape, frames=block.frames), tuple(pieces), block, small)

    def longer(self, more: int, *, before: bool = False) -> Canvas:
        """The canvas with so many unknown frames more behind it, or before it; pieces that are released go on there."""
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
        """The canvas of each clip of the batch."""

        def item(i: int) -> Canvas:
            one = slice(i, i + 1)
            pieces = tuple(replace(each, video=each.video[one], mask=each.mask[one]) for each in self.pieces)
            anchor = None if self.block.anchor is None else self.block.anchor[one]
            block = replace(self.block, anchor=anchor)
            return replace(self, shape=replace(self.shape, batch=1), pieces=pieces, block=block)

        return [item(i) for i in range(self.shape.batch)]


def kind_of(mask_B1THW: Tensor) -> str:  # noqa: PLR0911 (one line a kind reads better than a ladder)
    """What a mask gives: nothing | first | ends | prefix | suffix | frames (whole frames, any other pattern) |
    region | all."""
    given = mask_B1THW.flatten(3).amin(-1).amin(0)[0] > 0  # whole frames
    touched = mask_B1THW.flatten(3).amax(-1).amax(0)[0] > 0
    if not touched.any():
        return "nothing"
    if not bool((given == touched).all()):
        return "region"
    index = given.nonzero().flatten().tolist()
    last = len(given) - 1
    if len(index) == len(given):
        return "all"
    if index == [0]:
        return "first"
    if index == [0, last]:
        return "ends"
    if index == list(range(len(index))):
        return "prefix"
    if index == list(range(len(given) - len(index), len(given))):
        return "suffix"
    return "frames"
