"""The folder of a run."""

from __future__ import annotations

import errno
import json
import os

import pytest

from kinema.schema import BadRequest
from kinema.training.run_folder import claimed, trim_log


def claim(folder):
    with claimed(folder) as found:
        return found


def test_a_run_creates_its_folder_with_parents(tmp_path):
    assert claim(tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(("place", "sentence"), [("file", "is a file"), ("file/below", "cannot create the run folder")])
def test_a_folder_that_cannot_be_created_is_refused(tmp_path, place, sentence):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadRequest, match=sentence):
        claim(tmp_path / place)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("kinema.atomic.os.access", lambda *_: False)  # as root every mode is writable
    with pytest.raises(BadRequest, match="no write permission"):
        claim(tmp_path)


def test_two_runs_never_share_a_folder(tmp_path):
    with claimed(tmp_path):
        with pytest.raises(BadRequest, match="another training run is using"):
            claim(tmp_path)
    assert claim(tmp_path) == tmp_path


def test_only_partial_files_of_killed_writes_are_deleted(tmp_path):
    (tmp_path / "samples").mkdir()
    torn = [tmp_path / ".step-00000002.safetensors.0a1b2c3d.part", tmp_path / "samples" / ".step-1-0.png.00000000.part"]
    kept = [tmp_path / "step-00000001.safetensors", tmp_path / ".mine.part", tmp_path / "notes.part"]
    for path in (*torn, *kept):
        path.write_text("x")
    claim(tmp_path)
    assert not any(p.exists() for p in torn)
    assert all(p.exists() for p in kept)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_in_one_sentence(tmp_path, number):
    with pytest.raises(BadRequest, match="full; the last checkpoint is kept"), claimed(tmp_path):
        raise OSError(number, "no room")


def test_other_os_errors_propagate(tmp_path):
    with pytest.raises(PermissionError), claimed(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_the_log_is_trimmed_to_the_resumed_step(tmp_path):
    path = tmp_path / "log.jsonl"
    rows = [json.dumps({"step": s}) for s in (10, 20, 30)]
    path.write_text("\n".join([*rows, '{"step": 4']))
    trim_log(path, 20)
    assert path.read_text() == f"{rows[0]}\n{rows[1]}\n"
    trim_log(tmp_path / "none.jsonl", 20)


def test_a_refused_run_deletes_only_its_own_folder(tmp_path):
    for name in ("new", "old"):
        if name == "old":
            (tmp_path / name).mkdir()
        with pytest.raises(BadRequest, match="no"), claimed(tmp_path / name):
            raise BadRequest("no")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_refused_run_keeps_the_folder_of_a_concurrent_run(tmp_path, monkeypatch):
    """Even if it believes it created the folder: only the lock holder may delete it."""
    with claimed(tmp_path / "run") as folder:
        monkeypatch.setattr("kinema.training.run_folder._create", lambda _: True)
        with pytest.raises(BadRequest, match="another training run is using"):
            claim(folder)
        assert (folder / ".lock").is_file()


@pytest.mark.parametrize("name", [".lock", "log.jsonl", "options.json", "samples", "tensorboard"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_run_never_writes_through_links_or_other_files(tmp_path, name, kind):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (run / name).symlink_to(elsewhere) if kind == "link" else os.mkfifo(run / name)
    with pytest.raises(BadRequest, match=f"{name} is (a link|not what a run writes there)"):
        claim(run)
    assert not list(elsewhere.iterdir())
    assert os.path.lexists(run / name)


def test_invalid_lines_of_a_log_are_deleted(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": "2"}\n' + "[" * 100_000 + '\n{"step": 1e999}\n[1]\n{"step": 3}\n')
    trim_log(log, 2)
    assert log.read_text() == '{"step": 1}\n'
