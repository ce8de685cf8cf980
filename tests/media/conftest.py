from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kinema.media.colour import to_float
from kinema.schema import Clip

RECIPE = {"request": {"prompt": "a réd ball\x00 rolls", "seed": 7}, "weights": "sha256:00", "versions": {"torch": "2"}}


def _moving(frames: int = 6, height: int = 32, width: int = 48) -> np.ndarray:
    """uint8 T×H×W×3: a soft bright blob that crosses a grey gradient from left to right."""
    y, x = np.mgrid[0:height, 0:width]
    frames_HWC = []
    for t in range(frames):
        centre = width * (t + 1) / (frames + 1)
        blob = 150 * np.exp(-((x - centre) ** 2 + (y - height / 2) ** 2) / (2 * (height / 6) ** 2))
        grey = 40 + 50 * x / width + blob
        frames_HWC.append(np.stack([grey, grey * 0.8, 200 - grey * 0.7], axis=-1))
    return np.clip(frames_HWC, 0, 255).astype(np.uint8)


@pytest.fixture
def moving() -> Callable[..., np.ndarray]:
    return _moving


@pytest.fixture
def psnr() -> Callable[[torch.Tensor, torch.Tensor], float]:
    return _psnr


@pytest.fixture
def encode() -> Callable[..., Path]:
    return _encode


@pytest.fixture
def clip() -> Clip:
    return Clip(to_float(_moving()), fps=8.0, recipe=RECIPE)


def _psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean() / 4 + 1e-12))


def _encode(
    path: Path,
    frames_THWC: np.ndarray | Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: Fraction = Fraction(8),
    times: Sequence[float] | None = None,
    form: str | None = None,
    prepare: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """Write a file with PyAV alone, as other programs do; ``times`` in seconds gives an uneven rate."""
    import av

    clock = Fraction(1, 1000)
    with av.open(str(path), "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames_THWC[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.codec_context.time_base = clock
        prepare(stream)
        for index, frame_HWC in enumerate(frames_THWC):
            source = "rgba" if frame_HWC.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(frame_HWC, format=source).reformat(format=pix_fmt)
            frame.time_base = clock if times is not None else 1 / rate
            frame.pts = index if times is None else round(times[index] / clock)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
