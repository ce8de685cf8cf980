"""The page to read first: from a request to a clip, and the object `kinema.load` returns.

Families and tasks meet here and nowhere else. Shapes: pixels B×3×T×H×W in [-1, 1], latents B×C×T×h×w.
"""

from __future__ import annotations

import json
import platform
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema import __version__
from kinema.diffusion import samplers
from kinema.diffusion.guidance import ClassifierFree, Reconstruction, Replacement, Scale
from kinema.diffusion.noise import Noise
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.samplers import SAMPLERS
from kinema.diffusion.schedules import Level
from kinema.diffusion.windows import Windowed
from kinema.schema import BadRequest, Canvas, Clip, Note, OnEvent, Phase, Request, Step, TaskName, ignore
from kinema.system import Conditions, System, open_system
from kinema.tasks import TASKS


def generate(
    system: System,
    request: Request,
    *,
    noise: Tensor | None = None,
    on_event: OnEvent = ignore,
    output: Literal["clip", "latents"] = "clip",
) -> Clip:
    """Answer a request: canvas, conditioning, noise, sampling, decoding.

    ``noise`` is standard normal of the latent shape (B, C, T, h, w), instead of the seed's. ``output="latents"``
    returns the latents in the clip's ``video``. Raises BadRequest for what the model cannot do, before its
    weights are read.
    """
    request = settle(system, request, on_event)
    canvas = TASKS[request.task].canvas(request, on_event)
    way = honour(system, request, canvas)
    on_event(Phase("load", system.name))
    draws = system.noise(request)
    shape = system.latent_shape(request).bcthw
    if noise is None:
        noise = draws.normal(shape[1:])
    elif tuple(noise.shape) != shape:
        raise BadRequest(f"noise has shape {tuple(noise.shape)}; {system.name} expects {shape} for this request")
    longest = system.lattice.max_frames
    with torch.no_grad():
        if longest and request.shape.frames > longest and request.window is None:
            z = roll_out(system, request, canvas, noise, draws, on_event)
        else:
            z = sample(system, request, canvas, way, noise, draws, on_event)
        if output == "latents":
            return Clip(z, cast(float, request.fps), {})
        on_event(Phase("decode"))
        video = system.decode(z, request)
    video = torch.lerp(video, canvas.video, canvas.mask.expand_as(video))  # what was given stays, to the bit
    return Clip(video, cast(float, request.fps), recipe(system, request, video))


def settle(system: System, request: Request, on_event: OnEvent = ignore) -> Request:
    """The request with the task's and the model's defaults and a seed: nothing is ``None`` that matters."""
    if request.task not in TASKS:
        raise BadRequest(f"there is no task {request.task!r}; expected one of {', '.join(TASKS)}")
    request = system.settle(TASKS[request.task].plan(request), on_event)
    sampler_options(system, request)
    if request.seed is None:
        request = replace(request, seed=secrets.randbelow(2**31))
    return request


def honour(system: System, request: Request, canvas: Canvas) -> str:
    """How the canvas will be held: "native", "reconstruction" or "replacement".

    Refuses, by name, a canvas the family cannot hold, or a way that it does not offer.
    """
    ways = system.family.honours(system.config, canvas.kind)
    if not ways:
        raise BadRequest(f"{system.name} cannot hold a canvas of the kind {canvas.kind!r} that this {request.task} needs")
    if request.honour == "auto" or canvas.empty:
        return ways[0]
    if request.honour not in ways:
        raise BadRequest(f"{system.name} does not hold a canvas by {request.honour}; it offers {', '.join(ways)}")
    return request.honour


def sample(
    system: System, request: Request, canvas: Canvas, way: str, noise: Tensor, draws: Noise, on_event: OnEvent
) -> Tensor:
    """One pass of the sampler over the whole canvas: latents B×C×T×h×w."""
    on_event(Phase("condition"))
    conditions = system.condition(request, canvas, on_event)
    denoise = guide(system, conditions, request)
    if way in ("reconstruction", "replacement") and not canvas.empty:
        given, mask = system.encode(canvas.video), latent_mask(system, canvas.mask)
        if way == "reconstruction":
            denoise = Reconstruction(denoise, given, mask, request.reconstruction_weight)
        denoise = Replacement(denoise, given, mask, draws)
    noise = noise.to(system.device, system.dtype)
    levels = system.levels(request)
    z = system.prior(noise)
    if canvas.source is not None:
        levels, z = start_from(system.encode(canvas.source), canvas.strength, levels, noise)
    on_event(Phase("sample", f"{len(levels) - 1} steps of {request.sampler}"))

    def on_step(index: int, total: int, level: Level, x0: Tensor) -> None:
        on_event(Step(index, total, float(level.log_snr[0]), x0))

    if len(levels) < 2:
        return z
    options = sampler_options(system, request)
    return SAMPLERS[cast(str, request.sampler)](denoise, z, levels, noise=draws, on_step=on_step, **options)


def guide(system: System, conditions: Conditions, request: Request) -> Denoiser:
    """The denoiser with classifier-free guidance, in windows where the request asks for them."""
    total = system.latent_shape(request).frames
    scale = guidance_scale(request, total) if conditions.scale is None else conditions.scale

    def make(frames: Sequence[int] | None) -> Denoiser:
        wanted = system.denoiser(conditions.positive, frames)
        if isinstance(scale, float) and scale == 1:
            return wanted
        of_frames = scale[list(frames)] if isinstance(scale, Tensor) and frames is not None else scale
        unwanted = system.denoiser(conditions.negative, frames)
        return ClassifierFree(wanted, unwanted, of_frames, request.guidance_rescale, request.guidance_interval)

    if request.window is None:
        return make(None)
    longest = system.lattice.max_frames
    if longest and request.window > longest:
        raise BadRequest(f"window is {request.window} frames; {system.name} sees at most {longest} at once")
    stride = system.lattice.stride[0]
    length = max(1, request.window // stride)
    overlap = length // 4 if request.overlap is None else request.overlap // stride
    return Windowed(make, total, length, overlap, request.window_weights, request.loop)


def guidance_scale(request: Request, frames: int) -> Scale:
    """The scale, or one per frame when ``guidance_end`` lets it change linearly over the clip."""
    scale = float(cast(float, request.guidance))
    if request.guidance_end is None or request.guidance_end == scale:
        return scale
    return torch.linspace(scale, request.guidance_end, frames)


def start_from(source_z: Tensor, strength: float, levels: Level, noise: Tensor) -> tuple[Level, Tensor]:
    """Levels and latents of an edit: the last ``strength`` of the steps, from the noised source (SDEdit)."""
    steps = len(levels) - 1
    first = steps - min(steps, round(steps * strength))
    if first == steps:
        return levels[steps:], source_z
    alpha, sigma = levels[first].like(noise)
    return levels[first:], alpha * source_z.to(noise) + sigma * noise


def roll_out(
    system: System, request: Request, canvas: Canvas, noise: Tensor, draws: Noise, on_event: OnEvent
) -> Tensor:
    """A clip longer than the model, block by block: each holds the last frames of the one before (VDM §3.1).

    Blocks run from where frames are known: backward when only the end of the canvas is given.
    """
    length = cast(int, system.lattice.max_frames)
    stride, total = system.lattice.stride[0], request.shape.frames
    keep = length // 2 if request.overlap is None else request.overlap
    if not 0 < keep < length:
        raise BadRequest(f"overlap is {keep} frames; a clip longer than {length} needs 1 to {length - 1} shared frames")
    if canvas.source is not None:
        keep = 0  # an edit has its own frames to start from: blocks side by side
    known, mask = canvas.video.clone(), canvas.mask.clone()
    z_all = torch.empty_like(noise)
    backward = bool(mask[:, :, -1].any()) and not bool(mask[:, :, 0].any())
    starts = [min(s, total - length) for s in range(0, max(1, total - keep), length - keep)]
    for number, start in enumerate(reversed(starts) if backward else starts):
        frames, latents = slice(start, start + length), slice(start // stride, (start + length) // stride)
        part = Canvas(known[:, :, frames], mask[:, :, frames])
        if canvas.source is not None:
            part = replace(part, source=canvas.source[:, :, frames], strength=canvas.strength)
        elif part.kind == "all":
            z_all[:, :, latents] = system.encode(part.video)
            continue
        on_event(Note(f"block {number + 1} of {len(starts)}: frames {start} to {start + length - 1}"))
        held = honour(system, request, part)
        block = replace(request, frames=length, loop=False)
        z = sample(system, block, part, held, noise[:, :, latents], draws, on_event)
        z_all[:, :, latents] = z
        made = system.decode(z, request)
        known[:, :, frames] = torch.lerp(made, part.video, part.mask.expand_as(made))
        mask[:, :, frames] = 1
    return z_all


def latent_mask(system: System, mask_B1THW: Tensor) -> Tensor:
    """The mask on the latent grid: 1 where every pixel of the cell is given."""
    t, h, w = system.lattice.stride
    offset = system.lattice.frame_offset if t > 1 else 0
    body = -F.max_pool3d(-mask_B1THW[:, :, offset:], (t, h, w)) if mask_B1THW.shape[2] > offset else mask_B1THW[:, :, :0]
    if offset:
        head = -F.max_pool3d(-mask_B1THW[:, :, :offset], (1, h, w))
        body = torch.cat([head, body], dim=2)
    return body.to(system.device, system.dtype)


def sampler_options(system: System, request: Request) -> dict[str, float]:
    """The request's options of its sampler over the model's own; one the sampler does not take is refused."""
    own = system.family.defaults(system.config)
    name = cast(str, request.sampler)
    told = dict(request.sampler_options) | ({} if request.eta is None else {"eta": request.eta})
    known = samplers.options(name)
    for option in told:
        if not isinstance(told[option], int | float):
            raise BadRequest(f"{option} of the sampler is {told[option]!r}; expected a number")
        if option not in known:
            raise BadRequest(f"sampler {name} takes no {option}; it takes {', '.join(known) or 'no options'}")
    return {**(own.options if name == own.sampler else {}), **told}


# -------------------------------------------------------------------------------------- recipe


def recipe(system: System, request: Request, video: Tensor) -> dict[str, Any]:
    """What `kinema replay` needs to make the clip again, and to say whether it is the same to the bit."""
    return {
        "kinema": __version__,
        "model": system.name,
        "family": system.family.name,
        "weights": system.weights.hash,
        "request": json.loads(request.to_json()),
        "frames_hash": frames_hash(video),
        "inputs": {k: file_hash(Path(v)) for k in ("image", "last_image", "video", "mask") if (v := getattr(request, k))},
        "device": system.device.type,
        "dtype": str(system.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()},
    }


def frames_hash(video: Tensor) -> str:
    """Hash of a clip's float pixels, before any codec: what "bit-equal" is measured on."""
    return sha256(video.detach().float().contiguous().cpu().numpy().tobytes()).hexdigest()


def file_hash(path: Path) -> str:
    if path.is_dir():
        digest = sha256()
        for file in sorted(path.iterdir()):
            digest.update(file.read_bytes())
        return digest.hexdigest()
    return sha256(path.read_bytes()).hexdigest()


# --------------------------------------------------------------------------------------- verbs


@dataclass(frozen=True, eq=False)
class Model:
    """What `load` returns: a system with the six verbs. Every verb takes `Request`'s options by name."""

    system: System

    def run(
        self,
        request: Request,
        *,
        noise: Tensor | None = None,
        on_event: OnEvent = ignore,
        output: Literal["clip", "latents"] = "clip",
    ) -> Clip:
        """See `generate`."""
        return generate(self.system, request, noise=noise, on_event=on_event, output=output)

    def generate(self, prompt: str, *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """Text to video: ``model.generate("a red ball rolls right")``."""
        return self.run(_request("generate", prompt=prompt, **options), on_event=on_event)

    def animate(self, image: str | Path, prompt: str = "", *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """Image to video; ``last_image`` or ``loop`` fix the end too, ``region`` makes a cinemagraph."""
        return self.run(_request("animate", image=image, prompt=prompt, **options), on_event=on_event)

    def interpolate(self, video: str | Path | None = None, *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """Frames between those of a clip (``every``), or between ``image`` and ``last_image``."""
        return self.run(_request("interpolate", video=video, **options), on_event=on_event)

    def extend(self, video: str | Path, *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """More of a clip: ``frames`` counts the whole; ``backward`` leads to it; ``loop`` closes it."""
        return self.run(_request("extend", video=video, **options), on_event=on_event)

    def inpaint(self, video: str | Path, prompt: str = "", *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """New content in ``region`` or ``mask`` of a clip; ``outside`` of it for outpainting."""
        return self.run(_request("inpaint", video=video, prompt=prompt, **options), on_event=on_event)

    def edit(self, video: str | Path, prompt: str, *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """The clip changed to fit the prompt, as far as ``strength`` lets it."""
        return self.run(_request("edit", video=video, prompt=prompt, **options), on_event=on_event)


def _request(task: TaskName, **options: Any) -> Request:
    values: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    try:
        return Request(task=task, **values)
    except TypeError as error:
        raise BadRequest(f"{task} takes no such option: {str(error).split(') ')[-1]}") from None


def load(
    source: str | Path,
    *,
    variant: str | None = None,
    preset: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    offline: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Model:
    """Open a model: "zoetrope" (embedded), an alias, a hub id, a folder or a file.

    ``preset`` builds an untrained one: ``load("vdm", preset="tiny")``. ``variant`` picks among the files of a
    folder ("fp16"). Raises BadRequest for anything that is not a model we know.
    """
    return Model(
        open_system(
            source, variant=variant, preset=preset, dtype=dtype, device=device, offline=offline, overrides=overrides
        )
    )
