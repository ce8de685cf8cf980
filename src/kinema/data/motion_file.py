"""Motion scores of the clips of a folder: measured once, stored in ``motion.json``, read by training.

    {"about": …, "clips": {"river.mp4": {"bytes": 834520, "fps": 30.0, "motion": 0.104, "bucket": 130}}}

Training reads ``motion`` (see `kinema.data.motion`); ``bucket`` is for people, since a model may use another scale. A
clip whose size in bytes has changed counts as unmeasured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinema import bounds
from kinema.atomic import replacing
from kinema.data import motion
from kinema.data.containment import ABSENT, Inside, size
from kinema.data.frames import read_frames
from kinema.data.listing import Entry, scan
from kinema.data.locking import locked
from kinema.events import Note, OnEvent, ignore
from kinema.media.read import probe
from kinema.schema import BadRequest

NAME = "motion.json"
MAX_LIST = 2**26
"""Limit on the bytes of ``motion.json``: about 500,000 clips."""
_ABOUT = "How much each clip moves (shorter sides of the frame a second); written by `kinema data motion-bucket`."


@dataclass(frozen=True)
class Measured:
    """One clip: its frame rate, length in seconds, motion score and motion bucket."""

    name: str
    fps: float
    seconds: float
    motion: float
    bucket: float


def measure(
    paths: Sequence[str | Path],
    middle: float = motion.MIDDLE,
    on_event: OnEvent = ignore,
    *,
    follow_links: bool = False,
) -> dict[Path, list[Measured]]:
    """Measure folders of clips or single files, write each folder's ``motion.json``, and return the rows by folder.

    A file is added to the list of its own folder. An unreadable clip is reported and skipped. ``follow_links`` as in
    `kinema.data.listing.scan`. Raises BadRequest if there is nothing to measure, or if this command did not write an
    existing ``motion.json``.
    """
    found: dict[Path, list[Measured]] = {}
    grouped = _grouped(paths, follow_links, on_event)
    for folder in grouped:
        _existing(folder)
    for folder, entries in grouped.items():
        rows = []
        for entry in entries:
            try:
                probed = probe(entry.path)
                score = motion.of_frames(read_frames(entry.path, motion.RATE), motion.RATE)
            except BadRequest as error:
                if "OpenCV" in str(error):
                    raise
                on_event(Note(f"skipped {entry.name}: {error}"))
                continue
            bucket = motion.bucket(score, middle)
            rows.append(Measured(entry.name, probed.fps, probed.frames / probed.fps, score, bucket))
            on_event(Note(f"{entry.name}: motion {score:.4f}, bucket {bucket:.0f}"))
        if rows:
            _write(folder, rows)
            found[folder] = rows
    if not found:
        raise BadRequest("no clip could be measured")
    return found


def _grouped(paths: Sequence[str | Path], follow_links: bool, on_event: OnEvent) -> dict[Path, list[Entry]]:
    grouped: dict[Path, dict[str, Entry]] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found = scan(path, follow_links=follow_links)
            for message in found.skipped:
                if "have no caption" not in message:  # captions do not matter here
                    on_event(Note(message))
            grouped.setdefault(path, {}).update({entry.name: entry for entry in found.entries})
        elif bounds.is_regular(path):
            grouped.setdefault(path.parent, {})[path.name] = Entry(path, path.name)
        else:
            raise BadRequest(f"there is no file or folder {bounds.printable(str(path), 200)}; expected clips")
    if not grouped:
        raise BadRequest("name a folder of clips, or clips: kinema data motion-bucket my-clips")
    return {folder: list(entries.values()) for folder, entries in grouped.items()}


def _write(folder: Path, rows: Iterable[Measured]) -> None:
    """Merge rows into a folder's list, which other processes may have changed meanwhile."""
    with locked(folder, f"another process is writing {folder / NAME}", wait=True):
        clips = _existing(folder)
        for row in rows:
            entry = {"bytes": size(folder / row.name), "fps": row.fps, "seconds": round(row.seconds, 3)}
            clips[row.name] = {**entry, "motion": round(row.motion, 6), "bucket": round(row.bucket)}
        text = json.dumps({"about": _ABOUT, "clips": dict(sorted(clips.items()))}, indent=1)
        with replacing(folder / NAME) as part:
            part.write_text(text, encoding="utf-8")


def _existing(folder: Path) -> dict[str, Any]:
    """The rows of a folder's list, {} if it has none; raises BadRequest if `kinema` did not write it."""
    fault = Inside(folder).file(folder / NAME)
    if fault == ABSENT and not (folder / NAME).is_symlink():
        return {}
    if fault is None and not (folder / NAME).is_symlink() and (clips := _rows(folder)) is not None:
        return dict(clips)
    raise BadRequest(
        f"{bounds.printable(str(folder / NAME), 200)} was not written by `kinema data motion-bucket` "
        "and is not overwritten; move it away to measure these clips"
    )


def read(folder: Path, entries: Sequence[Entry], *, follow_links: bool = False) -> tuple[dict[str, float], list[str]]:
    """Read (motion scores by clip name, messages on clips without one) from the lists in a data set.

    The data set's own list takes precedence over those of its subfolders. If there is no list, there is no message.
    A list outside the folder, or written by something else, is skipped and reported. Raises BadRequest for a damaged
    list.
    """
    lists, messages = _lists(folder, entries, Inside(folder, follow_links=follow_links))
    if not lists:
        return {}, messages
    motions, unknown = {}, []
    for entry in entries:
        rows = (lists.get(folder, {}).get(entry.name), lists.get(entry.path.parent, {}).get(entry.path.name))
        row = next((r for r in rows if r is not None and r.get("bytes") == size(entry.path)), None)
        if row is None:
            unknown.append(entry.name)
        else:
            motions[entry.name] = float(row["motion"])
    if unknown:
        names = ", ".join(unknown[:3])
        messages.append(
            f"{len(unknown)} of {len(entries)} clips have no motion score, or changed since ({names}): "
            "measure them with `kinema data motion-bucket`"
        )
    return motions, messages


def _lists(folder: Path, entries: Sequence[Entry], inside: Inside) -> tuple[dict[Path, Mapping[str, Any]], list[str]]:
    """The lists in a data set by folder, and messages on skipped files of that name."""
    found: dict[Path, Mapping[str, Any]] = {}
    messages = []
    for place in sorted({folder, *(entry.path.parent for entry in entries)}):
        fault = inside.file(place / NAME)
        if fault == ABSENT:
            continue
        rows = _rows(place) if fault is None else None
        if rows is not None:
            found[place] = rows
        else:
            name = bounds.printable((place / NAME).relative_to(folder).as_posix(), 80)
            messages.append(f"skipped {name}: {fault or 'not written by `kinema data motion-bucket`'}")
    return found, messages[:3]


def _rows(folder: Path) -> dict[str, Any] | None:
    """The rows of a folder's list by clip name; None if `kinema` did not write the file."""
    where = bounds.printable(str(folder / NAME), 200)
    data = bounds.from_json(bounds.decoded(bounds.read_bytes(folder / NAME, MAX_LIST), where), where)
    clips = data.get("clips") if isinstance(data, dict) else None
    if not isinstance(clips, dict):
        return None
    for row in clips.values():
        if not isinstance(row, dict) or not all(_is_number(row.get(name)) for name in ("motion", "bytes")):
            raise BadRequest(f"{where} is damaged; remove it and measure again")
    return clips


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
