"""PIA (Zhang et al. 2023, arXiv 2312.13964): a motion module conditioned on the first frame.

In every frame, the first convolution also reads the first frame's latents and a mask: the frame's affinity to the first
one, which controls the amount of motion.

Letters: B clips, T frames, C channels, h w rows and columns of latents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kinema import registry
from kinema.families.animatediff.config import Config
from kinema.schema import BadRequest, Request
from kinema.values import quoted

AFFINITIES: dict[str, tuple[float, ...]] = {
    "small": (1.0, 0.9, 0.85, 0.85, 0.85, 0.8),
    "moderate": (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75),
    "large": (1.0, 0.8, *[0.7] * 8, 0.6, 0.5, 0.5),
    "loop-small": (1.0, 0.9, *[0.85] * 3, *[0.8] * 7, 0.85, 0.85, 0.9, 1.0),
    "loop-moderate": (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, *[0.75] * 5, 0.78, 0.79, 0.8, 0.8, 1.0),
    "loop-large": (1.0, 0.8, *[0.7] * 4, 0.6, 0.5, 0.5, 0.6, *[0.7] * 4, 0.8, 1.0),
    "style-small": (0.5, 0.4, 0.4, 0.4, 0.35, 0.3),
    "style-moderate": (0.5, 0.4, 0.4, 0.4, 0.35, 0.35, 0.3, 0.25, 0.2),
    "style-large": (0.5, 0.2),
}
"""The authors' presets; later frames repeat the last value. diffusers has other values for the styles."""


def affinity_of(config: Config, request: Request) -> Tensor:
    """Affinity of every frame to the first, [T]: one of `AFFINITIES`, or a number from 0 to 1 per frame."""
    setting: Any = request.extra.get("affinity", "small")
    if "affinity" in request.extra and config.motion != "pia":
        raise BadRequest("affinity needs PIA and this model has another motion module; give --add motion=pia.ckpt")
    frames = request.frames or 1
    if isinstance(setting, str):
        if setting not in AFFINITIES:
            raise BadRequest(registry.unknown_name("affinity", setting, AFFINITIES))
        values = AFFINITIES[setting]
        return torch.tensor([values[min(frame, len(values) - 1)] for frame in range(frames)])
    values = tuple(setting) if isinstance(setting, list | tuple) else ()
    valid = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1 for v in values)
    if len(values) != frames or not valid:
        raise BadRequest(
            f"affinity is {quoted(setting)}; expected {frames} numbers from 0 to 1, or {', '.join(AFFINITIES)}"
        )
    return torch.tensor(values, dtype=torch.float32)


def first_frame_input(first_BChw: Tensor, affinity_T: Tensor) -> Tensor:
    """Concatenate affinity and first-frame latents for every frame, B×(1 + C)×T×h×w."""
    frames = len(affinity_T)
    first = first_BChw[:, :, None].expand(-1, -1, frames, -1, -1)
    mask = affinity_T.to(first)[None, None, :, None, None].expand(len(first), 1, -1, *first.shape[-2:])
    return torch.cat([mask, first], dim=1)
