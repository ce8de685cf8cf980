"""Clips in other formats, written when a client asks for one the first time and kept next to the clip."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kinema.server.children import Child, Ended
from kinema.server.clip_files import numbered
from kinema.server.jobs import ServiceError

FORMATS = {"gif": "image/gif", "webp": "image/webp", "zip": "application/zip"}
"""Variants that are converted, and their media types; zip holds the frames as png."""
AT_ONCE = 2
SECONDS = 300.0


class Conversions:
    """Runs a process for each conversion, ``AT_ONCE`` at a time; those who ask for the same file share it."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._running: dict[Path, asyncio.Task[None]] = {}

    async def path(self, frames: Path, recipe: Path, fps: float, variant: str, clip: int = 0) -> Path:
        """Return the file of a clip in the format ``variant``; a zip has all clips. Raises `ServiceError`."""
        target = numbered(frames.with_name(f"{frames.parent.name}.{variant}"), clip)
        if not target.is_file():
            task = self._running.get(target)
            if task is None:
                task = asyncio.create_task(self._convert(frames, recipe, fps, target, clip))
                self._running[target] = task
                task.add_done_callback(lambda _: self._running.pop(target, None))
            await asyncio.shield(task)
        return target

    async def _convert(self, frames: Path, recipe: Path, fps: float, target: Path, clip: int) -> None:
        async with self._slots:
            try:
                child = await Child.ready("kinema.server.converter", frames.parent)
            except (TimeoutError, Ended, OSError) as error:
                raise ServiceError(503, "not_ready", "the process that converts clips does not start") from error
            try:
                paths = {"frames": str(frames), "recipe": str(recipe), "target": str(target)}
                child.send({**paths, "fps": fps, "clip": clip})
                async with asyncio.timeout(SECONDS):
                    reply = await child.receive()
            except TimeoutError:
                raise ServiceError(503, "not_ready", f"the conversion takes more than {SECONDS:g} seconds") from None
            except Ended as ended:
                raise ServiceError(500, "internal_error", f"the process that converts clips {ended}") from None
            finally:
                await child.stop()
        if "error" in reply:
            raise ServiceError(500, "internal_error", reply["error"])
