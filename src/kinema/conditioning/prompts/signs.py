"""Signs of prompts that a syntax does not read, so that none is taken for words without a note."""

from __future__ import annotations

import re

from kinema.bounds import printable
from kinema.conditioning.prompts import a1111
from kinema.schema import BadRequest, PromptSyntax

MAX_LENGTH = 100_000
"""Characters of a prompt; at four a word, 300 rows of tokens."""
_SIGNS = {
    "round brackets": re.compile(r"(?<!\\)\([^()\[\]]*(?<!\\)\)"),
    "square brackets": re.compile(r"(?<!\\)\[[^()\[\]]*(?<!\\)\]"),
    "BREAK": re.compile(r"\bBREAK\b"),
    "AND": re.compile(r"\bAND\b"),
    "embeddings": re.compile(r"(?:^|(?<=[\s(\[,|:]))embedding:[^\s,()\[\]]+"),
    "choices": re.compile(r"\{[^{}|]*\|[^{}]*\}"),
}
_READ: dict[PromptSyntax, tuple[str, ...]] = {
    "a1111": ("round brackets", "square brackets", "BREAK", "embeddings"),
    "comfy": ("round brackets", "embeddings"),
    "plain": (),
}
"""Kinds of signs that a syntax reads."""


def unread(text: str, syntax: PromptSyntax) -> list[str]:
    """Return an example of each kind of sign in a prompt that this syntax takes for words.

    Raises BadRequest for a prompt of more than `MAX_LENGTH` characters, and for AUTOMATIC1111's ``AND``, which asks for
    composable diffusion.
    """
    if len(text) > MAX_LENGTH:
        raise BadRequest(f"a prompt has {len(text):,} characters; expected at most {MAX_LENGTH:,}")
    found = {kind: match.group() for kind, sign in _SIGNS.items() if (match := sign.search(text))}
    if syntax == "a1111" and "AND" in found:
        raise BadRequest("AND in the prompt combines prompts (composable diffusion), which is not supported; write and")
    if syntax == "a1111" and a1111.schedule_ignored(text):
        found["schedule"] = "[…:…:…] or […|…], since it has | or \\ outside brackets"
    return [printable(example, 60) for kind, example in found.items() if kind not in _READ[syntax]]
