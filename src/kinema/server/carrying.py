"""The server's end of the carriers: a process for each document whose masks are carried, with one started ahead."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from kinema.server.children import Child, Ended
from kinema.server.jobs import ServiceError
from kinema.server.settings import Settings

MODULE = "kinema.server.carrier"
IDLE_SECONDS = 300.0
"""How long a process that was started ahead waits for the next document."""


class Carrying:
    """Carries masks in processes that are used once, one at a time: a later document is about the same clip."""

    def __init__(self, settings: Settings) -> None:
        self._limits, self._folder = settings.limits, settings.folder
        self._lock = asyncio.Lock()
        self._spare: asyncio.Task[Child] | None = None

    async def carried(self, request: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
        """Return the masks of a settled request with paths; see `kinema.server.carrier`. Raises `ServiceError`."""
        async with self._lock:
            child = await self._taken()
            limits = self._limits
            try:
                child.send({"request": request, "names": names, "bytes": limits.decode_bytes,
                            "seconds": limits.decode_seconds})  # fmt: skip
                async with asyncio.timeout(limits.decode_seconds):
                    reply = await child.receive()
            except TimeoutError:
                message = f"carrying the masks takes more than {limits.decode_seconds:g} seconds; use a shorter clip"
                raise ServiceError(400, "invalid_request", message) from None
            except Ended as ended:
                raise ServiceError(500, "internal_error", f"the process that carries masks {ended}") from None
            finally:
                await child.stop()
                self._spare = asyncio.create_task(self._ahead())
        if "error" in reply:
            raise ServiceError(400, "invalid_request", reply["error"])
        return reply["answer"]

    async def _taken(self) -> Child:
        spare, self._spare = self._spare, None
        if spare is not None:
            with contextlib.suppress(Exception):
                child = await spare
                if child.process.returncode is None:
                    return child
        try:
            return await Child.ready(MODULE, self._folder)
        except (TimeoutError, Ended, OSError) as error:
            raise ServiceError(503, "not_ready", "the process that carries masks does not start") from error

    async def _ahead(self) -> Child:
        child = await Child.ready(MODULE, self._folder)
        asyncio.get_running_loop().call_later(IDLE_SECONDS, child.kill)
        return child
