"""Puts a system's weights where a plan wants them, and says where those wait that are not in turn."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from kinema.checkpoints.stream import Stream
from kinema.memory.free import free_bytes
from kinema.memory.plan import SHARE, Plan
from kinema.memory.turns import Read, Turns
from kinema.nn.ldm_unet import chunk_feed_forward
from kinema.system import System


def place(system: System, plan: Plan) -> None:
    """Fill the system's network, if it is not, with its weights coming and going as the plan says."""
    runtime = system.runtime
    turning = cast("Turns | None", runtime.offloader)
    if plan.offload == "none":
        if runtime.model is not None and turning is not None:
            turning.begin("none")  # without LoRAs, which are then merged as into any network
            runtime.loras.fill(runtime.model)
            runtime.offloader = None
        elif runtime.model is not None and not runtime.loras.has(runtime.model):
            runtime.loras.fill(runtime.model)  # they were taken out for turns that were broken off before they began
    else:
        if runtime.model is None:
            filled = system.filled()
            for buffer in filled.buffers():
                buffer.data = _rounded(system, buffer)
            runtime.model = filled
        if turning is None:
            runtime.loras.release(runtime.model)
            blocks = system.family.blocks(runtime.model)
            turning = Turns(runtime.model, blocks, resting(system, runtime.model), system.device, system.dtype)
            runtime.offloader = turning
        state = (plan.offload, runtime.loras.files)
        if turning.state != state:  # other LoRAs too: weights that are here have the old ones in them
            turning.begin(plan.offload, lambda name, told: runtime.loras.merged(name, told, system.dtype))
            turning.state = state
    chunk_feed_forward(system.model, plan.tokens)
    runtime.at_once = plan.at_once


def roomy(system: System) -> bool:
    """Whether branches of guidance may be in memory at once: as the last plan had it; without one, on a CPU."""
    return system.device.type == "cpu" and system.runtime.at_once


def resting(system: System, model: nn.Module) -> Read:
    """Where each weight waits: on disk, or in the host's memory for a GPU that is short of its own.

    What was changed by hand since it was read is in no file, and waits in memory.
    """
    held = held_back(system, model)
    if system.device.type == "cuda":
        size = sum(p.numel() * system.dtype.itemsize for p in model.parameters())
        if size < SHARE * free_bytes("cpu"):
            held = {name: _rounded(system, p.detach()).to(system.dtype) for name, p in model.named_parameters()}
            held = {name: tensor.pin_memory() for name, tensor in held.items()}
    on_disk = None if len(held) == sum(1 for _ in model.named_parameters()) else from_disk(system)

    def read(name: str) -> Tensor:
        told = held[name] if on_disk is None or name in held else on_disk(name)
        return _rounded(system, told)

    return read


def held_back(system: System, model: nn.Module) -> dict[str, Tensor]:
    """The weights that no file holds: all of an untrained model, and what was changed in memory."""
    changed = system.runtime.changed
    changed |= {name for name, p in model.named_parameters() if p._version}
    untrained = system.weights.path is None
    return {name: p.detach() for name, p in model.named_parameters() if untrained or name in changed}


def _rounded(system: System, tensor: Tensor) -> Tensor:
    """The weight as precise as the system asks for; the cast to what it computes in happens where the weight goes."""
    return tensor.to(system.rounded) if system.rounded is not None and tensor.is_floating_point() else tensor


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
