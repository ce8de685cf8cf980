"""The store: only allowed transitions, the queue's order, and files that it refuses without changing them."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kinema.schema import BadRequest
from kinema.server import store as stores
from kinema.server.jobs import NEXT, Asset, Job, Order, ServiceError, Settled
from kinema.server.store import FILE, Store, check

FORECAST = {"device": "cpu", "dtype": "float32", "stages": [{"stage": "base", "size": [1, 3, 4, 16, 16], "steps": 2}]}
SETTLED = Settled(
    frames=4, fps=8.0, height=16, width=16, clips=1, steps=2, seed=1, task="generate", forecast=FORECAST
)  # fmt: skip
ASSET = Asset(
    id="asset-1", kind="image", name="a.png", bytes=5, created_at=0.0, frames=1, fps=None, height=2, width=3
)  # fmt: skip


def job(number: int) -> Job:
    return Job(
        id=f"video_{number:020}", status="queued", order=Order(model="vdm/tiny", request={"prompt": "a"}),
        settled=SETTLED, created_at=float(number), position=0.0,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path)
    yield opened
    opened.close()


def force(store: Store, video_id: str, status: str) -> None:
    store._base.execute("UPDATE jobs SET status = ? WHERE id = ?", (status, video_id))


def test_a_job_is_read_as_it_was_added(store):
    added = store.add(job(1))
    assert (added.order, added.settled, added.status) == (job(1).order, SETTLED, "queued")
    assert store.get(added.id) == added


@pytest.mark.parametrize("before", NEXT)
def test_only_the_listed_transitions_change_a_job(store, before):
    for after in NEXT:
        store._base.execute("DELETE FROM jobs")
        added = store.add(job(1))
        force(store, added.id, before)
        moved = store.move_to(added.id, after, kills=3)
        assert (moved is not None) == (after in NEXT[before])
        assert (store.get(added.id).status, store.get(added.id).kills) == ((after, 3) if moved else (before, 0))


def test_a_transition_of_an_unknown_job_changes_nothing(store):
    assert store.move_to("video_none", "cancelled") is None
    with pytest.raises(ServiceError, match="there is no video 'video_none'") as refused:
        store.get("video_none")
    assert refused.value.status == 404


def test_the_queue_has_the_order_of_adding_and_a_retried_job_comes_last(store):
    first, second, third = (store.add(job(number)).id for number in (1, 2, 3))
    store.move_to(first, "cancelled")
    store.move_to(first, "queued")
    assert store.queued() == [second, third, first]


def test_a_waiting_job_can_be_put_before_any_other_and_at_the_end(store):
    ids = [store.add(job(number)).id for number in range(4)]
    for video_id, before in itertools.product(ids, [*ids, None]):
        expected = [each for each in store.queued() if each != video_id]
        expected.insert(len(expected) if before is None else expected.index(before), video_id) if (
            before != video_id
        ) else None
        if before == video_id:
            expected = store.queued()
        assert store.place(video_id, before) is not None
        assert store.queued() == expected


def test_a_job_that_runs_is_neither_moved_nor_a_place_to_move_to(store):
    first, second = store.add(job(1)).id, store.add(job(2)).id
    store.move_to(first, "in_progress")
    assert store.place(first, None) is None
    assert store.place(second, first) is None


def test_pages_of_jobs_follow_each_other_in_both_orders(store):
    ids = [store.add(job(number)).id for number in range(5)]
    for newest_first, expected in ((True, ids[::-1]), (False, ids)):
        one, more = store.page(limit=3, newest_first=newest_first)
        two, rest = store.page(after=one[-1].id, limit=3, newest_first=newest_first)
        assert [each.id for each in (*one, *two)] == expected
        assert (more, rest) == (True, False)
    with pytest.raises(ServiceError):
        store.page(after="video_none")


def test_only_final_jobs_are_removed(store):
    added = store.add(job(1))
    assert not store.remove(added.id)
    store.move_to(added.id, "cancelled")
    assert store.remove(added.id)


def test_counts_have_every_state(store):
    store.add(job(1))
    assert store.counts() == {status: int(status == "queued") for status in NEXT}


def test_pause_and_jobs_survive_reopening(tmp_path):
    store = Store(tmp_path)
    store.paused = True
    added = store.add(job(1))
    store.close()
    again = Store(tmp_path)
    assert (again.paused, again.get(added.id)) == (True, added)
    again.close()


def test_a_full_disk_is_507_and_leaves_nothing_half_written(store):
    added = store.add(job(1))
    pages = store._base.execute("PRAGMA page_count").fetchone()[0]
    store._base.execute(f"PRAGMA max_page_count = {pages}")
    large = Order(model="vdm/tiny", request={"prompt": "a" * 200_000})
    with pytest.raises(ServiceError) as refused:
        store.add(Job(id="video_large", status="queued", order=large, settled=SETTLED, created_at=0.0, position=0.0))
    assert (refused.value.status, refused.value.code) == (507, "disk_full")
    with pytest.raises(ServiceError) as refused:
        store.move_to(added.id, "cancelled", error_message="a" * 200_000)
    assert refused.value.status == 507
    assert store.page() == ([added], False)
    store._base.execute("PRAGMA max_page_count = 1000000")
    assert store.move_to(added.id, "cancelled") is not None


def test_a_change_is_on_the_disk_before_it_is_answered(store):
    modes = [store._base.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert modes == ["wal", 2]  # FULL


def test_a_store_that_another_program_writes_to_is_503_and_unchanged(store, tmp_path):
    added = store.add(job(1))
    store._base.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ServiceError) as refused:
        store.move_to(added.id, "cancelled")
    assert (refused.value.status, refused.value.code) == (503, "store_busy")
    assert store.get(added.id) == added
    other.close()
    assert store.move_to(added.id, "cancelled") is not None


def test_a_page_of_one_status_is_read_in_the_order_of_an_index(store):
    asked = []
    store.add(job(1))
    store._base.set_trace_callback(asked.append)
    assert store.page(status="queued")[0]
    store._base.set_trace_callback(None)
    plan = store._base.execute(f"EXPLAIN QUERY PLAN {asked[-1]}").fetchall()
    assert [row[3].partition(" (")[0] for row in plan] == ["SEARCH jobs USING INDEX jobs_by_age"]


def test_only_waiting_and_running_jobs_mention_an_input(store):
    using = [store.add(replace(job(n), order=Order(model="m", request={"image": "asset-1"}))) for n in (1, 2, 3)]
    store.add(job(4))
    force(store, using[1].id, "cancelling")
    force(store, using[2].id, "completed")
    assert {each.id for each in store.mentioning("asset-1")} == {using[0].id, using[1].id}


def test_a_change_that_fails_half_way_leaves_nothing(store):
    def fail() -> None:
        with store._transaction() as base:
            base.execute("UPDATE jobs SET progress = 50")
            raise RuntimeError

    added = store.add(job(1))
    with pytest.raises(RuntimeError):
        fail()
    assert store.get(added.id) == added


def test_uploads_are_found_by_their_bytes(store):
    store.add_asset(ASSET, "digest")
    assert store.asset_with("digest") == store.asset("asset-1") == ASSET
    assert (store.asset_with("other"), store.assets_bytes()) == (None, 5)
    store.remove_asset("asset-1")
    with pytest.raises(ServiceError):
        store.asset("asset-1")


# ------------------------------------------------------------------------------------ refused files


def closed(folder: Path) -> Path:
    store = Store(folder)
    store.add(job(1))
    store.close()
    return folder / FILE


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != stores.LOCK}


def refused(folder: Path, match: str) -> None:
    before = content(folder)
    with pytest.raises(BadRequest, match=match) as error:
        Store(folder)
    assert len(str(error.value).splitlines()) == 1
    assert content(folder) == before


def test_a_store_of_a_newer_version_is_refused_and_unchanged(tmp_path):
    path = closed(tmp_path)
    base = sqlite3.connect(path)
    base.execute(f"PRAGMA user_version = {stores.VERSION + 1}")
    base.close()
    refused(tmp_path, f"has version {stores.VERSION + 1}, and this kinema reads version {stores.VERSION}")


def test_a_newer_version_that_is_still_in_the_log_is_refused_too(tmp_path):
    path = closed(tmp_path)
    base = sqlite3.connect(path)
    base.execute("PRAGMA wal_autocheckpoint = 0")
    base.execute(f"PRAGMA user_version = {stores.VERSION + 1}")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (FILE, f"{FILE}-wal"):
        shutil.copy(tmp_path / name, copy / name)
    base.close()
    with pytest.raises(BadRequest, match="install a newer kinema"):
        check(copy / FILE)


def test_a_database_of_another_application_is_refused_and_unchanged(tmp_path):
    base = sqlite3.connect(tmp_path / FILE)
    base.execute("CREATE TABLE jobs (id TEXT)")
    base.commit()
    base.close()
    refused(tmp_path, "belongs to another application")


def test_a_file_that_is_no_database_is_refused_and_unchanged(tmp_path):
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    refused(tmp_path, "is damaged: it is not a SQLite file")


@pytest.mark.parametrize("where", ["page", "end", "order"])
def test_a_damaged_store_is_refused_and_unchanged(tmp_path, where):
    path = closed(tmp_path)
    data = bytearray(path.read_bytes())
    if where == "page":
        data[4096 : 4096 * 3] = b"\xff" * 8192
    elif where == "end":
        del data[len(data) // 2 :]
    else:
        at = data.index(b'"vdm/tiny"')
        data[at : at + 2] = b"}{"
    path.write_bytes(bytes(data))
    refused(tmp_path, "is damaged: .*; move it away to begin with an empty one")


def test_an_empty_file_that_a_killed_server_left_becomes_a_store(tmp_path):
    (tmp_path / FILE).touch()
    Store(tmp_path).close()
    check(tmp_path / FILE)


def test_a_second_server_on_the_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "LOCK_SECONDS", 0.0)
    store = Store(tmp_path)
    with pytest.raises(BadRequest, match="another kinema serve uses the folder"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_a_process_that_keeps_the_lock_file_open_keeps_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "LOCK_SECONDS", 0.0)
    store = Store(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(store.lock,))
    store.close()
    with pytest.raises(BadRequest, match="another kinema serve"):
        Store(tmp_path)
    child.communicate(b"\n")
    Store(tmp_path).close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_as_a_store_and_stays(tmp_path, kind):
    path = tmp_path / "jobs.sqlite"
    {"pipe": os.mkfifo, "folder": Path.mkdir, "device": lambda at: at.symlink_to("/dev/zero")}[kind](path)
    before = path.stat().st_mode
    with pytest.raises(BadRequest, match=r"jobs.sqlite is a folder, pipe or device; expected the file of a store"):
        Store(tmp_path)
    assert path.stat().st_mode == before
    path.rmdir() if kind == "folder" else path.unlink()
    Store(tmp_path).close()
