"""What a folder under ``families/`` provides, and what it hands to the rest of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kinema.canvas import Canvas
from kinema.diffusion.guidance import Guidance
from kinema.diffusion.parameterise import Denoiser, Parameterisation
from kinema.diffusion.schedules import NoiseLevel, Schedule, Spacing
from kinema.grid import Lattice
from kinema.schema import OnEvent, Request, Shape
from kinema.system.files import Checkpoints
from kinema.system.training import Training
from kinema.system.weights import Weights
from kinema.vae.latent_rgb import LatentRGB


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
    enlarges: bool = False
    """Whether it enlarges the clip of another model, by guidance in pixels (super-resolution)."""
    prompt_spans: bool = False
    """Whether each frame is conditioned on its own prompt; else prompts change with windows or blocks."""
    clean_frames: bool = False
    """Whether its network sees frames that are held clean, at a level of their own (`CleanFrames`)."""
    attention_windows: bool = False
    """Whether its attention over time works in windows where a request asks for that (``window_in``)."""
    fits_float16: bool = True
    """Whether all that it computes stays within float16's range; where it does not, bfloat16 or float32 is used."""


@dataclass(frozen=True)
class Conditions:
    """A family's own conditioning of each branch that its guidance names (`Sampling.guidance`)."""

    branches: Mapping[str, Any]
    """By name. One object under several names is computed once (`Guidance.merged`)."""
    given: tuple[Tensor, Tensor] | None = None
    """Latents B×c×T×h×w that the finished clip has where their mask B×1×T×h×w is 1: given frames, which a network that
    is conditioned on them only comes close to, decode as they were encoded."""


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

    def rgb(self, channels: int) -> LatentRGB | None:
        """The known linear map from latents with so many channels to colours; None: `kinema.previews` fits one."""


class Opened(Protocol):
    """What a family sees of an opened model (`kinema.system.System`)."""

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> Any: ...

    @property
    def weights(self) -> Weights: ...

    @property
    def model(self) -> nn.Module:
        """The network on its device, filled on first use."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def offline(self) -> bool:
        """Whether text encoders and vocabularies are looked for on this machine alone."""

    def levels(self, request: Request) -> NoiseLevel:
        """Noise levels from the noise end to clean, ``steps + 1`` of them."""

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] to latents, on the model's device."""


class Sampling(Protocol):
    """How a family's clips are made. ``config`` is the family's own frozen dataclass. What a family does not say, it
    inherits.
    """

    def lattice(self, config: Any) -> Lattice: ...

    def defaults(self, config: Any) -> Defaults: ...

    def process(self, config: Any, shape: Shape) -> Process:
        """For clips of this pixel shape: a flow's shift may depend on it."""

    def codec(self, config: Any, model: nn.Module) -> Codec: ...

    def honours(self, config: Any, kind: str) -> tuple[str, ...]:
        """Ways to hold a canvas of this kind (`Canvas.kind`), best first, out of "native",
        "continuation" (going on from the last given frame), "reconstruction", "replacement"; empty when the family
        cannot, which refuses the request.
        """

    def check(self, config: Any, request: Request) -> None:
        """Refuse, by name, what the family cannot do (before weights are loaded); also unknown ``extra``."""

    def files(self, request: Request) -> tuple[str, ...]:  # noqa: ARG002
        """The files and folders that the family's own options (``extra``) name, for the recipe to tell their hashes."""
        return ()

    def encode_prompt(self, system: Opened, request: Request, on_event: OnEvent) -> Any:
        """What the family's text encoders make of the request's prompts: once a clip, however many blocks it has."""

    def condition(self, system: Opened, words: Any, request: Request, canvas: Canvas, on_event: OnEvent) -> Conditions:
        """Conditions of each branch, from ``words`` (as `encode_prompt` made them), pictures and scalars.

        ``request`` and ``canvas`` are of one block, and batch items are independent.
        """

    def guidance(self, config: Any, request: Request) -> Guidance | None:  # noqa: ARG002
        """Which branches there are and how they are put together for this many frames; None is classifier-free
        guidance of "positive" over "negative" by the request, its scale changing over the whole clip."""
        return None

    def join(self, conditions: Sequence[Any]) -> Any | None:
        """Conditions of one branch, of clips told alike but for prompt, seed and canvas, as that of a batch of them.

        None where no batch can hold what differs; those clips are denoised one after the other.
        """

    def denoiser(self, system: Opened, condition: Any, frames: Sequence[int] | None) -> Denoiser:
        """``denoise(z_BCTHW, level) -> x0_BCTHW`` for these latent frames (``None``: all of them)."""


class Family(Protocol):
    """What one folder under ``families/`` provides: networks, and how they are sampled, filed and trained."""

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
