"""Lists of clips and captions: jsonl, csv, json, and pairs of text files; and what counts as a caption.

Captions are taken only from valid text (`kinema.bounds.decoded`), and whole; anything else is reported rather than
converted to text.
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
from kinema.data.containment import MAX_FILES
from kinema.schema import BadRequest

NAMED = ("metadata.jsonl", "metadata.csv", "metadata.json", "captions.json", "videos2caption.json")
"""Known names of lists; otherwise the only ``.jsonl`` or ``.csv`` of a folder is its list."""
PATH_COLUMNS = ("file_name", "video_file_name", "video_path", "video", "path", "file_path", "file", "filename")
TEXT_COLUMNS = ("text", "caption", "prompt", "cap", "captions")
MAX_LIST = 2**25
"""Limit on the bytes of a list: about 250,000 captions of usual length; split larger sets into several folders."""
MAX_CELLS = 4_000_000
"""Limit on the cells of a csv: parsing a line of commas takes sixty times its bytes."""
MAX_CAPTION = 20_000
"""Limit on the characters of a caption; text encoders read far fewer."""
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_EXTRA: Any = object()
"""Key under which csv collects cells beyond the header's; no column or JSON name equals it."""

Row = tuple[str, Mapping[str, Any]]
"""Location ("metadata.csv line 3") and values by column."""


class UnusableCaptions(BadRequest):
    """Captions that exist but cannot be read; their clips are skipped rather than trained without text."""


def rows(path: Path) -> Iterator[Row]:
    """The rows of a list. Raises UnusableCaptions if it is not text, BadRequest if it is damaged or too large."""
    read = {".jsonl": _jsonl, ".csv": _csv, ".json": _json}[path.suffix.lower()]
    return read(path, text(path))


def text(path: Path) -> str:
    """The text of a list. Raises UnusableCaptions if it is not text, BadRequest if it is unreadable or too large."""
    data = bounds.read_bytes(path, MAX_LIST, "a list of clips and captions")
    try:
        return bounds.decoded(data, bounds.printable(path.name, 80))
    except BadRequest as error:
        raise UnusableCaptions(str(error)) from error


def pairs(videos: Path, prompts: Path) -> Iterator[Row]:
    """The rows of two files that match line by line; raises as `text` does."""
    where = f"{bounds.printable(str(videos), 200)} and {prompts.name}"
    return _paired(where, videos.name, text(videos), text(prompts))


def caption_file(path: Path) -> tuple[str, ...]:
    """The caption in a text file. Raises UnusableCaptions if it is not text or longer than `MAX_CAPTION`."""
    name = bounds.printable(path.name, 80)
    try:
        caption = bounds.decoded(bounds.read_bytes(path, 4 * MAX_CAPTION + 4, "a caption"), name)
    except BadRequest as error:
        raise UnusableCaptions(str(error)) from error
    return _texts([caption], name)


def captions(where: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """The captions of a row, zero or more. Raises UnusableCaptions for anything that is not text."""
    if any(c.isalpha() for cell in row.get(_EXTRA, ()) for c in cell):  # an unquoted caption split at a comma
        raise UnusableCaptions(
            f"{where} has more cells than the header has columns; put captions with commas in quotes"
        )
    value: Any = next((row[c] for c in TEXT_COLUMNS if c in row and not _is_empty(row[c])), [])
    return _texts(value if isinstance(value, list) else [value], where)


def clip(where: str, row: Mapping[str, Any]) -> str:
    """The path in a row, unresolved; raises BadRequest if it has none."""
    column = next((c for c in PATH_COLUMNS if not _is_empty(row.get(c))), None)
    if column is None:
        known = bounds.printable(", ".join([name for name in row if name is not _EXTRA][:20]), 80) or "nothing"
        raise BadRequest(f"{where} names no clip (its columns: {known}); expected one of {', '.join(PATH_COLUMNS)}")
    path = row[column]
    if not isinstance(path, str) or not path.strip():
        raise BadRequest(f"{column} is {bounds.quoted(path, 60)} in {where}; expected the path of a clip")
    return path.strip()


# --------------------------------------------------------------------------------------- parsing


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list) and not value)


def _texts(values: list[Any], where: str) -> tuple[str, ...]:
    found = []
    for each in values:
        if each is None:
            continue
        if not isinstance(each, str):
            raise UnusableCaptions(f"a caption in {where} is {bounds.quoted(each, 60)}; expected text")
        caption = " ".join(each.split())
        if len(caption) > MAX_CAPTION:
            raise UnusableCaptions(
                f"a caption in {where} has {len(caption):,} characters; expected at most {MAX_CAPTION:,}"
            )
        if odd := _NO_TEXT.search(caption):
            raise UnusableCaptions(f"a caption in {where} has a control character ({bounds.printable(odd[0])})")
        found.append(caption)
    return tuple(filter(None, dict.fromkeys(found)))


def _lines(text: str) -> Iterator[str]:
    """Split at newlines only: captions may contain U+2028 and the like."""
    for line in io.StringIO(text, newline=None):
        yield line.removesuffix("\n")


def _paired(where: str, name: str, videos: str, prompts: str) -> Iterator[Row]:
    for number, (video, prompt) in enumerate(zip_longest(_lines(videos), _lines(prompts)), start=1):
        if video is None or prompt is None:
            raise BadRequest(f"{where} differ in length at line {number}; expected one caption per clip")
        if video.strip():
            yield f"{name} line {number}", {"path": video.strip(), "text": prompt}


def _jsonl(path: Path, content: str) -> Iterator[Row]:
    listed = bounds.printable(str(path), 200)
    for number, line in enumerate(_lines(content), start=1):
        if not line.strip():
            continue
        where = f"{listed} line {number}"
        row = bounds.from_json(line, where, pairs=_pairs)
        if not isinstance(row, dict):
            raise BadRequest(f"{where} is not a JSON object; expected an object with a file name and a caption")
        yield f"{path.name} line {number}", row


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; the values of a repeated key are joined in a list."""
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            values = [v if isinstance(v, list) else [v] for v in (result[name], value)]
            result[name] = values[0] + values[1]
        else:
            result[name] = value
    return result


def _csv(path: Path, content: str) -> Iterator[Row]:
    where = bounds.printable(str(path), 200)
    delimiter = _delimiter(content)
    if content.count(delimiter) > MAX_CELLS:
        raise BadRequest(f"{where} holds more than {MAX_CELLS:,} cells; expected a list of clips and captions")
    reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter, restkey=_EXTRA)
    try:
        reader.fieldnames = names = [name.strip() for name in reader.fieldnames or []]
        if twice := [name for name in (*PATH_COLUMNS, *TEXT_COLUMNS) if names.count(name) > 1]:
            raise BadRequest(f"{where} has more than one column named {twice[0]}; expected one")
        for row in reader:
            yield f"{path.name} line {reader.line_num}", row
    except csv.Error as error:
        raise BadRequest(f"{where} line {reader.line_num} cannot be read as csv: {error}") from error


def _delimiter(content: str) -> str:
    """The delimiter of the header: a comma, or a semicolon or tab if that gives a known column."""
    head = content[:4096].lstrip("\r\n").split("\n", 1)[0].strip("\r")
    for mark in ",;\t":
        if len(cells := [c.strip().strip('"') for c in head.split(mark)]) > 1 and set(cells) & {
            *PATH_COLUMNS,
            *TEXT_COLUMNS,
        }:
            return mark
    return ","


def _json(path: Path, content: str) -> Iterator[Row]:
    """The rows of a list of objects, or of one object that maps names to captions (or to objects)."""
    where = bounds.printable(str(path), 200)
    found = bounds.from_json(content, where, pairs=_pairs)
    if isinstance(found, dict):
        found = [row for name, value in found.items() for row in _named(name, value)]
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise BadRequest(f"{where} is not a list of objects; expected objects with a file name and a caption")
    yield from ((f"{path.name} entry {i}", row) for i, row in enumerate(found, start=1))


def _named(name: str, value: Any) -> list[dict[str, Any]]:
    """The rows of one key of an object: one or more."""
    if isinstance(value, dict):
        return [{**value, "file_name": name}]
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return [{**v, "file_name": name} for v in value]
    return [{"file_name": name, "caption": value}]


def counted(found: Iterator[Row], folder: Path) -> Iterator[Row]:
    """Yield the rows; raises BadRequest beyond `MAX_FILES`."""
    for number, row in enumerate(found):
        if number >= MAX_FILES:
            raise BadRequest(f"the list in {bounds.printable(str(folder), 200)} has more than {MAX_FILES:,} rows")
        yield row
