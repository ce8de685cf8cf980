"""What a folder of captioned clips holds: every list and layout that people keep their clips in.

- ``a.mp4`` with ``a.txt`` beside it; a folder of numbered pictures with ``name.txt`` beside it;
- ``metadata.jsonl``, ``.csv`` or ``.json`` (Hugging Face VideoFolder: ``file_name`` and ``text`` or
  ``caption``; musubi: ``video_path``, ``caption``; DiffSynth: ``video``, ``prompt``; Open-Sora:
  ``path``, ``text``), or one such list of any other name;
- ``videos2caption.json`` (FastVideo: ``path``, ``cap``); ``videos.txt`` and ``prompt.txt``, line by line.

Paths in a list are relative to it and stay inside its folder: a data set that somebody else made must
not reach the rest of the disk.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

from kinema.schema import BadRequest

CLIPS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".webp"})
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
NAMED = ("metadata.jsonl", "metadata.csv", "metadata.json", "captions.json", "videos2caption.json")
"""Lists known by their names; besides, a folder's only ``.jsonl`` or ``.csv`` is its list."""
PATH_COLUMNS = ("file_name", "video_file_name", "video_path", "video", "path", "file_path", "file", "filename")
TEXT_COLUMNS = ("text", "caption", "prompt", "cap", "captions")
MAX_LIST = 2**30
"""Bytes of a list: some ten million captions."""
MAX_CAPTION = 20_000


@dataclass(frozen=True)
class Entry:
    """One clip: a file or a folder of frames, its name in the data set, and its captions (none, one or several)."""

    path: Path
    name: str
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """The clips found, in a fixed order, and sentences about what was left out."""

    entries: tuple[Entry, ...]
    left_out: tuple[str, ...]


def scan(folder: Path) -> Listing:
    """Every clip under ``folder``; raises BadRequest where there is none, or a list cannot be used."""
    if not folder.is_dir():
        raise BadRequest(f"there is no folder {folder}; expected clips with captions")
    pictures: list[Path] = []
    absent: list[str] = []
    entries = tuple(
        Entry(e.path, e.path.relative_to(folder).as_posix(), e.captions) for e in _walk(folder, pictures, absent)
    )
    left_out = []
    if pictures:
        left_out.append(f"{_count(pictures, 'picture')} left out, since a picture shows no motion ({_few(pictures)})")
    if absent:
        left_out.append(f"{_count(absent, 'listed clip')} not there ({_few(absent)})")
    if not entries:
        told = f": {'; '.join(left_out)}" if left_out else ""
        raise BadRequest(
            f"there are no clips in {folder}{told}; expected a.mp4 with a.txt beside it, "
            "or a metadata.jsonl, .csv or .json"
        )
    mute = sum(not e.captions for e in entries)
    if mute:
        left_out.append(f"{mute} of {len(entries)} clips without a caption: the model learns them without text")
    return Listing(entries, tuple(left_out))


def _walk(folder: Path, pictures: list[Path], absent: list[str]) -> Iterator[Entry]:
    """A folder's list where it has one, else its own files and then its subfolders."""
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    rows = _rows(folder, inside)
    if rows is not None:
        yield from _listed(folder, rows, pictures, absent)
        return
    for path in inside:
        suffix = path.suffix.lower()
        if path.is_dir():
            if path.is_symlink() and folder.resolve().is_relative_to(path.resolve()):
                continue  # a link to where we are would lead round for ever
            if _is_frames(path):
                yield Entry(path, path.name, _beside(path))
            else:
                yield from _walk(path, pictures, absent)
        elif suffix in CLIPS:
            yield Entry(path, path.name, _beside(path))
        elif suffix in PICTURES:
            pictures.append(path)


def _is_frames(folder: Path) -> bool:
    """Two numbered pictures or more, and neither clips nor captions among them: the frames of one clip."""
    files = [p for p in folder.iterdir() if not p.name.startswith(".")]
    pictures = [p for p in files if p.suffix.lower() in PICTURES]
    others = any(p.suffix.lower() in CLIPS | {".txt", ".csv", ".jsonl"} or p.is_dir() for p in files)
    return len(pictures) > 1 and not others and all(any(c.isdigit() for c in p.stem) for p in pictures)


def _beside(path: Path) -> tuple[str, ...]:
    # A folder of frames may have a dot in its name, which is no suffix.
    file = path.with_name(f"{path.name if path.is_dir() else path.stem}.txt")
    if not file.is_file():
        return ()
    with file.open("rb") as opened:
        text = opened.read(MAX_CAPTION).decode("utf-8-sig", errors="replace")
    return tuple(filter(None, [" ".join(text.split())]))


# -------------------------------------------------------------------------------------- lists

Row = tuple[str, Mapping[str, Any]]
"""Where it stands ("metadata.csv line 3") and what it says."""


def _rows(folder: Path, inside: list[Path]) -> Iterator[Row] | None:
    files = [p for p in inside if p.is_file()]
    named = [p for p in files if p.name in NAMED] or [p for p in files if p.suffix in (".jsonl", ".csv")]
    if len(named) > 1:
        raise BadRequest(f"{folder} holds {len(named)} lists of clips ({_few(named)}); expected one")
    if named:
        if named[0].stat().st_size > MAX_LIST:
            raise BadRequest(f"{named[0]} is larger than {MAX_LIST:,} bytes; expected a list of clips and captions")
        read = {".jsonl": _jsonl, ".csv": _csv, ".json": _json}[named[0].suffix]
        return read(named[0])
    videos = folder / "videos.txt"
    prompts = next((p for p in (folder / "prompt.txt", folder / "prompts.txt") if p.is_file()), None)
    return _lines(videos, prompts) if videos.is_file() and prompts else None


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            yield f"{path.name} line {number}", _object(path, number, line)


def _object(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        told = json.loads(line)
    except ValueError as error:
        raise BadRequest(f"{path} line {number} is not JSON; expected one object a line") from error
    if not isinstance(told, dict):
        raise BadRequest(f"{path} line {number} is not a JSON object; expected a file name and a caption by name")
    return told


def _csv(path: Path) -> Iterator[Row]:
    reader = csv.DictReader(_text(path).splitlines(keepends=True))
    try:
        for row in reader:
            yield f"{path.name} line {reader.line_num}", {k: v for k, v in row.items() if k is not None}
    except csv.Error as error:
        raise BadRequest(f"{path} line {reader.line_num} cannot be read as csv: {error}") from error


def _json(path: Path) -> Iterator[Row]:
    """A list of objects, or one object of names to captions (or to objects)."""
    try:
        told = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{path} is not JSON; expected a list of objects with a file name and a caption") from error
    if isinstance(told, dict):
        told = [
            {**v, "file_name": k} if isinstance(v, dict) else {"file_name": k, "caption": v} for k, v in told.items()
        ]
    if not isinstance(told, list) or not all(isinstance(row, dict) for row in told):
        raise BadRequest(f"{path} holds something else; expected a list of objects with a file name and a caption")
    yield from ((f"{path.name} entry {i}", row) for i, row in enumerate(told, start=1))


def _lines(videos: Path, prompts: Path) -> Iterator[Row]:
    pairs = zip_longest(_text(videos).splitlines(), _text(prompts).splitlines())
    for number, (video, prompt) in enumerate(pairs, start=1):
        if video is None or prompt is None:
            raise BadRequest(
                f"{videos} and {prompts.name} differ in length at line {number}; expected one caption a clip"
            )
        if video.strip():
            yield f"{videos.name} line {number}", {"path": video, "text": prompt}


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{path} is not UTF-8 text; expected a list of clips and captions") from error


def _listed(folder: Path, rows: Iterator[Row], pictures: list[Path], absent: list[str]) -> Iterator[Entry]:
    for where, row in rows:
        column = next((c for c in PATH_COLUMNS if row.get(c)), None)
        if column is None:
            known = ", ".join(map(str, row)) or "nothing"
            raise BadRequest(
                f"{folder / where} names no clip (it has {known}); expected one of {', '.join(PATH_COLUMNS)}"
            )
        path = _inside(folder, where, str(row[column]).strip())
        if path is None:
            absent.append(str(row[column]).strip())
        elif path.suffix.lower() in PICTURES:
            pictures.append(path)
        else:
            yield Entry(path, path.name, _captions(row))


def _inside(folder: Path, where: str, told: str) -> Path | None:
    """The clip a list names, or None where it is not there; a way out of the folder is refused."""
    parts = PurePosixPath(told.replace("\\", "/"))
    if Path(told).is_absolute() and Path(told).is_relative_to(folder.resolve()):
        parts = PurePosixPath(Path(told).relative_to(folder.resolve()).as_posix())
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or re.match("[A-Za-z]:", told):
        raise BadRequest(f"{folder / where} names {told!r}, which is outside the folder; expected a path inside it")
    # FastVideo's list stands beside a folder of the videos that it names.
    return next((p for p in (folder / parts, folder / "videos" / parts) if p.exists()), None)


def _captions(row: Mapping[str, Any]) -> tuple[str, ...]:
    told = next((row[c] for c in TEXT_COLUMNS if row.get(c)), "")
    texts = told if isinstance(told, list) else [told]
    return tuple(filter(None, (" ".join(str(t)[:MAX_CAPTION].split()) for t in texts)))


def _few(names: list[Path] | list[str], most: int = 3) -> str:
    shown = ", ".join(n.name if isinstance(n, Path) else n for n in names[:most])
    return shown + (", …" if len(names) > most else "")


def _count(names: list[Any], what: str) -> str:
    return f"1 {what} is" if len(names) == 1 else f"{len(names)} {what}s are"
