"""The server's end of the inspectors: a process for each upload, with one started ahead."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from kinema.server.children import Child, Ended
from kinema.server.jobs import ServiceError
from kinema.server.settings import Limits

AT_ONCE = 2
"""Uploads that are decoded at the same time."""


class Inspections:
    """Decodes uploads in processes that are used once."""

    def __init__(self, limits: Limits, folder: Path) -> None:
        self.limits, self.folder = limits, folder
        self._spare: asyncio.Task[Child] | None = None
        self._slots, self._stopped = asyncio.Semaphore(AT_ONCE), False

    def warm(self) -> None:
        """Start a process ahead of the next upload."""
        if self._spare is None and not self._stopped:
            self._spare = asyncio.create_task(self._started())

    async def _started(self) -> Child:
        return await Child.ready("kinema.server.inspector", self.folder)

    async def inspect(self, path: Path) -> dict[str, Any]:
        """Decode a file and return what it is. Raises `ServiceError` 400."""
        async with self._slots:
            spare, self._spare = self._spare or asyncio.create_task(self._started()), None
            self.warm()
            try:
                child = await spare
            except (TimeoutError, Ended, OSError) as error:
                raise ServiceError(503, "not_ready", "the process that decodes uploads does not start") from error
            try:
                return await self._ask(child, path)
            finally:
                await child.stop()

    async def _ask(self, child: Child, path: Path) -> dict[str, Any]:
        limits = self.limits
        child.send({"path": str(path), "bytes": limits.decode_bytes, "seconds": limits.decode_seconds})
        try:
            async with asyncio.timeout(limits.decode_seconds):
                reply = await child.receive()
        except TimeoutError:
            raise _refused(f"the file takes more than {limits.decode_seconds:g} seconds to decode") from None
        except Ended as ended:
            raise _refused(f"the file cannot be decoded: the process that decoded it {ended}") from None
        if "error" in reply:
            raise _refused(reply["error"])
        return reply["answer"]

    async def stop(self) -> None:
        self._stopped = True
        if self._spare is not None:
            self._spare.cancel()
            with contextlib.suppress(asyncio.CancelledError, TimeoutError, Ended, OSError):
                child = await self._spare
                await child.stop()


def _refused(message: str) -> ServiceError:
    return ServiceError(400, "invalid_upload", message)
