"""The engine of the service: queue, workers, planner, uploads and models behind `kinema.server.engine.Engine`.

Everything here runs on the server's event loop. What takes long is done by child processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from kinema.schema import BadRequest
from kinema.server import clip_files, estimates
from kinema.server.catalogue import Catalogue
from kinema.server.dispatcher import Dispatcher
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
from kinema.server.listeners import Hub
from kinema.server.models import Models
from kinema.server.names import Names, identifiers_in, new_id
from kinema.server.planning import Planning
from kinema.server.settings import Settings
from kinema.server.store import Store, unknown
from kinema.server.uploads import Uploads
from kinema.server.workers import Kind, Worker, kinds_of


class Supervisor:
    """The real `kinema.server.engine.Engine`."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.folder = settings, settings.folder.absolute()
        self.catalogue = Catalogue(settings)
        self.hub = Hub()

    # ------------------------------------------------------------------------------ start and stop

    async def start(self) -> Sequence[str]:
        """See `Engine.start`."""
        for name in (self.settings.model, *self.settings.aliases):
            try:
                self.catalogue.model(name)
            except ServiceError as error:
                raise BadRequest(error.message) from None
        try:
            for name in ("jobs", "assets", "uploads", "empty"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            where = error.filename or self.folder
            raise BadRequest(f"cannot use the folder {self.folder}: {where}: {str(error.strerror).lower()}") from error
        self.store = await asyncio.to_thread(Store, self.folder)
        own, empty = replace(self.settings, folder=self.folder), self.folder / "empty"
        self.names = Names(
            lambda name: self.catalogue.model(name).to_source(),
            self.catalogue.lora,
            self._file,
            lambda name: self.catalogue.add_on(name).to_source(),
            self._lora_folder(),
        )
        self.dispatcher = Dispatcher(own, self.store, self.names, self.catalogue, self.hub)
        try:
            interrupted = self.dispatcher.recover()
        except ServiceError as error:  # the disk is full
            self.store.close()
            raise BadRequest(f"cannot use the folder {self.folder}: {error.message}") from error
        device = next(iter(self.settings.devices), None)
        self.planning = Planning(self.dispatcher.setup(device), empty, self._planner_ready)
        self.inspections = Inspections(self.settings.limits, empty)
        self.uploads = Uploads(own, self.store, self.inspections)
        self.uploads.tidy()
        self.models_here = Models(self.settings, self.catalogue, self.planning, empty)
        self.dispatcher.start()
        self.planning.warm()
        self.inspections.warm()
        if set(self.settings.devices) - {"cpu"} and (refusal := await self.dispatcher.refusal()):
            await self.stop()
            raise BadRequest(refusal)
        return interrupted

    @property
    def workers(self) -> Sequence[Worker]:
        return self.dispatcher.workers

    def _lora_folder(self) -> Path | None:
        return None if self.settings.lora_folder is None else self.settings.lora_folder.absolute()

    def _planner_ready(self, message: Mapping[str, Any]) -> None:
        self.catalogue.presets = message["presets"]

    async def stop(self) -> Sequence[str]:
        """See `Engine.stop`."""
        if not hasattr(self, "models_here"):
            return []  # it has not started
        interrupted = await self.dispatcher.stop()
        await asyncio.gather(self.planning.stop(), self.inspections.stop(), self.models_here.stop())
        self.hub.end()
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
        await self.catalogue.refresh()
        message = {"do": "plan", **self.names.resolve(order).message(), "limits": most}
        answer, devices = await self._planned_for_devices(message)
        seconds, measured = estimates.estimate(self.store, order.opened, answer["forecast"])
        return Settled(**answer, seconds=seconds, measured=measured, devices=devices), order

    async def _planned_for_devices(self, message: Mapping[str, Any]) -> tuple[Mapping[str, Any], Sequence[str]]:
        """Return the plan for the kind of device with most memory of those that can run an order, and the devices that
        can; () if all can. Raises the first refusal if none can.
        """
        device, memory = next(iter(self.settings.devices), None), self.settings.memory
        kinds = kinds_of(self.workers) or [Kind((device,) if device else (), memory)]
        answers: list[tuple[Kind, Mapping[str, Any]]] = []
        refusals: list[ServiceError] = []
        for kind in kinds:
            of_kind = {"device": kind.device, "memory": memory or kind.memory}
            try:
                answers.append(
                    (kind, await self.planning.ask({**message, **of_kind}, self.settings.limits.plan_seconds))
                )
            except ServiceError as error:
                if error.code != "invalid_request":
                    raise
                refusals.append(error)
        if not answers:
            raise refusals[0]
        devices = [device for kind, _ in answers for device in kind.devices] if refusals else []
        return answers[0][1], devices

    async def submit(self, order: Order) -> Job:
        """See `Engine.submit`."""
        self._check_room()
        settled, order = await self._planned(order)
        await self.catalogue.refresh()
        self._check_room()
        self.names.resolve(order)  # the files may have been deleted meanwhile
        request = {**order.request, "seed": settled.seed}
        job = Job(
            id=new_id("video_"), status="queued", order=replace(order, request=request), settled=settled,
            created_at=time.time(), position=0.0,
        )  # fmt: skip
        job = self.store.add(job)
        self.dispatcher.publish(job)
        self.dispatcher.wake()
        return self.get(job.id)

    def _check_room(self) -> None:
        if len(self.store.queued()) >= self.settings.limits.queue:
            raise ServiceError(
                429, "queue_full", f"{self.settings.limits.queue:,} jobs are waiting; try again when some have finished"
            )

    def get(self, video_id: str) -> Job:
        """See `Engine.get`."""
        return self.dispatcher.current(video_id)

    def list(
        self, *, after: str | None, limit: int, newest_first: bool, status: str | None
    ) -> tuple[Sequence[Job], bool]:
        """See `Engine.list`."""
        jobs, more = self.store.page(after=after, limit=limit, newest_first=newest_first, status=status)
        return [self.dispatcher.with_progress(job) for job in jobs], more

    async def cancel(self, video_id: str, *, keep_partial: bool) -> Job:
        """See `Engine.cancel`."""
        return await self.dispatcher.cancel(video_id, keep_partial=keep_partial)

    async def delete(self, video_id: str) -> None:
        """See `Engine.delete`."""
        job = self.store.get(video_id)
        self._check_unused(video_id)
        if job.status == "queued":
            job = self.store.move_to(video_id, "cancelled", completed_at=time.time()) or self.store.get(video_id)
            self.dispatcher.publish(job)
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
        await self.catalogue.refresh()
        try:
            self.names.resolve(job.order)
        except ServiceError as error:
            raise ServiceError(409, error.code, error.message) from None
        self._check_unused(video_id)  # its partial clip goes
        clip_files.remove(self.folder / "jobs" / video_id)
        blank = dict.fromkeys(("started_at", "completed_at", "device", "error_code", "error_message", "result"))
        again = self.store.move_to(video_id, "queued", progress=0, **blank)
        if again is None:
            raise ServiceError(409, "wrong_state", f"{video_id} is {self.store.get(video_id).status}")
        self.dispatcher.publish(again)
        self.dispatcher.wake()
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
        self.dispatcher.wake()

    def queue(self) -> Mapping[str, Any]:
        """See `Engine.queue`."""
        return {
            "paused": self.store.paused, "queued": self.store.queued(), "running": [*self.dispatcher.live],
            "workers": [worker.status() for worker in self.workers],
        }  # fmt: skip

    def counts(self) -> Mapping[Status, int]:
        """See `Engine.counts`."""
        return self.store.counts()

    # -------------------------------------------------------------------------------------- events

    def listen(self, listener: Callable[[str, Progress], None]) -> None:
        """See `Engine.listen`."""
        self.hub.taps.append(listener)

    def events(self, video_id: str) -> AsyncIterator[Progress]:
        """See `Engine.events`."""
        self.store.get(video_id)
        return self.hub.events(video_id, lambda: self.dispatcher.past(video_id))

    # --------------------------------------------------------------------------------------- files

    @property
    def uploads_folder(self) -> Path:
        """See `Engine.uploads_folder`."""
        return self.folder / "uploads"

    def content(
        self, video_id: str, variant: Literal["video", "thumbnail", "spritesheet", "frames", "recipe"], clip: int = 0
    ) -> Path:
        """See `Engine.content`."""
        job = self.store.get(video_id)
        path = clip_files.file_of(self.folder / "jobs" / video_id, video_id, variant, clip)
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

    def _check_unused(self, identifier: str) -> None:
        """Raise `ServiceError` 409 for an upload or video that a waiting or running job takes as an input."""
        for job in self.store.mentioning(identifier):
            if job.id != identifier and identifier in identifiers_in(job.order.request):
                raise ServiceError(409, "in_use", f"{identifier} is an input of a job that waits or runs")

    async def add_asset(self, part: Path, name: str) -> Asset:
        """See `Engine.add_asset`."""
        return await self.uploads.add(part, name)

    def assets(self, *, after: str | None, limit: int) -> tuple[Sequence[Asset], bool]:
        """See `Engine.assets`."""
        return self.uploads.list(after=after, limit=limit)

    def asset(self, asset_id: str) -> tuple[Asset, Path]:
        """See `Engine.asset`."""
        return self.store.asset(asset_id), self.uploads.file(asset_id)

    async def forget_asset(self, asset_id: str) -> None:
        """See `Engine.forget_asset`."""
        if self.uploads.was_last(asset_id):
            with contextlib.suppress(ServiceError):  # it is used, or gone
                await self.delete_asset(asset_id)

    async def delete_asset(self, asset_id: str) -> None:
        """See `Engine.delete_asset`."""
        self._check_unused(asset_id)
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
