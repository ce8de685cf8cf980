r"""ComfyUI's prompts: ``(a)`` is 1.1 times the weight outside, ``(a:1.3)`` is exactly 1.3; ``\(`` is a bracket.

Brackets that do not match are text, and there are no other signs.
"""

from __future__ import annotations

from kinema.conditioning.prompts.pieces import MAX_DEPTH, ROUND, Piece, checked, too_deep, weight_of

_ESCAPED = {"\\)": "\0\1", "\\(": "\0\2"}


def pieces(text: str) -> list[Piece]:
    """Return the text of a prompt as weighted pieces."""
    text = text.replace("\0", "")
    for written, kept in _ESCAPED.items():
        text = text.replace(written, kept)
    return _pieces(text, 1.0, 0)


def _pieces(text: str, weight: float, depth: int) -> list[Piece]:
    if depth > MAX_DEPTH:
        raise too_deep()
    found = []
    for part in _split(text):
        if len(part) < 2 or not (part[0] == "(" and part[-1] == ")"):
            found.append(Piece(_unescaped(part), checked(weight)))
            continue
        inner, own = part[1:-1], weight * ROUND
        before, colon, number = inner.rpartition(":")
        if colon and before and _is_number(number):
            inner, own = before, weight_of(number)
        found += _pieces(inner, own, depth + 1)
    return found


def _split(text: str) -> list[str]:
    """Split into bracketed parts, with their brackets, and the text between them."""
    found, start, level = [], 0, 0
    for at, sign in enumerate(text):
        if sign == "(":
            if level == 0 and at > start:
                found.append(text[start:at])
                start = at
            level += 1
        elif sign == ")":
            level -= 1
            if level == 0:
                found.append(text[start : at + 1])
                start = at + 1
    return found + ([text[start:]] if start < len(text) else [])


def _unescaped(text: str) -> str:
    for written, kept in _ESCAPED.items():
        text = text.replace(kept, written[1:])
    return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
