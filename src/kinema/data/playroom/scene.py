"""Scene graphs of meanings: position, size, rotation and opacity of every object over time.

Positions are fractions of the width and height, sizes fractions of the shorter side, and time is in
seconds. All random numbers are sampled first, so a seed gives the same scene at any size, frame count
and fps. A directed motion spans the whole clip; periodic motions have periods in seconds. y points
down and angles are clockwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kinema.data.playroom.grammar import DIRECTED, GROUND
from kinema.data.playroom.shapes import Floats

if TYPE_CHECKING:
    from kinema.data.playroom.grammar import Meaning, NamedObject

TAU = 2 * np.pi
Draws: TypeAlias = NDArray[np.float64]
"""Uniform random numbers in [0, 1), one for each random choice."""


@dataclass(frozen=True)
class Track:
    """One object over the T frames of a clip.

    ``position_T2`` is x, y in fractions of the width and height; ``size_T`` the diameter as a
    fraction of the shorter side; ``angle_T`` radians clockwise; ``visible_T`` the share of the
    outline inside the frame and not occluded; ``opacity_T`` 0 to 1; ``rgb`` 0 to 1.
    """

    shape: str
    colour: str
    motion: str
    letter: str | None
    position_T2: Floats
    size_T: Floats
    angle_T: Floats
    visible_T: Floats
    opacity_T: Floats
    rgb: tuple[float, float, float]

    @property
    def glyph(self) -> str:
        """The shape, or the letter for letters."""
        return self.letter or self.shape


@dataclass(frozen=True)
class Scene:
    """The scene graph: objects in the order of the caption, background, camera, relation and frame rate.

    ``camera`` is "still" or a camera motion; ``relation`` is None for a single object.
    """

    objects: tuple[Track, ...]
    background: str
    camera: str
    relation: str | None
    fps: float


@dataclass(frozen=True)
class View:
    """The size, length and frame rate of a clip."""

    frames: int
    height: int
    width: int
    fps: float

    @property
    def short(self) -> int:
        """The shorter side in pixels."""
        return min(self.height, self.width)

    @property
    def seconds_T(self) -> Floats:  # noqa: N802 - shape suffix
        """The time of each frame in seconds."""
        return (np.arange(self.frames) / self.fps).astype(np.float32)

    @property
    def progress_T(self) -> Floats:  # noqa: N802 - shape suffix
        """The elapsed share of the clip at each frame, in [0, 1)."""
        return (np.arange(self.frames) / self.frames).astype(np.float32)

    def margins(self, size: float) -> tuple[float, float]:
        """The minimum distance of an object of this size from the left and top edges, in fractions."""
        reach = 0.57 * size * self.short
        return reach / self.width, reach / self.height


def between(low: float, high: float, share: float) -> float:
    """Interpolate from low to high; their mean if low exceeds high."""
    return low + (high - low) * share if high > low else (low + high) / 2


def _still(x: float, y: float, size: float, angle: float, view: View) -> dict[str, Floats]:
    frames = view.frames
    return {
        "position_T2": np.tile(np.array([x, y], np.float32), (frames, 1)),
        "size_T": np.full(frames, size, np.float32),
        "angle_T": np.full(frames, angle, np.float32),
        "opacity_T": np.ones(frames, np.float32),
    }


def _draw_size(meaning: Meaning, u: float) -> float:
    if meaning.motion in ("grows", "shrinks"):
        return between(0.42, 0.6, u)
    if meaning.size:
        return between(0.2, 0.25, u) if meaning.size == "small" else between(0.42, 0.5, u)
    if meaning.relation:
        return between(0.24, 0.33, u)
    if meaning.motion == "orbits":
        return between(0.27, 0.36, u)
    return between(0.28, 0.43, u)


def _rate(meaning: Meaning) -> float:
    return {"fast": 1.5, "slowly": 0.6}.get(meaning.speed or "", 1.0)


def layout(meaning: Meaning, background: str, view: View, rng: np.random.Generator) -> list[dict[str, Floats]]:
    """The raw track of each object, in the order of the caption."""
    u = rng.random(12)
    size = _draw_size(meaning, u[0])
    angle = (u[1] - 0.5) * 0.3
    second = meaning.second
    if second is None:
        return [_alone(meaning, background, size, angle, view, u)]
    other = between(0.26, 0.34, u[2])
    if meaning.relation in ("chases", "collides"):
        return _encounter(meaning, (size, other), angle, view, u)
    if meaning.relation == "behind":
        return _behind(meaning, (size, max(other, 0.28)), angle, view, u)
    return _adjacent(meaning, (size, other), angle, view, u)


# ------------------------------------------------------------------------------- single objects


def _alone(meaning: Meaning, background: str, size: float, angle: float, view: View, u: Draws) -> dict[str, Floats]:
    mx, my = view.margins(size)
    low_y = 0.62 if background == GROUND else my
    if meaning.motion.split(" ")[0] in DIRECTED:
        across = meaning.direction in ("left", "right")
        line = between(low_y, 1 - my, u[3]) if across else between(mx, 1 - mx, u[3])
        return _travel(meaning, size, angle, line, view, u)
    x = between(mx, 1 - mx, 0.5 + 0.7 * (u[3] - 0.5))
    y = between(low_y, 1 - my, 0.5 + 0.7 * (u[4] - 0.5))
    return _in_place(meaning, size, angle, (x, y), view, u)


def _travel(
    meaning: Meaning,
    size: float,
    angle: float,
    line: float,
    view: View,
    u: Draws,
    share: tuple[float, float] = (0.38, 0.6),
) -> dict[str, Floats]:
    """A straight line over the whole clip; a rolling object rotates by the distance travelled."""
    verb, way = meaning.motion.split(" ")
    across, sign = way in ("left", "right"), 1 if way in ("right", "down") else -1
    margin = view.margins(size)[0 if across else 1]
    room = max(1 - 2 * margin, 0.3)
    distance = min(between(*share, u[5]) * _rate(meaning), room, 0.7)
    middle = 0.5 + (u[6] - 0.5) * (room - distance)
    passed = view.progress_T
    if verb == "slides":
        # Friction decelerates the object until it stops at the end.
        passed = 1 - (1 - passed) ** 2
    track = _still(line, line, size, angle, view)
    track["position_T2"][:, 0 if across else 1] = middle + sign * distance * (passed - 0.5)
    if verb == "rolls":
        side = view.width if across else view.height
        turn = -1 if way in ("left", "down") else 1
        track["angle_T"] += turn * distance * passed * side / (0.5 * size * view.short)
    return track


def _in_place(
    meaning: Meaning, size: float, angle: float, centre: tuple[float, float], view: View, u: Draws
) -> dict[str, Floats]:
    """Motions without net displacement."""
    verb, (x, y) = meaning.motion, centre
    seconds, passed = view.seconds_T * _rate(meaning), view.progress_T
    mx, my = view.margins(size)
    fx, fy = view.short / view.width, view.short / view.height
    turn = 1 if u[5] < 0.5 else -1
    track = _still(x, y, size, angle, view)
    position = track["position_T2"]
    if verb == "bounces":
        ground = 1 - my - 0.06 * u[6]
        height = min(between(0.3, 0.45, u[7]), ground - my)
        phase = (seconds / between(0.75, 1.1, u[8]) + u[9]) % 1
        position[:, 1] = ground - height * 4 * phase * (1 - phase)
        position[:, 0] += (u[10] - 0.5) * 0.16 * (passed - 0.5)
    elif verb == "swings":
        arm = between(0.4, 0.55, u[6])
        reach = min(between(0.6, 0.9, u[7]), (0.5 - mx) / (arm * fx))
        swing = reach * np.sin(TAU * (seconds / between(1.2, 1.7, u[8]) + u[9]))
        low = between(0.5, 1 - my, u[10])
        position[:, 0] = 0.5 + (u[3] - 0.5) * max(0.0, 1 - 2 * (mx + arm * reach * fx)) - arm * fx * np.sin(swing)
        position[:, 1] = low - arm * fy * (1 - np.cos(swing))
        track["angle_T"] += swing
    elif verb == "orbits":
        radius = 0.5 - 0.58 * size - 0.03 * u[6]
        phase = TAU * (turn * seconds / between(1.6, 2.3, u[8]) + u[9])
        position[:, 0] = 0.5 + radius * fx * np.cos(phase)
        position[:, 1] = 0.5 + radius * fy * np.sin(phase)
    elif verb == "spins":
        track["angle_T"] += turn * TAU * seconds / between(1.2, 2.2, u[8])
    elif verb in ("grows", "shrinks"):
        grown = passed if verb == "grows" else 1 - passed
        least = between(0.36, 0.48, u[8])
        track["size_T"] *= least + (1 - least) * grown
    elif verb == "fades":
        track["opacity_T"] *= 1 - 0.95 * passed
    return track


# --------------------------------------------------------------------------------- two objects


def _behind(
    meaning: Meaning, sizes: tuple[float, float], angle: float, view: View, u: Draws
) -> list[dict[str, Floats]]:
    """The first object passes behind the second, which is near the centre."""
    x, y = between(0.42, 0.58, u[3]), between(0.42, 0.58, u[4])
    line = (y if meaning.direction in ("left", "right") else x) + (u[8] - 0.5) * 0.1
    middle = np.array(u)
    middle[6] = 0.5
    first = _travel(meaning, sizes[0], angle, line, view, middle, (0.6, 0.7))
    return [first, _still(x, y, sizes[1], (u[7] - 0.5) * 0.3, view)]


def _adjacent(
    meaning: Meaning, sizes: tuple[float, float], angle: float, view: View, u: Draws
) -> list[dict[str, Floats]]:
    """The first object moves above, below or next to the second, which is still."""
    near, far = between(0.27, 0.3, u[3]), between(0.72, 0.75, u[4])
    if meaning.motion in ("grows", "shrinks"):
        sizes = (sizes[0] * 0.8, sizes[1])
    slack = between(0.4, 0.6, u[8])
    if meaning.relation == "next to":
        x, x2 = (near, far) if u[9] < 0.5 else (far, near)
        place, place2 = (x, slack), (x2, slack)
    else:
        y, y2 = (near, far) if meaning.relation == "above" else (far, near)
        place, place2 = (slack, y), (slack, y2)
    if meaning.motion.split(" ")[0] in DIRECTED:
        line = place[1] if meaning.direction in ("left", "right") else place[0]
        first = _travel(meaning, sizes[0], angle, line, view, u)
    else:
        first = _in_place(meaning, sizes[0], angle, place, view, u)
    return [first, _still(*place2, sizes[1], (u[7] - 0.5) * 0.3, view)]


def _encounter(
    meaning: Meaning, sizes: tuple[float, float], angle: float, view: View, u: Draws
) -> list[dict[str, Floats]]:
    """A chase at constant distance, or a collision in which the first object transfers its speed."""
    way = meaning.direction or ("right" if u[10] < 0.5 else "left")
    short = min(1.0, 0.3 / max(sizes))
    sizes = (sizes[0] * short, sizes[1] * short)
    fx = view.short / view.width
    y, passed = between(0.3, 0.7, u[4]), view.progress_T
    touching = 0.5 * (sizes[0] + sizes[1]) * fx
    start, end = 0.59 * sizes[0] * fx, 1 - 0.59 * sizes[1] * fx
    if meaning.relation == "chases":
        gap = touching * 1.15
        x = start + passed * (end - gap - start)
        x2 = x + gap
    else:
        place = between(0.48, 0.56, u[3])
        hit = between(0.42, 0.5, u[5])
        x = np.where(
            passed < hit,
            start + (place - touching - start) * passed / hit,
            place - touching - 0.06 * (passed - hit) / (1 - hit),
        )
        x2 = np.where(passed < hit, place, place + (end - place) * (passed - hit) / (1 - hit))
    tracks = [_still(0.5, y, size, tilt, view) for size, tilt in zip(sizes, (angle, (u[7] - 0.5) * 0.3), strict=True)]
    for track, places in zip(tracks, (x, x2), strict=True):
        track["position_T2"][:, 0] = places if way == "right" else 1 - places
    return tracks


# -------------------------------------------------------------------------------------- camera


@dataclass(frozen=True)
class Camera:
    """The camera over time: ``pan_T`` in widths to the right of the centre, and ``zoom_T``."""

    name: str
    pan_T: Floats
    zoom_T: Floats

    @property
    def moves(self) -> bool:
        """Whether the camera moves."""
        return self.name != "still"


def make_camera(name: str | None, view: View) -> Camera:
    """The camera motion of a name; still for None."""
    passed = view.progress_T
    pan, zoom = np.zeros_like(passed), np.ones_like(passed)
    if name in ("pans left", "pans right"):
        pan = (passed - 0.5) * (0.26 if name == "pans right" else -0.26)
    elif name in ("zooms in", "zooms out"):
        zoom = 0.75 * (1.3 / 0.75) ** (passed if name == "zooms in" else 1 - passed)
    return Camera(name or "still", pan.astype(np.float32), zoom.astype(np.float32))


def through_camera(track: Track, camera: Camera) -> Track:
    """The track in the coordinates of the camera."""
    position = (track.position_T2 - 0.5 - np.stack([camera.pan_T, 0 * camera.pan_T], 1)) * camera.zoom_T[:, None] + 0.5
    return replace(track, position_T2=position.astype(np.float32), size_T=track.size_T * camera.zoom_T)


# -------------------------------------------------------------------------------------- colours

RGB: dict[str, tuple[float, float, float]] = {
    "red": (0.87, 0.13, 0.15),
    "green": (0.15, 0.66, 0.25),
    "blue": (0.14, 0.30, 0.90),
    "yellow": (0.98, 0.89, 0.14),
    "purple": (0.56, 0.18, 0.78),
    "orange": (0.98, 0.50, 0.08),
    "white": (0.97, 0.97, 0.97),
    "cyan": (0.12, 0.83, 0.90),
}


def tint(colour: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """A shade close to the named colour."""
    jitter = rng.random(3) * 0.05 - 0.025
    red, green, blue = (
        float(min(max(base + shift, 0.0), 1.0)) for base, shift in zip(RGB[colour], jitter, strict=True)
    )
    return red, green, blue


def make_track(thing: NamedObject, motion: str, raw: dict[str, Floats], rgb: tuple[float, float, float]) -> Track:
    """A track with names and colour; it counts as fully visible until rendered."""
    return Track(thing.shape, thing.colour, motion, thing.letter, visible_T=np.ones_like(raw["size_T"]), rgb=rgb, **raw)


def motions(meaning: Meaning, tracks: list[dict[str, Floats]]) -> list[str]:
    """The name of each object's motion; in chases and collisions both objects move."""
    if meaning.second is None:
        return [meaning.motion]
    if meaning.relation not in ("chases", "collides"):
        return [meaning.motion, "still"]
    right = tracks[1]["position_T2"][-1, 0] >= tracks[1]["position_T2"][0, 0]
    return [f"moves {'right' if right else 'left'}"] * 2
