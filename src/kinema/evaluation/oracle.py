"""The playroom oracle: measures a clip's content without learned weights and compares it with the prompt.

``judge`` first measures the clip alone (which of 8 colours, 32 outlines, 4 directions and 10 kinds of motion it has)
and only then looks at the prompt. ``summarise`` combines many verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from kinema.data.playroom import parse
from kinema.evaluation.motion import Path, direction_of_path, motion_of_path
from kinema.evaluation.objects import find_objects
from kinema.evaluation.outline import GLYPHS, LETTERS, SHAPES, TURNS, centroids_and_radii, crops, similarity
from kinema.schema import BadRequest

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from kinema.data.playroom import Meaning, NamedObject
    from kinema.evaluation.objects import TrackedObject
    from kinema.evaluation.outline import Floats

_MOST_PIXELS = 96
"""Larger clips are downscaled to about this shorter side; the templates need no more detail."""


@dataclass(frozen=True)
class MeasuredObject:
    """One measured object; ``shape`` is "letter" for letters, ``direction`` may be None.

    ``pieces`` is the number of objects of its colour.
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
    """How well a clip matches its prompt, and what was measured.

    ``direction_right`` is None if the prompt names no direction, ``letter_right`` if it names no letter,
    ``second_right`` (colour and shape) if it names only one object. ``identity`` is 0 to 1: how constant colour and
    outline are over the frames. ``motion_amount`` is the mean absolute change of a pixel (0 to 1) per second.
    ``flicker`` is the mean absolute second difference in time of a pixel, and ``jerk`` its ratio to the mean absolute
    first difference.
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
    """Judge a clip ``[3, T, H, W]`` in [-1, 1] (numpy or torch) by a prompt in the playroom grammar.

    Raises ``BadRequest`` for another array shape or a prompt that ``playroom.parse`` does not accept.
    """
    meaning = parse(prompt)
    if meaning is None:
        raise BadRequest(f"prompt {prompt!r} is not in the playroom grammar")
    video = _pixels(video_CTHW)
    objects = [_measure(video, tracked) for tracked in find_objects(video)]
    return _compare(meaning, objects, _temporal(video, fps))


def _pixels(video_CTHW: ArrayLike | Tensor) -> Floats:
    """The clip as numpy in [0, 1], at most about 96 pixels on its shorter side."""
    array = video_CTHW.detach().float().cpu().numpy() if hasattr(video_CTHW, "detach") else np.asarray(video_CTHW)
    if array.ndim != 4 or array.shape[0] != 3 or min(array.shape) < 1:
        raise BadRequest(f"the clip has shape {'×'.join(map(str, array.shape))}; expected 3×T×H×W")
    # A diverged model outputs NaN: replaced by grey, in which no object is found.
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


def _measure(video: Floats, tracked: TrackedObject) -> MeasuredObject:
    """Measure one object's appearance and motion."""
    height, width = video.shape[2:]
    centres, radius = centroids_and_radii(tracked.cover_THW)
    visible = np.flatnonzero(np.isfinite(centres[:, 0]))
    covers = crops(tracked.cover_THW[None], np.nan_to_num(centres), np.nan_to_num(radius, nan=1.0))[0]
    cosines = similarity(covers)
    trust = _trust(tracked)
    glyph = _glyph(cosines, trust, visible)
    patches = crops(video, np.nan_to_num(centres), np.nan_to_num(radius, nan=1.0))
    path = Path.of(centres, radius, tracked, patches, covers, (height, width))
    same_colour = np.array([name == tracked.colour for name in tracked.colour_T], np.float32)
    best = np.maximum(cosines.max(axis=(1, 2)), 1e-6)
    same_shape = np.clip(cosines[:, GLYPHS.index(glyph)].max(axis=1) / best, 0, 1)
    # Frames without the object lower its identity, unless it was fading away.
    motion, direction = motion_of_path(path), direction_of_path(path)
    scored = visible if motion == "fades" else np.arange(video.shape[1])
    return MeasuredObject(
        colour=tracked.colour,
        shape=glyph if glyph in SHAPES else "letter",
        letter=glyph if glyph in LETTERS else None,
        motion=motion,
        direction=direction,
        identity=float((same_colour * same_shape)[scored].mean()) if len(scored) else 0.0,
        path=path,
        pieces=tracked.pieces,
    )


def _trust(tracked: TrackedObject) -> Floats:
    """Weight of each frame's outline: highest where the object is large, clear and away from the border."""
    mask = tracked.mask_THW
    cut = mask[:, 0].any(1) | mask[:, -1].any(1) | mask[:, :, 0].any(1) | mask[:, :, -1].any(1)
    clear = tracked.contrast_T / max(float(tracked.contrast_T.max()), 1e-6)
    large = np.sqrt(tracked.area_T / max(float(tracked.area_T.max()), 1.0))
    return (clear**2 * large**2 * np.where(cut, 0.1, 1.0)).astype(np.float32)


def _glyph(cosines: Floats, trust: Floats, visible: NDArray[np.intp]) -> str:
    """The outline with the best mean similarity; letters equal up to rotation are judged by their start."""
    votes = (cosines.max(axis=2) * trust[:, None]).sum(axis=0) / max(float(trust.sum()), 1e-6)
    best = GLYPHS[int(np.argmax(votes))]
    if best in SHAPES or not len(visible):
        return best
    tilt = round(TURNS / 16)
    upright = (
        np.concatenate([cosines[visible[:2], :, :tilt], cosines[visible[:2], :, -tilt:]], axis=2)
        .max(axis=2)
        .mean(axis=0)
    )
    merit = np.where(votes > votes.max() - 0.04, votes + 0.5 * upright, -1)
    merit[: len(SHAPES)] = -1
    return GLYPHS[int(np.argmax(merit))]


# -------------------------------------------------------------------------------- comparison


def _compare(meaning: Meaning, objects: list[MeasuredObject], temporal: tuple[float, float, float]) -> Verdict:
    amount, flicker, jerk = temporal
    first = _match(objects, meaning.thing) if meaning.second else (objects[0] if objects else None)
    others = [each for each in objects if each is not first]
    second = _match(others, meaning.second) if meaning.second else None
    verb_expected = "moves" if meaning.relation in ("chases", "collides") else meaning.motion.split(" ")[0]
    verb = first.motion.split(" ")[0] if first else None
    count = sum(each.pieces for each in objects)
    return Verdict(
        colour_right=_is(first, "colour", meaning.colour),
        shape_right=_is(first, "shape", meaning.shape),
        letter_right=_is(first, "letter", meaning.letter) if meaning.letter else None,
        direction_right=_is(first, "direction", meaning.direction) if meaning.direction else None,
        motion_right=verb == verb_expected,
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


def _is(found: MeasuredObject | None, trait: str, expected: str) -> bool:
    return found is not None and getattr(found, trait) == expected


def _match(objects: list[MeasuredObject], thing: NamedObject) -> MeasuredObject | None:
    """The object to compare with the prompt's: same colour if possible, else same shape, else the largest."""
    ranked = sorted(objects, key=lambda each: (each.colour != thing.colour, each.shape != thing.shape))
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
    """Means over many verdicts: shares with Wilson intervals, other measures with normal ones.

    A share counts only clips whose prompt specifies it; None if none does.
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
        """Markdown table of the scores."""
        lines = ["| measure | mean | 95 % interval | clips |", "|---|---|---|---|"]
        for name, share in [(f.name, f.name in _SHARES) for f in fields(self)]:
            figure = getattr(self, name)
            if figure is not None:
                values = (figure.mean, figure.low, figure.high)
                mean, low, high = (f"{100 * v:.1f} %" if share else f"{v:.4f}" for v in values)
                within = f"{low} to {high}" if math.isfinite(figure.high) else "unknown"
                clips = f"{round(figure.mean * figure.count)} of {figure.count}" if share else str(figure.count)
                lines.append(f"| {name.replace('_', ' ')} | {mean} | {within} | {clips} |")
        return "\n".join(lines)


_SHARES = ("colour", "shape", "letter", "direction", "motion", "count", "second")


def summarise(verdicts: Sequence[Verdict]) -> Scores:
    """Combine verdicts into scores."""
    shares = {name: wilson([getattr(v, f"{name}_right") for v in verdicts]) for name in _SHARES}
    measures = {
        name: spread([getattr(v, name) for v in verdicts]) for name in ("identity", "motion_amount", "flicker", "jerk")
    }
    return Scores(**shares, **measures)


def wilson(outcomes: Sequence[bool | None]) -> Figure | None:
    """Share of true outcomes with Wilson's 95 % interval; None outcomes are ignored."""
    known = [bool(outcome) for outcome in outcomes if outcome is not None]
    if not known:
        return None
    return share_interval(sum(known) / len(known), len(known))


def share_interval(share: float, count: int) -> Figure:
    """A share (0 to 1) of ``count`` outcomes with Wilson's 95 % interval; outcomes may count half."""
    n, z = count, 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Figure(share, max(0.0, middle - half), min(1.0, middle + half), n)


def spread(values: Sequence[float]) -> Figure | None:
    """Mean with its normal 95 % interval; None without values."""
    if not values:
        return None
    mean = float(np.mean(values))
    half = 1.959964 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Figure(mean, mean - half, mean + half, len(values))
