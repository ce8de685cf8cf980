"""Canvases: given and held pieces, parts and extensions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kinema.canvas import Block, Canvas, GivenFrames, LowResolution, Piece, Release
from kinema.schema import Shape

SHAPE = Shape(1, 3, 4, 2, 2)
HALF = Release("strength", 0.5)


def piece(value: float, *frames: int, release: Release | None = None) -> Piece:
    """A piece of these frames with a constant value; the others are 9, outside the mask."""
    video, mask = torch.full((1, 3, 4, 2, 2), 9.0), torch.zeros(1, 1, 4, 2, 2)
    video[:, :, list(frames)], mask[:, :, list(frames)] = value, 1
    return Piece(video, mask, release or Release())


def by_frame(video: Tensor) -> list[float]:
    """Return the constant value of each frame."""
    means = video.flatten(3).mean((0, 1, 3))
    assert torch.equal(means[None, None, :, None, None].expand_as(video), video)
    return means.tolist()


def test_given_pieces_are_merged_and_later_ones_cover_earlier_ones() -> None:
    given = Canvas(SHAPE, (piece(1, 0, 1), piece(5, 3, release=HALF), piece(2, 1, 2))).given
    assert by_frame(given.mask) == [1, 1, 1, 0]
    assert by_frame(given.video)[:3] == [1, 2, 2]
    assert given.release == Release()


def test_a_canvas_without_a_given_piece_gives_nothing() -> None:
    canvas = Canvas(SHAPE, (piece(5, 0, 1, 2, 3, release=HALF),))
    assert canvas.empty
    assert canvas.kind == "nothing"
    assert canvas.given.video.shape == (1, 3, 4, 2, 2)


def test_a_canvas_without_given_pixels_takes_no_memory_for_them() -> None:
    large = Canvas(replace(SHAPE, batch=64, frames=4096, height=1024, width=1024))
    assert large.video.untyped_storage().nbytes() == large.mask.untyped_storage().nbytes() == 4
    assert large.permanent.longer(3).pieces == ()
    assert large.kind == "nothing"  # which would not end if all pixels were read


@pytest.mark.parametrize(
    ("whole", "touched", "kind"),
    [
        ([], [], "nothing"),
        ([0], [0], "first"),
        ([0, 3], [0, 3], "ends"),
        ([0, 1], [0, 1], "prefix"),
        ([2, 3], [2, 3], "suffix"),
        ([3], [3], "suffix"),
        ([0, 2], [0, 2], "frames"),
        ([0, 1, 2, 3], [0, 1, 2, 3], "all"),
        ([0], [0, 1], "region"),
        ([], [2], "region"),
    ],
)
def test_the_kind_of_given_frames(whole: list[int], touched: list[int], kind: str) -> None:
    mask = torch.zeros(2, 1, 4, 2, 2)
    mask[:, :, whole] = 1
    for frame in set(touched) - set(whole):
        mask[:, :, frame, 0, 1] = 1
    found = GivenFrames.of(mask)
    assert found.kind == kind
    assert found.whole.nonzero().flatten().tolist() == whole
    assert found.touched.nonzero().flatten().tolist() == touched


def test_a_frame_counts_as_given_if_all_clips_of_the_batch_have_it() -> None:
    mask = torch.zeros(2, 1, 4, 2, 2)
    mask[0, :, 0] = 1
    assert GivenFrames.of(mask).kind == "region"
    repeated = torch.zeros(1, 1, 4, 1, 1)
    repeated[:, :, 0] = 1
    assert GivenFrames.of(repeated.expand(2, 1, 4, 2, 2)).kind == "first"


def test_frames_added_to_given_ones_are_unknown_until_they_are_given() -> None:
    known = GivenFrames.of(piece(1, 0, 1, 2, 3).mask).longer(2)
    assert known.kind == "prefix"
    assert known.part(4, 2).kind == "nothing"
    known.give(4, 2)
    assert known.kind == "all"


def test_added_frames_are_unknown_and_held_pieces_repeat_their_edge_frame() -> None:
    edited = piece(5, 0, 1, 2, 3, release=HALF)
    edited.video[:, :, -1], edited.video[:, :, 0] = 6, 4
    canvas = Canvas(SHAPE, (piece(1, 0, 3), edited))
    long = canvas.longer(2)
    assert long.shape.frames == 6
    assert by_frame(long.given.mask) == [1, 0, 0, 1, 0, 0]
    assert by_frame(long.held[0].mask) == [1] * 6
    assert by_frame(long.held[0].video) == [4, 5, 5, 6, 6, 6]
    before = canvas.longer(2, before=True)
    assert by_frame(before.given.mask) == [0, 0, 1, 0, 0, 1]
    assert by_frame(before.held[0].video) == [4, 4, 4, 5, 5, 6]
    assert canvas.longer(0) is canvas


def test_a_batch_splits_into_the_canvases_of_its_clips() -> None:
    pieces = [piece(1, 0), piece(5, 0, 1, 2, 3, release=HALF)]
    pair = tuple(
        replace(each, video=torch.cat([each.video, -each.video]), mask=torch.cat([each.mask, each.mask * number]))
        for number, each in enumerate(pieces)
    )
    block = Block(2, 4, releases=(1,), anchor=torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)]))
    one, two = Canvas(replace(SHAPE, batch=2), pair, block).items()
    for number, canvas in enumerate((one, two)):
        assert canvas.shape == SHAPE
        for own, whole in zip(canvas.pieces, pair, strict=True):
            assert torch.equal(own.video, whole.video[number : number + 1])
            assert torch.equal(own.mask, whole.mask[number : number + 1])
        assert canvas.block.anchor is not None
        assert torch.equal(canvas.block.anchor, torch.full((1, 3, 2, 2), float(number)))
        assert (canvas.block.start, canvas.block.releases) == (2, (1,))


def test_a_part_of_a_canvas_has_its_frames_of_known_and_held_pieces() -> None:
    edited = piece(5, 0, 1, 2, 3, release=HALF)
    edited.video[:, :, 3] = 6
    small = LowResolution(torch.arange(2.0).reshape(1, 1, 2, 1, 1), 2, 2, 1.0)
    canvas = Canvas(SHAPE, (piece(1, 0), edited), small=small)
    part = canvas.part(Block(2, 2), piece(3, 0, 1, 2))
    assert part.shape.frames == 2
    assert by_frame(part.given.mask) == [1, 0]
    assert by_frame(part.given.video)[0] == 3
    assert by_frame(part.held[0].video) == [5, 6]
    assert part.small is not None
    assert part.small.video.flatten().tolist() == [1]


def test_frames_beyond_the_small_clip_have_no_target() -> None:
    small = LowResolution(torch.zeros(1, 3, 2, 1, 1), 2, 4, 1.0)  # frames 0 and 4
    assert small.among(range(12)) == ([0, 4], [0, 1])
    assert small.among(range(4, 12)) == ([0], [1])
    assert small.among(range(8, 12)) == ([], [])
