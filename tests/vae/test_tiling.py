"""Parts that fade into each other: they cover everything once, and leave no seam."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kinema.vae.tiling import COLUMNS, FRAMES, faded, starts, tiled


@pytest.mark.parametrize("total", range(1, 20))
@pytest.mark.parametrize(("size", "overlap"), [(1, 0), (4, 0), (4, 1), (8, 3), (5, 4)])
def test_parts_cover_everything_and_share_at_least_the_overlap(total, size, overlap):
    begun = starts(total, size, overlap)
    ends = [min(at + size, total) for at in begun]
    assert begun[0] == 0
    assert ends[-1] == total
    assert all(ends[i] - begun[i + 1] >= overlap for i in range(len(begun) - 1))
    assert all(later > earlier for earlier, later in zip(begun, begun[1:], strict=False))


def test_without_an_overlap_the_last_part_is_what_is_left():
    assert starts(5, 2, 0) == [0, 2, 4]
    assert starts(5, 2, 1) == [0, 1, 2, 3]
    assert starts(15, 8, 2) == [0, 6, 7]


def enlarged(z_BCTHW):
    """A decoder that sees nothing but the cell itself: any parts must give the whole."""
    return F.interpolate(z_BCTHW[:, :3], scale_factor=(1, 8, 8), mode="nearest")


@pytest.mark.parametrize(("size", "overlap"), [(3, 0), (3, 1), (4, 3), (20, 5)])
def test_parts_of_a_local_decoder_are_the_whole(size, overlap):
    z = torch.randn(2, 4, 11, 5, 6, dtype=torch.float64)
    assert torch.allclose(faded(enlarged, z, FRAMES, size, overlap), enlarged(z), atol=1e-12)
    assert torch.allclose(faded(enlarged, z, COLUMNS, min(size, 5), overlap % 3, stride=8), enlarged(z), atol=1e-12)
    assert torch.allclose(tiled(enlarged, z, 4, 8), enlarged(z), atol=1e-12)


def test_shared_pixels_fade_evenly_from_one_part_to_the_next():
    calls = []

    def numbered(z):
        calls.append(z.shape[2])
        return torch.full((1, 3, z.shape[2], 1, 1), float(len(calls)))

    made = faded(numbered, torch.zeros(1, 4, 10, 1, 1), FRAMES, 6, 2)[0, 0, :, 0, 0]
    assert torch.allclose(made, torch.tensor([1, 1, 1, 1, 4 / 3, 5 / 3, 2, 2, 2, 2]))
    assert calls == [6, 6]


def test_an_overlap_of_the_whole_part_is_refused():
    with pytest.raises(ValueError, match="cannot share"):
        faded(enlarged, torch.zeros(1, 4, 8, 2, 2), FRAMES, 4, 4)
