"""A job's events, from its stream or, while that is broken, from asking for its state.

`Follower` reads in a thread of its own, so that the caller can cancel while nothing arrives. `Report` turns what
arrives into the events of `kinema.events`.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from kinema.client.http import Http, Message
from kinema.client.outputs import preview_of
from kinema.events import Memory, Note, OnEvent, Phase, Preview, Step
from kinema.schema import BadRequest, JobFailed
from kinema.values import matches

FINAL = frozenset({"cancelled", "completed", "failed", "interrupted"})
PATIENCE = 120.0
"""Seconds without an answer after which a service counts as lost."""
PAUSE = 1.0
"""Seconds between two questions while the stream is broken."""
LEAST_SHARE = 1e-6
WAITING = 256
"""Events that wait for the caller; the thread reads no further meanwhile."""


class Follower:
    """Reads a job's events in a thread and hands them over by `next`, the last with a final state."""

    def __init__(self, http: Http, video_id: str, *, previews: bool) -> None:
        self.http, self.path, self.previews = http, f"/v1/videos/{video_id}", previews
        self.arrived: queue.Queue[Message | Exception] = queue.Queue(WAITING)
        self.left = threading.Event()
        self.thread = threading.Thread(target=self._read, name="kinema-events", daemon=True)
        self.thread.start()

    def next(self, seconds: float) -> Message | None:
        """The next event; None if none arrives within ``seconds``. Raises what ended the reading."""
        try:
            found = self.arrived.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """Stop reading. The thread ends with the next event, or with the stream's time limit."""
        self.left.set()

    def _read(self) -> None:
        heard = time.monotonic()
        while not self.left.is_set():
            try:
                for message in self.http.messages(
                    f"{self.path}/events", params={"previews": str(self.previews).lower()}
                ):
                    heard = time.monotonic()
                    if self._put(message):
                        return
            except (BadRequest, JobFailed):
                pass  # the state says whether the job, the stream or the service is gone
            try:
                state = self.http.json("GET", self.path)
                heard = time.monotonic()
                if self._put(Message("status", state)):
                    return
            except BadRequest as error:  # it is removed, or the token is no longer accepted
                self._put(error)
                return
            except JobFailed as error:
                if time.monotonic() - heard > PATIENCE:
                    self._put(error)
                    return
            self.left.wait(PAUSE)

    def _put(self, found: Message | Exception) -> bool:
        """Hand over, and whether reading ends with this one."""
        while not self.left.is_set():
            try:
                self.arrived.put(found, timeout=0.5)
                break
            except queue.Full:
                continue
        if isinstance(found, Exception) or self.left.is_set():
            return True
        return found.kind == "status" and found.data.get("status") in FINAL


class Report:
    """Calls a listener with the events of a job; each note once, since a new connection repeats them, and in the words
    of ``worded``.
    """

    def __init__(self, on_event: OnEvent, worded: Callable[[str], str] = str) -> None:
        self.on_event, self.worded = on_event, worded
        self.notes: set[str] = set()
        self.ahead: int | None = None

    def __call__(self, message: Message) -> None:
        data = message.data
        if message.kind == "status":
            self._status(data)
        elif message.kind == "phase":
            self._phase(_text(data, "name"), _text(data, "detail"))
        elif message.kind == "step":
            self._step(data)
        elif message.kind == "preview":
            frames = preview_of(data)
            if frames is not None:
                self.on_event(
                    Preview(_whole(data, "index"), _whole(data, "total"), frames, _text(data, "stage", "base"))
                )
        elif message.kind == "note":
            self.note(_text(data, "message"))
        elif message.kind == "memory":
            self.on_event(Memory(_whole(data, "peak_bytes")))

    def note(self, sentence: str) -> None:
        if sentence and sentence not in self.notes:
            self.notes.add(sentence)
            self.on_event(Note(self.worded(sentence)))

    def _status(self, data: Mapping[str, Any]) -> None:
        notes = data.get("notes")
        for sentence in notes if isinstance(notes, list) else ():
            self.note(_text({"note": sentence}, "note"))
        ahead = data.get("queue_position")
        if data.get("status") == "queued" and isinstance(ahead, int) and ahead != self.ahead:
            self.ahead = ahead
            self._phase("queue", f"position {ahead}" if ahead else "")

    def _phase(self, name: str, detail: str) -> None:
        if name and name != "write":  # the service's own files; the caller writes a clip when it has it
            self.on_event(Phase(name, detail))

    def _step(self, data: Mapping[str, Any]) -> None:
        index, total = _whole(data, "index"), _whole(data, "total")
        if not 1 <= index <= total:
            return
        log_snr, share = _number(data, "log_snr"), _number(data, "share")
        share = None if share is None else min(1.0, max(LEAST_SHARE, share))
        self.on_event(Step(index, total, math.nan if log_snr is None else log_snr, share=share))


def _text(data: Mapping[str, Any], name: str, default: str = "") -> str:
    value = data.get(name)
    return value if isinstance(value, str) else default


def _number(data: Mapping[str, Any], name: str) -> float | None:
    value = data.get(name)
    return float(value) if isinstance(value, int | float) and matches(value, float) else None


def _whole(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name)
    return value if type(value) is int and value >= 0 else 0
