"""How motion modules act in a request: options ``effect`` and ``motion_scale``, for each frame and region, and windows.

What is told is a number, a list with a number for each frame, or a mapping of regions to either. A region is the file
of a mask (white where the number holds, grey in between; a clip is one mask a frame), or a box "left,top,right,bottom"
in fractions of the frame; "elsewhere" (1 when left out) is what is in none. Later regions lie over earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.diffusion.windows import View, views, window_sizes
from kinema.families.animatediff.motion.module import Moving
from kinema.grid import Lattice
from kinema.media import read
from kinema.media.pictures import is_picture
from kinema.schema import BadRequest, Request
from kinema.values import quoted

AMOUNTS = ("effect", "motion_scale")
ELSEWHERE = "elsewhere"
MOST = 10.0


def moving_of(request: Request, lattice: Lattice) -> Moving:
    """What the request asks of the motion modules; maps are on the latent grid."""
    effect, scale = (_amount(name, request, lattice) for name in AMOUNTS)
    return Moving(effect, scale, _views(request, lattice))


def _views(request: Request, lattice: Lattice) -> tuple[View, ...]:
    if request.window is None or request.window_in != "attention":
        return ()
    total = lattice.grid.time.latent(request.shape.frames)
    return views(total, *window_sizes(request, lattice), request.window_weights, request.loop)


def check(request: Request, longest: int) -> None:
    """Refuse, by name, amounts out of range and regions that are none, before anything is read.

    ``longest`` are the frames made at once: in a clip of several blocks nothing can be told of single frames.
    """
    frames = request.frames or 1
    for name in AMOUNTS:
        told = request.extra.get(name)
        if told is not None and frames == 1:
            raise BadRequest(f"{name} is of motion modules, and a single frame is made without them: leave it out")
        for region, value in _regions(told).items():
            of_frames = isinstance(value, list | tuple)
            if told is not None:
                _numbers(name, value, frames)
            if region != ELSEWHERE and _box(name, region) is None:
                of_frames |= not _picture(name, region)
            if of_frames and in_blocks(request, longest):
                raise BadRequest(at_once(name, longest))


def masks_of(extra: Mapping[str, Any]) -> list[str]:
    """The files of masks that regions are told by."""
    regions = [(name, region) for name in AMOUNTS for region in _regions(extra.get(name))]
    return [str(region) for name, region in regions if region != ELSEWHERE and _box(name, region) is None]


def _regions(told: Any) -> Mapping[Any, Any]:
    return told if isinstance(told, Mapping) else {ELSEWHERE: told}


def in_blocks(request: Request, longest: int) -> bool:
    """Whether the clip is made block by block."""
    return (request.frames or 1) > longest and request.window is None


def at_once(name: str, longest: int) -> str:
    """The refusal of what is told of each frame of a clip that is made block by block."""
    return f"{name} of single frames is for a clip made at once: give a window of {longest}"


def _numbers(name: str, told: Any, frames: int) -> Tensor:
    """[T or 1, 1, 1, 1]."""
    values = list(told) if isinstance(told, list | tuple) else [told]
    sound = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= MOST for v in values)
    if not sound or len(values) not in (1, frames):
        raise BadRequest(f"{name} is {quoted(told)}; expected a number from 0 to {MOST:g}, or {frames} of them")
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None]


def _box(name: str, region: Any) -> tuple[float, ...] | None:
    """The box that a region's name is; None where it is another name."""
    try:
        left, top, right, bottom = (float(side) for side in str(region).split(","))
    except ValueError:
        return None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise BadRequest(f"{name} has the region {region}; expected 0 <= left < right <= 1 and 0 <= top < bottom <= 1")
    return left, top, right, bottom


def _picture(name: str, region: Any) -> bool:
    """Whether a mask's file is a picture (or else a clip)."""
    if not Path(str(region)).exists():
        raise BadRequest(
            f"{name} names the region {quoted(region)}; expected a mask's file, left,top,right,bottom in fractions "
            f"of the frame, or {ELSEWHERE}"
        )
    return Path(region).is_file() and is_picture(Path(region))


def _amount(name: str, request: Request, lattice: Lattice) -> Tensor | None:
    """[T or 1, 1, h or 1, w or 1]; None where nothing is told."""
    told, frames = request.extra.get(name), request.shape.frames
    if told is None:
        return None
    if not isinstance(told, Mapping):
        return _numbers(name, told, frames)
    made = _numbers(name, told.get(ELSEWHERE, 1.0), frames)
    for region, value in told.items():
        if region != ELSEWHERE:
            box = _box(name, region)
            mask = _mask(name, region, request, lattice) if box is None else _covered(box, *_grid(request, lattice))
            made = torch.lerp(made, _numbers(name, value, frames), mask)
    return made


def _grid(request: Request, lattice: Lattice) -> tuple[int, int]:
    shape = lattice.latent(request.shape)
    return shape.height, shape.width


def _covered(box: tuple[float, ...], rows: int, columns: int) -> Tensor:
    """How much of every cell lies in a box, [1, 1, h, w]."""
    left, top, right, bottom = box

    def along(size: int, start: float, end: float) -> Tensor:
        cell = torch.arange(size, dtype=torch.float32)
        return ((cell + 1).clamp_max(end * size) - cell.clamp_min(start * size)).clamp_min(0)

    return (along(rows, top, bottom)[:, None] * along(columns, left, right))[None, None]


def _mask(name: str, path: str, request: Request, lattice: Lattice) -> Tensor:
    """The light of a mask's file on the latent grid, [T or 1, 1, h, w] in [0, 1]; a short clip holds its last."""
    shape = request.shape
    if _picture(name, path):
        video, _ = read.fit(read.read_image(path), shape.height, shape.width, request.fit)
    else:
        size = (shape.height, shape.width, request.fit)
        video = read.read_video(path, frames=shape.frames, fps=request.fps, size=size).video
        video = torch.cat([video, video[:, :, -1:].expand(-1, -1, shape.frames - video.shape[2], -1, -1)], dim=2)
    light_T1HW = (video[0].mean(0)[:, None] + 1) / 2
    return F.interpolate(light_T1HW, size=_grid(request, lattice), mode="area")
