"""Jobs of the service: their states, and the records that the store, the engine and the HTTP layer share.

Imports without torch. Times are Unix seconds. Files are named by identifiers (`asset-…`, `video_…`), never by paths:
only the engine turns an identifier into a path, inside its own folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["queued", "in_progress", "cancelling", "cancelled", "completed", "failed", "interrupted"]

NEXT: dict[Status, frozenset[Status]] = {
    "queued": frozenset({"in_progress", "cancelled", "failed"}),
    "in_progress": frozenset({"cancelling", "cancelled", "completed", "failed", "interrupted", "queued"}),
    "cancelling": frozenset({"cancelled", "completed", "failed", "interrupted"}),
    "cancelled": frozenset({"queued"}),
    "completed": frozenset(),
    "failed": frozenset({"queued"}),
    "interrupted": frozenset({"queued"}),
}
"""The states that may follow each state. A final state goes back to "queued" only by a retry that a client asks for.

"cancelling" may end as "completed": a clip that is finished beats a late cancel. A job in progress becomes "cancelled"
at once if "cancelling" could not be stored, and waits again if its worker died before it began.
"""
FINAL: frozenset[Status] = frozenset({"cancelled", "completed", "failed", "interrupted"})
MAX_KILLS = 2
"""A job during which its worker died this often is not tried again."""

VIDEO_ID = re.compile(r"video_[0-9a-z]{20,32}")
ASSET_ID = re.compile(r"asset-[0-9a-z]{20,32}")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a client asks for. ``request`` is the JSON form of a `kinema.Request` whose files are identifiers of assets
    or videos, and whose LoRAs and models are names that the service lists; ``model`` is such a name too, and ``add``
    maps slots of it to names of add-ons.
    """

    model: str
    request: Mapping[str, Any]
    remixed_from: str | None = None
    add: Mapping[str, str] = field(default_factory=dict)

    @property
    def opened(self) -> str:
        """What a worker opens for this order, in words: the model, and its add-ons if it has some."""
        return " + ".join([self.model, *(f"{slot}={name}" for slot, name in self.add.items())])


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What the planner says of an order: the clip that it will give, and why.

    ``notes`` are the choices made for the user, one sentence each. ``seconds`` is the expected duration of the job,
    from times measured in earlier jobs (``measured`` says of what); None if there are none yet.
    """

    frames: int
    fps: float
    height: int
    width: int
    clips: int
    steps: int
    seed: int
    task: str
    forecast: Mapping[str, Any]
    """`kinema.forecast.Forecast` as a dictionary, without measured times."""
    notes: Sequence[str] = ()
    seconds: float | None = None
    measured: str = ""
    devices: Sequence[str] = ()
    """The workers' devices that can run it, where some cannot; empty: all can."""

    def clip(self) -> dict[str, Any]:
        """The clip as clients see it with each video: what `kinema.client.outputs.Figures` reads."""
        stages = [each.get("stage") for each in self.forecast.get("stages", ())]
        return {
            "frames": self.frames, "fps": self.fps, "height": self.height, "width": self.width, "clips": self.clips,
            "steps": self.steps, "seed": self.seed, "task": self.task, "stages": stages,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the store has it. ``position`` orders the queue; ``progress`` is 0 to 100 percent of the whole job.

    ``attempts`` counts starts, ``kills`` the starts that ended with the death of the worker. ``result`` describes the
    finished (or partial) clip: frames, fps, height, width, seed, bytes, partial, variants.
    """

    id: str
    status: Status
    order: Order
    settled: Settled
    created_at: float
    position: float
    progress: int = 0
    started_at: float | None = None
    completed_at: float | None = None
    attempts: int = 0
    kills: int = 0
    device: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    result: Mapping[str, Any] | None = None

    @property
    def final(self) -> bool:
        return self.status in FINAL


@dataclass(frozen=True, kw_only=True)
class Asset:
    """An uploaded image or clip, decoded once within limits. ``name`` is the client's file name, for display only."""

    id: str
    kind: Literal["image", "video"]
    name: str
    bytes: int
    created_at: float
    frames: int
    fps: float | None
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    """An event of a job, for `Engine.events`.

    ``kind`` and ``data``: "status" (the public fields of the job), "phase" (name, detail, stage), "step" (index, total,
    stage, share, eta), "preview" (index, total, stage, frames, mime, data: base64), "note" (message), "memory"
    (peak_bytes). The last event of a stream is the "status" of a final state.
    """

    kind: Literal["status", "phase", "step", "preview", "note", "memory"]
    data: Mapping[str, Any] = field(default_factory=dict)


class ServiceError(Exception):
    """A request that the service refuses: HTTP ``status``, a short ``code`` and one sentence.

    400 invalid, 401 no token, 403 wrong host or origin, 404 unknown, 409 wrong state, 413 too large, 429 queue full,
    503 not ready, 507 disk full.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
