"""Encoding given pixels to the latent grid, with toy codecs, against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.grid import FrameGrid, LatentGrid
from kinema.vae.given_pixels import encode_given, latent_mask

SIDE, CELL = 4, 2
PLAIN, MEAN = FrameGrid(), FrameGrid(4)
CAUSAL, SEVENTEEN = FrameGrid(4, causal=True), FrameGrid(4, causal=True, run=17)
SHARED = FrameGrid(4, causal=True, run=17, shared=1)
IMAGE = FrameGrid(4, image=True)
untimed = settings(deadline=None)


class Toy:
    """Encodes each cell to the mean of its pixels; records the frame counts and refuses unknown frames."""

    def __init__(self, time: FrameGrid, memory: float = 0.0) -> None:
        self.grid, self.memory, self.seen = LatentGrid(time, (CELL, CELL), channels=3), memory, []

    def __call__(self, video: torch.Tensor) -> torch.Tensor:
        assert bool(video.isfinite().all()), "unknown frames must not be encoded"
        self.seen.append(video.shape[2])
        time = self.grid.time
        if time.image and video.shape[2] == 1:
            return self.means(video, 1)
        if not time.causal:
            assert video.shape[2] % time.stride == 0
            return self.means(video, time.stride)
        if time.run is not None:
            starts = range(0, max(video.shape[2] - time.shared, 1), time.run - time.shared)
            return torch.cat([self.run(video[:, :, start : start + time.run]) for start in starts], 2)
        assert video.shape[2] % time.stride == 1
        return self.run(video)

    def run(self, video):
        """Encode a run whose first cell may be shorter; adds ``memory`` times the frame before each cell."""
        stride, total = self.grid.time.stride, video.shape[2]
        ends = range((total - 1) % stride + 1, total + 1, stride)
        cells = [video[:, :, max(end - stride, 0) : end].mean(2) for end in ends]
        before = [video[:, :, max(end - stride - 1, 0)] for end in ends]
        return self.means(torch.stack(cells, 2), 1) + self.memory * self.means(torch.stack(before, 2), 1)

    def means(self, video, frames):
        return torch.nn.functional.avg_pool3d(video, (frames, CELL, CELL))


def clip(frames, *known, batch=1):
    """Return a clip of noise, with NaN in unknown frames, and its mask."""
    video = torch.randn(batch, 3, frames, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(batch, 1, frames, SIDE, SIDE, dtype=torch.float64)
    mask[:, :, list(known)] = 1
    return video.masked_fill(mask == 0, torch.nan), mask


def own(video, frames):
    """Return the mean of these frames' pixels in each latent cell."""
    return torch.nn.functional.avg_pool2d(torch.stack([video[:, :, f] for f in frames]).mean(0), CELL)


def cells_by_hand(time, frames):
    """Return the frames that each latent frame depends on, by changing the frames one by one."""
    toy, values = Toy(time), torch.arange(1, frames + 1, dtype=torch.float64)
    depends = []
    for frame in range(frames):
        changed = values.clone()
        changed[frame] += 1
        pair = [toy(each.reshape(1, 1, -1, 1, 1).expand(1, 3, -1, SIDE, SIDE)) for each in (values, changed)]
        depends.append((pair[1] != pair[0])[0, 0, :, 0, 0].tolist())
    return [{f for f in range(frames) if depends[f][cell]} for cell in range(len(depends[0]))]


@untimed
@given(st.sampled_from([PLAIN, MEAN, CAUSAL, SEVENTEEN, SHARED, IMAGE]), st.integers(1, 40), st.data())
def test_a_given_cell_is_encoded_from_its_own_frames_without_unknown_ones(time, asked, data):
    frames = time.ceil(asked)
    pattern = data.draw(st.lists(st.sampled_from([True, True, True, False]), min_size=frames, max_size=frames))
    known = {frame for frame in range(frames) if pattern[frame]}
    video, mask = clip(frames, *known)
    toy = Toy(time)
    content, found = encode_given(toy, toy.grid, video, mask)
    cells, alone = cells_by_hand(time, frames), time.causal or time.image
    assert content.shape == (1, 3, len(cells), SIDE // CELL, SIDE // CELL)
    for i, cell in enumerate(cells):
        encoded = cell if cell <= known else {max(cell & known)} if cell & known and alone else set()
        expected = own(video, sorted(encoded)) if encoded else torch.zeros(1, 3, 2, 2, dtype=torch.float64)
        torch.testing.assert_close(content[:, :, i], expected)
        assert bool((found[:, :, i] == bool(encoded)).all())


def test_a_codec_of_single_frames_encodes_only_the_given_ones_in_one_call():
    video, mask = clip(9, 0, 3, 8)
    toy = Toy(PLAIN)
    content, found = encode_given(toy, toy.grid, video, mask)
    assert toy.seen == [3]
    assert found[0, 0, :, 0, 0].tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 1]
    assert bool((content[:, :, 1:3] == 0).all())


def test_without_given_frames_nothing_is_encoded():
    for time in (PLAIN, MEAN, CAUSAL, SEVENTEEN, SHARED, IMAGE):
        video, mask = clip(time.ceil(9))
        toy = Toy(time)
        content, found = encode_given(toy, toy.grid, video, mask)
        assert toy.seen == []
        assert content.shape[2] == time.latent(time.ceil(9)) == found.shape[2]
        assert not bool(content.any() | found.any())


def test_later_causal_cells_are_encoded_after_their_preceding_frame():
    """The latents equal those of the whole clip, for a codec that depends on that frame."""
    toy = Toy(CAUSAL, memory=0.5)
    video, mask = clip(21, *range(3, 13), *range(17, 21))
    whole = toy(video.nan_to_num())
    toy.seen.clear()
    content, found = encode_given(toy, toy.grid, video, mask)
    assert toy.seen == [9, 5]  # frames 4 to 12; 17 and 17 to 20, as 16 is unknown
    torch.testing.assert_close(content[:, :, 2:4], whole[:, :, 2:4])
    torch.testing.assert_close(content[:, :, 1], 1.5 * own(video, [4]))  # of the first piece, which it begins
    repeated = own(video, range(17, 21)) + 0.5 * own(video, [17])
    torch.testing.assert_close(content[:, :, 5], repeated)
    assert found[0, 0, :, 0, 0].tolist() == [0, 1, 1, 1, 0, 1]


def test_the_first_frame_and_keyframes_are_encoded_alone():
    video, mask = clip(13, 0, 6, 12)
    toy = Toy(CAUSAL, memory=0.5)
    content, found = encode_given(toy, toy.grid, video, mask)
    assert toy.seen == [1, 1, 1]
    for cell, frame in ((0, 0), (2, 6), (3, 12)):
        torch.testing.assert_close(content[:, :, cell], 1.5 * own(video, [frame]))
    assert found[0, 0, :, 0, 0].tolist() == [1, 0, 1, 1]


def test_runs_are_encoded_whole_with_unknown_frames_replaced_by_the_nearest():
    toy = Toy(SEVENTEEN, memory=0.5)
    video, mask = clip(40, 0, *range(5, 12), *range(34, 40))
    content, found = encode_given(toy, toy.grid, video, mask)
    assert toy.seen == [17, 6, 1]  # the first run, the last and shorter one, and frame 11 alone
    for cell, frames, before in ((0, [0], 0), (2, range(5, 9), 5), (10, [34, 35], 34), (11, range(36, 40), 35)):
        torch.testing.assert_close(content[:, :, cell], own(video, frames) + 0.5 * own(video, [before]))
    torch.testing.assert_close(content[:, :, 3], 1.5 * own(video, [11]))
    assert found[0, 0, :, 0, 0].tolist() == [1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]


def test_a_codec_of_runs_encodes_a_first_image_alone():
    """As in Open-Sora 1.2, whose norms depend on the whole run."""
    video, mask = clip(34, 0, 17)
    toy = Toy(SEVENTEEN)
    content, _ = encode_given(toy, toy.grid, video, mask)
    assert toy.seen == [1, 1]
    torch.testing.assert_close(content[:, :, 5], own(video, [17]))


def test_a_frame_that_two_runs_share_represents_the_cell_before_and_is_the_cell_after():
    """Open-Sora 1.3: a keyframe at a seam is encoded alone, for both."""
    video, mask = clip(33, 16)
    toy = Toy(SHARED)
    content, found = encode_given(toy, toy.grid, video, mask)
    assert set(toy.seen) == {1}
    assert found[0, 0, :, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    for cell in (4, 5):
        torch.testing.assert_close(content[:, :, cell], own(video, [16]))


@pytest.mark.parametrize("time", [PLAIN, MEAN, CAUSAL, SEVENTEEN, SHARED])
def test_a_region_masks_only_completely_given_cells(time):
    frames = time.ceil(16)
    video = clip(frames, *range(frames))[0]
    mask = torch.ones(1, 1, frames, SIDE, SIDE, dtype=torch.float64)
    mask[:, :, 3, 0, 0] = 0  # one pixel of one frame
    toy = Toy(time)
    content, found = encode_given(toy, toy.grid, video, mask)
    torch.testing.assert_close(content, toy(video))
    lacking = next(i for i, cell in enumerate(cells_by_hand(time, frames)) if 3 in cell)
    expected = torch.ones_like(found)
    expected[:, :, lacking, 0, 0] = 0
    assert torch.equal(found, expected)


def test_a_region_of_a_single_frame_represents_its_part_of_the_cell():
    video, mask = clip(9, 0, 8)
    mask[:, :, 8, :, :CELL] = 0
    toy = Toy(CAUSAL)
    content, found = encode_given(toy, toy.grid, video, mask)
    torch.testing.assert_close(content[:, :, 2], own(video, [8]))
    assert found[0, 0, :, 0].tolist() == [[1, 1], [0, 0], [0, 1]]


def test_batch_items_are_independent():
    video, mask = clip(9, 0, *range(5, 9), batch=2)
    toy = Toy(CAUSAL)
    content, _ = encode_given(toy, toy.grid, video, mask)
    for item in range(2):
        single, _ = encode_given(toy, toy.grid, video[item : item + 1], mask[item : item + 1])
        torch.testing.assert_close(content[item : item + 1], single)


def test_latents_have_the_codecs_dtype():
    video, mask = clip(5, 0)
    toy = Toy(CAUSAL)
    content, _ = encode_given(lambda frames: toy(frames).half(), toy.grid, video, mask)
    assert content.dtype == torch.float16


def test_a_codec_that_contradicts_its_grid_is_refused():
    video, mask = clip(9, *range(9))
    with pytest.raises(ValueError, match="9 frames were encoded to 2 latent frames; expected 3"):
        encode_given(lambda frames: Toy(CAUSAL)(frames)[:, :, :2], Toy(CAUSAL).grid, video, mask)


def test_the_latent_mask_is_1_only_in_completely_given_cells():
    mask = torch.zeros(1, 1, 9, 16, 16)
    mask[:, :, :5, :, :8] = 1
    mask[:, :, 5:8] = 1  # three of the last cell's four frames
    result = latent_mask(LatentGrid(CAUSAL, (8, 8), channels=4), mask)
    assert result.shape == (1, 1, 3, 2, 2)
    assert result[0, 0, :, 0].tolist() == [[1, 0], [1, 0], [0, 0]]
