"""Damage to a valid file: bytes changed, cut, doubled or swapped, and values replaced."""

from __future__ import annotations

import re
import struct

from hypothesis import strategies as st

HOSTILE = (
    "1e999", "-1", "0", "1", "1000000000", "99999999999999999999", "9" * 5000, "-0.0", "1e-320", "NaN", "Infinity",
    "null", "true", "[]", "{}", '""', '"\\u0000"', '"\\ud800"', '"../../../etc/passwd"', '"/dev/zero"', '"a/b"',
    '"\\u001b[31m"', '"' + "x" * 5000 + '"', "[" * 3000, "[[[[[[[[[[1]]]]]]]]]]", '{"a": {"a": {"a": 1}}}',
    "[1,2,3,4,5,6,7,8,9]", '"BF16"', '"hf/hub-id"', "[0, 18446744073709551615]",
)  # fmt: skip
"""Replacements of values in text."""
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1000, 65536)
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null')

place = st.floats(0, 1, exclude_max=True)
edits = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("byte"), place, st.integers(0, 255)),
        st.tuples(st.just("number"), place, st.sampled_from(NUMBERS)),
        st.tuples(st.just("cut"), place, st.just(0)),
        st.tuples(st.just("drop"), place, st.integers(1, 64)),
        st.tuples(st.just("again"), place, st.integers(1, 64)),
        st.tuples(st.just("zeros"), place, st.integers(1, 512)),
        st.tuples(st.just("value"), place, st.integers(0, len(HOSTILE) - 1)),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, edits: list[tuple[str, float, int]]) -> bytes:
    for kind, where, amount in edits:
        content = _edited(bytearray(content), kind, int(where * len(content)), amount)
    return content


def _edited(held: bytearray, kind: str, at: int, amount: int) -> bytes:
    if not held:
        return bytes(held)
    if kind == "flip":
        held[at] ^= 1 << amount
    elif kind == "byte":
        held[at] = amount
    elif kind == "number":
        packed = struct.pack(">I" if amount % 2 else "<I", amount)
        held[at : at + 4] = packed
    elif kind == "cut":
        del held[at:]
    elif kind == "drop":
        del held[at : at + amount]
    elif kind == "again":
        held[at:at] = held[at : at + amount] * 3
    elif kind == "zeros":
        held[at : at + amount] = bytes(amount)
    else:
        tokens = list(TOKEN.finditer(held[: 2**16]))
        if tokens:
            token = tokens[min(at * len(tokens) // len(held), len(tokens) - 1)]
            held[token.start() : token.end()] = HOSTILE[amount].encode()
    return bytes(held)
