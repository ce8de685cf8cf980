"""The playroom oracle: what a clip shows, measured without learned weights, against its prompt.

``judge`` first measures the clip on its own (which of 8 colours, 32 outlines, 4 directions and 10
kinds of motion are in it) and only then looks at the prompt. ``score`` does so for many clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from kinema.data.playroom import parse
from kinema.evaluation.motion import Path, direction_of_path, motion_of_path
from kinema.evaluation.outline import GLYPHS, LETTERS, SHAPES, TURNS, crops, frames_of, likeness
from kinema.evaluation.sighting import sight
from kinema.schema import BadRequest

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from kinema.data.playroom import Meaning, NamedObject
    from kinema.evaluation.outline import Floats
    from kinema.evaluation.sighting import Sighting

_MOST_PIXELS = 96
"""Larger clips are averaged down to about this shorter side: the templates need no more."""


@dataclass(frozen=True)
class Seen:
    """One object as it was measured; ``shape`` is "letter" for letters, ``direction`` may be None.

    ``pieces`` is how many objects of its colour there are.
    """

    colour: str
    shape: str
    letter: str | None
    motion: str
    direction: str | None
    identity: float
    path: Path
    pieces: int


@dataclass(frozen=True)
class Verdict:
    """How a clip answers its prompt, and what was measured in it.

    ``direction_right`` is None where the prompt names no direction, ``letter_right`` where it names
    no letter, ``second_right`` (colour and shape) where it names one object. ``identity`` is 0 to 1:
    how far colour and outline stay the same over the frames. ``motion_amount`` is the mean absolute
    change of a pixel (0 to 1) in a second. ``flicker`` is the mean absolute second difference in
    time of a pixel, and ``jerk`` the same as a ratio to the mean first difference.
    """

    colour_right: bool
    shape_right: bool
    letter_right: bool | None
    direction_right: bool | None
    motion_right: bool
    count_right: bool
    second_right: bool | None
    identity: float
    motion_amount: float
    flicker: float
    jerk: float
    colour: str | None
    shape: str | None
    letter: str | None
    direction: str | None
    motion: str | None
    count: int


def judge(video_CTHW: ArrayLike | Tensor, prompt: str, fps: float = 8.0) -> Verdict:
    """Judge a clip ``[3, T, H, W]`` in [-1, 1] (numpy or torch) by a prompt of the playroom's grammar.

    Raises ``BadRequest`` for another shape of array or a prompt that ``playroom.parse`` cannot read.
    """
    meaning = parse(prompt)
    if meaning is None:
        raise BadRequest(f"oracle: prompt {prompt!r} is not in the playroom grammar")
    video = _pixels(video_CTHW)
    seen = [_measure(video, sighting) for sighting in sight(video)]
    return _compare(meaning, seen, _temporal(video, fps))


def _pixels(video_CTHW: ArrayLike | Tensor) -> Floats:
    """The clip as numpy in [0, 1], at most about 96 pixels on its shorter side."""
    array = video_CTHW.detach().float().cpu().numpy() if hasattr(video_CTHW, "detach") else np.asarray(video_CTHW)
    if array.ndim != 4 or array.shape[0] != 3 or min(array.shape) < 1:
        raise BadRequest(f"oracle: a clip is an array of shape [3, T, H, W], got {list(array.shape)}")
    # A model that diverged makes NaN: grey, in which nothing is found.
    pixels: Floats = np.clip((np.nan_to_num(array.astype(np.float32)) + 1) / 2, 0, 1)
    factor = max(1, min(pixels.shape[2:]) // _MOST_PIXELS)
    if factor > 1:
        channels, frames, height, width = pixels.shape
        height, width = height // factor, width // factor
        cut = pixels[:, :, : height * factor, : width * factor]
        pixels = cut.reshape(channels, frames, height, factor, width, factor).mean(axis=(3, 5), dtype=np.float32)
    return pixels


def _temporal(video: Floats, fps: float) -> tuple[float, float, float]:
    """Motion amount, flicker and jerk of a clip, as ``Verdict`` defines them."""
    first = np.abs(np.diff(video, axis=1)).mean() if video.shape[1] > 1 else 0.0
    second = np.abs(np.diff(video, n=2, axis=1)).mean() if video.shape[1] > 2 else 0.0
    return float(first * fps), float(second), float(second / max(first, 1e-6))


# ------------------------------------------------------------------------------- measurement


def _measure(video: Floats, sighting: Sighting) -> Seen:
    """What one object is and does."""
    height, width = video.shape[2:]
    centres, radius = frames_of(sighting.cover_THW)
    there = np.flatnonzero(np.isfinite(centres[:, 0]))
    covers = crops(sighting.cover_THW[None], np.nan_to_num(centres), np.nan_to_num(radius, nan=1.0))[0]
    cosines = likeness(covers)
    trust = _trust(sighting)
    glyph = _glyph(cosines, trust, there)
    looks = crops(video, np.nan_to_num(centres), np.nan_to_num(radius, nan=1.0))
    path = Path.of(centres, radius, sighting, looks, covers, (height, width))
    same_colour = np.array([name == sighting.colour for name in sighting.colour_T], np.float32)
    best = np.maximum(cosines.max(axis=(1, 2)), 1e-6)
    same_shape = np.clip(cosines[:, GLYPHS.index(glyph)].max(axis=1) / best, 0, 1)
    # A frame without the object breaks its identity, unless the object was fading away.
    motion, direction = motion_of_path(path), direction_of_path(path)
    counted = there if motion == "fades" else np.arange(video.shape[1])
    return Seen(
        colour=sighting.colour,
        shape=glyph if glyph in SHAPES else "letter",
        letter=glyph if glyph in LETTERS else None,
        motion=motion,
        direction=direction,
        identity=float((same_colour * same_shape)[counted].mean()) if len(counted) else 0.0,
        path=path,
        pieces=sighting.pieces,
    )


def _trust(sighting: Sighting) -> Floats:
    """The weight of each frame's outline: large, clear and clear of the border counts most."""
    mask = sighting.mask_THW
    cut = mask[:, 0].any(1) | mask[:, -1].any(1) | mask[:, :, 0].any(1) | mask[:, :, -1].any(1)
    clear = sighting.contrast_T / max(float(sighting.contrast_T.max()), 1e-6)
    large = np.sqrt(sighting.area_T / max(float(sighting.area_T.max()), 1.0))
    return (clear**2 * large**2 * np.where(cut, 0.1, 1.0)).astype(np.float32)


def _glyph(cosines: Floats, trust: Floats, there: NDArray[np.intp]) -> str:
    """The outline with the best mean likeness; letters alike but for a rotation start upright."""
    votes = (cosines.max(axis=2) * trust[:, None]).sum(axis=0) / max(float(trust.sum()), 1e-6)
    best = GLYPHS[int(np.argmax(votes))]
    if best in SHAPES or not len(there):
        return best
    tilt = round(TURNS / 16)
    upright = (
        np.concatenate([cosines[there[:2], :, :tilt], cosines[there[:2], :, -tilt:]], axis=2).max(axis=2).mean(axis=0)
    )
    merit = np.where(votes > votes.max() - 0.04, votes + 0.5 * upright, -1)
    merit[: len(SHAPES)] = -1
    return GLYPHS[int(np.argmax(merit))]


# -------------------------------------------------------------------------------- comparison


def _compare(meaning: Meaning, seen: list[Seen], temporal: tuple[float, float, float]) -> Verdict:
    amount, flicker, jerk = temporal
    first = _match(seen, meaning.thing) if meaning.second else (seen[0] if seen else None)
    others = [each for each in seen if each is not first]
    second = _match(others, meaning.second) if meaning.second else None
    wanted = "moves" if meaning.relation in ("chases", "collides") else meaning.motion.split(" ")[0]
    verb = first.motion.split(" ")[0] if first else None
    count = sum(each.pieces for each in seen)
    return Verdict(
        colour_right=_is(first, "colour", meaning.colour),
        shape_right=_is(first, "shape", meaning.shape),
        letter_right=_is(first, "letter", meaning.letter) if meaning.letter else None,
        direction_right=_is(first, "direction", meaning.direction) if meaning.direction else None,
        motion_right=verb == wanted,
        count_right=count == (2 if meaning.second else 1),
        second_right=_is(second, "colour", meaning.second.colour) and _is(second, "shape", meaning.second.shape)
        if meaning.second
        else None,
        identity=first.identity if first else 0.0,
        motion_amount=amount,
        flicker=flicker,
        jerk=jerk,
        colour=first.colour if first else None,
        shape=first.shape if first else None,
        letter=first.letter if first else None,
        direction=first.direction if first else None,
        motion=first.motion if first else None,
        count=count,
    )


def _is(seen: Seen | None, trait: str, wanted: str) -> bool:
    return seen is not None and getattr(seen, trait) == wanted


def _match(seen: list[Seen], thing: NamedObject) -> Seen | None:
    """Of several objects the one that is compared: of this colour, else of this shape, else the largest."""
    ranked = sorted(seen, key=lambda each: (each.colour != thing.colour, each.shape != thing.shape))
    return ranked[0] if ranked else None


# ------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % interval over ``count`` clips."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Scores:
    """Means over many verdicts: shares with Wilson intervals, measures with normal ones.

    A share counts only the clips whose prompt asks for it; it is None where none does.
    """

    colour: Figure | None
    shape: Figure | None
    letter: Figure | None
    direction: Figure | None
    motion: Figure | None
    count: Figure | None
    second: Figure | None
    identity: Figure | None
    motion_amount: Figure | None
    flicker: Figure | None
    jerk: Figure | None

    def table(self) -> str:
        """A Markdown table of the figures."""
        lines = ["| measure | mean | 95 % interval | clips |", "|---|---|---|---|"]
        for name, share in [(f.name, f.name in _SHARES) for f in fields(self)]:
            figure = getattr(self, name)
            if figure is not None:
                values = (figure.mean, figure.low, figure.high)
                mean, low, high = (f"{100 * v:.1f} %" if share else f"{v:.4f}" for v in values)
                within = f"{low} to {high}" if math.isfinite(figure.high) else "unknown"
                lines.append(f"| {name.replace('_', ' ')} | {mean} | {within} | {figure.count} |")
        return "\n".join(lines)


_SHARES = ("colour", "shape", "letter", "direction", "motion", "count", "second")


def summarise(verdicts: Sequence[Verdict]) -> Scores:
    """The scores of verdicts."""
    shares = {name: wilson([getattr(v, f"{name}_right") for v in verdicts]) for name in _SHARES}
    measures = {
        name: spread([getattr(v, name) for v in verdicts]) for name in ("identity", "motion_amount", "flicker", "jerk")
    }
    return Scores(**shares, **measures)


def wilson(outcomes: Sequence[bool | None]) -> Figure | None:
    """The share of true outcomes with Wilson's 95 % interval; None outcomes do not count."""
    known = [bool(outcome) for outcome in outcomes if outcome is not None]
    if not known:
        return None
    n, share, z = len(known), sum(known) / len(known), 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Figure(share, max(0.0, middle - half), min(1.0, middle + half), n)


def spread(values: Sequence[float]) -> Figure | None:
    """The mean with the normal 95 % interval of the mean; None without values."""
    if not values:
        return None
    mean = float(np.mean(values))
    half = 1.959964 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Figure(mean, mean - half, mean + half, len(values))
