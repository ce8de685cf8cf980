"""A start after the server was killed: what ran is named, what waited runs, nothing runs twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kinema.schema import BadRequest
from kinema.server.dispatcher import STOPPED
from kinema.server.inspections import Inspections
from kinema.server.jobs import Job, Order, Settled
from kinema.server.planning import Planning
from kinema.server.settings import Settings
from kinema.server.store import Store, disk_full
from kinema.server.supervisor import Supervisor
from kinema.server.workers import Worker

ROOT = Path(__file__).parents[2]
FORECAST = {"device": "cpu", "dtype": "float32", "stages": [{"stage": "base", "size": [1, 3, 4, 16, 16], "steps": 2}]}
SETTLED = Settled(
    frames=4, fps=8.0, height=16, width=16, clips=1, steps=2, seed=1, task="generate", forecast=FORECAST
)  # fmt: skip
RESULT = {"frames": 4, "partial": False}


def left(folder: Path, *statuses: str) -> list[str]:
    """A folder as a killed server leaves it, with a job in each of these states."""
    store, ids = Store(folder), [f"video_{number:024}" for number in range(len(statuses))]
    for video_id, status in zip(ids, statuses, strict=True):
        order = Order(model="vdm/tiny", request={"prompt": "a", "frames": 4, "steps": 2})
        store.add(Job(id=video_id, status="queued", order=order, settled=SETTLED, created_at=0.0, position=0.0))
        for each in {"cancelling": ("in_progress", "cancelling"), "queued": ()}.get(status, ("in_progress", status)):
            store.move_to(video_id, each)
    store.close()
    return ids


def clip_of(folder: Path, video_id: str, *, partial: bool = False) -> None:
    (folder / "jobs" / video_id).mkdir(parents=True)
    (folder / "jobs" / video_id / "result.json").write_text(json.dumps({**RESULT, "partial": partial}))


@pytest.fixture
def start(monkeypatch):
    """Start an engine without processes, and return what it found and the states of its jobs."""
    for kind, name in ((Worker, "start"), (Planning, "warm"), (Inspections, "warm")):
        monkeypatch.setattr(kind, name, lambda _self: None)

    def started(folder: Path) -> tuple[list[str], dict[str, Job]]:
        async def once() -> tuple[list[str], dict[str, Job]]:
            supervisor = Supervisor(Settings(folder=folder, devices=("cpu",)))
            found = list(await supervisor.start())
            jobs = {job.id: job for job in supervisor.store.page(limit=100)[0]}
            await supervisor.stop()
            return found, jobs

        return asyncio.run(once())

    return started


def test_what_ran_is_interrupted_and_named_and_what_waited_still_waits(tmp_path, start):
    ran, waits, stopping, done = left(tmp_path, "in_progress", "queued", "cancelling", "failed")
    found, jobs = start(tmp_path)
    assert found == [ran, stopping]
    assert [jobs[each].status for each in (ran, waits, stopping, done)] == [
        "interrupted", "queued", "interrupted", "failed",
    ]  # fmt: skip
    assert (jobs[ran].error_code, jobs[ran].error_message) == ("interrupted", STOPPED)
    assert start(tmp_path)[0] == []


def test_a_disk_that_is_full_at_the_start_is_refused_in_a_sentence(tmp_path, start, monkeypatch):
    left(tmp_path, "in_progress")

    def full(*_args, **_named) -> None:
        raise disk_full()

    with monkeypatch.context() as patched:
        patched.setattr(Store, "move_to", full)
        with pytest.raises(BadRequest, match="disk is full"):
            start(tmp_path)
    assert len(start(tmp_path)[0]) == 1  # it was not locked, and nothing is lost


def test_a_file_in_place_of_a_folder_is_named(tmp_path, start):
    (tmp_path / "jobs").touch()
    with pytest.raises(BadRequest, match=f"{tmp_path}/jobs: file exists"):
        start(tmp_path)


def test_a_job_whose_clip_is_finished_is_completed(tmp_path, start):
    ran, stopping = left(tmp_path, "in_progress", "cancelling")
    clip_of(tmp_path, ran)
    clip_of(tmp_path, stopping)
    found, jobs = start(tmp_path)
    assert found == []
    assert [(jobs[each].status, jobs[each].progress, jobs[each].result) for each in (ran, stopping)] == [
        ("completed", 100, RESULT)
    ] * 2


def test_a_cancelled_job_whose_partial_clip_is_finished_keeps_it(tmp_path, start):
    (stopping,) = left(tmp_path, "cancelling")
    clip_of(tmp_path, stopping, partial=True)
    found, jobs = start(tmp_path)
    assert (found, jobs[stopping].status, jobs[stopping].result["partial"]) == ([], "cancelled", True)


def test_unfinished_files_and_those_of_unknown_jobs_are_removed(tmp_path, start):
    (ran,) = left(tmp_path, "in_progress")
    for name in (f"jobs/{ran}.1.part", "jobs/video_unknown", "assets/asset-unknown", "uploads/half"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "uploads" / "file").touch()
    start(tmp_path)
    assert [list((tmp_path / name).iterdir()) for name in ("jobs", "assets", "uploads")] == [[], [], []]


def host(folder: Path, rounds: int, kill_at: str) -> tuple[int, list[dict]]:
    words = ["host", str(folder), "--rounds", str(rounds), "--kill-at", kill_at, "--victim", "server"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serve", *words], capture_output=True, text=True, timeout=240, cwd=ROOT,
        check=False, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"},
    )  # fmt: skip
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(500)
def test_a_server_that_is_killed_while_a_job_runs_and_another_waits_loses_neither_and_repeats_none(tmp_path):
    code, _ = host(tmp_path, 1, "step")
    assert code == -signal.SIGKILL
    code, (found, _) = host(tmp_path, 0, "")
    assert code == 0
    ran, waited = found["jobs"]
    assert (ran["status"], ran["attempts"], ran["clip"]) == ("interrupted", 1, False)
    assert (waited["status"], waited["attempts"], waited["clip"]) == ("completed", 1, True)
    assert found["interrupted"] == [ran["id"]]
