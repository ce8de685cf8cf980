"""A system: one family's network with its weights, process and codec, behind one set of calls.

`Family` is what a folder under ``families/`` provides; `System` is what `open_system` returns. A system
is opened from the header of its file: wrong, truncated or foreign files fail there, before a byte of
the weights is read; the network itself is built and filled at its first use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from kinema import registry
from kinema.checkpoints import files, hub
from kinema.checkpoints.files import Header
from kinema.diffusion import samplers
from kinema.diffusion.noise import Noise
from kinema.diffusion.parameterise import Denoiser, Parameterisation
from kinema.diffusion.samplers import SAMPLERS
from kinema.diffusion.schedules import Level, Schedule, Spacing, spaced
from kinema.schema import BadRequest, Canvas, Lattice, Note, OnEvent, Request, Shape, ignore


@dataclass(frozen=True)
class Process:
    """What turns data into noise and a network into a denoiser: a schedule and a parameterisation."""

    schedule: Schedule
    parameterisation: Parameterisation


@dataclass(frozen=True)
class Defaults:
    """What a request's ``None`` becomes for one model: its native size and recommended sampling."""

    frames: int
    height: int
    width: int
    fps: float = 8.0
    steps: int = 50
    sampler: str = "ddim"
    spacing: Spacing = "uniform"
    guidance: float = 1.0
    guidance_end: float | None = None
    """Where guidance ends over the frames, for a request that says nothing of guidance."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Keyword options of the default sampler (gamma, delta, eta…)."""


@dataclass(frozen=True)
class Conditions:
    """A family's own conditioning of the wanted (``positive``) and the unwanted (``negative``) branch."""

    positive: Any
    negative: Any
    scale: Tensor | None = None
    """Guidance scale of each frame, [T], where the family has a shape for it; None leaves it to `generate`."""


@dataclass(frozen=True)
class Batch:
    """Training data: ``video`` B×3×T×H×W in [-1, 1], one caption a clip, and what is given of it.

    ``images`` B×K×3×H×W are independent pictures for joint training (VDM §3.1), with captions
    ``image_captions[b][k]``; they never share temporal attention with the clip.
    """

    video: Tensor
    captions: Sequence[str]
    mask: Tensor
    images: Tensor | None = None
    image_captions: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Recipe:
    """How a family's preset is trained: what `training.loop` needs besides the loss itself."""

    steps: int
    batch: int
    learning_rate: float
    optimiser: str = "adamw"
    weight_decay: float = 0.0
    warmup: int = 200
    cooldown: float = 0.3
    """Share of the steps, at the end, over which the learning rate falls linearly to zero."""
    ema: float = 0.999
    clip_norm: float = 1.0
    text_drop: float = 0.1
    canvas_mix: Mapping[str, float] = field(default_factory=lambda: {"nothing": 1.0})
    """Probability of each kind of canvas: nothing, first, ends, prefix, suffix, every, region."""
    images: int = 0
    """Independent pictures appended to every clip (VDM's K)."""
    grammar: str = "mixed"
    frameskip: int = 1


DECODING = {"chunk": "decode_chunk", "overlap": "decode_overlap", "tile": "decode_tile"}
"""Options of a codec's `decode`, and what they are called in `Request.extra`."""


def decoding_of(request: Request) -> dict[str, int]:
    """The request's options of decoding, as a codec calls them."""
    return {short: request.extra[long] for short, long in DECODING.items() if long in request.extra}


class Codec(Protocol):
    """Pixels to latents and back; the identity for pixel-space models."""

    def encode(self, video_BCTHW: Tensor) -> Tensor: ...

    def decode(self, z_BCTHW: Tensor, chunk: int | None = None) -> Tensor:
        """``chunk`` latent frames at a time, where the codec works over frames; None is its own choice.

        A codec may take more options, by the names in `DECODING`; a family's `check` lets only those through.
        """

    def leaner(self, frames: int, height: int, width: int) -> Sequence[Mapping[str, int]]:
        """Options of `decode` that need less memory for a clip of this latent size, the mildest first."""


class Family(Protocol):
    """What one folder under ``families/`` provides. ``config`` is the family's own frozen dataclass."""

    name: str

    @property
    def presets(self) -> Mapping[str, Any]:
        """Name to config; always with a ``tiny`` that runs on a CPU in about a second."""

    def build(self, config: Any) -> nn.Module:
        """The network, with freshly initialised weights on the current default device."""

    def lattice(self, config: Any) -> Lattice: ...

    def defaults(self, config: Any) -> Defaults: ...

    def process(self, config: Any) -> Process: ...

    def codec(self, config: Any, model: nn.Module) -> Codec: ...

    def takes_prompt(self, config: Any) -> bool:
        """Whether this model was trained with text; without it, a verb asks for none."""

    def threshold(self, config: Any) -> float | None:
        """Bound on the guided estimate of x0 (static thresholding), or None."""

    def honours(self, config: Any, kind: str) -> tuple[str, ...]:
        """Ways to hold a canvas of this kind (`Canvas.kind`), best first, out of "native",
        "reconstruction", "replacement"; empty when the family cannot, which refuses the request."""

    def check(self, config: Any, request: Request) -> None:
        """Refuse, by name, what the family cannot do (before weights are loaded); also unknown ``extra``."""

    def condition(self, system: System, request: Request, canvas: Canvas, on_event: OnEvent) -> Conditions:
        """Encode prompt, pictures and scalars; batch items independent."""

    def denoiser(self, system: System, condition: Any, frames: Sequence[int] | None) -> Denoiser:
        """``denoise(z_BCTHW, level) -> x0_BCTHW`` for these latent frames (``None``: all of them)."""

    def recognise(self, header: Header) -> Any | None:
        """The config of a foreign file with these tensors (name to shape and dtype), or None if it is not ours."""

    def convert(self, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A file's tensors under the network's own names; every key used or named in a BadRequest."""

    def recipe(self, config: Any) -> Recipe: ...

    def loss(self, model: nn.Module, config: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """The training loss of each item of the batch, ``[B]``."""

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The repeated blocks, for FSDP2, compile and offload."""

    def to_json(self, config: Any) -> dict[str, Any]: ...

    def from_json(self, told: Mapping[str, Any]) -> Any: ...


# ------------------------------------------------------------------------------------- weights


@dataclass(frozen=True)
class Weights:
    """Where a model's numbers come from: a file, or a seed for an untrained model."""

    path: Path | None = None
    seed: int = 0
    own: bool = True
    """Whether the file uses our own names (written by ``kinema train``) or a foreign layout."""
    variant: str | None = None
    """Which of a folder's files ("fp16"); None takes the plain one."""

    @cached_property
    def hash(self) -> str:
        return files.weight_hash(self.path, self.variant) if self.path else f"seed:{self.seed}"


@dataclass(frozen=True)
class MemoryOptions:
    """How much memory may be used, and what is settled of how; the rest is chosen by `kinema.memory.plan`."""

    offload: Literal["auto", "none", "model", "block", "sequential"] = "auto"
    budget: int | None = None
    """Bytes, on the device; None is most of what is free."""
    tokens: int | None = None
    """Tokens that feed-forward layers take at a time."""


@dataclass(frozen=True, eq=False)
class System:
    """One opened model. Its calls are the lines of `kinema.generate.generate`."""

    name: str
    family: Family
    config: Any
    weights: Weights
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """What of the config was replaced at opening: part of the recipe."""
    rounded: torch.dtype | None = None
    """The precision weights are rounded to, where the processor computes in another (`arithmetic`)."""
    memory: MemoryOptions = field(default_factory=MemoryOptions)

    @property
    def precision(self) -> torch.dtype:
        """The precision that was asked for: of the weights, and mostly of the arithmetic too."""
        return self.rounded or self.dtype

    @cached_property
    def model(self) -> nn.Module:
        """The network on its device, filled on first use."""
        model = self.filled()
        if self.rounded is not None:
            model = model.to(self.rounded)
        return model.to(device=self.device, dtype=self.dtype)

    def filled(self) -> nn.Module:
        """The network in eval mode: built on the meta device, weights assigned as they lie in the file's memory map."""
        if self.weights.path is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.weights.seed)
                model = self.family.build(self.config)
        else:
            with torch.device("meta"):
                model = self.family.build(self.config)
            tensors = files.read_tensors(self.weights.path, self.weights.variant)
            if not self.weights.own:
                tensors = self.family.convert(self.config, tensors)
            files.fill(model, tensors, where=str(self.weights.path))
        return model.eval().requires_grad_(False)

    @property
    def lattice(self) -> Lattice:
        return self.family.lattice(self.config)

    @property
    def process(self) -> Process:
        return self.family.process(self.config)

    @cached_property
    def codec(self) -> Codec:
        return self.family.codec(self.config, self.model)

    def settle(self, request: Request, on_event: OnEvent = ignore) -> Request:
        """The request with every default filled and its sides on the model's lattice, saying what moved.

        Frames stay as asked: a clip is made at the lattice's next frame count and cut. Raises BadRequest for
        what the family cannot do; needs no weights.
        """
        own, lattice = self.family.defaults(self.config), self.lattice

        def snapped(what: str, asked: int, made: int) -> int:
            if asked != made:
                on_event(Note(f"{what} {asked} snapped to {made}, the nearest that {self.name} can make"))
            return made

        height, width = request.height or own.height, request.width or own.width
        window = request.window
        if window is not None:
            window = snapped("window", window, lattice.ceil_frames(window))
            if lattice.max_frames and window > lattice.max_frames:
                raise BadRequest(f"window is {window} frames; {self.name} sees at most {lattice.max_frames} at once")
            if request.overlap is not None and request.overlap >= window:
                raise BadRequest(f"overlap is {request.overlap} frames of a window of {window}; expected fewer")
        sampler = request.sampler or own.sampler
        if sampler not in SAMPLERS:
            raise BadRequest(registry.unknown("sampler", sampler, SAMPLERS))
        silent = request.guidance is None and request.guidance_end is None
        request = replace(
            request,
            frames=request.frames or own.frames,
            window=window,
            height=snapped("height", height, lattice.snap_side(height)),
            width=snapped("width", width, lattice.snap_side(width)),
            fps=request.fps or own.fps,
            steps=request.steps or own.steps,
            sampler=sampler,
            guidance=own.guidance if request.guidance is None else request.guidance,
            guidance_end=own.guidance_end if silent else request.guidance_end,
        )
        self.family.check(self.config, request)
        return request

    def sampler_options(self, request: Request) -> dict[str, float]:
        """The request's options of its sampler over the model's own; one the sampler does not take is refused."""
        own = self.family.defaults(self.config)
        name = request.sampler or own.sampler
        told = dict(request.sampler_options) | ({} if request.eta is None else {"eta": request.eta})
        known = samplers.options(name)
        for option, value in told.items():
            if option not in known:
                raise BadRequest(f"sampler {name} takes no {option}; it takes {', '.join(known) or 'no options'}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise BadRequest(f"{option} of the sampler is {value!r}; expected a number, 0 or more")
        return {**(own.options if name == own.sampler else {}), **told}

    def latent_shape(self, request: Request) -> Shape:
        return request.shape.latent(self.lattice)

    def condition(self, request: Request, canvas: Canvas, on_event: OnEvent = ignore) -> Conditions:
        return self.family.condition(self, request, canvas, on_event)

    def denoiser(self, condition: Any, frames: Sequence[int] | None = None) -> Denoiser:
        return self.family.denoiser(self, condition, frames)

    def prior(self, noise_BCTHW: Tensor) -> Tensor:
        """Standard normal noise scaled to the noise end of the schedule."""
        return noise_BCTHW * self.process.schedule.prior_std

    def noise(self, request: Request) -> Noise:
        """One generator per clip, so that clip i of a batch equals the single run with seed + i."""
        if request.seed is None:
            raise RuntimeError("this request has no seed yet")
        return Noise([request.seed + i for i in range(request.clips)])

    def levels(self, request: Request) -> Level:
        """Noise levels from the noise end to clean, ``steps + 1`` of them."""
        own = self.family.defaults(self.config)
        return spaced(self.process.schedule, request.steps or own.steps, own.spacing)

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        return self.codec.encode(video_BCTHW.to(self.device, self.dtype))

    def decode(self, z_BCTHW: Tensor, request: Request | None = None) -> Tensor:
        """Pixels in [-1, 1] on the CPU; a request may say in which parts to decode."""
        told: dict[str, Any] = decoding_of(request) if request else {}
        return self.codec.decode(z_BCTHW.to(self.dtype), **told).float().clamp(-1, 1).cpu()


# ---------------------------------------------------------------------------------------- load


def open_system(
    source: str | Path,
    *,
    preset: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    offline: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
    memory: MemoryOptions | None = None,
) -> System:
    """Open a model: an embedded name, a family (with ``preset``, untrained), an alias, a file or a hub id.

    ``overrides`` replaces fields of the config by name. Raises BadRequest for anything that is not a model.
    """
    name = str(source)
    family_name, _, slash_preset = name.partition("/")
    if family_name in registry.FAMILIES and (preset or slash_preset):
        family, config, weights = _untrained(family_name, preset or slash_preset)
        name = f"{family_name}/{preset or slash_preset}"
    elif name in registry.EMBEDDED:
        family_name, file = registry.EMBEDDED[name]
        path = Path(str(resources.files("kinema") / "weights" / file))
        family, config, weights = _from_file(path, None)
    elif Path(source).exists():
        family, config, weights = _from_file(Path(source), variant)
    elif name in registry.ALIASES or _is_hub_id(name):
        family, config, weights = _from_file(hub.fetch(registry.ALIASES.get(name, name), offline=offline), variant)
    elif Path(name).suffix or name.startswith((".", "/")):
        raise BadRequest(f"there is no file {name}; expected a model's file or folder")
    else:
        raise BadRequest(registry.unknown("model", name, {*registry.EMBEDDED, *registry.ALIASES, *registry.FAMILIES}))
    if overrides:
        config = _override(config, overrides)
    chosen = torch.device(device) if device else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked = dtype or torch.float32
    computed = arithmetic(asked, chosen)
    rounded = None if computed == asked else asked
    return System(
        name, family, config, weights, chosen, computed, dict(overrides or {}), rounded, memory or MemoryOptions()
    )  # fmt: skip


_UNITS = {torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"), torch.float16: ("avx512_fp16", "amx_fp16", "fp16")}


def arithmetic(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision to compute in: float32 for halves on a processor that has no units for them.

    There a product of halves takes several times as long as one of floats, and is less exact.
    """
    if device.type != "cpu" or dtype not in _UNITS:
        return dtype
    told: dict[str, Any] = dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}
    known = [told[name] for name in _UNITS[dtype] if name in told]
    return torch.float32 if known and not any(known) else dtype


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).suffix


def _untrained(family_name: str, preset: str) -> tuple[Family, Any, Weights]:
    family: Family = registry.family(family_name)
    if preset not in family.presets:
        raise BadRequest(registry.unknown(f"preset of {family_name}", preset, family.presets))
    return family, family.presets[preset], Weights(seed=0)


def _from_file(path: Path, variant: str | None) -> tuple[Family, Any, Weights]:
    """Recognise a file: by the note ``kinema train`` left in its metadata, else by its keys and shapes."""
    told = files.metadata(path, variant).get("kinema")
    if told:
        try:
            note = json.loads(told)
            family: Family = registry.family(note["family"])
            return family, family.from_json(note["config"]), Weights(path, variant=variant)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, BadRequest):
                raise
            raise BadRequest(f"{path} has a damaged note of its family and config; expected one of kinema's") from error
    header = files.header(path, variant)
    for name in registry.FAMILIES:
        family = registry.family(name)
        config = family.recognise(header)
        if config is not None:
            return family, config, Weights(path, own=False, variant=variant)
    first = ", ".join(sorted(header)[:3])
    raise BadRequest(f"{path} is not a model of any family we know (its {len(header)} tensors begin {first})")


def _override(config: Any, overrides: Mapping[str, Any]) -> Any:
    try:
        return replace(config, **overrides)
    except TypeError as error:
        raise BadRequest(f"no such setting of {type(config).__name__}: {error}") from None


def with_model(system: System, model: nn.Module) -> System:
    """The same system over a network already in memory (a training run looking at its own samples)."""
    looking = replace(system)
    vars(looking)["model"] = model  # fills the cached property
    return looking
