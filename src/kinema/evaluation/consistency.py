"""Whether an object keeps its colour and outline, as given in the prompt, in every frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kinema.data.playroom import parse
from kinema.evaluation.objects import find_objects
from kinema.evaluation.outline import GLYPHS, centroids_and_radii, crops, similarity
from kinema.schema import BadRequest

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.evaluation.objects import TrackedObject
    from kinema.evaluation.outline import Floats

_SIMILAR = 0.9
"""An outline matches if its similarity is at least this share of the best template's."""
_CLEAR = 0.5
"""Frames where the object has less than this share of its greatest contrast (fading) are not judged."""
_LARGE = 0.25
"""Frames where it has less than this share of its greatest area (far away, or leaving) are not judged."""


@dataclass(frozen=True)
class Consistency:
    """Shares of judged frames in which the object has the given colour and the given outline."""

    colour: float
    shape: float
    frames: int

    @property
    def complete(self) -> bool:
        """Whether both match in all judged frames, of which there is at least one."""
        return self.frames > 0 and self.colour == 1 and self.shape == 1


def object_consistency(video_CTHW: Tensor, prompt: str) -> Consistency:
    """Judge the prompt's object, frame by frame, in a clip 3×T×H×W in [-1, 1].

    Raises BadRequest for a prompt outside the playroom grammar.
    """
    frames = _judge(video_CTHW, prompt)
    if frames is None or not (judged := frames.whole & ~frames.cut).any():
        return Consistency(0.0, 0.0, 0)
    return Consistency(float(frames.colour[judged].mean()), float(frames.shape[judged].mean()), int(judged.sum()))


def identity_breaks(video_CTHW: Tensor, prompt: str) -> float:
    """Share of frames in which the prompt's object is not there as a whole, or has another colour or outline.

    For motions in which it always is there; frames whose border cuts it do not count. Raises BadRequest for a prompt
    outside the playroom grammar.
    """
    frames = _judge(video_CTHW, prompt)
    if frames is None or frames.cut.all():
        return 1.0
    kept = frames.whole & frames.colour & frames.shape
    return float(1 - kept[~frames.cut].mean())


@dataclass(frozen=True)
class _Frames:
    """By frame: whether the border cuts the object, it is clear and large, and its colour and outline are right."""

    cut: NDArray[np.bool_]
    whole: NDArray[np.bool_]
    colour: NDArray[np.bool_]
    shape: NDArray[np.bool_]


def _judge(video_CTHW: Tensor, prompt: str) -> _Frames | None:
    meaning = parse(prompt)
    if meaning is None:
        raise BadRequest(f"prompt {prompt!r} is not in the playroom grammar")
    pixels: Floats = ((video_CTHW.detach().float().cpu() + 1) / 2).clamp(0, 1).numpy()
    tracks = find_objects(pixels)
    if not tracks:
        return None
    found = next((s for s in tracks if s.colour == meaning.colour), tracks[0])
    mask = found.mask_THW
    cut = mask[:, 0].any(1) | mask[:, -1].any(1) | mask[:, :, 0].any(1) | mask[:, :, -1].any(1)
    clear = found.contrast_T >= _CLEAR * max(float(found.contrast_T.max()), 1e-6)
    large = found.area_T >= _LARGE * max(float(found.area_T.max()), 1.0)
    similarities = _similarities(found)
    best = np.maximum(similarities.max(axis=1), 1e-6)
    return _Frames(
        cut=np.asarray(cut),
        whole=clear & large,
        colour=np.array([name == meaning.colour for name in found.colour_T]),
        shape=similarities[:, GLYPHS.index(meaning.letter or meaning.shape)] >= _SIMILAR * best,
    )


def _similarities(found: TrackedObject) -> Floats:
    """Best similarity ``[T, glyphs]`` over all rotations of each template."""
    centres, radius = centroids_and_radii(found.cover_THW)
    covers = crops(found.cover_THW[None], np.nan_to_num(centres), np.nan_to_num(radius, nan=1.0))[0]
    return similarity(covers).max(axis=2)
