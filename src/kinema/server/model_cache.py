"""The models that a worker keeps loaded, within a stated number of bytes: the least recently used goes first."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from kinema import heap
from kinema.api import Model
from kinema.memory.plan import weight_bytes
from kinema.system import System


class ModelCache:
    """Models by name, each set of add-ons under its own. ``opened(source)`` opens one; ``limit`` is a number of bytes
    of weights.
    """

    def __init__(self, opened: Callable[[Mapping[str, Any]], Model], limit: int) -> None:
        self.opened, self.limit = opened, limit
        self._models: OrderedDict[str, tuple[Mapping[str, Any], Model]] = OrderedDict()

    def get(self, name: str, source: Mapping[str, Any]) -> Model:
        """Return the model, opening it if it is not here or its files changed; others leave to make room for it."""
        before = self._models.get(name)
        if before is not None and before[0] != source:
            self.drop(name)
        if name not in self._models:
            model = self.opened(source)
            self._shrink(self.limit - weight_bytes(model.system))
            self._models[name] = (dict(source), model)
        self._models.move_to_end(name)
        return self._models[name][1]

    def settle(self) -> None:
        """After a job: keep within the limit, now that the models of all its stages are loaded."""
        self._shrink(self.limit)

    def drop_oldest(self, *, but: str) -> bool:
        """Drop the least recently used model other than ``but``; whether there was one."""
        name = next((name for name in self._models if name != but), None)
        if name is None:
            return False
        self.drop(name)
        return True

    def drop(self, name: str) -> None:
        if self._models.pop(name, None) is not None:
            release()

    def clear(self) -> None:
        self._models.clear()
        release()

    def loaded(self) -> list[dict[str, Any]]:
        """Return names and bytes of the loaded models, the most recently used last."""
        return [{"id": name, "bytes": _bytes(model.system)} for name, (_, model) in self._models.items()]

    def _shrink(self, most: int) -> None:
        while self._models and sum(_bytes(model.system) for _, model in self._models.values()) > most:
            self._models.popitem(last=False)
            release()


def _bytes(system: System) -> int:
    """Bytes of a model's weights and of the models of its other stages, as far as they are loaded."""
    others = sum(_bytes(other) for other in system.runtime.other_stages)
    return others + (0 if system.runtime.model is None else weight_bytes(system))


def release() -> None:
    """Return freed memory to the system and the device."""
    gc.collect()
    for kind in ("cuda", "xpu"):
        accelerator = getattr(torch, kind)
        if accelerator.is_available() and accelerator.is_initialized():
            accelerator.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    heap.give_back()
