"""Which waiting job is given out next, without processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kinema.server.dispatcher import Dispatcher
from kinema.server.jobs import Job, Order, Settled
from kinema.server.settings import Settings
from kinema.server.store import Store


def job(number: int, *devices: str) -> Job:
    settled = Settled(
        frames=4, fps=8.0, height=16, width=16, clips=1, steps=2, seed=1, task="generate", forecast={}, devices=devices
    )  # fmt: skip
    order = Order(model="vdm/tiny", request={"prompt": "a"})
    return Job(id=f"video_{number:020}", status="queued", order=order, settled=settled, created_at=0.0, position=0.0)


def test_a_wake_reads_only_the_job_that_it_gives_out(tmp_path, monkeypatch):
    store = Store(tmp_path)
    for number in range(20):
        store.add(job(number, "cuda:0"))
    nothing: Any = SimpleNamespace(fresh=True)
    dispatcher = Dispatcher(Settings(folder=tmp_path), store, nothing, nothing, nothing)
    busy, idle = (SimpleNamespace(device=f"cuda:{n}", usable=True, state=("busy", "idle")[n]) for n in (0, 1))
    dispatcher.workers = [busy, idle]  # type: ignore[list-item]
    begun: list[tuple[str, str]] = []

    def begin(given, able):
        begun.append((given.id, able[0].device))
        able[0].state = "busy"
        store.move_to(given.id, "in_progress")

    monkeypatch.setattr(dispatcher, "_begin", begin)
    dispatcher.wake()
    assert begun == []

    read: list[str] = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda video_id: (read.append(video_id), get(video_id))[1])
    dispatcher.wake()
    assert read == []
    last = store.add(job(20, "cuda:0", "cuda:1")).id
    read.clear()
    dispatcher.wake()
    assert begun == [(last, "cuda:1")]
    assert set(read) == {last}

    busy.state = "idle"
    read.clear()
    dispatcher.wake()
    assert begun[1:] == [(job(0).id, "cuda:0")]
    assert read == [job(0).id]
    store.close()
