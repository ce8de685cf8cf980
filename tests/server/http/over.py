"""A client of an app over the fake engine, without a network."""

from __future__ import annotations

import asyncio
import json

import httpx2
from fake import FakeEngine

from kinema.server.app import create_app
from kinema.server.settings import Settings

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
TOKEN = "correct-horse-battery"


class Http:
    """A client of an app over a fake engine. ``async with`` starts and stops the engine."""

    def __init__(self, folder, base="http://localhost:8000", pace=(0.0, 2), **settings):
        self.engine = FakeEngine(folder, *pace)
        self.settings = Settings(folder=folder, **settings)
        self.base = base

    async def __aenter__(self):
        await self.engine.start()
        self.app = create_app(self.engine, self.settings)
        transport = httpx2.ASGITransport(app=self.app)
        self.client = httpx2.AsyncClient(transport=transport, base_url=self.base)
        return self

    async def __aexit__(self, *_):
        await self.engine.stop()
        await self.client.aclose()

    async def get(self, path, **options):
        return await self.client.get(path, **options)

    async def post(self, path, **options):
        return await self.client.post(path, **options)

    async def create(self, **values):
        answer = await self.post("/v1/videos", json={"prompt": "a red ball", **values})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def until(self, video_id, status):
        while (job := self.engine.get(video_id)).status != status:
            assert not job.final, job.status
            await asyncio.sleep(0.002)

    async def finished(self, **values):
        video = await self.create(**values)
        await self.until(video["id"], "completed")
        return video


def run(test):
    """Run an asynchronous test within a time limit."""

    def wrapper(tmp_path):
        asyncio.run(asyncio.wait_for(test(tmp_path), 30))

    wrapper.__name__ = test.__name__
    return wrapper


def message(answer):
    return answer.json()["error"]["message"]


def lines(text):
    """The events of a stream: kind and data."""
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.strip().split("\n\n")]
    return [(block["event"], json.loads(block["data"])) for block in blocks]
