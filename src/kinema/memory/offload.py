"""Weight offloading: a network, or a block of one, has its weights on the device only while it runs.

GPU weights are offloaded to host memory, CPU weights to disk. The code does not depend on the device: loading a unit
puts fresh tensors there, offloading it leaves meta tensors that keep shape, precision and strides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kinema.cancel import checkpoint
from kinema.system import WeightPolicy

Offload = Literal["none", "model", "block", "sequential"]
"""none: all weights stay on the device. model: one network at a time. block: one block at a time, prefetching the next.
sequential: one block at a time, without prefetching."""
LEVELS: tuple[Offload, ...] = get_args(Offload)

Read = Callable[[str], Tensor]
"""Reads an offloaded weight by name."""
Merging = Callable[[str], Callable[[Tensor], Tensor] | None]
"""Returns the function that merges LoRAs into the named weight as it is loaded; None leaves the weight unchanged."""


class OffloadedParameter(nn.Parameter):
    """Placeholder for an offloaded weight: its shape, precision and strides, on the meta device.

    It reports the device that the weight is loaded to, because callers move inputs to a parameter's device. Computing
    with it and real tensors raises RuntimeError; torch would silently return wrong results for some operations.
    """

    target: torch.device

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.target

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG003
        if (
            func is Tensor.to
            and isinstance(args[-1], OffloadedParameter)
            and not isinstance(args[0], OffloadedParameter)
        ):
            return args[0].to(args[-1].target, args[-1].dtype)
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(not isinstance(x, OffloadedParameter) and not x.is_meta for x in inputs):
            raise RuntimeError("a layer's weights were used while offloaded; call the layer as a module to load them")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class ParameterSlot:
    """The location of one parameter: its full name, the module that owns it, and its name there."""

    name: str
    owner: nn.Module
    key: str

    @property
    def tensor(self) -> nn.Parameter:
        parameter = self.owner._parameters[self.key]
        assert parameter is not None
        return parameter

    def put(self, tensor: Tensor) -> None:
        self.owner._parameters[self.key] = nn.Parameter(tensor, requires_grad=False)


@dataclass(frozen=True, eq=False)
class Unit:
    """Parameters that are loaded and offloaded together."""

    module: nn.Module
    slots: tuple[ParameterSlot, ...]

    @property
    def bytes(self) -> int:
        return sum(slot.tensor.nbytes for slot in self.slots)


def networks(model: nn.Module) -> dict[str, nn.Module]:
    """Return a model's networks by name: its children if it has no ``forward`` of its own, else itself under ""."""
    return dict(model.named_children()) if _is_container(model) else {"": model}


def _is_container(module: nn.Module) -> bool:
    return type(module).forward is nn.Module.forward


def units(model: nn.Module, blocks: Iterable[nn.Module]) -> dict[str, tuple[Unit, list[Unit]]]:
    """Return, for each network, the unit of its parameters outside blocks and the units of its blocks."""
    names = {module: name for name, module in model.named_modules()}
    result: dict[str, tuple[Unit, list[Unit]]] = {}
    for name, network in networks(model).items():
        inside = set(network.modules())
        of_blocks = [_unit(block, names[block], ()) for block in blocks if block in inside and block is not network]
        in_blocks = {slot.name for unit in of_blocks for slot in unit.slots}
        result[name] = (_unit(network, name, in_blocks), of_blocks)
    return result


def _unit(module: nn.Module, name: str, exclude: Iterable[str]) -> Unit:
    slots = []
    for inner, owner in module.named_modules():
        for key in owner._parameters:
            full = ".".join(part for part in (name, inner, key) if part)
            if owner._parameters[key] is not None and full not in exclude:
                slots.append(ParameterSlot(full, owner, key))
    return Unit(module, tuple(slots))


class WeightOffloader:
    """Offloads a model's weights and loads them to ``device`` when needed, until `close`.

    ``read`` reads an offloaded weight, ``policy`` converts it. The model's outputs are unchanged.
    """

    def __init__(
        self, model: nn.Module, blocks: Sequence[nn.Module], read: Read, device: torch.device, policy: WeightPolicy
    ) -> None:
        self.model, self.read, self.device, self.policy = model, read, device, policy
        self._merging: Merging | None = None
        self._all = units(model, blocks)
        self._placeholders: dict[str, OffloadedParameter] = {}
        self._hooks: list[Any] = []
        self._current: Unit | None = None
        self._prefetcher: _Prefetcher | None = None
        self._next: dict[Unit, Unit] = {}
        self._previous: Unit | None = None
        self.state: Any = None
        """Set by the caller of `begin` to recognise its settings; None after an interrupted job."""

    def begin(self, level: Offload, merging: Merging | None = None) -> None:
        """Offload all weights, then load them as ``level`` prescribes ("none": all now, to stay), merging LoRAs."""
        self.close()
        self._merging = merging
        for unit in self._units():
            self._offload(unit)
        own, inside = [unit for unit, _ in self._all.values()], self._inside_blocks()
        streamed = [unit for _, blocks in self._all.values() for unit in blocks]
        for module in self.model.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[key] = self.policy.ready(buffer, self.device)
        if level == "none":
            for unit in self._units():
                checkpoint()
                self._load(unit, self._fetch(unit))
            return
        if level == "model":
            own = [_merged(unit, blocks) for unit, blocks in self._all.values()]
            streamed = []
        for unit in own:
            if unit.module is self.model:  # the only network: its parameters outside blocks stay
                self._load(unit, self._fetch(unit))
                continue
            # Any submodule may be called first, as networks have methods besides `forward`. Submodules of blocks run
            # after their block and may be compiled with it, where hooks would interfere.
            for module in (m for m in unit.module.modules() if m not in inside):
                self._hooks.append(module.register_forward_pre_hook(self._network_hook(unit)))
        self._prefetcher = _Prefetcher(self._fetch, self.device) if level == "block" else None
        self._next = dict(zip(streamed, streamed[1:], strict=False))
        for unit in streamed:
            self._hooks.append(unit.module.register_forward_pre_hook(self._block_hook(unit)))
            self._hooks.append(unit.module.register_forward_hook(self._offload_hook(unit), always_call=True))

    def close(self) -> None:
        """Stop; loaded weights stay loaded, the others stay offloaded until the next `begin`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._prefetcher is not None:
            self._prefetcher.close()
        self._prefetcher = self._current = self._previous = None

    def _inside_blocks(self) -> set[nn.Module]:
        """The submodules of blocks, without the blocks themselves."""
        blocks = [block.module for _, units in self._all.values() for block in units]
        return {module for block in blocks for module in block.modules() if module is not block}

    def _units(self) -> list[Unit]:
        return [unit for own, blocks in self._all.values() for unit in (own, *blocks)]

    # ------------------------------------------------------------------------------ loading and offloading

    def _network_hook(self, unit: Unit) -> Callable[..., None]:
        def load(*_args: Any) -> None:
            if self._current is unit:
                return
            checkpoint()
            previous, self._current = self._current, None  # an interruption below must not count as loaded
            if previous is not None:
                self._offload(previous)
            self._load(unit, self._fetch(unit))
            self._current = unit

        return load

    def _block_hook(self, unit: Unit) -> Callable[..., None]:
        def load(*_args: Any) -> None:
            checkpoint()
            if self._previous is not None:
                self._next[self._previous] = unit  # learns the order of execution
            self._previous = unit
            self._load(unit, self._fetch(unit) if self._prefetcher is None else self._prefetcher.take(unit))
            if self._prefetcher is not None and unit in self._next:
                self._prefetcher.start(self._next[unit])

        return load

    def _offload_hook(self, unit: Unit) -> Callable[..., None]:
        def offload(*_args: Any) -> None:
            self._offload(unit)

        return offload

    @torch.no_grad()
    def _fetch(self, unit: Unit) -> dict[str, Tensor]:
        """Read a unit's tensors onto the device, with the placeholders' strides. May run in the prefetch thread."""
        tensors = {}
        for slot in unit.slots:
            placeholder, weight = self._placeholders[slot.name], self.read(slot.name)
            if weight.shape != placeholder.shape:
                raise RuntimeError(
                    f"the offloaded weight {slot.name} is {tuple(weight.shape)}; expected {tuple(placeholder.shape)}"
                )
            merge = None if self._merging is None else self._merging(slot.name)
            tensors[slot.name] = self.policy.ready(weight, self.device, merge=merge, like=placeholder)
        return tensors

    def _load(self, unit: Unit, tensors: Mapping[str, Tensor]) -> None:
        for slot in unit.slots:
            slot.put(tensors[slot.name])

    @torch.no_grad()
    def _offload(self, unit: Unit) -> None:
        for slot in unit.slots:
            placeholder = self._placeholders.get(slot.name)
            if placeholder is None or placeholder.stride() != slot.tensor.stride():  # a family may change the layout
                like = torch.empty_like(slot.tensor, device="meta", dtype=self.policy.computed)
                self._placeholders[slot.name] = OffloadedParameter(like, requires_grad=False)
                self._placeholders[slot.name].target = self.device
            slot.owner._parameters[slot.key] = self._placeholders[slot.name]


def _merged(unit: Unit, blocks: Sequence[Unit]) -> Unit:
    return Unit(unit.module, tuple(slot for part in (unit, *blocks) for slot in part.slots))


class _Prefetcher:
    """Fetches the next unit's weights while the current one computes; on a GPU in a separate stream."""

    def __init__(self, fetch: Callable[[Unit], dict[str, Tensor]], device: torch.device) -> None:
        self.fetch = fetch
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self.pending: tuple[Unit, Future[dict[str, Tensor]]] | None = None

    def start(self, unit: Unit) -> None:
        self.pending = unit, self.pool.submit(self._fetch_in_stream, unit)

    def take(self, unit: Unit) -> dict[str, Tensor]:
        pending, self.pending = self.pending, None
        if pending is None:
            return self.fetch(unit)
        tensors = pending[1].result()
        if pending[0] is not unit:  # the order of execution changed: discard what was prefetched
            return self.fetch(unit)
        for tensor in tensors.values():
            if tensor.is_cuda:  # allocated in another stream: do not reuse its memory before this stream is done
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return tensors

    def _fetch_in_stream(self, unit: Unit) -> dict[str, Tensor]:
        with torch.cuda.stream(self.stream):  # no-op for None
            tensors = self.fetch(unit)
        if self.stream is not None:
            self.stream.synchronize()
        return tensors

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
