"""Videos and pictures in: any common file to a `Clip` or a tensor, within limits that are counted.

A file says what it likes about its size and length, so nothing here trusts a header: pixels, frames
and seconds are counted as they are decoded, and only formats that carry pictures are opened (a
playlist, which could name other files or addresses, is none of them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn import functional

from kinema.media.colour import to_float
from kinema.media.containers import check_whole, sniff
from kinema.media.pictures import existing, folder_frames, is_picture, read_image, webp_frames
from kinema.media.streams import stream_frames
from kinema.media.timing import DEFAULT_FPS, Limits, Part, Timed, even_rate, resampled, within
from kinema.schema import MAX_FRAMES, BadRequest, Clip, Fit

__all__ = ["fit", "read_image", "read_media", "read_video"]

MAX_VIDEO_PIXELS = 2**29
"""Frames × height × width that a clip may bring into memory (1.5 GiB as bytes)."""
MAX_SECONDS = 3600.0


def read_video(
    path: str | Path,
    *,
    start: float = 0.0,
    frames: int | None = None,
    fps: float | None = None,
    max_frames: int = MAX_FRAMES,
    max_pixels: int = MAX_VIDEO_PIXELS,
    max_seconds: float = MAX_SECONDS,
) -> Clip:
    """Read mp4, mov, mkv, webm, avi, gif, webp or a folder of numbered pictures as a clip of batch 1.

    ``start`` is in seconds; ``frames`` takes at most that many from there (a shorter clip gives what
    it has); ``fps`` resamples to that rate by nearest time stamp, else the file's own rate is kept. A
    file of uneven rate is brought to an even one the same way, so that motion keeps its speed. A
    folder without a recipe has no rate of its own: it is taken to be at ``fps``, or 8.

    Rotation and flips of the display matrix and pixels that are not square are honoured; alpha is
    over black. The best video stream is read. Returns video 1×3×T×H×W in [-1, 1] and no recipe
    (`read_recipe` finds that). Raises `BadRequest` for a file that is missing, empty, cut short, no
    video, or beyond a limit (``max_pixels`` counts T·H·W).
    """
    path = existing(Path(path))
    limits, part = Limits(max_frames, max_pixels, max_seconds), Part(start, frames, fps)
    if path.is_dir():
        clip_rate, timed = folder_frames(path, limits, part.fps)
    else:
        kind = sniff(path)
        if kind == "webp":
            clip_rate, timed = None, webp_frames(path, limits)
        elif kind is None:
            raise BadRequest(
                f"{path.name} is not a video that can be read; expected mp4, mov, mkv, webm, avi, gif, webp"
            )
        else:
            check_whole(path, kind)
            clip_rate, timed = None, stream_frames(path, kind, limits, part.start)
    frames_HWC, rate = _collect(path.name, timed, part, limits, clip_rate)
    return Clip(to_float(frames_HWC), rate)


def read_media(path: str | Path, *, max_frames: int = MAX_FRAMES) -> Clip:
    """A clip from either a picture (one frame, at 8 fps) or a video; what decides is the content."""
    path = existing(Path(path))
    if not path.is_dir() and is_picture(path):
        return Clip(read_image(path), DEFAULT_FPS)
    return read_video(path, max_frames=max_frames)


def fit(video_BCTHW: Tensor, height: int, width: int, how: Fit = "crop") -> tuple[Tensor, str | None]:
    """Bring a video to height×width with its aspect kept; the second value says what was done, or None.

    "crop" cuts the overhang evenly from both sides, "pad" adds black bars; the resize is antialiased
    bicubic. A video that has the size already is returned untouched.
    """
    old_height, old_width = video_BCTHW.shape[-2:]
    if (old_height, old_width) == (height, width):
        return video_BCTHW, None
    if how not in ("crop", "pad"):
        raise BadRequest(f"fit is {how!r}; expected crop or pad")
    before, after = f"{old_width}×{old_height}", f"{width}×{height}"
    if how == "crop":
        # Cutting first, in source pixels, means that no pixel is resized only to be thrown away.
        keep_h = min(old_height, max(1, round(old_width * height / width)))
        keep_w = min(old_width, max(1, round(old_height * width / height)))
        top, left = (old_height - keep_h) // 2, (old_width - keep_w) // 2
        cut = video_BCTHW[..., top : top + keep_h, left : left + keep_w]
        cropped = "" if (keep_h, keep_w) == (old_height, old_width) else f"cropped to {keep_w}×{keep_h} and "
        return _resize(cut, height, width), f"{before} was {cropped}resized to {after}"
    scale = min(height / old_height, width / old_width)
    new_h, new_w = max(1, min(height, round(old_height * scale))), max(1, min(width, round(old_width * scale)))
    top, left = (height - new_h) // 2, (width - new_w) // 2
    padded = video_BCTHW.new_full((*video_BCTHW.shape[:-2], height, width), -1.0)
    padded[..., top : top + new_h, left : left + new_w] = _resize(video_BCTHW, new_h, new_w)
    bars = "" if (new_h, new_w) == (height, width) else f" and padded with black to {after}"
    return padded, f"{before} was resized to {new_w}×{new_h}{bars}"


def _collect(
    name: str, timed: Iterator[Timed], part: Part, limits: Limits, rate: float | None
) -> tuple[list[np.ndarray], float]:
    """Decode and choose frames: uint8 H×W×3 each, and their rate."""
    if part.fps is not None and part.fps != rate:
        chosen: Iterable[Timed] = resampled(within(name, timed, part.start, limits), part.fps, part.frames)
        return _taken(name, (t.pixels for t in chosen), limits), part.fps
    times: list[Timed] = []

    def noted() -> Iterator[Callable[[], np.ndarray]]:
        for frame in within(name, timed, part.start, limits):
            times.append(replace(frame, pixels=_nothing))  # its pixels are kept; the decoder's frame may go
            yield frame.pixels
            if len(times) == part.frames:
                return

    frames_HWC = _taken(name, noted(), limits)
    if rate is not None:
        return frames_HWC, rate
    even, rate = even_rate(times)
    if even:
        return frames_HWC, rate
    places = (replace(frame, pixels=partial(np.array, i)) for i, frame in enumerate(times))
    index = [int(frame.pixels()) for frame in resampled(places, rate, part.frames)]
    limits.check(name, len(index), len(index) * frames_HWC[0][..., 0].size)
    return [frames_HWC[i] for i in index], rate


def _nothing() -> np.ndarray:
    return np.empty(0, np.uint8)


def _taken(name: str, pixels: Iterator[Callable[[], np.ndarray]], limits: Limits) -> list[np.ndarray]:
    """Decode frames one by one, counted against the limits, all of one size."""
    taken: list[np.ndarray] = []
    total = 0
    for get in pixels:
        frame = get()
        if taken and frame.shape != taken[0].shape:
            first, now = taken[0].shape, frame.shape
            raise BadRequest(
                f"{name} changes size at frame {len(taken)} from {first[1]}×{first[0]} to {now[1]}×{now[0]}; "
                "expected one size"
            )
        taken.append(frame)
        total += frame.shape[0] * frame.shape[1]
        limits.check(name, len(taken), total)
    return taken


def _resize(video_BCTHW: Tensor, height: int, width: int) -> Tensor:
    if video_BCTHW.shape[-2:] == (height, width):
        return video_BCTHW
    batch, channels, frames = video_BCTHW.shape[:3]
    resized = video_BCTHW.new_empty((batch, channels, frames, height, width))
    for b in range(batch):
        for t in range(frames):  # frame by frame: a long clip must not be held twice in float
            frame_1CHW = video_BCTHW[b, :, t][None].float()
            made = functional.interpolate(frame_1CHW, (height, width), mode="bicubic", antialias=True)
            resized[b, :, t] = made[0].clamp(-1, 1).to(video_BCTHW.dtype)
    return resized
