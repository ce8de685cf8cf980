"""How much the clips of a folder move: measured once, kept in ``motion.json`` beside them, read by training.

    {"about": …, "clips": {"river.mp4": {"bytes": 834520, "fps": 30.0, "motion": 0.104, "bucket": 130}}}

``motion`` (see `kinema.data.motion`) is what training reads; ``bucket`` is there for people, since a model may have a
scale of its own. A clip whose size in bytes has changed counts as unmeasured.
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
from kinema.data.claim import alone
from kinema.data.frames import read_frames
from kinema.data.inside import ABSENT, Inside, size
from kinema.data.listing import Entry, scan
from kinema.events import Note, OnEvent, ignore
from kinema.media.read import probe
from kinema.schema import BadRequest

NAME = "motion.json"
MAX_LIST = 2**26
"""Bytes of a list: those of half a million clips."""
_ABOUT = "How much each clip moves (shorter sides of the frame a second); written by `kinema data motion-bucket`."


@dataclass(frozen=True)
class Measured:
    """One clip: its frame rate, its length in seconds, its motion and the bucket of that."""

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
    """Measure folders of clips, or single files, and write each folder's ``motion.json``; folder to what was measured.

    A file is entered in the list of its own folder, beside what stands there. A clip that cannot be read is said
    and left out. ``follow_links`` as in `kinema.data.listing.scan`. Raises BadRequest where there is nothing to
    measure, or where ``motion.json`` is a file that this command did not write.
    """
    found: dict[Path, list[Measured]] = {}
    grouped = _grouped(paths, follow_links, on_event)
    for folder in grouped:
        _ours(folder)
    for folder, entries in grouped.items():
        rows = []
        for entry in entries:
            try:
                told = probe(entry.path)
                moves = motion.of_frames(read_frames(entry.path, motion.RATE), motion.RATE)
            except BadRequest as error:
                if "OpenCV" in str(error):
                    raise
                on_event(Note(f"{entry.name} is left out: {error}"))
                continue
            bucket = motion.bucket(moves, middle)
            rows.append(Measured(entry.name, told.fps, told.frames / told.fps, moves, bucket))
            on_event(Note(f"{entry.name}: motion {moves:.4f}, bucket {bucket:.0f}"))
        if rows:
            _write(folder, rows)
            found[folder] = rows
    if not found:
        raise BadRequest("none of these clips can be measured")
    return found


def _grouped(paths: Sequence[str | Path], follow_links: bool, on_event: OnEvent) -> dict[Path, list[Entry]]:
    grouped: dict[Path, dict[str, Entry]] = {}
    for told in paths:
        path = Path(told)
        if path.is_dir():
            found = scan(path, follow_links=follow_links)
            for sentence in found.left_out:
                if "without a caption" not in sentence:  # words are not looked at here
                    on_event(Note(sentence))
            grouped.setdefault(path, {}).update({entry.name: entry for entry in found.entries})
        elif bounds.is_regular(path):
            grouped.setdefault(path.parent, {})[path.name] = Entry(path, path.name)
        else:
            raise BadRequest(f"there is no file or folder {bounds.printable(str(path), 200)}; expected clips")
    if not grouped:
        raise BadRequest("name a folder of clips, or clips: kinema data motion-bucket my-clips")
    return {folder: list(entries.values()) for folder, entries in grouped.items()}


def _write(folder: Path, rows: Iterable[Measured]) -> None:
    """Enter rows in a folder's list, beside what other processes have entered by now."""
    with alone(folder, f"another process writes {folder / NAME}", wait=True):
        held = _ours(folder)
        for row in rows:
            told = {"bytes": size(folder / row.name), "fps": row.fps, "seconds": round(row.seconds, 3)}
            held[row.name] = {**told, "motion": round(row.motion, 6), "bucket": round(row.bucket)}
        text = json.dumps({"about": _ABOUT, "clips": dict(sorted(held.items()))}, indent=1)
        with replacing(folder / NAME) as part:
            part.write_text(text, encoding="utf-8")


def _ours(folder: Path) -> dict[str, Any]:
    """What a folder's list holds, to be written again; a file of that name that is none of ours is refused."""
    fault = Inside(folder).file(folder / NAME)
    if fault == ABSENT and not (folder / NAME).is_symlink():
        return {}
    if fault is None and not (folder / NAME).is_symlink() and (held := _held(folder)) is not None:
        return dict(held)
    raise BadRequest(
        f"{bounds.printable(str(folder / NAME), 200)} was not written by `kinema data motion-bucket` and is not replaced; "
        "move it away to measure these clips"
    )


def read(folder: Path, entries: Sequence[Entry], *, follow_links: bool = False) -> tuple[dict[str, float], list[str]]:
    """(motion by a clip's name in the data set, sentences about clips without one) from the lists in the folders.

    A folder's own list counts before those of the folders in it. No list at all is no fault: nothing is said.
    A list that lies outside the folder, or that something else wrote, is left out and said. Raises BadRequest for
    a list that is damaged.
    """
    lists, said = _lists(folder, entries, Inside(folder, follow_links=follow_links))
    if not lists:
        return {}, said
    motions, unknown = {}, []
    for entry in entries:
        rows = (lists.get(folder, {}).get(entry.name), lists.get(entry.path.parent, {}).get(entry.path.name))
        row = next((r for r in rows if r is not None and r.get("bytes") == size(entry.path)), None)
        if row is None:
            unknown.append(entry.name)
        else:
            motions[entry.name] = float(row["motion"])
    told = (
        f"{len(unknown)} of {len(entries)} clips have no motion measured, or changed since ({', '.join(unknown[:3])})"
    )
    return motions, [*said, *([f"{told}: `kinema data motion-bucket` measures them"] if unknown else [])]


def _lists(folder: Path, entries: Sequence[Entry], inside: Inside) -> tuple[dict[Path, Mapping[str, Any]], list[str]]:
    """The lists in a data set by their folders, and sentences about files of that name that are not read."""
    found: dict[Path, Mapping[str, Any]] = {}
    said = []
    for place in sorted({folder, *(entry.path.parent for entry in entries)}):
        fault = inside.file(place / NAME)
        if fault == ABSENT:
            continue
        held = _held(place) if fault is None else None
        if held is not None:
            found[place] = held
        else:
            name = bounds.printable((place / NAME).relative_to(folder).as_posix(), 80)
            said.append(f"{name} is left out: {fault or 'it was not written by `kinema data motion-bucket`'}")
    return found, said[:3]


def _held(folder: Path) -> dict[str, Any] | None:
    """The rows of a list by the names of clips; None for a file that is no list of ours."""
    where = bounds.printable(str(folder / NAME), 200)
    told = bounds.from_json(bounds.decoded(bounds.read_bytes(folder / NAME, MAX_LIST), where), where)
    clips = told.get("clips") if isinstance(told, dict) else None
    if not isinstance(clips, dict):
        return None
    for row in clips.values():
        if not isinstance(row, dict) or not all(_is_number(row.get(name)) for name in ("motion", "bytes")):
            raise BadRequest(f"{where} is damaged; measure again after removing it")
    return clips


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
