from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kinema import atomic
from kinema.atomic import check_folder, replacing, sync
from kinema.schema import BadRequest


def test_the_new_content_appears_at_the_end_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
        assert part.name.startswith(".")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError, SystemExit])
def test_whatever_is_raised_leaves_the_old_content_alone(tmp_path: Path, stop: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def stopped() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise stop

    with pytest.raises(stop):
        stopped()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_before_the_rename_leaves_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    script = f"""
        import os, signal
        from pathlib import Path
        from kinema.atomic import replacing
        with replacing(Path({str(tmp_path / "a.txt")!r})) as part:
            part.write_text("new, all of it")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False)
    assert done.returncode == -9
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    with replacing(tmp_path / "a", folder=True) as part:
        (part / "new").touch()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for path, expected in ((tmp_path / "no" / "a", "does not exist"), (tmp_path / "file" / "a", "is a file")):
        with pytest.raises(BadRequest, match=expected):
            check_folder(path)
    monkeypatch.setattr("kinema.atomic.os.access", lambda *a: False)
    with pytest.raises(BadRequest, match="may not be written"):
        check_folder(tmp_path / "a")


def test_a_name_of_full_length_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250)
    with replacing(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    with pytest.raises(BadRequest, match="cannot write"), replacing(tmp_path / ("y" * 300)):
        pass


def test_a_name_too_long_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="too long"):
        check_folder(tmp_path / ("y" * 300))


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(BadRequest, match="it is a file"), replacing(tmp_path / "a", folder=True):
        pass
    assert (tmp_path / "a").read_text() == "mine"


def test_a_file_system_that_flushes_no_folders_is_no_error_and_a_file_that_fails_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").touch()

    def refuse(_handle: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(atomic.os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "a")
