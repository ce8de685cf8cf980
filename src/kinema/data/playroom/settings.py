"""Settings of playroom clips for training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Playroom:
    """Captions, camera and rendering of playroom clips."""

    grammar: str = "mixed"
    """``simple``, ``full`` or ``mixed``: seven simple clips for each one of the full grammar. ``scenic`` clips are
    simple, but 50 % name a background pattern, and 60 % of these a camera motion; for ``filmed``, 80 % and 85 %."""
    camera: str = ""
    """Camera motion of every clip, over a pattern that the caption names, while the caption omits the camera: the model
    learns it for any prompt. "" leaves the camera to the grammar."""
    style: str = ""
    """Style of the frames (`kinema.data.styles`); "" for none."""
    slow: float = 1.0
    """Above 1, each clip is a part of a scene in slow motion, by a log-uniform factor between 1 and this."""
    scene: int = 0
    """Frames of the scene of which a clip is a part; 0, or less than the clip has: the clip is the whole scene."""
    without: tuple[str, ...] = ()
    """Excluded motions."""
    split: str = "train"
    """The captions: ``train``, or ``train-v1``, which also has those of the evaluation, as in training the shipped
    weights, before the two were separated (docs/decisions/0015). Validation uses ``tuning``."""
