"""How prompts of Open-Sora 1.2 and 1.3 end: with an aesthetic score, a motion score and the camera's motion.

1.2 writes numbers, 1.3 words. Neither writes a frame rate, which the network is given as a number. A score whose words
the prompt has already is not written again, so completing twice changes nothing. Original: append_score_to_prompts
(opensora/utils/inference_utils.py); 1.0 and 1.1 have none.
"""

from __future__ import annotations

import math

from kinema.schema import BadRequest, plain_number
from kinema.values import quoted

Score = float | str
AESTHETIC = (
    (4.0, "terrible"),
    (4.5, "very poor"),
    (5.0, "poor"),
    (5.5, "fair"),
    (6.0, "good"),
    (6.5, "very good"),
    (math.inf, "excellent"),
)
MOTION = (
    (0.5, "very low"),
    (2.0, "low"),
    (5.0, "fair"),
    (10.0, "high"),
    (20.0, "very high"),
    (math.inf, "extremely high"),
)
"""The words of 1.3, each for scores below its number."""


def completed_v1_2(
    prompt: str, aesthetic: float | None = None, motion: float | None = None, camera: str | None = None
) -> str:
    """The prompt with `` aesthetic score: 6.5. motion score: 10.0. camera motion: pan left.``; None leaves one out."""
    found = prompt
    if aesthetic is not None and "aesthetic score:" not in prompt:
        found += f" aesthetic score: {_finite(aesthetic):.1f}."
    if motion is not None and "motion score:" not in prompt:
        found += f" motion score: {_finite(motion):.1f}."
    return found + _camera(prompt, camera)


def completed_v1_3(
    prompt: str, aesthetic: Score | None = None, motion: Score | None = None, camera: str | None = None
) -> str:
    """The prompt with `` The aesthetic score is good. The motion strength is high.``; words are written as they are."""
    found = prompt
    if aesthetic is not None and "aesthetic score is" not in prompt:
        found += f" The aesthetic score is {_word(aesthetic, AESTHETIC)}."
    if motion is not None and "motion strength is" not in prompt:
        found += f" The motion strength is {_word(motion, MOTION)}."
    return found + _camera(prompt, camera)


def _camera(prompt: str, camera: str | None) -> str:
    return "" if camera is None or "camera motion:" in prompt else f" camera motion: {camera}."


def _word(score: Score, words: tuple[tuple[float, str], ...]) -> str:
    try:
        number = float(score)
    except ValueError:
        return str(score)
    return next(word for limit, word in words if _finite(number) < limit)


def _finite(score: float) -> float:
    if not math.isfinite(score):
        raise BadRequest(f"a score of the prompt is {quoted(plain_number(score))}; expected a finite number")
    return score
