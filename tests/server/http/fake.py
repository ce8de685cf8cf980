"""An engine in memory: the contract of `kinema.server.engine.Engine` without workers, for tests of the HTTP layer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from kinema.schema import BadRequest, Request
from kinema.server.jobs import Asset, Job, Order, Progress, ServiceError, Settled

MODELS = ("zoetrope", "svd-pocket")
FILES = {
    "video": b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 8,
    "thumbnail": b"RIFF\0\0\0\0WEBP",
    "spritesheet": b"\xff\xd8\xff\xe0",
    "frames": b"PK\x03\x04",
    "recipe": b"{}",
}


def unknown(what):
    return ServiceError(404, "not_found", f"there is no {what}")


class FakeEngine:
    """Jobs finish after ``steps`` steps of ``seconds`` each; while it is `held`, they stay where they are."""

    def __init__(self, folder: Path, seconds: float = 0.0, steps: int = 2) -> None:
        self.folder, self.seconds, self.steps = folder, seconds, steps
        self.jobs: dict[str, Job] = {}
        self.files: dict[str, tuple[Asset, Path]] = {}
        self.paused = False
        self.held = asyncio.Event()
        self.held.set()
        self.listeners, self.readers = [], defaultdict(set)
        self.tasks: dict[str, asyncio.Task] = {}
        self.cancelling: dict[str, bool] = {}
        self.orders: list[Order] = []

    async def start(self):
        self.uploads_folder.mkdir(parents=True, exist_ok=True)
        return ()

    async def stop(self):
        for task in self.tasks.values():
            task.cancel()
        return ()

    # jobs

    async def plan(self, order):
        self.orders.append(order)
        if order.model not in MODELS:
            raise ServiceError(400, "unknown_model", f"there is no model {order.model!r}")
        request = Request.from_table(dict(order.request))
        if unknown_options := sorted(set(request.extra) - {"motion_bucket", "flow_shift"}):
            raise BadRequest(f"extra is {unknown_options[0]!r}; expected motion_bucket")
        for name in (request.image_model, request.super_resolution, *(request.loras or ())):
            if name is not None and name not in (*MODELS, "none", "ball"):
                raise ServiceError(400, "unknown_model", f"there is no model {name!r}")
        if request.size:
            raise BadRequest(f"size is {request.size!r}; expected a size of the model")
        for file in request.files().values():
            self.get(file) if file.startswith("video_") else self.asset(file)
        frames, height, width = request.frames or 16, request.height or 32, request.width or 32
        if request.clips * frames * height * width > 2**24:
            raise BadRequest(f"{self.folder}/jobs/video_{'0' * 24}/x.mp4 has too many pixels")
        seed = 7 if request.seed is None else request.seed
        return Settled(
            frames=frames, fps=request.fps or 8.0, height=height, width=width, clips=request.clips,
            steps=request.steps or 4, seed=seed, task=request.task, forecast={"peak_bytes": float("nan")},
            notes=("snapped to 16 frames",),
        )  # fmt: skip

    async def submit(self, order):
        settled = await self.plan(order)
        video_id = f"video_{secrets.token_hex(12)}"
        now = time.time()
        self.jobs[video_id] = Job(
            id=video_id, status="queued", order=order, settled=settled, created_at=now, position=now
        )
        self.tasks[video_id] = asyncio.create_task(self.run(video_id))
        return self.jobs[video_id]

    async def run(self, video_id):
        await self.held.wait()
        while self.paused:
            await asyncio.sleep(0.005)
        self.change(video_id, status="in_progress", started_at=time.time(), attempts=1)
        for step in range(1, self.steps + 1):
            await asyncio.sleep(self.seconds)
            if video_id in self.cancelling:
                partial = {"frames": 16, "fps": 8.0, "partial": True} if self.cancelling[video_id] else None
                self.change(video_id, status="cancelled", completed_at=time.time(), result=partial)
                return
            self.send(video_id, Progress(kind="step", data={"index": step, "total": self.steps, "stage": "base"}))
            self.send(video_id, Progress(kind="preview", data={"index": step, "data": "A" * 5000}))
        self.write(video_id)
        result = {
            "frames": self.jobs[video_id].settled.frames,
            "fps": self.jobs[video_id].settled.fps,
            "partial": False,
        }
        self.change(video_id, status="completed", progress=100, completed_at=time.time(), result=result)

    def write(self, video_id):
        folder = self.folder / "jobs" / video_id
        folder.mkdir(parents=True)
        for variant, data in FILES.items():
            (folder / variant).write_bytes(data)

    def change(self, video_id, **values):
        self.jobs[video_id] = replace(self.jobs[video_id], **values)
        self.send(video_id, Progress(kind="status", data={"status": self.jobs[video_id].status}))

    def send(self, video_id, progress):
        for each in self.listeners:
            each(video_id, progress)
        for reader in self.readers[video_id]:
            reader.put_nowait(progress)

    def get(self, video_id):
        if video_id not in self.jobs:
            raise unknown(f"video {video_id}")
        return self.jobs[video_id]

    def list(self, *, after, limit, newest_first, status):
        jobs = [job for job in self.jobs.values() if status in (None, job.status)]
        return page(jobs[::-1] if newest_first else jobs, after, limit)

    async def cancel(self, video_id, *, keep_partial):
        if self.get(video_id).status == "queued":
            self.tasks[video_id].cancel()
            self.change(video_id, status="cancelled")
        elif not self.get(video_id).final:
            self.cancelling[video_id] = keep_partial
            self.change(video_id, status="cancelling")
            await self.tasks[video_id]
        return self.get(video_id)

    async def delete(self, video_id):
        job = self.get(video_id)
        if not job.final and job.status != "queued":
            raise ServiceError(409, "wrong_state", f"{video_id} is {job.status}")
        self.tasks[video_id].cancel()
        del self.jobs[video_id]

    async def retry(self, video_id):
        if self.get(video_id).status not in ("cancelled", "failed", "interrupted"):
            raise ServiceError(409, "wrong_state", f"{video_id} is {self.get(video_id).status}")
        self.cancelling.pop(video_id, None)
        self.change(video_id, status="queued")
        self.tasks[video_id] = asyncio.create_task(self.run(video_id))
        return self.jobs[video_id]

    async def move(self, video_id, *, before):
        for each in (video_id, *([before] if before else [])):
            if self.get(each).status != "queued":
                raise ServiceError(409, "wrong_state", f"{each} is {self.get(each).status}")
        position = time.time() if before is None else self.get(before).position - 1e-3
        self.jobs[video_id] = replace(self.jobs[video_id], position=position)
        return self.jobs[video_id]

    async def pause(self, paused):
        self.paused = paused

    def queue(self):
        waiting = sorted((job for job in self.jobs.values() if job.status == "queued"), key=lambda job: job.position)
        running = [job.id for job in self.jobs.values() if job.status in ("in_progress", "cancelling")]
        worker = {"device": "cpu", "state": "idle", "restarts": 1, "loaded": [{"id": "zoetrope", "bytes": 64}]}
        return {"paused": self.paused, "queued": [job.id for job in waiting], "running": running, "workers": [worker]}

    async def events(self, video_id):
        reader: asyncio.Queue[Progress] = asyncio.Queue()
        self.readers[video_id].add(reader)
        try:
            yield Progress(kind="status", data={"status": self.get(video_id).status})
            while not self.get(video_id).final or not reader.empty():
                yield await reader.get()
        finally:
            self.readers[video_id].discard(reader)

    def counts(self):
        found = defaultdict(int)
        for job in self.jobs.values():
            found[job.status] += 1
        return found

    def listen(self, listener):
        self.listeners.append(listener)

    # files

    def content(self, video_id, variant, clip=0):
        if not self.get(video_id).result:
            raise unknown(f"clip of {video_id} yet")
        path = self.folder / "jobs" / video_id / variant
        if clip:
            path.with_name(f"{variant}-{clip}").write_bytes(path.read_bytes() + bytes([clip]))
        return path.with_name(f"{variant}-{clip}") if clip else path

    @property
    def uploads_folder(self):
        return self.folder / "uploads"

    async def add_asset(self, part, name):
        data = part.read_bytes()
        kind = "image" if data.startswith(b"\x89PNG") else "video" if data[4:8] == b"ftyp" else None
        if kind is None:
            raise ServiceError(400, "invalid_file", f"{name!r} is neither an image nor a clip")
        asset_id = f"asset-{secrets.token_hex(12)}"
        folder = self.folder / "assets" / asset_id
        folder.mkdir(parents=True)
        part.rename(folder / "file")
        asset = Asset(
            id=asset_id, kind=kind, name=name, bytes=len(data), created_at=time.time(), frames=10,
            fps=8.0 if kind == "video" else None, height=32, width=32,
        )  # fmt: skip
        self.files[asset_id] = asset, folder / "file"
        return asset

    def assets(self, *, after, limit):
        return page([asset for asset, _ in self.files.values()][::-1], after, limit)

    def asset(self, asset_id):
        if asset_id not in self.files:
            raise unknown(f"asset {asset_id}")
        return self.files[asset_id]

    async def forget_asset(self, asset_id):
        with contextlib.suppress(ServiceError, KeyError):
            await self.delete_asset(asset_id)

    async def delete_asset(self, asset_id):
        if any(asset_id in json.dumps(dict(job.order.request)) and not job.final for job in self.jobs.values()):
            raise ServiceError(409, "in_use", f"{asset_id} is used")
        del self.files[asset_id]

    # models

    async def models(self):
        return [
            {"id": name, "kind": "embedded", "family": name, "here": True, "bytes": 64, "defaults": {"fps": 8.0}}
            for name in MODELS
        ]

    async def download(self, model_id):
        if model_id not in MODELS:
            raise unknown(f"model {model_id}")
        raise ServiceError(403, "offline", "the service is offline")

    async def cancel_download(self, model_id):
        if model_id not in MODELS:
            raise unknown(f"model {model_id}")


def page(items, after, limit):
    ids = [each.id for each in items]
    if after is not None and after not in ids:
        raise unknown(after)
    start = 0 if after is None else ids.index(after) + 1
    return items[start : start + limit], start + limit < len(items)
