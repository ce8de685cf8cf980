"""Image prompts of a request for IP-Adapters, encoded by CLIP and constant or interpolated over the frames.

Letters: K images, T frames, L tokens, C width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.cancel import checkpoint
from kinema.conditioning.clip_vision import MEAN, STD, ClipVision
from kinema.events import Note, OnEvent
from kinema.families.animatediff.config import AdapterSize, Config
from kinema.families.animatediff.control.ip_adapter import ImagePrompt, Projections
from kinema.families.animatediff.control.steering import check_frames, check_names, named_option, scale_of
from kinema.families.animatediff.model import AnimateDiff
from kinema.media import read
from kinema.schema import BadRequest, Request
from kinema.values import quoted

MAX_IMAGES = 16
"""Maximum number of images per adapter and frame."""


def check(config: Config, request: Request) -> None:
    """Raise `BadRequest` for options without an IP-Adapter, values out of range and missing images."""
    names, extra, frames = [adapter.name for adapter in config.adapters], request.extra, request.frames or 1
    check_names(extra, "ip_image", names, "IP-Adapter", "ip-adapter=FILE")
    check_names(extra, "ip_scale", names, "IP-Adapter", "ip-adapter=FILE", for_all=True)
    for key in [key for key in extra if key.partition(".")[0] == "ip_scale"]:
        scale_of(extra[key], frames, key)
    by_name = [images_of(request, name, only=len(names) == 1) for name in names]
    if any(by_name) and config.vision is None:
        raise BadRequest("ip_image needs CLIP's image encoder; give --add image-encoder=FOLDER")
    for file in [file for by_frame in by_name if by_frame for files in by_frame.values() for file in files]:
        if not Path(file).is_file():
            raise BadRequest(f"ip_image {file} does not exist")


def images_of(request: Request, name: str, *, only: bool) -> dict[int, tuple[str, ...]] | None:
    """One adapter's image files by frame; a constant prompt has frame 0 alone."""
    setting = named_option(request.extra, "ip_image", name, only=only)
    if setting is None:
        return None
    by_frame = _by_frame(setting)
    check_frames("ip_image", by_frame, request)
    if len({len(files) for files in by_frame.values()}) != 1:
        raise BadRequest("ip_image has different numbers of images per frame; expected the same number")
    return by_frame


def files_of(extra: Mapping[str, Any]) -> list[str]:
    """Image files of all adapters."""
    settings = [_by_frame(setting) for key, setting in extra.items() if key.partition(".")[0] == "ip_image"]
    return [file for by_frame in settings for files in by_frame.values() for file in files]


def _by_frame(setting: Any) -> dict[int, tuple[str, ...]]:
    by_frame = setting if isinstance(setting, Mapping) else {0: setting}
    try:
        return {int(frame): _files(files) for frame, files in by_frame.items()}
    except ValueError as error:
        if isinstance(error, BadRequest):
            raise
        raise BadRequest(f"ip_image is {quoted(setting)}; expected a mapping of frame numbers to images") from None


def _files(setting: Any) -> tuple[str, ...]:
    files = list(setting) if isinstance(setting, list | tuple) else [setting]
    if not files or len(files) > MAX_IMAGES or not all(isinstance(file, str | Path) for file in files):
        raise BadRequest(f"ip_image is {quoted(setting)}; expected an image, or up to {MAX_IMAGES} of them")
    return tuple(str(file) for file in files)


# ------------------------------------------------------------------------------------- conditioning


def encode(
    model: AnimateDiff, config: Config, request: Request, on_event: OnEvent
) -> tuple[tuple[ImagePrompt, ...], tuple[ImagePrompt, ...]]:
    """Image prompts of the positive and the negative branch, for every adapter that has images."""
    positive, negative = [], []
    for index, size in enumerate(config.adapters):
        by_frame = images_of(request, size.name, only=len(config.adapters) == 1)
        if by_frame is None:
            on_event(Note(f"IP-Adapter {size.name} has no image and adds nothing; set ip_image.{size.name}=IMAGE"))
            continue
        scale = named_option(request.extra, "ip_scale", size.name, only=True)
        scale_T = scale_of(1.0 if scale is None else scale, request.shape.frames, "ip_scale")
        at = {frame: _tokens(model, size, index, files) for frame, files in by_frame.items()}
        tokens, blank = {frame: image for frame, (image, _) in at.items()}, next(iter(at.values()))[1]
        scale_T = scale_T.to(blank.device)
        positive.append(ImagePrompt(index, _interpolated(tokens, request.shape.frames), scale_T))
        negative.append(ImagePrompt(index, blank, scale_T))
    return tuple(positive), tuple(negative)


def _tokens(model: AnimateDiff, size: AdapterSize, index: int, files: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Tokens 1×(K·L)×C of these images and of the same number of blank ones, for the negative branch."""
    checkpoint()
    encoder, project = cast(ClipVision, model.image_encoder), cast(Projections, model.unet.encoder_hid_proj)
    weight = encoder.visual_projection.weight
    pixels = torch.cat([preprocess(read.read_image(file)[:, :, 0], encoder.side) for file in files])
    pixels = pixels.to(weight.device, weight.dtype)
    if size.kind == "plain":
        embeddings = encoder(pixels)
        blank = torch.zeros_like(embeddings)
    else:
        embeddings, blank = encoder.patches(pixels), encoder.patches(torch.zeros_like(pixels))
    return project(index, embeddings).flatten(0, 1)[None], project(index, blank).flatten(0, 1)[None]


def _interpolated(by_frame: Mapping[int, Tensor], frames: int) -> Tensor:
    """Interpolate tokens linearly to one row per frame, constant before the first and after the last."""
    if len(by_frame) == 1:
        return next(iter(by_frame.values()))
    keys = sorted(by_frame)
    rows = []
    for frame in range(frames):
        before = max((key for key in keys if key <= frame), default=keys[0])
        after = min((key for key in keys if key >= frame), default=keys[-1])
        share = (frame - before) / (after - before) if after > before else 0.0
        rows.append(torch.lerp(by_frame[before], by_frame[after], share))
    return torch.cat(rows)


def preprocess(image_13HW: Tensor, side: int) -> Tensor:
    """Preprocess an image in [-1, 1] for CLIP: bicubic resize of the shorter side, centre crop, normalisation.

    Like transformers' ``CLIPImageProcessor``, resizes one axis after the other, rounding to 8-bit values.
    """
    height, width = image_13HW.shape[-2:]
    short = min(height, width)
    size = (int(side * height / short), int(side * width / short))
    levels = (image_13HW + 1) * 127.5
    for each in ((height, size[1]), size):
        if tuple(levels.shape[-2:]) != each:
            levels = F.interpolate(levels, size=each, mode="bicubic", antialias=True).round().clamp(0, 255)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    crop = levels[..., top : top + side, left : left + side] / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (crop - mean) / std
