"""Limits for untrusted files, and parsers that apply them.

Configs, lists, headers and recipes may come from anyone. All of them are read here, within limits on file type, size,
nesting, number of values and digits, and on what messages quote.
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
from kinema.values import MAX_QUOTED, cut, cut_middle, quoted, strict  # noqa: F401 (re-exported for callers that quote untrusted text)

MAX_DEPTH = 48
"""Maximum nesting of tables and lists; a diffusers config has four levels."""
MAX_VALUES = 2_000_000
"""Maximum values in one file; values shared by a YAML alias count each time they are reached."""
MAX_DIGITS = 24
"""Maximum digits of a whole number; 64-bit integers have twenty."""
MAX_TEXT = 2**20
"""Maximum characters of one text."""
MAX_CONFIG = 2**18
"""Maximum bytes of a hand-written config."""

_DOTTED = re.compile(rf"(?:[^\s.#]{{1,80}}\s*\.\s*){{{MAX_DEPTH},}}")
_MERGED = 10_000
"""Maximum pairs that YAML merge keys may add to the tables of one file."""
_MERGE = "tag:yaml.org,2002:merge"
_TEXT = "tag:yaml.org,2002:str"
_NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
_SURPRISING = re.compile(r".*:.*|[-+]?0[0-9_]+")
_DIGITS = re.compile(r"value has (\d+) digits")
"""Python's message for an integer with too many digits."""


# ------------------------------------------------------------------------------------- printing


def printable(text: str, most: int | None = None) -> str:
    """Escape control characters and lone surrogates, so the text is safe to print on a terminal.

    Text longer than ``most`` characters is shortened in the middle, which keeps the file name of a path.
    """
    text = text if most is None else cut_middle(text, most)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if most is None else cut_middle(text, most)


def first_names(names: Sequence[str], most: int = 110) -> str:
    """Join the first three names, each of at most ``most`` characters, for a message."""
    return ", ".join(printable(name, most) for name in names[:3]) + (", …" if len(names) > 3 else "")


def as_json(value: Any, indent: int | None = None) -> str:
    """Return readable, strict JSON: printable characters unescaped, control characters escaped."""
    text = json.dumps(strict(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


# ------------------------------------------------------------------------------------- decoding

_raised = [0]


def max_pixels(most: int) -> int:
    """Return the maximum number of pixels to decode: ``most``, or the user's higher limit (``--max-pixels``)."""
    return max(most, *_raised)


@contextmanager
def raised_limits(most: int) -> Iterator[None]:
    """Raise every limit on decoded pixels (of a frame, an image, a clip) to at least ``most`` within the context."""
    _raised.append(most)
    try:
        yield
    finally:
        _raised.remove(most)


# ------------------------------------------------------------------------------------- reading


def is_regular(path: Path) -> bool:
    """Whether ``path`` is, or links to, a regular file, which reading cannot block on or trigger actions of."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def read_bytes(path: Path, most: int, what: str = "") -> bytes:
    """Read a regular file. Raises `BadRequest` for other or unreadable files, and for more than ``most`` bytes.

    ``what`` names the expected content in the message ("a config").
    """
    expected = f"; expected {what}" if what else ""
    try:
        # Open without blocking (a FIFO would wait for a writer), and check the type of the open file, not of the path.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise BadRequest(f"{printable(str(path), 200)} cannot be read: {error.strerror}") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise BadRequest(f"{printable(str(path), 200)} is not a regular file{expected}")
    with os.fdopen(handle, "rb") as file:
        if status.st_size > most:
            raise BadRequest(
                f"{printable(str(path), 200)} is {status.st_size:,} bytes long; at most {most:,} are read{expected}"
            )
        return file.read(most)


def decoded(data: bytes, where: str) -> str:
    """Decode UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Raises `BadRequest` for any other bytes rather than guess an encoding.
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
    longest: int = MAX_TEXT,
) -> Any:
    """Parse JSON within the limits above. ``infinite`` allows ±Infinity; NaN is refused. Raises `BadRequest`.

    ``longest`` is the maximum number of characters of one text. ``pairs`` is the
    ``object_pairs_hook`` of `json.loads`; a `ValueError` from it counts as damaged JSON.
    """
    comma, opened = (b",", (b"[", b"{")) if isinstance(text, bytes) else (",", ("[", "{"))
    if text.count(comma) + sum(map(text.count, opened)) > MAX_VALUES:  # type: ignore[arg-type]
        raise BadRequest(f"{where} holds more than {MAX_VALUES:,} values; at most that many are read")

    def constant(name: str) -> float:
        if name == "NaN" or not infinite:
            raise ValueError(f"{name} is not a number")
        return float(name)

    def whole(word: str) -> int:
        digits = len(word.lstrip("-"))
        if digits > MAX_DIGITS:
            raise _too_long(digits, where)
        return int(word)

    try:
        data = json.loads(text, parse_int=whole, parse_float=_finite, parse_constant=constant, object_pairs_hook=pairs)
    except RecursionError as error:
        raise BadRequest(f"{where} is nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        if isinstance(error, BadRequest):
            raise
        reason = error.msg.lower() if isinstance(error, json.JSONDecodeError) else str(error)
        at = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadRequest(f"{where} is damaged: it is not JSON ({reason}{at})") from error
    check(data, where, infinite=infinite, longest=longest)
    return data


def from_toml(text: str, where: str) -> dict[str, Any]:
    """Parse TOML within the limits above; raises `BadRequest`."""
    import tomllib

    if _DOTTED.search(text):  # tomllib is quadratic in the number of parts of a dotted key
        raise BadRequest(f"{where} is nested deeper than {MAX_DEPTH} levels")
    try:
        data = tomllib.loads(text)
    except RecursionError as error:
        raise BadRequest(f"{where} is nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        if digits := _DIGITS.search(str(error)):
            raise _too_long(int(digits[1]), where) from error
        reason = cut(printable(str(error).splitlines()[0]), 160)
        raise BadRequest(f"{where} is damaged: it is not TOML ({reason})") from error
    check(data, where)
    return data


def from_yaml(text: str, where: str) -> Any:
    """Parse YAML of plain values, with aliases and merge keys, within the limits above; raises `BadRequest`."""
    import yaml

    class Loader(yaml.SafeLoader):
        left = _MERGED

        def flatten_mapping(self, node: Any) -> None:
            # Counted over the whole file, before PyYAML copies them: each line can merge the same large table again.
            for merged in [value for name, value in node.value if name.tag == _MERGE]:
                for each in merged.value if isinstance(merged, yaml.SequenceNode) else [merged]:
                    if isinstance(each, yaml.MappingNode):
                        self.flatten_mapping(each)  # its own merges are copied too
                    self.left -= max(1, len(each.value))
                    if self.left < 0:
                        raise BadRequest(f"{where} merges more than {_MERGED:,} values into its tables")
            super().flatten_mapping(node)

        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            # YAML 1.1 reads an unquoted 1:30 as 90 and 010 as 8; here both stay text.
            tag = super().resolve(kind, value, implicit)
            return _TEXT if tag in _NUMBERS and _SURPRISING.fullmatch(value) else tag

    try:
        data = yaml.load(text, Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError as error:
        raise BadRequest(f"{where} is nested deeper than {MAX_DEPTH} levels") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # PyYAML's message is about scanners and tokens
        raise BadRequest(f"{where} is damaged: {f'line {mark.line + 1}' if mark else 'it'} is not YAML") from error
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, BadRequest):
            raise
        if digits := _DIGITS.search(str(error)):
            raise _too_long(int(digits[1]), where) from error
        raise BadRequest(f"{where} is damaged: it has an invalid YAML value") from error
    check(data, where)
    return data


def check(value: Any, where: str, *, infinite: bool = False, longest: int = MAX_TEXT) -> None:
    """Raise `BadRequest` for parsed data that is too deep, too large, or not plain data."""
    stack: list[tuple[Any, int]] = [(value, 0)]
    count = 0
    while stack:
        each, depth = stack.pop()
        if count > MAX_VALUES:
            raise BadRequest(f"{where} holds more than {MAX_VALUES:,} values; at most that many are read")
        if depth > MAX_DEPTH:
            raise BadRequest(f"{where} is nested deeper than {MAX_DEPTH} levels")
        count += 1
        if isinstance(each, Mapping):
            for name, inner in each.items():
                _scalar(name, where, MAX_TEXT, infinite=infinite)
                stack.append((inner, depth + 1))
        elif isinstance(each, list | tuple):
            stack.extend((inner, depth + 1) for inner in each)
        else:
            _scalar(each, where, longest, infinite=infinite)
        if len(stack) > MAX_VALUES:
            raise BadRequest(f"{where} holds more than {MAX_VALUES:,} values; at most that many are read")


def _scalar(value: Any, where: str, longest: int, *, infinite: bool) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        if len(value) > longest:
            raise BadRequest(f"{where} holds a text of {len(value):,} characters; at most {longest:,} are read")
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
        raise ValueError(f"{cut(word, 20)} is not a finite number")
    return value
