"""Captions as the networks read them in training: with the clip's frame rate and motion score.

A clip's score is Kinema's own measure (`kinema.data.motion`, shorter sides a second) in the range of the original's,
which are VMAF's motion in 2.0 and the mean of UniMatch's flow before: `SCALE` makes the middle motion of filmed clips
the 4 that 2.0 samples with. Clips of unknown motion get no score. Aesthetic scores and camera motions are part of a
caption only if its author wrote them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from kinema.data import motion
from kinema.families.opensora.first_line import scores
from kinema.families.opensora.first_line.cleaning import cleaned
from kinema.families.opensora.prompts import stated_at_end
from kinema.families.opensora.stdit.config import Version
from kinema.schema import plain_number

SCALE = 4 / motion.MIDDLE


def score(measured: float | None) -> float | None:
    """The score of a measured motion; None if it is unknown."""
    return None if measured is None or not math.isfinite(measured) else SCALE * measured


def completed_v2(caption: str, fps: float | None, measured: float | None) -> str:
    """The caption with `` 24 FPS, 4 motion score.`` at its end, as in the original's training. "" stays empty.

    Sampling separates the two by a full stop, as published. A rate or score that the caption ends with stays alone.
    """
    text, found = caption.strip(), score(measured)
    known, stated = stated_at_end(text), []
    if fps is not None and math.isfinite(fps) and "FPS" not in known:
        stated.append(f"{plain_number(fps)} FPS")
    if found is not None and "motion score" not in known:
        stated.append(f"{int(found + 0.5)} motion score")
    return f"{text} {', '.join(stated)}." if text and stated else text


def completed_v1(version: Version, caption: str, measured: float | None) -> str:
    """The cleaned caption; in 1.2 and 1.3 with its motion score, as in sampling. "" stays empty."""
    text = caption.strip()
    if text and version in ("1.2", "1.3"):
        complete = scores.completed_v1_3 if version == "1.3" else scores.completed_v1_2
        text = complete(text, motion=score(measured))
    return cleaned(text)


def values(of_clips: Tensor | None, clips: int, frames: int) -> Sequence[float | None]:
    """A number of each clip, None where it is unknown, and for images, which have neither rate nor motion."""
    if of_clips is None or frames == 1:
        return [None] * clips
    return [value if math.isfinite(value) else None for value in of_clips.tolist()]
