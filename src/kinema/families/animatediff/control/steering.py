"""What ControlNets of a request are shown, how much of each is added, and over which steps.

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
from kinema.media.pictures import is_picture
from kinema.nn.ldm_unet import channels_last
from kinema.nn.sd_unet import Residuals
from kinema.schema import BadRequest, Request
from kinema.values import quoted

MOST_SCALE = 10.0
SPARSE = "sparsectrl"
"""What SparseCtrl is called in ``control_scale.NAME``."""


@dataclass(frozen=True, eq=False)
class Steering:
    """One ControlNet of a request: its pictures embedded (T of them, or one for all), how much, and when.

    ``hottest`` and ``coldest`` bound its steps by their log-SNR: from the first on, to before the second.
    """

    index: int
    hint_TChw: Tensor
    scale_T: Tensor
    hottest: float
    coldest: float

    def of(self, frames: Sequence[int]) -> Steering:
        hint, scale = (x[list(frames)] if len(x) > 1 else x for x in (self.hint_TChw, self.scale_T))
        return replace(self, hint_TChw=hint, scale_T=scale)

    def acts(self, level: NoiseLevel) -> bool:
        return self.hottest <= float(level.log_snr[0]) < self.coldest


def steer(
    model: AnimateDiff,
    steerings: Sequence[Steering],
    told: tuple[Tensor, Tensor, Tensor, Tensor | None],
    level: NoiseLevel,
) -> Residuals | None:
    """What all ControlNets that act at this level add; ``told`` are z, step, context and added vector of the U-Net."""
    z, step, context, added = told
    total: Residuals | None = None
    for steering in steerings:
        if steering.acts(level):
            net = cast(ControlNet, model.controls[steering.index])
            made = net(z, steering.hint_TChw, step, context, added, steering.scale_T)
            total = made if total is None else total + made
    return total


# ---------------------------------------------------------------------------------------- options


def of_name(extra: Mapping[str, Any], option: str, name: str, *, only: bool = False) -> Any:
    """``option.name`` of a request; ``option`` itself where it is meant for all, or for the only one there is."""
    return extra.get(f"{option}.{name}", extra.get(option) if only else None)


def check(config: Config, request: Request) -> None:
    """Refuse, by name, options of control that nothing takes, values out of range, and clips that do not fit."""
    names, extra, frames = [net.name for net in config.controls], request.extra, request.frames or 1
    scaled = [*names, SPARSE] if config.sparse else names
    check_names(extra, "control", names, "ControlNet", "controlnet=FILE")
    check_names(extra, "control_span", names, "ControlNet", "controlnet=FILE", for_all=True)
    what = "SparseCtrl or a ControlNet"
    check_names(extra, "control_scale", scaled, what, "sparsectrl=FILE or controlnet=FILE", for_all=True)
    for key in [key for key in extra if key.partition(".")[0] == "control_scale"]:
        scale_of(extra[key], frames, key)
    for key in [key for key in extra if key.partition(".")[0] == "control_span"]:
        span_of(extra[key], key)
    for name in names:
        if (file := of_name(extra, "control", name, only=len(names) == 1)) is not None:
            _check_clip(file, name, frames)


def check_names(  # noqa: PLR0917
    extra: Mapping[str, Any], option: str, names: Sequence[str], what: str, add: str, *, for_all: bool = False
) -> None:
    """Refuse ``option`` and ``option.NAME`` where there is nothing of that name, or several and no name."""
    for key in extra:
        base, dot, name = key.partition(".")
        if base != option:
            continue
        if not names:
            raise BadRequest(f"{option} is of {what}, and this model has none: add {add}")
        if dot and name not in names:
            raise BadRequest(registry.unknown(what, name, names))
        if not dot and len(names) > 1 and not for_all:
            told = ", ".join(f"{option}.{each}" for each in names)
            raise BadRequest(f"{option} could be of {len(names)} there are: say {told}")


def check_frames(option: str, told: Iterable[int], request: Request) -> None:
    """Refuse frames that the clip has not."""
    last = (request.frames or 1) - 1
    if wrong := [frame for frame in told if not 0 <= frame <= last]:
        raise BadRequest(f"{option} names frame {wrong[0]}; this clip has frames 0 to {last}")


def scale_of(told: Any, frames: int, name: str) -> Tensor:
    """A number, or one a frame, as [1] or [T]."""
    values = list(told) if isinstance(told, list | tuple) else [told]
    sound = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= MOST_SCALE for v in values)
    if not sound or len(values) not in (1, frames):
        raise BadRequest(f"{name} is {quoted(told)}; expected a number from 0 to {MOST_SCALE:g}, or {frames} of them")
    return torch.tensor(values, dtype=torch.float32)


def span_of(told: Any, name: str) -> tuple[float, float]:
    """From which to which share of the steps it acts."""
    sound = isinstance(told, list | tuple) and len(told) == 2
    if not sound or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in told):
        raise BadRequest(f"{name} is {quoted(told)}; expected two shares of the steps, such as [0, 0.5]")
    start, end = map(float, told)
    if not 0 <= start < end <= 1:
        raise BadRequest(f"{name} is {quoted(told)}; expected 0 <= start < end <= 1")
    return start, end


def files_of(extra: Mapping[str, Any]) -> list[str]:
    """The clips, folders and pictures that steer."""
    return [str(file) for key, file in extra.items() if key.partition(".")[0] == "control"]


def _check_clip(file: Any, name: str, frames: int) -> None:
    if not isinstance(file, str | Path):
        raise BadRequest(f"control of {name} is {quoted(file)}; expected a picture, a clip or a folder of pictures")
    path = Path(file)
    if not path.exists():
        raise BadRequest(f"there is no file {path} to control {name} with")
    if not (path.is_file() and is_picture(path)) and (found := read.probe(path).frames) < frames:
        raise BadRequest(
            f"the control clip {path} has {found} frames, and {frames} are to be made: every frame needs its own"
        )


# -------------------------------------------------------------------------------------- conditioning


def steerings(
    model: AnimateDiff, config: Config, request: Request, levels: NoiseLevel, on_event: OnEvent
) -> tuple[Steering, ...]:
    """The ControlNets that the request shows something; ``levels`` are those of its steps, and the last.

    One that is shown nothing adds nothing, which is said.
    """
    made = []
    for index, size in enumerate(config.controls):
        only = len(config.controls) == 1
        file = of_name(request.extra, "control", size.name, only=only)
        if file is None:
            on_event(Note(f"ControlNet {size.name} is shown nothing and adds nothing: give control.{size.name}=CLIP"))
            continue
        checkpoint()
        net = cast(ControlNet, model.controls[index])
        channels_last(net)  # as it is in every later run
        weight = net.conv_in.weight
        hint = net.embed(_pictures(request, str(file), on_event).to(weight.device, weight.dtype))
        scale = of_name(request.extra, "control_scale", size.name, only=True)
        span = of_name(request.extra, "control_span", size.name, only=True)
        hottest, coldest = _bounds(levels, *(span_of(span, "control_span") if span is not None else (0.0, 1.0)))
        if weight.device.type == "meta":  # a rehearsal asks what a step needs in which all of them act
            hottest, coldest = float("-inf"), float("inf")
        scale_T = scale_of(1.0 if scale is None else scale, request.shape.frames, "control_scale")
        made.append(Steering(index, hint, scale_T.to(weight.device), hottest, coldest))
    return tuple(made)


def _pictures(request: Request, file: str, on_event: OnEvent) -> Tensor:
    """The control pictures in pixels 0..1, 1×3×T×H×W (T is 1 for a still); frame k of a clip is of frame k."""
    _, _, frames, height, width = request.shape.bcthw
    path = Path(file)
    if path.is_file() and is_picture(path):
        video, said = read.fit(read.read_image(path), height, width, request.fit)
    else:
        video, said = read.read_video(path, frames=frames, size=(height, width, request.fit)).video, None
        probe = read.probe(path)
        said = read.fit_note(height, width, probe.height, probe.width, request.fit)
        if probe.frames > frames:
            on_event(Note(f"{file} has {probe.frames} frames, of which the first {frames} steer"))
    if said:
        on_event(Note(f"{file} {said}"))
    return (video + 1) / 2


def _bounds(levels: NoiseLevel, start: float, end: float) -> tuple[float, float]:
    """Log-SNR of the first step that lies whole in a share of them, and of the one after the last.

    Of n steps, step i reaches from i/n to (i + 1)/n.
    """
    count, log_snr = len(levels) - 1, levels.log_snr
    inside = [i for i in range(count) if i / count >= start and (i + 1) / count <= end]
    if not inside:
        return float("inf"), float("inf")
    # Levels that a solver computes again differ in their last digits.
    near = 1e-4
    hottest = float("-inf") if inside[0] == 0 else float(log_snr[inside[0]]) - near
    coldest = float("inf") if inside[-1] == count - 1 else float(log_snr[inside[-1] + 1]) - near
    return hottest, coldest
