"""The ``--help`` page of a command: an example first, then the main options, then the rest by topic."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

COLUMN = 26
"""Characters of the column of option names."""
WIDEST = 110
OTHER = "other options"


@dataclass(frozen=True)
class Entry:
    """One option: its Python ``name``, its ``label`` ("-o, --output PATH") and its help text."""

    name: str
    label: str
    text: str


def page(
    usage: str,
    about: str,
    example: str,
    positional: Sequence[Entry],
    options: Sequence[Entry],
    groups: Mapping[str, Sequence[str]],
) -> str:
    """The help page. ``groups`` maps a heading to option names, in order; an option in no group goes under `OTHER`."""
    width = min(WIDEST, shutil.get_terminal_size().columns)
    by_name = {entry.name: entry for entry in options}
    parts = [f"usage: {usage}", textwrap.fill(about, width)]
    if example:
        parts.append(f"example:\n  {example}")
    if positional:
        parts.append("\n".join(_row(entry, width) for entry in positional))
    for heading, names in groups.items():
        members = [by_name.pop(name) for name in names if name in by_name]
        if members:
            parts.append(_section(heading, members, width))
    if by_name:
        parts.append(_section(OTHER if groups else "options", by_name.values(), width))
    return "\n\n".join(parts) + "\n"


def _section(heading: str, entries: Iterable[Entry], width: int) -> str:
    return "\n".join([f"{heading}:", *(_row(entry, width) for entry in entries)])


def _row(entry: Entry, width: int) -> str:
    """Label and text in two columns; a long label has a line to itself."""
    lines = textwrap.wrap(entry.text, max(24, width - COLUMN - 2)) or [""]
    first = f"  {entry.label}"
    if len(first) < COLUMN + 1:
        first, lines = f"{first:<{COLUMN + 2}}{lines[0]}".rstrip(), lines[1:]
    return "\n".join([first, *(" " * (COLUMN + 2) + line for line in lines if line)])
