"""Decoding in blended parts: full coverage, without seams."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kinema.vae.tiling import COLUMNS, FRAMES, ROWS, decode_blended, decode_tiled, starts


@pytest.mark.parametrize("total", range(1, 20))
@pytest.mark.parametrize(("size", "overlap"), [(1, 0), (4, 0), (4, 1), (8, 3), (5, 4)])
def test_parts_cover_everything_and_share_at_least_the_overlap(total, size, overlap):
    begin = starts(total, size, overlap)
    ends = [min(at + size, total) for at in begin]
    assert begin[0] == 0
    assert ends[-1] == total
    assert all(ends[i] - begin[i + 1] >= overlap for i in range(len(begin) - 1))
    assert all(later > earlier for earlier, later in zip(begin, begin[1:], strict=False))


def test_without_an_overlap_the_last_part_is_shorter():
    assert starts(5, 2, 0) == [0, 2, 4]
    assert starts(5, 2, 1) == [0, 1, 2, 3]
    assert starts(15, 8, 2) == [0, 6, 7]


def enlarged(z_BCTHW):
    """A decoder without spatial context, for which any parts must equal the whole."""
    return F.interpolate(z_BCTHW[:, :3], scale_factor=(1, 8, 8), mode="nearest")


@pytest.mark.parametrize(("size", "overlap"), [(3, 0), (3, 1), (4, 3), (20, 5)])
def test_parts_of_a_local_decoder_equal_the_whole(size, overlap):
    z = torch.randn(2, 4, 11, 5, 6, dtype=torch.float64)
    assert torch.allclose(decode_blended(enlarged, z, FRAMES, size, overlap), enlarged(z), atol=1e-12)
    assert torch.allclose(
        decode_blended(enlarged, z, COLUMNS, min(size, 5), overlap % 3, stride=8), enlarged(z), atol=1e-12
    )
    assert torch.allclose(decode_tiled(enlarged, z, 4, 8), enlarged(z), atol=1e-12)


def test_shared_pixels_blend_linearly():
    calls = []

    def numbered(z):
        calls.append(z.shape[2])
        return torch.full((1, 3, z.shape[2], 1, 1), float(len(calls)))

    blended = decode_blended(numbered, torch.zeros(1, 4, 10, 1, 1), FRAMES, 6, 2)[0, 0, :, 0, 0]
    assert torch.allclose(blended, torch.tensor([1, 1, 1, 1, 4 / 3, 5 / 3, 2, 2, 2, 2]))
    assert calls == [6, 6]


def test_an_overlap_as_large_as_the_part_is_refused():
    with pytest.raises(ValueError, match="overlap is 4; expected 0 to 3"):
        decode_blended(enlarged, torch.zeros(1, 4, 8, 2, 2), FRAMES, 4, 4)


@pytest.mark.parametrize("axis", [ROWS, COLUMNS])
@pytest.mark.parametrize(("tile", "shared"), [(8, 2), (16, 4), (30, 7)])
def test_tiles_overlap_by_a_quarter_and_blend_over_all_of_it(tile, shared, axis):
    """Uses three tiles along a side: the second of two would start at the same place for any overlap."""
    calls, sides = [], {ROWS: 1, COLUMNS: 1}
    sides[axis] = 3 * tile - 2 * shared

    def numbered(z):
        calls.append(int(z.amin()))
        return torch.full((1, 3, 1, z.shape[3] * 2, z.shape[4] * 2), float(len(calls)))

    cells = torch.arange(sides[axis], dtype=torch.float32)
    z = cells.reshape(-1, 1) if axis == ROWS else cells
    blended = decode_tiled(numbered, z.expand(1, 4, 1, sides[ROWS], sides[COLUMNS]), tile, 2)
    assert calls == [0, tile - shared, 2 * (tile - shared)]
    end, middle = (torch.ones(2 * (tile - times * shared)) for times in (1, 2))
    fading = torch.arange(1, 2 * shared + 1) / (2 * shared + 1)
    expected = torch.cat([end, 1 + fading, 2 * middle, 2 + fading, 3 * end])
    line = blended[0, 0, 0].amax(1 if axis == ROWS else 0)
    assert torch.allclose(line, expected)


def test_tiles_start_where_those_of_diffusers_do():
    diffusers = pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKL(sample_size=16)
    vae.enable_tiling()
    seen = {"kinema": [], "diffusers": []}

    class Recorder(torch.nn.Module):
        def forward(self, z):
            seen["diffusers"].append(tuple(int(x) for x in z[0, :2, 0, 0]))
            return z[:, :3]

    tile, sides = vae.tile_latent_min_size, (40, 40)
    rows, columns = torch.meshgrid(*(torch.arange(float(side)) for side in sides), indexing="ij")
    z = torch.stack([rows, columns, rows, columns])[None]
    vae.post_quant_conv, vae.decoder = torch.nn.Identity(), Recorder()
    vae.tiled_decode(z)

    def record(part):
        seen["kinema"].append(tuple(int(x) for x in part[0, :2, 0, 0, 0]))
        return part[:, :3]

    decode_tiled(record, z[:, :, None], tile, 1)
    # Diffusers adds tiles at every start, even if the previous tile already reaches the end.
    whole = [at for at in seen["diffusers"] if all(x + tile <= side for x, side in zip(at, sides, strict=True))]
    assert len(whole) == 9
    assert seen["kinema"] == whole
