"""File and folder locks."""

from __future__ import annotations

import os

import pytest

from kinema.data.locking import locked
from kinema.schema import BadRequest


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_second_lock_is_refused_until_the_first_is_released(tmp_path, kind):
    path = tmp_path if kind == "folder" else tmp_path / "lock"
    with locked(path, "at work"), pytest.raises(BadRequest, match="at work"), locked(path, "at work"):
        pass
    with locked(path, "at work"):
        pass


def test_a_file_removed_by_its_previous_owner_is_refused(tmp_path, monkeypatch):
    lock = "kinema.data.locking._lock"
    monkeypatch.setattr(lock, lambda *_: (tmp_path / "lock").unlink())
    with pytest.raises(BadRequest, match="at work"), locked(tmp_path / "lock", "at work"):
        pass


def test_links_and_pipes_are_refused(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(BadRequest, match="expected a regular file"), locked(tmp_path / name, "at work"):
            pass
