"""PQ, HLG and wide primaries against the formulas of BT.2100, and the highlight roll-off."""

from __future__ import annotations

import numpy as np
import pytest

from kinema.media import hdr
from kinema.media.frames import ColourTags, DecodedFrame
from kinema.media.hdr import Look

GREYS = np.linspace(0, 1, 11)
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
"""Matrix from linear BT.709 to BT.2020, as printed in BT.2087."""
COLOURS = np.array([[220, 40, 30], [40, 190, 60], [40, 60, 210], [200, 180, 60], [90, 30, 120], [128, 128, 128]]) / 255


def pq(nits: np.ndarray) -> np.ndarray:
    power = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(scene: np.ndarray) -> np.ndarray:
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


def to_sdr(signal: np.ndarray, look: Look) -> np.ndarray:
    return hdr.to_sdr((signal * 65535).round().astype(np.uint16).reshape(1, -1, 3), look)[0].astype(int)


def grey(signal: float | np.ndarray, look: Look) -> np.ndarray:
    return to_sdr(np.repeat(np.atleast_1d(signal), 3), look)[:, 0]


def test_pq_restores_sdr_colours_at_203_nits() -> None:
    light = COLOURS**2.4 @ TO_2020.T
    assert np.abs(to_sdr(pq(light * 203), Look(hdr.PQ, hdr.BT2020)) - COLOURS * 255).max() <= 1.5


def test_hlg_restores_sdr_colours_on_a_1000_nit_display() -> None:
    light = COLOURS**2.4 @ TO_2020.T * 203 / 1000
    luminance = light @ [0.2627, 0.6780, 0.0593]
    scene = light * luminance[:, None] ** (1 / 1.2 - 1)
    assert np.abs(to_sdr(hlg(scene), Look(hdr.HLG, hdr.BT2020)) - COLOURS * 255).max() <= 1.5


@pytest.mark.parametrize(("look", "white"), [(Look(hdr.PQ, hdr.BT2020), pq(np.array(203))), (Look(hdr.HLG), 0.75)])
def test_white_is_preserved_and_highlights_roll_off(look: Look, white: float) -> None:
    levels = grey(np.linspace(0, 1, 200), look)
    assert 235 <= grey(float(white), look)[0] <= 245
    assert (np.diff(levels) >= 0).all()
    assert levels[0] == 0
    assert 251 <= levels[-1] <= 255


def test_pq_highlights_remain_distinct() -> None:
    levels = grey(pq(np.array([203.0, 300, 450, 700, 1000])), Look(hdr.PQ, hdr.BT2020))
    assert (np.diff(levels) >= 1).all()


@pytest.mark.parametrize("primaries", [hdr.BT2020, hdr.P3_D65, hdr.P3_DCI])
@pytest.mark.parametrize("transfer", [hdr.BT709, hdr.SRGB])
def test_wide_primaries_leave_grey_unchanged(primaries: int, transfer: int) -> None:
    assert np.abs(grey(GREYS, Look(transfer, primaries)) - GREYS * 255).max() <= 0.8


def test_wide_gamut_sdr_is_converted_to_bt709() -> None:
    signal = (COLOURS**2.4 @ TO_2020.T) ** (1 / 2.4)
    assert np.abs(to_sdr(signal, Look(hdr.BT709, hdr.BT2020)) - COLOURS * 255).max() <= 1.5
    assert np.abs(to_sdr(np.array([220, 40, 30]) / 255, Look(hdr.SRGB, hdr.P3_D65)) - [241, 0, 0]).max() <= 3


def test_linear_light_is_encoded() -> None:
    assert grey(np.array([0, 0.2140, 1]), Look(hdr.LINEAR)).tolist() == [0, 127, 255]


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_limited_range_grey_is_expanded(bits: int) -> None:
    unit, top = 2 ** (bits - 8), 2**bits - 1
    look = Look(black=16 * unit / top, white=235 * unit / top)
    stored = (16 + 219 * GREYS) * unit / top
    assert np.abs(grey(stored, look) - GREYS * 255).max() <= 1


@pytest.mark.parametrize(("transfer", "encode"), [(hdr.PQ, pq), (hdr.HLG, hlg)])
def test_ictcp_decodes_to_the_same_colours_as_rgb(transfer: int, encode: object) -> None:
    """BT.2100, table 7: BT.2020 light to L'M'S' to 10-bit I, Ct, Cp."""
    import av

    scale = 203.0 if transfer == hdr.PQ else 0.265
    light = COLOURS**2.4 @ TO_2020.T * scale
    lms = encode(light @ (np.array([[1688, 2146, 262], [683, 2951, 462], [99, 309, 3688]]) / 4096).T)  # type: ignore[operator]
    rows = (
        [[6610, -13613, 7003], [17933, -17390, -543]]
        if transfer == hdr.PQ
        else [[3625, -7465, 3840], [9500, -9212, -288]]
    )
    ictcp = lms @ (np.array([[2048, 2048, 0], *rows]) / 4096).T
    stored = (ictcp * [876, 896, 896] + [64, 512, 512]).round().astype(np.uint16)
    frame = av.VideoFrame(96, 16, "yuv444p10le")
    for plane, values in zip(frame.planes, stored.T, strict=True):
        padded = np.zeros((16, plane.line_size // 2), np.uint16)
        padded[:, :96] = values.repeat(16)
        plane.update(padded.tobytes())
    got = DecodedFrame("a", frame, ColourTags(14, 1, transfer, 9)).pixels()[8, 8::16]
    expected = to_sdr(encode(light), Look(transfer, hdr.BT2020))  # type: ignore[operator]
    assert np.abs(got.astype(int) - expected).max() <= 2


def test_only_hdr_has_a_note() -> None:
    assert "HDR (PQ)" in Look(hdr.PQ).note
    assert "HDR (HLG)" in Look(hdr.HLG).note
    assert Look().note == Look(hdr.SRGB, hdr.P3_D65).note == ""
