"""What a folder under ``families/`` provides, and what it hands to the rest of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from kinema import registry
from kinema.checkpoints.source import Source
from kinema.diffusion.guidance import Guidance
from kinema.diffusion.parameterise import Denoiser, Parameterisation
from kinema.diffusion.schedules import Schedule, Spacing
from kinema.schema import BadRequest, Canvas, Lattice, OnEvent, Request

if TYPE_CHECKING:
    from kinema.data.playroom import Playroom
    from kinema.data.playroom.scene import Scene
    from kinema.system.system import System


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
    takes_prompt: bool = True
    """Whether this model was trained with text; without it, a verb asks for none."""
    threshold: float | None = None
    """Bound on the guided estimate of x0 (static thresholding)."""
    attention_windows: bool = False
    """Whether its attention over time works in windows where a request asks for that (``window_in``)."""


@dataclass(frozen=True)
class Conditions:
    """A family's own conditioning of each branch that its guidance names (`Sampling.guidance`)."""

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
    playroom: Playroom | None = None
    """How clips of the playroom are rendered; None is the defaults."""
    frameskip: int = 1
    lora: Mapping[str, Any] = field(default_factory=dict)
    """Figures of a LoRA that differ, by name."""


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


class Sampling(Protocol):
    """How a family's clips are made. ``config`` is the family's own frozen dataclass."""

    def lattice(self, config: Any) -> Lattice: ...

    def defaults(self, config: Any) -> Defaults: ...

    def process(self, config: Any) -> Process: ...

    def codec(self, config: Any, model: nn.Module) -> Codec: ...

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


class Checkpoints(Protocol):
    """What a family's files are, and how their tensors become the network's."""

    def recognise(self, source: Source) -> Found | None:
        """What a foreign file (`Source.header`) or folder (`Source.pipeline`) is, or None if it is not ours."""

    def convert(self, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its tensors under the network's own names; every key used or named in a BadRequest.

        Those of a pipeline's folder come with their part in front (``unet.conv_in.weight``).
        """

    def lora_aliases(self, config: Any) -> Mapping[str, str]:
        """Names of an original layout's modules to ours, for LoRA files that use them; ours are known without."""


class Training(Protocol):
    """How a family is trained."""

    def recipe(self, config: Any) -> Recipe: ...

    def loss(self, model: nn.Module, config: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """The training loss of each item of the batch, ``[B]``."""


class Family(Protocol):
    """What one folder under ``families/`` provides: a network for each config, and the three protocols above."""

    name: str
    sampling: Sampling
    checkpoints: Checkpoints
    training: Training

    @property
    def presets(self) -> Mapping[str, Any]:
        """Name to config; always with a ``tiny`` that runs on a CPU in about a second."""

    def build(self, config: Any) -> nn.Module:
        """The network, with freshly initialised weights on the current default device."""

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The repeated blocks, for FSDP2, compile and offload."""

    def to_json(self, config: Any) -> dict[str, Any]: ...

    def from_json(self, told: Mapping[str, Any]) -> Any: ...


class Slots(Protocol):
    """What a family takes in addition to its model's own file; `registry.SLOTS` names it."""

    names: tuple[str, ...]
    """Of its slots; one that takes several files has a name behind a point (``controlnet.depth``)."""

    def open(self, config: Any, slot: str, source: Source) -> Found:
        """The config with this in it; BadRequest for what does not belong there, saying what it is."""

    def convert(self, config: Any, slot: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its tensors under the network's own names, over those of the model's file."""


def slots_of(family: Family) -> Slots:
    """What a family takes in addition to its model's own file. Raises BadRequest for one that takes nothing."""
    if family.name not in registry.SLOTS:
        raise BadRequest(f"{family.name} takes nothing in addition to its own file")
    return registry.resolve(registry.SLOTS[family.name])
