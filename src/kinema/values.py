"""Plain values: check them against type annotations, and quote them in messages.

The lowest layer: `kinema.schema` checks request fields with it before anything else is loaded.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

MAX_QUOTED = 80
"""Maximum characters of an untrusted value that a message quotes."""

_NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
_SEVERAL = {str: "texts", int: "whole numbers", float: "numbers"}


# ------------------------------------------------------------------------------------- addresses


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; IPv6 addresses may be in brackets."""
    import ipaddress

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


# ------------------------------------------------------------------------------------- quoting


def quoted(value: Any, most: int = MAX_QUOTED) -> str:
    """Return a ``repr`` of an untrusted value on one line of at most ``most`` characters, without building it whole."""
    return cut(_brief(value, most, 3), most)


def cut(text: str, most: int) -> str:
    """Shorten text to at most ``most`` characters, with an ellipsis at the end."""
    return text if len(text) <= most else text[: most - 1] + "…"


def cut_middle(text: str, most: int) -> str:
    """Shorten text with an ellipsis in the middle, keeping the end: a path's file name, or what a message expected."""
    end = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def counted(count: int, what: str) -> str:
    """Return a count with its noun: "1 step", "2,000 steps"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def strict(value: Any) -> Any:
    """Return a nested value with null in place of infinite numbers and NaN, which JSON does not have."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {name: strict(each) for name, each in value.items()}
        case list() | tuple():
            return [strict(each) for each in value]
    return value


def number(value: float) -> str:
    """Return a number as messages show it: whole numbers without an exponent, with commas."""
    whole = isinstance(value, int) or (abs(value) < 1e15 and value == int(value))
    return f"{int(value):,}" if whole else f"{value:g}"


def _brief(value: Any, most: int, depth: int) -> str:
    match value:
        case str():
            text = repr(value if len(value) <= most else value[:most] + "…")
        case bytes():
            text = repr(value[:most])
        case bool() | float() | None:
            text = repr(value)
        case int() if value.bit_length() > 80:
            text = f"a number of about {value.bit_length() * 3 // 10:,} digits"
        case int():
            text = str(value)
        case Mapping():
            pairs = (f"{_brief(k, most, 0)}: {_brief(v, most, depth - 1)}" for k, v in value.items())
            text = _inside("{}", pairs, len(value), most, depth)
        case list() | tuple():
            text = _inside("[]", (_brief(v, most, depth - 1) for v in value), len(value), most, depth)
        case _:
            text = f"a {type(value).__name__}"
    return text


def _inside(ends: str, parts: Iterable[str], count: int, most: int, depth: int) -> str:
    if count and depth < 1:
        return f"{ends[0]}…{ends[1]}"
    shown, size = [], 0
    for part in parts:
        if size > most:
            shown.append("…")
            break
        shown.append(part)
        size += len(part) + 2
    return ends[0] + ", ".join(shown) + ends[1]


def resolve(target: str) -> Any:
    """Import the module of a ``module:object`` string and return the object."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


# ------------------------------------------------------------------------------------ checking


def matches(value: Any, hint: Any) -> bool:  # noqa: PLR0911 (one return per kind)
    """Whether a value matches an annotation. Integers match float; booleans do not match numbers.

    As in JSON, lists match tuples, and mappings match dataclasses.
    """
    if hint is Any:
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(matches(value, each) for each in inner)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if origin is list:
        return isinstance(value, list) and all(matches(each, inner[0]) for each in value)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        if inner[-1] is Ellipsis:
            return all(matches(each, inner[0]) for each in value)
        return len(value) == len(inner) and all(map(matches, value, inner))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            matches(k, inner[0]) and matches(v, inner[1]) for k, v in value.items()
        )
    if hint is float:
        return isinstance(value, float) or (type(value) is int and value.bit_length() < 1024)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if is_dataclass(hint):
        required = [f.name for f in fields(hint) if f.default is f.default_factory is MISSING]
        complete = isinstance(value, Mapping) and all(name in value for name in required)
        return complete and not mismatch(hint, value)
    return isinstance(value, hint) if isinstance(hint, type) else True


def mismatch(kind: Any, table: Mapping[str, Any]) -> str:
    """Return the first mismatch of a table with the dataclass ``kind``, such as "its device is null; expected text".

    Only keys that both have are checked. Returns "" if all match.
    """
    for name, hint in _hints(kind).items():
        if name in table and not matches(value := table[name], hint):
            return f"its {name} is {'null' if value is None else quoted(value)}; expected {expected(hint)}"
    return ""


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def expected(hint: Any) -> str:
    """Describe an annotation for the end of a message: "a whole number", "crop or pad", "2 numbers"."""
    origin, inner = get_origin(hint), [each for each in get_args(hint) if each is not NoneType]
    if origin in (Union, UnionType):
        return " or ".join(map(expected, inner))
    if origin is Literal:
        *others, last = map(str, inner)
        return f"{', '.join(others)} or {last}" if others else last
    if origin is list:
        return f"a list of {_SEVERAL.get(inner[0], 'tables')}"
    if origin is tuple:
        plural = _SEVERAL.get(inner[0], "values")
        return plural if inner[-1] is Ellipsis else f"{len(inner)} {plural}"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return f"names with {_SEVERAL.get(inner[1], 'values')}"
    return _NAMES.get(hint, "another value")
