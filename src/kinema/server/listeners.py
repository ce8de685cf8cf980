"""Readers of a job's events, each with a bounded number of events that wait for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kinema.server.channel import Outbox
from kinema.server.jobs import FINAL, Progress

KEPT = 100
"""Events of a running job (phases, notes, memory) that a new reader gets."""


class Listener:
    """One reader. A slow one misses steps and previews, never a change of status."""

    def __init__(self) -> None:
        self._outbox, self._changed = Outbox(), asyncio.Event()

    def put(self, progress: Progress | None) -> None:
        """Add an event; None ends the stream after what waits."""
        kind = "end" if progress is None else progress.kind
        if kind in ("phase", "memory"):
            kind = "note"  # as many of these as of notes wait at most
        self._outbox.put(kind, (progress,))
        self._changed.set()

    def __len__(self) -> int:
        return len(self._outbox)

    async def events(self) -> AsyncIterator[Progress]:
        """Yield events until the status is final, or the service stops."""
        while True:
            while (taken := self._outbox.take()) is None:
                self._changed.clear()
                await self._changed.wait()
            progress = taken[0]
            if progress is None:
                return
            yield progress
            if progress.kind == "status" and progress.data["status"] in FINAL:
                return


@dataclass
class Live:
    """What is known of a running job besides its record."""

    worker: Any
    progress: int = 0
    stage: str | None = None
    phase: str | None = None
    eta: float | None = None
    begun: bool = False
    """Whether the worker has confirmed that it has the job."""
    cancelled: bool = False
    """Whether a client has cancelled the job, also where a full disk keeps that from being stored."""
    ending: bool = False
    """Whether the worker has reported the end, which is being stored."""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    events: deque[Progress] = field(default_factory=lambda: deque(maxlen=KEPT))
    step: Progress | None = None

    def hear(self, progress: Progress) -> None:
        """Take in an event of the job."""
        if progress.kind == "step":
            self.step, share = progress, progress.data.get("share")
            self.stage, self.eta = progress.data["stage"], progress.data["eta"]
            if share is not None:
                self.progress = max(self.progress, min(int(100 * share), 99))
        elif progress.kind == "phase":
            self.phase, self.stage = progress.data["name"], progress.data["stage"]
        if progress.kind in ("phase", "note", "memory"):
            self.events.append(progress)

    def past(self) -> list[Progress]:
        """Return the events that a new reader gets first."""
        return [*self.events, *([self.step] if self.step else [])]


class Hub:
    """All readers of events, by job."""

    def __init__(self) -> None:
        self.listeners: dict[str, list[Listener]] = {}
        self.taps: list[Callable[[str, Progress], None]] = []
        """Called with the events of all jobs."""

    def tell(self, video_id: str, progress: Progress) -> None:
        for listener in self.listeners.get(video_id, ()):
            listener.put(progress)
        for tap in self.taps:
            tap(video_id, progress)

    async def events(self, video_id: str, past: Callable[[], Sequence[Progress]]) -> AsyncIterator[Progress]:
        """Yield what has happened so far, then the job's events; ``past`` is called when the reader begins."""
        listener = Listener()
        self.listeners.setdefault(video_id, []).append(listener)
        try:
            for progress in past():
                listener.put(progress)
            async for progress in listener.events():
                yield progress
        finally:
            self.listeners[video_id].remove(listener)
            if not self.listeners[video_id]:
                del self.listeners[video_id]

    def end(self) -> None:
        """End all streams."""
        for listener in [each for listeners in self.listeners.values() for each in listeners]:
            listener.put(None)
