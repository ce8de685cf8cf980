"""What of an opened model changes: its network, the LoRAs in force, where weights wait; and one job at a time.

Everything here is changed by whoever holds the lock, which `running` takes for a whole job: so any number of threads
may ask one model, and each gets what it would have got alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kinema.cancel import checkpoint
from kinema.checkpoints.lora_use import LoraFile, Loras
from kinema.system.family import Codec
from kinema.vae.latent_rgb import LatentRGB

LOOK_EVERY = 0.1
"""Seconds after which a job that waits for its turn looks whether it was cancelled."""


class Runtime:
    """The network of one `System` (None until it is first used), and the state that belongs to it."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model
        self.codec: Codec | None = None
        self.rgb: LatentRGB | None = None
        """How previews colour this codec's latents, once it is known."""
        self.loras = Loras()
        """The LoRAs in force."""
        self.own_loras: tuple[LoraFile, ...] = ()
        """Those of the model itself, for a request that names none."""
        self.offloader: Any = None
        """What has weights take turns (`kinema.memory.offload`), while a plan asks for it."""
        self.changed: set[str] = set()
        """Weights that were changed by hand since they were read, and so are in no file."""
        self.at_once = True
        """Whether branches of guidance may be in memory at the same time, as the last plan had it."""
        self.lock = threading.RLock()
        self._beside: dict[str, Any] = {}
        self._hash: Future[str] | None = None
        self._thread, self._threads = threading.get_ident(), torch.get_num_threads()

    @contextmanager
    def running(self) -> Iterator[None]:
        """One job at a time, with the CPU threads that the model was opened with.

        PyTorch keeps a number of threads for each thread that computes, and last bits depend on it. A job that is
        cancelled while it waits for its turn ends. Whatever breaks a job off may do so between any two weights, so
        those that take turns begin anew in the next one.
        """
        with self._turn():
            before = torch.get_num_threads()
            elsewhere = threading.get_ident() != self._thread and before != self._threads
            if elsewhere:
                torch.set_num_threads(self._threads)
            try:
                yield
            except BaseException:
                if self.offloader is not None:
                    self.offloader.state = None
                raise
            finally:
                if elsewhere:
                    torch.set_num_threads(before)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        checkpoint()
        while not self.lock.acquire(timeout=LOOK_EVERY):
            checkpoint()
        try:
            yield
        finally:
            self.lock.release()

    def network(self, fill: Callable[[], nn.Module]) -> nn.Module:
        """The network, filled on first use, with the LoRAs in force in it."""
        with self.lock:
            if self.model is None:
                self.model = self.loras.fill(fill())
            return self.model

    def use_loras(self, files: tuple[LoraFile, ...] | None) -> None:
        """Have exactly these in force; None is the model's own."""
        with self.lock:
            wanted = self.own_loras if files is None else files
            if not self.loras.settled or (wanted is not self.loras.files and (wanted or self.loras.files)):
                self.loras.use(wanted)

    def beside(self, name: str, opened: Callable[[], Any]) -> Any:
        """The model of another stage, which is opened once; only the last one is kept."""
        with self.lock:
            if name not in self._beside:
                self._beside = {name: opened()}
            return self._beside[name]

    # ------------------------------------------------------------------------------ hashes of the weights

    def begin_hash(self, hashed: Callable[[], str]) -> None:
        """Hash the files beside what is done until `hash` is asked for: 500 MB take half a second."""
        with self.lock:
            broken_off = self._hash is not None and self._hash.done() and self._hash.exception()
            if self._hash is None or broken_off:
                with_one = ThreadPoolExecutor(1, "hash of weights")
                self._hash = with_one.submit(hashed)
                with_one.shutdown(wait=False)

    def hash(self, hashed: Callable[[], str]) -> str:
        self.begin_hash(hashed)
        assert self._hash is not None
        return self._hash.result()
