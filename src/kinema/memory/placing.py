"""Puts a system's weights where a plan wants them, and says where those wait that are not in turn."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from kinema import registry
from kinema.checkpoints.stream import Stream
from kinema.memory.free import free_bytes
from kinema.memory.plan import SHARE, Plan
from kinema.memory.turns import Read, Turns
from kinema.nn.ldm_unet import chunk_feed_forward
from kinema.schema import BadRequest
from kinema.system import System

_TURNS = "_kinema_turns"
"""Where a network keeps its own `Turns`, so that they live and end together."""


def place(system: System, plan: Plan) -> None:
    """Fill the system's network, if it is not, with its weights coming and going as the plan says."""
    loaded = cast("nn.Module | None", vars(system).get("model"))
    turning = cast("Turns | None", vars(loaded).get(_TURNS)) if loaded is not None else None
    if plan.offload != "none" and system.loras.files:
        raise BadRequest(
            f"LoRAs are merged into weights that are in memory, and offload {plan.offload} leaves them on disk: "
            "leave out the LoRAs, or convert the model with them merged, or ask for less"
        )
    if plan.offload != "none" and turning is None:
        if loaded is None:
            loaded = system.filled()
            vars(system)["model"] = loaded  # fills the cached property
        blocks = system.family.blocks(loaded)
        turning = Turns(loaded, blocks, resting(system, loaded), system.device, system.dtype)
        vars(loaded)[_TURNS] = turning
    if turning is not None and turning.level != plan.offload:
        turning.begin(plan.offload)
    chunk_feed_forward(system.model, plan.tokens)


def resting(system: System, model: nn.Module) -> Read:
    """Where each weight waits: on disk, or in the host's memory for a GPU that is short of its own.

    What was changed since it was read (a merged LoRA) is in no file, and waits in memory.
    """
    kept = system.weights.path is None or bool(system.weights.added)
    held = {name: p.detach() for name, p in model.named_parameters() if kept or p._version}
    if system.device.type == "cuda":
        size = sum(p.numel() * system.dtype.itemsize for p in model.parameters())
        if size < SHARE * free_bytes("cpu"):
            held = {name: _rounded(system, p.detach()).pin_memory() for name, p in model.named_parameters()}
    if len(held) == sum(1 for _ in model.named_parameters()):
        return held.__getitem__
    read = _from_disk(system)
    return lambda name: held[name] if name in held else _rounded(system, read(name), keep=True)


def _rounded(system: System, tensor: Tensor, *, keep: bool = False) -> Tensor:
    """The weight as the system asks for it; with ``keep``, only the rounding, the cast happens where it goes."""
    tensor = tensor if system.rounded is None else tensor.to(system.rounded)
    return tensor if keep else tensor.to(system.dtype)


def _from_disk(system: System) -> Read:
    """Reads one weight at a time, whatever layout the file has."""
    weights = system.weights
    assert weights.path is not None
    if weights.own:
        return Stream(weights.path, weights.variant).__getitem__
    if system.family.name in registry.LAYOUTS:
        opened = registry.resolve(registry.LAYOUTS[system.family.name]).open(weights.path, weights.variant)
        return opened.read
    # A layout that only converts as a whole: views of its memory map, whose pages the system takes back when it must.
    return system.family.convert(system.config, weights.source.tensors(weights.parts)).__getitem__
