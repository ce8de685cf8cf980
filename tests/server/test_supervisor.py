"""The engine with its processes: one running service for the whole module."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from kinema.schema import BadRequest, Clip
from kinema.server import catalogue, workers
from kinema.server import dispatcher as dispatchers
from kinema.server.jobs import Asset, Job, Order, Progress, ServiceError
from kinema.server.settings import Limits, Settings
from kinema.server.supervisor import Supervisor
from kinema.server.workers import Worker

pytestmark = pytest.mark.timeout(300)
SHORT, LONG = 2, 400


def order(steps: int = SHORT, **changes) -> Order:
    return Order(model="vdm/tiny", request={"prompt": "a ball", "frames": 4, "steps": steps, **changes})


@pytest.fixture(scope="module")
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def engine(loop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    limits = Limits(queue=8, decode_seconds=30, upload_bytes=2**20)
    supervisor = Supervisor(Settings(folder=folder, devices=("cpu",), threads=1, limits=limits))
    loop.run_until_complete(supervisor.start())
    loop.run_until_complete(until(lambda: supervisor.workers[0].state == "idle"))
    yield supervisor
    loop.run_until_complete(supervisor.stop())
    assert not [task for task in asyncio.all_tasks(loop) if not task.done()]


@pytest.fixture
def run(loop, engine):
    """Run a coroutine on the service's loop; afterwards nothing waits and nothing runs."""
    yield loop.run_until_complete

    async def clear() -> None:
        await engine.pause(False)
        for job in engine.store.with_status("queued", "in_progress", "cancelling"):
            await engine.cancel(job.id, keep_partial=False)
        await until(lambda: engine.workers[0].state == "idle")

    loop.run_until_complete(clear())


async def until(true, seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


async def first(engine: Supervisor, video_id: str, kind: str, **data) -> Progress:
    """The first event of this kind with this data."""
    async with asyncio.timeout(120), contextlib.aclosing(engine.events(video_id)) as events:
        async for event in events:
            if event.kind == kind and data.items() <= event.data.items():
                return event
    raise AssertionError(f"no {kind}")


async def finished(engine: Supervisor, video_id: str) -> Job:
    async with asyncio.timeout(120):
        async for _ in engine.events(video_id):
            pass
    return engine.get(video_id)


async def running(engine: Supervisor) -> Job:
    job = await engine.submit(order(LONG))
    await first(engine, job.id, "step")
    return engine.get(job.id)


def test_a_job_is_planned_queued_and_completed_with_events_in_order(engine, run):
    async def all_of() -> tuple[Job, list[Progress]]:
        job = await engine.submit(order(super_resolution=None))
        return job, [event async for event in engine.events(job.id)]

    job, events = run(all_of())
    kinds = [event.kind for event in events]
    assert (kinds[0], kinds[-1]) == ("status", "status")
    assert [event.data["name"] for event in events if event.kind == "phase"] == [
        "load", "condition", "sample", "decode", "write",
    ]  # fmt: skip
    final = engine.get(job.id)
    assert (final.status, final.progress, final.attempts, final.kills) == ("completed", 100, 1, 0)
    assert events[-1].data["result"] == final.result
    assert final.result["seed"] == final.settled.seed
    for variant in ("video", "thumbnail", "spritesheet", "frames", "recipe"):
        assert engine.content(job.id, variant).is_file()


def test_a_plan_queues_nothing_and_has_a_time_once_a_job_of_its_size_has_finished(engine, run):
    settled = run(engine.plan(order(7)))
    assert (settled.frames, settled.steps) == (4, 7)
    job = run(engine.submit(order(7)))
    run(finished(engine, job.id))
    again = run(engine.plan(order(7)))
    assert again.seconds is not None
    assert again.measured == "the median of 1 finished job of this size"
    assert engine.queue()["queued"] == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"steps": 501}, "501 steps; this service allows at most 500"),
        ({"frames": 600}, "600 frames; this service generates at most 512"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"extra": {"control": "/etc/passwd"}}, "vdm|identifier"),
        ({"task": "animate", "image": "/etc/passwd"}, "expected the identifier of an upload or a video"),
        ({"sampler": "nope"}, "sampler"),
    ],
)
def test_an_invalid_request_is_400_with_one_sentence_and_is_not_queued(engine, run, request_, message):
    before = engine.counts()
    with pytest.raises(ServiceError, match=message) as refused:
        run(engine.submit(order(**request_) if "steps" not in request_ else order(request_["steps"])))
    assert refused.value.status == 400
    assert len(refused.value.message.splitlines()) == 1
    assert engine.counts() == before


def test_paused_jobs_wait_in_their_order_and_run_in_the_order_that_was_asked_for(engine, run):
    started: list[str] = []

    def hear(video_id: str, progress: Progress) -> None:
        if progress.kind == "status" and progress.data["status"] == "in_progress":
            started.append(video_id)

    async def moved() -> list[str]:
        await engine.pause(True)
        jobs = [(await engine.submit(order())).id for _ in range(3)]
        await asyncio.sleep(0.05)
        assert (engine.queue()["queued"], engine.queue()["running"], engine.queue()["paused"]) == (jobs, [], True)
        await engine.move(jobs[2], before=jobs[0])
        engine.listen(hear)
        await engine.pause(False)
        for job in jobs:
            assert (await finished(engine, job)).status == "completed"
        engine.hub.taps.remove(hear)
        return [jobs[2], jobs[0], jobs[1]]

    assert run(moved()) == started


def test_a_full_queue_is_429(engine, run):
    async def fill() -> None:
        await engine.pause(True)
        for _ in range(8):
            await engine.submit(order())

    run(fill())
    with pytest.raises(ServiceError) as refused:
        run(engine.submit(order()))
    assert (refused.value.status, refused.value.code) == (429, "queue_full")


# ------------------------------------------------------------------------------------------ cancels


def test_a_waiting_job_is_cancelled_at_once(engine, run):
    run(engine.pause(True))
    job = run(engine.submit(order()))
    assert run(engine.cancel(job.id, keep_partial=False)).status == "cancelled"


@pytest.mark.parametrize("name", ["load", "condition", "sample"])
def test_a_cancel_in_each_phase_returns_when_the_worker_has_stopped(engine, run, name):
    async def cancelled() -> Job:
        job = await engine.submit(order(LONG))
        await first(engine, job.id, "phase", name=name)
        done = await engine.cancel(job.id, keep_partial=False)
        assert engine.workers[0].state == "idle"
        return done

    job = run(cancelled())
    assert (job.status, job.result) == ("cancelled", None)
    assert not list((engine.folder / "jobs").glob(f"{job.id}*"))


@pytest.mark.parametrize("name", ["decode", "write"])
def test_a_finished_clip_beats_a_late_cancel(engine, run, name, monkeypatch):
    """The worker is past its last check by the time it hears of the cancel, or stops at it: never half of each."""

    async def late() -> Job:
        job = await engine.submit(order())
        await first(engine, job.id, "phase", name=name)
        return await engine.cancel(job.id, keep_partial=False)

    job = run(late())
    assert (job.status == "completed") == (engine.folder / "jobs" / job.id / "result.json").is_file()
    if name == "write":
        assert job.status == "completed"


def test_a_partial_clip_is_kept_on_request_and_dropped_by_a_retry(engine, run):
    job = run(running(engine))
    done = run(engine.cancel(job.id, keep_partial=True))
    assert (done.status, done.result["partial"], done.result["frames"]) == ("cancelled", True, 4)
    assert engine.content(job.id, "video").is_file()
    run(engine.pause(True))
    using = run(engine.submit(order(task="edit", video=job.id, frames=None)))
    with pytest.raises(ServiceError, match="is an input of a job that waits or runs"):
        run(engine.retry(job.id))
    assert engine.content(job.id, "video").is_file()
    run(engine.delete(using.id))
    again = run(engine.retry(job.id))
    assert (again.status, again.result, again.error_message) == ("queued", None, None)
    with pytest.raises(ServiceError, match="has no video"):
        engine.content(job.id, "video")


def test_two_cancels_at_once_both_wait_for_the_worker(engine, run):
    async def twice() -> list[Job]:
        job = await running(engine)
        return await asyncio.gather(*(engine.cancel(job.id, keep_partial=False) for _ in range(2)))

    assert [job.status for job in run(twice())] == ["cancelled", "cancelled"]


def test_a_cancelled_job_that_does_not_stop_loses_its_worker(engine, run, monkeypatch):
    monkeypatch.setattr(dispatchers, "PATIENCE", 0.2)

    async def stuck() -> Job:
        job = await running(engine)
        os.kill(engine.workers[0].child.pid, signal.SIGSTOP)
        return await engine.cancel(job.id, keep_partial=False)

    assert run(stuck()).status == "cancelled"


def test_a_running_job_is_not_deleted_and_a_deleted_one_is_gone(engine, run):
    job = run(running(engine))
    with pytest.raises(ServiceError) as refused:
        run(engine.delete(job.id))
    assert refused.value.status == 409
    run(engine.cancel(job.id, keep_partial=True))
    run(engine.delete(job.id))
    assert not list((engine.folder / "jobs").glob(f"{job.id}*"))
    with pytest.raises(ServiceError) as refused:
        engine.get(job.id)
    assert refused.value.status == 404


# ------------------------------------------------------------------------------------- worker dies


def test_a_killed_idle_worker_is_started_again_and_waiting_jobs_run_once(engine, run):
    async def killed() -> Job:
        restarts = engine.workers[0].restarts
        os.kill(engine.workers[0].child.pid, signal.SIGKILL)
        job = await engine.submit(order())  # the server does not know yet
        done = await finished(engine, job.id)
        assert engine.workers[0].restarts == restarts + 1
        return done

    job = run(killed())
    assert (job.status, job.attempts, job.kills) == ("completed", 1, 0)


def test_a_job_before_whose_beginning_three_workers_end_fails(engine, run, monkeypatch):
    real, given = Worker.run, []

    def kill(worker: Worker, job: str, message: dict) -> None:
        os.kill(worker.child.pid, signal.SIGSTOP)  # it gets the job and never begins it
        real(worker, job, message)
        given.append(job)
        assert len(given) <= 3
        worker.kill()

    monkeypatch.setattr(Worker, "run", kill)
    monkeypatch.setattr(workers, "STEADY", 0.0)  # no pauses, here and in the tests that follow
    job = run(engine.submit(order()))
    failed = run(finished(engine, job.id))
    assert (failed.status, failed.error_code, failed.kills, given) == ("failed", "worker_died", 1, [job.id] * 3)
    assert failed.error_message.startswith("3 workers ended before they began this job; the last one was killed")


def test_a_job_that_kills_its_worker_twice_is_not_tried_again_and_the_next_one_runs(engine, run):
    async def twice() -> tuple[str, Job]:
        job = await running(engine)
        after = await engine.submit(order())
        for attempt in (1, 2):
            os.kill(engine.workers[0].child.pid, signal.SIGKILL)
            found = await finished(engine, job.id)
            assert (found.status, found.error_code, found.kills) == ("failed", "worker_died", attempt)
            assert found.error_message.startswith("the worker was killed (signal 9, SIGKILL) while this job ran")
            if attempt == 1:
                await engine.retry(job.id)
                await engine.move(job.id, before=after.id)
                await first(engine, job.id, "step")
        return job.id, await finished(engine, after.id)

    video_id, after = run(twice())
    assert (after.status, after.attempts) == ("completed", 1)
    with pytest.raises(ServiceError, match="ended its worker 2 times, so it is not tried again") as refused:
        run(engine.retry(video_id))
    assert refused.value.status == 409


def test_a_message_that_cannot_be_handled_fails_its_job_and_the_worker_is_started_again(engine, run):
    async def faulty() -> tuple[Job, Job]:
        job = await running(engine)
        engine.dispatcher.live[job.id].hear = None  # not callable
        return await finished(engine, job.id), await finished(engine, (await engine.submit(order())).id)

    failed, following = run(faulty())
    assert (failed.status, failed.error_code, following.status) == ("failed", "worker_died", "completed")
    assert "could not handle a message of it while this job ran" in failed.error_message


def test_a_store_that_another_program_writes_to_stops_no_job(engine, run):
    async def busy() -> Job:
        job = await engine.submit(order(LONG // 10))
        await first(engine, job.id, "step")
        engine.store._base.execute("PRAGMA busy_timeout = 1")
        other = sqlite3.connect(engine.folder / "jobs.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await until(lambda: engine.dispatcher.live[job.id].ending)
        await asyncio.sleep(0.05)
        other.close()
        return await finished(engine, job.id)

    assert run(busy()).status == "completed"


def test_only_unfinished_jobs_are_tried_again(engine, run):
    job = run(engine.submit(order()))
    run(finished(engine, job.id))
    with pytest.raises(ServiceError, match="is completed; only unfinished jobs are tried again"):
        run(engine.retry(job.id))


# ---------------------------------------------------------------------------------------- disk full


def test_the_end_of_a_job_is_stored_as_soon_as_the_disk_has_room(engine, run, monkeypatch):
    monkeypatch.setattr(dispatchers, "RETRY", 0.01)
    real, left = engine.store.move_to, [3]

    def full(video_id: str, status: str, **changes):
        if status == "completed" and left[0]:
            left[0] -= 1
            raise ServiceError(507, "disk_full", "full")
        return real(video_id, status, **changes)

    monkeypatch.setattr(engine.store, "move_to", full)
    job = run(engine.submit(order()))
    assert (run(finished(engine, job.id)).status, left) == ("completed", [0])


def test_a_cancel_on_a_full_disk_ends_cancelled_with_an_idle_worker(engine, run, monkeypatch):
    monkeypatch.setattr(dispatchers, "RETRY", 0.01)
    real, left = engine.store.move_to, {"cancelling": 1, "cancelled": 3}

    def full(video_id: str, status: str, **changes):
        if left.get(status):
            left[status] -= 1
            raise ServiceError(507, "disk_full", "full")
        return real(video_id, status, **changes)

    async def cancelled() -> Job:
        job = await running(engine)
        monkeypatch.setattr(engine.store, "move_to", full)
        done = await engine.cancel(job.id, keep_partial=False)
        assert engine.workers[0].state == "idle"
        return done

    job = run(cancelled())
    assert (job.status, job.error_code, job.result, left) == (
        "cancelled",
        None,
        None,
        {"cancelling": 0, "cancelled": 0},
    )
    assert run(engine.retry(job.id)).status in ("queued", "in_progress")


def test_a_worker_that_dies_after_a_cancel_that_could_not_be_stored_leaves_it_cancelled(engine, run, monkeypatch):
    real = engine.store.move_to

    def full(video_id: str, status: str, **changes):
        if status == "cancelling":
            raise ServiceError(507, "disk_full", "full")
        return real(video_id, status, **changes)

    async def cancelled() -> Job:
        job = await running(engine)
        monkeypatch.setattr(engine.store, "move_to", full)
        monkeypatch.setattr(Worker, "cancel", lambda worker, _job, keep: worker.kill())  # noqa: ARG005
        return await engine.cancel(job.id, keep_partial=False)

    assert run(cancelled()).status == "cancelled"


# ---------------------------------------------------------------------------------- planner, events


def test_readers_that_leave_or_never_read_cost_nothing(engine, run):
    async def read() -> None:
        job = await running(engine)
        idle = engine.events(job.id)
        await anext(idle)  # subscribed, and never read again
        for _ in range(3):
            await first(engine, job.id, "step")
        assert len(engine.hub.listeners[job.id]) == 1
        await asyncio.sleep(0.5)
        assert len(engine.hub.listeners[job.id][0]) < 12
        await engine.cancel(job.id, keep_partial=False)
        statuses = [event.data["status"] async for event in idle if event.kind == "status"]
        assert statuses == ["cancelling", "cancelled"]
        assert engine.hub.listeners == {}

    run(read())


def test_a_new_reader_gets_what_has_happened_so_far(engine, run):
    async def late() -> list[str]:
        job = await running(engine)
        seen = []
        async for event in engine.events(job.id):
            seen.append(event.kind if event.kind != "phase" else event.data["name"])
            if event.kind == "step":
                return seen
        return seen

    assert run(late())[:4] == ["status", "load", "condition", "sample"]


def test_an_unknown_job_is_404_everywhere(engine, run):
    unknown = "video_" + "z" * 24
    for call in (engine.get, engine.events, lambda each: engine.content(each, "video")):
        with pytest.raises(ServiceError) as refused:
            call(unknown)
        assert refused.value.status == 404
    for coroutine in (engine.cancel(unknown, keep_partial=False), engine.delete(unknown), engine.retry(unknown)):
        with pytest.raises(ServiceError):
            run(coroutine)


# ------------------------------------------------------------------------------------------ uploads


def uploaded(engine: Supervisor, path: Path) -> Path:
    part = engine.uploads_folder / path.name
    shutil.copy(path, part)
    return part


@pytest.fixture
def clip(tmp_path):
    video = torch.rand(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Clip(video, 8.0, {"recipe": 2, "stages": [], "prompt": "x"}).save(tmp_path / "a.mp4")[0]


def test_an_upload_is_decoded_kept_unchanged_and_used_by_a_job(engine, run, clip):
    asset = run(engine.add_asset(uploaded(engine, clip), "../../evil\n.MP4"))
    assert (asset.kind, asset.frames, asset.fps, asset.height, asset.width) == ("video", 4, 8.0, 16, 16)
    assert (asset.name, asset.bytes) == ("../../evil\\n.MP4", clip.stat().st_size)
    found, path = engine.asset(asset.id)
    assert (found, path.read_bytes()) == (asset, clip.read_bytes())
    assert path == engine.folder / "assets" / asset.id / f"{asset.id}.mp4"
    assert (path.parent / "recipe.json").is_file()
    assert not list(engine.uploads_folder.iterdir())

    async def used() -> Job:
        await engine.pause(True)
        job = await engine.submit(order(task="edit", video=asset.id, frames=None))
        with pytest.raises(ServiceError, match="is an input of a job that waits or runs"):
            await engine.delete_asset(asset.id)
        await engine.pause(False)
        return await finished(engine, job.id)

    job = run(used())
    assert (job.status, job.error_message) == ("completed", None)
    recipe = engine.content(job.id, "recipe").read_text()
    assert asset.id in recipe
    assert str(engine.folder) not in recipe
    run(engine.delete_asset(asset.id))
    assert not path.exists()


def test_the_same_bytes_are_kept_once(engine, run, clip):
    first_one = run(engine.add_asset(uploaded(engine, clip), "a.mp4"))
    assert run(engine.add_asset(uploaded(engine, clip), "b.mp4")) == first_one
    run(engine.delete_asset(first_one.id))


def test_an_upload_is_taken_back_only_by_its_last_sender(engine, run, clip):
    asset = run(engine.add_asset(uploaded(engine, clip), "a.mp4"))
    assert run(engine.add_asset(uploaded(engine, clip), "a.mp4")).id == asset.id
    run(engine.forget_asset(asset.id))  # a plan with this file ends, and another client has uploaded it
    assert engine.asset(asset.id)[0] == asset
    run(engine.forget_asset(asset.id))
    with pytest.raises(ServiceError, match="there is no asset"):
        engine.asset(asset.id)


def test_an_upload_whose_file_was_lost_can_be_sent_again(engine, run, clip):
    lost = run(engine.add_asset(uploaded(engine, clip), "a.mp4"))
    shutil.rmtree(engine.folder / "assets" / lost.id)
    again = run(engine.add_asset(uploaded(engine, clip), "a.mp4"))
    assert engine.asset(again.id)[1].is_file()
    assert [each.id for each in engine.assets(after=None, limit=100)[0]] == [again.id]
    run(engine.delete_asset(again.id))


def test_uploads_at_the_same_time_stay_within_the_limit_of_all_together(engine, run, tmp_path, monkeypatch):
    parts = [engine.uploads_folder / f"{number}" for number in range(2)]
    for number, part in enumerate(parts):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(part, "png")
    sizes = [part.stat().st_size for part in parts]
    monkeypatch.setattr(engine.uploads, "limits", replace(engine.uploads.limits, assets_bytes=sum(sizes) - 1))

    async def both() -> list:
        return await asyncio.gather(*(engine.add_asset(part, "x.png") for part in parts), return_exceptions=True)

    refused, kept = sorted(run(both()), key=lambda each: isinstance(each, Asset))
    assert (refused.status, kept.bytes in sizes) == (413, True)  # either may be the first
    run(engine.delete_asset(kept.id))


def test_a_finished_video_is_an_input_that_cannot_be_deleted_meanwhile(engine, run):
    async def chained() -> Job:
        source = await engine.submit(order())
        await finished(engine, source.id)
        await engine.pause(True)
        job = await engine.submit(order(task="edit", video=source.id, frames=None))
        with pytest.raises(ServiceError) as refused:
            await engine.delete(source.id)
        assert refused.value.code == "in_use"
        await engine.pause(False)
        return await finished(engine, job.id)

    assert run(chained()).status == "completed"


def test_an_input_that_is_deleted_during_planning_is_no_input(engine, run, clip, monkeypatch):
    asset, real = run(engine.add_asset(uploaded(engine, clip), "a.mp4")), engine.planning.ask

    async def ask(message, seconds):
        answer = await real(message, seconds)
        await engine.delete_asset(asset.id)
        return answer

    monkeypatch.setattr(engine.planning, "ask", ask)
    with pytest.raises(ServiceError, match="there is no asset"):
        run(engine.submit(order(task="edit", video=asset.id, frames=None)))
    assert engine.queue()["queued"] == []


def test_a_video_without_a_clip_is_no_input(engine, run):
    run(engine.pause(True))
    waiting = run(engine.submit(order()))
    with pytest.raises(ServiceError, match="has no clip") as refused:
        run(engine.submit(order(task="edit", video=waiting.id)))
    assert refused.value.status == 409


def test_uploads_that_are_too_large_or_outside_the_folder_are_refused(engine, run, tmp_path):
    large = engine.uploads_folder / "large"
    large.write_bytes(bytes(2**20 + 1))
    with pytest.raises(ServiceError) as refused:
        run(engine.add_asset(large, "x.png"))
    assert refused.value.status == 413
    assert not large.exists()
    link = engine.uploads_folder / "link"
    link.symlink_to("/etc/passwd")
    for path in (link, engine.uploads_folder / "gone"):
        with pytest.raises(ServiceError, match="is not a file of the uploads folder") as refused:
            run(engine.add_asset(path, "x.png"))
        assert refused.value.status == 400


# ------------------------------------------------------------------------------------------- models


def test_models_have_defaults_and_say_whether_they_are_here(engine, run):
    rows = {row["id"]: row for row in run(engine.models())}
    assert (rows["zoetrope"]["kind"], rows["zoetrope"]["here"], rows["zoetrope"]["default"]) == ("embedded", True, True)
    assert (rows["vdm/tiny"]["kind"], rows["vdm/tiny"]["defaults"]["frames"]) == ("preset", 8)
    assert rows["open-sora-1.2"]["kind"] == "published"
    assert "Apache-2.0" in rows["open-sora-1.2"]["licence"]
    assert rows["animatediff-pocket-pans-left"]["kind"] == "lora"


def test_an_offline_service_downloads_nothing(engine, run):
    with pytest.raises(ServiceError) as refused:
        run(engine.download("svd-xt"))
    assert refused.value.status == 403
    with pytest.raises(ServiceError) as refused:
        run(engine.download("owner/name"))
    assert refused.value.status == 404


def test_an_unknown_model_is_refused_with_similar_names(engine, run):
    with pytest.raises(ServiceError, match="did you mean zoetrope"):
        run(engine.plan(Order(model="zoetrop", request={"prompt": "a"})))


def test_the_server_process_loads_no_torch():

    code = (
        "import sys, kinema.server.supervisor; print([m for m in ('torch', 'numpy', 'av', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_a_device_that_is_not_there_is_refused_at_the_start(tmp_path, loop, monkeypatch):
    def refuse(worker: Worker) -> None:
        worker.refusal = "this machine has no device 'cuda:7'"
        worker.settled.set()

    monkeypatch.setattr(Worker, "start", refuse)
    monkeypatch.setattr("kinema.server.planning.Planning.warm", lambda _self: None)
    monkeypatch.setattr("kinema.server.inspections.Inspections.warm", lambda _self: None)
    supervisor = Supervisor(Settings(folder=tmp_path, devices=("cuda:7",)))
    with pytest.raises(BadRequest, match="this machine has no device 'cuda:7'"):
        loop.run_until_complete(supervisor.start())


@pytest.mark.parametrize(
    "wrong", [{"model": "nosuch"}, {"model": "../x"}, {"aliases": {"sora-2": "nosuch"}}], ids=lambda wrong: str(wrong)
)
def test_a_default_model_or_alias_that_is_not_listed_is_refused_before_anything_starts(tmp_path, loop, wrong):
    supervisor = Supervisor(Settings(folder=tmp_path / "store", devices=("cpu",), **wrong))
    with pytest.raises(BadRequest, match="there is no model"):
        loop.run_until_complete(supervisor.start())
    assert not (tmp_path / "store").exists()


def test_folders_of_models_are_never_read_on_the_event_loop(engine, run, monkeypatch):
    """A job that begins long after the last look at them reads them in a thread."""
    real, threads = engine.catalogue._walk, []

    def walk():
        threads.append(threading.current_thread() is threading.main_thread())
        return real()

    monkeypatch.setattr(engine.catalogue, "_walk", walk)

    async def late() -> Job:
        await engine.pause(True)
        job = await engine.submit(order())
        engine.catalogue._found = None
        threads.clear()
        await engine.pause(False)
        engine.dispatcher.wake()
        return await finished(engine, job.id)

    assert run(late()).status == "completed"
    assert threads == [False]


def started(device: str, name: str, memory: int, state: str = "idle") -> Worker:
    worker = Worker({"device": device}, Path(), 0, lambda *_: None, lambda *_: None)
    worker.about, worker.state = {"name": name, "memory_limit": memory}, state
    return worker


def test_devices_that_are_alike_are_planned_for_once_with_the_least_memory_among_them():
    some = [started("cuda:0", "small", 8), started("cuda:1", "large", 80), started("cuda:2", "large", 79)]
    refused = started("cuda:3", "other", 99, "refused")
    assert workers.kinds_of([*some, refused]) == [
        workers.Kind(("cuda:1", "cuda:2"), 79), workers.Kind(("cuda:0",), 8)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fits", "devices"), [({8, 80}, ()), ({80}, ("cuda:1",)), ({8}, ("cuda:0",))], ids=["both", "large", "small"]
)
def test_an_order_is_planned_for_a_device_that_can_run_it(engine, run, monkeypatch, fits, devices):
    answer = run(engine.plan(order()))
    asked = []

    async def ask(message, _seconds):
        asked.append((message["device"], message["memory"]))
        if message["memory"] not in fits:
            raise ServiceError(400, "invalid_request", f"{message['device']} is too small")
        return {**{name: getattr(answer, name) for name in KEPT}, "task": message["device"]}

    some = [started("cuda:0", "small", 8), started("cuda:1", "large", 80)]
    monkeypatch.setattr(engine.dispatcher, "workers", some)
    monkeypatch.setattr(engine.planning, "ask", ask)
    settled = run(engine.plan(order()))
    assert asked == [("cuda:1", 80), ("cuda:0", 8)]
    assert (tuple(settled.devices), settled.task) == (devices, "cuda:1" if 80 in fits else "cuda:0")
    fits.clear()
    with pytest.raises(ServiceError, match="cuda:1 is too small"):
        run(engine.plan(order()))


KEPT = ("frames", "fps", "height", "width", "clips", "steps", "seed", "forecast")


def test_a_job_waits_for_a_device_that_can_run_it_while_later_ones_run(engine, run, monkeypatch):
    run(engine.pause(True))
    special, plain = run(engine.submit(order())), run(engine.submit(order()))
    begun = []
    some = [started("cuda:0", "small", 8), started("cuda:1", "large", 80, "busy")]

    def begin(job: Job, able: list[Worker]) -> None:
        begun.append((job.id, [each.device for each in able]))
        able[0].state = "busy"

    real = engine.store.get
    run(engine.catalogue.refresh())
    limited = lambda name: replace(real(name), settled=replace(real(name).settled, devices=("cuda:1",)))  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(engine.store, "get", lambda name: limited(name) if name == special.id else real(name))
        patched.setattr(engine.dispatcher, "workers", some)
        patched.setattr(engine.dispatcher, "_begin", begin)
        patched.setattr(catalogue, "FRESH", 1000.0)
        run(engine.pause(False))
        assert begun == [(plain.id, ["cuda:0"])]
        some[0].state, some[1].state = "idle", "refused"
        engine.dispatcher.wake()
        assert begun[1:] == [(special.id, ["cuda:0"])]  # its device is no more: it fails with a sentence, or fits


def test_a_planner_that_dies_or_hangs_refuses_the_request_and_is_started_again(engine, run, monkeypatch):
    """The last test: nothing waits for the planner's next start."""

    async def dies() -> None:
        asked = asyncio.create_task(engine.plan(order()))
        await asyncio.sleep(0)
        os.kill(engine.planning._child.pid, signal.SIGKILL)
        await asked

    run(engine.plan(order()))
    with pytest.raises(ServiceError, match="the process that plans requests was killed") as refused:
        run(dies())
    assert (refused.value.status, refused.value.code) == (400, "plan_failed")
    assert run(engine.plan(order())).frames == 4
    limits = replace(engine.settings.limits, plan_seconds=0.3)
    with monkeypatch.context() as patched:
        patched.setattr(engine, "settings", replace(engine.settings, limits=limits))
        os.kill(engine.planning._child.pid, signal.SIGSTOP)
        with pytest.raises(ServiceError, match="took more than 0.3 seconds") as refused:
            run(engine.plan(order()))
    assert (refused.value.status, refused.value.code) == (400, "plan_timeout")
