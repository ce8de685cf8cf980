"""Plain values of any origin: whether one fits a type annotation, and how a sentence quotes it.

The lowest layer: `kinema.schema` checks the fields of a request with it before anything else is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

MAX_QUOTED = 80
"""Characters of a stranger's value that a sentence quotes."""

_NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
_SEVERAL = {str: "texts", int: "whole numbers", float: "numbers"}


# -------------------------------------------------------------------------------------- saying


def quoted(value: Any, most: int = MAX_QUOTED) -> str:
    """``repr`` of a stranger's value on one line of at most ``most`` characters; the whole of it is never written."""
    return cut(_brief(value, most, 3), most)


def cut(text: str, most: int) -> str:
    """The text, or its beginning and an ellipsis: at most ``most`` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def cut_middle(text: str, most: int) -> str:
    """The text, or both its ends about an ellipsis: of a path the file's own name, of a sentence what was expected."""
    end = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def counted(count: int, what: str) -> str:
    """So many of a thing: "1 step", "2,000 steps"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _brief(value: Any, most: int, depth: int) -> str:
    match value:
        case str():
            told = repr(value if len(value) <= most else value[:most] + "…")
        case bytes():
            told = repr(value[:most])
        case bool() | float() | None:
            told = repr(value)
        case int() if value.bit_length() > 80:
            told = f"a number of about {value.bit_length() * 3 // 10:,} digits"
        case int():
            told = str(value)
        case Mapping():
            pairs = (f"{_brief(k, most, 0)}: {_brief(v, most, depth - 1)}" for k, v in value.items())
            told = _inside("{}", pairs, len(value), most, depth)
        case list() | tuple():
            told = _inside("[]", (_brief(v, most, depth - 1) for v in value), len(value), most, depth)
        case _:
            told = f"a {type(value).__name__}"
    return told


def _inside(ends: str, parts: Iterable[str], count: int, most: int, depth: int) -> str:
    if count and depth < 1:
        return f"{ends[0]}…{ends[1]}"
    told, size = [], 0
    for part in parts:
        if size > most:
            told.append("…")
            break
        told.append(part)
        size += len(part) + 2
    return ends[0] + ", ".join(told) + ends[1]


def resolve(target: str) -> Any:
    """The object that a ``module:object`` string names. The module is imported when it is asked for, wherever it is."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


# ------------------------------------------------------------------------------------ checking


def fits(value: Any, hint: Any) -> bool:  # noqa: PLR0911 (one line a kind reads better than a ladder)
    """Whether a value is what an annotation says. A whole number is a number too, true and false are none.

    Lists do where tuples are meant, as JSON knows no others, and tables where dataclasses are.
    """
    if hint is Any:
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if origin is list:
        return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        if inner[-1] is Ellipsis:
            return all(fits(each, inner[0]) for each in value)
        return len(value) == len(inner) and all(map(fits, value, inner))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if hint is float:
        return isinstance(value, float) or (type(value) is int and value.bit_length() < 1024)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if is_dataclass(hint):
        wanted = [f.name for f in fields(hint) if f.default is f.default_factory is MISSING]
        named = isinstance(value, Mapping) and all(name in value for name in wanted)
        return named and not misfit(hint, value)
    return isinstance(value, hint) if isinstance(hint, type) else True


def misfit(kind: Any, told: Mapping[str, Any]) -> str:
    """What in a table is not as the dataclass ``kind`` says: "its device is null; expected text". "" where all is.

    Only names that both have are looked at.
    """
    for name, hint in _hints(kind).items():
        if name in told and not fits(value := told[name], hint):
            return f"its {name} is {'null' if value is None else quoted(value)}; expected {expected(hint)}"
    return ""


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def expected(hint: Any) -> str:
    """What an annotation asks for, as the end of a sentence: "a whole number", "crop or pad", "2 numbers"."""
    origin, inner = get_origin(hint), [each for each in get_args(hint) if each is not NoneType]
    if origin in (Union, UnionType):
        return " or ".join(map(expected, inner))
    if origin is Literal:
        *others, last = map(str, inner)
        return f"{', '.join(others)} or {last}" if others else last
    if origin is list:
        return f"a list of {_SEVERAL.get(inner[0], 'tables')}"
    if origin is tuple:
        many = _SEVERAL.get(inner[0], "values")
        return many if inner[-1] is Ellipsis else f"{len(inner)} {many}"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return f"names with {_SEVERAL.get(inner[1], 'values')}"
    return _NAMES.get(hint, "another value")
