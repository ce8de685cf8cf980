"""How Open-Sora 2.0's prompts end: with the frame rate and a motion score, as its captions did in training."""

from __future__ import annotations

import re

from kinema.schema import plain_number

_RATE, _SCORE = r"\d+(?:\.\d+)? FPS[.,]", r"\d+(?:\.\d+)? motion score\."
_END = re.compile(rf"(?:(?:^|\s+)(?:{_RATE}|{_SCORE}))+$")
"""Rate and score at the end of a prompt, in either order; elsewhere they are part of what it describes."""


def completed(prompt: str, fps: float, motion: float | None) -> str:
    """The prompt with `` 24 FPS. 4 motion score.`` at its end; ``motion`` None leaves the score out.

    A rate or score that it already ends with stays, so completing twice changes nothing. An empty prompt stays empty.
    """
    text = _sentence(prompt)
    if not text:
        return text
    stated = stated_at_end(text)
    if "FPS" not in stated:
        text = f"{text} {plain_number(fps)} FPS."
    return text if "motion score" in stated or motion is None else f"{text} {plain_number(motion)} motion score."


def has_motion_score(prompt: str) -> bool:
    """Whether the prompt states a motion score at its end."""
    return "motion score" in stated_at_end(_sentence(prompt))


def _sentence(prompt: str) -> str:
    text = prompt.strip()
    return text if not text or text.endswith(".") else f"{text}."


def stated_at_end(text: str) -> str:
    """The rate and score that a prompt ends with; "" if it has neither."""
    found = _END.search(text)
    return found[0] if found else ""
