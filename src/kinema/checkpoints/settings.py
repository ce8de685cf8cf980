"""Configs from untrusted data: every value is checked for type and size.

A config comes from a file's metadata, a folder's JSON, a recipe or ``overrides``. All of them are built here, so that
a wrong type or an absurd size is one clear error before any network is built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kinema.bounds import MAX_QUOTED, quoted
from kinema.schema import BadRequest

MAX_INTEGER = 2**20
"""Largest integer; above the largest vocabulary and the longest published training."""
MAX_FLOAT = 1e9
MAX_LIST = 64
"""Longest list of sizes; published models have ten entries."""
MAX_WORDS = 2**17
MAX_TABLE = 10_000
"""Longest list of numbers; published models have 1000 betas."""

T = TypeVar("T")
_KINDS = {bool: "true or false", str: "text", float: "a number"}


def build_config(kind: type[T], data: Any, where: str) -> T:
    """Build the dataclass ``kind`` from plain values by name, such as parsed JSON.

    Raises `BadRequest`, starting with ``where``, for an unknown name, a value of the wrong type or out of range, and
    inconsistent values. Integers may be 0 if the default is, or if the field's metadata has ``least=0``.
    """
    if not isinstance(data, Mapping):
        raise BadRequest(f"{where} is {quoted(data)}; expected a table of settings")
    hints, known = _hints(kind), {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := [name for name in data if name not in known]:
        raise BadRequest(f"{where} has the unknown setting {quoted(unknown[0])}; it may need a newer version of Kinema")
    values = {n: _value(hints[n], value, f"{n} in {where}", _least(known[n])) for n, value in data.items()}
    try:
        return kind(**values)
    except BadRequest:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise BadRequest(f"{where} has inconsistent values: {quoted(str(error), 160)}") from error


def validated(config: T, where: str) -> T:
    """Return the config unchanged, after the checks of `build_config`."""
    return build_config(type(config), {f.name: getattr(config, f.name) for f in fields(config)}, where)  # type: ignore[arg-type]


class FileFault(BadRequest):
    """What is wrong with a file, raised where its name is not known; `naming_faults` adds the name."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"this file {fault}")
        self.fault = fault


@contextmanager
def naming_faults(where: str) -> Iterator[None]:
    """Turn errors from reading untrusted names, shapes and settings into a `BadRequest` that names ``where``."""
    try:
        yield
    except FileFault as error:
        raise BadRequest(f"{where} {error.fault}") from error
    except BadRequest:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError) as error:
        reason = quoted(str(error), MAX_QUOTED) if str(error) else type(error).__name__
        raise BadRequest(f"{where} is damaged: a name, shape or setting in it is invalid ({reason})") from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _least(field: Field) -> int:
    if "least" in field.metadata:
        return int(field.metadata["least"])
    default = field.default
    zero = default == 0 or (isinstance(default, tuple) and 0 in default)
    return 0 if default is not MISSING and zero else 1


def _value(kind: Any, value: Any, what: str, least: int) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        return _value(next(each for each in inner if each is not NoneType), value, what, least)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in inner):
            raise _refused(what, value, " or ".join(repr(choice) for choice in inner))
        return value
    if origin is tuple:
        return _values(inner, value, what, least)
    if is_dataclass(kind):
        return validated(value, what) if isinstance(value, kind) else build_config(kind, value, what)  # type: ignore[arg-type]
    return _scalar(kind, value, what, least)


def _values(kinds: tuple[Any, ...], value: Any, what: str, least: int) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _refused(what, value, "a list")
    if kinds[-1] is Ellipsis:
        most = {str: MAX_WORDS, float: MAX_TABLE}.get(kinds[0], MAX_LIST)
        if len(value) > most:
            raise BadRequest(f"{what} has {len(value):,} entries; expected {most:,} at most")
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise _refused(what, value, f"{len(kinds)} values")
    return tuple(_value(kind, each, what, least) for kind, each in zip(kinds, value, strict=True))


def _scalar(kind: Any, value: Any, what: str, least: int) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        if not number or not isinstance(value, int) or not least <= value <= MAX_INTEGER:
            raise _refused(what, value, f"a whole number from {least} to {MAX_INTEGER:,}")
    elif kind is float:
        if not number or not -MAX_FLOAT <= value <= MAX_FLOAT or not math.isfinite(value):
            raise _refused(what, value, f"a number from -{MAX_FLOAT:.0e} to {MAX_FLOAT:.0e}".replace("e+0", "e"))
    elif type(value) is not kind:
        raise _refused(what, value, _KINDS.get(kind, f"a {kind.__name__}"))
    return value


def _refused(what: str, value: Any, expected: str) -> BadRequest:
    return BadRequest(f"{what} is {quoted(value)}; expected {expected}")
