"""An opened model: a family's network with its weights, diffusion process and codec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kinema import registry
from kinema.cancel import checkpoint
from kinema.canvas import Canvas
from kinema.checkpoints import files
from kinema.checkpoints.lora_use import LoraFile, Loras, read_loras
from kinema.checkpoints.settings import naming_faults
from kinema.diffusion.guidance import Guidance, classifier_free
from kinema.diffusion.noise import Noise
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.schedules import NoiseLevel, check_spacing, spaced
from kinema.events import OnEvent, ignore
from kinema.grid import Lattice
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest, Request, Shape
from kinema.system.blocks import compile_blocks
from kinema.system.family import Codec, Conditions, Family, OverSteps, Process, decode_options
from kinema.system.precision import WeightPolicy
from kinema.system.runtime import Runtime
from kinema.system.weights import Weights


@dataclass(frozen=True)
class MemoryOptions:
    """Memory limit and offloading set by the user; `kinema.memory.plan` chooses what is left open."""

    offload: Literal["auto", "none", "model", "block", "sequential"] = "auto"
    budget: int | None = None
    """Bytes on the device; None: most of the free memory."""
    tokens: int | None = None
    """Tokens that feed-forward layers process at a time."""


@dataclass(frozen=True, eq=False)
class System:
    """One opened model."""

    name: str
    family: Family
    config: Any
    weights: Weights
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    policy: WeightPolicy = field(default_factory=WeightPolicy)
    """Precision of weights and computation."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Config fields replaced at opening; part of the recipe."""
    notes: tuple[str, ...] = ()
    """Assumptions made at opening, reported with every request."""
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    offline: bool = False
    """Whether text encoders and vocabularies must be found on this machine, without downloads."""
    compiled: bool = False
    """Whether the network's blocks are compiled on their first run (`kinema.system.blocks`)."""
    runtime: Runtime = field(default_factory=Runtime, init=False, repr=False)
    """All mutable state; a copy of a system gets its own."""

    @cached_property
    def parameters(self) -> int:
        """Number of parameters. Counted once: building a small network takes as long as a step of it."""
        return sum(p.numel() for p in self._on_meta().parameters())

    @property
    def dtype(self) -> torch.dtype:
        """The precision the network computes in."""
        return self.policy.computed

    @property
    def model(self) -> nn.Module:
        """The network on its device; weights are loaded on first access."""
        return self.runtime.network(self._placed)

    def _placed(self) -> nn.Module:
        model = self.filled()
        checkpoint()
        return self.policy.placed(model, self.device)

    @property
    def weights_hash(self) -> str:
        """`Weights.hash`, possibly computed in the background."""
        return self.runtime.hash(lambda: self.weights.hash)

    def begin_hash(self) -> None:
        """Start hashing the weight files in the background. Raises BadRequest if files have disappeared."""
        self.weights.check_there()
        self.runtime.begin_hash(lambda: self.weights.hash)

    def filled(self) -> nn.Module:
        """Return the network in eval mode: built on the meta device, weights assigned from the file's memory map."""
        if self.weights.path is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.weights.seed)
                model = self.family.build(self.config)
            tensors = dict(model.state_dict()) if self.weights.added else {}
        else:
            model = self._on_meta()
            tensors = self.weights.source.tensors(self.weights.parts, self.policy.precision)
            checkpoint()
            if not self.weights.own:
                with naming_faults(str(self.weights.path)):
                    tensors = self.family.checkpoints.convert(self.config, tensors)
        tensors |= self.additions()
        checkpoint()
        if tensors:
            files.fill(model, tensors, where=str(self.weights.path))
        if self.compiled:
            compile_blocks(self.family.blocks(model))
        return model.eval().requires_grad_(False)

    def additions(self) -> dict[str, Tensor]:
        """Return the add-ons' tensors under the network's names."""
        tensors: dict[str, Tensor] = {}
        slots = self.family.checkpoints.slots
        for added in self.weights.added:
            if added.outside:
                continue
            checkpoint()
            assert slots is not None  # checked when the model was opened
            with naming_faults(str(added.source.path)):
                own = added.source.tensors(added.parts, self.policy.precision)
                tensors |= slots.convert(self.config, added.slot, own)
        return tensors

    def _on_meta(self) -> nn.Module:
        """The network on the meta device: parameter names and shapes without storage."""
        with on_meta():
            return self.family.build(self.config)

    def use_loras(self, loras: Mapping[str | Path, float]) -> None:
        """Activate exactly these LoRA files, with their weights; an empty mapping restores the network bit for bit.

        Raises BadRequest for files that are not LoRAs or belong to another model, before any weight changes.
        """
        self.runtime.own_loras = self.read_loras(loras)
        self.runtime.use_loras(None)

    def read_loras(self, loras: Mapping[Any, float]) -> tuple[LoraFile, ...]:
        """Read LoRA files and check them against this network, without activating them. Raises BadRequest."""
        if not loras:
            return ()
        shapes = {name: p.shape for name, p in self._on_meta().named_parameters()}
        if any(not str(name).strip() for name in loras):
            raise BadRequest("the name of a LoRA is empty; expected a file")
        missing = [name for name in loras if not Path(registry.add_on_file(name)).exists()]
        if missing:
            raise BadRequest(f"there is no LoRA file {missing[0]}{registry.similar_add_ons(missing[0], 'lora')}")
        loras = {registry.add_on_file(name): weight for name, weight in loras.items()}
        return read_loras(loras, shapes, self.family.checkpoints.lora_aliases(self.config), self.name)

    @property
    def loras(self) -> Loras:
        """The active LoRAs."""
        return self.runtime.loras

    @property
    def lattice(self) -> Lattice:
        return self.family.sampling.lattice(self.config)

    def process(self, request: Request) -> Process:
        """The diffusion process of a resolved request (a flow's shift may depend on the shape)."""
        return self.family.sampling.process(self.config, request)

    @property
    def codec(self) -> Codec:
        with self.runtime.lock:
            if self.runtime.codec is None:
                self.runtime.codec = self.family.sampling.codec(self.config, self.model)
            return self.runtime.codec

    def latent_shape(self, request: Request) -> Shape:
        return self.lattice.latent(request.shape)

    def guidance(self, request: Request) -> Guidance:
        """The guidance branches of a clip and their scales; a scale that changes is given per latent frame."""
        guidance = self.family.sampling.guidance(self.config, request)
        if guidance is not None:
            return guidance
        scale: float | Tensor = float(request.guidance or 0.0)
        if request.guidance_end is not None and request.guidance_end != scale:
            scale = torch.linspace(scale, request.guidance_end, self.latent_shape(request).frames)
        return classifier_free(scale, request.guidance_rescale, request.guidance_interval)

    def encode_prompt(self, request: Request, on_event: OnEvent = ignore) -> Any:
        return self.family.sampling.encode_prompt(self, request, on_event)

    def condition(self, text: Any, request: Request, canvas: Canvas, on_event: OnEvent = ignore) -> Conditions:
        return self.family.sampling.condition(self, text, request, canvas, on_event)

    def denoiser(self, condition: Any, frames: Sequence[int] | None = None) -> Denoiser:
        if isinstance(condition, OverSteps):
            return condition.denoiser(lambda each: self.denoiser(each, frames))
        return self.family.sampling.denoiser(self, condition, frames)

    def join_branches(self, conditions: Sequence[Any]) -> Any | None:
        """Batch the conditioning of several guidance branches of one clip; None if they cannot share a batch."""
        if any(isinstance(condition, OverSteps) for condition in conditions):
            return None
        return self.family.sampling.join(conditions)

    def prior(self, request: Request, noise_BCTHW: Tensor) -> Tensor:
        """Scale standard normal noise to the noise end of the schedule."""
        return noise_BCTHW * self.process(request).schedule.prior_std

    def noise(self, request: Request) -> Noise:
        """One generator per clip, so that clip i of a batch equals a single run with seed + i."""
        if request.seed is None:
            raise RuntimeError("the request has no seed; resolve it first")
        return Noise([request.seed + i for i in range(request.clips)])

    def levels(self, request: Request) -> NoiseLevel:
        """The ``steps + 1`` noise levels of a run, noisiest first. Raises BadRequest for a spacing it does not have."""
        defaults, schedule = self.family.sampling.defaults(self.config), self.process(request).schedule
        if request.spacing is not None:
            check_spacing(schedule, request.spacing)
        spacing, karras = request.spacing or defaults.spacing, request.spacing is None and defaults.karras
        return spaced(schedule, request.steps or defaults.steps, spacing, karras=request.karras or karras)

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        return self.codec.encode(video_BCTHW.to(self.device, self.dtype))

    def decode(self, z_BCTHW: Tensor, request: Request | None = None) -> Tensor:
        """Decode latents to pixels in [-1, 1] on the CPU, with the request's decoding options."""
        options: dict[str, Any] = decode_options(request) if request else {}
        if request and self.lattice.grid.time.pads:
            options["frames"] = request.shape.frames
        return self.codec.decode(z_BCTHW.to(self.dtype), **options).float().clamp(-1, 1).cpu()


def with_model(system: System, model: nn.Module) -> System:
    """Copy a system around a network already in memory (for samples during training)."""
    copy = replace(system)
    copy.runtime.model = model
    return copy
