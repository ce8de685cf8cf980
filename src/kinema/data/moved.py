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

from kinema.atomic import replacing
from kinema.data import motion
from kinema.data.listing import Entry, scan
from kinema.media.read import probe
from kinema.schema import BadRequest, Note, OnEvent, ignore

NAME = "motion.json"
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
    paths: Sequence[str | Path], middle: float = motion.MIDDLE, on_event: OnEvent = ignore
) -> dict[Path, list[Measured]]:
    """Measure folders of clips, or single files, and write each folder's ``motion.json``; folder to what was measured.

    A file is entered in the list of its own folder, beside what stands there. A clip that cannot be read is said
    and left out. Raises BadRequest where there is nothing to measure.
    """
    from kinema.data.folder import read_frames

    found: dict[Path, list[Measured]] = {}
    for folder, entries in _grouped(paths).items():
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


def _grouped(paths: Sequence[str | Path]) -> dict[Path, list[Entry]]:
    grouped: dict[Path, list[Entry]] = {}
    for told in paths:
        path = Path(told)
        if path.is_dir():
            grouped.setdefault(path, []).extend(scan(path).entries)
        elif path.is_file():
            grouped.setdefault(path.parent, []).append(Entry(path, path.name))
        else:
            raise BadRequest(f"there is no file or folder {path}; expected clips")
    if not grouped:
        raise BadRequest("name a folder of clips, or clips: kinema data motion-bucket my-clips")
    return grouped


def _write(folder: Path, rows: Iterable[Measured]) -> None:
    held = _held(folder) if (folder / NAME).is_file() else {}
    for row in rows:
        size = _bytes(folder / row.name)
        told = {"bytes": size, "fps": row.fps, "seconds": round(row.seconds, 3)}
        held[row.name] = {**told, "motion": round(row.motion, 6), "bucket": round(row.bucket)}
    with replacing(folder / NAME) as part:
        part.write_text(json.dumps({"about": _ABOUT, "clips": dict(sorted(held.items()))}, indent=1), encoding="utf-8")


def read(folder: Path, entries: Sequence[Entry]) -> tuple[dict[str, float], list[str]]:
    """(motion by a clip's name in the data set, sentences about clips without one) from the lists in the folders.

    A folder's own list counts before those of the folders in it. No list at all is no fault: nothing is said.
    Raises BadRequest for a list that is damaged.
    """
    lists: dict[Path, Mapping[str, Any]] = {}
    for place in {folder, *(entry.path.parent for entry in entries)}:
        if (place / NAME).is_file():
            lists[place] = _held(place)
    if not lists:
        return {}, []
    motions, unknown = {}, []
    for entry in entries:
        rows = (lists.get(folder, {}).get(entry.name), lists.get(entry.path.parent, {}).get(entry.path.name))
        row = next((r for r in rows if r is not None and r.get("bytes") == _bytes(entry.path)), None)
        if row is None:
            unknown.append(entry.name)
        else:
            motions[entry.name] = float(row["motion"])
    told = (
        f"{len(unknown)} of {len(entries)} clips have no motion measured, or changed since ({', '.join(unknown[:3])})"
    )
    return motions, [f"{told}: `kinema data motion-bucket` measures them"] if unknown else []


def _held(folder: Path) -> dict[str, Any]:
    try:
        clips = json.loads((folder / NAME).read_bytes())["clips"]
        for row in clips.values():
            float(row["motion"]), int(row["bytes"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRequest(f"{folder / NAME} is damaged; measure again after removing it") from error
    return dict(clips)


def _bytes(path: Path) -> int:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
