"""Backgrounds: patterns of two colours that stay fixed in the scene while the camera moves.

Coordinates are relative to the centre of the frame, in shorter sides, y down.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kinema.data.playroom.grammar import GROUND, TEXTURES
from kinema.data.playroom.scene import RGB, Draws

if TYPE_CHECKING:
    from kinema.data.playroom.scene import Camera, View
    from kinema.data.playroom.shapes import Floats

Colour = tuple[float, float, float]

_PLAIN: dict[str, Colour] = {
    "grey": (0.5, 0.5, 0.5),
    "black": (0.04, 0.04, 0.05),
    "beige": (0.76, 0.70, 0.60),
    "brown": (0.34, 0.25, 0.19),
    "dark": (0.17, 0.18, 0.21),
    "light": (0.78, 0.79, 0.80),
}


@dataclass(frozen=True)
class Backdrop:
    """A background: its name, two colours, and the parameters of its pattern."""

    name: str
    first: Colour
    second: Colour
    angle: float
    cell: float
    shift: tuple[float, float]
    horizon: float
    table: Floats

    @property
    def kind(self) -> str:
        """The pattern: plain, gradient, striped, checkered, speckled, or grass and sky."""
        return self.name.split(" ")[0] if self.name.startswith("plain") else self.name


def random_backdrop(named: str | None, colours: list[str], patterned: bool, rng: np.random.Generator) -> Backdrop:
    """A background of the given name, or a random one that contrasts with the objects' colours.

    ``patterned`` excludes plain backgrounds, so that camera motion is visible.
    """
    u = rng.random(10)
    table = rng.random((3, 16, 16), dtype=np.float32)
    name = named or _unnamed(colours, patterned, u)
    first = _muted(colours, u[1], u[2], u[3])
    if name.startswith("plain "):
        first = second = _PLAIN[name[6:]]
    elif name == GROUND:
        first = _near((0.60, 0.74, 0.88), u[1])
        second = _near((0.42, 0.52, 0.30), u[2])
    else:
        contrast = (0.5 if name == "gradient" else 0.25) if named else (0.3 if name == "gradient" else 0.14)
        second = _other_tone(first, contrast, colours)
    cell = 0.14 + 0.1 * float(u[5])
    return Backdrop(
        name, first, second, float(u[4]) * 2 * np.pi, cell, (float(u[6]), float(u[7])), 0.5 + 0.16 * float(u[8]), table
    )


def _unnamed(colours: list[str], patterned: bool, u: Draws) -> str:
    clash = {"green", "blue", "cyan", "white"} & set(colours)
    if patterned:
        return TEXTURES[int(u[0] * len(TEXTURES))] if clash or u[9] < 0.7 else GROUND
    if u[0] < 0.42 or (u[0] >= 0.87 and clash):
        return "plain"
    if u[0] < 0.72:
        return "gradient"
    if u[0] < 0.87:
        return TEXTURES[1 + int((u[0] - 0.72) / 0.15 * 3) % 3]
    return GROUND


def _muted(colours: list[str], tone: float, hue: float, value: float) -> Colour:
    """A low-saturation colour, distant in hue from the first object and darker than white."""
    bright = 0.55 if "white" in colours else 0.85
    own = colorsys.rgb_to_hsv(*RGB[colours[0]])[0]
    saturation = 0.0 if tone < 0.3 else 0.16 * tone
    return colorsys.hsv_to_rgb((own + 0.2 + 0.6 * hue) % 1, saturation, 0.08 + (bright - 0.08) * value)


def _near(colour: Colour, u: float) -> Colour:
    scale = 0.92 + 0.14 * u
    return (colour[0] * scale, colour[1] * scale, colour[2] * scale)


def _other_tone(colour: Colour, contrast: float, colours: list[str]) -> Colour:
    """A lighter or darker tone, whichever is in range; never near white with a white object."""
    top = 0.6 if "white" in colours else 0.9
    up = max(colour) + contrast <= top
    target = (contrast if up else -contrast) / max(*colour, 0.05)
    red, green, blue = (min(max(channel * (1 + target), 0.02), top) for channel in colour)
    return red, green, blue


def paint(backdrop: Backdrop, view: View, camera: Camera) -> Floats:
    """Render the background ``[3, T or 1, H, W]`` in 0 to 1: a single frame if the camera is still."""
    x = (np.arange(view.width, dtype=np.float32) + 0.5) / view.short - np.float32(0.5 * view.width / view.short)
    y = (np.arange(view.height, dtype=np.float32) + 0.5) / view.short - np.float32(0.5 * view.height / view.short)
    zoom = camera.zoom_T if camera.moves else np.ones(1, np.float32)
    pan = camera.pan_T if camera.moves else np.zeros(1, np.float32)
    xs = x[None, None, :] / zoom[:, None, None] + (pan * np.float32(view.width / view.short))[:, None, None]
    ys = y[None, :, None] / zoom[:, None, None]
    pixels = np.float32(view.short) * zoom[:, None, None]
    mix = _pattern(backdrop, xs.astype(np.float32), ys.astype(np.float32), pixels)
    mix = np.broadcast_to(mix, (len(zoom), view.height, view.width))
    first = np.array(backdrop.first, np.float32)[:, None, None, None]
    second = np.array(backdrop.second, np.float32)[:, None, None, None]
    return first + (second - first) * mix[None]


def _pattern(backdrop: Backdrop, x: Floats, y: Floats, pixels: Floats) -> Floats:
    """The weight of the second colour, 0 to 1; ``pixels`` is pixels per shorter side."""
    kind = backdrop.kind
    cos, sin = np.float32(np.cos(backdrop.angle)), np.float32(np.sin(backdrop.angle))
    if kind == "plain":
        return np.zeros((1, 1, 1), np.float32)
    if kind == "gradient":
        return np.clip((x * cos + y * sin) * np.float32(0.8) + np.float32(0.5), 0, 1)
    if kind == GROUND:
        line = np.float32(backdrop.horizon - 0.5)
        depth = np.clip((y - line) * pixels + np.float32(0.5), 0, 1)
        haze = np.clip((line - y) * np.float32(0.25), -0.1, 0.2)
        return depth - haze * (1 - depth)
    if kind == "striped":
        along = ((x * cos + y * sin) / np.float32(backdrop.cell)).astype(np.float32, copy=False)
        return _wave(along + np.float32(backdrop.shift[0]), pixels * np.float32(backdrop.cell))
    if kind == "checkered":
        axes = ((w / np.float32(backdrop.cell)).astype(np.float32) for w in (x, y))
        cell = pixels * np.float32(backdrop.cell)
        shifts = (np.float32(shift) for shift in backdrop.shift)
        across, down = (2 * _wave(w + shift, cell) - 1 for w, shift in zip(axes, shifts, strict=True))
        return np.float32(0.5) + np.float32(0.5) * across * down
    return _speckles(backdrop, x, y, pixels)


def _wave(u: Floats, pixels: Floats) -> Floats:
    """A square wave of period 2 with anti-aliased edges; ``pixels`` is pixels per unit of u."""
    return np.clip((np.float32(0.5) - np.abs(u - 2 * np.round(u / 2))) * pixels + np.float32(0.5), 0, 1)


def _speckles(backdrop: Backdrop, x: Floats, y: Floats, pixels: Floats) -> Floats:
    """One dot in each cell of a grid, with random position and size."""
    cell = np.float32(backdrop.cell * 0.9)
    u, v = np.broadcast_arrays(x / cell + np.float32(backdrop.shift[0]), y / cell + np.float32(backdrop.shift[1]))
    column, row = np.floor(u), np.floor(v)
    index = (row.astype(np.int32) % 16) * 16 + column.astype(np.int32) % 16
    across, down, size = backdrop.table.reshape(3, 256)
    du = u - column - np.float32(0.3) - np.float32(0.4) * across[index]
    dv = v - row - np.float32(0.3) - np.float32(0.4) * down[index]
    radius = np.float32(0.1) + np.float32(0.18) * size[index]
    return np.clip((radius - np.sqrt(du * du + dv * dv)) * cell * pixels + np.float32(0.5), 0, 1)
