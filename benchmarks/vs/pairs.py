"""A family's side of the comparison with diffusers: the same random weights, and equivalent computations.

Reduced configurations are realistic: they have every kind of block, and a guided step is about 200 GFLOP. The full
ones are the published ones. Networks that a measurement does not use are small in it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kinema.nn.ldm_unet import Attention, channels_last
from kinema.system import System, WeightPolicy, Weights, policy_for, with_model

FRAMES, CELLS = 8, 32
STEPS, AT = 20, 8
"""Index of the timed step, and the number of steps."""

Width = Literal["reduced", "full"]
Goals = Mapping[tuple[str, str], float]
"""Measurements of a family by precision ("" if irrelevant), with target ratios."""
FULL: Goals = {
    ("step", "fp32"): 1.05,
    ("step", "bf16"): 1.15,
    ("decode", "fp32"): 1.5,
    ("decode", "bf16"): 1.0,
    ("memory", "fp32"): 1 / 0.6,
    ("memory", "bf16"): 1 / 0.6,
}
"""Of a network of the published width; the limit of decoding in bf16 is measured, not known."""


@dataclass(frozen=True)
class Work:
    """A computation of both sides: calls that return equal results."""

    theirs: Callable[[], Tensor]
    ours: Callable[[], Tensor]
    same: bool = True
    """Whether both return the same numbers; not where ``theirs`` is only a part of the work, timed alone."""
    weights: tuple[nn.Module, ...] = ()
    """The networks that run, by whose weights a recording tells linear layers from other products."""


Both = tuple[System, dict[str, nn.Module]]
"""Kinema's system, and diffusers' networks with the same weights."""


class Comparison:
    """One family beside other code. A method named as the first part of a goal gives the works of that goal."""

    name: str
    about: str
    goals: Goals
    """Measurements of the reduced configuration."""
    full: Goals = {}
    """Measurements of the published width."""
    upstream: Path | None = None
    """A checkout of the original code, for a family that is compared with it."""

    def __init__(self, width: Width = "reduced") -> None:
        self.width: Width = width

    @property
    def measured(self) -> Goals:
        return self.full if self.width == "full" else self.goals

    def gaps(self) -> list[str]:
        """What is not measured, besides what the options leave out."""
        return []


class Pair(Comparison, ABC):
    """One family beside diffusers' pipeline of it. ``dtype`` is the precision both are asked for."""

    family: Any
    configs: Mapping[str, Any]
    """By width, and by width and measurement ("full decode") where another configuration is measured."""

    def __init__(self, width: Width = "reduced", frames: int | None = None, what: str = "step") -> None:
        super().__init__(width)
        self.frames = frames
        config = self.configs.get(f"{width} {what}", self.configs[width])
        self.config = config if frames is None else replace(config, frames=frames)

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """Diffusers' networks by their names in a pipeline's folder."""

    @abstractmethod
    def one_step(self, system: System, unet: nn.Module, dtype: torch.dtype) -> Work:
        """A guided sampling step, as each side's pipeline does it."""

    @abstractmethod
    def decoded(self, vae: nn.Module, z_NCHW: Tensor) -> Tensor:
        """The frames N×3×H×W that diffusers' pipeline decodes from these latents."""

    @abstractmethod
    def folder(self, path: Path) -> None:
        """Write a diffusers folder of about 500 MB for the cold start."""

    @abstractmethod
    def cold(self, side: str, folder: Path) -> str:
        """A Python program that loads the folder and takes one step, for a cold start."""

    def own_name(self, network: str, key: str) -> str:
        """Kinema's name for a weight of diffusers."""
        return f"{network}.{key}"

    @property
    def cells(self) -> int:
        return self.config.height // self.config.stride

    def parts(self, dtype: torch.dtype) -> Both:
        """Both sides, which share the memory of every weight that has the same layout in both."""
        torch.manual_seed(0)
        with uninitialised() if self.width == "full" else nullcontext():
            networks = self.networks()
        state = {}
        for name, module in networks.items():
            (drawn if self.width == "full" else randomise)(module).to(dtype)
            found = module.state_dict().items()
            state |= {self.own_name(name, key): value for key, value in found if "position_ids" not in key}
        return filled(self.family, self.config, state, dtype), networks

    def step(self, dtype: torch.dtype) -> dict[str, Work]:
        """A guided step, by variant name."""
        system, networks = self.parts(dtype)
        return variants("step", system, dtype, lambda one: self.one_step(one, networks["unet"], dtype))

    def compiled(self, dtype: torch.dtype) -> dict[str, Work]:
        """A guided step with Kinema's blocks compiled and diffusers eager."""
        system, networks = self.parts(dtype)
        work = self.one_step(with_compiled_blocks(system), networks["unet"], dtype)
        return {"step, ours compiled, theirs eager": work}

    def decode(self, dtype: torch.dtype) -> dict[str, Work]:
        """Decoding of one clip."""
        return type(self)(self.width, self.frames, "decode")._decode(dtype)

    def _decode(self, dtype: torch.dtype) -> dict[str, Work]:
        system, networks = self.parts(dtype)
        z = normals(1)(1, 4, self.config.frames, self.cells, self.cells)
        folded = (z / self.config.latent_scale).transpose(1, 2).flatten(0, 1).to(dtype)

        def diffusers_decode() -> Tensor:
            return self.decoded(networks["vae"], folded).unflatten(0, (1, -1)).transpose(1, 2)

        def both(one: System) -> Work:
            run = lambda: one.codec.decode(z.to(one.dtype))  # noqa: E731
            return Work(diffusers_decode, run, weights=(networks["vae"], one.model))

        return variants("decode", system, dtype, both)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Randomise all weights, so that norms, biases and blend factors matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * (0.1 / max(1, p.ndim)))
    return module.eval().requires_grad_(False)


@contextmanager
def uninitialised() -> Iterator[None]:
    """Build networks without initial values of their large layers, which are drawn afterwards."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.Embedding)
    own = [(kind, vars(kind).get("reset_parameters")) for kind in kinds]
    for kind in kinds:
        kind.reset_parameters = lambda _: None
    try:
        yield
    finally:
        for kind, reset in own:
            if reset is None:
                del kind.reset_parameters
            else:
                kind.reset_parameters = reset


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all weights so that every layer of any width keeps the variance of its input, as trained layers nearly do.

    Attention logits then have a deviation of about 1. Scales of norms are drawn around their first values.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(noise.div_(math.sqrt(p[0].numel())))
            else:
                p.copy_(noise.mul_(0.1) if name.endswith("bias") else p + noise.mul_(0.1))
    return module.eval().requires_grad_(False)


def filled(family: Any, config: Any, state: dict[str, Tensor], dtype: torch.dtype) -> System:
    """Kinema's system with these weights, as `kinema.load` builds it.

    If the CPU lacks native support for the precision, weights are only rounded to it.
    """
    with torch.device("meta"):
        model = family.build(config)
    model.load_state_dict(state, assign=True)
    policy = policy_for(dtype, torch.device("cpu"))
    model = policy.placed(model, torch.device("cpu")).eval().requires_grad_(False)
    channels_last(model)
    return with_model(System(family.name, family, config, Weights(), policy=policy), model)


def variants(name: str, system: System, dtype: torch.dtype, work: Callable[[System], Work]) -> dict[str, Work]:
    """What `kinema.load` would run and, if it computes in another precision, both in the requested one."""
    found = {name: work(system)}
    if system.dtype != dtype:
        exact = with_model(replace(system, policy=WeightPolicy(dtype, dtype)), deepcopy(system.model).to(dtype))
        found[f"{name}, both in {str(dtype).removeprefix('torch.')} arithmetic"] = work(exact)
    return found


def with_compiled_blocks(system: System) -> System:
    """Compile each transformer block with frozen weights; residual blocks get slower on a CPU (docs/notes/0006).

    Compiler settings made in Python apply to one thread only, and each guidance branch has its own.
    """
    if not import_module("torch._inductor.config").freezing:
        raise RuntimeError("weights are not frozen: set TORCHINDUCTOR_FREEZING=1 before importing torch._dynamo")
    for block in system.family.blocks(system.model):
        if any(isinstance(part, Attention) for part in block.modules()):
            block.compile(dynamic=False, isolate_recompiles=True, recompile_limit=64)
    return system


def normals(seed: int) -> Callable[..., Tensor]:
    """Standard normal tensors of any shape, from one seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator)
