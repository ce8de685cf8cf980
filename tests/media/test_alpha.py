"""Alpha of VP8 and VP9 in webm."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kinema.media import alpha as alphas
from kinema.media.read import read_video


@pytest.fixture
def webm(tmp_path: Path) -> Callable[[str], Path]:
    """``webm(codec)``: a green square that moves over fully transparent red."""

    def write(codec: str) -> Path:
        import av

        path = tmp_path / f"{codec}.webm"
        with av.open(str(path), "w") as out:
            stream: Any = out.add_stream(codec, rate=8, options={"auto-alt-ref": "0", "crf": "8", "b": "0"})
            stream.width = stream.height = 64
            stream.pix_fmt = "yuva420p"
            for t in range(6):
                rgba = np.zeros((64, 64, 4), np.uint8)
                rgba[..., 0] = 255
                rgba[16:48, 4 * t : 24 + 4 * t] = (0, 200, 0, 255)
                frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="yuva420p")
                frame.pts, frame.time_base = t, Fraction(1, 8)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        return path

    return write


def levels(path: Path, **part: Any) -> np.ndarray:
    return read_video(path, **part).video[0].permute(1, 2, 3, 0).add(1).mul(127.5).round().int().numpy()


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparent_pixels_are_black_in_every_frame(webm: Callable[[str], Path], codec: str) -> None:
    frames_THWC = levels(webm(codec))
    assert len(frames_THWC) == 6
    for t, frame_HWC in enumerate(frames_THWC):
        assert frame_HWC[4, 4].tolist() == frame_HWC[32, 56].tolist() == [0, 0, 0]
        assert np.abs(frame_HWC[32, 12 + 4 * t] - [0, 200, 0]).max() <= 12


def test_alpha_matches_its_frame_after_a_seek(webm: Callable[[str], Path]) -> None:
    path = webm("libvpx-vp9")
    assert np.array_equal(levels(path, start=0.5), levels(path)[4:])


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:9], lambda data: data[:8] + bytes(max(0, len(data) - 8))]
)
def test_damaged_alpha_is_ignored(
    webm: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(alphas, "_addition", lambda packet, real=alphas._addition: damage(real(packet)))
    frames_THWC = levels(webm("libvpx-vp9"))
    assert len(frames_THWC) == 6
    assert np.abs(frames_THWC[:, 4, 4] - [255, 0, 0]).max() <= 12
