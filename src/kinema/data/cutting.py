"""The folder that shots are cut into: names of their own for all sources, and work that goes on where it was stopped.

While shots are cut, their rows stand in ``.shots.jsonl``: a first line that says what was asked for, a row a shot as
soon as its file is there, and a line a source that is finished. It is locked by the process at work, and becomes
``metadata.jsonl`` once all sources are done.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinema import bounds
from kinema.atomic import AlreadyExists, check_folder, replacing
from kinema.data.claim import alone
from kinema.data.inside import size
from kinema.data.listing import Entry
from kinema.schema import BadRequest

LIST = "metadata.jsonl"
WORK = ".shots.jsonl"
MAX_WORK = 2**26
_SHOT = re.compile(r"([^/]+)-\d{3,6}\.mp4", re.DOTALL)
LONGEST = 160
"""Bytes of a source's name that the names of its shots keep: a disk takes 255 for all of it."""


@dataclass
class Work:
    """What is known of the shots in ``out`` so far: ``rows`` by file name, and the sources that are ``done``."""

    out: Path
    handle: int
    stems: Mapping[str, str]
    """Source to how the names of its shots begin."""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    is_ours: bool = False
    """Whether the notes are those of shots that were asked for as now."""

    def add(self, row: dict[str, Any]) -> None:
        """Note a shot whose file is there."""
        self.rows[row["file_name"]] = row
        self._write(row)

    def finish(self, source: str) -> None:
        """Note that no shot of a source is missing."""
        self.done.add(source)
        self._write({"done": source})

    def list(self) -> None:
        """Write the list, which no other process may have written meanwhile, and drop the notes."""
        try:
            with replacing(self.out / LIST, exclusive=True) as part:
                part.write_text("".join(json.dumps(row) + "\n" for row in self.rows.values()), encoding="utf-8")
        except AlreadyExists as error:
            raise BadRequest(
                f"{bounds.printable(str(self.out / LIST), 160)} was written meanwhile and is kept; "
                f"the list of these shots is {WORK} beside it"
            ) from error
        (self.out / WORK).unlink()

    def _write(self, row: Mapping[str, Any]) -> None:
        os.write(self.handle, (json.dumps(row) + "\n").encode())


@contextmanager
def into(out: Path, entries: Sequence[Entry], how: Mapping[str, Any]) -> Iterator[Work]:
    """``out``, made if need be, for this process alone; nothing stays of it where not one shot was written.

    Raises BadRequest for a folder that holds a list, files of names that are needed, or shots that were cut otherwise,
    and while another process is at work in it.
    """
    where = bounds.printable(str(out), 160)
    check_folder(out)
    new = not out.exists()
    with suppress(FileExistsError):
        out.mkdir()
    check_folder(out / LIST)
    _refuse_list(out)
    with alone(
        out / WORK, f"another `kinema data shots` is at work in {where}; name another folder, or wait"
    ) as handle:
        work = Work(out, handle, stems(entries))
        try:
            _refuse_list(out)  # the process before may have ended just now
            asked = {**how, "sources": {entry.name: size(entry.path) for entry in entries}}
            _take_up(work, asked, where)
            yield work
        finally:
            if work.is_ours and not work.rows:
                (out / WORK).unlink(missing_ok=True)
                with suppress(OSError):
                    if new:
                        out.rmdir()


def _refuse_list(out: Path) -> None:
    if os.path.lexists(out / LIST):
        where = bounds.printable(str(out / LIST), 200)
        raise BadRequest(f"{where} exists already and is not replaced; name another folder for the shots")


def _take_up(work: Work, asked: Mapping[str, Any], where: str) -> None:
    """Read what an earlier call noted, or begin where nothing of these names is."""
    data = bounds.read_bytes(work.out / WORK, MAX_WORK)
    whole = data[: data.rfind(b"\n") + 1]  # the last line may be torn
    lines = [bounds.from_json(line, f"{where}/{WORK}") for line in whole.splitlines()]
    rows, done = _noted(lines[1:], f"{where}/{WORK}")
    if rows and lines[0] != asked:
        raise BadRequest(
            f"{where} holds shots of other clips, or cut with other options, that are not finished; "
            "name another folder, or give the options of before"
        )
    if not rows:
        if lines and not (isinstance(lines[0], dict) and "sources" in lines[0]):
            raise BadRequest(f"{where}/{WORK} was not written by `kinema data shots`; name another folder")
        work.is_ours = True
        _refuse_named(work)
        whole = (json.dumps(asked) + "\n").encode()
    work.is_ours = True
    work.rows = {name: row for name, row in rows.items() if os.path.lexists(work.out / name)}
    work.done = done - {row["source"] for name, row in rows.items() if name not in work.rows}
    os.ftruncate(work.handle, 0)
    os.write(work.handle, whole)


def _noted(lines: Sequence[Any], where: str) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """(rows by file name, sources that are finished) of notes; raises BadRequest for others than ours."""
    rows: dict[str, dict[str, Any]] = {}
    done: set[str] = set()
    for line in lines:
        match line:
            case {"done": str(source)}:
                done.add(source)
            case {"file_name": str(name), "source": str()} if _SHOT.fullmatch(name):
                rows[name] = line
            case _:
                raise BadRequest(f"{where} was not written by `kinema data shots`; name another folder")
    return rows, done


def _refuse_named(work: Work) -> None:
    """Refuse a folder with a file that a shot might need the name of, as disks compare names that ignore case."""
    needed = {_folded(stem) for stem in work.stems.values()}
    for path in sorted(work.out.iterdir()):
        found = _SHOT.fullmatch(path.name)
        if found and _folded(found[1]) in needed:
            where = bounds.printable(str(path), 200)
            raise BadRequest(f"{where} exists already and is not replaced; name another folder for the shots")


# ----------------------------------------------------------------------------------------- names


def stems(entries: Sequence[Entry]) -> dict[str, str]:
    """How the names of each source's shots begin: its own name, and a hash of it where that alone is no good.

    That is where another source has the same (without its suffix, with ``-`` for folders, on disks that ignore case or
    how letters are composed), or where it is too long or cannot be printed. The same sources give the same names.
    """
    plain = {entry.name: _plain(entry) for entry in entries}
    often = Counter(_folded(stem) for stem, _ in plain.values())
    return {
        name: stem if same and often[_folded(stem)] == 1 else f"{stem}-{_hash(name)}"
        for name, (stem, same) in plain.items()
    }


def _plain(entry: Entry) -> tuple[str, bool]:
    """A source's name as the beginning of a file name, and whether that says all of it."""
    name = entry.name if entry.path.is_dir() else str(Path(entry.name).with_suffix(""))
    flat = name.replace("/", "-")
    stem = "".join(c if c.isprintable() else "_" for c in flat).lstrip(".")
    stem = stem.encode()[:LONGEST].decode(errors="ignore")
    return stem or "clip", stem == flat


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
