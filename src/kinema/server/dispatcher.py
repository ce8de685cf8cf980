"""Jobs and workers: which job runs where, how it is cancelled, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kinema.server import clip_files, estimates
from kinema.server.catalogue import Catalogue
from kinema.server.children import Message
from kinema.server.jobs import Job, Progress, ServiceError, Status
from kinema.server.listeners import Hub, Live
from kinema.server.names import Names, Resolved
from kinema.server.settings import Settings
from kinema.server.store import Store
from kinema.server.workers import Worker

LOG = logging.getLogger("kinema.server")
RETRY = 1.0
"""Seconds between attempts to store the end of a job while the disk is full."""
PATIENCE = 600.0
"""Seconds that a cancelled job may take to stop before its worker is killed."""
EVENTS = ("phase", "step", "preview", "note", "memory")
MAX_UNBEGUN = 3
"""Workers that may end between getting a job and beginning it; the job fails with the last of them."""
STOPPED = "the server stopped while this job ran; retry it to run it again"


class Dispatcher:
    """The workers and the jobs that they run."""

    def __init__(self, settings: Settings, store: Store, names: Names, catalogue: Catalogue, hub: Hub) -> None:
        """``settings.folder`` is absolute; ``names`` looks models up in ``catalogue``."""
        self.settings, self.store, self.names, self.catalogue, self.hub = settings, store, names, catalogue, hub
        self.folder = settings.folder
        self.workers: list[Worker] = []
        self.live: dict[str, Live] = {}
        self._unbegun: dict[str, int] = {}
        """How many workers ended since they got a job and before they began it, by job."""
        self._devices: dict[str, Sequence[str]] = {}
        """The devices that can run each waiting job: the queue is not read again for each job that is given out."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._again: asyncio.TimerHandle | None = None
        self._looking = False
        """Whether the folders of models are being read, after which waiting jobs are given out."""

    def recover(self) -> Sequence[str]:
        """Settle the jobs that ran when the server ended, and remove what they left unfinished."""
        interrupted = []
        for job in self.store.with_status("in_progress", "cancelling"):
            status, changes = self._left_by(job, "interrupted", "interrupted", STOPPED)
            self.store.move_to(job.id, status, **changes)
            if status == "interrupted":
                interrupted.append(job.id)
        clip_files.tidy(self.folder / "jobs", self.store.identifiers("jobs"))
        return interrupted

    def _left_by(self, job: Job, status: Status, code: str, message: str) -> tuple[Status, dict[str, Any]]:
        """Return the end of a job whose worker is gone: completed if its folder is finished, else the given one."""
        result, changes = clip_files.result_of(self.folder / "jobs" / job.id), {"completed_at": time.time()}
        if result is not None and not result["partial"]:
            return "completed", {**changes, "result": result, "progress": 100}
        if job.status == "cancelling" and (result is not None or status == "failed"):
            return "cancelled", {**changes, "result": result}
        return status, {**changes, "error_code": code, "error_message": message}

    def start(self) -> None:
        for device in self.settings.devices or (None,):
            self._add_worker(device)

    async def refusal(self) -> str:
        """Wait until the workers have started, and return why one of them cannot; "" if all can."""
        await asyncio.gather(*(worker.settled.wait() for worker in self.workers))
        return next((worker.refusal for worker in self.workers if worker.refusal), "")

    async def stop(self) -> Sequence[str]:
        """Stop the workers and return the jobs that this interrupted."""
        self._stopping = True
        running = [*self.live]
        await asyncio.gather(*(worker.stop() for worker in self.workers))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return [video_id for video_id in running if self.store.get(video_id).status == "interrupted"]

    def setup(self, device: str | None) -> dict[str, Any]:
        """Return the first message to a worker or planner."""
        own = self.settings
        return {
            "device": device, "dtype": own.dtype, "threads": own.threads, "memory": own.memory, "offload": own.offload,
            "compile": own.compile, "preview_rate": own.preview_rate,
            "c2pa_certificate": None if own.c2pa_certificate is None else str(own.c2pa_certificate.absolute()),
            "c2pa_key": None if own.c2pa_key is None else str(own.c2pa_key.absolute()),
        }  # fmt: skip

    def _add_worker(self, device: str | None) -> None:
        worker = Worker(self.setup(device), self.folder / "empty", self.store.lock, self._hear, self._ended)
        self.workers.append(worker)
        worker.start()

    # -------------------------------------------------------------------------------------- status

    def current(self, video_id: str) -> Job:
        """Return a job with its progress. Raises `ServiceError` 404."""
        return self.with_progress(self.store.get(video_id))

    def with_progress(self, job: Job) -> Job:
        live = self.live.get(job.id)
        return job if live is None or job.final else replace(job, progress=live.progress)

    def status(self, job: Job) -> Progress:
        live, waiting = self.live.get(job.id), self.store.queued() if job.status == "queued" else []
        error = None if job.error_code is None else {"code": job.error_code, "message": job.error_message}
        names = ("id", "status", "progress", "created_at", "started_at", "completed_at", "device", "attempts", "kills")
        data = {name: getattr(job, name) for name in names}
        running = {"stage": live.stage, "phase": live.phase, "eta": live.eta} if live is not None else {}
        position = waiting.index(job.id) if job.id in waiting else None
        return Progress(
            kind="status", data={**data, **running, "queue_position": position, "error": error, "result": job.result}
        )

    def past(self, video_id: str) -> list[Progress]:
        """Return what a new reader of a job's events gets first."""
        job, live = self.current(video_id), self.live.get(video_id)
        return [self.status(job), *(live.past() if live is not None and not job.final else ())]

    def publish(self, job: Job) -> None:
        """Tell readers of a job's new status."""
        self.hub.tell(job.id, self.status(job))

    # -------------------------------------------------------------------------------------- cancel

    async def cancel(self, video_id: str, *, keep_partial: bool) -> Job:
        """Cancel a job, and return it once its worker has stopped."""
        job = self.store.get(video_id)
        if job.status == "queued":
            gone = self.store.move_to(video_id, "cancelled", completed_at=time.time())
            if gone is not None:
                self.publish(gone)
                return gone
        live = self.live.get(video_id)
        if live is None:
            return self.current(video_id)
        if not live.cancelled:
            live.cancelled = True
            self._start(self._kill_late(video_id, live))
            with contextlib.suppress(ServiceError):  # where the disk is full, the cancel goes through all the same
                if (stopping := self.store.move_to(video_id, "cancelling")) is not None:
                    self.publish(stopping)
        live.worker.cancel(video_id, keep=keep_partial)
        await live.done.wait()
        return self.current(video_id)

    async def _kill_late(self, video_id: str, live: Live) -> None:
        """Kill the worker of a cancelled job that does not stop."""
        try:
            async with asyncio.timeout(PATIENCE):
                await live.done.wait()
        except TimeoutError:
            LOG.error("the cancelled job %s does not stop; its worker is killed", video_id)
            live.worker.kill()

    # ------------------------------------------------------------------------------------ dispatch

    def wake(self) -> None:
        """Give waiting jobs to idle workers, in order."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        try:
            while not self._stopping and not self.store.paused:
                idle = [worker for worker in self.workers if worker.state == "idle"]
                video_id, able = self._next(idle) if idle else (None, [])
                if video_id is None:
                    return
                if not self.catalogue.fresh:
                    self._start(self._wake_after_look())
                    return
                self._begin(self.store.get(video_id), able)
        except ServiceError:  # the disk is full
            self._again = asyncio.get_running_loop().call_later(RETRY, self.wake)

    async def _wake_after_look(self) -> None:
        """Read the folders of models in a thread, for they may be large or on a slow disk, and then `wake`."""
        if self._looking:
            return
        self._looking = True
        try:
            await self.catalogue.refresh()
        finally:
            self._looking = False
        self.wake()

    def _next(self, idle: Sequence[Worker]) -> tuple[str | None, Sequence[Worker]]:
        """The first waiting job that an idle worker can run, and those workers; None if there is none."""
        waiting = self.store.queued()
        self._devices = {video_id: self._devices[video_id] for video_id in waiting if video_id in self._devices}
        for video_id in waiting:
            if video_id not in self._devices:
                self._devices[video_id] = self.store.get(video_id).settled.devices
            if able := self._able(self._devices[video_id], idle):
                return video_id, able
        return None, []

    def _able(self, devices: Sequence[str], idle: Sequence[Worker]) -> Sequence[Worker]:
        """The idle workers that can run a job of these devices. Where they are no more, it fails on another with a
        sentence.
        """
        able = [worker for worker in self.workers if worker.device in devices and worker.usable]
        return [worker for worker in idle if worker in able] if able else idle

    def _begin(self, job: Job, idle: Sequence[Worker]) -> None:
        """Start a job on an idle worker, one that has its model loaded if there is one."""
        try:
            resolved = self.names.resolve(job.order, job.settled.seed)
        except ServiceError as error:
            changes = {"error_code": error.code, "error_message": error.message, "completed_at": time.time()}
            failed = self.store.move_to(job.id, "failed", **changes)
            if failed is not None:
                self.publish(failed)
            return
        worker = next((each for each in idle if job.order.opened in _names(each)), idle[0])
        changes = {"started_at": time.time(), "attempts": job.attempts + 1, "device": worker.device}
        started = self.store.move_to(job.id, "in_progress", **changes)
        if started is None:
            return
        self.live[job.id] = Live(worker)
        worker.run(job.id, self._message(started, resolved))
        self.publish(started)

    def _message(self, job: Job, resolved: Resolved) -> Message:
        folder = self.folder / "jobs" / f"{job.id}.{job.attempts}.part"
        stages = [stage["stage"] for stage in job.settled.forecast["stages"]]
        return {**resolved.message(), "folder": str(folder), "stages": stages}

    def _hear(self, worker: Worker, message: Message) -> None:
        """A worker has sent a message."""
        kind, job = message["kind"], message.get("job")
        if kind == "ready":
            for device in message["devices"] if not self.settings.devices and worker is self.workers[0] else ():
                if device != message["device"] and device not in {each.device for each in self.workers}:
                    if not (message["device"] == "cuda" and device == "cuda:0"):
                        self._add_worker(device)
            self.wake()
        elif kind == "begun" and job in self.live:
            self.live[job].begun = True
        elif kind == "models":
            worker.loaded = message["loaded"]
        elif kind == "done" and job in self.live:
            self.live[job].ending = True
            self._start(self._finish(worker, message))
        elif kind in EVENTS and job in self.live:
            progress = Progress(kind=kind, data=message["data"])
            self.live[job].hear(progress)
            self.hub.tell(job, progress)

    async def _finish(self, worker: Worker, message: Message) -> None:
        """Store how a job ended."""
        video_id, result = message["job"], message.get("result")
        job = self.store.get(video_id)
        status: Status = message["outcome"]
        changes: dict[str, Any] = {"completed_at": time.time(), "result": result}
        if status == "completed":
            changes["progress"] = 100
        elif self.live[video_id].cancelled:
            status, changes = "cancelled", {**changes, "error_message": message["message"]}
        elif status == "failed":
            changes |= {"error_code": message["code"], "error_message": message["message"]}
        else:  # cancelled without a request: nothing here does that
            status, changes = "failed", {**changes, "error_code": "internal_error", "error_message": message["message"]}
        await self._store_end(worker, video_id, status, changes)
        if status == "completed" and "seconds" in message:
            with contextlib.suppress(ServiceError):
                estimates.record(self.store, job.order.opened, job.settled, message["seconds"])

    def _ended(self, worker: Worker, how: str) -> None:
        """A worker's process has ended; so has its job."""
        live = self.live.get(worker.job or "")
        if worker.job is not None and live is not None and not live.ending:
            self._start(self._fail(worker, worker.job, how))

    async def _fail(self, worker: Worker, video_id: str, how: str) -> None:
        job = self.store.get(video_id)
        if self.live[video_id].cancelled:
            job = replace(job, status="cancelling")
        status: Status
        changes: dict[str, Any]
        if self._runs_again(job):
            status, changes = "queued", {"position": job.position, "attempts": job.attempts - 1, "started_at": None}
        elif self._stopping:
            status, changes = self._left_by(job, "interrupted", "interrupted", STOPPED)
        else:
            why = f"the worker {how} while this job ran"
            if not self.live[video_id].begun and job.status == "in_progress":
                why = f"{MAX_UNBEGUN} workers ended before they began this job; the last one {how}"
            why += "; the system may have run out of memory" if "signal 9" in how else ""
            status, changes = self._left_by(job, "failed", "worker_died", why)
            changes |= {"kills": job.kills + 1} if status != "completed" else {}
        for part in (self.folder / "jobs").glob(f"{video_id}.*"):
            clip_files.remove(part)
        await self._store_end(worker, video_id, status, changes)

    def _runs_again(self, job: Job) -> bool:
        """Whether a job whose worker is gone waits again: nothing of it has run, and it may not be the cause."""
        if self.live[job.id].begun or job.status != "in_progress":
            return False
        if not self._stopping:
            self._unbegun[job.id] = self._unbegun.get(job.id, 0) + 1
        return self._unbegun.get(job.id, 0) < MAX_UNBEGUN

    async def _store_end(self, worker: Worker, video_id: str, status: Status, changes: Mapping[str, Any]) -> None:
        """Store the end of a job, as soon as the disk allows, and let its worker take the next one."""
        live = self.live[video_id]
        if status != "completed":
            changes = {"progress": live.progress, **changes}
        while True:
            try:
                job = self.store.move_to(video_id, status, **changes)
                break
            except ServiceError:
                if self._stopping:
                    job = None  # it is settled at the next start
                    break
                await asyncio.sleep(RETRY)
        self.live.pop(video_id, None)
        if status != "queued":
            self._unbegun.pop(video_id, None)
        worker.free()
        if job is not None:
            self.publish(job)
        live.done.set()
        self.wake()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _names(worker: Worker) -> set[str]:
    return {each["id"] for each in worker.loaded}
