"""The mutable state of an opened model: its network, active LoRAs and offloading, guarded by a lock.

`running` holds the lock for a whole job, so any number of threads may use one model, and each gets the same result as
it would alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kinema.cancel import checkpoint
from kinema.checkpoints.lora_use import LoraFile, Loras
from kinema.nn.costs import Branches
from kinema.system.family import Codec
from kinema.vae.latent_rgb import LatentRGB

POLL_INTERVAL = 0.1
"""Seconds between a queued job's checks for cancellation."""

REHEARSED = 16
"""Measured memory needs that are kept."""


class Runtime:
    """The network of one `System` (None until first use) and its state."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model
        self.codec: Codec | None = None
        self.rgb: LatentRGB | None = None
        """Map from this codec's latents to preview colours, once known."""
        self.loras = Loras()
        """The active LoRAs."""
        self.own_loras: tuple[LoraFile, ...] = ()
        """The model's own LoRAs, for requests that set none."""
        self.offloader: Any = None
        """The `WeightOffloader` while a memory plan offloads weights."""
        self.changed: set[str] = set()
        """Names of weights modified in memory since they were read; no file contains them."""
        self.branches: Branches | None = None
        """How guidance branches run, as the last memory plan says."""
        self.lock = threading.RLock()
        self._other_stages: dict[str, Any] = {}
        self._rehearsed: dict[Hashable, Any] = {}
        self._hash: Future[str] | None = None
        self._thread, self._threads = threading.get_ident(), torch.get_num_threads()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run one job at a time, with the number of CPU threads in effect when the model was opened.

        PyTorch's thread count is per calling thread, and last bits depend on it. A queued job can be cancelled. An
        interrupted job may leave any subset of weights loaded, so the next job sets up offloading again.
        """
        with self._locked():
            before = torch.get_num_threads()
            adjust = threading.get_ident() != self._thread and before != self._threads
            if adjust:
                torch.set_num_threads(self._threads)
            try:
                yield
            except BaseException:
                if self.offloader is not None:
                    self.offloader.state = None
                raise
            finally:
                if adjust:
                    torch.set_num_threads(before)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        checkpoint()
        while not self.lock.acquire(timeout=POLL_INTERVAL):
            checkpoint()
        try:
            yield
        finally:
            self.lock.release()

    def network(self, fill: Callable[[], nn.Module]) -> nn.Module:
        """Return the network with the active LoRAs merged; ``fill`` loads it on first use."""
        with self.lock:
            if self.model is None:
                self.model = self.loras.fill(fill())
            return self.model

    def use_loras(self, files: tuple[LoraFile, ...] | None) -> None:
        """Activate exactly these LoRAs; None: the model's own."""
        with self.lock:
            requested = self.own_loras if files is None else files
            if not self.loras.settled or (requested is not self.loras.files and (requested or self.loras.files)):
                self.loras.use(requested)

    def beside(self, name: str, opened: Callable[[], Any]) -> Any:
        """Return the model of another generation stage, opening it if it is not cached.

        Two are cached: an image model and a super-resolution model.
        """
        with self.lock:
            if name not in self._other_stages:
                kept = list(self._other_stages.items())[-1:]
                self._other_stages = {**dict(kept), name: opened()}
            return self._other_stages[name]

    def rehearsed(self, depends: Hashable, measure: Callable[[], Any]) -> Any:
        """Return what ``measure`` returned for the same key before; the first call measures. The newest are kept."""
        known = self._rehearsed
        if depends not in known:
            known = {**dict(list(known.items())[1 - REHEARSED :]), depends: measure()}
            self._rehearsed = known
        return known[depends]

    @property
    def other_stages(self) -> list[Any]:
        """The models of other generation stages that are cached."""
        return list(self._other_stages.values())

    # ------------------------------------------------------------------------------ weight hashes

    def begin_hash(self, hashed: Callable[[], str]) -> None:
        """Start hashing the weight files in the background (500 MB take half a second); `hash` waits for the result."""
        with self.lock:
            failed = self._hash is not None and self._hash.done() and self._hash.exception()
            if self._hash is None or failed:
                pool = ThreadPoolExecutor(1, "hash of weights")
                self._hash = pool.submit(hashed)
                pool.shutdown(wait=False)

    def hash(self, hashed: Callable[[], str]) -> str:
        self.begin_hash(hashed)
        assert self._hash is not None
        return self._hash.result()
