"""Readers of events: bounded, in order, and no status is lost."""

from __future__ import annotations

import asyncio

from kinema.server.channel import MAX_NOTES, Outbox
from kinema.server.jobs import Progress
from kinema.server.listeners import KEPT, Listener, Live


def status(name: str) -> Progress:
    return Progress(kind="status", data={"status": name})


def step(index: int) -> Progress:
    return Progress(kind="step", data={"index": index, "share": index / 1000, "stage": "base", "eta": None})


def read(listener: Listener) -> list[Progress]:
    async def all_of() -> list[Progress]:
        return [event async for event in listener.events()]

    return asyncio.run(all_of())


def test_a_slow_reader_gets_every_status_and_only_the_newest_step_and_preview():
    listener = Listener()
    listener.put(status("queued"))
    listener.put(status("in_progress"))
    for index in range(1000):
        listener.put(step(index))
        listener.put(Progress(kind="preview", data={"index": index}))
    listener.put(status("cancelling"))
    listener.put(status("cancelled"))
    assert len(listener) == 6
    found = [(event.kind, event.data.get("status", event.data.get("index"))) for event in read(listener)]
    assert found == [
        ("status", "queued"), ("status", "in_progress"), ("step", 999), ("preview", 999),
        ("status", "cancelling"), ("status", "cancelled"),
    ]  # fmt: skip


def test_what_waits_for_a_reader_is_bounded():
    listener = Listener()
    for index in range(10_000):
        listener.put(Progress(kind="note", data={"message": str(index)}))
        listener.put(Progress(kind="phase", data={"name": str(index)}))
        listener.put(step(index))
    assert len(listener) <= MAX_NOTES + 1


def test_a_stream_ends_with_the_first_final_status_and_when_the_service_stops():
    listener = Listener()
    for each in (status("in_progress"), status("failed"), step(1)):
        listener.put(each)
    assert [event.kind for event in read(listener)] == ["status", "status"]
    listener = Listener()
    listener.put(status("queued"))
    listener.put(None)
    assert [event.kind for event in read(listener)] == ["status"]


def test_the_newest_notes_are_kept_however_many_were_read_before():
    outbox = Outbox()
    for index in range(500):
        outbox.put("note", index)
        if index < 400:
            outbox.take()
    kept = [outbox.take() for _ in range(len(outbox))]
    assert kept == list(range(500 - MAX_NOTES, 500))
    assert outbox.take() is None


def test_progress_never_goes_back_and_is_below_100_while_a_job_runs():
    live = Live(worker=None)
    for index in (500, 400, 1000):
        live.hear(step(index))
    assert live.progress == 99


def test_a_new_reader_gets_the_phases_and_notes_so_far_and_the_last_step():
    live = Live(worker=None)
    for index in range(KEPT * 2):
        live.hear(Progress(kind="note", data={"message": str(index)}))
        live.hear(step(index))
    past = live.past()
    assert [each.kind for each in past] == ["note"] * KEPT + ["step"]
    assert past[-1].data["index"] == KEPT * 2 - 1


def test_a_newer_step_comes_after_what_was_put_meanwhile():
    outbox = Outbox()
    for kind in ("step", "phase", "step"):
        outbox.put(kind, kind)
    assert [outbox.take() for _ in range(len(outbox))] == ["phase", "step"]
