"""Prompt files of Open-Sora 1.0 to 1.3: a prompt a line, with references and a mask strategy as JSON behind it.

    a car drives on {"reference_path": "car.mp4;road.png", "mask_strategy": "0,0,-5,0,5"}
    |0|a river in spring|2|the river in autumn

A prompt that begins with ``|0|`` is several, each from a loop on. A ``.csv`` file has a prompt a row: the column
``text``, and what stands in JSON elsewhere in columns of the same names. Original: extract_json_from_prompts and
extract_prompts_loop (1.2: opensora/utils/inference_utils.py; 1.1: scripts/inference-long.py, process_prompts),
load_prompts (1.3), which takes the name of the column of references as an option, and ignores others.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinema import bounds
from kinema.families.opensora.first_line import masks
from kinema.families.opensora.first_line.masks import Group
from kinema.schema import BadRequest
from kinema.values import counted, quoted

MOST_BYTES = 4 << 20
MOST_PROMPTS = 100_000
KEYS = "reference_path", "mask_strategy"
COLUMNS = ("text", *KEYS)
OBJECT = "expected an object with reference_path and mask_strategy"
BEGINS = {"1.1": re.compile(r"[{\[]"), "1.2": re.compile(r"{")}
"""Where a line's JSON begins; 1.3 reads lines as 1.2 does."""
FIRST = "|0|"


@dataclass(frozen=True)
class Prompt:
    """A line: its text, which may be for several loops (`per_loop`), the paths of its references, its strategy."""

    text: str
    references: tuple[str, ...] = ()
    strategy: tuple[Group, ...] = ()


def read(path: Path, version: str = "1.2") -> tuple[Prompt, ...]:
    """The prompts of a file; empty lines are left out, which the original would generate clips without a prompt for.

    Raises BadRequest, with the line, for JSON that is none, keys other than `KEYS`, and a strategy that is none.
    """
    name = bounds.printable(path.name, 80)
    content = bounds.decoded(bounds.read_bytes(path, MOST_BYTES, "a file of prompts"), name)
    if path.suffix.lower() == ".csv":
        found = tuple(_rows(content, version, name))
    else:
        lines = [line.strip() for line in io.StringIO(content, newline=None)]
        found = tuple(parsed(line, version, f"{name} line {number}") for number, line in enumerate(lines, 1) if line)
    if not found:
        raise BadRequest(f"{name} has no prompts; expected one a line")
    if len(found) > MOST_PROMPTS:
        raise BadRequest(f"{name} has {len(found):,} prompts; expected at most {MOST_PROMPTS:,}")
    return found


def parsed(line: str, version: str = "1.2", where: str = "the prompt") -> Prompt:
    """A line's prompt: its text ends where its JSON begins, at the first ``{`` (1.1: or ``[``)."""
    begins = BEGINS["1.1" if version == "1.1" else "1.2"].search(line)
    if begins is None:
        return Prompt(line.strip())
    return _prompt(line[: begins.start()], _object(line[begins.start() :], where), where)


def _prompt(text: str, found: Mapping[str, str], where: str) -> Prompt:
    references = tuple(found["reference_path"].split(";")) if found.get("reference_path") else ()
    if "" in references:
        raise BadRequest(f"{where} has an empty path in its reference_path; expected paths joined by ;")
    try:
        strategy = masks.parse(found.get("mask_strategy"))
    except BadRequest as error:
        raise BadRequest(f"{where}: {error}") from None
    return Prompt(text.strip(), references, strategy)


def _rows(content: str, version: str, name: str) -> Iterator[Prompt]:
    """The prompts of a table, whose texts may have JSON behind them where the columns leave its keys out."""
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        columns = [column.strip() for column in next(reader, [])]
        if "text" not in columns:
            raise BadRequest(
                f"{name} has the columns {quoted(', '.join(columns))}; expected text, and {' or '.join(KEYS)}"
            )
        if others := [column for i, column in enumerate(columns) if column not in COLUMNS or column in columns[:i]]:
            raise BadRequest(f"{name} has the column {quoted(others[0])}; expected {', '.join(COLUMNS)}, each once")
        for row in reader:
            where = f"{name} line {reader.line_num}"
            if any(cell.strip() for cell in row):
                if len(row) != len(columns):
                    raise BadRequest(f"{where} has {counted(len(row), 'cell')}; expected {len(columns)}, as the header")
                yield _row(dict(zip(columns, row, strict=True)), version, where)
    except csv.Error as error:
        raise BadRequest(f"{name} line {reader.line_num} is not a row of a CSV file: {error}") from None


def _row(cells: dict[str, str], version: str, where: str) -> Prompt:
    prompt, given = parsed(cells.pop("text"), version, where), {key: x.strip() for key, x in cells.items()}
    if not any(given.values()):
        return prompt
    if prompt.references or prompt.strategy:
        raise BadRequest(f"{where} has JSON after its text, and columns for the same; give them once")
    return _prompt(prompt.text, given, where)


def _object(text: str, where: str) -> dict[str, str]:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequest(f"{where} has {quoted(text)} after its text, which is not JSON; {OBJECT}") from None
    if not isinstance(found, dict):
        raise BadRequest(f"{where} ends with {quoted(text)}; {OBJECT}")
    for key, value in found.items():
        if key not in KEYS:
            raise BadRequest(f"{where} has the key {quoted(key)}; expected {' or '.join(KEYS)}")
        if not isinstance(value, str | None):
            raise BadRequest(f"{where} has {quoted(value)} for its {key}; expected text")
    return found


# -------------------------------------------------------------------------------- prompts per loop


def segments(text: str) -> tuple[tuple[int, str], ...]:
    """(first loop, text) of each part of ``|0|a|2|b``; a prompt that does not begin with ``|0|`` is one part.

    Raises BadRequest unless numbers and texts alternate and the numbers rise.
    """
    if not text.startswith(FIRST):
        return ((0, text),)
    parts = text.split("|")[1:]
    if len(parts) % 2:
        raise BadRequest(f"the prompt {quoted(text)} ends after a loop's number; expected its text, as in |0|a|2|b")
    where, found = f"the prompt {quoted(text)}", list[tuple[int, str]]()
    for number, part in zip(parts[::2], parts[1::2], strict=True):
        try:
            first = int(number)
        except ValueError:
            raise BadRequest(
                f"{where} has {quoted(number)} for a loop's number; expected a whole one, as in |0|a|2|b"
            ) from None
        if found and first <= found[-1][0]:
            raise BadRequest(f"{where} has loop {first} after loop {found[-1][0]}; expected increasing numbers")
        found.append((first, part.strip()))
    return tuple(found)


def per_loop(text: str, loops: int) -> tuple[str, ...]:
    """The prompt of each loop: the last part that begins at it or before.

    Raises BadRequest for a part that no loop would have. The original leaves it out, or fails in 1.1.
    """
    parts = segments(text)
    if (last := parts[-1][0]) >= loops:
        raise BadRequest(
            f"the prompt {quoted(text)} has a part for loop {last}, but {counted(loops, 'loop')} counted from 0 will "
            f"be generated; give loop={last + 1}, or leave the part out"
        )
    return tuple(next(part for first, part in reversed(parts) if first <= loop) for loop in range(loops))


def merged(parts: tuple[tuple[int, str], ...]) -> str:
    """The reverse of `segments`."""
    return parts[0][1] if len(parts) == 1 else "".join(f"|{first}|{part}" for first, part in parts)
