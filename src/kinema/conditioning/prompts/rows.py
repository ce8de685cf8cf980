"""Rows of tokens: how each syntax divides a prompt that is longer than a row of the text encoder.

A row has ``size`` tokens besides the start and end tokens (75 for CLIP); shorter rows are padded by the encoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from kinema.conditioning.clip_text import Tokenizer
from kinema.conditioning.prompts import a1111, comfy
from kinema.conditioning.prompts.pieces import BREAK, Piece
from kinema.schema import BadRequest, PromptSyntax

BACKTRACK = 20
"""Tokens after the last comma of a full row that AUTOMATIC1111 moves to the next row, at most."""
LARGE = 8
"""Tokens of one weight that ComfyUI divides between rows; fewer are kept together."""
EMBEDDING = "embedding:"
_NAMED = re.compile(rf"(?:^|(?<=[ \n])){EMBEDDING}")


@dataclass(frozen=True)
class Token:
    """A token and its weight; ``vector`` is (name, index) of an embedding's vector, which replaces the token's own."""

    id: int
    weight: float = 1.0
    vector: tuple[str, int] | None = None


Row = list[Token]


@dataclass(frozen=True)
class Words:
    """A tokenizer, the tokens in a row, and the number of vectors of each embedding by name."""

    tokenizer: Tokenizer
    size: int
    embeddings: Mapping[str, int] = field(default_factory=dict)

    def vectors(self, name: str, weight: float) -> list[Token]:
        return [Token(0, weight, (name, at)) for at in range(self.embeddings[name])]

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.tokens(text))


def pieces_of(syntax: PromptSyntax, text: str) -> list[Piece | None]:
    """Return the weighted pieces of a prompt's text at one step."""
    if syntax == "plain":
        return [Piece(text)]
    return a1111.pieces(text) if syntax == "a1111" else [*comfy.pieces(text)]


def rows_of(syntax: PromptSyntax, text: str, words: Words) -> list[Row]:
    """Return the rows of a prompt's text at one step, at least one."""
    if syntax == "a1111":
        return a1111_rows(a1111.pieces(text), words)
    if syntax == "comfy":
        return comfy_rows(comfy.pieces(text), words)
    return [[Token(each) for each in words.ids(text)[: words.size]]]


# ------------------------------------------------------------------------------------- AUTOMATIC1111


def a1111_rows(pieces: Sequence[Piece | None], words: Words) -> list[Row]:
    """Rows of weighted pieces; a row that is full ends after its last comma if that is near (`BACKTRACK`).

    An embedding is where the tokens of its name are, and is not divided.
    """
    named = sorted(((words.ids(name), name) for name in words.embeddings), key=lambda each: -len(each[0]))
    filled = _Filled(words.size)
    for piece in pieces:
        if piece is BREAK:
            filled.end_row()
            continue
        ids, at = words.ids(piece.text), 0
        while at < len(ids):
            if ids[at] == words.tokenizer.comma:
                filled.comma = len(filled.row)
            else:
                filled.make_room()
            found = next(((key, name) for key, name in named if key and ids[at : at + len(key)] == key), None)
            if found is None:
                filled.add([Token(ids[at], piece.weight)])
                at += 1
            else:
                filled.add(words.vectors(found[1], piece.weight))
                at += len(found[0])
    return filled.finished()


@dataclass
class _Filled:
    """Rows so far, the current row, and the place of the last comma in it."""

    size: int
    rows: list[Row] = field(default_factory=list)
    row: Row = field(default_factory=list)
    comma: int | None = None

    def add(self, tokens: Row) -> None:
        if len(self.row) + len(tokens) > self.size:
            self.end_row()
        self.row += tokens

    def make_room(self) -> None:
        """Move what follows the last comma of a full row to the next row."""
        if len(self.row) < self.size or self.comma is None or self.size - self.comma > BACKTRACK:
            return
        kept = self.comma + 1
        moved, self.row = self.row[kept:], self.row[:kept]
        self.end_row()
        self.row = moved

    def end_row(self) -> None:
        self.rows.append(self.row)
        self.row, self.comma = [], None

    def finished(self) -> list[Row]:
        return [*self.rows, self.row] if self.row or not self.rows else self.rows


# ------------------------------------------------------------------------------------------- ComfyUI


def comfy_rows(pieces: Sequence[Piece], words: Words) -> list[Row]:
    """Rows of weighted pieces; one of fewer than `LARGE` tokens is not divided, nor is an embedding that short."""
    rows: list[Row] = [[]]
    for group in (group for piece in pieces for group in _groups(piece, words)):
        left = group
        while len(rows[-1]) + len(left) > words.size:
            room = words.size - len(rows[-1]) if len(group) >= min(LARGE, words.size) else 0
            rows[-1] += left[:room]
            left = left[room:]
            rows.append([])
        rows[-1] += left
    return rows


def _groups(piece: Piece, words: Words) -> list[Row]:
    """The tokens of a piece's text and of the embeddings in it."""
    starts = [match.start() for match in _NAMED.finditer(piece.text)]
    found = []
    for start, end in pairwise(dict.fromkeys([0, *starts, len(piece.text)])):
        part = piece.text[start:end]
        if start in starts:
            name, part = _named(part.removeprefix(EMBEDDING), words.embeddings)
            found.append(words.vectors(name, piece.weight))
        found.append([Token(each, piece.weight) for each in words.ids(part)])
    return [group for group in found if group]


def _named(text: str, embeddings: Mapping[str, int]) -> tuple[str, str]:
    """The name of an embedding at the start of a text, and the text after it; commas are not part of a name."""
    written, *others = text.split(maxsplit=1) or [""]
    for name in (written, written.strip(",")):
        if name in embeddings:
            return name, " ".join([written.removeprefix(name), *others])
    raise BadRequest(missing(written.strip(","), embeddings))


def missing(name: str, embeddings: Mapping[str, int]) -> str:
    from kinema.registry import unknown_name

    if not embeddings:
        return f"the prompt names {EMBEDDING}{name}; give the folder that has it with --embeddings FOLDER"
    return unknown_name("embedding", name, embeddings)
