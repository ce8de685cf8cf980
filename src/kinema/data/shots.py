"""Shot detection: clips are cut at hard cuts into one file per shot, described in ``metadata.jsonl``.

A cut is a frame that differs from the previous one by much more than its neighbours do. With d the mean absolute
difference (0..1) of frames resized to 32×32, frame t starts a shot if ``d_t >= LEAST`` and ``d_t`` is at least
``RATIO`` times the mean of d over the five frames on either side (the idea of PySceneDetect's adaptive detector).
Fades and dissolves are not detected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinema.bounds import is_regular, printable
from kinema.data import shot_folder
from kinema.data.frames import read_frames
from kinema.data.listing import Entry, scan
from kinema.events import Note, OnEvent, ignore
from kinema.media.fitting import scaled
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip
from kinema.values import counted

LEAST = 0.06
RATIO = 3.0
AROUND = 5
SMALL = 32
LIST = shot_folder.LIST


@dataclass(frozen=True)
class Shot:
    """Frames ``start`` to ``end`` (exclusive) of a clip at ``fps``."""

    start: int
    end: int
    fps: float

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / self.fps


def cut(
    clips: Path,
    out: Path,
    *,
    least_seconds: float = 1.0,
    most_seconds: float = 5.0,
    side: int = 576,
    follow_links: bool = False,
    on_event: OnEvent = ignore,
) -> list[Path]:
    """Write every shot of a clip, or of a folder of clips, as an mp4 in ``out``; returns the files.

    Shots shorter than ``least_seconds`` are dropped, and longer ones than ``most_seconds`` are split into equal parts;
    frames whose shorter side exceeds ``side`` are downscaled to it. Shots inherit the captions of their clip.
    ``follow_links`` as in `kinema.data.listing.scan`.

    No file in ``out`` is overwritten. The same call resumes interrupted work; the list gets its final name when all
    shots are written (`kinema.data.shot_folder`). Raises BadRequest if there is no clip, if ``out`` holds a list or a
    file whose name is needed, or while another process writes shots into it.
    """
    if not 0 < least_seconds <= most_seconds:
        raise BadRequest(
            f"shots are to last {least_seconds:g} to {most_seconds:g} s; expected a --least-seconds above 0, and "
            "--most-seconds not below it"
        )
    entries = _entries(clips, follow_links, on_event)
    settings = {"least_seconds": least_seconds, "most_seconds": most_seconds, "side": side}
    with shot_folder.open_folder(out, entries, settings) as work:
        try:
            for entry in entries:
                if entry.name not in work.done:
                    _cut_one(entry, work, settings, on_event)
        except (KeyboardInterrupt, SystemExit):
            if work.rows:
                on_event(Note(f"{counted(len(work.rows), 'shot')} so far in {out}; run the same command to resume"))
            raise
        if not work.rows:
            raise BadRequest(f"no shot lasts {least_seconds:g} s or longer in {printable(str(clips), 200)}")
        work.list()
    return [out / name for name in work.rows]


def _cut_one(entry: Entry, work: shot_folder.Work, settings: Mapping[str, Any], on_event: OnEvent) -> None:
    """Write the missing shots of one clip."""
    for number, (shot, clip) in enumerate(_readable(entry, **settings, on_event=on_event)):
        name = f"{work.stems[entry.name]}-{number:03d}.mp4"
        if name not in work.rows:
            save_clip(clip, work.out / name, generated=False, exclusive=True)
            row = {"file_name": name, "text": list(entry.captions), "source": entry.name}
            work.add({**row, "start": shot.start / shot.fps, "seconds": shot.seconds, "fps": shot.fps})
    work.finish(entry.name)


def _entries(clips: Path, follow_links: bool, on_event: OnEvent) -> tuple[Entry, ...]:
    if not clips.is_dir():
        if not is_regular(clips):
            raise BadRequest(
                f"{printable(str(clips), 200)} is not a regular file; expected a clip, or a folder of clips"
            )
        return (Entry(clips, clips.name),)
    found = scan(clips, follow_links=follow_links)
    for message in found.skipped:
        on_event(Note(message))
    return found.entries


def _readable(
    entry: Entry, least_seconds: float, most_seconds: float, side: int, on_event: OnEvent
) -> Iterator[tuple[Shot, Clip]]:
    """Yield the shots of a clip until it cannot be read further; errors of the caller pass through."""
    count = 0
    try:
        for found in _clips(entry.path, find(entry.path, least_seconds, most_seconds), side):
            yield found
            count += 1
    except BadRequest as error:
        how = f"read only part of {entry.name} ({counted(count, 'shot')})" if count else f"skipped {entry.name}"
        on_event(Note(f"{how}: {error}"))
    else:
        on_event(Note(f"{entry.name}: {counted(count, 'shot')}"))


def find(path: Path, least_seconds: float, most_seconds: float) -> list[Shot]:
    """The shots of a clip, split at ``most_seconds`` and without those below ``least_seconds``."""
    rates: list[float] = []
    small = [_small(frame) for frame in read_frames(path, None, rates)]
    fps, starts = rates[0], [0, *cuts(np.stack(small)), len(small)]
    found = []
    for start, end in pairwise(starts):
        parts = max(1, int(np.ceil((end - start) / fps / most_seconds)))
        bounds = np.linspace(start, end, parts + 1).round().astype(int).tolist()
        found += [Shot(a, b, fps) for a, b in pairwise(bounds)]
    return [shot for shot in found if shot.seconds >= least_seconds]


def cuts(small_THWC: np.ndarray) -> list[int]:
    """The indices of frames that start a new shot, from downscaled frames in 0..1."""
    change = np.abs(np.diff(small_THWC, axis=0)).mean(axis=(1, 2, 3))
    found: list[int] = []
    for t, value in enumerate(change):
        around = np.concatenate([change[max(0, t - AROUND) : t], change[t + 1 : t + 1 + AROUND]])
        if value >= LEAST and len(around) and value >= RATIO * around.mean():
            found.append(t + 1)
    return found


def _small(frame_HWC: np.ndarray) -> np.ndarray:
    frame_CHW = torch.from_numpy(np.ascontiguousarray(frame_HWC)).permute(2, 0, 1)
    return scaled(frame_CHW, (SMALL, SMALL)).permute(1, 2, 0).numpy().astype(np.float32) / 255


def _clips(path: Path, shots: Sequence[Shot], side: int) -> Iterator[tuple[Shot, Clip]]:
    """Yield the shots of a clip, which must be in order, in one pass over its frames."""
    frames, at = read_frames(path, None), 0
    for shot in shots:
        part = islice(frames, shot.start - at, shot.end - at)
        at = shot.end
        video_CTHW = torch.stack(list(_resized(part, side)), dim=1).float().div_(127.5).sub_(1)
        yield shot, Clip(video_CTHW[None], shot.fps, {"source": path.name, "start": shot.start / shot.fps})


def _resized(frames: Iterator[np.ndarray], side: int) -> Iterator[torch.Tensor]:
    """Frames 3×H×W with the shorter side at most ``side`` and even sides, as mp4 requires."""
    for frame_HWC in frames:
        height, width = frame_HWC.shape[:2]
        scale = min(1.0, side / min(height, width))
        size = (max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2))
        yield scaled(torch.from_numpy(np.ascontiguousarray(frame_HWC)).permute(2, 0, 1), size)
