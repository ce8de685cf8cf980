"""Trainable parameters: all that a family builds with gradients, a named part of them, or a LoRA.

A family's `kinema.system.Tuning` defines its training stages, its named parts and its layers for a LoRA.
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
    """Rank and alpha of a LoRA, from ``--lora 16`` or ``--lora 16:8``."""

    rank: int
    alpha: float

    @staticmethod
    def of(text: str) -> LoraSize:
        match = re.fullmatch(r"(\d+)(?::(\d+(?:\.\d+)?))?", text)
        if match is None or not 1 <= int(match[1]) <= 1024 or (match[2] and float(match[2]) == 0):
            raise BadRequest(f"lora is {text!r}; expected a rank from 1 to 1024, or rank:alpha such as 16:8")
        return LoraSize(int(match[1]), float(match[2] or match[1]))


def with_options(system: System, options: TrainOptions) -> System:
    """The system at the training stage and size of the options.

    Raises BadRequest for a training stage or a size that the family does not support.
    """
    config, tuning = system.config, system.family.training.tuning
    if options.lora is not None:
        LoraSize.of(options.lora)
    if options.stage is not None:
        if tuning is None:
            raise BadRequest(f"{system.family.name} has no training stages; leave out stage")
        config = tuning.staged(config, options.stage)
    sizes = {name: value for name in ("frames", "height", "width") if (value := getattr(options, name)) is not None}
    try:
        config = replace(config, **sizes)
    except TypeError:
        raise BadRequest(f"{system.family.name} has a fixed size; leave out {', '.join(sizes)}") from None
    lattice = system.family.sampling.lattice(config)
    for name in sizes.keys() & {"height", "width"}:
        if lattice.snap_side(sizes[name]) != sizes[name]:
            raise BadRequest(f"{name} is {sizes[name]}; expected a multiple of {lattice.side_multiple}")
    if config == system.config:
        return system
    staged = replace(system, config=config)
    if tuning is None or untrained(system):
        return staged
    return with_model(staged, tuning.grown(system.model, config, options.seed)) if _grows(system, staged) else staged


def untrained(system: System) -> bool:
    """Whether the model has no weight file, so a run starts from random weights."""
    return system.weights.untrained


def _grows(before: System, after: System) -> bool:
    """Whether the network of ``after`` has tensors that that of ``before`` lacks."""
    with on_meta():
        old, new = (set(s.family.build(s.config).state_dict()) for s in (before, after))
    return bool(new - old)


def select_trainable(system: System, model: nn.Module, options: TrainOptions) -> list[str]:
    """Freeze all but the chosen parameters, add a LoRA if requested, and return the trained names in the state dict.

    They include buffers, which forward passes may update. Raises BadRequest for a part or a LoRA that the family does
    not support.
    """
    tuning = system.family.training.tuning
    if options.only is not None:
        _only(model, tuning.parts if tuning else {}, options.only, system.family.name)
    if options.lora is None:
        buffers = {name for name, _ in model.named_buffers()} & model.state_dict().keys()
        return [name for name, p in model.named_parameters() if p.requires_grad] + sorted(buffers)
    if tuning is None:
        raise BadRequest(f"{system.family.name} does not support LoRA training; leave out lora")
    size, trainable = LoraSize.of(options.lora), {name for name, p in model.named_parameters() if p.requires_grad}

    def wanted(name: str) -> bool:
        return re.fullmatch(tuning.adapted, name) is not None and f"{name}.weight" in trainable

    try:
        names = lora.adapt(model, wanted, size.rank, size.alpha, torch.Generator().manual_seed(options.seed))
    except ValueError:
        raise BadRequest(f"{system.name} has no layer for a LoRA with these options") from None
    return [f"{name}.{part}" for name in names for part in (lora.DOWN, lora.UP)]


def _only(model: nn.Module, parts: Mapping[str, str], wanted: str, family: str) -> None:
    if wanted not in parts:
        known = f"expected {' or '.join(parts)}" if parts else "leave out only"
        raise BadRequest(f"{family} cannot train only {wanted!r}; {known}")
    pattern = re.compile(parts[wanted])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and pattern.search(name) is not None)
    if not any(p.requires_grad for p in model.parameters()):
        raise BadRequest(f"this {family} model has no trainable parameters with only {wanted!r}")


# -------------------------------------------------------------------------------------- writing


def export(path: Path, shadow: Mapping[str, Tensor], model: nn.Module, options: TrainOptions, description: str) -> Path:
    """Write the averaged weights for inference: the whole model, or only the LoRA (in the diffusers layout)."""
    if options.lora is None:
        frozen = {name: tensor for name, tensor in model.state_dict().items() if name not in shadow}
        return checkpoint.export(path, shadow, frozen, description)
    lora_formats.write_lora(path, adapters(shadow, LoraSize.of(options.lora)), "diffusers")
    return path


def export_last(
    folder: Path, shadow: Mapping[str, Tensor], model: nn.Module, options: TrainOptions, description: str
) -> Path:
    """Write ``model.safetensors``, or ``lora.safetensors`` and the same LoRA in the kohya layout."""
    if options.lora is None:
        return export(folder / "model.safetensors", shadow, model, options, description)
    lora_formats.write_lora(folder / KOHYA, adapters(shadow, LoraSize.of(options.lora)), "kohya")
    return export(folder / "lora.safetensors", shadow, model, options, description)


def export_parts(
    folder: Path, shadow: Mapping[str, Tensor], system: System, options: TrainOptions, description: str
) -> list[Path]:
    """Write the trained part alone, in its authors' layout if it has one, in fp16, if the family has such files.

    Returns the files.
    """
    tuning, written = system.family.training.tuning, []
    if tuning is None:
        return []
    low_rank = None if options.lora is None else adapters(shadow, LoraSize.of(options.lora))
    for name, tensors in tuning.files(system.config, shadow, low_rank).items():
        written.append(folder / f"{name}.safetensors")
        halves = {key: tensor.half().contiguous() for key, tensor in tensors.items()}
        files.write_tensors(written[-1], halves, {"kinema": description} if tuning.opens_alone else {"format": "pt"})
    return written


def adapters(tensors: Mapping[str, Tensor], size: LoraSize) -> dict[str, Adapter]:
    """Adapters by module name, from the parameters of `training.lora`."""
    names = [name.removesuffix(f".{lora.DOWN}") for name in tensors if name.endswith(f".{lora.DOWN}")]
    return {n: Adapter(tensors[f"{n}.{lora.DOWN}"], tensors[f"{n}.{lora.UP}"], size.alpha) for n in names}
