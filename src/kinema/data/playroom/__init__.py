"""The playroom: procedurally rendered short clips with captions and scene graphs.

``sample(seed)`` renders a clip of textured shapes and letters that roll, bounce, swing, orbit,
spin, grow, shrink, fade, chase and collide, at any size, frame count and fps, with its caption and
its scene graph. It needs only numpy and Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np

from kinema.data.playroom.backdrop import random_backdrop
from kinema.data.playroom.grammar import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    COMMON_SYNONYM,
    DIRECTIONS,
    LETTERS,
    MOTIONS,
    RARE_SYNONYM,
    RELATIONS,
    SHAPES,
    SIZES,
    SPEEDS,
    Grammar,
    Meaning,
    NamedObject,
    Split,
    phrase,
    random_meaning,
    vocabulary,
)
from kinema.data.playroom.parse import parse
from kinema.data.playroom.prompts import prompts
from kinema.data.playroom.render import random_surface, render
from kinema.data.playroom.scene import (
    RGB,
    Scene,
    Track,
    View,
    layout,
    make_camera,
    make_track,
    motions,
    through_camera,
    tint,
)
from kinema.data.playroom.settings import Playroom
from kinema.schema import BadRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.data.playroom.shapes import Floats

__all__ = [
    "BACKGROUNDS", "CAMERAS", "COLOURS", "DIRECTIONS", "LETTERS", "MOTIONS", "RELATIONS", "RGB", "SHAPES",
    "Meaning", "NamedObject", "Playroom", "Sample", "Scene", "Track",
    "described", "parse", "phrase", "prompts", "render_meaning", "sample", "vocabulary",
]  # fmt: skip

_FIXED: dict[str, Sequence[str]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "letter": LETTERS,
    "motion": MOTIONS,
    "direction": DIRECTIONS,
    "size": SIZES,
    "speed": SPEEDS,
    "relation": RELATIONS,
    "second_colour": COLOURS,
    "second_shape": SHAPES,
    "second_letter": LETTERS,
    "background": BACKGROUNDS,
    "camera": CAMERAS,
}


@dataclass(frozen=True)
class Sample:
    """A clip: pixels ``[3, T, H, W]`` float32 in [-1, 1], caption and scene graph."""

    video_CTHW: Floats
    caption: str
    scene: Scene


def sample(
    seed: int | Sequence[int],
    *,
    frames: int = 16,
    height: int = 64,
    width: int = 64,
    fps: float = 8.0,
    grammar: Grammar = "simple",
    split: Split = "train",
    **fixed: str,
) -> Sample:
    """Render one clip; the same arguments give the same clip on every platform.

    ``fixed`` sets fields of the meaning by name (``colour="red"``, ``motion="rolls right"``, see
    ``Meaning``), or all of them with ``caption="a red ball rolls right"``, which is kept verbatim and
    not restricted to the split. A seed gives the same scene at every size, length and fps: a directed
    motion spans the whole clip, periods are in seconds. Raises ``BadRequest`` for sizes below 1,
    unknown names, and a combination that is not in the split.
    """
    if min(frames, height, width) < 1 or fps <= 0:
        raise BadRequest(
            f"playroom: frames, height, width and fps are {frames}, {height}, {width}, {fps}; expected positive values"
        )
    if grammar not in get_args(Grammar) or split not in get_args(Split):
        raise BadRequest(
            f"playroom: grammar is {grammar!r} and split {split!r}; "
            f"expected one of {', '.join(get_args(Grammar))}, and one of {', '.join(get_args(Split))}"
        )
    caption = fixed.pop("caption", None)
    if caption is None:
        meaning, caption, rng = described(seed, grammar, split, **fixed)
    else:
        parsed = parse(caption)
        if parsed is None or fixed:
            raise BadRequest(
                f"playroom: caption {caption!r} is not in the grammar"
                if parsed is None
                else f"playroom: caption cannot be combined with {', '.join(fixed)}"
            )
        meaning, rng = parsed, np.random.default_rng(seed)
    return render_meaning(meaning, caption, View(frames, height, width, fps), rng)


def described(
    seed: int | Sequence[int], grammar: Grammar = "simple", split: Split = "train", **fixed: str
) -> tuple[Meaning, str, np.random.Generator]:
    """The meaning and caption of ``sample(seed, ...)``, and the generator that draws the rest; renders nothing."""
    _check(fixed)
    rng = np.random.default_rng(seed)
    meaning = random_meaning(rng, grammar, split, fixed)
    return meaning, phrase(meaning, rng, RARE_SYNONYM if grammar == "simple" else COMMON_SYNONYM), rng


def render_meaning(meaning: Meaning, caption: str, view: View, rng: np.random.Generator) -> Sample:
    """Render a clip of a meaning; everything the meaning leaves open is sampled from ``rng``."""
    things = [meaning.thing, *([meaning.second] if meaning.second else [])]
    backdrop = random_backdrop(meaning.background, [thing.colour for thing in things], meaning.camera is not None, rng)
    raw = layout(meaning, backdrop.name, view, rng)
    camera = make_camera(meaning.camera, view)
    tracks = [
        through_camera(make_track(thing, motion, track, tint(thing.colour, rng)), camera)
        for thing, motion, track in zip(things, motions(meaning, raw), raw, strict=True)
    ]
    surfaces = [random_surface(track, rng) for track in tracks]
    order = [0, 1][: len(tracks)]
    video, tracks = render(tracks, surfaces, backdrop, camera, view, order)
    return Sample(video, caption, Scene(tuple(tracks), backdrop.name, camera.name, meaning.relation, view.fps))


def _check(fixed: dict[str, str]) -> None:
    for key, value in fixed.items():
        if key not in _FIXED:
            raise BadRequest(f"playroom: {key!r} cannot be fixed; expected one of {', '.join([*_FIXED, 'caption'])}")
        if value not in _FIXED[key]:
            raise BadRequest(f"playroom: unknown {key} {value!r}; expected one of {', '.join(_FIXED[key])}")
