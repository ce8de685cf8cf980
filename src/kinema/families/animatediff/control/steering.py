"""ControlNets of a request: control images, scales, and the span of steps in which each acts.

Letters: B clips, T frames, N = B·T images, C channels, h w rows and columns of latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from kinema import registry
from kinema.cancel import checkpoint
from kinema.diffusion.schedules import NoiseLevel
from kinema.events import Note, OnEvent
from kinema.families.animatediff.config import Config
from kinema.families.animatediff.control.controlnet import ControlNet
from kinema.families.animatediff.model import AnimateDiff
from kinema.media import read
from kinema.media.images import is_image
from kinema.nn.ldm_unet import channels_last
from kinema.nn.sd_unet import Residuals
from kinema.schema import BadRequest, Request
from kinema.values import quoted

MAX_SCALE = 10.0
SPARSE = "sparsectrl"
"""SparseCtrl's name in ``control_scale.NAME``."""


@dataclass(frozen=True, eq=False)
class Steering:
    """One ControlNet of a request: embedded control images (T, or one for all frames), scale, and span of steps.

    It acts at a log-SNR from ``first_log_snr`` up to, but not including, ``end_log_snr``.
    """

    index: int
    hint_TChw: Tensor
    scale_T: Tensor
    first_log_snr: float
    end_log_snr: float

    def of(self, frames: Sequence[int]) -> Steering:
        """Select these frames."""
        hint, scale = (x[list(frames)] if len(x) > 1 else x for x in (self.hint_TChw, self.scale_T))
        return replace(self, hint_TChw=hint, scale_T=scale)

    def acts(self, level: NoiseLevel) -> bool:
        """Whether the ControlNet acts at this noise level."""
        return self.first_log_snr <= float(level.log_snr[0]) < self.end_log_snr


def steer(
    model: AnimateDiff,
    steerings: Sequence[Steering],
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
    level: NoiseLevel,
) -> Residuals | None:
    """Sum of the active ControlNets' residuals; ``inputs`` are the U-Net's z, step, context and added vector."""
    z, step, context, added = inputs
    total: Residuals | None = None
    for steering in steerings:
        if steering.acts(level):
            net = cast(ControlNet, model.controls[steering.index])
            residuals = net(z, steering.hint_TChw, step, context, added, steering.scale_T)
            total = residuals if total is None else total + residuals
    return total


# ---------------------------------------------------------------------------------------- options


def named_option(extra: Mapping[str, Any], option: str, name: str, *, only: bool = False) -> Any:
    """Value of ``option.name``; with ``only``, falls back to ``option`` itself."""
    return extra.get(f"{option}.{name}", extra.get(option) if only else None)


def check(config: Config, request: Request) -> None:
    """Raise `BadRequest` for options without an add-on, values out of range, and control clips that do not fit."""
    names, extra, frames = [net.name for net in config.controls], request.extra, request.frames or 1
    scaled = [*names, SPARSE] if config.sparse else names
    check_names(extra, "control", names, "ControlNet", "controlnet=FILE")
    check_names(extra, "control_span", names, "ControlNet", "controlnet=FILE", for_all=True)
    what = "SparseCtrl or ControlNet"
    check_names(extra, "control_scale", scaled, what, "sparsectrl=FILE or controlnet=FILE", for_all=True)
    for key in [key for key in extra if key.partition(".")[0] == "control_scale"]:
        scale_of(extra[key], frames, key)
    for key in [key for key in extra if key.partition(".")[0] == "control_span"]:
        span_of(extra[key], key)
    for name in names:
        if (file := named_option(extra, "control", name, only=len(names) == 1)) is not None:
            _check_clip(file, name, frames)


def check_names(  # noqa: PLR0917
    extra: Mapping[str, Any], option: str, names: Sequence[str], what: str, add: str, *, for_all: bool = False
) -> None:
    """Raise `BadRequest` for ``option`` or ``option.NAME`` without such an add-on, or if the name is ambiguous."""
    for key in extra:
        base, dot, name = key.partition(".")
        if base != option:
            continue
        if not names:
            raise BadRequest(f"{option} needs {what} and this model has none; give --add {add}")
        if dot and name not in names:
            raise BadRequest(registry.unknown_name(what, name, names))
        if not dot and len(names) > 1 and not for_all:
            choices = ", ".join(f"{option}.{each}" for each in names)
            raise BadRequest(f"{option} is ambiguous, as the model has {len(names)} {what}s; use {choices}")


def check_frames(option: str, frames: Iterable[int], request: Request) -> None:
    """Raise `BadRequest` for frames outside the clip."""
    last = (request.frames or 1) - 1
    if outside := [frame for frame in frames if not 0 <= frame <= last]:
        raise BadRequest(f"{option} names frame {outside[0]}; this clip has frames 0 to {last}")


def scale_of(setting: Any, frames: int, name: str) -> Tensor:
    """Parse a number or one per frame, [1] or [T]."""
    values = list(setting) if isinstance(setting, list | tuple) else [setting]
    valid = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= MAX_SCALE for v in values)
    if not valid or len(values) not in (1, frames):
        expected = f"a number from 0 to {MAX_SCALE:g}, or one per frame ({frames})"
        raise BadRequest(f"{name} is {quoted(setting)}; expected {expected}")
    return torch.tensor(values, dtype=torch.float32)


def span_of(setting: Any, name: str) -> tuple[float, float]:
    """Parse the span of steps in which a ControlNet acts, as two fractions."""
    valid = isinstance(setting, list | tuple) and len(setting) == 2
    if not valid or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in setting):
        raise BadRequest(f"{name} is {quoted(setting)}; expected two fractions of the steps, such as [0, 0.5]")
    start, end = map(float, setting)
    if not 0 <= start < end <= 1:
        raise BadRequest(f"{name} is {quoted(setting)}; expected 0 <= start < end <= 1")
    return start, end


def files_of(extra: Mapping[str, Any]) -> list[str]:
    """Control clips, folders and images."""
    return [str(file) for key, file in extra.items() if key.partition(".")[0] == "control"]


def _check_clip(file: Any, name: str, frames: int) -> None:
    if not isinstance(file, str | Path):
        raise BadRequest(f"control of {name} is {quoted(file)}; expected an image, a clip or a folder of images")
    path = Path(file)
    if not path.exists():
        raise BadRequest(f"control file {path} does not exist")
    if not (path.is_file() and is_image(path)) and (found := read.probe(path).frames) < frames:
        raise BadRequest(
            f"the control clip {path} has {found} frames and the request {frames}; every frame needs a control image"
        )


# -------------------------------------------------------------------------------------- conditioning


def steerings(
    model: AnimateDiff, config: Config, request: Request, levels: NoiseLevel, on_event: OnEvent
) -> tuple[Steering, ...]:
    """Embed the control images of a request; ``levels`` are the noise levels of its steps and the final one.

    A ControlNet without a control image is skipped with a note.
    """
    active = []
    for index, size in enumerate(config.controls):
        only = len(config.controls) == 1
        file = named_option(request.extra, "control", size.name, only=only)
        if file is None:
            on_event(Note(f"ControlNet {size.name} has no input and adds nothing; set control.{size.name}=FILE"))
            continue
        checkpoint()
        net = cast(ControlNet, model.controls[index])
        channels_last(net)  # as in every later run
        weight = net.conv_in.weight
        hint = net.embed(_control_images(request, str(file), on_event).to(weight.device, weight.dtype))
        scale = named_option(request.extra, "control_scale", size.name, only=True)
        span = named_option(request.extra, "control_span", size.name, only=True)
        start, end = span_of(span, "control_span") if span is not None else (0.0, 1.0)
        first_log_snr, end_log_snr = _bounds(levels, start, end)
        if weight.device.type == "meta":  # a memory forecast measures a step in which all of them act
            first_log_snr, end_log_snr = float("-inf"), float("inf")
        scale_T = scale_of(1.0 if scale is None else scale, request.shape.frames, "control_scale")
        active.append(Steering(index, hint, scale_T.to(weight.device), first_log_snr, end_log_snr))
    return tuple(active)


def _control_images(request: Request, file: str, on_event: OnEvent) -> Tensor:
    """Load control images in pixels 0 to 1, 1×3×T×H×W (T is 1 for a still); frame k controls frame k."""
    _, _, frames, height, width = request.shape.bcthw
    path = Path(file)
    if path.is_file() and is_image(path):
        video, note = read.fit(read.read_image(path), height, width, request.fit)
    else:
        video, note = read.read_video(path, frames=frames, size=(height, width, request.fit)).video, None
        probe = read.probe(path)
        note = read.fit_note(height, width, probe.height, probe.width, request.fit)
        if probe.frames > frames:
            on_event(Note(f"{file} has {probe.frames} frames, of which the first {frames} are used"))
    if note:
        on_event(Note(f"{file} {note}"))
    return (video + 1) / 2


def _bounds(levels: NoiseLevel, start: float, end: float) -> tuple[float, float]:
    """Log-SNR of the first step entirely inside a span of the steps, and of the step after the last one.

    Of n steps, step i covers i/n to (i + 1)/n.
    """
    count, log_snr = len(levels) - 1, levels.log_snr
    inside = [i for i in range(count) if i / count >= start and (i + 1) / count <= end]
    if not inside:
        return float("inf"), float("inf")
    # Noise levels recomputed by a solver differ in their last digits.
    tolerance = 1e-4
    first_log_snr = float("-inf") if inside[0] == 0 else float(log_snr[inside[0]]) - tolerance
    end_log_snr = float("inf") if inside[-1] == count - 1 else float(log_snr[inside[-1] + 1]) - tolerance
    return first_log_snr, end_log_snr
