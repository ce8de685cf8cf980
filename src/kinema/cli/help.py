"""The ``--help`` page of a command: an example first, then the main options, then the rest by topic."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kinema.cli.options import Option

COLUMN = 26
"""Characters of the column of option names."""
WIDEST = 110
OTHER = "other options"


def page(
    options: Sequence[Option],
    prog: str,
    about: str,
    example: str = "",
    groups: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The help page. ``groups`` maps a heading to option names, in order; an option in no group goes under `OTHER`."""
    width = min(WIDEST, shutil.get_terminal_size().columns)
    positional = [o for o in options if o.positional]
    named = {o.name: o for o in options if not o.positional}
    usage = " ".join(["usage:", prog, *(_optional(o) for o in positional), "[OPTIONS]"])
    parts = [usage, textwrap.fill(about, width)]
    if example:
        parts.append(f"example:\n  {example}")
    if positional:
        parts.append("\n".join(_row(o.name.upper(), o.help + _default(o), width) for o in positional))
    for heading, names in (groups or {}).items():
        members = [named.pop(name) for name in names if name in named]
        if members:
            parts.append(_section(heading, members, width))
    if named:
        parts.append(_section(OTHER if groups else "options", named.values(), width))
    return "\n\n".join(parts) + "\n"


def _optional(o: Option) -> str:
    return f"[{o.name.upper()} …]" if o.repeated else o.name.upper()


def _section(heading: str, options: Iterable[Option], width: int) -> str:
    return "\n".join([f"{heading}:", *(_row(_names(o), o.help + _default(o), width) for o in options)])


def _names(o: Option) -> str:
    flag = f"--no-{o.flag[2:]}" if o.kind is bool and o.default else o.flag
    value = "" if o.kind is bool else f" {o.value_name}"
    return (f"{o.short}, " if o.short else "") + flag + value


def _default(o: Option) -> str:
    if o.kind is bool or o.repeated or o.default in (None, "", (), {}):
        return ""
    plain = ",".join(f"{v:g}" for v in o.default) if isinstance(o.default, tuple) else str(o.default)
    return f" (default: {plain})"


def _row(name: str, text: str, width: int) -> str:
    """Name and help in two columns; a long name has a line to itself."""
    lines = textwrap.wrap(text, max(24, width - COLUMN - 2)) or [""]
    first = f"  {name}"
    if len(first) < COLUMN + 1:
        first, lines = f"{first:<{COLUMN + 2}}{lines[0]}".rstrip(), lines[1:]
    return "\n".join([first, *(" " * (COLUMN + 2) + line for line in lines if line)])
