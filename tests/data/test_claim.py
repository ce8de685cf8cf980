"""One process at a time."""

from __future__ import annotations

import os

import pytest

from kinema.data.claim import alone
from kinema.schema import BadRequest


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_second_one_is_told_until_the_first_is_done(tmp_path, kind):
    path = tmp_path if kind == "folder" else tmp_path / "lock"
    with alone(path, "at work"), pytest.raises(BadRequest, match="at work"), alone(path, "at work"):
        pass
    with alone(path, "at work"):
        pass


def test_who_gets_a_file_that_the_first_took_with_it_is_told(tmp_path, monkeypatch):
    lock = "kinema.data.claim._lock"
    monkeypatch.setattr(lock, lambda *_: (tmp_path / "lock").unlink())
    with pytest.raises(BadRequest, match="at work"), alone(tmp_path / "lock", "at work"):
        pass


def test_links_and_pipes_are_not_opened(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(BadRequest, match="expected a regular file"), alone(tmp_path / name, "at work"):
            pass
