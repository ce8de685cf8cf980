"""The server's end of the planner: one request at a time, within a time limit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kinema.server.children import START_SECONDS, Child, Ended
from kinema.server.jobs import ServiceError


class Planning:
    """Keeps a planner running; one that hangs is killed and started again."""

    def __init__(self, setup: Mapping[str, Any], folder: Path, ready: Callable[[Mapping[str, Any]], None]) -> None:
        self.setup, self.folder, self.ready = setup, folder, ready
        self._child: Child | None = None
        self._lock, self._count, self._stopped = asyncio.Lock(), 0, False
        self._warming: asyncio.Task[None] | None = None

    def warm(self) -> None:
        """Start the planner ahead of the first request."""
        if not self._stopped:
            self._warming = asyncio.create_task(self._warm())

    async def _warm(self) -> None:
        async with self._lock:
            with contextlib.suppress(ServiceError):
                await self._started()

    async def ask(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Return the planner's answer. Raises `ServiceError` 400 with its sentence, and if it takes too long."""
        async with self._lock:
            child = await self._started()
            self._count += 1
            number = self._count
            child.send({**message, "id": number})
            try:
                async with asyncio.timeout(seconds):
                    while (reply := await child.receive()).get("id") != number:
                        pass  # the answer to a request whose client has gone
            except TimeoutError:
                await child.stop()
                self._lost()
                raise ServiceError(
                    400, "plan_timeout", f"planning this request took more than {seconds:g} seconds, so it was refused"
                ) from None
            except Ended as ended:
                self._lost()
                raise ServiceError(
                    400, "plan_failed", f"the process that plans requests {ended} while it planned this one"
                ) from None
        if "error" in reply:
            raise ServiceError(400, "invalid_request", reply["error"])
        return reply["answer"]

    async def _started(self) -> Child:
        if self._stopped:
            raise ServiceError(503, "stopping", "the service is stopping")
        if self._child is None:
            child = await Child.start("kinema.server.planner", self.folder)
            try:
                child.send(self.setup)
                async with asyncio.timeout(START_SECONDS):
                    self.ready(await child.receive())
            except (TimeoutError, Ended) as error:
                await child.stop()
                raise ServiceError(503, "not_ready", "the process that plans requests does not start") from error
            except BaseException:
                await child.stop()
                raise
            self._child = child
        return self._child

    def _lost(self) -> None:
        self._child = None
        self.warm()

    async def stop(self) -> None:
        self._stopped = True
        if self._warming is not None:
            self._warming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._warming
        if self._child is not None:
            await self._child.stop()
