"""How the playroom is rendered for training: data that a recipe holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Playroom:
    """What clips of the playroom say, and how they are filmed and drawn."""

    grammar: str = "mixed"
    """``simple``, ``full`` or ``mixed``: seven simple clips and then one of the full grammar. Of ``scenic``, simple
    clips, half name a pattern behind the object, and three in five of these a camera motion; of ``filmed`` four in
    five, and 85 in a hundred of these."""
    camera: str = ""
    """How the camera moves in every clip, before a pattern that is named, while the camera is not: that motion is to be
    learnt, whatever is said. "" leaves it to the grammar."""
    style: str = ""
    """How frames are drawn (`kinema.data.styles`); "" as they are."""
    slow: float = 1.0
    """Above 1, a part of each scene is shown in slow motion, by a factor of 1 to this, even in its logarithm."""
    without: tuple[str, ...] = ()
    """Motions that are left out."""
