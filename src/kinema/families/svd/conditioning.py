"""What the network is told: the picture twice, by CLIP and by its latents, and a few numbers.

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
from kinema.schema import BadRequest, Request
from kinema.vae.precision import upcast
from kinema.values import quoted

_NOISE_SEED = 0x5D1A6E
"""Keeps the picture's noise apart from that of the latents, which has the request's seeds."""
ELEVATION = 10.0
EDGE = 0.1
"""Share of the frames in each slope of a trapezoid."""

RANGES: dict[str, tuple[float, float]] = {
    "motion_bucket": (0, 255),
    "augmentation": (0, 10),
    "fps_id": (0, 240),
    "elevation": (-90, 90),
    "decode_chunk": (1, 4096),
    "decode_overlap": (0, 4095),
    "decode_tile": (8, 4096),
}
"""Numbers a request's ``extra`` may hold, with the least and the most."""
SHAPE = "guidance_shape"
ANCHOR = "anchor"
"""Whether CLIP sees the first frame of the whole in every block of a clip longer than the model."""


@dataclass(frozen=True, eq=False)
class Condition:
    """One branch of guidance; ``picture_BCTHW`` and ``scalars_BTV`` have T 1 where all frames share them."""

    context_B1C: Tensor
    picture_BCTHW: Tensor
    scalars_BTV: Tensor

    def null(self) -> Condition:
        """The branch without the picture: embedding and latents zero, the numbers kept."""
        return Condition(torch.zeros_like(self.context_B1C), torch.zeros_like(self.picture_BCTHW), self.scalars_BTV)

    def of(self, frames: Sequence[int] | None) -> Condition:
        """The part of it that belongs to these frames."""
        if frames is None or self.scalars_BTV.shape[1] == 1:
            return self
        return Condition(self.context_B1C, self.picture_BCTHW, self.scalars_BTV[:, list(frames)])


def encode(  # noqa: PLR0917 (what the network is told, one by one)
    model: SVD,
    picture_B3HW: Tensor,
    noise_B3HW: Tensor,
    scalars_BTV: Tensor,
    augmentation: Tensor,
    seen_B3HW: Tensor | None = None,
) -> Condition:
    """The clean picture to CLIP; the picture plus ``augmentation`` [B] times noise to the codec's mode, not scaled.

    Both come in float32, and are noised in it: a half has no room for little noise on a picture. CLIP may see another
    picture, ``seen``: what the clip should stay like, rather than where it begins.
    """
    noisy = picture_B3HW + augmentation.to(picture_B3HW)[:, None, None, None] * noise_B3HW.to(picture_B3HW)
    latents = upcast(model.vae, model.vae.encode, noisy)[:, :, None]
    seen = picture_B3HW if seen_B3HW is None else seen_B3HW
    checkpoint()
    return Condition(model.image_encoder.embed(seen)[:, None], latents, scalars_BTV)


def picture_noise(request: Request, height: int, width: int) -> Tensor:
    """Standard normal B×3×H×W of a request's clips, the same for clip i as for a single run with seed + i."""
    if request.seed is None:
        raise RuntimeError("this request has no seed yet")
    return Noise([(request.seed + i) ^ _NOISE_SEED for i in range(request.clips)]).normal((3, height, width))


def picture_of(canvas: Canvas) -> Tensor | None:
    """The picture a canvas starts from, B×3×H×W: its first whole frame, an edit's first frame, or what is
    given of frame 0 on grey. None when there is nothing."""
    if canvas.first is not None:
        return canvas.first
    if canvas.held:
        return canvas.held[0].video[:, :, 0]
    if canvas.empty:
        return None
    return canvas.video[:, :, 0] * canvas.mask[:, :, 0]


# -------------------------------------------------------------------------------------- numbers


def scalars(config: Config, request: Request) -> Tensor:
    """The numbers of `Config.scalars` for a request, [B, T, V]; T is 1 unless they change over the frames."""
    frames, extra = request.shape.frames, request.extra
    turn = torch.arange(frames) * (2 * math.pi / frames)
    polar = math.radians(90 - extra.get("elevation", ELEVATION))
    fps_id = extra.get("fps_id", max((request.fps or config.fps) - 1, 0))
    values: dict[str, Tensor] = {
        "fps": torch.tensor([float(fps_id)]),
        "motion_bucket": torch.tensor([float(extra.get("motion_bucket", config.motion_bucket))]),
        "augmentation": torch.tensor([augmentation(config, request)]),
        "polar": torch.full((frames,), polar),
        "azimuth": turn,
    }
    told = torch.broadcast_tensors(*(values[name] for name, _ in config.scalars))
    return torch.stack(told, dim=-1).expand(request.clips, -1, -1)


def augmentation(config: Config, request: Request) -> float:
    return float(request.extra.get("augmentation", config.augmentation))


def check_extra(config: Config, extra: Mapping[str, Any]) -> None:
    """Refuse, by name, options that this model has not and values out of range."""
    names = {name for name, _ in config.scalars}
    needs = {"motion_bucket": "motion_bucket", "fps_id": "fps", "elevation": "polar"}
    own = [name for name in RANGES if needs.get(name) is None or needs[name] in names] + [SHAPE, ANCHOR]
    for name, value in extra.items():
        if name not in own:
            raise BadRequest(registry.unknown("option of this svd model", name, own))
        if name == SHAPE:
            if value not in SHAPES:
                raise BadRequest(registry.unknown("guidance shape", str(value), SHAPES))
            continue
        if name == ANCHOR:
            if not isinstance(value, bool):
                raise BadRequest(f"anchor is {quoted(value)}; expected true or false")
            continue
        least, most = RANGES[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise BadRequest(f"{name} is {quoted(value)}; expected a number from {least:g} to {most:g}")
        if name.startswith("decode_") and not isinstance(value, int):
            raise BadRequest(f"{name} is {quoted(value)}; expected a whole number of frames or cells")
    chunk, overlap = extra.get("decode_chunk", config.decode_chunk), extra.get("decode_overlap", 0)
    if overlap and overlap >= (chunk or 0):
        told = f"{chunk:g}" if chunk else "not given"
        raise BadRequest(f"decode_overlap is {overlap:g} frames; expected fewer than decode_chunk, which is {told}")


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
"""How far each frame is from the first scale to the second, [T] in 0..1."""


def frame_scales(shape: str, start: float, peak: float, frames: int) -> Tensor:
    """Guidance scale of each frame, [T]: from ``start`` to ``peak`` as the shape goes; start may exceed peak.

    sgm's trapezoid has 1 on its plateau, where only its slopes reach the peak: that is ``trapezoid-sgm``.
    """
    share = SHAPES[shape](frames)
    scales = start + (peak - start) * share
    if shape == "trapezoid-sgm":
        edge = int(frames * EDGE)
        scales[edge : frames - edge] = 1
    return scales


def guidance(config: Config, request: Request) -> Tensor:
    """The request's guidance scale of each frame, [T], in the clip's order."""
    start = float(request.guidance if request.guidance is not None else config.guidance[0])
    peak = start if request.guidance_end is None else float(request.guidance_end)
    scales = frame_scales(request.extra.get(SHAPE, config.guidance_shape), start, peak, request.shape.frames)
    return scales.roll(1) if config.orbit else scales
