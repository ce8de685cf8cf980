"""What a stranger's file may make us read, hold, compute or say.

Configs, lists, headers and recipes come from people we do not know. Whatever reads them goes through here, so that
each bound is written once: only regular files, so many bytes, so deep, so many values, numbers of so many digits, and
no more of any of it quoted back than fits on a line.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kinema.schema import BadRequest
from kinema.values import MAX_QUOTED, cut, cut_middle, quoted  # noqa: F401 (whoever quotes a stranger does it from here)

MAX_DEPTH = 48
"""Tables and lists inside each other: a diffusers config has four."""
MAX_VALUES = 2_000_000
"""Values in one file, those of a shared part (a YAML alias) counted as often as they are reached."""
MAX_DIGITS = 24
"""Digits of a whole number: a 64-bit one has twenty."""
MAX_TEXT = 2**20
"""Characters of one text."""
MAX_CONFIG = 2**18
"""Bytes of a config that people write by hand."""

_DOTTED = re.compile(rf"(?:[^\s.#]{{1,80}}\s*\.\s*){{{MAX_DEPTH},}}")
_MERGED = 10_000
"""Pairs that YAML's merge keys may bring into the tables of one file."""
_MERGE = "tag:yaml.org,2002:merge"
_TEXT = "tag:yaml.org,2002:str"
_NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
_SURPRISING = re.compile(r".*:.*|[-+]?0[0-9_]+")
_DIGITS = re.compile(r"value has (\d+) digits")
"""How Python words that an integer is too long for it."""


# -------------------------------------------------------------------------------------- saying


def printable(text: str, most: int | None = None) -> str:
    """Text as a terminal may print it: control characters and lone surrogates escaped.

    Of more than ``most`` characters the middle is left out, since the end says as much: a path's own name is there.
    """
    text = text if most is None else cut_middle(text, most)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if most is None else cut_middle(text, most)


def few(names: Sequence[str], most: int = 110) -> str:
    """The first three of many names, each of at most so many characters, for a sentence."""
    return ", ".join(printable(name, most) for name in names[:3]) + (", …" if len(names) > 3 else "")


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON as people read it: their letters as they are, and what a terminal would act on escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


# ------------------------------------------------------------------------------------- decoding

_raised = [0]


def pixels(most: int) -> int:
    """How many pixels may be decoded where ``most`` is the bound: more where the user raised it (``--max-pixels``)."""
    return max(most, *_raised)


@contextmanager
def raised(most: int) -> Iterator[None]:
    """Until it is left, every bound on pixels of files (of a frame, a picture, a clip) is at least ``most``."""
    _raised.append(most)
    try:
        yield
    finally:
        _raised.remove(most)


# ------------------------------------------------------------------------------------- reading


def is_regular(path: Path) -> bool:
    """Whether ``path`` is, or leads to, a regular file: nothing that blocks, never ends or acts when it is read."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def read_bytes(path: Path, most: int, what: str = "") -> bytes:
    """All of a regular file. Raises `BadRequest` for anything else, one of more than ``most`` bytes, or unreadable.

    ``what`` is what was expected ("a config"), for the sentence.
    """
    expected = f"; expected {what}" if what else ""
    try:
        # Opened without waiting (a FIFO would wait for a writer), and looked at once it is open, not before.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise BadRequest(f"{printable(str(path), 200)} cannot be read: {error.strerror}") from error
    told = os.fstat(handle)
    if not stat.S_ISREG(told.st_mode):
        os.close(handle)
        raise BadRequest(f"{printable(str(path), 200)} is not a regular file{expected}")
    with os.fdopen(handle, "rb") as file:
        if told.st_size > most:
            raise BadRequest(
                f"{printable(str(path), 200)} is {told.st_size:,} bytes long; at most {most:,} are read{expected}"
            )
        return file.read(most)


def decoded(data: bytes, where: str) -> str:
    """Text as it was written: UTF-8, or UTF-16 or UTF-32 that begins with a byte order mark.

    Raises `BadRequest` for any other bytes: a guess would put words there that nobody wrote.
    """
    marks = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
    kind = next((name for mark, name in marks if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(kind)
    except UnicodeDecodeError as error:
        raise BadRequest(f"{where} is not UTF-8 text (byte {error.start:,}); save it as UTF-8") from error
    if "\0" in text:
        raise BadRequest(f"{where} holds zero bytes, so it is not text; save it as UTF-8")
    return text


# ------------------------------------------------------------------------------------- parsing


def from_json(
    text: str | bytes,
    where: str,
    *,
    infinite: bool = False,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """JSON within the bounds above. ``infinite`` lets ±Infinity through, NaN never. Raises `BadRequest`.

    ``pairs`` is `json.loads`'s ``object_pairs_hook``; a `ValueError` of its makes the text damaged.
    """
    comma, opened = (b",", (b"[", b"{")) if isinstance(text, bytes) else (",", ("[", "{"))
    if text.count(comma) + sum(map(text.count, opened)) > MAX_VALUES:  # type: ignore[arg-type]
        raise BadRequest(f"{where} holds more than {MAX_VALUES:,} values, which is more than are read")

    def constant(name: str) -> float:
        if name == "NaN" or not infinite:
            raise ValueError(f"{name} is no number")
        return float(name)

    def whole(word: str) -> int:
        digits = len(word.lstrip("-"))
        if digits > MAX_DIGITS:
            raise _too_long(digits, where)
        return int(word)

    try:
        told = json.loads(text, parse_int=whole, parse_float=_finite, parse_constant=constant, object_pairs_hook=pairs)
    except RecursionError as error:
        raise BadRequest(f"{where} is nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        if isinstance(error, BadRequest):
            raise
        said = error.msg.lower() if isinstance(error, json.JSONDecodeError) else str(error)
        at = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadRequest(f"{where} is damaged: it is not JSON ({said}{at})") from error
    check(told, where, infinite=infinite)
    return told


def from_toml(text: str, where: str) -> dict[str, Any]:
    """TOML within the bounds above; raises `BadRequest`."""
    import tomllib

    if _DOTTED.search(text):  # tomllib takes quadratic time over a key of many parts
        raise BadRequest(f"{where} is nested deeper than {MAX_DEPTH} levels")
    try:
        told = tomllib.loads(text)
    except RecursionError as error:
        raise BadRequest(f"{where} is nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        if digits := _DIGITS.search(str(error)):
            raise _too_long(int(digits[1]), where) from error
        said = cut(printable(str(error).splitlines()[0]), 160)
        raise BadRequest(f"{where} is damaged: it is not TOML ({said})") from error
    check(told, where)
    return told


def from_yaml(text: str, where: str) -> Any:
    """YAML of plain values within the bounds above, aliases and merge keys included; raises `BadRequest`."""
    import yaml

    class Loader(yaml.SafeLoader):
        left = _MERGED

        def flatten_mapping(self, node: Any) -> None:
            # Counted before PyYAML copies them, over the whole file: a line can merge the same large table again.
            for told in [value for name, value in node.value if name.tag == _MERGE]:
                for each in told.value if isinstance(told, yaml.SequenceNode) else [told]:
                    if isinstance(each, yaml.MappingNode):
                        self.flatten_mapping(each)  # what it merges itself is copied with it
                    self.left -= max(1, len(each.value))
                    if self.left < 0:
                        raise BadRequest(f"{where} merges more than {_MERGED:,} values into its tables")
            super().flatten_mapping(node)

        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            # To YAML 1.1 an unquoted 1:30 is 90 and 010 is 8. Nobody means that: both are the text that they are.
            tag = super().resolve(kind, value, implicit)
            return _TEXT if tag in _NUMBERS and _SURPRISING.fullmatch(value) else tag

    try:
        told = yaml.load(text, Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError as error:
        raise BadRequest(f"{where} is nested deeper than {MAX_DEPTH} levels") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # its own text speaks of scanners and tokens
        raise BadRequest(f"{where} is damaged: {f'line {mark.line + 1}' if mark else 'it'} is not YAML") from error
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, BadRequest):
            raise
        if digits := _DIGITS.search(str(error)):
            raise _too_long(int(digits[1]), where) from error
        raise BadRequest(f"{where} is damaged: it holds a value that YAML cannot stand for") from error
    check(told, where)
    return told


def check(value: Any, where: str, *, infinite: bool = False) -> None:
    """Refuse a value of parsed text that is too deep, too large, or no plain data."""
    stack: list[tuple[Any, int]] = [(value, 0)]
    count = 0
    while stack:
        each, depth = stack.pop()
        if count > MAX_VALUES:
            raise BadRequest(f"{where} holds more than {MAX_VALUES:,} values, which is more than are read")
        if depth > MAX_DEPTH:
            raise BadRequest(f"{where} is nested deeper than {MAX_DEPTH} levels")
        count += 1
        if isinstance(each, Mapping):
            for name, inner in each.items():
                _scalar(name, where, infinite=infinite)
                stack.append((inner, depth + 1))
        elif isinstance(each, list | tuple):
            stack.extend((inner, depth + 1) for inner in each)
        else:
            _scalar(each, where, infinite=infinite)
        if len(stack) > MAX_VALUES:
            raise BadRequest(f"{where} holds more than {MAX_VALUES:,} values, which is more than are read")


def _scalar(value: Any, where: str, *, infinite: bool) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise BadRequest(f"{where} holds a text of {len(value):,} characters; at most {MAX_TEXT:,} are read")
    elif isinstance(value, int):
        if value.bit_length() > MAX_DIGITS * 10 // 3:
            raise BadRequest(f"{where} holds {quoted(value)}; at most {MAX_DIGITS} digits are read")
    elif isinstance(value, float):
        if math.isnan(value) or (math.isinf(value) and not infinite):
            raise BadRequest(f"{where} holds a number that is not finite")
    else:
        raise BadRequest(f"{where} holds {quoted(value)}, which is neither text nor a number: put it in quotes")


def _too_long(digits: int, where: str) -> BadRequest:
    return BadRequest(f"{where} holds a number of {digits:,} digits; at most {MAX_DIGITS} digits are read")


def _finite(word: str) -> float:
    value = float(word[:400])
    if not math.isfinite(value):
        raise ValueError(f"{cut(word, 20)} is no finite number")
    return value
