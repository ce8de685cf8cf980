"""The folder of a run: made, claimed by one run at a time, tidied; and the signals that ask the run to stop."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from kinema import bounds
from kinema.atomic import FULL, check_folder, refuse_foreign, replacing, tidy
from kinema.checkpoints.files import RUN_OPTIONS
from kinema.checkpoints.source import read_json
from kinema.data.claim import alone
from kinema.schema import BadRequest

_LOCK, _LOG = ".lock", "log.jsonl"
MAX_LOG = 2**30
"""Bytes of a log that are read: a million steps take a tenth."""
_FOLDERS = (("samples", Path.is_dir), ("tensorboard", Path.is_dir))


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """The folder, for this run alone, without what a killed run had half written.

    Raises BadRequest when it cannot be written, when another run is at work in it, when what a run writes in place
    is a link there, or when the disk fills up.
    """
    new = _make(folder)
    check_folder(folder / _LOCK)
    _check_links(folder)
    try:
        with alone(folder / _LOCK, f"another training run is at work in {folder}; name another folder, or wait for it"):
            try:
                for place in (folder, folder / "samples"):
                    tidy(place, 0)
                yield folder
            except BadRequest:
                if new and {path.name for path in folder.iterdir()} <= {_LOCK}:
                    shutil.rmtree(folder)  # a run that was refused leaves nothing; only it has the lock
                raise
    except OSError as error:
        if error.errno in FULL:
            raise BadRequest(
                f"the disk that holds {folder.resolve()} is full; the last checkpoint stands: "
                "free some space and run the same command to go on"
            ) from error
        raise


def _make(folder: Path) -> bool:
    """Make the folder; whether this call made it, and not a run that began at the same moment."""
    if folder.exists() and not folder.is_dir():
        raise BadRequest(f"{folder} is a file; expected the name of a folder for the run")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return True
    except OSError as error:
        raise BadRequest(f"cannot make the folder {folder} of the run: {error.strerror}") from error
    return False


def check_new(folder: Path) -> None:
    """Refuse a folder that holds files and no run: a run writes names of its own there, over whatever has them."""
    if not _is_run(folder):
        expected = "a new folder, an empty one or that of a run"
        refuse_foreign(folder, lambda name: name.startswith("."), "a training run", expected)


def _is_run(folder: Path) -> bool:
    if any(folder.glob("step-*.safetensors")):
        return True
    try:
        return "recipe" in read_json(folder / RUN_OPTIONS)
    except BadRequest:
        return False


def _check_links(folder: Path) -> None:
    """Refuse a folder in which a run's own names lead elsewhere, or are of another kind: it would write there."""
    for name, is_ours in ((_LOCK, Path.is_file), (RUN_OPTIONS, Path.is_file), (_LOG, Path.is_file), *_FOLDERS):
        place = folder / name
        if place.is_symlink() or (place.exists() and not is_ours(place)):
            kind = "a link" if place.is_symlink() else "of another kind"
            raise BadRequest(f"{place} is {kind}; expected a run's own {name}, or none: name another folder")


@contextmanager
def stopping() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C are noted in the list, so that the running step can finish; a second one stops at once."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals belong to somebody else
        before = {}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def trim_log(path: Path, step: int) -> None:
    """Drop the rows after ``step`` (a run goes on from its last checkpoint, not from its last step) and a torn one."""
    if not path.is_file():
        return
    kept = []
    for line in bounds.read_bytes(path, MAX_LOG, "a run's log").decode(errors="replace").splitlines():
        try:
            row = bounds.from_json(line, path.name)
        except BadRequest:
            continue
        at = row.get("step", 0) if isinstance(row, dict) else None
        if isinstance(at, int) and at <= step:
            kept.append(line)
    with replacing(path) as part:
        part.write_text("".join(f"{line}\n" for line in kept))
