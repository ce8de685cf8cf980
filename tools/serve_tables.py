"""Write the tables of docs/serve.md from the code: endpoints, fields of bodies, and options.

Run: python tools/serve_tables.py. tests/server/test_page.py checks that the page is what this writes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin
from unittest.mock import MagicMock

PAGE = Path(__file__).parents[1] / "docs" / "serve.md"


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """The page with the tables between its marks written anew."""
    for name, table in {"endpoints": endpoints(), "fields": fields(), "options": options()}.items():
        marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if not all(mark in text for mark in marks):
            raise SystemExit(f"{PAGE.name} has no marks {marks}")
        start, end = text.index(marks[0]) + len(marks[0]), text.index(marks[1])
        text = f"{text[:start]}\n{table}\n{text[end:]}"
    return text


def endpoints() -> str:
    from kinema.server.app import create_app
    from kinema.server.settings import Settings

    paths = create_app(MagicMock(), Settings(folder=Path("folder"))).openapi()["paths"]
    rows = [
        (
            f"`{method.upper()} {re.sub('{.*?}', 'ID', path)}`",
            sentence(found["description"]),
        )
        for path, methods in sorted(paths.items())
        for method, found in methods.items()
    ]
    return table(("endpoint", "what it does"), rows)


def fields() -> str:
    from kinema.server.http import fields as module

    rows = [(f"`{f.name}`", kind(f), sentence(f.help, whole=True)) for f in module.table().values()]
    rows.append(
        (
            "`request`",
            "object",
            "in place of all others but `model`: a `kinema.Request` as JSON, as Kinema's clients send it",
        )
    )
    return table(("field", "value", "meaning"), rows)


def options() -> str:
    from kinema.cli.serve import OPTIONS

    rows = []
    for o in OPTIONS:
        default = "" if o.default in (None, [], "", False) else f"; default {o.default}"
        rows.append((f"`{o.flag}{'' if o.kind is bool else f' {o.value_name}'}`", f"{o.help}{default}"))
    return table(("option", "meaning"), rows)


def kind(f: Any) -> str:
    """The values of a field, in words."""
    found = words(f.type) if f.schema is None else shape(f.schema)
    return found if f.least is None else f"{found}, {number(f.least)} to {number(f.most)}"


def shape(schema: Any) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(shape(each) for each in schema["anyOf"]))
    if "pattern" in schema:
        return "identifier" if "asset" in schema["pattern"] else "text"
    return {"string": "text", "number": "number", "array": "list", "object": "object"}[schema["type"]]


def words(hint: Any) -> str:
    origin, inner = get_origin(hint), [each for each in get_args(hint) if each is not type(None)]
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin is tuple:
        return f"{len(inner)} numbers"
    if inner and (origin is Union or "Union" in str(type(hint)) or "|" in str(hint)) and origin is not dict:
        return " or ".join(dict.fromkeys(map(words, inner))) if "Mapping[" not in str(hint)[:30] else "object"
    names = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
    return names.get(hint, "object")


def number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and value < 1e15 else f"{value:g}" if value < 1e15 else "2^63 - 1"


def sentence(text: str, *, whole: bool = False) -> str:
    """The first sentence, on one line, as a table's cell."""
    line = re.sub(r"``?([^`]+)``?", r"`\1`", " ".join(text.split()))
    return (line if whole else re.split(r"(?<=\.) ", line)[0]).replace("|", "\\|")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
