"""Puts a system's weights where a plan wants them, and says where those wait that are not in turn."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kinema.checkpoints.stream import Stream
from kinema.memory.free import free_bytes, unified
from kinema.memory.offload import Read, WeightOffloader
from kinema.memory.plan import SHARE, MemoryPlan
from kinema.nn.ldm_unet import chunk_feed_forward
from kinema.system import System


def place(system: System, plan: MemoryPlan) -> None:
    """Fill the system's network, if it is not, with its weights coming and going as the plan says."""
    runtime = system.runtime
    turning = cast("WeightOffloader | None", runtime.offloader)
    if plan.offload == "none":
        if runtime.model is not None and turning is not None:
            turning.begin("none")  # without LoRAs, which are then merged as into any network
            runtime.loras.fill(runtime.model)
            runtime.offloader = None
        elif runtime.model is not None and not runtime.loras.has(runtime.model):
            runtime.loras.fill(runtime.model)  # they were taken out for turns that were broken off before they began
    else:
        if runtime.model is None:
            runtime.model = system.filled()
        if turning is None:
            runtime.loras.release(runtime.model)
            blocks = system.family.blocks(runtime.model)
            turning = WeightOffloader(
                runtime.model, blocks, resting(system, runtime.model), system.device, system.policy
            )
            runtime.offloader = turning
        state = (plan.offload, runtime.loras.files)
        if turning.state != state:  # other LoRAs too: weights that are here have the old ones in them
            turning.begin(plan.offload, runtime.loras.merging)
            turning.state = state
    chunk_feed_forward(system.model, plan.tokens)
    runtime.at_once = plan.at_once


def can_run_branches_together(system: System) -> bool:
    """Whether branches of guidance may be in memory at once: as the last plan had it; without one, on a CPU."""
    return system.device.type == "cpu" and system.runtime.at_once


def resting(system: System, model: nn.Module) -> Read:
    """Where each weight waits: on disk, or in the host's memory for a GPU with memory of its own.

    What was changed by hand since it was read is in no file, and waits in memory.
    """
    held = held_back(system, model)
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


def held_back(system: System, model: nn.Module) -> dict[str, Tensor]:
    """The weights that no file holds: all of an untrained model, and what was changed in memory."""
    changed = system.runtime.changed
    changed |= {name for name, p in model.named_parameters() if p._version}
    untrained = system.weights.path is None
    return {name: p.detach() for name, p in model.named_parameters() if untrained or name in changed}


def from_disk(system: System) -> Read:
    """Reads one weight at a time, whatever layout the file has; additions are views of their memory map."""
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
    # A file that only converts as a whole: views of its memory map, whose pages the system takes back when it must.
    return read or checkpoints.convert(system.config, weights.source.tensors(weights.parts)).__getitem__
