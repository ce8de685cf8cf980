"""Whether an object stays itself: its colour and outline in every single frame, against what was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kinema.data.playroom import parse
from kinema.evaluation.outline import GLYPHS, crops, frames_of, likeness
from kinema.evaluation.sighting import sight
from kinema.schema import BadRequest

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.evaluation.outline import Floats
    from kinema.evaluation.sighting import Sighting

_ALIKE = 0.9
"""An outline counts as kept while its likeness is at least this share of the best template's."""
_CLEAR = 0.5
"""Frames where the object shows less than this share of its greatest contrast (fading) are not judged."""
_LARGE = 0.25
"""Nor those where it covers less than this share of its greatest area (far away, or leaving)."""


@dataclass(frozen=True)
class Kept:
    """Shares of the judged frames in which the object has the colour, and the outline, that was given."""

    colour: float
    shape: float
    frames: int

    @property
    def whole(self) -> bool:
        """Both, in all judged frames, of which there must be some."""
        return self.frames > 0 and self.colour == 1 and self.shape == 1


def kept(video_CTHW: Tensor, prompt: str) -> Kept:
    """Look for the prompt's object, frame by frame, in a clip 3×T×H×W in [-1, 1].

    Raises BadRequest for a prompt that is not in the playroom's grammar.
    """
    meaning = parse(prompt)
    if meaning is None:
        raise BadRequest(f"prompt {prompt!r} is not in the playroom grammar")
    pixels: Floats = ((video_CTHW.detach().float().cpu() + 1) / 2).clamp(0, 1).numpy()
    sightings = sight(pixels)
    if not sightings:
        return Kept(0.0, 0.0, 0)
    found = next((s for s in sightings if s.colour == meaning.colour), sightings[0])
    judged = _judged(found)
    if not judged.any():
        return Kept(0.0, 0.0, 0)
    colour = np.array([name == meaning.colour for name in found.colour_T])[judged]
    glyph = meaning.letter or meaning.shape
    likenesses = _likenesses(found)[judged]
    best = np.maximum(likenesses.max(axis=1), 1e-6)
    shape = likenesses[:, GLYPHS.index(glyph)] >= _ALIKE * best
    return Kept(float(colour.mean()), float(shape.mean()), int(judged.sum()))


def _judged(found: Sighting) -> np.ndarray:
    mask = found.mask_THW
    cut = mask[:, 0].any(1) | mask[:, -1].any(1) | mask[:, :, 0].any(1) | mask[:, :, -1].any(1)
    clear = found.contrast_T >= _CLEAR * max(float(found.contrast_T.max()), 1e-6)
    large = found.area_T >= _LARGE * max(float(found.area_T.max()), 1.0)
    return clear & large & ~cut


def _likenesses(found: Sighting) -> Floats:
    """The best likeness ``[T, glyphs]`` over the turns of every template."""
    centres, radius = frames_of(found.cover_THW)
    covers = crops(found.cover_THW[None], np.nan_to_num(centres), np.nan_to_num(radius, nan=1.0))[0]
    return likeness(covers).max(axis=2)
