"""The engine of the service: queue, workers, planner, uploads and models behind `kinema.server.engine.Engine`.

Everything here runs on the server's event loop. What takes long is done by child processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from kinema.schema import BadRequest
from kinema.server import clip_files, estimates
from kinema.server.catalogue import Catalogue
from kinema.server.children import Message
from kinema.server.inspections import Inspections
from kinema.server.jobs import (
    ASSET_ID,
    MAX_KILLS,
    VIDEO_ID,
    Asset,
    Job,
    Order,
    Progress,
    ServiceError,
    Settled,
    Status,
)
from kinema.server.listeners import Listener, Live
from kinema.server.models import Models
from kinema.server.names import Names, Resolved, identifiers_in, new_id
from kinema.server.planning import Planning
from kinema.server.settings import Settings
from kinema.server.store import Store, unknown
from kinema.server.uploads import Uploads
from kinema.server.workers import Worker

LOG = logging.getLogger("kinema.server")
RETRY = 1.0
"""Seconds between attempts to store the end of a job while the disk is full."""
PATIENCE = 600.0
"""Seconds that a cancelled job may take to stop before its worker is killed."""
EVENTS = ("phase", "step", "preview", "note", "memory")
STOPPED = "the server stopped while this job ran; retry it to run it again"


class Supervisor:
    """The real `kinema.server.engine.Engine`."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.folder = settings, settings.folder.absolute()
        self.catalogue = Catalogue(settings)
        self.workers: list[Worker] = []
        self._live: dict[str, Live] = {}
        self._listeners: dict[str, list[Listener]] = {}
        self._taps: list[Callable[[str, Progress], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._again: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------ start and stop

    async def start(self) -> Sequence[str]:
        """See `Engine.start`."""
        try:
            for name in ("jobs", "assets", "uploads", "empty"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadRequest(f"cannot use the folder {self.folder}: {error.strerror}") from error
        self.store = await asyncio.to_thread(Store, self.folder)
        interrupted = self._recover()
        empty = self.folder / "empty"
        self.planning = Planning(self._setup(next(iter(self.settings.devices), None)), empty, self._planner_ready)
        self.inspections = Inspections(self.settings.limits, empty)
        self.uploads = Uploads(replace(self.settings, folder=self.folder), self.store, self.inspections)
        self.uploads.tidy()
        self.models_here = Models(self.settings, self.catalogue, self.planning, empty)
        self.names = Names(
            lambda name: self.catalogue.model(name).to_source(), self.catalogue.lora, self._file, self._lora_folder()
        )
        for device in self.settings.devices or (None,):
            self._add_worker(device)
        self.planning.warm()
        self.inspections.warm()
        if set(self.settings.devices) - {"cpu"}:
            await self._check_devices()
        return interrupted

    def _lora_folder(self) -> Path | None:
        return None if self.settings.lora_folder is None else self.settings.lora_folder.absolute()

    async def _check_devices(self) -> None:
        """Raise BadRequest if a device that the settings name cannot be used."""
        await asyncio.gather(*(worker.settled.wait() for worker in self.workers))
        refusal = next((worker.refusal for worker in self.workers if worker.refusal), "")
        if refusal:
            await self.stop()
            raise BadRequest(refusal)

    def _setup(self, device: str | None) -> dict[str, Any]:
        """Return the first message to a worker or planner."""
        own = self.settings
        return {
            "device": device, "dtype": own.dtype, "threads": own.threads, "memory": own.memory, "offload": own.offload,
            "compile": own.compile, "preview_rate": own.preview_rate,
            "c2pa_certificate": None if own.c2pa_certificate is None else str(own.c2pa_certificate.absolute()),
            "c2pa_key": None if own.c2pa_key is None else str(own.c2pa_key.absolute()),
        }  # fmt: skip

    def _add_worker(self, device: str | None) -> None:
        worker = Worker(self._setup(device), self.folder / "empty", self.store.lock, self._hear, self._ended)
        self.workers.append(worker)
        worker.start()

    def _planner_ready(self, message: Mapping[str, Any]) -> None:
        self.catalogue.presets = message["presets"]

    def _recover(self) -> Sequence[str]:
        """Settle the jobs that ran when the server ended, and remove what they left unfinished."""
        interrupted = []
        for job in self.store.with_status("in_progress", "cancelling"):
            status, changes = self._left_by(job, "interrupted", "interrupted", STOPPED)
            self.store.move_to(job.id, status, **changes)
            if status == "interrupted":
                interrupted.append(job.id)
        known, after, more = dict[str, Job](), None, True
        while more:
            jobs, more = self.store.page(after=after, limit=1000)
            known |= {job.id: job for job in jobs}
            after = jobs[-1].id if jobs else None
        clip_files.tidy(self.folder / "jobs", known)
        if interrupted:
            LOG.warning("interrupted when the server last ended: %s", ", ".join(interrupted))
        return interrupted

    def _left_by(self, job: Job, status: Status, code: str, message: str) -> tuple[Status, dict[str, Any]]:
        """Return the end of a job whose worker is gone: completed if its folder is finished, else the given one."""
        result, changes = clip_files.result_of(self.folder / "jobs" / job.id), {"completed_at": time.time()}
        if result is not None and not result["partial"]:
            return "completed", {**changes, "result": result, "progress": 100}
        if job.status == "cancelling" and (result is not None or status == "failed"):
            return "cancelled", {**changes, "result": result}
        return status, {**changes, "error_code": code, "error_message": message}

    async def stop(self) -> Sequence[str]:
        """See `Engine.stop`."""
        self._stopping = True
        if not hasattr(self, "models_here"):
            return []  # it has not started
        running = [*self._live]
        await asyncio.gather(*(worker.stop() for worker in self.workers))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(self.planning.stop(), self.inspections.stop(), self.models_here.stop())
        for listener in [each for listeners in self._listeners.values() for each in listeners]:
            listener.put(None)
        interrupted = [video_id for video_id in running if self.store.get(video_id).status == "interrupted"]
        self.store.close()
        return interrupted

    # ---------------------------------------------------------------------------------------- jobs

    async def plan(self, order: Order) -> Settled:
        """See `Engine.plan`."""
        return (await self._planned(order))[0]

    async def _planned(self, order: Order) -> tuple[Settled, Order]:
        order = replace(order, model=self.settings.aliases.get(order.model, order.model))
        limits = self.settings.limits
        most = {"frames": limits.frames, "pixels": limits.pixels, "steps": limits.steps}
        memory = self.settings.memory or next((each.about.get("memory_limit") for each in self.workers), None)
        message = {"do": "plan", **self.names.resolve(order).message(), "limits": most, "memory": memory}
        answer = await self.planning.ask(message, limits.plan_seconds)
        seconds, measured = estimates.estimate(self.store, order.model, answer["forecast"])
        return Settled(**answer, seconds=seconds, measured=measured), order

    async def submit(self, order: Order) -> Job:
        """See `Engine.submit`."""
        self._check_room()
        settled, order = await self._planned(order)
        self._check_room()
        self.names.resolve(order)  # the files may have been deleted meanwhile
        request = {**order.request, "seed": settled.seed}
        job = Job(
            id=new_id("video_"), status="queued", order=replace(order, request=request), settled=settled,
            created_at=time.time(), position=0.0,
        )  # fmt: skip
        job = self.store.add(job)
        self._publish(job)
        self._dispatch()
        return self.get(job.id)

    def _check_room(self) -> None:
        if len(self.store.queued()) >= self.settings.limits.queue:
            raise ServiceError(
                429, "queue_full", f"{self.settings.limits.queue:,} jobs are waiting; try again when some have finished"
            )

    def get(self, video_id: str) -> Job:
        """See `Engine.get`."""
        return self._with_progress(self.store.get(video_id))

    def list(
        self, *, after: str | None, limit: int, newest_first: bool, status: str | None
    ) -> tuple[Sequence[Job], bool]:
        """See `Engine.list`."""
        jobs, more = self.store.page(after=after, limit=limit, newest_first=newest_first, status=status)
        return [self._with_progress(job) for job in jobs], more

    def _with_progress(self, job: Job) -> Job:
        live = self._live.get(job.id)
        return job if live is None or job.final else replace(job, progress=live.progress)

    async def cancel(self, video_id: str, *, keep_partial: bool) -> Job:
        """See `Engine.cancel`."""
        job = self.store.get(video_id)
        if job.status == "queued":
            gone = self.store.move_to(video_id, "cancelled", completed_at=time.time())
            if gone is not None:
                self._publish(gone)
                return gone
        live = self._live.get(video_id)
        if live is None:
            return self.get(video_id)
        if (stopping := self._store_status(video_id, "cancelling")) is not None:
            self._publish(stopping)
            self._start(self._kill_late(video_id, live))
        live.worker.cancel(video_id, keep=keep_partial)
        await live.done.wait()
        return self.get(video_id)

    def _store_status(self, video_id: str, status: Status) -> Job | None:
        """Change a state whose record may be lost: where the disk is full, the cancel goes through all the same."""
        try:
            return self.store.move_to(video_id, status)
        except ServiceError:
            return None

    async def _kill_late(self, video_id: str, live: Live) -> None:
        """Kill the worker of a cancelled job that does not stop."""
        try:
            async with asyncio.timeout(PATIENCE):
                await live.done.wait()
        except TimeoutError:
            LOG.error("the cancelled job %s does not stop; its worker is killed", video_id)
            live.worker.kill()

    async def delete(self, video_id: str) -> None:
        """See `Engine.delete`."""
        job = self.store.get(video_id)
        if video_id in self._used(but=video_id):
            raise ServiceError(409, "in_use", f"{video_id} is an input of a job that waits or runs")
        if job.status == "queued":
            job = self.store.move_to(video_id, "cancelled", completed_at=time.time()) or self.store.get(video_id)
            self._publish(job)
        if not self.store.remove(video_id):
            raise ServiceError(409, "running", f"{video_id} is running; cancel it first")
        clip_files.remove(self.folder / "jobs" / video_id)

    async def retry(self, video_id: str) -> Job:
        """See `Engine.retry`."""
        job = self.store.get(video_id)
        if job.kills >= MAX_KILLS:
            raise ServiceError(
                409, "killed_worker", f"{video_id} ended its worker {job.kills} times, so it is not tried again"
            )
        if not job.final or job.status == "completed":
            raise ServiceError(409, "wrong_state", f"{video_id} is {job.status}; only unfinished jobs are tried again")
        try:
            self.names.resolve(job.order)
        except ServiceError as error:
            raise ServiceError(409, error.code, error.message) from None
        clip_files.remove(self.folder / "jobs" / video_id)
        blank = dict.fromkeys(("started_at", "completed_at", "device", "error_code", "error_message", "result"))
        again = self.store.move_to(video_id, "queued", progress=0, **blank)
        if again is None:
            raise ServiceError(409, "wrong_state", f"{video_id} is {self.store.get(video_id).status}")
        self._publish(again)
        self._dispatch()
        return self.get(video_id)

    async def move(self, video_id: str, *, before: str | None) -> Job:
        """See `Engine.move`."""
        self.store.get(video_id)
        if before is not None:
            self.store.get(before)
        job = self.store.place(video_id, before)
        if job is None:
            raise ServiceError(409, "wrong_state", "only waiting jobs can be moved, and only before waiting jobs")
        return job

    async def pause(self, paused: bool) -> None:
        """See `Engine.pause`."""
        self.store.paused = paused
        self._dispatch()

    def queue(self) -> Mapping[str, Any]:
        """See `Engine.queue`."""
        return {
            "paused": self.store.paused, "queued": self.store.queued(), "running": [*self._live],
            "workers": [worker.status() for worker in self.workers],
        }  # fmt: skip

    def counts(self) -> Mapping[Status, int]:
        """See `Engine.counts`."""
        return self.store.counts()

    # -------------------------------------------------------------------------------------- events

    def listen(self, listener: Callable[[str, Progress], None]) -> None:
        """See `Engine.listen`."""
        self._taps.append(listener)

    def events(self, video_id: str) -> AsyncIterator[Progress]:
        """See `Engine.events`."""
        self.store.get(video_id)
        return self._events(video_id)

    async def _events(self, video_id: str) -> AsyncIterator[Progress]:
        listener = Listener()
        self._listeners.setdefault(video_id, []).append(listener)
        try:
            job = self.get(video_id)
            listener.put(self._status(job))
            live = self._live.get(video_id)
            for progress in live.past() if live is not None and not job.final else ():
                listener.put(progress)
            async for progress in listener.events():
                yield progress
        finally:
            self._listeners[video_id].remove(listener)
            if not self._listeners[video_id]:
                del self._listeners[video_id]

    def _status(self, job: Job) -> Progress:
        live, waiting = self._live.get(job.id), self.store.queued() if job.status == "queued" else []
        error = None if job.error_code is None else {"code": job.error_code, "message": job.error_message}
        names = ("id", "status", "progress", "created_at", "started_at", "completed_at", "device", "attempts", "kills")
        data = {name: getattr(job, name) for name in names}
        running = {"stage": live.stage, "phase": live.phase, "eta": live.eta} if live is not None else {}
        position = waiting.index(job.id) if job.id in waiting else None
        return Progress(
            kind="status", data={**data, **running, "queue_position": position, "error": error, "result": job.result}
        )

    def _publish(self, job: Job) -> None:
        """Tell readers of a job's new status."""
        self._tell(job.id, self._status(job))

    def _tell(self, video_id: str, progress: Progress) -> None:
        for listener in self._listeners.get(video_id, ()):
            listener.put(progress)
        for tap in self._taps:
            tap(video_id, progress)

    # ------------------------------------------------------------------------------------ dispatch

    def _dispatch(self) -> None:
        """Give waiting jobs to idle workers, in order."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        try:
            while not self._stopping and not self.store.paused:
                idle = [worker for worker in self.workers if worker.state == "idle"]
                waiting = self.store.queued() if idle else []
                if not waiting:
                    return
                self._begin(self.store.get(waiting[0]), idle)
        except ServiceError:  # the disk is full
            self._again = asyncio.get_running_loop().call_later(RETRY, self._dispatch)

    def _begin(self, job: Job, idle: Sequence[Worker]) -> None:
        """Start a job on an idle worker, one that has its model loaded if there is one."""
        try:
            resolved = self.names.resolve(job.order, job.settled.seed)
        except ServiceError as error:
            changes = {"error_code": error.code, "error_message": error.message, "completed_at": time.time()}
            failed = self.store.move_to(job.id, "failed", **changes)
            if failed is not None:
                self._publish(failed)
            return
        worker = next((each for each in idle if job.order.model in _names(each)), idle[0])
        changes = {"started_at": time.time(), "attempts": job.attempts + 1, "device": worker.device}
        started = self.store.move_to(job.id, "in_progress", **changes)
        if started is None:
            return
        self._live[job.id] = Live(worker)
        worker.run(job.id, self._message(started, resolved))
        self._publish(started)

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
            self._dispatch()
        elif kind == "begun" and job in self._live:
            self._live[job].begun = True
        elif kind == "models":
            worker.loaded = message["loaded"]
        elif kind == "done" and job in self._live:
            self._live[job].ending = True
            self._start(self._finish(worker, message))
        elif kind in EVENTS and job in self._live:
            progress = Progress(kind=kind, data=message["data"])
            self._live[job].hear(progress)
            self._tell(job, progress)

    async def _finish(self, worker: Worker, message: Message) -> None:
        """Store how a job ended."""
        video_id, result = message["job"], message.get("result")
        job = self.store.get(video_id)
        status: Status = message["outcome"]
        changes: dict[str, Any] = {"completed_at": time.time(), "result": result}
        if status == "completed":
            changes["progress"] = 100
        elif status == "failed":
            changes |= {"error_code": message["code"], "error_message": message["message"]}
        elif job.status == "cancelling":
            changes["error_message"] = message["message"]
        else:  # cancelled without a request: nothing here does that
            status, changes = "failed", {**changes, "error_code": "internal_error", "error_message": message["message"]}
        await self._store_end(worker, video_id, status, changes)
        if status == "completed" and "seconds" in message:
            with contextlib.suppress(ServiceError):
                estimates.record(self.store, job.order.model, job.settled, message["seconds"])

    def _ended(self, worker: Worker, how: str) -> None:
        """A worker's process has ended; so has its job."""
        live = self._live.get(worker.job or "")
        if worker.job is not None and live is not None and not live.ending:
            self._start(self._fail(worker, worker.job, how))

    async def _fail(self, worker: Worker, video_id: str, how: str) -> None:
        job = self.store.get(video_id)
        status: Status
        changes: dict[str, Any]
        if not self._live[video_id].begun and job.status == "in_progress":  # nothing has run
            status, changes = "queued", {"position": job.position, "attempts": job.attempts - 1, "started_at": None}
        elif self._stopping:
            status, changes = self._left_by(job, "interrupted", "interrupted", STOPPED)
        else:
            why = f"the worker {how} while this job ran"
            why += "; the system may have run out of memory" if "signal 9" in how else ""
            status, changes = self._left_by(job, "failed", "worker_died", why)
            changes |= {"kills": job.kills + 1} if status != "completed" else {}
        for part in (self.folder / "jobs").glob(f"{video_id}.*"):
            clip_files.remove(part)
        await self._store_end(worker, video_id, status, changes)

    async def _store_end(self, worker: Worker, video_id: str, status: Status, changes: Mapping[str, Any]) -> None:
        """Store the end of a job, as soon as the disk allows, and let its worker take the next one."""
        live = self._live[video_id]
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
        self._live.pop(video_id, None)
        worker.free()
        if job is not None:
            self._publish(job)
        live.done.set()
        self._dispatch()

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --------------------------------------------------------------------------------------- files

    @property
    def uploads_folder(self) -> Path:
        """See `Engine.uploads_folder`."""
        return self.folder / "uploads"

    def content(self, video_id: str, variant: Literal["video", "thumbnail", "spritesheet", "frames", "recipe"]) -> Path:
        """See `Engine.content`."""
        job = self.store.get(video_id)
        path = clip_files.file_of(self.folder / "jobs" / video_id, video_id, variant)
        if job.result is None or not path.is_file():
            raise ServiceError(404, "no_content", f"{video_id} has no {variant} (its status is {job.status})")
        return path

    def _file(self, identifier: str) -> Path:
        """Return the file of an upload or a finished video. Raises `ServiceError`."""
        if ASSET_ID.fullmatch(identifier):
            return self.uploads.file(identifier)
        if not VIDEO_ID.fullmatch(identifier):
            raise unknown("video", identifier)
        job = self.store.get(identifier)
        if job.result is None:
            raise ServiceError(409, "not_finished", f"{identifier} has no clip (its status is {job.status})")
        return self.content(identifier, "video")

    def _used(self, but: str = "") -> set[str]:
        """Return the identifiers that waiting and running jobs take as inputs."""
        jobs = self.store.with_status("queued", "in_progress", "cancelling")
        return {each for job in jobs if job.id != but for each in identifiers_in(job.order.request)}

    async def add_asset(self, part: Path, name: str) -> Asset:
        """See `Engine.add_asset`."""
        return await self.uploads.add(part, name)

    def assets(self, *, after: str | None, limit: int) -> tuple[Sequence[Asset], bool]:
        """See `Engine.assets`."""
        return self.uploads.list(after=after, limit=limit)

    def asset(self, asset_id: str) -> tuple[Asset, Path]:
        """See `Engine.asset`."""
        return self.store.asset(asset_id), self.uploads.file(asset_id)

    async def delete_asset(self, asset_id: str) -> None:
        """See `Engine.delete_asset`."""
        if asset_id in self._used():
            raise ServiceError(409, "in_use", f"{asset_id} is an input of a job that waits or runs")
        self.uploads.remove(asset_id)

    # -------------------------------------------------------------------------------------- models

    async def models(self) -> Sequence[Mapping[str, Any]]:
        """See `Engine.models`."""
        return await self.models_here.rows()

    async def download(self, model_id: str) -> Mapping[str, Any]:
        """See `Engine.download`."""
        return await self.models_here.download(model_id)

    async def cancel_download(self, model_id: str) -> None:
        """See `Engine.cancel_download`."""
        await self.models_here.cancel_download(model_id)


def _names(worker: Worker) -> set[str]:
    return {each["id"] for each in worker.loaded}
