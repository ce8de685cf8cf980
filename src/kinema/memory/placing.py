"""Applying a memory plan: loading a system's weights, or offloading them and choosing where they wait."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kinema.checkpoints.stream import Stream
from kinema.memory.free import free_bytes, unified
from kinema.memory.offload import Read, WeightOffloader
from kinema.memory.plan import SHARE, MemoryPlan, weight_bytes
from kinema.nn.costs import Branches, order_of_branches
from kinema.nn.ldm_unet import chunk_feed_forward
from kinema.system import System


def place(system: System, plan: MemoryPlan) -> None:
    """Load the system's network, if necessary, and offload its weights as the plan prescribes."""
    runtime = system.runtime
    offloader = cast("WeightOffloader | None", runtime.offloader)
    if plan.offload == "none":
        if runtime.model is not None and offloader is not None:
            offloader.begin("none")  # without LoRAs; they are merged below
            runtime.loras.fill(runtime.model)
            runtime.offloader = None
        elif runtime.model is not None and not runtime.loras.has(runtime.model):
            runtime.loras.fill(runtime.model)  # a job was interrupted between removing LoRAs and offloading
    else:
        if runtime.model is None:
            runtime.model = system.filled()
        if offloader is None:
            runtime.loras.release(runtime.model)
            blocks, read = system.family.blocks(runtime.model), weight_reader(system, runtime.model)
            offloader = WeightOffloader(runtime.model, blocks, read, system.device, system.policy)
            runtime.offloader = offloader
        state = (plan.offload, runtime.loras.files)
        if offloader.state != state:  # also if LoRAs changed, since loaded weights have the old ones merged
            offloader.begin(plan.offload, runtime.loras.merging)
            offloader.state = state
    chunk_feed_forward(system.model, plan.tokens)
    runtime.branches = plan.branches


def branches_of(system: System) -> Branches:
    """How guidance branches run: as the last plan says; without one, the fastest way on a CPU."""
    if system.device.type != "cpu":
        return "one by one"
    return system.runtime.branches or order_of_branches(
        weight_bytes(system), system.policy.computed.itemsize, torch.get_num_threads()
    )


def weight_reader(system: System, model: nn.Module) -> Read:
    """Return the reader of offloaded weights: from disk, or from host memory for a GPU with dedicated memory.

    Weights modified since they were read are in no file and stay in host memory.
    """
    held = unsaved_weights(system, model)
    if not unified(system.device):
        size = system.policy.bytes(sum(p.numel() for p in model.parameters()))
        if size < SHARE * free_bytes("cpu"):
            held = {
                name: system.policy.ready(p.detach(), torch.device("cpu")).pin_memory()
                for name, p in model.named_parameters()
            }
    if len(held) == sum(1 for _ in model.named_parameters()):
        return held.__getitem__
    on_disk = from_disk(system)
    return lambda name: held[name] if name in held else on_disk(name)


def unsaved_weights(system: System, model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that are in no file: all of an untrained model, and those modified in memory."""
    changed = system.runtime.changed
    changed |= {name for name, p in model.named_parameters() if p._version}
    untrained = system.weights.path is None
    return {name: p.detach() for name, p in model.named_parameters() if untrained or name in changed}


def from_disk(system: System) -> Read:
    """Return a reader of single weights from a file of any layout; add-ons are views of their memory map."""
    weights = system.weights
    added = system.additions()
    if weights.own:
        read: Read = Stream(weights.source.path, weights.variant).__getitem__
    else:
        read = _foreign(system)
    return lambda name: added[name] if name in added else read(name)


def _foreign(system: System) -> Read:
    weights, checkpoints = system.weights, system.family.checkpoints
    read = checkpoints.layouts and checkpoints.layouts.reader(weights.source.path, weights.variant)
    # A layout that converts only as a whole yields views of its memory map, whose pages the system can reclaim.
    return read or checkpoints.convert(system.config, weights.source.tensors(weights.parts)).__getitem__
