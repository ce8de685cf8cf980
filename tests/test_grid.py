"""The geometry of codecs against brute force."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.grid import FrameGrid, LatentGrid, Lattice
from kinema.schema import Shape

SEVENTEEN = FrameGrid(4, causal=True, run=17)
SHARED = FrameGrid(4, causal=True, run=17, shared=1)
STRIDES = st.sampled_from([1, 2, 4, 8])
GRIDS = st.one_of(
    st.builds(FrameGrid, STRIDES, multiple=st.integers(1, 3)),
    st.builds(FrameGrid, STRIDES, causal=st.just(True)),
    st.builds(FrameGrid, STRIDES, causal=st.just(True), run=st.just(17)),
    st.builds(FrameGrid, STRIDES, run=st.sampled_from([16, 32])),
    st.builds(FrameGrid, st.integers(2, 8), causal=st.just(True), run=st.integers(1, 40)),
    st.builds(FrameGrid, STRIDES, image=st.just(True)),
    st.builds(FrameGrid, STRIDES, causal=st.just(True), run=st.sampled_from([9, 17, 33]), shared=st.just(1)),
)
untimed = settings(deadline=None)


def brute_force(grid: FrameGrid, frames: int) -> list[set[int]]:
    """Run by run: frames in a row, blanks before them, cut into cells."""
    if grid.image and frames == 1:
        return [{0}]
    cells: list[set[int]] = []
    begins = range(0, frames, grid.run or frames)
    if grid.shared:
        begins = range(0, max(frames - 1, 1), grid.run - 1)
    for begin in begins:
        row: list[int | None] = list(range(begin, min(begin + (grid.run or frames), frames)))
        while grid.causal and len(row) % grid.stride:
            row.insert(0, None)
        parts = [row[i : i + grid.stride] for i in range(0, len(row) - grid.stride + 1, grid.stride)]
        cells += [{frame for frame in part if frame is not None} for part in parts]
    return cells


@pytest.mark.parametrize(
    ("frames", "latent"), [(1, 1), (17, 5), (18, 6), (51, 15), (102, 30), (204, 60), (408, 120), (4, 1), (5, 2)]
)
def test_seventeen_frames_at_a_time_padded_in_front(frames: int, latent: int) -> None:
    """Open-Sora 1.2."""
    assert SEVENTEEN.latent(frames) == latent == len(SEVENTEEN.spans(frames))
    assert SEVENTEEN.ceil(frames) == frames


def test_windows_that_share_a_frame_have_sixteen_frames_more_each() -> None:
    """Open-Sora 1.3: a shared frame is in the last cell of one window and has the first cell of the next."""
    assert [SHARED.ceil(frames) for frames in (0, 1, 2, 17, 18, 113)] == [1, 1, 17, 17, 33, 113]
    assert [SHARED.latent(frames) for frames in (0, 1, 17, 33, 113)] == [0, 1, 5, 10, 35]
    assert [SHARED.frames(latent) for latent in (1, 5, 10, 35)] == [1, 17, 33, 113]
    assert (SHARED.latent(51), SHARED.frames(16)) == (16, 49)  # not supported: the last two frames are not decoded
    assert SHARED.runs(33) == [range(17), range(16, 33)]
    assert SHARED.runs(0) == SEVENTEEN.runs(0) == []
    assert SHARED.spans(33)[4:6] == [range(13, 17), range(16, 17)]
    assert SHARED.cell(16, 33) == 4


@pytest.mark.parametrize("other", [{"run": 17, "shared": 2}, {"run": 16, "shared": 1}, {"shared": 1}])
def test_runs_that_share_a_frame_are_refused_unless_whole(other: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="shared is"):
        FrameGrid(4, causal=True, **other)


@pytest.mark.parametrize(("latent", "frames"), [(1, 1), (5, 17), (15, 51), (30, 102), (60, 204), (120, 408)])
def test_published_latent_frame_counts_invert_to_frames(latent: int, frames: int) -> None:
    assert SEVENTEEN.latent(SEVENTEEN.frames(latent)) == latent
    assert SEVENTEEN.frames(latent) == (frames if latent > 1 else 4)  # one cell stands for one frame or up to four


def test_a_causal_codec_gives_the_first_frame_its_own_cell() -> None:
    grid = FrameGrid(4, causal=True)
    assert [grid.ceil(frames) for frames in (1, 2, 5, 6, 129)] == [1, 5, 5, 9, 129]
    assert [grid.latent(frames) for frames in (1, 5, 33, 129)] == [1, 2, 9, 33]
    assert [grid.frames(latent) for latent in (1, 2, 9, 33)] == [1, 5, 33, 129]
    assert grid.spans(9) == [range(1), range(1, 5), range(5, 9)]
    assert SEVENTEEN.spans(20) == [range(1), *(range(i, i + 4) for i in (1, 5, 9, 13)), range(17, 20)]


@untimed
@given(GRIDS, st.integers(1, 200))
def test_cells_contain_the_frames_that_an_encoder_puts_into_them(grid: FrameGrid, asked: int) -> None:
    frames = grid.ceil(asked)
    cells = brute_force(grid, frames)
    assert [set(span) for span in grid.spans(frames)] == cells
    assert grid.latent(frames) == len(cells)
    assert set().union(*cells) == set(range(frames))


@untimed
@given(GRIDS, st.integers(1, 60))
def test_a_frame_and_its_cell_are_inverses(grid: FrameGrid, asked: int) -> None:
    frames = grid.ceil(asked)
    cells = [grid.cell(frame, frames) for frame in range(frames)]
    expected = brute_force(grid, frames)
    if grid.shared:  # of two cells with a frame, the earlier one
        assert cells == [next(i for i, cell in enumerate(expected) if frame in cell) for frame in range(frames)]
    else:
        assert [{f for f in range(frames) if cells[f] == i} for i in range(max(cells) + 1)] == expected


def test_a_frame_beyond_the_clip_has_no_cell() -> None:
    with pytest.raises(ValueError, match="frame 9 has no latent frame in a clip of 9 frames"):
        FrameGrid(4, causal=True).cell(9, 9)


@untimed
@given(GRIDS, st.integers(1, 200))
def test_frames_of_latent_frames_is_the_inverse(grid: FrameGrid, asked: int) -> None:
    frames = grid.ceil(asked)
    back = grid.frames(grid.latent(frames))
    assert grid.latent(back) == grid.latent(frames)
    assert frames <= back
    assert grid.latent(grid.ceil(back + 1)) > grid.latent(back)
    if grid.run is None or not grid.causal or grid.shared:
        assert back == frames


@untimed
@given(GRIDS, st.integers(1, 5000))
def test_ceil_is_the_smallest_supported_count(grid: FrameGrid, asked: int) -> None:
    frames_made = grid.ceil(asked)
    assert asked <= frames_made == grid.ceil(frames_made)
    shortest = grid.stride if grid.image and 1 < asked <= grid.stride else 0  # clips have two latent frames or more
    step = grid.run - 1 if grid.shared else grid.stride * grid.multiple
    assert frames_made < asked + step + shortest
    if frames_made <= 200:
        assert set().union(*brute_force(grid, frames_made)) == set(range(frames_made))


@pytest.mark.parametrize("grid", [FrameGrid(run=17), FrameGrid(1, causal=True, run=17)])
def test_runs_of_a_codec_without_a_stride_are_cells_of_one_frame(grid: FrameGrid) -> None:
    assert grid.spans(40) == [range(i, i + 1) for i in range(40)]


def test_runs_of_partial_cells_are_refused_unless_causal() -> None:
    with pytest.raises(ValueError, match="run is 17; expected a multiple of the stride 4"):
        FrameGrid(4, run=17)


def test_a_codec_of_images_and_clips_has_one_frame_or_two_latent_frames_and_more() -> None:
    """The Video DC-AE of Open-Sora 2.0."""
    grid = FrameGrid(4, image=True)
    assert [grid.ceil(frames) for frames in (1, 2, 4, 5, 8, 9, 128)] == [1, 8, 8, 8, 8, 12, 128]
    assert [grid.latent(frames) for frames in (1, 4, 8, 128)] == [1, 1, 2, 32]
    assert [grid.frames(latent) for latent in (1, 2, 32)] == [1, 8, 128]
    assert grid.spans(1) == [range(1)]
    assert grid.spans(8) == [range(4), range(4, 8)]
    found = grid.cells(12, [frame in (0, 4, 5, 6, 7, 11) for frame in range(12)])
    assert (found.whole, found.lone) == ((1,), {0: 0, 2: 11})


@pytest.mark.parametrize("other", [{"causal": True}, {"run": 16}, {"multiple": 2}])
def test_an_image_of_its_own_goes_with_no_other_geometry(other: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="image is true; expected a grid that is not causal"):
        FrameGrid(4, image=True, **other)


# ------------------------------------------------------------------------------- what is given


@untimed
@given(GRIDS, st.integers(1, 60), st.data())
def test_a_given_frame_is_in_a_whole_cell_or_represents_its_cell_alone(
    grid: FrameGrid, asked: int, data: st.DataObject
) -> None:
    frames = grid.ceil(asked)
    known = data.draw(st.lists(st.booleans(), min_size=frames, max_size=frames))
    found, cells = grid.cells(frames, known), brute_force(grid, frames)
    on = {frame for frame in range(frames) if known[frame]}
    assert set(found.whole) == {i for i, cell in enumerate(cells) if cell <= on}
    partly = {i: cell & on for i, cell in enumerate(cells) if cell & on and not cell <= on}
    assert dict(found.lone) == ({i: max(cell) for i, cell in partly.items()} if grid.causal or grid.image else {})


def test_keyframes_and_a_single_last_frame_have_a_cell_with_a_causal_codec() -> None:
    known = [frame in (0, 6, 7, 12) for frame in range(13)]
    found = FrameGrid(4, causal=True).cells(13, known)
    assert found.whole == (0,)
    assert found.lone == {2: 7, 3: 12}  # of 6 and 7, which share a cell, the later
    ends = SEVENTEEN.cells(51, [frame in (0, 50) for frame in range(51)])
    assert (ends.whole, ends.lone) == ((0,), {14: 50})


def test_given_frames_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="given has 2 entries; expected one for each of 5 frames"):
        FrameGrid(4, causal=True).cells(5, [True, False])


# ------------------------------------------------------------------------------------- lattice


def test_latent_shapes() -> None:
    lattice = Lattice(LatentGrid(SEVENTEEN, (8, 16), channels=4))
    assert lattice.latent(Shape(2, 3, 51, 64, 64)) == Shape(2, 4, 15, 8, 4)


@untimed
@given(st.integers(1, 8192), st.sampled_from([1, 2, 8, 64]))
def test_snapped_sides_are_multiples_within_bounds(side: int, multiple: int) -> None:
    lattice = Lattice(side_multiple=multiple, min_side=16, max_side=1024)
    snapped = lattice.snap_side(side)
    assert snapped % multiple == 0
    assert 16 <= snapped <= 1024
    if max(16, multiple) <= side <= 1024:
        assert abs(snapped - side) <= multiple / 2
