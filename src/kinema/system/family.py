"""The protocols of a model family: what each folder under ``families/`` implements.

`Family` builds the network and groups three parts: `Sampling` (how clips are generated), `Checkpoints` (which weight
files the family reads) and `Training`. Every method receives the family's own frozen config dataclass, typed ``Any``
here. A class that inherits from a protocol also inherits the default of each method that has one.

Shapes: pixels and latents are BCTHW; pixels are in [-1, 1].
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from kinema.canvas import Canvas
from kinema.checkpoints.lora_use import LoraFile
from kinema.diffusion.guidance import Guidance
from kinema.diffusion.overwrite import KnownRegion
from kinema.diffusion.parameterise import Denoiser, Parameterisation
from kinema.diffusion.schedules import NoiseLevel, Schedule, Spacing
from kinema.events import OnEvent
from kinema.grid import Lattice
from kinema.schema import PromptSyntax, Request
from kinema.system.files import Checkpoints
from kinema.system.opened import OpenedModel
from kinema.system.training import Training
from kinema.vae.latent_rgb import LatentRGB


@dataclass(frozen=True)
class Process:
    """The diffusion process: a noise schedule and the parameterisation of the network's prediction."""

    schedule: Schedule
    parameterisation: Parameterisation


class Series(Protocol):
    """How options and prompt files of a family make a series: clips that follow each other, a clip for each prompt."""

    def settled(self, request: Request) -> Request:
        """Return the request with the fields that the family's options imply (``frames`` for a number of loops).

        Called before defaults are filled in, and again for a settled request, which it must not change.
        """

    def blocks(self, request: Request) -> tuple[int, int] | None:
        """Return the frames of a block and how many of them it shares with the one before, where options say so.

        None: blocks of `Lattice.max_frames`, for clips that are longer.
        """

    def read_prompts(self, path: Path) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Return (prompt, options of ``extra``) for each clip of a file of prompts in the family's own format."""


@dataclass(frozen=True)
class Prompts:
    """How a model reads prompts with weights and schedules.

    ``settled(request, loras, on_event)`` returns the request with the files that its prompts name in place of folders,
    and with what they name in the active LoRAs; it must not change a settled request.
    """

    syntaxes: tuple[PromptSyntax, ...]
    """The first is the default."""
    settled: Callable[[Request, Sequence[LoraFile], OnEvent], Request]
    options: tuple[str, ...] = ()
    """Keys of ``Request.extra`` that name files for prompts; an image stage takes them from the request of the clip."""


@dataclass(frozen=True)
class Defaults:
    """A model's values for request fields left at None (size, sampler, guidance), and its capabilities."""

    frames: int
    height: int
    width: int
    fps: float = 8.0
    steps: int = 50
    sampler: str = "ddim"
    spacing: Spacing = "uniform"
    karras: bool = False
    """Whether steps are spaced as in EDM between the ends of ``spacing``, unless the request sets a spacing."""
    guidance: float = 1.0
    guidance_end: float | None = None
    """Guidance scale of the last frame, for requests that set neither guidance nor guidance_end; None: constant."""
    guidance_interval: tuple[float, float] | None = None
    """Log-SNR range in which guidance is applied; None: everywhere."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Keyword options of the default sampler (gamma, delta, eta…)."""
    takes_prompt: bool = True
    """Whether the model is conditioned on text; otherwise no prompt is required."""
    threshold: float | None = None
    """Limit of static thresholding of the guided x0; None: no thresholding."""
    enlarges: bool = False
    """Whether the model can be a super-resolution stage, for another model's clip."""
    takes_small: bool = False
    """Whether the network takes the small clip as input; otherwise the clip is guided by it in pixel space."""
    windows: tuple[int, int] | None = None
    """Window and overlap, in frames, for clips longer than the model; their results are averaged with equal weights.

    None: such clips are generated block by block, unless the request sets a window.
    """
    series: Series | None = None
    """Loops and prompt files, for models that have them."""
    prompts: Prompts | None = None
    """None: prompts are plain text."""
    prompt_spans: bool = False
    """Whether each frame is conditioned on its own prompt; otherwise prompts change per window or block of frames."""
    clean_frames: bool = False
    """Whether the network takes conditioning frames clean, at a noise level of their own (`CleanFrames`)."""
    attention_windows: bool = False
    """Whether temporal attention can run in windows (``window_in="attention"``)."""
    fits_float16: bool = True
    """Whether all activations stay within float16's range; otherwise bfloat16 or float32 is used."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Options of the family (``extra``) that this model supports: a line of help for each, by name."""
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Named sizes, (height, width), for ``Request.size``."""


@dataclass(frozen=True)
class Conditions:
    """Conditioning of each guidance branch (`Sampling.guidance`), in a form that only the family interprets."""

    branches: Mapping[str, Any]
    """By name, or `OverSteps` of several. One object under several names is computed once (`Guidance.merged`)."""
    given: tuple[Tensor, Tensor] | None = None
    """Latents B×c×T×h×w that the finished clip has where their mask B×1×T×h×w is 1: given frames, which a network that
    is conditioned on them only comes close to, decode as they were encoded."""
    regions: tuple[KnownRegion, ...] | None = None
    """Latent regions that the family holds in the sampler's state in its own way. None: those of the canvas."""


@dataclass(frozen=True, eq=False)
class OverSteps:
    """One branch's conditioning that changes during sampling: ``conditions[i]`` from the step ``starts[i]`` on.

    ``levels`` are the noise levels of the steps, so that passes of fewer steps change at the same noise.
    """

    conditions: Sequence[Any]
    starts: Sequence[int]
    """Indices of steps, increasing from 0."""
    levels: NoiseLevel

    def denoiser(self, make: Callable[[Any], Denoiser]) -> Denoiser:
        """Return the denoiser that uses ``make(condition)`` for each condition; an object given twice has one."""
        denoisers = {id(condition): make(condition) for condition in self.conditions}
        # Noise levels recomputed by a solver differ in their last digits.
        log_snrs = [float(self.levels.log_snr[start]) - 1e-4 for start in self.starts]

        def denoise(z_BCTHW: Tensor, level: NoiseLevel) -> Tensor:
            sampled = level if level.state is None else level.state
            number = bisect_right(log_snrs, float(sampled.log_snr.min())) - 1
            return denoisers[id(self.conditions[max(number, 0)])](z_BCTHW, level)

        return denoise


DECODING = {"chunk": "decode_chunk", "overlap": "decode_overlap", "tile": "decode_tile"}
"""Option of `Codec.decode` to its key in `Request.extra`."""


def decode_options(request: Request) -> dict[str, int]:
    """Return the request's decoding options as keyword arguments of `Codec.decode`."""
    return {short: request.extra[long] for short, long in DECODING.items() if long in request.extra}


class Codec(Protocol):
    """Encodes pixels to latents and decodes them; the identity for pixel-space models."""

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """Encode pixels in [-1, 1] to scaled latents."""

    def decode(self, z_BCTHW: Tensor, chunk: int | None = None) -> Tensor:
        """Decode latents to pixels, ``chunk`` latent frames at a time; None lets the codec choose.

        A codec may take the other options of `DECODING` too; the family's `Sampling.check` rejects the rest. A codec
        whose `FrameGrid.pads` also takes ``frames``, the number of pixel frames to return; None: the most there can be.
        """

    def leaner(self, frames: int, height: int, width: int) -> Sequence[Mapping[str, int]]:
        """Return options of `decode` that need less memory for this latent size, least intrusive first."""

    def rgb(self, channels: int) -> LatentRGB | None:
        """Return the known linear map from ``channels`` latent channels to RGB, for previews.

        None: `kinema.previews` fits one.
        """


class Sampling(Protocol):
    """How a family generates clips.

    For each request the package calls `check` (before weights are loaded), `encode_prompt` once per clip, `condition`
    once per block of frames, and `denoiser` for each guidance branch and window. The package does the rest: schedules,
    samplers, guidance, windows and known regions.
    """

    def lattice(self, config: Any) -> Lattice:
        """Return the grid of allowed clip sizes and its map from pixel shape to latent shape."""

    def defaults(self, config: Any) -> Defaults:
        """Return the model's native size, recommended sampling and capabilities."""

    def process(self, config: Any, request: Request) -> Process:
        """Return the diffusion process of a settled request (a flow's shift may depend on its shape and ``extra``)."""

    def codec(self, config: Any, model: nn.Module) -> Codec:
        """Return the codec of this network, or an identity codec for a pixel-space model."""

    def honours(self, config: Any, kind: str) -> tuple[str, ...]:
        """Return the ways this model can condition on a canvas of this kind (`Canvas.kind`), best first.

        The ways are "native" (the network takes the known region as conditioning), "continuation" (start from the last
        given frame), "reconstruction" (reconstruction guidance) and "replacement" (overwrite the sampler's state). An
        empty tuple rejects the request.
        """

    def check(self, config: Any, request: Request) -> None:
        """Raise BadRequest for options that this model does not support, including unknown keys of ``extra``.

        Called before weights are loaded.
        """

    def files(self, request: Request) -> tuple[str, ...]:  # noqa: ARG002
        """Return the files and folders named in ``extra``; the recipe records their hashes."""
        return ()

    def encode_prompt(self, system: OpenedModel, request: Request, on_event: OnEvent) -> Any:
        """Encode the request's prompts with the family's text encoders.

        Called once per clip, however many blocks of frames it has.
        """

    def condition(
        self, system: OpenedModel, text: Any, request: Request, canvas: Canvas, on_event: OnEvent
    ) -> Conditions:
        """Return the conditioning of each branch from text, images and scalars.

        ``text`` is the result of `encode_prompt`; ``request`` and ``canvas`` describe one block of frames. Batch items
        must not influence each other.
        """

    def guidance(self, config: Any, request: Request) -> Guidance | None:  # noqa: ARG002
        """Return the guidance branches and their scales for the request's number of frames.

        None: classifier-free guidance of "positive" over "negative" with the request's scales, interpolated over the
        whole clip.
        """
        return None

    def join(self, conditions: Sequence[Any]) -> Any | None:
        """Batch one branch's conditioning of several clips whose requests differ only in prompt, seed and canvas, or
        several branches' conditioning of one clip.

        Return None if they cannot share a batch; they are then denoised one after another.
        """

    def denoiser(self, system: OpenedModel, condition: Any, frames: Sequence[int] | None) -> Denoiser:
        """Return ``denoise(z_BCTHW, level) -> x0_BCTHW`` for one branch's conditioning.

        ``frames`` are the latent frame indices that z holds; None means all.
        """


class Family(Protocol):
    """One folder under ``families/``: networks, and how they are sampled, loaded and trained."""

    name: str
    sampling: Sampling
    checkpoints: Checkpoints
    training: Training

    @property
    def presets(self) -> Mapping[str, Any]:
        """Configs by name; ``tiny`` is required and generates a clip on a CPU in about a second."""

    def build(self, config: Any) -> nn.Module:
        """Build the network with freshly initialised weights on the current default device."""

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """Return the repeated network blocks: the units of FSDP2, compilation and offloading."""

    def to_json(self, config: Any) -> dict[str, Any]:
        """Return the config as JSON data, as stored in weight files."""

    def from_json(self, data: Mapping[str, Any]) -> Any:
        """Parse what `to_json` returned. Raises BadRequest for invalid data."""
