"""A system: one family's network with its weights, process and codec, behind one set of calls.

`Family` is what a folder under ``families/`` provides; `System` is what `open_system` returns. A system
is opened from the headers of its files and, in a folder, from JSON: what is wrong, truncated or foreign fails
there, before a byte of the weights is read; the network itself is built and filled at its first use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from kinema import bounds, processor, registry
from kinema.checkpoints import files, hub
from kinema.checkpoints.lora_formats import is_lora
from kinema.checkpoints.lora_use import Loras, read_loras
from kinema.checkpoints.settings import checked, made, readable
from kinema.checkpoints.signatures import describe
from kinema.checkpoints.source import Source
from kinema.diffusion import samplers
from kinema.diffusion.guidance import Guidance, classifier_free
from kinema.diffusion.noise import Noise
from kinema.diffusion.parameterise import Denoiser, Parameterisation
from kinema.diffusion.samplers import SAMPLERS
from kinema.diffusion.schedules import Level, Schedule, Spacing, spaced
from kinema.nn.hollow import hollow
from kinema.schema import BadRequest, Canvas, Lattice, Note, OnEvent, Request, Shape, ignore
from kinema.values import quoted

if TYPE_CHECKING:
    from kinema.data.playroom.scene import Scene


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
    guidance_interval: tuple[float, float] | None = None
    """Log-SNR range in which guidance acts; None is all of it."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Keyword options of the default sampler (gamma, delta, eta…)."""
    attention_windows: bool = False
    """Whether its attention over time works in windows where a request asks for that (``window_in``)."""


@dataclass(frozen=True)
class Conditions:
    """A family's own conditioning of each branch that its guidance names (`Family.guidance`)."""

    branches: Mapping[str, Any]


@dataclass(frozen=True)
class Batch:
    """Training data: ``video`` B×3×T×H×W in [-1, 1], one caption a clip, and what is given of it.

    ``images`` B×K×3×H×W are independent pictures for joint training (VDM §3.1), with captions
    ``image_captions[b][k]``; they never share temporal attention with the clip. ``scenes`` are the scene
    graphs of clips that were rendered (None for filmed ones): ground truth that a recipe may learn from.

    ``fps`` and ``motion`` [B] are the rate each clip plays at and how much it moves (`kinema.data.motion`), NaN
    where that is not known. ``encoded`` is what the family's frozen networks made of the clips beforehand, under its
    own names; ``video`` then holds their first frames only.
    """

    video: Tensor
    captions: Sequence[str]
    mask: Tensor
    images: Tensor | None = None
    image_captions: Sequence[Sequence[str]] = ()
    scenes: Sequence[Scene | None] = ()
    fps: Tensor | None = None
    motion: Tensor | None = None
    encoded: Mapping[str, Tensor] | None = None
    weights: Path | None = None
    """The file or folder of the model in training, beside which its vocabulary may lie."""


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
    slow: float = 1.0
    """Playroom clips are slowed by up to this, evenly in its logarithm: every scene at many speeds."""
    without: tuple[str, ...] = ()
    """Motions of the playroom that are left out."""
    camera: str = ""
    """How the camera moves in every playroom clip, without being named; "" leaves it to the grammar."""
    style: str = ""
    """How playroom frames are drawn (`kinema.data.styles`); "" as they are."""
    frameskip: int = 1


@dataclass(frozen=True)
class Found:
    """What a family sees in a foreign file or folder."""

    config: Any
    parts: tuple[str, ...] = ()
    """The parts of a pipeline's folder that the network is filled from; none for a file."""
    notes: tuple[str, ...] = ()
    """What was decided where weights and configs do not tell; said with every request."""


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

    def files(self, request: Request) -> tuple[str, ...]:
        """The files and folders that the family's own options (``extra``) name, for the recipe to tell their hashes."""

    def condition(self, system: System, request: Request, canvas: Canvas, on_event: OnEvent) -> Conditions:
        """Encode prompt, pictures and scalars; batch items independent."""

    def guidance(self, config: Any, request: Request) -> Guidance | None:
        """Which branches there are and how they are put together for this many frames; None is classifier-free
        guidance of "positive" over "negative" by the request, its scale changing over the whole clip."""

    def join(self, conditions: Sequence[Any]) -> Any | None:
        """Conditions of one branch, of clips told alike but for prompt, seed and canvas, as that of a batch of them.

        None where no batch can hold what differs; those clips are denoised one after the other.
        """

    def denoiser(self, system: System, condition: Any, frames: Sequence[int] | None) -> Denoiser:
        """``denoise(z_BCTHW, level) -> x0_BCTHW`` for these latent frames (``None``: all of them)."""

    def recognise(self, source: Source) -> Found | None:
        """What a foreign file (`Source.header`) or folder (`Source.pipeline`) is, or None if it is not ours."""

    def convert(self, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its tensors under the network's own names; every key used or named in a BadRequest.

        Those of a pipeline's folder come with their part in front (``unet.conv_in.weight``).
        """

    def lora_aliases(self, config: Any) -> Mapping[str, str]:
        """Names of an original layout's modules to ours, for LoRA files that use them; ours are known without."""

    def recipe(self, config: Any) -> Recipe: ...

    def loss(self, model: nn.Module, config: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """The training loss of each item of the batch, ``[B]``."""

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The repeated blocks, for FSDP2, compile and offload."""

    def to_json(self, config: Any) -> dict[str, Any]: ...

    def from_json(self, told: Mapping[str, Any]) -> Any: ...


# ------------------------------------------------------------------------------------- weights


class Slots(Protocol):
    """What a family takes in addition to its model's own file; `registry.SLOTS` names it."""

    names: tuple[str, ...]
    """Of its slots; one that takes several files has a name behind a point (``controlnet.depth``)."""

    def open(self, config: Any, slot: str, source: Source) -> Found:
        """The config with this in it; BadRequest for what does not belong there, saying what it is."""

    def convert(self, config: Any, slot: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its tensors under the network's own names, over those of the model's file."""


@dataclass(frozen=True)
class Added:
    """A file or folder in one slot of a model."""

    slot: str
    source: Source
    parts: tuple[str, ...] = ()
    hub: str = ""
    """Its name on the hub, where it comes from there."""

    def told(self) -> dict[str, Any]:
        """What the recipe says of it."""
        return {"slot": self.slot, "file": self.hub or registry.called(self.source.path), "hash": self.hash}

    @cached_property
    def hash(self) -> str:
        return self.source.hash(self.parts)


_HASHING = "_hashing"


@dataclass(frozen=True)
class Weights:
    """Where a model's numbers come from: a file or folder, or a seed for an untrained model."""

    path: Path | None = None
    seed: int = 0
    own: bool = True
    """Whether the file uses our own names (written by ``kinema train``) or a foreign layout."""
    variant: str | None = None
    """Which of a folder's files ("fp16"); None takes the plain ones, or the only ones."""
    parts: tuple[str, ...] = ()
    """Of a pipeline's folder, the parts that are read."""
    model: str | None = None
    """The published model that the user says it is, where weights do not tell."""
    added: tuple[Added, ...] = ()

    @property
    def source(self) -> Source:
        if self.path is None:
            raise RuntimeError("an untrained model has no file")
        return Source(self.path, self.variant, self.model)

    @cached_property
    def hash(self) -> str:
        begun: Future[str] | None = vars(self).pop(_HASHING, None)
        return self._hash() if begun is None else begun.result()

    def begin_hash(self) -> None:
        """Hash the files beside what is done until `hash` is asked for: 500 MB take half a second.

        Raises BadRequest where files are gone.
        """
        begun: Future[str] | None = vars(self).get(_HASHING)
        if begun is not None and begun.done() and begun.exception():  # of a run that was broken off
            del vars(self)[_HASHING]
        if "hash" not in vars(self) and _HASHING not in vars(self):
            if self.path is not None:
                self.source.files(self.parts)
            for each in self.added:
                each.source.files(each.parts)
            with_one = ThreadPoolExecutor(1, "hash of weights")
            vars(self)[_HASHING] = with_one.submit(self._hash)
            with_one.shutdown(wait=False)

    def _hash(self) -> str:
        own = f"seed:{self.seed}" if self.path is None else self.source.hash(self.parts)
        return " ".join([own, *(f"{each.slot}={each.hash}" for each in self.added)])


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
    notes: tuple[str, ...] = ()
    """What was decided at opening, to be said."""
    loras: Loras = field(default_factory=Loras)
    rounded: torch.dtype | None = None
    """The precision weights are rounded to, where the processor computes in another (`arithmetic`)."""
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    offline: bool = False
    """Whether what is still to be found (text encoders, vocabularies) is looked for on this machine alone."""

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
        return self.loras.fill(model.to(device=self.device, dtype=self.dtype))

    def filled(self) -> nn.Module:
        """The network in eval mode: built on the meta device, weights assigned as they lie in the file's memory map."""
        if self.weights.path is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.weights.seed)
                model = self.family.build(self.config)
            tensors = dict(model.state_dict()) if self.weights.added else {}
        else:
            model = self._hollow()
            tensors = self.weights.source.tensors(self.weights.parts)
            if not self.weights.own:
                with readable(str(self.weights.path)):
                    tensors = self.family.convert(self.config, tensors)
        tensors |= self.additions()
        if tensors:
            files.fill(model, tensors, where=str(self.weights.path))
        return model.eval().requires_grad_(False)

    def additions(self) -> dict[str, Tensor]:
        """The tensors of what was added to the model's own file, under the network's names."""
        made: dict[str, Tensor] = {}
        for added in self.weights.added:
            with readable(str(added.source.path)):
                made |= _slots(self.family).convert(self.config, added.slot, added.source.tensors(added.parts))
        return made

    def _hollow(self) -> nn.Module:
        """The network without numbers: its names and shapes."""
        with hollow():
            return self.family.build(self.config)

    def use_loras(self, loras: Mapping[str | Path, float]) -> None:
        """Have exactly these LoRA files in the network, each with its weight; with none it is as it was, to the bit.

        Raises BadRequest for a file that is no LoRA or one of another model, before any weight is touched or read.
        """
        if not loras:
            self.loras.use(())
            return
        shapes = {name: p.shape for name, p in self._hollow().named_parameters()}
        if any(not str(name).strip() for name in loras):
            raise BadRequest("the name of a LoRA is empty; expected a file")
        missing = [name for name in loras if not Path(registry.part(name)).exists()]
        if missing:
            raise BadRequest(f"there is no LoRA file {missing[0]}{registry.near_part(missing[0], 'lora')}")
        loras = {registry.part(name): weight for name, weight in loras.items()}
        self.loras.use(read_loras(loras, shapes, self.family.lora_aliases(self.config), self.name))

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
        for note in self.notes:
            on_event(Note(note))

        def snapped(what: str, asked: int, made: int) -> int:
            if asked != made:
                on_event(Note(f"{what} {asked} snapped to {made}, the nearest that {self.name} can make"))
            return made

        height, width = request.height or own.height, request.width or own.width
        window = request.window
        if window is not None:
            window = snapped("window", window, lattice.time.ceil(window))
            if lattice.max_frames and window > lattice.max_frames:
                raise BadRequest(f"window is {window} frames; {self.name} sees at most {lattice.max_frames} at once")
            if request.overlap is not None and request.overlap >= window:
                raise BadRequest(f"overlap is {request.overlap} frames of a window of {window}; expected fewer")
        if request.window_in == "attention" and not own.attention_windows:
            raise BadRequest(f"the attention over time of {self.name} does not work in windows: leave window_in out")
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
            guidance_interval=request.guidance_interval or own.guidance_interval,
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
                raise BadRequest(f"{option} of the sampler is {quoted(value)}; expected a number, 0 or more")
        return {**(own.options if name == own.sampler else {}), **told}

    def latent_shape(self, request: Request) -> Shape:
        return request.shape.latent(self.lattice)

    def guidance(self, request: Request) -> Guidance:
        """How the branches of a clip are put together; scales that change do so over its latent frames."""
        own = self.family.guidance(self.config, request)
        if own is not None:
            return own
        scale: float | Tensor = float(request.guidance or 0.0)
        if request.guidance_end is not None and request.guidance_end != scale:
            scale = torch.linspace(scale, request.guidance_end, self.latent_shape(request).frames)
        return classifier_free(scale, request.guidance_rescale, request.guidance_interval)

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

HUB = "hub:"
"""Before a name that is the hub's, also where a file here is called the same."""


def open_system(
    source: str | Path,
    *,
    preset: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    offline: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
    loras: Mapping[str | Path, float] | None = None,
    add: Mapping[str, str | Path] | None = None,
    memory: MemoryOptions | None = None,
) -> System:
    """Open a model: an embedded name, a family (with ``preset``, untrained), an alias, a file, a folder or a hub id.

    A name that begins with ``hub:`` is never a file's. ``variant`` picks among a folder's files ("fp16"), or names the
    published model that the weights are ("svd-xt"). With ``offline`` the hub is not asked, now or later.
    ``overrides`` replaces fields of the config by name. ``loras`` are LoRA files and their weights, ``add``
    files in slots of the model (``{"motion": "mm_sd_v15_v2.ckpt"}``). Raises BadRequest for anything that is not a
    model.
    """
    named = str(source)
    if not named.strip():
        raise BadRequest("the model's name is empty; expected a name, a file, a folder or a hub id")
    name, family, config, weights, notes = _found(named, preset, variant, offline)
    added, config, said = _add(family, config, {**registry.ADDED.get(named, {}), **(add or {})}, offline)
    weights, notes = replace(weights, added=added), (*notes, *said)
    if overrides:
        config = _override(family, config, overrides)
    chosen = torch.device(device) if device else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    told = dict(overrides or {})
    asked = dtype or torch.float32
    computed = arithmetic(asked, chosen)
    rounded = None if computed == asked else asked
    system = System(
        name, family, config, weights, chosen, computed, told, notes,
        rounded=rounded, memory=memory or MemoryOptions(), offline=bool(offline),
    )  # fmt: skip
    if loras:
        system.use_loras(loras)
    return system


def _found(
    told: str, preset: str | None, variant: str | None, offline: bool | None
) -> tuple[str, Family, Any, Weights, tuple[str, ...]]:
    """What a recipe calls the model of this name, its family, config and weights, and what was decided for it."""
    name = told.removeprefix(HUB)
    family_name, _, slash_preset = name.partition("/")
    here = _here(told)
    if family_name in registry.FAMILIES and (preset or slash_preset):
        if variant:
            raise BadRequest(f"variant {variant} is of weights, and {family_name}/{preset or slash_preset} has none")
        return (f"{family_name}/{preset or slash_preset}", *_untrained(family_name, preset or slash_preset), ())
    if preset:
        raise BadRequest(f"preset {preset} is of a family, untrained: {', '.join(registry.FAMILIES)}; not of {name}")
    if name in registry.EMBEDDED:
        return (name, *_opened(registry.weights(registry.EMBEDDED[name][1]), variant))
    if here is not None:
        return (registry.called(here), *_opened(here, variant))
    if name in registry.ALIASES or is_hub_id(name):
        return (name, *_opened(_fetched(name, offline, variant), variant))
    if name in registry.PARTS:
        slot = registry.PARTS[name]
        option, argument = (f"--lora {name}", "loras") if slot == "lora" else (f"--add {slot}={name}", "add")
        model = next((model for model in registry.EMBEDDED if name.startswith(model)), "one")
        raise BadRequest(f"{name} is no model but a part: give it to {model} as {option} (in Python by {argument})")
    if Path(name).suffix or name.startswith((".", "/")):
        raise BadRequest(f"there is no file {name}; expected a model's file or folder")
    raise BadRequest(registry.unknown("model", name, {*registry.EMBEDDED, *registry.ALIASES, *registry.FAMILIES}))


def _here(told: str | Path) -> Path | None:
    """The file or folder of this name, None where there is none, or where a name on the hub was meant."""
    return None if str(told).startswith(HUB) or not Path(told).exists() else Path(told)


def _slots(family: Family) -> Slots:
    if family.name not in registry.SLOTS:
        raise BadRequest(f"{family.name} takes nothing in addition to its own file")
    return registry.resolve(registry.SLOTS[family.name])


def _add(
    family: Family, config: Any, add: Mapping[str, str | Path], offline: bool | None
) -> tuple[tuple[Added, ...], Any, tuple[str, ...]]:
    """The additions in the order told, the config with them, and what was decided for them."""
    added: list[Added] = []
    notes: list[str] = []
    for slot, named in add.items():
        slots, told = _slots(family), registry.part(named)
        if slot.partition(".")[0] not in slots.names:
            raise BadRequest(registry.unknown(f"slot of {family.name}", slot, slots.names))
        here, name = _here(told), str(told).removeprefix(HUB)
        if here is None and not is_hub_id(name):
            raise BadRequest(f"there is no file {told} to add as {slot}{registry.near_part(told, slot)}")
        source = Source(_fetched(name, offline, None) if here is None else here)
        with readable(str(source.path)):
            found = slots.open(config, slot, source)
        config = checked(found.config, f"the config with {slot}")
        added.append(Added(slot, source, found.parts, name if here is None else ""))
        notes += found.notes
    return tuple(added), config, tuple(notes)


def arithmetic(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision to compute in: float32 for halves on a processor that has no units for them.

    There a product of halves takes several times as long as one of floats, and is less exact.
    """
    halves = device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if halves and processor.has_units(dtype) is False else dtype


def is_hub_id(name: str) -> bool:
    """``owner/name``, or ``owner/name/file`` of a weight file; a repository's name may have points in it."""
    parts = name.split("/")
    if not all(re.fullmatch(r"\w[\w.-]*", part) for part in parts):
        return False
    return len(parts) > 2 if Path(name).suffix in files.WEIGHTS else len(parts) == 2


def _fetched(name: str, offline: bool | None, variant: str | None) -> Path:
    try:
        return fetched(name, offline, variant)
    except BadRequest as error:
        if name in registry.ALIASES:
            raise
        here = f"there is no file {name} here" if name.count("/") > 1 else f"{name.partition('/')[0]} is no family here"
        raise BadRequest(f"{error} ({here}, so a hub name was meant)") from error


def fetched(name: str, offline: bool | None, variant: str | None) -> Path:
    """Where a model of the hub lies, by its name there or its alias: `hub.fetch_model`, which says what is raised."""
    return hub.fetch_model(registry.ALIASES.get(name, name), offline=offline, variant=_split(variant)[0])


def _untrained(family_name: str, preset: str) -> tuple[Family, Any, Weights]:
    family: Family = registry.family(family_name)
    if preset not in family.presets:
        raise BadRequest(registry.unknown(f"preset of {family_name}", preset, family.presets))
    return family, family.presets[preset], Weights(seed=0)


def _split(variant: str | None) -> tuple[str | None, str | None]:
    """(which files of a folder, which published model): a variant that names a preset is a model."""
    presets = {name for family in registry.FAMILIES for name in registry.family(family).presets} if variant else ()
    return (None, variant) if variant in presets else (variant, None)


def _opened(path: Path, variant: str | None) -> tuple[Family, Any, Weights, tuple[str, ...]]:
    """Recognise a file or folder: by the note ``kinema train`` left in it, else by what a family sees in it."""
    files_of, model = _split(variant)
    source = Source(path, files_of, model)
    weights = Weights(path, variant=files_of, model=model)
    if told := source.metadata.get("kinema"):
        if model:
            raise BadRequest(f"{path} says itself which model it is; leave out variant {model}")
        family, config = family_of(told, str(path))
        return family, config, weights, ()
    likely = registry.PIPELINES.get(source.pipeline)  # asked first: others need not even be imported
    for name in sorted(registry.FAMILIES, key=lambda name: name != likely):
        family = registry.family(name)
        with readable(str(path)):
            found = family.recognise(source)
        if found is not None:
            return (
                family,
                checked(found.config, f"the config of {path}"),
                replace(weights, own=False, parts=found.parts),
                found.notes,
            )
    hint = "; name a model, and this with --lora" if is_lora(source.header) else ""
    raise BadRequest(f"{path} is not a model of any family we know: it is {describe(source)}{hint}")


def family_of(note: str, where: str) -> tuple[Family, Any]:
    """The family and the config that the note in a file of ours tells. Raises BadRequest for one that is damaged."""
    told = bounds.from_json(note, f"the note in {where}")
    if not (isinstance(told, Mapping) and isinstance(told.get("family"), str) and "config" in told):
        raise BadRequest(f"{where} has a damaged note of its family and config; expected one of kinema's")
    family: Family = registry.family(told["family"])
    return family, family.from_json(told["config"])


def _override(family: Family, config: Any, overrides: Mapping[str, Any]) -> Any:
    own = {f.name: getattr(config, f.name) for f in fields(config)}
    config = made(type(config), {**own, **overrides}, f"overrides of {family.name}")
    with hollow():  # what cannot be built is refused now, not when the network is first used
        family.build(config)
    return config


def with_model(system: System, model: nn.Module) -> System:
    """The same system over a network already in memory (a training run looking at its own samples)."""
    looking = replace(system)
    vars(looking)["model"] = model  # fills the cached property
    return looking
