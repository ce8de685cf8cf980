"""Read videos and images of common formats as a `Clip` or tensor, within enforced limits.

Headers are not trusted: pixels, frames and seconds are counted while decoding. Only media containers are opened, never
playlists, which could refer to other files or addresses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kinema import bounds
from kinema.media.colour import to_float
from kinema.media.containers import readable_path, sniff
from kinema.media.fitting import fit, fit_frame, fit_note
from kinema.media.images import (
    animated_first,
    animated_frames,
    count_frames,
    folder_frames,
    image_format,
    is_animated_avif,
    is_image,
    read_image,
)
from kinema.media.streams import check_count, stream_frames, survey
from kinema.media.structure import animation, check_whole
from kinema.media.timing import (
    DEFAULT_FPS,
    MAX_FRAME_PIXELS,
    Budget,
    Limits,
    Part,
    TimedFrame,
    Timeline,
    even_rate,
    frames_from,
    part_of,
    resampled,
)
from kinema.schema import MAX_FRAMES, BadRequest, Clip, Fit
from kinema.trim import Trim, trim_of

__all__ = ["Probe", "facts", "fit", "fit_note", "probe", "read_image", "read_video", "timed_frames"]

MAX_VIDEO_PIXELS = 2**29
"""Largest frames × height × width of a clip in memory (1.5 GiB as bytes)."""
STREAMED = ("mov", "matroska", "avi")
"""Containers of coded video; a gif's frames are images."""
MAX_SECONDS = 3600.0
MAX_SHOWN = 2**21
"""Most frames counted when resampling an uneven rate to an even one; also the most a file may have."""


@dataclass(frozen=True)
class Probe:
    """What a read returns: number of frames, rate, and size in pixels.

    ``note`` tells the user how pixels were converted (HDR tone mapping), and follows the file name.
    ``begin`` and ``end`` are seconds after the file's first frame; an end of None is the end of the file.
    """

    frames: int
    fps: float
    height: int
    width: int
    note: str = ""
    begin: float = 0.0
    end: float | None = None
    part: Part = field(default=Part(), compare=False)


@dataclass(frozen=True)
class Keep:
    """Which decoded frames to keep: the ``last`` ones only, resized to ``size``."""

    size: tuple[int, int, Fit] | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        if self.last is not None and self.last < 1:
            raise BadRequest(f"last is {self.last}; expected at least 1")

    def limits(self, most: Limits) -> Limits:
        """Limits for decoding, given the limits ``most`` for what is kept."""
        return most if self.size is None else replace(most, pixels=bounds.max_pixels(MAX_FRAME_PIXELS))


def read_video(
    path: str | Path,
    *,
    start: str | float | None = None,
    end: str | float | None = None,
    frames: int | None = None,
    fps: float | None = None,
    size: tuple[int, int, Fit] | None = None,
    last: int | None = None,
    max_frames: int = MAX_FRAMES,
    max_pixels: int | None = None,
) -> Clip:
    """Read mp4, mov, mkv, webm, avi, gif, webp or a folder of numbered images as a clip of batch 1.

    ``start`` and ``end`` trim it (see `kinema.trim`), in seconds or frames, to ``[start:end]`` of the frames of the
    whole file at its own rate. Decoding begins at the key frame before the start if the container can seek, and stops
    at the end. ``frames`` limits the number of frames from there; later ones are not decoded. ``fps`` resamples to that
    rate by nearest time stamp; by default the file's rate is kept. An uneven rate is resampled to an even one, so that
    motion keeps its speed. A folder without a recipe is read at ``fps``, or 8. Of the result, ``last`` keeps only the
    last frames, and ``size`` (height, width, "crop" or "pad") resizes each as `fit` does, rounded to whole levels, so
    that memory use depends only on what is kept.

    Rotation, flips and non-square pixels are honoured; alpha is composited over black. The video stream with the
    largest frames is read. Returns video 1×3×T×H×W in [-1, 1] without a recipe (use `read_recipe`). Raises `BadRequest`
    for a file that is missing, empty, truncated, not a video, longer than an hour, or over a limit: ``max_pixels``
    bounds T·H·W of what is kept (default `MAX_VIDEO_PIXELS`, or the user's higher limit); decoding is bounded by the
    file's size, checked before it begins.
    """
    path, keep = readable_path(Path(path)), Keep(size, last)
    most = bounds.max_pixels(MAX_VIDEO_PIXELS) if max_pixels is None else max_pixels
    limits, part, rate = Limits(max_frames, most, MAX_SECONDS), Part(frames, fps), None
    if trim_of(start, end):
        found = probe(path, fps, start, end)
        part = found.part.at_most(frames)
        rate = found.fps if part.origin is None else None

    def start_decoding() -> tuple[float | None, Iterator[TimedFrame]]:
        own, timed = timed_frames(path, keep.limits(limits), part)
        return own if rate is None else rate, timed

    frames_HWC, rate = _collect(path.name, start_decoding, part, limits, keep)
    return Clip(to_float(frames_HWC), rate)


def probe(
    path: str | Path,
    fps: float | None = None,
    start: str | float | None = None,
    end: str | float | None = None,
) -> Probe:
    """Predict ``read_video(path, fps=fps, start=start, end=end)`` from time stamps, decoding one frame.

    Trimmed frames are not decoded unless `read_video` would decode them.

    Clips longer than one read allows are counted too. Raises `BadRequest` as `read_video` does.
    """
    path, trim = readable_path(Path(path)), trim_of(start, end)
    if path.is_dir():  # its files may change without changing the folder's time
        return _probed.__wrapped__(path, fps, trim, ())
    stat = path.stat()
    return _probed(path, fps, trim, (stat.st_ino, stat.st_mtime_ns, stat.st_size, bounds.max_pixels(0)))


@lru_cache(maxsize=32)
def _probed(path: Path, fps: float | None, trim: Trim, state: tuple[int, ...]) -> Probe:
    """Cached, since every task step that reads a clip probes it first."""
    if trim:
        return _trimmed(path, fps, trim, state)
    own, times, shape = _decoded(path, Part(fps=fps), decode_limits())
    frames, rate = _counted(path.name, times, own, fps)
    return Probe(frames, rate, shape[0], shape[1], _note(times), part=Part(fps=fps))


def _decoded(
    path: Path, part: Part, limits: Limits, most: int | None = None
) -> tuple[float | None, list[TimedFrame], tuple[int, ...]]:
    """Return the known rate of a clip, at most ``most`` frames of a part without pixels, and the frame shape."""
    own, timed = timed_frames(path, limits, part)
    shape: tuple[int, ...] = ()
    times: list[TimedFrame] = []
    for frame in islice(frames_from(path.name, timed, part.begin, limits), most):
        shape = shape or frame.pixels().shape
        times.append(replace(frame, pixels=_nothing))
    return own, times, shape


def _note(times: list[TimedFrame]) -> str:
    return next((frame.note for frame in times if frame.note), "")


def _trimmed(path: Path, fps: float | None, trim: Trim, state: tuple[int, ...]) -> Probe:
    Part(fps=fps)  # validates fps before anything is opened
    locate = _located.__wrapped__ if path.is_dir() else _located
    whole, taken, shape, note = locate(path, fps if path.is_dir() else None, trim, state)
    part = part_of(taken, whole, fps)
    frames, rate = len(taken), part.fps or whole.rate
    if part.origin is not None:
        needed, most = iter(whole.needed(part)), min(part.frames or MAX_SHOWN, MAX_SHOWN)
        frames = sum(1 for _ in resampled(needed, rate, most, part.origin, part.skip))
    end = None if trim.end is None else taken.stop / whole.rate
    return Probe(frames, rate, shape[0], shape[1], note, taken.start / whole.rate, end, part)


@lru_cache(maxsize=32)
def _located(
    path: Path, fps: float | None, trim: Trim, _state: tuple[int, ...]
) -> tuple[Timeline, range, tuple[int, ...], str]:
    """Return a clip's timeline, the frame range of the trim, a frame's shape and a note; ``fps`` is for folders.

    The range is located by packets, then checked against the decoded frames. If they differ (a frame in two packets, or
    frames that the decoder skips), the whole file is decoded.
    """
    for whole in _timelines(path, fps):
        taken = trim.frames(path.name, whole.frames, whole.rate)
        part = part_of(taken, whole, fps)
        needed = whole.needed(part)
        _, times, shape = _decoded(path, part, decode_limits(), len(needed))
        if [frame.time for frame in times] == [frame.time for frame in needed]:
            break
    return whole, taken, shape, _note(times)


def _timelines(path: Path, fps: float | None) -> Iterator[Timeline]:
    """Yield timelines of a whole file: first by its packets, then by its decoded frames."""
    kind, limits = None if path.is_dir() else sniff(path), replace(decode_limits(), seconds=float("inf"))
    own, timed = timed_frames(path, limits, Part(fps=fps))
    keys: list[tuple[float, int]] = []
    if kind in (*STREAMED, "gif"):
        found = survey(path, kind, limits)
        keys = found.keys if kind in STREAMED else []
        timed = iter(found.timed)
        first = _decoded(path, Part(frames=1), limits, 1)[1]
        if [frame.time for frame in first] == [frame.time for frame in found.timed[:1]]:
            yield _timeline(path.name, list(frames_from(path.name, timed, None, limits)), own, keys)
        timed = stream_frames(path, kind, limits, Part())
    times = [replace(frame, pixels=_nothing) for frame in frames_from(path.name, timed, None, limits)]
    yield _timeline(path.name, times, own, [])


def _timeline(name: str, times: list[TimedFrame], own: float | None, keys: list[tuple[float, int]]) -> Timeline:
    frames, rate = _counted(name, times, own, None)
    return Timeline(times, frames, rate, own is not None or even_rate(times)[0], own, keys)


def decode_limits() -> Limits:
    """Decoding limits when no frames are kept."""
    return Limits(MAX_FRAMES, bounds.max_pixels(MAX_FRAME_PIXELS), MAX_SECONDS)


def _counted(name: str, times: list[TimedFrame], own: float | None, fps: float | None) -> tuple[int, float]:
    """Number of frames and rate of a read. Raises `BadRequest` for more than `MAX_SHOWN` frames when resampled."""
    even, rate = even_rate(times) if own is None else (True, own)
    if fps in (None, own) and even:
        return len(times), rate
    rate = rate if fps is None else fps
    frames = sum(1 for _ in resampled(iter(times), rate, MAX_SHOWN + 1))
    if frames > MAX_SHOWN:
        raise BadRequest(f"{name} has more than {MAX_SHOWN:,} frames at {rate:g} fps; cut it to the part you need")
    return frames, rate


def facts(path: str | Path) -> dict[str, Any]:
    """Describe an image, clip or folder of frames: codec, frames, fps, width, height and sound.

    Values are those of a read; where the file stores others (frames hidden by an edit list, rotation, an uneven rate),
    they are in ``stored``. Packets are counted and one frame is decoded. A whole clip that `read_video` rejects (too
    long, too large) is described as stored, with the error message in ``refused``. Raises `BadRequest` for a file that
    is damaged, truncated, or not a clip or image.
    """
    path = readable_path(Path(path))
    if path.is_dir():
        found = probe(path)
        size = {"width": found.width, "height": found.height}
        return {"codec": "frames in a folder", "frames": found.frames, "fps": found.fps, **size}
    if is_image(path):
        height, width = read_image(path).shape[-2:]
        return {"codec": image_format(path), "frames": 1, "width": width, "height": height}
    kind = sniff(path)
    if kind is None:
        height, width = read_image(path).shape[-2:]
        entry = {"codec": image_format(path), "frames": count_frames(path), "width": width, "height": height}
        return entry | {"refused": _refusal(lambda: timed_frames(path, decode_limits(), Part()))}
    return _facts_of_animation(path, kind) if kind in ("webp", "apng") else _facts(path, kind)


def _facts_of_animation(path: Path, kind: str) -> dict[str, Any]:
    found = animation(path, kind)
    decode_limits().check_frame(path.name, found.height, found.width)
    height, width = animated_first(path, decode_limits()).shape[:2]
    starts = np.cumsum([0.0, *found.holds]).tolist()
    timed = [TimedFrame(at, hold, _nothing, clock=1e-3) for at, hold in zip(starts, found.holds, strict=False)]
    return {"codec": kind, **_timing(path, kind, timed, (len(timed), height, width)), "width": width, "height": height}


def _facts(path: Path, kind: str) -> dict[str, Any]:
    check_stream(path, kind)
    found = survey(path, kind, decode_limits())
    first = next(stream_frames(path, kind, decode_limits(), Part(frames=1)), None)
    if first is None or not found.timed:
        raise BadRequest(f"{path.name} contains no video frames")
    height, width = first.pixels().shape[:2]
    timing = _timing(path, kind, found.timed, (found.packets, found.height, found.width))
    refused = {"refused": timing.pop("refused")} if "refused" in timing else {}
    read_values = {**timing, "width": width, "height": height}
    kept = {"frames": found.packets, "fps": found.rate, "width": found.width, "height": found.height}
    stored = {name: value for name, value in kept.items() if abs(value - read_values[name]) > 1e-3 * value}
    return {
        "codec": found.codec,
        **read_values,
        **({"stored": stored} if stored else {}),
        **({"sound": "; ".join(found.sound)} if found.sound else {}),
        **first.nature,
        **refused,
    }


def _timing(path: Path, kind: str, timed: list[TimedFrame], stored: tuple[int, int, int]) -> dict[str, Any]:
    """Frames and rate of a read, or the stored ones and the message with which a read rejects them."""
    counted: list[tuple[int, float]] = []

    def read() -> None:
        check_count(path, stored[0], decode_limits())
        Budget.of(path.name, path.stat().st_size, "video" if kind in STREAMED else "images").check(*stored)
        for _ in frames_from(path.name, iter(timed), None, decode_limits()):
            pass
        counted.append(_counted(path.name, timed, None, None))

    refused = _refusal(read)
    frames, fps = counted[0] if counted else (len(timed), even_rate(timed)[1])
    return {"frames": frames, "fps": fps, **({"refused": refused} if refused else {})}


def _refusal(read: Callable[[], object]) -> str:
    """Return the message of the `BadRequest` that ``read`` raises; empty if none."""
    try:
        read()
    except BadRequest as error:
        return str(error)
    return ""


def check_stream(path: Path, kind: str) -> None:
    """Reject a truncated file of stream ``kind``, or a gif with too large a canvas."""
    if kind != "gif":
        check_whole(path, kind)
        return
    found = animation(path, kind)
    decode_limits().check_frame(path.name, found.height, found.width)


def timed_frames(path: Path, limits: Limits, part: Part) -> tuple[float | None, Iterator[TimedFrame]]:
    """Return (rate, if known before decoding; frames) of an existing video file or folder."""
    if path.is_dir():
        return folder_frames(path, limits, part.fps)
    kind = sniff(path)
    if kind is None and is_animated_avif(path):
        raise BadRequest(f"{path.name} is an animated AVIF, which is not supported; convert it to mp4, webp or gif")
    if kind is None:
        raise BadRequest(f"{path.name} is not a supported video; expected mp4, mov, mkv, webm, avi, gif, webp")
    if kind in ("webp", "apng"):
        return None, animated_frames(path, kind, limits)
    check_stream(path, kind)
    return None, stream_frames(path, kind, limits, part)


def _collect(
    name: str,
    start_decoding: Callable[[], tuple[float | None, Iterator[TimedFrame]]],
    part: Part,
    limits: Limits,
    keep: Keep,
) -> tuple[list[np.ndarray], float]:
    """Decode and select frames: uint8 H×W×3 each, and their rate."""
    rate, timed = start_decoding()
    if part.fps is not None and part.fps != rate:
        return _at_rate(name, timed, part, limits, keep), part.fps
    times: list[TimedFrame] = []

    def noted() -> Iterator[Callable[[], np.ndarray]]:
        for frame in frames_from(name, timed, part.begin, limits):
            times.append(replace(frame, pixels=_nothing))  # lets the decoder free the frame
            yield frame.pixels
            if len(times) == part.frames:
                return

    frames_HWC = _taken(name, noted(), limits, keep)
    if rate is not None:
        return frames_HWC, rate
    even, rate = even_rate(times)
    if even:
        return frames_HWC, rate
    if keep.last is not None:
        # Which frames are the last ones at the even rate was unknown while the others were discarded.
        return _at_rate(name, start_decoding()[1], replace(part, fps=rate), limits, keep), rate
    most = limits.frames + 1  # the extra one is rejected below
    places = (replace(frame, pixels=partial(np.array, i)) for i, frame in enumerate(times))
    index = [int(frame.pixels()) for frame in resampled(places, rate, min(part.frames or most, most))]
    limits.check(name, len(index), len(index) * frames_HWC[0][..., 0].size)
    return [frames_HWC[i] for i in index], rate


def _at_rate(name: str, timed: Iterator[TimedFrame], part: Part, limits: Limits, keep: Keep) -> list[np.ndarray]:
    frames = frames_from(name, timed, part.begin, limits)
    chosen = resampled(frames, part.fps or DEFAULT_FPS, part.frames, part.origin, part.skip)
    return _taken(name, (t.pixels for t in chosen), limits, keep)


def _nothing() -> np.ndarray:
    return np.empty(0, np.uint8)


def _taken(name: str, pixels: Iterator[Callable[[], np.ndarray]], limits: Limits, keep: Keep) -> list[np.ndarray]:
    """Decode frames one by one, checking limits and that all have one size."""
    taken: deque[np.ndarray] = deque(maxlen=keep.last)
    first: tuple[int, ...] = ()
    before: Callable[[], np.ndarray] | None = None
    for count, get in enumerate(pixels):
        if get is before:  # a rate above the file's own repeats frames
            taken.append(taken[-1])
        else:
            frame_HWC = get()
            first, now = first or frame_HWC.shape, frame_HWC.shape
            if now != first:
                raise BadRequest(
                    f"{name} changes size at frame {count} from {first[1]}×{first[0]} to {now[1]}×{now[0]}; "
                    "expected one size"
                )
            taken.append(fit_frame(frame_HWC, *keep.size) if keep.size else frame_HWC)
        before = get
        limits.check(name, len(taken), len(taken) * taken[0].shape[0] * taken[0].shape[1])
    return list(taken)
