"""A system: one family's network with its weights, process and codec, behind one set of calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kinema import registry
from kinema.cancel import checkpoint
from kinema.canvas import Canvas
from kinema.checkpoints import files
from kinema.checkpoints.lora_use import LoraFile, Loras, read_loras
from kinema.checkpoints.settings import readable
from kinema.diffusion.guidance import Guidance, classifier_free
from kinema.diffusion.noise import Noise
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.schedules import NoiseLevel, spaced
from kinema.grid import Lattice
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest, OnEvent, Request, Shape, ignore
from kinema.system.blocks import compile_blocks
from kinema.system.family import Codec, Conditions, Family, Process, decoding_of
from kinema.system.precision import WeightPolicy
from kinema.system.runtime import Runtime
from kinema.system.weights import Weights


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
    policy: WeightPolicy = field(default_factory=WeightPolicy)
    """In which precision it computes, and how its weights are held."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """What of the config was replaced at opening: part of the recipe."""
    notes: tuple[str, ...] = ()
    """What was decided at opening, to be said."""
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    offline: bool = False
    """Whether what is still to be found (text encoders, vocabularies) is looked for on this machine alone."""
    compiled: bool = False
    """Whether the network's blocks are compiled when they first run (`kinema.system.blocks`)."""
    runtime: Runtime = field(default_factory=Runtime, init=False, repr=False)
    """All that changes; a copy of a system has its own."""

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.policy.computed

    @property
    def model(self) -> nn.Module:
        """The network on its device, filled on first use."""
        return self.runtime.network(self._placed)

    def _placed(self) -> nn.Module:
        model = self.filled()
        checkpoint()
        return self.policy.placed(model, self.device)

    @property
    def weights_hash(self) -> str:
        """`Weights.hash`, which may have been begun beside the work."""
        return self.runtime.hash(lambda: self.weights.hash)

    def begin_hash(self) -> None:
        """Hash the weights' files from now on. Raises BadRequest where files are gone."""
        self.weights.check_there()
        self.runtime.begin_hash(lambda: self.weights.hash)

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
            checkpoint()
            if not self.weights.own:
                with readable(str(self.weights.path)):
                    tensors = self.family.checkpoints.convert(self.config, tensors)
        tensors |= self.additions()
        checkpoint()
        if tensors:
            files.fill(model, tensors, where=str(self.weights.path))
        if self.compiled:
            compile_blocks(self.family.blocks(model))
        return model.eval().requires_grad_(False)

    def additions(self) -> dict[str, Tensor]:
        """The tensors of what was added to the model's own file, under the network's names."""
        made: dict[str, Tensor] = {}
        slots = self.family.checkpoints.slots
        for added in self.weights.added:
            if added.outside:
                continue
            checkpoint()
            assert slots is not None  # there were when the model was opened
            with readable(str(added.source.path)):
                made |= slots.convert(self.config, added.slot, added.source.tensors(added.parts))
        return made

    def _hollow(self) -> nn.Module:
        """The network without numbers: its names and shapes."""
        with on_meta():
            return self.family.build(self.config)

    def use_loras(self, loras: Mapping[str | Path, float]) -> None:
        """Have exactly these LoRA files in the network, each with its weight; with none it is as it was, to the bit.

        Raises BadRequest for a file that is no LoRA or one of another model, before any weight is touched or read.
        """
        self.runtime.own_loras = self.read_loras(loras)
        self.runtime.use_loras(None)

    def read_loras(self, loras: Mapping[Any, float]) -> tuple[LoraFile, ...]:
        """LoRA files, checked against this network; they are not in force yet. Raises BadRequest as `use_loras`."""
        if not loras:
            return ()
        shapes = {name: p.shape for name, p in self._hollow().named_parameters()}
        if any(not str(name).strip() for name in loras):
            raise BadRequest("the name of a LoRA is empty; expected a file")
        missing = [name for name in loras if not Path(registry.part(name)).exists()]
        if missing:
            raise BadRequest(f"there is no LoRA file {missing[0]}{registry.near_part(missing[0], 'lora')}")
        loras = {registry.part(name): weight for name, weight in loras.items()}
        return read_loras(loras, shapes, self.family.checkpoints.lora_aliases(self.config), self.name)

    @property
    def loras(self) -> Loras:
        """The LoRAs in force."""
        return self.runtime.loras

    @property
    def lattice(self) -> Lattice:
        return self.family.sampling.lattice(self.config)

    def process(self, request: Request) -> Process:
        """What it is for a settled request: a flow's shift may depend on the shape."""
        return self.family.sampling.process(self.config, request.shape)

    @property
    def codec(self) -> Codec:
        with self.runtime.lock:
            if self.runtime.codec is None:
                self.runtime.codec = self.family.sampling.codec(self.config, self.model)
            return self.runtime.codec

    def latent_shape(self, request: Request) -> Shape:
        return self.lattice.latent(request.shape)

    def guidance(self, request: Request) -> Guidance:
        """How the branches of a clip are put together; scales that change do so over its latent frames."""
        own = self.family.sampling.guidance(self.config, request)
        if own is not None:
            return own
        scale: float | Tensor = float(request.guidance or 0.0)
        if request.guidance_end is not None and request.guidance_end != scale:
            scale = torch.linspace(scale, request.guidance_end, self.latent_shape(request).frames)
        return classifier_free(scale, request.guidance_rescale, request.guidance_interval)

    def encode_prompt(self, request: Request, on_event: OnEvent = ignore) -> Any:
        return self.family.sampling.encode_prompt(self, request, on_event)

    def condition(self, words: Any, request: Request, canvas: Canvas, on_event: OnEvent = ignore) -> Conditions:
        return self.family.sampling.condition(self, words, request, canvas, on_event)

    def denoiser(self, condition: Any, frames: Sequence[int] | None = None) -> Denoiser:
        return self.family.sampling.denoiser(self, condition, frames)

    def prior(self, request: Request, noise_BCTHW: Tensor) -> Tensor:
        """Standard normal noise scaled to the noise end of the schedule."""
        return noise_BCTHW * self.process(request).schedule.prior_std

    def noise(self, request: Request) -> Noise:
        """One generator per clip, so that clip i of a batch equals the single run with seed + i."""
        if request.seed is None:
            raise RuntimeError("this request has no seed yet")
        return Noise([request.seed + i for i in range(request.clips)])

    def levels(self, request: Request) -> NoiseLevel:
        """Noise levels from the noise end to clean, ``steps + 1`` of them."""
        own = self.family.sampling.defaults(self.config)
        return spaced(self.process(request).schedule, request.steps or own.steps, own.spacing)

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        return self.codec.encode(video_BCTHW.to(self.device, self.dtype))

    def decode(self, z_BCTHW: Tensor, request: Request | None = None) -> Tensor:
        """Pixels in [-1, 1] on the CPU; a request may say in which parts to decode."""
        told: dict[str, Any] = decoding_of(request) if request else {}
        return self.codec.decode(z_BCTHW.to(self.dtype), **told).float().clamp(-1, 1).cpu()


def with_model(system: System, model: nn.Module) -> System:
    """The same system over a network already in memory (a training run looking at its own samples)."""
    looking = replace(system)
    looking.runtime.model = model
    return looking
