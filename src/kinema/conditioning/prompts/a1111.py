r"""AUTOMATIC1111's prompts (stable-diffusion-webui 1.10): weights, ``BREAK``, and text that changes over the steps.

``(a)`` is 1.1 times the weight, ``[a]`` 1/1.1 times, ``(a:1.3)`` 1.3 times; ``\(`` is a bracket. ``[a:b:0.5]`` is a up
to half of the steps and b from then on, ``[a:b:10]`` up to step 10, ``[b:0.5]`` nothing and b, ``[a::0.5]`` a and
nothing; ``[a|b]`` alternates. They nest. Brackets that do not match are text for the steps, and open to the end of the
prompt for the weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from kinema.bounds import printable
from kinema.conditioning.prompts.pieces import BREAK, MAX_DEPTH, ROUND, SQUARE, Piece, checked, too_deep, weight_of
from kinema.schema import BadRequest

MAX_TEXTS = 256
"""Different texts that a prompt may have over its steps."""
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_CLOSERS = {"(": ")", "[": "]"}
_PART = re.compile(r"\\.|[][():|]|[^][():|\\]+")
"""A backslash with the character after it, a sign, or text; a backslash at the end of a line is none of them."""
_SIGN = re.compile(r"\\[\\()\[\]]?|[(\[]|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|[)\]]|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")


# ------------------------------------------------------------------------------------------- weights


def pieces(text: str) -> list[Piece | None]:
    """Return the text of a prompt at one step as weighted pieces, with `BREAK` between rows.

    Neighbours of equal weight are one piece, since words are found in pieces. ``BREAK`` inside brackets starts a row
    too; AUTOMATIC1111 takes it there for a word.
    """
    found = _Weighted()
    for match in _SIGN.finditer(text):
        sign = match.group()
        if sign.startswith("\\"):
            found.add(sign[1:])
        elif sign in _CLOSERS:
            found.open(sign)
        elif match["weight"] is not None and found.opened["("]:
            found.close("(", weight_of(match["weight"]))
        elif sign == ")" and found.opened["("]:
            found.close("(", ROUND)
        elif sign == "]" and found.opened["["]:
            found.close("[", SQUARE)
        else:
            found.add_rows(_BREAK.split(sign))
    return found.finished()


@dataclass
class _Weighted:
    """Texts and their weights so far, and where the open brackets of each kind start."""

    texts: list[str | None] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    opened: dict[str, list[int]] = field(default_factory=lambda: {"(": [], "[": []})

    def add(self, text: str | None) -> None:
        self.texts.append(text)
        self.weights.append(1.0)

    def add_rows(self, texts: Sequence[str]) -> None:
        """Add texts with `BREAK` between them and no white space next to it."""
        # A pattern with the white space in it would take quadratic time on a long run of it.
        last = len(texts) - 1
        for at, text in enumerate(texts):
            if at:
                self.add(BREAK)
            inner = text if at == 0 else text.lstrip()
            self.add(inner if at == last else inner.rstrip())

    def open(self, bracket: str) -> None:
        self.opened[bracket].append(len(self.texts))
        if len(self.opened[bracket]) > MAX_DEPTH:
            raise too_deep()

    def close(self, bracket: str, factor: float) -> None:
        for at in range(self.opened[bracket].pop(), len(self.texts)):
            self.weights[at] *= factor

    def finished(self) -> list[Piece | None]:
        for start in self.opened["("]:
            self._scale(start, ROUND)
        for start in self.opened["["]:
            self._scale(start, SQUARE)
        merged: list[tuple[list[str], float] | None] = []
        for text, weight in zip(self.texts, self.weights, strict=True):
            last = merged[-1] if merged else None
            if text is None:
                merged.append(BREAK)
            elif last is not None and last[1] == weight:
                last[0].append(text)
            else:
                merged.append(([text], weight))
        return [BREAK if each is None else Piece("".join(each[0]), checked(each[1])) for each in merged]

    def _scale(self, start: int, factor: float) -> None:
        for at in range(start, len(self.texts)):
            self.weights[at] *= factor


# --------------------------------------------------------------------------------------------- steps


@dataclass(frozen=True)
class Part:
    """A prompt's text up to the sampling step ``last``, counted from 0."""

    last: int
    text: str


def parts(text: str, steps: int) -> list[Part]:
    """Return the texts of a prompt over the sampling steps, one part unless it changes.

    As in AUTOMATIC1111, which counts steps from 0 and compares them with ends that count from 1, the first text lasts
    one step longer than is written. A prompt with ``|`` outside brackets has no schedule at all (`schedule_ignored`).
    """
    nodes = _parse(text)
    if nodes is None:
        return [Part(steps, text)]
    ends: set[int] = {steps}
    for node in _groups(nodes):
        if node.kind == "alternate":
            ends.update(range(1, steps + 1))
        elif node.kind == "scheduled" and (end := node.end(steps)) >= 1:
            ends.add(end)
    found: list[Part] = []
    texts: dict[str, str] = {}
    for end in sorted(ends):
        text = _at(nodes, end, steps)
        found.append(Part(end, texts.setdefault(text, text)))
        if len(texts) > MAX_TEXTS:
            raise BadRequest(f"the prompt has more than {MAX_TEXTS} different texts over its steps; expected fewer")
    return found


def schedule_ignored(text: str) -> bool:
    """Whether ``|`` outside brackets, or a last backslash, makes text of a prompt's ``[a:b:0.5]`` and ``[a|b]``."""
    return _parse(text) is None and any(_separates(part) for part in text.split("]"))


def _separates(text: str) -> bool:
    """Whether a ":" or "|" follows a "[" in text without "]"."""
    inner = text[text.find("[") :] if "[" in text else ""
    return ":" in inner or "|" in inner


@dataclass
class _Group:
    """A bracket and what is in it, separated by ":" or "|"."""

    bracket: str
    fields: list[list[str | _Group]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)
    kind: str = ""
    number: str = ""
    """When a scheduled text changes, as written."""

    def closed(self) -> bool:
        """Set the kind; False for a group that is none, whose signs are text."""
        count, colons = len(self.separators), set(self.separators) <= {":"}
        if self.bracket == "(":
            self.kind = "emphasised" if colons and count <= 1 else ""
        elif not count:
            self.kind = "emphasised"
        elif not colons:
            self.kind = "alternate" if ":" not in self.separators else ""
        elif count <= 2 and (found := _NUMBER.fullmatch(_plain(self.fields[-1]))):
            self.kind, self.number = "scheduled", found[1]
        return bool(self.kind)

    def end(self, steps: int) -> int:
        """The last step, from 1, of a scheduled group's first text; with a point, the number is a fraction of steps."""
        value = float(self.number) * (steps if "." in self.number else 1)
        if not abs(value) < 1e9:
            raise BadRequest(
                f"the prompt changes at {printable(self.number, 20)}; expected a step or a fraction of them"
            )
        return min(steps, int(value))

    def text_at(self, step: int, steps: int) -> str:
        if self.kind == "alternate":
            return _at(self.fields[(step - 1) % len(self.fields)], step, steps)
        if self.kind == "scheduled":
            before = self.fields[0] if len(self.separators) > 1 else []
            return _at(before if step <= self.end(steps) else self.fields[-2], step, steps)
        inner = [_at(each, step, steps) for each in self.fields]
        return f"{self.bracket}{':'.join(inner)}{_CLOSERS[self.bracket]}"

    def as_text(self) -> list[str | _Group]:
        """The contents and separators, after the opening bracket, as they were written."""
        written: list[str | _Group] = [self.bracket, *self.fields[0]]
        for separator, inner in zip(self.separators, self.fields[1:], strict=True):
            written += [separator, *inner]
        return written


def _parse(text: str) -> list[str | _Group] | None:
    """Return the texts and groups of a prompt; None for one that has no schedule.

    Unmatched signs may only be outside groups, so one makes text of all brackets that are open.
    """
    outside: list[str | _Group] = []
    opened: list[_Group] = []
    at = 0
    while at < len(text):
        match = _PART.match(text, at)
        if match is None:
            return None
        sign, at = match.group(), match.end()
        inner = opened[-1].fields[-1] if opened else outside
        if sign in _CLOSERS:
            opened.append(_Group(sign))
            if len(opened) > MAX_DEPTH:
                raise too_deep()
        elif opened and sign in (":", "|"):
            opened[-1].separators.append(sign)
            opened[-1].fields.append([])
        elif sign == "|":
            return None
        elif opened and sign in (")", "]"):
            group = opened[-1]
            if sign == _CLOSERS[group.bracket] and group.closed():
                opened.pop()
                (opened[-1].fields[-1] if opened else outside).append(group)
            elif not _dissolve(opened, outside):
                return None
            else:
                outside.append(sign)
        else:
            inner.append(sign)
    return outside if _dissolve(opened, outside) else None


def _dissolve(opened: list[_Group], outside: list[str | _Group]) -> bool:
    """Make text of all open brackets; False if a "|" is then outside groups."""
    if any("|" in group.separators for group in opened):
        return False
    for group in opened:
        outside += group.as_text()
    opened.clear()
    return True


def _groups(nodes: Sequence[str | _Group]) -> list[_Group]:
    found = [node for node in nodes if isinstance(node, _Group)]
    return found + [inner for node in found for each in node.fields for inner in _groups(each)]


def _plain(nodes: Sequence[str | _Group]) -> str:
    """The text of nodes without groups; "" for others."""
    texts = [node for node in nodes if isinstance(node, str)]
    return "".join(texts) if len(texts) == len(nodes) else ""


def _at(nodes: Sequence[str | _Group], step: int, steps: int) -> str:
    return "".join(node if isinstance(node, str) else node.text_at(step, steps) for node in nodes)
