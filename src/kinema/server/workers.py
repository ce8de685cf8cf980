"""The server's end of a worker: starts its process, and starts it again when it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kinema.server.children import START_SECONDS, Child, Ended, Message

LOG = logging.getLogger("kinema.server")
State = Literal["starting", "idle", "busy", "waiting", "refused", "stopped"]
BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
"""Seconds before a process that ended at once is started again: doubled each time, up to the longest."""
STEADY = 30.0
"""Seconds after which a process counts as started."""
CLOSING = 3.0
"""Seconds that a process has to end, once its input is closed."""


@dataclass(frozen=True)
class Kind:
    """Devices that are alike, and the memory that each of their workers has at least."""

    devices: tuple[str, ...]
    memory: int | None

    @property
    def device(self) -> str | None:
        return next(iter(self.devices), None)


class Worker:
    """One device. ``hear`` gets its messages, ``ended`` is called when its process has ended, with how it did."""

    def __init__(
        self,
        setup: Mapping[str, Any],
        folder: Path,
        lock: int,
        hear: Callable[[Worker, Message], None],
        ended: Callable[[Worker, str], None],
    ) -> None:
        self.setup, self.folder, self.lock, self.hear, self.ended = setup, folder, lock, hear, ended
        self.device: str | None = setup["device"]
        self.state: State = "starting"
        self.job: str | None = None
        self.loaded: list[Mapping[str, Any]] = []
        self.about: Mapping[str, Any] = {}
        self.refusal = ""
        self.restarts = 0
        self.child: Child | None = None
        self.settled = asyncio.Event()
        """Set once the first process is ready or has been refused."""
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def usable(self) -> bool:
        """Whether it runs jobs, now or once it has started (again)."""
        return self.state not in ("refused", "stopped")

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_running())

    def run(self, job: str, message: Mapping[str, Any]) -> None:
        """Send a job to an idle worker."""
        assert self.child is not None
        self.state, self.job = "busy", job
        self.child.send({"do": "run", "job": job, **message})

    def cancel(self, job: str, *, keep: bool) -> None:
        if self.child is not None and self.job == job:
            self.child.send({"do": "cancel", "job": job, "keep": keep})

    def kill(self) -> None:
        if self.child is not None:
            self.child.kill()

    def free(self) -> None:
        """The job has ended and its end is stored."""
        self.job = None
        if self.state == "busy":
            self.state = "idle" if self.child is not None else "waiting"

    async def stop(self) -> None:
        """End the process, and report the end of its job."""
        self._stopping = True
        if self.child is not None:
            self.child.close()
        if self._task is not None:
            if self.state == "waiting" or self.child is None:
                self._task.cancel()
            _, late = await asyncio.wait({self._task}, timeout=CLOSING)
            if late:
                self.kill()
                await asyncio.wait(late)
        self.settled.set()
        self.state = "stopped"

    def status(self) -> dict[str, Any]:
        """Return what clients may know of the worker."""
        return {
            "device": self.device, "name": self.about.get("name"), "state": self.state, "job": self.job,
            "loaded": self.loaded, "memory_limit": self.about.get("memory_limit"), "restarts": self.restarts,
            "message": self.refusal or None, "pid": None if self.child is None else self.child.pid,
        }  # fmt: skip

    async def _keep_running(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            how = await self._one_process()
            self.child, self.loaded = None, []
            if self._stopping:
                self.ended(self, how)
                return
            if self.refusal:
                self.state = "refused"
                LOG.error("the worker of %s cannot start: %s", self.device or "the device", self.refusal)
                self.settled.set()
                return
            LOG.warning("the worker of %s %s and is started again", self.device or "the device", how)
            self.state = "waiting"
            self.ended(self, how)
            self.restarts += 1
            failures = 0 if time.monotonic() - began > STEADY else failures + 1
            await asyncio.sleep(0 if failures < 2 else min(BACKOFF * 2**failures, LONGEST_BACKOFF))

    async def _one_process(self) -> str:
        """Run a process to its end and return how it ended."""
        self.state = "starting" if self.job is None else self.state
        try:
            self.child = child = await Child.start("kinema.server.worker", self.folder, keep=(self.lock,))
        except OSError as error:
            return f"did not start ({error.strerror})"
        try:
            child.send(self.setup)
            async with asyncio.timeout(START_SECONDS):
                first = await child.receive()
            self._begun(first)
            while True:
                self.hear(self, await child.receive())
        except TimeoutError:
            await child.stop()
            return "did not start in time"
        except Ended as ended:
            return str(ended)
        except asyncio.CancelledError:
            await child.stop()
            raise
        except Exception:  # a fault of this process: its job fails, and the device stays in use
            LOG.exception("a message of the worker of %s cannot be handled", self.device or "the device")
            await child.stop()
            return "was stopped, since the server could not handle a message of it"

    def _begun(self, first: Message) -> None:
        if first["kind"] == "refused":
            self.refusal = first["message"]
            return
        self.about, self.device = first, first["device"]
        self.state = "idle" if self.job is None else "busy"
        self.settled.set()
        self.hear(self, first)


def kinds_of(workers: Sequence[Worker]) -> list[Kind]:
    """Return the kinds of devices of the workers that have started, the one with most memory first."""
    alike: dict[str, list[Worker]] = {}
    for each in workers:
        if each.about and each.usable:
            alike.setdefault(each.about["name"], []).append(each)
    kinds = [
        Kind(tuple(str(each.device) for each in group), min(each.about["memory_limit"] for each in group))
        for group in alike.values()
    ]
    return sorted(kinds, key=lambda kind: -(kind.memory or 0))
