"""What IP-Adapters of a request are shown: pictures through CLIP's image encoder, one set for all frames or travelling.

Letters: K pictures, T frames, L tokens, C width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.cancel import checkpoint
from kinema.conditioning.clip_vision import MEAN, STD, ClipVision
from kinema.events import Note, OnEvent
from kinema.families.animatediff.config import AdapterSize, Config
from kinema.families.animatediff.control.ip_adapter import Picture, Projections
from kinema.families.animatediff.control.steering import check_frames, check_names, of_name, scale_of
from kinema.families.animatediff.model import AnimateDiff
from kinema.media import read
from kinema.schema import BadRequest, Request
from kinema.values import quoted

MOST = 16
"""Pictures shown to one adapter at once."""


@dataclass(frozen=True)
class Look:
    """Frame to the pictures that are looked at there; all of a clip has frame 0 alone."""

    stops: Mapping[int, tuple[str, ...]]


def check(config: Config, request: Request) -> None:
    """Refuse, by name, options of IP-Adapter that nothing takes, and pictures that are not there."""
    names, extra, frames = [adapter.name for adapter in config.adapters], request.extra, request.frames or 1
    check_names(extra, "ip_image", names, "IP-Adapter", "ip-adapter=FILE")
    check_names(extra, "ip_scale", names, "IP-Adapter", "ip-adapter=FILE", for_all=True)
    for key in [key for key in extra if key.partition(".")[0] == "ip_scale"]:
        scale_of(extra[key], frames, key)
    looks = [look_of(request, name, only=len(names) == 1) for name in names]
    if any(looks) and config.vision is None:
        raise BadRequest("an IP-Adapter looks at pictures through CLIP's image encoder: add image-encoder=FOLDER")
    for file in [file for look in looks if look for files in look.stops.values() for file in files]:
        if not Path(file).is_file():
            raise BadRequest(f"there is no picture {file} for the IP-Adapter")


def look_of(request: Request, name: str, *, only: bool) -> Look | None:
    """What a request shows one adapter: a picture, several at once, or frames to either."""
    told = of_name(request.extra, "ip_image", name, only=only)
    if told is None:
        return None
    stops = _stops(told)
    check_frames("ip_image", stops, request)
    if len({len(files) for files in stops.values()}) != 1:
        raise BadRequest("ip_image has more pictures at one frame than at another; expected equally many")
    return Look(stops)


def files_of(extra: Mapping[str, Any]) -> list[str]:
    """The pictures that all adapters are shown."""
    shown = [_stops(told) for key, told in extra.items() if key.partition(".")[0] == "ip_image"]
    return [file for stops in shown for files in stops.values() for file in files]


def _stops(told: Any) -> dict[int, tuple[str, ...]]:
    of_frames = told if isinstance(told, Mapping) else {0: told}
    try:
        return {int(frame): _files(files) for frame, files in of_frames.items()}
    except ValueError as error:
        if isinstance(error, BadRequest):
            raise
        raise BadRequest(f"ip_image is {quoted(told)}; expected whole frame numbers to pictures") from None


def _files(told: Any) -> tuple[str, ...]:
    files = list(told) if isinstance(told, list | tuple) else [told]
    if not files or len(files) > MOST or not all(isinstance(file, str | Path) for file in files):
        raise BadRequest(f"ip_image is {quoted(told)}; expected a picture, or up to {MOST} of them")
    return tuple(str(file) for file in files)


# ------------------------------------------------------------------------------------- conditioning


def pictures(
    model: AnimateDiff, config: Config, request: Request, on_event: OnEvent
) -> tuple[tuple[Picture, ...], tuple[Picture, ...]]:
    """Of every adapter that is shown something, its tokens for the wanted and for the unwanted branch."""
    wanted, unwanted = [], []
    for index, size in enumerate(config.adapters):
        look = look_of(request, size.name, only=len(config.adapters) == 1)
        if look is None:
            on_event(
                Note(f"IP-Adapter {size.name} is shown nothing and adds nothing: give ip_image.{size.name}=PICTURE")
            )
            continue
        told = of_name(request.extra, "ip_scale", size.name, only=True)
        scale_T = scale_of(1.0 if told is None else told, request.shape.frames, "ip_scale")
        at = {frame: _tokens(model, size, index, files) for frame, files in look.stops.items()}
        seen, nothing = {f: yes for f, (yes, _) in at.items()}, next(iter(at.values()))[1]
        scale_T = scale_T.to(nothing.device)
        wanted.append(Picture(index, _travelled(seen, request.shape.frames), scale_T))
        unwanted.append(Picture(index, nothing, scale_T))
    return tuple(wanted), tuple(unwanted)


def _tokens(model: AnimateDiff, size: AdapterSize, index: int, files: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Tokens 1×(K·L)×C of these pictures, and of as many times nothing: guidance leads away from that."""
    checkpoint()
    encoder, project = cast(ClipVision, model.image_encoder), cast(Projections, model.unet.encoder_hid_proj)
    weight = encoder.visual_projection.weight
    pixels = torch.cat([prepared(read.read_image(file)[:, :, 0], encoder.side) for file in files])
    pixels = pixels.to(weight.device, weight.dtype)
    if size.kind == "plain":
        seen = encoder(pixels)
        nothing = torch.zeros_like(seen)
    else:
        seen, nothing = encoder.patches(pixels), encoder.patches(torch.zeros_like(pixels))
    return project(index, seen).flatten(0, 1)[None], project(index, nothing).flatten(0, 1)[None]


def _travelled(stops: Mapping[int, Tensor], frames: int) -> Tensor:
    """Tokens at some frames to one row a frame: straight lines between, held before the first and after the last."""
    if len(stops) == 1:
        return next(iter(stops.values()))
    keys = sorted(stops)
    rows = []
    for frame in range(frames):
        before = max((key for key in keys if key <= frame), default=keys[0])
        after = min((key for key in keys if key >= frame), default=keys[-1])
        share = (frame - before) / (after - before) if after > before else 0.0
        rows.append(torch.lerp(stops[before], stops[after], share))
    return torch.cat(rows)


def prepared(picture_13HW: Tensor, side: int) -> Tensor:
    """A picture in [-1, 1] as CLIP was trained on it: its shorter side resized (bicubic), the middle, normalised.

    As transformers' ``CLIPImageProcessor``: along one axis and then the other in whole levels, then cut.
    """
    height, width = picture_13HW.shape[-2:]
    short = min(height, width)
    size = (int(side * height / short), int(side * width / short))
    levels = (picture_13HW + 1) * 127.5
    for each in ((height, size[1]), size):
        if tuple(levels.shape[-2:]) != each:
            levels = F.interpolate(levels, size=each, mode="bicubic", antialias=True).round().clamp(0, 255)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    middle = levels[..., top : top + side, left : left + side] / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (middle - mean) / std
