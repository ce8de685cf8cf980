"""Downloads of published models: progress, cancel, failure; and rows of models that are not here."""

from __future__ import annotations

import asyncio

import pytest

from kinema.server import models as modules
from kinema.server.catalogue import Catalogue
from kinema.server.children import Ended
from kinema.server.jobs import ServiceError
from kinema.server.models import Models
from kinema.server.settings import Settings


class FakeChild:
    """A downloader that says these messages, then waits for ever, or ends."""

    def __init__(self, messages: list, *, ends: bool = False) -> None:
        self.messages, self.ends, self.killed = list(messages), ends, False

    def send(self, message: dict) -> None:
        self.asked = message

    async def receive(self) -> dict:
        if self.messages:
            return self.messages.pop(0)
        if self.ends:
            raise Ended("was killed (signal 9, SIGKILL)")
        await asyncio.Event().wait()

    async def stop(self) -> None:
        self.killed = True


class NoPlanner:
    async def ask(self, _message, _seconds):
        raise ServiceError(400, "invalid_request", "not in the cache")


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Run a coroutine function with `Models` whose downloader is this child."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def run(child: FakeChild, use) -> None:
        async def start(module: str, _folder, *, offline: bool) -> FakeChild:
            assert (module, offline) == ("kinema.server.downloader", False)
            return child

        monkeypatch.setattr(modules.Child, "start", start)
        settings = Settings(folder=tmp_path, offline=False)
        asyncio.run(use(Models(settings, Catalogue(settings), NoPlanner(), tmp_path)))

    return run


BYTES = {"kind": "bytes", "bytes": 5, "total": 10}


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_download_reports_its_bytes_and_its_end(downloads):
    child = FakeChild([BYTES, {"kind": "end", "state": "done"}])

    async def use(models: Models) -> None:
        assert (await models.download("open-sora-1.2"))["download"]["state"] == "running"
        await settle()
        row = await models._row(models.catalogue.model("open-sora-1.2"))
        assert row["download"] == {"state": "done", "bytes": 5, "total": 10, "error": None}
        assert child.asked["names"] == ["hpcai-tech/OpenSora-STDiT-v3", "hpcai-tech/OpenSora-VAE-v1.2"]
        assert child.killed

    downloads(child, use)


def test_a_second_request_returns_the_download_that_runs_and_a_cancel_ends_its_process(downloads):
    child = FakeChild([BYTES])

    async def use(models: Models) -> None:
        await models.download("svd-xt")
        await settle()
        running = models.downloads["svd-xt"]
        assert (await models.download("svd-xt"))["download"]["bytes"] == 5
        assert models.downloads["svd-xt"] is running
        await models.cancel_download("svd-xt")
        assert (running.state, child.killed) == ("cancelled", True)

    downloads(child, use)


def test_a_downloader_that_dies_has_failed(downloads):
    async def use(models: Models) -> None:
        await models.download("svd-xt")
        await settle()
        assert models.downloads["svd-xt"].error == "the process that downloads was killed (signal 9, SIGKILL)"

    downloads(FakeChild([], ends=True), use)


def test_a_downloader_that_does_not_start_has_failed_and_can_be_tried_again(downloads, monkeypatch):
    async def use(models: Models) -> None:
        async def fail(*_args, **_named) -> None:
            raise OSError(11, "Resource temporarily unavailable")

        monkeypatch.setattr(modules.Child, "start", fail)
        for _ in range(2):
            await models.download("svd")
            await settle()
            row = models.downloads["svd"].row()
            assert row["state"] == "failed"
            assert row["error"] == "the process that downloads does not start (Resource temporarily unavailable)"

    downloads(FakeChild([]), use)


def test_stopping_ends_downloads(downloads):
    child = FakeChild([BYTES])

    async def use(models: Models) -> None:
        await models.download("svd-xt")
        await settle()
        await models.stop()
        assert child.killed

    downloads(child, use)


def test_there_is_no_download_to_cancel_of_another_model(downloads):
    async def use(models: Models) -> None:
        with pytest.raises(ServiceError) as refused:
            await models.cancel_download("svd-xt")
        assert refused.value.status == 404

    downloads(FakeChild([]), use)


def test_a_published_model_is_here_once_it_can_be_opened(downloads, tmp_path):
    async def use(models: Models) -> None:
        assert not (await models._row(models.catalogue.model("svd-xt")))["here"]
        (tmp_path / "hub" / "models--stabilityai--stable-video-diffusion-img2vid-xt").mkdir(parents=True)
        models.catalogue._found = None
        row = await models._row(models.catalogue.model("svd-xt"))
        assert (row["here"], row["repository"]) == (False, "stabilityai/stable-video-diffusion-img2vid-xt")

        class Planner:
            async def ask(self, _message, _seconds):
                return {"family": "svd", "parameters": 1, "bytes": 2, "defaults": {}}

        models.planning = Planner()
        models._described.clear()
        assert (await models._row(models.catalogue.model("svd-xt")))["here"]

    downloads(FakeChild([]), use)
