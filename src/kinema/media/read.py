"""Videos and pictures in: any common file to a `Clip` or a tensor, within limits that are counted.

A file says what it likes about its size and length, so nothing here trusts a header: pixels, frames
and seconds are counted as they are decoded, and only formats that carry pictures are opened (a
playlist, which could name other files or addresses, is none of them).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from kinema import bounds
from kinema.media.colour import to_float
from kinema.media.containers import existing, sniff
from kinema.media.fitting import fit, fit_frame, fit_note
from kinema.media.pictures import (
    animated_first,
    animated_frames,
    count_frames,
    folder_frames,
    is_animated_avif,
    is_picture,
    read_image,
    written_as,
)
from kinema.media.streams import check_count, stream_frames, survey
from kinema.media.structure import animation, check_whole, cut_later
from kinema.media.timing import (
    DEFAULT_FPS,
    MAX_FRAME_PIXELS,
    Budget,
    Limits,
    Part,
    Timed,
    even_rate,
    resampled,
    within,
)
from kinema.schema import MAX_FRAMES, BadRequest, Clip, Fit

__all__ = ["Probe", "facts", "fit", "fit_note", "probe", "read_image", "read_video", "timed_frames"]

MAX_VIDEO_PIXELS = 2**29
"""Frames × height × width that a clip may bring into memory (1.5 GiB as bytes)."""
STREAMED = ("mov", "matroska", "avi")
"""Kinds whose frames are coded as video; a gif's are pictures."""
MAX_SECONDS = 3600.0
MAX_SHOWN = 2**21
"""Frames that are counted where an uneven rate is brought to an even one: as many as a file may have."""


@dataclass(frozen=True)
class Probe:
    """What a read would give: how many frames, at which rate, and their size in pixels.

    ``note`` is what a user is told of how its pixels were made, after the file's name (HDR that was tone-mapped).
    """

    frames: int
    fps: float
    height: int
    width: int
    note: str = ""


@dataclass(frozen=True)
class Keep:
    """What is kept of the frames that come by: brought to ``size``, and the ``last`` ones only."""

    size: tuple[int, int, Fit] | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        if self.last is not None and self.last < 1:
            raise BadRequest(f"last is {self.last}; expected at least 1")

    def limits(self, most: Limits) -> Limits:
        """What may be decoded, where ``most`` may be kept."""
        return most if self.size is None else replace(most, pixels=bounds.pixels(MAX_FRAME_PIXELS))


def read_video(
    path: str | Path,
    *,
    start: float = 0.0,
    frames: int | None = None,
    fps: float | None = None,
    size: tuple[int, int, Fit] | None = None,
    last: int | None = None,
    max_frames: int = MAX_FRAMES,
    max_pixels: int | None = None,
) -> Clip:
    """Read mp4, mov, mkv, webm, avi, gif, webp or a folder of numbered pictures as a clip of batch 1.

    ``start`` is in seconds; ``frames`` takes at most that many from there (a shorter clip gives what
    it has), and nothing after them is decoded; ``fps`` resamples to that rate by nearest time stamp,
    else the file's own rate is kept. A file of uneven rate is brought to an even one the same way, so
    that motion keeps its speed. A folder without a recipe has no rate of its own: it is taken to be at
    ``fps``, or 8. Of all that, ``last`` keeps the last frames only, and ``size`` (height, width, "crop"
    or "pad") brings each to that size as `fit` does, in whole levels: a long clip costs what is kept.

    Rotation and flips of the display matrix and pixels that are not square are honoured; alpha is
    over black. The best video stream is read. Returns video 1×3×T×H×W in [-1, 1] and no recipe
    (`read_recipe` finds that). Raises `BadRequest` for a file that is missing, empty, cut short, no
    video, longer than an hour, or beyond a limit: ``max_pixels`` counts T·H·W of what is kept (left out,
    it is `MAX_VIDEO_PIXELS`, or what the user raised it to), and what is decoded is bounded by the
    file's size, before decoding begins.
    """
    path, keep = existing(Path(path)), Keep(size, last)
    most = bounds.pixels(MAX_VIDEO_PIXELS) if max_pixels is None else max_pixels
    limits, part = Limits(max_frames, most, MAX_SECONDS), Part(start, frames, fps)

    def opened() -> tuple[float | None, Iterator[Timed]]:
        return timed_frames(path, keep.limits(limits), part)

    frames_HWC, rate = _collect(path.name, opened, part, limits, keep)
    return Clip(to_float(frames_HWC), rate)


def read_first(path: str | Path, size: tuple[int, int, Fit]) -> tuple[Tensor, list[str]]:
    """The picture, or the first frame of the clip or folder, at ``path``, brought to ``size`` as `read_video` does.

    What follows the first frame of a clip is neither counted nor decoded: it may be too long, too large or cut short.
    Returns 1×3×1×H×W in [-1, 1], and what is to be told of it, each after the file's name. Raises `BadRequest`.
    """
    path = existing(Path(path))
    kind = None if path.is_dir() else sniff(path)
    if not path.is_dir() and (kind is None or _is_still(path, kind)):
        video, said = fit(read_image(path), *size)
        return video, [said] if said else []
    frame_HWC, notes = _first(path, kind)
    said = fit_note(size[0], size[1], frame_HWC.shape[0], frame_HWC.shape[1], size[2])
    return to_float(fit_frame(frame_HWC, *size)[None]), [*notes, *([said] if said else [])]


def _is_still(path: Path, kind: str) -> bool:
    try:
        return is_picture(path)
    except BadRequest:
        if kind in ("gif", "apng") and cut_later(path, kind):
            return False
        raise


def _first(path: Path, kind: str | None) -> tuple[np.ndarray, list[str]]:
    """The first frame of a clip, uint8 H×W×3, and notes."""
    limits, part = _unkept(), Part(frames=1)
    if kind is None:
        return next(timed_frames(path, limits, part)[1]).pixels(), []
    cut = cut_later(path, kind) if kind in ("gif", "apng") else ""
    if kind in ("webp", "apng"):
        frame_HWC, note = animated_first(path, limits), ""
    else:
        try:
            check_all_there(path, kind)
        except BadRequest as error:
            cut = cut or str(error)
            if kind != "gif" and not _begins(path, kind):
                raise
        frame = next(stream_frames(path, kind, limits, part), None)
        if frame is None:
            raise BadRequest(f"{path.name} holds no video frames")
        frame_HWC, note = frame.pixels(), frame.note
    cut = cut.removeprefix(f"{path.name} ").removesuffix("; get the whole file")
    return frame_HWC, [*([note] if note else []), *([f"{cut}; its first frame is used"] if cut else [])]


def _begins(path: Path, kind: str) -> bool:
    """Whether the first frame of a video that is cut short is whole: another one follows it."""
    try:
        return len(list(islice(stream_frames(path, kind, _unkept(), Part(frames=2)), 2))) > 1
    except BadRequest:
        return False


def probe(path: str | Path, fps: float | None = None) -> Probe:
    """What ``read_video(path, fps=fps)`` would give, by its time stamps: the pixels of one frame are looked at.

    A clip of more frames than one read may keep is counted too. Raises `BadRequest` as `read_video` does.
    """
    path = existing(Path(path))
    if path.is_dir():  # its pictures may change while it does not
        return _probed.__wrapped__(path, fps, ())
    told = path.stat()
    return _probed(path, fps, (told.st_ino, told.st_mtime_ns, told.st_size, bounds.pixels(0)))


@lru_cache(maxsize=32)
def _probed(path: Path, fps: float | None, _state: tuple[int, ...]) -> Probe:
    """A request is probed by each step that reads its clip; the clip is decoded for the first of them."""
    part, limits = Part(fps=fps), _unkept()
    own, timed = timed_frames(path, limits, part)
    shape: tuple[int, ...] = ()
    times: list[Timed] = []
    for frame in within(path.name, timed, 0.0, limits):
        shape = shape or frame.pixels().shape
        times.append(replace(frame, pixels=_nothing))
    note = next((frame.note for frame in times if frame.note), "")
    frames, rate = _counted(path.name, times, own, fps)
    return Probe(frames, rate, shape[0], shape[1], note)


def _unkept() -> Limits:
    """What may be decoded where nothing is kept."""
    return Limits(MAX_FRAMES, bounds.pixels(MAX_FRAME_PIXELS), MAX_SECONDS)


def _counted(name: str, times: list[Timed], own: float | None, fps: float | None) -> tuple[int, float]:
    """How many frames a read gives, and their rate. Raises `BadRequest` for more than `MAX_SHOWN` at an even rate."""
    even, rate = even_rate(times) if own is None else (True, own)
    if fps in (None, own) and even:
        return len(times), rate
    rate = rate if fps is None else fps
    frames = sum(1 for _ in resampled(iter(times), rate, MAX_SHOWN + 1))
    if frames > MAX_SHOWN:
        raise BadRequest(f"{name} is more than {MAX_SHOWN:,} frames at its rate of {rate:g} fps; cut it to a part")
    return frames, rate


def facts(path: str | Path) -> dict[str, Any]:
    """What a picture, clip or folder of frames is, for people: codec, frames, fps, width, height and sound.

    The values are those that a read gives; where a video's file stores others (frames that an edit list hides, a
    picture on its side, an uneven rate) they stand in ``stored``. Packets are counted, and one frame is decoded. A
    clip that is whole but refused by `read_video` (too long, too large) is described as it is stored, and ``refused``
    is the sentence. Raises `BadRequest` for what is damaged, cut short or no clip or picture.
    """
    path = existing(Path(path))
    if path.is_dir():
        found = probe(path)
        size = {"width": found.width, "height": found.height}
        return {"codec": "frames in a folder", "frames": found.frames, "fps": found.fps, **size}
    if is_picture(path):
        height, width = read_image(path).shape[-2:]
        return {"codec": written_as(path), "frames": 1, "width": width, "height": height}
    kind = sniff(path)
    if kind is None:
        height, width = read_image(path).shape[-2:]
        told = {"codec": written_as(path), "frames": count_frames(path), "width": width, "height": height}
        return told | {"refused": _refusal(lambda: timed_frames(path, _unkept(), Part()))}
    return _facts_of_animation(path, kind) if kind in ("webp", "apng") else _facts(path, kind)


def _facts_of_animation(path: Path, kind: str) -> dict[str, Any]:
    found = animation(path, kind)
    _unkept().check_frame(path.name, found.height, found.width)
    height, width = animated_first(path, _unkept()).shape[:2]
    starts = np.cumsum([0.0, *found.holds]).tolist()
    timed = [Timed(at, hold, _nothing, clock=1e-3) for at, hold in zip(starts, found.holds, strict=False)]
    return {"codec": kind, **_timing(path, kind, timed, (len(timed), height, width)), "width": width, "height": height}


def _facts(path: Path, kind: str) -> dict[str, Any]:
    check_all_there(path, kind)
    found = survey(path, kind, _unkept())
    first = next(stream_frames(path, kind, _unkept(), Part(frames=1)), None)
    if first is None or not found.timed:
        raise BadRequest(f"{path.name} holds no video frames")
    height, width = first.pixels().shape[:2]
    timing = _timing(path, kind, found.timed, (found.packets, found.height, found.width))
    refused = {"refused": timing.pop("refused")} if "refused" in timing else {}
    told = {**timing, "width": width, "height": height}
    kept = {"frames": found.packets, "fps": found.rate, "width": found.width, "height": found.height}
    stored = {name: value for name, value in kept.items() if abs(value - told[name]) > 1e-3 * value}
    return {
        "codec": found.codec,
        **told,
        **({"stored": stored} if stored else {}),
        **({"sound": "; ".join(found.sound)} if found.sound else {}),
        **first.nature,
        **refused,
    }


def _timing(path: Path, kind: str, timed: list[Timed], stored: tuple[int, int, int]) -> dict[str, Any]:
    """The frames and rate that a read gives, or what is stored and the sentence by which a read refuses it."""
    counted: list[tuple[int, float]] = []

    def read() -> None:
        check_count(path, stored[0], _unkept())
        Budget.of(path.name, path.stat().st_size, "video" if kind in STREAMED else "pictures").check(*stored)
        for _ in within(path.name, iter(timed), 0.0, _unkept()):
            pass
        counted.append(_counted(path.name, timed, None, None))

    refused = _refusal(read)
    frames, fps = counted[0] if counted else (len(timed), even_rate(timed)[1])
    return {"frames": frames, "fps": fps, **({"refused": refused} if refused else {})}


def _refusal(read: Callable[[], object]) -> str:
    """The sentence by which something is refused; empty where it is not."""
    try:
        read()
    except BadRequest as error:
        return str(error)
    return ""


def check_all_there(path: Path, kind: str) -> None:
    """Refuse a file of a stream's ``kind`` that is cut short, or a gif of too large a canvas."""
    if kind != "gif":
        check_whole(path, kind)
        return
    found = animation(path, kind)
    _unkept().check_frame(path.name, found.height, found.width)


def timed_frames(path: Path, limits: Limits, part: Part) -> tuple[float | None, Iterator[Timed]]:
    """(the rate where it is known before decoding, the frames) of a video file or folder that exists."""
    if path.is_dir():
        return folder_frames(path, limits, part.fps)
    kind = sniff(path)
    if kind is None and is_animated_avif(path):
        raise BadRequest(
            f"{path.name} is an animated AVIF, which is not supported as a clip; convert it to mp4, webp or gif"
        )
    if kind is None:
        raise BadRequest(f"{path.name} is not a video that can be read; expected mp4, mov, mkv, webm, avi, gif, webp")
    if kind in ("webp", "apng"):
        return None, animated_frames(path, kind, limits)
    check_all_there(path, kind)
    return None, stream_frames(path, kind, limits, part)


def _collect(
    name: str,
    opened: Callable[[], tuple[float | None, Iterator[Timed]]],
    part: Part,
    limits: Limits,
    keep: Keep,
) -> tuple[list[np.ndarray], float]:
    """Decode and choose frames: uint8 H×W×3 each, and their rate."""
    rate, timed = opened()
    if part.fps is not None and part.fps != rate:
        return _at_rate(name, timed, part, limits, keep), part.fps
    times: list[Timed] = []

    def noted() -> Iterator[Callable[[], np.ndarray]]:
        for frame in within(name, timed, part.start, limits):
            times.append(replace(frame, pixels=_nothing))  # its pixels are kept; the decoder's frame may go
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
        # Which frames are the last ones at an even rate was not known while the others were let go.
        return _at_rate(name, opened()[1], replace(part, fps=rate), limits, keep), rate
    most = limits.frames + 1  # one more is refused below
    places = (replace(frame, pixels=partial(np.array, i)) for i, frame in enumerate(times))
    index = [int(frame.pixels()) for frame in resampled(places, rate, min(part.frames or most, most))]
    limits.check(name, len(index), len(index) * frames_HWC[0][..., 0].size)
    return [frames_HWC[i] for i in index], rate


def _at_rate(name: str, timed: Iterator[Timed], part: Part, limits: Limits, keep: Keep) -> list[np.ndarray]:
    chosen = resampled(within(name, timed, part.start, limits), part.fps or DEFAULT_FPS, part.frames)
    return _taken(name, (t.pixels for t in chosen), limits, keep)


def _nothing() -> np.ndarray:
    return np.empty(0, np.uint8)


def _taken(name: str, pixels: Iterator[Callable[[], np.ndarray]], limits: Limits, keep: Keep) -> list[np.ndarray]:
    """Decode frames one by one, counted against the limits, all of one size."""
    taken: deque[np.ndarray] = deque(maxlen=keep.last)
    first: tuple[int, ...] = ()
    before: Callable[[], np.ndarray] | None = None
    for count, get in enumerate(pixels):
        if get is before:  # a rate above the file's own shows a frame more than once
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
