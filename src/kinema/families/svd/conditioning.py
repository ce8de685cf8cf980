"""The network's conditions: the image, as CLIP embedding and as latents, and a few scalars.

Letters: B clips, T frames, C channels, H W pixel rows and columns, h w latent ones, V scalars.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kinema import registry
from kinema.cancel import checkpoint
from kinema.canvas import Canvas
from kinema.diffusion.noise import Noise
from kinema.families.svd.config import Config
from kinema.families.svd.model import SVD
from kinema.schema import BadRequest, Request, plain_number
from kinema.vae.precision import upcast
from kinema.values import quoted

_NOISE_SEED = 0x5D1A6E
"""Decorrelates the image's noise from that of the latents, which uses the request's seeds."""
ELEVATION = 10.0
EDGE = 0.1
"""Fraction of the frames in each slope of a trapezoid."""

RANGES: dict[str, tuple[float, float]] = {
    "motion_bucket": (0, 255),
    "augmentation": (0, 10),
    "fps_id": (0, 240),
    "elevation": (-90, 90),
    "decode_chunk": (1, 4096),
    "decode_overlap": (0, 4095),
    "decode_tile": (8, 4096),
}
"""Numeric options in a request's ``extra``, with their minimum and maximum."""
SHAPE = "guidance_shape"
ANCHOR = "anchor"
"""Whether CLIP embeds the first frame of the whole clip in every block of a block-wise clip."""


@dataclass(frozen=True, eq=False)
class Condition:
    """One guidance branch; ``image_BCTHW`` and ``scalars_BTV`` have T = 1 where all frames share them."""

    context_B1C: Tensor
    image_BCTHW: Tensor
    scalars_BTV: Tensor

    def null(self) -> Condition:
        """Return the branch without the image: zero embedding and latents, the same scalars."""
        return Condition(torch.zeros_like(self.context_B1C), torch.zeros_like(self.image_BCTHW), self.scalars_BTV)

    def of(self, frames: Sequence[int] | None) -> Condition:
        """Select the condition of these frames."""
        if frames is None or self.scalars_BTV.shape[1] == 1:
            return self
        return Condition(self.context_B1C, self.image_BCTHW, self.scalars_BTV[:, list(frames)])


def encode(  # noqa: PLR0917 (one argument per condition)
    model: SVD,
    image_B3HW: Tensor,
    noise_B3HW: Tensor,
    scalars_BTV: Tensor,
    augmentation: Tensor,
    clip_image_B3HW: Tensor | None = None,
) -> Condition:
    """Encode the clean image with CLIP, and the image plus ``augmentation`` [B] times noise as unscaled latents (mode).

    Image and noise are float32: float16 cannot represent little noise on an image. ``clip_image`` replaces the image
    for CLIP: the look that the clip should keep, rather than its first frame.
    """
    noisy = image_B3HW + augmentation.to(image_B3HW)[:, None, None, None] * noise_B3HW.to(image_B3HW)
    latents = upcast(model.vae, model.vae.encode, noisy)[:, :, None]
    clip_image = image_B3HW if clip_image_B3HW is None else clip_image_B3HW
    checkpoint()
    return Condition(model.image_encoder.embed(clip_image)[:, None], latents, scalars_BTV)


def image_noise(request: Request, height: int, width: int) -> Tensor:
    """Standard normal noise B×3×H×W; clip i has the same noise as a single run with seed + i."""
    if request.seed is None:
        raise RuntimeError("the request has no seed yet")
    return Noise([(request.seed + i) ^ _NOISE_SEED for i in range(request.clips)]).normal((3, height, width))


def image_of(canvas: Canvas) -> Tensor | None:
    """Return the conditioning image of a canvas, B×3×H×W; None for an empty canvas.

    It is the first whole frame, an edit's first frame, or the given pixels of frame 0 on grey.
    """
    if canvas.first is not None:
        return canvas.first
    if canvas.held:
        return canvas.held[0].video[:, :, 0]
    if canvas.empty:
        return None
    return canvas.video[:, :, 0] * canvas.mask[:, :, 0]


# -------------------------------------------------------------------------------------- scalars


def scalars(config: Config, request: Request) -> Tensor:
    """Values of `Config.scalars` for a request, [B, T, V]; T is 1 unless they vary over the frames."""
    frames, extra = request.shape.frames, request.extra
    azimuth = torch.arange(frames) * (2 * math.pi / frames)
    polar = math.radians(90 - extra.get("elevation", ELEVATION))
    fps_id = extra.get("fps_id", max((request.fps or config.fps) - 1, 0))
    values: dict[str, Tensor] = {
        "fps": torch.tensor([float(fps_id)]),
        "motion_bucket": torch.tensor([float(extra.get("motion_bucket", config.motion_bucket))]),
        "augmentation": torch.tensor([augmentation(config, request)]),
        "polar": torch.full((frames,), polar),
        "azimuth": azimuth,
    }
    scalars = torch.broadcast_tensors(*(values[name] for name, _ in config.scalars))
    return torch.stack(scalars, dim=-1).expand(request.clips, -1, -1)


def augmentation(config: Config, request: Request) -> float:
    return float(request.extra.get("augmentation", config.augmentation))


def options_of(config: Config) -> list[str]:
    """Return the names of this model's options."""
    names = {name for name, _ in config.scalars}
    needs = {"motion_bucket": "motion_bucket", "fps_id": "fps", "elevation": "polar"}
    return [name for name in RANGES if needs.get(name) is None or needs[name] in names] + [SHAPE, ANCHOR]


def extra_help(config: Config) -> dict[str, str]:
    """Return one line of help for each option."""
    about = {
        "motion_bucket": f"how much moves; default {plain_number(config.motion_bucket)}; same as --motion",
        "augmentation": f"noise added to the image; default {plain_number(config.augmentation)}",
        "fps_id": "frame rate that the network is given; default the clip's minus one",
        "elevation": f"elevation of the camera in degrees; default {plain_number(ELEVATION)}",
        "decode_chunk": "frames decoded at a time; default all, fewer if memory is short",
        "decode_overlap": "frames shared by neighbouring chunks, which fade; default 0",
        "decode_tile": "side of the squares decoded at a time, in latent cells; default the whole frame",
    }
    shapes = ", ".join(SHAPES)
    bounds = {name: " to ".join(map(plain_number, RANGES[name])) for name in about}
    ranged = {name: f"{text} ({bounds[name]})" for name, text in about.items()}
    every = {
        **ranged,
        SHAPE: f"how guidance changes over the frames: {shapes}; default {config.guidance_shape}",
        ANCHOR: "CLIP embeds the first frame of the whole clip in every block; default true",
    }
    return {name: every[name] for name in options_of(config)}


def check_extra(config: Config, extra: Mapping[str, Any]) -> None:
    """Raise BadRequest for options that this model does not have and for values out of range."""
    options = options_of(config)
    for name, value in extra.items():
        if name not in options:
            raise BadRequest(registry.unknown_name("option of this svd model", name, options))
        if name == SHAPE:
            if not isinstance(value, str):  # a list or a mapping cannot be looked up
                raise BadRequest(f"{SHAPE} is {value!r}; expected one of {', '.join(SHAPES)}")
            if value not in SHAPES:
                raise BadRequest(registry.unknown_name("guidance shape", value, SHAPES))
            continue
        if name == ANCHOR:
            if not isinstance(value, bool):
                raise BadRequest(f"anchor is {quoted(value)}; expected true or false")
            continue
        least, most = RANGES[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise BadRequest(f"{name} is {quoted(value)}; expected a number from {least:g} to {most:g}")
        if name.startswith("decode_") and not isinstance(value, int):
            raise BadRequest(f"{name} is {quoted(value)}; expected a whole number")
    chunk, overlap = extra.get("decode_chunk", config.decode_chunk), extra.get("decode_overlap", 0)
    if overlap and overlap >= (chunk or 0):
        limit = f"{chunk:g}" if chunk else "not set"
        raise BadRequest(f"decode_overlap is {overlap:g} frames; expected fewer than decode_chunk, which is {limit}")


# ------------------------------------------------------------------------------------- guidance


def _linear(frames: int) -> Tensor:
    return torch.linspace(0, 1, frames)


def _triangle(frames: int) -> Tensor:
    return 1 - (2 * torch.linspace(0, 1, frames) - 1).abs() if frames > 1 else torch.zeros(1)


def _trapezoid(frames: int) -> Tensor:
    rise = torch.linspace(0, 1, int(frames * EDGE))
    return torch.cat([rise, torch.ones(frames - 2 * len(rise)), rise.flip(0)])


SHAPES: dict[str, Callable[[int], Tensor]] = {
    "linear": _linear,
    "triangle": _triangle,
    "trapezoid": _trapezoid,
    "trapezoid-sgm": _trapezoid,
}
"""Position of each frame between the start scale (0) and the peak scale (1), [T]."""


def frame_scales(shape: str, start: float, peak: float, frames: int) -> Tensor:
    """Guidance scale of each frame, [T], between ``start`` and ``peak`` by the shape; start may exceed peak.

    ``trapezoid-sgm`` reproduces sgm's trapezoid, whose plateau is 1, so that only its slopes reach the peak.
    """
    share = SHAPES[shape](frames)
    scales = start + (peak - start) * share
    if shape == "trapezoid-sgm":
        edge = int(frames * EDGE)
        scales[edge : frames - edge] = 1
    return scales


def guidance(config: Config, request: Request) -> Tensor:
    """Guidance scale of each frame of a request, [T], in clip order."""
    start = float(request.guidance if request.guidance is not None else config.guidance[0])
    peak = start if request.guidance_end is None else float(request.guidance_end)
    scales = frame_scales(request.extra.get(SHAPE, config.guidance_shape), start, peak, request.shape.frames)
    return scales.roll(1) if config.orbit else scales
