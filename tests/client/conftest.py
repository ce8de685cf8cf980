"""A service that answers from memory, over httpx2's mock transport: no socket is opened."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import numpy as np
import pytest

from kinema.client.http import Http
from kinema.client.service import Service

VIDEO = "video_0123456789abcdefghij"
SETTLED = {"clips": 1, "frames": 3, "height": 4, "width": 6, "fps": 8.0, "steps": 2, "seed": 7, "task": "generate"}
RECIPE = {"recipe": 2, "kinema": "0.1.0", "stages": [{"stage": "base", "model": "m", "request": {"prompt": "a ball"}}]}


def event(kind: str, **data: Any) -> bytes:
    return f"id: 1\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def frames(clips: int = 1, count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (clips, count, 4, 6, 3), np.uint8)


class Fake:
    """What it answers may be changed by a test: ``job`` (the video object), ``streams`` (a function for each stream,
    the last one for all further ones), ``content`` by variant, and ``answers`` by method and path.
    """

    def __init__(self) -> None:
        self.job: dict[str, Any] = {"id": VIDEO, "object": "video", "status": "queued", "settled": dict(SETTLED)}
        self.content = {"frames": npz(frames=frames()), "recipe": json.dumps(RECIPE).encode()}
        self.answers: dict[tuple[str, str], httpx2.Response | Callable[[httpx2.Request], Any]] = {}
        self.streams: list[Callable[[], Iterator[bytes]]] = [self.completed]
        self.assets: dict[str, bytes] = {}
        self.seen: list[tuple[str, str]] = []
        self.orders: list[dict[str, Any]] = []
        self.headers: list[httpx2.Headers] = []
        self.deleted = threading.Event()

    def completed(self) -> Iterator[bytes]:
        yield event("status", **self.job)
        yield self.finish()

    def finish(self, status: str = "completed", **changes: Any) -> bytes:
        result = {name: SETTLED[name] for name in ("frames", "height", "width", "fps")}
        self.job = {**self.job, "status": status, "result": result, **changes}
        return event("status", **self.job)

    def until_deleted(self) -> Iterator[bytes]:
        yield event("status", **{**self.job, "status": "in_progress"})
        yield event("step", index=1, total=2, log_snr=0.5, share=0.5)
        assert self.deleted.wait(20)

    def service(self, **options: Any) -> Service:
        return Service(Http("http://service:8000", options.pop("token", None), httpx2.MockTransport(self)), **options)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        self.seen.append((request.method, f"{path}?{query}" if (query := request.url.query.decode()) else path))
        self.headers.append(request.headers)
        own = self.answers.get((request.method, path))
        if own is not None:
            return own(request) if callable(own) else own
        if (request.method, path) == ("POST", "/v1/assets"):
            return self.keep(request.read())
        if (request.method, path) == ("POST", "/v1/videos"):
            self.orders.append(json.loads(request.read()))
            return httpx2.Response(200, json=self.job)
        if path == f"/v1/videos/{VIDEO}/events":
            stream = self.streams[0] if len(self.streams) == 1 else self.streams.pop(0)
            return httpx2.Response(200, content=stream())
        if path == f"/v1/videos/{VIDEO}/content":
            return httpx2.Response(200, content=self.content[request.url.params["variant"]])
        if path == f"/v1/videos/{VIDEO}/cancel":
            self.deleted.set()
            self.job = {**self.job, "status": "cancelled", "result": None}
        elif path == f"/v1/videos/{VIDEO}" and request.method == "DELETE":
            self.deleted.set()
            return httpx2.Response(200, json={"id": VIDEO, "deleted": True, "status": "cancelled"})
        if path in (f"/v1/videos/{VIDEO}", f"/v1/videos/{VIDEO}/cancel"):
            return httpx2.Response(200, json=self.job)
        return httpx2.Response(404, json={"error": {"message": f"there is no {path}", "code": "not_found"}})

    def keep(self, body: bytes) -> httpx2.Response:
        head, _, rest = body.partition(b"\r\n\r\n")
        assert re.search(rb'name="file"; filename="[^"/]+"', head)
        identifier = f"asset-{len(self.assets):020d}"
        self.assets[identifier] = rest.rpartition(b"\r\n--")[0]
        return httpx2.Response(200, json={"id": identifier, "object": "asset"})


@pytest.fixture
def fake(monkeypatch) -> Fake:
    monkeypatch.setattr("kinema.client.following.PAUSE", 0.01)
    monkeypatch.delenv("KINEMA_TOKEN", raising=False)
    return Fake()
