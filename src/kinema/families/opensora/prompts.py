"""How Open-Sora 2.0's prompts end: with the frame rate and a motion score, as its captions did in training."""

from __future__ import annotations

import re

from kinema.schema import plain_number

_FPS = re.compile(r"\s*\b\d+(?:\.\d+)? FPS[.,]")
_MOTION = re.compile(r"\s*\b\d+(?:\.\d+)? motion score\.")


def completed(prompt: str, fps: float, motion: float | None) -> str:
    """The prompt with `` 24 FPS. 4 motion score.`` behind it; ``motion`` None leaves the score out.

    A score or rate that the prompt has already stays, so completing twice changes nothing. An empty prompt stays empty.
    """
    text = prompt.strip()
    if not text:
        return text
    rate, score = _FPS.search(text), _MOTION.search(text)
    text = text if text.endswith(".") else f"{text}."
    if rate is None:
        text = f"{text} {plain_number(fps)} FPS."
    return text if score is not None or motion is None else f"{text} {plain_number(motion)} motion score."
