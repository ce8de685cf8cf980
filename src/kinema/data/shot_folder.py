"""The output folder of ``kinema data shots``: unique file names for all sources, and resumable work.

While shots are cut, their rows are kept in a journal, ``.shots.jsonl``: a first line with the options and sources, one
row for each shot written, and one line for each finished source. The working process locks the journal, and it becomes
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
from kinema.data.containment import size
from kinema.data.listing import Entry
from kinema.data.locking import locked
from kinema.schema import BadRequest

LIST = "metadata.jsonl"
WORK = ".shots.jsonl"
MAX_WORK = 2**26
_SHOT = re.compile(r"([^/]+)-\d{3,6}\.mp4", re.DOTALL)
LONGEST = 160
"""Bytes of a source's name kept in the names of its shots; file systems allow 255 for the whole name."""


@dataclass
class Work:
    """The shots in ``out`` so far: ``rows`` by file name, and the finished sources in ``done``."""

    out: Path
    handle: int
    stems: Mapping[str, str]
    """Source name to the prefix of its shots' file names."""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    is_valid: bool = False
    """Whether the journal matches the current options and sources."""

    def add(self, row: dict[str, Any]) -> None:
        """Record a written shot."""
        self.rows[row["file_name"]] = row
        self._write(row)

    def finish(self, source: str) -> None:
        """Record that all shots of a source are written."""
        self.done.add(source)
        self._write({"done": source})

    def list(self) -> None:
        """Write the list and delete the journal; raises BadRequest if another process wrote a list meanwhile."""
        try:
            with replacing(self.out / LIST, exclusive=True) as part:
                part.write_text("".join(json.dumps(row) + "\n" for row in self.rows.values()), encoding="utf-8")
        except AlreadyExists as error:
            raise BadRequest(
                f"another process wrote {bounds.printable(str(self.out / LIST), 160)} meanwhile; it is kept, "
                f"and these shots are listed in {WORK} next to it"
            ) from error
        (self.out / WORK).unlink()

    def _write(self, row: Mapping[str, Any]) -> None:
        os.write(self.handle, (json.dumps(row) + "\n").encode())


@contextmanager
def open_folder(out: Path, entries: Sequence[Entry], options: Mapping[str, Any]) -> Iterator[Work]:
    """Lock ``out``, creating it if missing; a new folder is removed again if no shot was written.

    Raises BadRequest if the folder holds a list, files whose names are needed, or shots cut with other options, and
    while another process works in it.
    """
    where = bounds.printable(str(out), 160)
    check_folder(out)
    new = not out.exists()
    with suppress(FileExistsError):
        out.mkdir()
    check_folder(out / LIST)
    _refuse_list(out)
    with locked(
        out / WORK, f"another `kinema data shots` is working in {where}; name another folder, or wait"
    ) as handle:
        work = Work(out, handle, stems(entries))
        try:
            _refuse_list(out)  # the previous process may have just finished
            job = {**options, "sources": {entry.name: size(entry.path) for entry in entries}}
            _resume(work, job, where)
            yield work
        finally:
            if work.is_valid and not work.rows:
                (out / WORK).unlink(missing_ok=True)
                with suppress(OSError):
                    if new:
                        out.rmdir()


def _refuse_list(out: Path) -> None:
    if os.path.lexists(out / LIST):
        where = bounds.printable(str(out / LIST), 200)
        raise BadRequest(f"{where} already exists and is not overwritten; name another folder for the shots")


def _resume(work: Work, job: Mapping[str, Any], where: str) -> None:
    """Read the journal of an earlier call, or start a new one if no file has a name that is needed."""
    data = bounds.read_bytes(work.out / WORK, MAX_WORK)
    whole = data[: data.rfind(b"\n") + 1]  # the last line may be incomplete
    lines = [bounds.from_json(line, f"{where}/{WORK}") for line in whole.splitlines()]
    rows, done = _parsed(lines[1:], f"{where}/{WORK}")
    if rows and lines[0] != job:
        raise BadRequest(
            f"{where} holds an unfinished job with other clips or other options; "
            "name another folder, or repeat the original options"
        )
    if not rows:
        if lines and not (isinstance(lines[0], dict) and "sources" in lines[0]):
            raise BadRequest(f"{where}/{WORK} was not written by `kinema data shots`; name another folder")
        work.is_valid = True
        _refuse_named(work)
        whole = (json.dumps(job) + "\n").encode()
    work.is_valid = True
    work.rows = {name: row for name, row in rows.items() if os.path.lexists(work.out / name)}
    work.done = done - {row["source"] for name, row in rows.items() if name not in work.rows}
    os.ftruncate(work.handle, 0)
    os.write(work.handle, whole)


def _parsed(lines: Sequence[Any], where: str) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """(rows by file name, finished sources) of a journal; raises BadRequest if `kinema data shots` did not write it."""
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
    """Raise BadRequest if a file has a name that a shot may need, compared without case as some file systems do."""
    needed = {_folded(stem) for stem in work.stems.values()}
    for path in sorted(work.out.iterdir()):
        found = _SHOT.fullmatch(path.name)
        if found and _folded(found[1]) in needed:
            where = bounds.printable(str(path), 200)
            raise BadRequest(f"{where} already exists and is not overwritten; name another folder for the shots")


# ----------------------------------------------------------------------------------------- names


def stems(entries: Sequence[Entry]) -> dict[str, str]:
    """The prefix of each source's shot names: the source's name, with its hash appended where that is ambiguous.

    A name is ambiguous if another source's is equal (without suffix, with ``-`` for ``/``, ignoring case and Unicode
    composition), or if it is too long or has unprintable characters. The same sources give the same names.
    """
    plain = {entry.name: _plain(entry) for entry in entries}
    uses = Counter(_folded(stem) for stem, _ in plain.values())
    return {
        name: stem if exact and uses[_folded(stem)] == 1 else f"{stem}-{_hash(name)}"
        for name, (stem, exact) in plain.items()
    }


def _plain(entry: Entry) -> tuple[str, bool]:
    """A source's name as a file name prefix, and whether nothing was dropped or replaced."""
    name = entry.name if entry.path.is_dir() else str(Path(entry.name).with_suffix(""))
    flat = name.replace("/", "-")
    stem = "".join(c if c.isprintable() else "_" for c in flat).lstrip(".")
    stem = stem.encode()[:LONGEST].decode(errors="ignore")
    return stem or "clip", stem == flat


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
