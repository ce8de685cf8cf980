"""Request options for motion modules: ``effect`` and ``motion_scale`` per frame and region, and attention windows.

An option is a number, a list with one number per frame, or a mapping of regions to either. A region is a mask file
(white where the number applies, grey in between; a clip has one mask per frame) or a box "left,top,right,bottom" in
fractions of the frame; "elsewhere" (default 1) is the rest of the frame. Later regions cover earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.diffusion.windows import AttentionWindow, attention_windows, window_sizes
from kinema.families.animatediff.motion.module import MotionControl
from kinema.grid import Lattice
from kinema.media import read
from kinema.media.images import is_image
from kinema.schema import BadRequest, Request
from kinema.values import quoted

OPTIONS = ("effect", "motion_scale")
ELSEWHERE = "elsewhere"
MAX_VALUE = 10.0


def motion_control_of(request: Request, lattice: Lattice) -> MotionControl:
    """The request's control of the motion modules, with maps on the latent grid."""
    effect, scale = (_option_map(name, request, lattice) for name in OPTIONS)
    return MotionControl(effect, scale, _attention_windows(request, lattice))


def _attention_windows(request: Request, lattice: Lattice) -> tuple[AttentionWindow, ...]:
    if request.window is None or request.window_in != "attention":
        return ()
    total = lattice.grid.time.latent(request.shape.frames)
    return attention_windows(total, *window_sizes(request, lattice), request.window_weights, request.loop)


def check(request: Request, longest: int) -> None:
    """Check ranges and regions before any file is read.

    ``longest`` is the number of frames generated at a time; block-wise clips cannot have per-frame values.
    """
    frames = request.frames or 1
    for name in OPTIONS:
        setting = request.extra.get(name)
        if setting is not None and frames == 1:
            raise BadRequest(f"{name} controls motion modules and a single frame uses none; leave it out")
        for region, value in _regions(setting).items():
            per_frame = isinstance(value, list | tuple)
            if setting is not None:
                _values(name, value, frames)
            if region != ELSEWHERE and _box(name, region) is None:
                per_frame |= not _is_image_mask(name, region)
            if per_frame and is_block_wise(request, longest):
                raise BadRequest(no_per_frame(name, longest))


def masks_of(extra: Mapping[str, Any]) -> list[str]:
    """Mask files named as regions."""
    regions = [(name, region) for name in OPTIONS for region in _regions(extra.get(name))]
    return [str(region) for name, region in regions if region != ELSEWHERE and _box(name, region) is None]


def _regions(setting: Any) -> Mapping[Any, Any]:
    return setting if isinstance(setting, Mapping) else {ELSEWHERE: setting}


def is_block_wise(request: Request, longest: int) -> bool:
    """Whether the clip is generated block-wise."""
    return (request.frames or 1) > longest and request.window is None


def no_per_frame(name: str, longest: int) -> str:
    """Message for per-frame values in a block-wise clip."""
    return f"per-frame {name} does not work block by block; give a --window of up to {longest} frames"


def _values(name: str, setting: Any, frames: int) -> Tensor:
    """Parse one number or one per frame, [T or 1, 1, 1, 1]."""
    values = list(setting) if isinstance(setting, list | tuple) else [setting]
    valid = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= MAX_VALUE for v in values)
    if not valid or len(values) not in (1, frames):
        expected = f"a number from 0 to {MAX_VALUE:g}, or one per frame ({frames})"
        raise BadRequest(f"{name} is {quoted(setting)}; expected {expected}")
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None]


def _box(name: str, region: Any) -> tuple[float, ...] | None:
    """Parse a region as a box; None if it is not one."""
    try:
        left, top, right, bottom = (float(side) for side in str(region).split(","))
    except ValueError:
        return None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise BadRequest(f"{name} has the box {region}; expected 0 <= left < right <= 1 and 0 <= top < bottom <= 1")
    return left, top, right, bottom


def _is_image_mask(name: str, region: Any) -> bool:
    """Whether a mask file is an image rather than a clip."""
    if not Path(str(region)).exists():
        raise BadRequest(
            f"{name} has the region {quoted(region)}; expected a mask file, a box left,top,right,bottom in fractions "
            f"of the frame, or {ELSEWHERE}"
        )
    return Path(region).is_file() and is_image(Path(region))


def _option_map(name: str, request: Request, lattice: Lattice) -> Tensor | None:
    """An option's map, [T or 1, 1, h or 1, w or 1]; None if it is not set."""
    setting, frames = request.extra.get(name), request.shape.frames
    if setting is None:
        return None
    if not isinstance(setting, Mapping):
        return _values(name, setting, frames)
    option_map = _values(name, setting.get(ELSEWHERE, 1.0), frames)
    for region, value in setting.items():
        if region != ELSEWHERE:
            box = _box(name, region)
            mask = (
                _mask(name, region, request, lattice) if box is None else _box_coverage(box, *_grid(request, lattice))
            )
            option_map = torch.lerp(option_map, _values(name, value, frames), mask)
    return option_map


def _grid(request: Request, lattice: Lattice) -> tuple[int, int]:
    shape = lattice.latent(request.shape)
    return shape.height, shape.width


def _box_coverage(box: tuple[float, ...], rows: int, columns: int) -> Tensor:
    """Share of each latent cell inside a box, [1, 1, h, w]."""
    left, top, right, bottom = box

    def along(size: int, start: float, end: float) -> Tensor:
        cell = torch.arange(size, dtype=torch.float32)
        return ((cell + 1).clamp_max(end * size) - cell.clamp_min(start * size)).clamp_min(0)

    return (along(rows, top, bottom)[:, None] * along(columns, left, right))[None, None]


def _mask(name: str, path: str, request: Request, lattice: Lattice) -> Tensor:
    """Load a mask on the latent grid, [T or 1, 1, h, w] in [0, 1]; a short clip repeats its last frame."""
    shape = request.shape
    if _is_image_mask(name, path):
        video, _ = read.fit(read.read_image(path), shape.height, shape.width, request.fit)
    else:
        size = (shape.height, shape.width, request.fit)
        video = read.read_video(path, frames=shape.frames, fps=request.fps, size=size).video
        video = torch.cat([video, video[:, :, -1:].expand(-1, -1, shape.frames - video.shape[2], -1, -1)], dim=2)
    mask_T1HW = (video[0].mean(0)[:, None] + 1) / 2
    return F.interpolate(mask_T1HW, size=_grid(request, lattice), mode="area")
