from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from kinema import atomic
from kinema.atomic import AlreadyExists, check_folder, numbered, refuse_foreign, replacing, sync, tidy, write_numbered
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
def test_any_exception_leaves_the_old_content(tmp_path: Path, stop: type[BaseException]) -> None:
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


def test_an_unwritable_target_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for path, expected in ((tmp_path / "no" / "a", "does not exist"), (tmp_path / "file" / "a", "is a file")):
        with pytest.raises(BadRequest, match=expected):
            check_folder(path)
    monkeypatch.setattr("kinema.atomic.os.access", lambda *a: False)
    with pytest.raises(BadRequest, match="no write permission"):
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
    with pytest.raises(BadRequest, match="a file of that name exists"), replacing(tmp_path / "a", folder=True):
        pass
    assert (tmp_path / "a").read_text() == "mine"


def test_unflushable_folders_are_accepted_and_unflushable_files_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").touch()

    def refuse(_handle: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(atomic.os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "a")


# ------------------------------------------------------------------------------ names that are taken


def written(path: Path, text: str, *, folder: bool) -> None:
    with replacing(path, folder=folder, exclusive=True) as part:
        (part / "inside" if folder else part).write_text(text)


@pytest.mark.parametrize("folder", [False, True])
def test_an_exclusive_writer_replaces_nothing(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "a"
    written(path, "mine", folder=folder)
    with pytest.raises(AlreadyExists, match="a exists"):
        written(path, "theirs", folder=folder)
    assert (path / "inside" if folder else path).read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exclusive_folder_does_not_take_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    with pytest.raises(AlreadyExists):
        written(tmp_path / "a", "mine", folder=True)
    assert not list((tmp_path / "a").iterdir())


def test_an_exclusive_writer_does_not_follow_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AlreadyExists):
        written(tmp_path / "a", "mine", folder=False)
    assert not (tmp_path / "elsewhere").exists()


def test_exclusive_writes_work_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(atomic.os, "link", refuse)
    written(tmp_path / "a", "mine", folder=False)
    with pytest.raises(AlreadyExists):
        written(tmp_path / "a", "theirs", folder=False)
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize("folder", [False, True])
def test_one_of_several_concurrent_writers_succeeds(tmp_path: Path, folder: bool) -> None:
    path, start, got, lost = tmp_path / "a", threading.Barrier(8), [], []

    def write(number: int) -> None:
        start.wait()
        try:
            written(path, str(number), folder=folder)
            got.append(number)
        except AlreadyExists:
            lost.append(number)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (len(got), len(lost)) == (1, 7)
    assert (path / "inside" if folder else path).read_text() == str(got[0])


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    with replacing(path) as part:
        part.write_text("new")
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_system_without_modes_keeps_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(self))

    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(Path, "chmod", refused)
    with replacing(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"


# ---------------------------------------------------------------------- what killed writers leave


def aged(path: Path, seconds: float = 2 * atomic.LEFT_BEHIND) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def test_a_sole_writer_also_removes_recent_temporary_files(tmp_path: Path) -> None:
    young, foreign = tmp_path / ".c.mp4.0123abcd.part", tmp_path / ".d.part"
    for path in (young, foreign):
        path.write_text("x")
    tidy(tmp_path, 60)
    assert young.exists()
    tidy(tmp_path, 0)
    assert list(tmp_path.iterdir()) == [foreign]
    tidy(tmp_path / "nowhere", 0)


def test_a_folder_with_foreign_names_is_refused(tmp_path: Path) -> None:
    check = partial(refuse_foreign, accepts=lambda name: name == "a", what="letters", expected="a new folder")
    check(tmp_path / "nowhere")
    (tmp_path / "a").touch()
    check(tmp_path)
    (tmp_path / ".b").touch()
    with pytest.raises(BadRequest, match=r"holds \.b, which does not belong to letters; expected a new folder"):
        check(tmp_path)


def test_only_old_temporary_files_are_removed(tmp_path: Path) -> None:
    old, young, foreign = (tmp_path / name for name in (".b.mp4.0123abcd.part", ".c.mp4.0123abcd.part", ".d.part"))
    folder = tmp_path / ".frames.89abcdef.part"
    folder.mkdir()
    for file in (old, young, foreign, folder / "frame-0000.png"):
        file.touch()
    for each in (old, foreign, folder / "frame-0000.png", folder):
        aged(each)
    with replacing(tmp_path / "a.txt") as part:
        part.write_text("new")
    assert not old.exists()
    assert not folder.exists()
    assert young.exists()
    assert foreign.exists()


def test_a_folder_moved_aside_by_a_killed_writer_is_restored(tmp_path: Path) -> None:
    aside = tmp_path / ".frames.0123abcd.part.old"
    aside.mkdir()
    (aside / "frame-0000.png").write_text("mine")
    aged(aside / "frame-0000.png")
    aged(aside)
    with replacing(tmp_path / "a.txt") as part:
        part.write_text("new")
    assert (tmp_path / "frames" / "frame-0000.png").read_text() == "mine"
    assert not aside.exists()


def test_a_link_named_like_a_temporary_file_is_kept(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    (tmp_path / ".x.0123abcd.part").symlink_to(kept)
    aged(kept)
    with replacing(tmp_path / "a.txt") as part:
        part.write_text("new")
    assert kept.read_text() == "mine"


def test_taken_names_are_numbered(tmp_path: Path) -> None:
    names = [path.name for path in itertools.islice(numbered(tmp_path / "a.b.mp4"), 3)]
    assert names == ["a.b.mp4", "a.b-2.mp4", "a.b-3.mp4"]


@pytest.mark.parametrize("stem", ["x" * 251, "é" * 125, "🎬" * 62])
def test_a_name_as_long_as_the_disk_allows_is_written_and_numbered(tmp_path: Path, stem: str) -> None:
    for path in itertools.islice(numbered(tmp_path / f"{stem}.mp4"), 12):
        for folder in (False, True):
            place = path.with_suffix(".d") if folder else path
            written(place, "a", folder=folder)
            assert place.exists()


def test_a_taken_name_is_replaced_by_the_next_number(tmp_path: Path) -> None:
    def write(path: Path, text: str) -> Path:
        written(path, text, folder=False)
        return path

    names = [write_numbered(tmp_path / "a", partial(write, text=text)) for text in "xyz"]
    assert [path.name for path in names] == ["a", "a-2", "a-3"]
    assert [path.read_text() for path in names] == ["x", "y", "z"]


@pytest.mark.parametrize("flush", [True, False])
def test_bytes_are_flushed_unless_they_need_not_outlive_a_power_cut(flush, tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(handle))
    with replacing(tmp_path / "a", flush=flush) as part:
        part.write_text("whole")
    assert ((tmp_path / "a").read_text(), bool(flushed)) == ("whole", flush)
