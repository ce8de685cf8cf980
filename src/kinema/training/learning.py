"""What of a network is trained: all that its family builds with gradients, a part of it by name, or a LoRA.

What a family offers beyond its recipe (stages, parts, layers for a LoRA) is its `kinema.system.Tuning`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kinema.checkpoints import files, lora_formats
from kinema.checkpoints.lora_formats import Adapter
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest
from kinema.system import System, with_model
from kinema.training import checkpoint, lora
from kinema.training.options import TrainOptions

KOHYA = "lora-kohya.safetensors"


@dataclass(frozen=True)
class LoraSize:
    """Rank and alpha of a LoRA, as ``--lora 16`` or ``--lora 16:8`` says them."""

    rank: int
    alpha: float

    @staticmethod
    def of(told: str) -> LoraSize:
        match = re.fullmatch(r"(\d+)(?::(\d+(?:\.\d+)?))?", told)
        if match is None or not 1 <= int(match[1]) <= 1024 or (match[2] and float(match[2]) == 0):
            raise BadRequest(f"lora is {told!r}; expected a rank from 1 to 1024, or rank:alpha such as 16:8")
        return LoraSize(int(match[1]), float(match[2] or match[1]))


def with_options(system: System, options: TrainOptions) -> System:
    """The system at the stage and the size that the options ask for.

    Raises BadRequest for a stage or a size that the family has not.
    """
    config, special = system.config, system.family.training.tuning
    if options.lora is not None:
        LoraSize.of(options.lora)
    if options.stage is not None:
        if special is None:
            raise BadRequest(f"{system.family.name} has no training stages; leave out stage")
        config = special.staged(config, options.stage)
    told = {name: value for name in ("frames", "height", "width") if (value := getattr(options, name)) is not None}
    try:
        config = replace(config, **told)
    except TypeError:
        raise BadRequest(f"{system.family.name} has sizes of its own; leave out {', '.join(told)}") from None
    lattice = system.family.sampling.lattice(config)
    for name in told.keys() & {"height", "width"}:
        if lattice.snap_side(told[name]) != told[name]:
            raise BadRequest(f"{name} is {told[name]}; expected a multiple of {lattice.side_multiple}")
    if config == system.config:
        return system
    staged = replace(system, config=config)
    if special is None or untrained(system):
        return staged
    return with_model(staged, special.grown(system.model, config, options.seed)) if _grows(system, staged) else staged


def untrained(system: System) -> bool:
    """Whether no file has weights of the model, so that a run begins with fresh ones."""
    return system.weights.path is None and not system.weights.added


def _grows(before: System, after: System) -> bool:
    """Whether the network of a stage has tensors that the one before has not."""
    with on_meta():
        there, here = (set(s.family.build(s.config).state_dict()) for s in (before, after))
    return bool(here - there)


def limit(system: System, model: nn.Module, options: TrainOptions) -> list[str]:
    """Freeze what the options leave out of training, add what they add; the names in the state dict of what is left.

    Buffers are among them: what moves in a forward pass belongs to a run as much as what an optimiser moves.
    Raises BadRequest for a part, or a LoRA, that the family does not have.
    """
    special = system.family.training.tuning
    if options.only is not None:
        _only(model, special.parts if special else {}, options.only, system.family.name)
    if options.lora is None:
        buffers = {name for name, _ in model.named_buffers()} & model.state_dict().keys()
        return [name for name, p in model.named_parameters() if p.requires_grad] + sorted(buffers)
    if special is None:
        raise BadRequest(f"{system.family.name} is trained whole; leave out lora")
    low, learnt = LoraSize.of(options.lora), {name for name, p in model.named_parameters() if p.requires_grad}

    def wanted(name: str) -> bool:
        return re.fullmatch(special.adapted, name) is not None and f"{name}.weight" in learnt

    try:
        names = lora.adapt(model, wanted, low.rank, low.alpha, torch.Generator().manual_seed(options.seed))
    except ValueError:
        raise BadRequest(f"no layer of {system.name} takes a LoRA with these options") from None
    return [f"{name}.{part}" for name in names for part in (lora.DOWN, lora.UP)]


def _only(model: nn.Module, parts: Mapping[str, str], wanted: str, family: str) -> None:
    if wanted not in parts:
        known = f"expected {' or '.join(parts)}" if parts else "it is trained whole"
        raise BadRequest(f"{family} has no part {wanted!r} to train alone; {known}")
    pattern = re.compile(parts[wanted])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and pattern.search(name) is not None)
    if not any(p.requires_grad for p in model.parameters()):
        raise BadRequest(f"nothing of this {family} model is left to train with only {wanted}")


# -------------------------------------------------------------------------------------- writing


def export(path: Path, shadow: Mapping[str, Tensor], model: nn.Module, options: TrainOptions, note: str) -> Path:
    """The averaged weights as users open them: the whole model, or the LoRA alone (in the layout of diffusers)."""
    if options.lora is None:
        return checkpoint.export(path, model.state_dict() | dict(shadow), note)
    lora_formats.write_lora(path, adapters(shadow, LoraSize.of(options.lora)), "diffusers")
    return path


def export_last(folder: Path, shadow: Mapping[str, Tensor], model: nn.Module, options: TrainOptions, note: str) -> Path:
    """``model.safetensors``, or ``lora.safetensors`` and the same in kohya's layout."""
    if options.lora is None:
        return export(folder / "model.safetensors", shadow, model, options, note)
    lora_formats.write_lora(folder / KOHYA, adapters(shadow, LoraSize.of(options.lora)), "kohya")
    return export(folder / "lora.safetensors", shadow, model, options, note)


def export_parts(folder: Path, shadow: Mapping[str, Tensor], system: System, options: TrainOptions) -> list[Path]:
    """What was trained, alone and as its authors' files hold it, where the family has such files; in half precision."""
    special, made = system.family.training.tuning, []
    if special is None:
        return []
    low = None if options.lora is None else adapters(shadow, LoraSize.of(options.lora))
    for name, tensors in special.files(system.config, shadow, low).items():
        made.append(folder / f"{name}.safetensors")
        halves = {key: tensor.half().contiguous() for key, tensor in tensors.items()}
        files.write_tensors(made[-1], halves, {"format": "pt"})
    return made


def adapters(tensors: Mapping[str, Tensor], low: LoraSize) -> dict[str, Adapter]:
    """A LoRA by module name, from the parameters of `training.lora`."""
    names = [name.removesuffix(f".{lora.DOWN}") for name in tensors if name.endswith(f".{lora.DOWN}")]
    return {n: Adapter(tensors[f"{n}.{lora.DOWN}"], tensors[f"{n}.{lora.UP}"], low.alpha) for n in names}
