"""Lists of clips and captions: jsonl, csv, json, and two files line by line; and what counts as a caption.

Nothing is learnt that nobody wrote. Text is taken for what it is (`kinema.bounds.decoded`), a caption is text and
taken whole, and what is neither is named instead of being turned into words.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from kinema import bounds
from kinema.data.inside import MAX_FILES
from kinema.schema import BadRequest

NAMED = ("metadata.jsonl", "metadata.csv", "metadata.json", "captions.json", "videos2caption.json")
"""Lists known by their names; besides, a folder's only ``.jsonl`` or ``.csv`` is its list."""
PATH_COLUMNS = ("file_name", "video_file_name", "video_path", "video", "path", "file_path", "file", "filename")
TEXT_COLUMNS = ("text", "caption", "prompt", "cap", "captions")
MAX_LIST = 2**25
"""Bytes of a list: a quarter of a million captions of a usual length, read in seconds; more go in several folders."""
MAX_CELLS = 4_000_000
"""Cells of a csv: a line of commas alone would cost sixty times its bytes."""
MAX_CAPTION = 20_000
"""Characters of a caption; text encoders read far fewer."""
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_EXTRA: Any = object()
"""Where csv puts cells beyond the header's: no column, and no name in JSON, is equal to it."""

Row = tuple[str, Mapping[str, Any]]
"""Where it stands ("metadata.csv line 3") and what it says."""


class UnusableCaptions(BadRequest):
    """Captions that cannot be taken as they stand: their clips are left out, since words were meant."""


def rows(path: Path) -> Iterator[Row]:
    """The rows of a list. Raises Unfit where it is no text, BadRequest where it is damaged or too large."""
    read = {".jsonl": _jsonl, ".csv": _csv, ".json": _json}[path.suffix]
    return read(path, text(path))


def text(path: Path) -> str:
    """All of a list. Raises Unfit where it is no text, BadRequest where it cannot be read or is too large."""
    data = bounds.read_bytes(path, MAX_LIST, "a list of clips and captions")
    try:
        return bounds.decoded(data, bounds.printable(path.name, 80))
    except BadRequest as error:
        raise UnusableCaptions(str(error)) from error


def pairs(videos: Path, prompts: Path) -> Iterator[Row]:
    """Rows of two files that go together line by line; raises as `text` does."""
    where = f"{bounds.printable(str(videos), 200)} and {prompts.name}"
    return _paired(where, videos.name, text(videos), text(prompts))


def beside(path: Path) -> tuple[str, ...]:
    """The caption in a text file. Raises Unfit where it is no text, or longer than `MAX_CAPTION`."""
    name = bounds.printable(path.name, 80)
    try:
        told = bounds.decoded(bounds.read_bytes(path, 4 * MAX_CAPTION + 4, "a caption"), name)
    except BadRequest as error:
        raise UnusableCaptions(str(error)) from error
    return _texts([told], name)


def captions(where: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """The captions of a row: none, one or several. Raises Unfit for anything that is no text."""
    if any(c.isalpha() for cell in row.get(_EXTRA, ()) for c in cell):  # a caption cut at its comma
        raise UnusableCaptions(
            f"{where} has more words than the header has columns; put a caption with commas in quotes"
        )
    told: Any = next((row[c] for c in TEXT_COLUMNS if c in row and not _is_empty(row[c])), [])
    return _texts(told if isinstance(told, list) else [told], where)


def clip(where: str, row: Mapping[str, Any]) -> str:
    """The path that a row names, as it stands there; raises BadRequest where it names none."""
    column = next((c for c in PATH_COLUMNS if not _is_empty(row.get(c))), None)
    if column is None:
        known = bounds.printable(", ".join([name for name in row if name is not _EXTRA][:20]), 80) or "nothing"
        raise BadRequest(f"{where} names no clip (it has {known}); expected one of {', '.join(PATH_COLUMNS)}")
    told = row[column]
    if not isinstance(told, str) or not told.strip():
        raise BadRequest(f"{where} has {bounds.quoted(told, 60)} for {column}; expected the path of a clip")
    return told.strip()


# ---------------------------------------------------------------------------------------- inside


def _is_empty(told: Any) -> bool:
    return told is None or (isinstance(told, str | list) and not told)


def _texts(told: list[Any], where: str) -> tuple[str, ...]:
    found = []
    for each in told:
        if each is None:
            continue
        if not isinstance(each, str):
            raise UnusableCaptions(f"{where} has {bounds.quoted(each, 60)} for a caption; expected text")
        words = " ".join(each.split())
        if len(words) > MAX_CAPTION:
            raise UnusableCaptions(
                f"{where} has a caption of {len(words):,} characters; at most {MAX_CAPTION:,} are learnt"
            )
        if odd := _NO_TEXT.search(words):
            raise UnusableCaptions(
                f"{where} has a character in its caption that is no text ({bounds.printable(odd[0])})"
            )
        found.append(words)
    return tuple(filter(None, dict.fromkeys(found)))


def _lines(told: str) -> Iterator[str]:
    """Lines as files end them: U+2028 and its like stand inside captions."""
    for line in io.StringIO(told, newline=None):
        yield line.removesuffix("\n")


def _paired(where: str, name: str, videos: str, prompts: str) -> Iterator[Row]:
    for number, (video, prompt) in enumerate(zip_longest(_lines(videos), _lines(prompts)), start=1):
        if video is None or prompt is None:
            raise BadRequest(f"{where} differ in length at line {number}; expected one caption a clip")
        if video.strip():
            yield f"{name} line {number}", {"path": video.strip(), "text": prompt}


def _jsonl(path: Path, told: str) -> Iterator[Row]:
    listed = bounds.printable(str(path), 200)
    for number, line in enumerate(_lines(told), start=1):
        if not line.strip():
            continue
        where = f"{listed} line {number}"
        row = bounds.from_json(line, where, pairs=_pairs)
        if not isinstance(row, dict):
            raise BadRequest(f"{where} is not a JSON object; expected a file name and a caption by name")
        yield f"{path.name} line {number}", row


def _pairs(told: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names may come twice: both values are kept, in a list."""
    made: dict[str, Any] = {}
    for name, value in told:
        if name in made:
            values = [v if isinstance(v, list) else [v] for v in (made[name], value)]
            made[name] = values[0] + values[1]
        else:
            made[name] = value
    return made


def _csv(path: Path, told: str) -> Iterator[Row]:
    where = bounds.printable(str(path), 200)
    delimiter = _delimiter(told)
    if told.count(delimiter) > MAX_CELLS:
        raise BadRequest(f"{where} holds more than {MAX_CELLS:,} cells; expected a list of clips and captions")
    reader = csv.DictReader(io.StringIO(told, newline=""), delimiter=delimiter, restkey=_EXTRA)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        for row in reader:
            yield f"{path.name} line {reader.line_num}", row
    except csv.Error as error:
        raise BadRequest(f"{where} line {reader.line_num} cannot be read as csv: {error}") from error


def _delimiter(told: str) -> str:
    """What parts the header's cells: a comma, or the semicolon or tab that a spreadsheet wrote, where that is sure."""
    head = told[:4096].lstrip("\r\n").split("\n", 1)[0].strip("\r")
    for mark in ",;\t":
        if len(cells := [c.strip().strip('"') for c in head.split(mark)]) > 1 and set(cells) & set(PATH_COLUMNS):
            return mark
    return ","


def _json(path: Path, told: str) -> Iterator[Row]:
    """A list of objects, or one object of names to captions (or to objects)."""
    where = bounds.printable(str(path), 200)
    found = bounds.from_json(told, where, pairs=_pairs)
    if isinstance(found, dict):
        found = [row for name, value in found.items() for row in _named(name, value)]
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise BadRequest(f"{where} holds something else; expected a list of objects with a file name and a caption")
    yield from ((f"{path.name} entry {i}", row) for i, row in enumerate(found, start=1))


def _named(name: str, value: Any) -> list[dict[str, Any]]:
    """Rows of one name in an object: what is told of it, once or several times."""
    if isinstance(value, dict):
        return [{**value, "file_name": name}]
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return [{**v, "file_name": name} for v in value]
    return [{"file_name": name, "caption": value}]


def counted(found: Iterator[Row], folder: Path) -> Iterator[Row]:
    """The rows, up to `MAX_FILES`; raises BadRequest beyond."""
    for number, row in enumerate(found):
        if number >= MAX_FILES:
            raise BadRequest(f"the list in {bounds.printable(str(folder), 200)} has more than {MAX_FILES:,} rows")
        yield row
