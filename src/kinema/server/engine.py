"""What the HTTP layer needs of the engine. `kinema.server.supervisor.Supervisor` is the real one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from kinema.server.jobs import Asset, Job, Order, Progress, Settled, Status


class Engine(Protocol):
    """The queue, the workers and the files. Every method raises `ServiceError` for what it refuses.

    Methods run on the event loop of the server and never block it for long.
    """

    async def start(self) -> Sequence[str]:
        """Open the store, mark interrupted jobs, start workers. Raises BadRequest for a store that cannot be used.

        Returns the identifiers of the jobs that were running when the server last ended, now "interrupted".
        """
        ...

    async def stop(self) -> Sequence[str]:
        """Stop workers; running jobs become "interrupted", and their identifiers are returned."""
        ...

    # jobs ---------------------------------------------------------------------------------------

    async def plan(self, order: Order) -> Settled:
        """Settle an order without queueing it. 400 with the package's own sentence for an invalid one."""
        ...

    async def submit(self, order: Order) -> Job:
        """`plan`, then queue. 429 if the queue is full, 507 if the disk is."""
        ...

    def get(self, video_id: str) -> Job:
        """404 for an unknown identifier."""
        ...

    def list(
        self, *, after: str | None, limit: int, newest_first: bool, status: str | None
    ) -> tuple[Sequence[Job], bool]:
        """Up to ``limit`` jobs after the given one, and whether there are more. 404 for an unknown ``after``."""
        ...

    async def cancel(self, video_id: str, *, keep_partial: bool) -> Job:
        """Cancel, and return once the worker has stopped computing. A job that finished first stays "completed"; a
        final job is returned as it is.
        """
        ...

    async def delete(self, video_id: str) -> None:
        """Remove a final or queued job and its files. 409 while it runs, or while a waiting or running job uses it."""

    async def retry(self, video_id: str) -> Job:
        """Queue a cancelled, failed or interrupted job again. 409 in other states, or if it killed its worker twice."""
        ...

    async def move(self, video_id: str, *, before: str | None) -> Job:
        """Put a queued job before another queued one; None: at the end. 409 unless queued."""
        ...

    async def pause(self, paused: bool) -> None:
        """While paused, no waiting job is started; running ones finish. Survives a restart."""

    def queue(self) -> Mapping[str, Any]:
        """``paused``, ``queued`` (identifiers in order), ``running`` (identifiers), ``workers`` (device, state, job,
        loaded models and their bytes, memory limit, restarts).
        """
        ...

    def events(self, video_id: str) -> AsyncIterator[Progress]:
        """The job's status now, then its events until it is final. A slow reader misses steps and previews, never a
        change of status; what waits for a reader is bounded.
        """
        ...

    # what is counted ----------------------------------------------------------------------------

    def counts(self) -> Mapping[Status, int]:
        """Number of jobs in each state."""
        ...

    def listen(self, listener: Callable[[str, Progress], None]) -> None:
        """Call ``listener`` with the identifier of the job and each event, from now on, for all jobs."""

    # files --------------------------------------------------------------------------------------

    def content(
        self, video_id: str, variant: Literal["video", "thumbnail", "spritesheet", "frames", "recipe"], clip: int = 0
    ) -> Path:
        """A file of a completed (or partially kept) clip, of one clip of a batch. 404 if there is none (yet); frames
        and recipe are of all clips.

        "video" is an mp4, "thumbnail" a webp, "spritesheet" a jpg of evenly spaced frames in a grid, "frames" the
        lossless frames (npz: uint8 N×T×H×W×3) that `kinema.connect` reads, "recipe" JSON.
        """
        ...

    async def add_asset(self, part: Path, name: str) -> Asset:
        """Take over an uploaded file from `uploads_folder` after decoding it in a limited process. 400 if it cannot be
        read, 413 if too large, 507 if the disk is full. ``name`` is never used as a path.
        """
        ...

    @property
    def uploads_folder(self) -> Path:
        """Where the HTTP layer writes uploads, under names of its own, before `add_asset`; emptied at start."""
        ...

    def assets(self, *, after: str | None, limit: int) -> tuple[Sequence[Asset], bool]: ...

    def asset(self, asset_id: str) -> tuple[Asset, Path]: ...

    async def forget_asset(self, asset_id: str) -> None:
        """Take back one `add_asset`: the upload goes, unless the same bytes were sent otherwise too, or are used."""

    async def delete_asset(self, asset_id: str) -> None:
        """409 while a waiting or running job uses it."""

    # models -------------------------------------------------------------------------------------

    async def models(self) -> Sequence[Mapping[str, Any]]:
        """Models, add-ons and LoRAs that requests may name: ``id``, ``kind`` (embedded, preset, file, published; lora;
        add-on), ``family``, ``parameters``, ``bytes`` on disk, ``licence``, ``here`` (whether its files are on this
        machine), ``download`` (state, bytes, total) and, for models, defaults (frames, fps, height, width, steps,
        sizes, verbs, extra).
        """
        ...

    async def download(self, model_id: str) -> Mapping[str, Any]:
        """Start a download, or return the one that runs. 403 if the service is offline, 404 for an unknown name."""
        ...

    async def cancel_download(self, model_id: str) -> None: ...
