"""Weights that take turns: a network, or a block of one, has its weights in memory only while it runs.

On a GPU the weights wait in the host's memory; on a CPU they wait on disk, and are read block by block. The device
does not matter here: a unit that comes gets fresh tensors there, a unit that goes leaves meta tensors behind, which
remember shape, precision and order in memory.
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
"""none: all weights stay. model: networks take turns. block: so do the blocks of each, the next one read ahead.
sequential: one block at a time, nothing ahead."""
LEVELS: tuple[Offload, ...] = get_args(Offload)

Read = Callable[[str], Tensor]
"""A weight by its name, from where it waits."""
Change = Callable[[str], Callable[[Tensor], Tensor] | None]
"""What is done to the weight of a name as it comes, such as merging a LoRA into it; None leaves it as it is."""


class OffloadedParameter(nn.Parameter):
    """Stands for a weight that is elsewhere: its shape, precision and order in memory, without numbers.

    Its device is the one that the weight comes to: there whoever asks a network where it is puts the inputs. Whoever
    computes with it is stopped: what tensors without numbers make of others is not said by torch, and wrong.
    """

    goes_to: torch.device

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.goes_to

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG003
        if (
            func is Tensor.to
            and isinstance(args[-1], OffloadedParameter)
            and not isinstance(args[0], OffloadedParameter)
        ):
            return args[0].to(args[-1].goes_to, args[-1].dtype)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(not isinstance(x, OffloadedParameter) and not x.is_meta for x in given):
            raise RuntimeError("a layer was asked for its weights while they wait: it was not called as a module")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Slot:
    """The place of one parameter: its full name, the module that holds it, and its name there."""

    name: str
    owner: nn.Module
    key: str

    @property
    def tensor(self) -> nn.Parameter:
        found = self.owner._parameters[self.key]
        assert found is not None
        return found

    def put(self, tensor: Tensor) -> None:
        self.owner._parameters[self.key] = nn.Parameter(tensor, requires_grad=False)


@dataclass(frozen=True, eq=False)
class Unit:
    """What comes and goes together."""

    module: nn.Module
    slots: tuple[Slot, ...]

    @property
    def bytes(self) -> int:
        return sum(slot.tensor.nbytes for slot in self.slots)


def networks(model: nn.Module) -> dict[str, nn.Module]:
    """The networks of a model by name: its children, where it only holds them, or itself under the name ""."""
    return dict(model.named_children()) if _only_holds(model) else {"": model}


def _only_holds(module: nn.Module) -> bool:
    return type(module).forward is nn.Module.forward


def units(model: nn.Module, blocks: Iterable[nn.Module]) -> dict[str, tuple[Unit, list[Unit]]]:
    """Each network's own unit (what lies in no block) and the units of its blocks."""
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, tuple[Unit, list[Unit]]] = {}
    for name, network in networks(model).items():
        inside = set(network.modules())
        of_blocks = [_unit(block, names[block], ()) for block in blocks if block in inside and block is not network]
        taken = {slot.name for unit in of_blocks for slot in unit.slots}
        found[name] = (_unit(network, name, taken), of_blocks)
    return found


def _unit(module: nn.Module, name: str, taken: Iterable[str]) -> Unit:
    slots = []
    for inner, owner in module.named_modules():
        for key in owner._parameters:
            full = ".".join(part for part in (name, inner, key) if part)
            if owner._parameters[key] is not None and full not in taken:
                slots.append(Slot(full, owner, key))
    return Unit(module, tuple(slots))


class WeightOffloader:
    """Has the weights of a model take turns on ``device``, until `close`.

    ``read`` gives a weight from where it waits, ``policy`` makes it ready for its turn. The numbers that the model
    computes stay as they are.
    """

    def __init__(
        self, model: nn.Module, blocks: Sequence[nn.Module], read: Read, device: torch.device, policy: WeightPolicy
    ) -> None:
        self.model, self.read, self.device, self.policy = model, read, device, policy
        self._change: Change | None = None
        self._all = units(model, blocks)
        self._resting: dict[str, OffloadedParameter] = {}
        self._hooks: list[Any] = []
        self._in_turn: Unit | None = None
        self._ahead: _Prefetcher | None = None
        self._after: dict[Unit, Unit] = {}
        self._before: Unit | None = None
        self.state: Any = None
        """What was in force when they began, for whoever has them begin; None is nothing that may be relied on."""

    def begin(self, level: Offload, change: Change | None = None) -> None:
        """Take the weights away and let them come as ``level`` says ("none": all come now, and stay), changed."""
        self.close()
        self._change = change
        for unit in self._units():
            self._leave(unit)
        own, inside = [unit for unit, _ in self._all.values()], self._inside_blocks()
        streamed = [unit for _, blocks in self._all.values() for unit in blocks]
        for module in self.model.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[key] = self.policy.ready(buffer, self.device)
        if level == "none":
            for unit in self._units():
                checkpoint()
                self._arrive(unit, self._fetch(unit))
            return
        if level == "model":
            own = [_merged(unit, blocks) for unit, blocks in self._all.values()]
            streamed = []
        for unit in own:
            if unit.module is self.model:  # the only network: what lies in no block stays
                self._arrive(unit, self._fetch(unit))
                continue
            # Any part may be the first to be called: a network has methods besides its `forward`. What a block holds
            # is called after the block, and may be compiled with it, where hooks are in the way.
            for module in (m for m in unit.module.modules() if m not in inside):
                self._hooks.append(module.register_forward_pre_hook(self._turn_of(unit)))
        self._ahead = _Prefetcher(self._fetch, self.device) if level == "block" else None
        self._after = dict(zip(streamed, streamed[1:], strict=False))
        for unit in streamed:
            self._hooks.append(unit.module.register_forward_pre_hook(self._come(unit)))
            self._hooks.append(unit.module.register_forward_hook(self._go(unit), always_call=True))

    def close(self) -> None:
        """Stop; what is in memory stays there, the rest stays away until the next `begin`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = self._in_turn = self._before = None

    def _inside_blocks(self) -> set[nn.Module]:
        """The modules that blocks hold, without the blocks themselves."""
        blocks = [block.module for _, units in self._all.values() for block in units]
        return {module for block in blocks for module in block.modules() if module is not block}

    def _units(self) -> list[Unit]:
        return [unit for own, blocks in self._all.values() for unit in (own, *blocks)]

    # ---------------------------------------------------------------------------------- coming and going

    def _turn_of(self, unit: Unit) -> Callable[..., None]:
        def turn(*_told: Any) -> None:
            if self._in_turn is unit:
                return
            checkpoint()
            before, self._in_turn = self._in_turn, None  # whatever breaks this off, none is taken to be here
            if before is not None:
                self._leave(before)
            self._arrive(unit, self._fetch(unit))
            self._in_turn = unit

        return turn

    def _come(self, unit: Unit) -> Callable[..., None]:
        def come(*_told: Any) -> None:
            checkpoint()
            if self._before is not None:
                self._after[self._before] = unit  # the order they run in, learnt as they run
            self._before = unit
            self._arrive(unit, self._fetch(unit) if self._ahead is None else self._ahead.take(unit))
            if self._ahead is not None and unit in self._after:
                self._ahead.start(self._after[unit])

        return come

    def _go(self, unit: Unit) -> Callable[..., None]:
        def go(*_told: Any) -> None:
            self._leave(unit)

        return go

    @torch.no_grad()
    def _fetch(self, unit: Unit) -> dict[str, Tensor]:
        """The tensors on the device, as the resting ones are laid out. Also runs beside the computation."""
        made = {}
        for slot in unit.slots:
            rest, told = self._resting[slot.name], self.read(slot.name)
            if told.shape != rest.shape:
                raise RuntimeError(f"{slot.name} waits as {tuple(told.shape)}, expected {tuple(rest.shape)}")
            merge = None if self._change is None else self._change(slot.name)
            made[slot.name] = self.policy.ready(told, self.device, merge=merge, like=rest)
        return made

    def _arrive(self, unit: Unit, made: Mapping[str, Tensor]) -> None:
        for slot in unit.slots:
            slot.put(made[slot.name])

    @torch.no_grad()
    def _leave(self, unit: Unit) -> None:
        for slot in unit.slots:
            rest = self._resting.get(slot.name)
            if rest is None or rest.stride() != slot.tensor.stride():  # a family may lay out what is in turn anew
                like = torch.empty_like(slot.tensor, device="meta", dtype=self.policy.computed)
                self._resting[slot.name] = OffloadedParameter(like, requires_grad=False)
                self._resting[slot.name].goes_to = self.device
            slot.owner._parameters[slot.key] = self._resting[slot.name]


def _merged(unit: Unit, blocks: Sequence[Unit]) -> Unit:
    return Unit(unit.module, tuple(slot for part in (unit, *blocks) for slot in part.slots))


class _Prefetcher:
    """Fetches the next unit's weights while this one computes; on a GPU in a stream of its own."""

    def __init__(self, fetch: Callable[[Unit], dict[str, Tensor]], device: torch.device) -> None:
        self.fetch = fetch
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self.waiting: tuple[Unit, Future[dict[str, Tensor]]] | None = None

    def start(self, unit: Unit) -> None:
        self.waiting = unit, self.pool.submit(self._apart, unit)

    def take(self, unit: Unit) -> dict[str, Tensor]:
        waiting, self.waiting = self.waiting, None
        if waiting is None:
            return self.fetch(unit)
        made = waiting[1].result()
        if waiting[0] is not unit:  # another one came than the last time: what was read is let go
            return self.fetch(unit)
        for tensor in made.values():
            if tensor.is_cuda:  # made in another stream: its memory is not for others before this one is through
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return made

    def _apart(self, unit: Unit) -> dict[str, Tensor]:
        with torch.cuda.stream(self.stream):  # with no stream this does nothing
            made = self.fetch(unit)
        if self.stream is not None:
            self.stream.synchronize()
        return made

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
