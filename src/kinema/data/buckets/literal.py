"""Read one literal of a Python file without running it: numbers, texts, True, False, None, tables and lists of them.

The file is split into tokens by the standard library, and only the tokens of the literal are looked at. Nothing is
compiled or evaluated, and nesting and numbers have the limits of `kinema.bounds`.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from itertools import islice
from typing import Any

from kinema import bounds
from kinema.schema import BadRequest

MAX_TOKENS = 2**15
"""Limit on the words and marks of a file; a published config has 700."""
_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_WORDS = {"True": True, "False": False, "None": None}


def from_python(text: str, where: str, name: str) -> Any:
    """Return the literal that the last ``name = …`` at the top level of a file assigns, or a file of one literal alone.

    Raises BadRequest if there is none, for anything that is not a literal, and for a value that other lines change.
    """
    try:
        found = list(islice(tokenize.generate_tokens(io.StringIO(text).readline), MAX_TOKENS + 1))
    except (tokenize.TokenError, SyntaxError, RecursionError, ValueError) as error:
        raise BadRequest(f"{where} is not Python") from error
    if len(found) > MAX_TOKENS:
        raise BadRequest(f"{where} holds more than {MAX_TOKENS:,} words and marks; at most that many are read")
    tokens = [token for token in found if token.type not in _SILENT]
    named = [i for i, token in enumerate(tokens[:-1]) if token.string == name and token.start[1] == 0]
    starts = [i + 2 for i in named if tokens[i + 1].string == "="]
    if changed := [tokens[i] for i in named if tokens[i + 1].string != "="]:
        raise BadRequest(
            f"{where} line {changed[0].start[0]} changes {name}, but the file is not run; expected one literal"
        )
    if not starts and not (tokens and tokens[0].string in _CLOSING):
        raise BadRequest(f"{where} has no {name}; expected {name} = {{…}}")
    first = starts[-1] if starts else 0
    reader = _Reader(iter(tokens[first:]), where)
    value = reader.value(0)
    reader.end()
    bounds.check(value, where)
    return value


class _Reader:
    """A recursive-descent reader of literals."""

    def __init__(self, tokens: Iterator[tokenize.TokenInfo], where: str) -> None:
        self.tokens, self.where = tokens, where
        self.now = next(tokens)

    def end(self) -> None:
        """Raise BadRequest unless the line ends here."""
        if self.now.type not in (tokenize.NEWLINE, tokenize.ENDMARKER) and self.now.string != ";":
            raise self._unknown(self.now)

    def value(self, depth: int) -> Any:
        token = self._take()
        if depth > bounds.MAX_DEPTH:
            raise BadRequest(f"{self.where} is nested deeper than {bounds.MAX_DEPTH} levels")
        if token.type == tokenize.NUMBER:
            return self._number(token)
        if token.string == "-" and self.now.type == tokenize.NUMBER:
            return -self._number(self._take())
        if token.type == tokenize.STRING:
            return self._text(token)
        if token.type == tokenize.NAME and token.string in _WORDS:
            return _WORDS[token.string]
        if token.type == tokenize.OP and token.string == "{":
            return self._table(depth)
        if token.type == tokenize.OP and token.string in ("(", "["):
            return self._list(_CLOSING[token.string], depth)
        raise self._unknown(token)

    def _table(self, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        while self.now.string != "}":
            key_token = self.now
            key = self.value(depth + 1)
            if not isinstance(key, str | int | float) or key in found:
                raise BadRequest(f"{self._line(key_token)}: expected keys that are texts or numbers, each once")
            self._expect(":")
            found[key] = self.value(depth + 1)
            self._comma("}")
        self._take()
        return found

    def _list(self, closing: str, depth: int) -> Any:
        """A list or tuple; a value in brackets is the value itself."""
        found, commas = [], 0
        while self.now.string != closing:
            found.append(self.value(depth + 1))
            commas += self._comma(closing)
        self._take()
        if closing == "]":
            return found
        return found[0] if len(found) == 1 and not commas else tuple(found)

    def _comma(self, closing: str) -> bool:
        if self.now.string == closing:
            return False
        self._expect(",")
        return True

    def _expect(self, mark: str) -> None:
        token = self._take()
        if token.string != mark:
            raise self._unknown(token)

    def _take(self) -> tokenize.TokenInfo:
        token = self.now
        self.now = next(self.tokens, token)
        return token

    def _number(self, token: tokenize.TokenInfo) -> int | float:
        if len(token.string) > bounds.MAX_DIGITS:
            raise BadRequest(f"{self._line(token)} holds a number of more than {bounds.MAX_DIGITS} digits")
        value = _constant(token)
        if not isinstance(value, int | float):
            raise self._unknown(token)
        return value

    def _text(self, token: tokenize.TokenInfo) -> str:
        value = _constant(token)
        if not isinstance(value, str):
            raise self._unknown(token)
        return value

    def _unknown(self, token: tokenize.TokenInfo) -> BadRequest:
        return BadRequest(f"{self._line(token)} holds {bounds.quoted(token.string)}, which is not part of a literal")

    def _line(self, token: tokenize.TokenInfo) -> str:
        return f"{self.where} line {token.start[0]}"


def _constant(token: tokenize.TokenInfo) -> Any:
    """The value of one number or text; None for one of another kind, such as an f-string."""
    try:
        return ast.literal_eval(token.string)
    except (ValueError, SyntaxError, MemoryError):
        return None
