"""The folder of a run, locked by one run at a time, and the signals that stop it."""

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
from kinema.data.locking import locked
from kinema.schema import BadRequest

_LOCK, _LOG = ".lock", "log.jsonl"
MAX_LOG = 2**30
"""Limit on the bytes of a log; a million steps take a tenth of it."""
_FOLDERS = (("samples", Path.is_dir), ("tensorboard", Path.is_dir))


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Create and lock the folder for this run, and delete partial files of a killed run.

    Raises BadRequest if the folder is not writable, another run is using it, a file that a run appends to is a link,
    or the disk fills up.
    """
    new = _create(folder)
    check_folder(folder / _LOCK)
    _check_links(folder)
    try:
        with locked(folder / _LOCK, f"another training run is using {folder}; name another folder, or wait for it"):
            try:
                for place in (folder, folder / "samples"):
                    tidy(place, 0)
                yield folder
            except BadRequest:
                if new and {path.name for path in folder.iterdir()} <= {_LOCK}:
                    shutil.rmtree(folder)  # a refused run leaves no folder; we still hold the lock
                raise
    except OSError as error:
        if error.errno in FULL:
            raise BadRequest(
                f"the disk of {folder.resolve()} is full; the last checkpoint is kept: "
                "free some space and run the same command to resume"
            ) from error
        raise


def _create(folder: Path) -> bool:
    """Create the folder; returns whether this call, and not a concurrent run, created it."""
    if folder.exists() and not folder.is_dir():
        raise BadRequest(f"{folder} is a file; expected a folder for the run")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return True
    except OSError as error:
        raise BadRequest(f"cannot create the run folder {folder}: {error.strerror}") from error
    return False


def check_new(folder: Path) -> None:
    """Raise BadRequest if a folder holds files but no run: a run would overwrite files of the same names."""
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
    """Raise BadRequest if a file or folder of a run is a link or of another kind: a run would write through it."""
    for name, is_valid in ((_LOCK, Path.is_file), (RUN_OPTIONS, Path.is_file), (_LOG, Path.is_file), *_FOLDERS):
        place = folder / name
        if place.is_symlink() or (place.exists() and not is_valid(place)):
            kind = "a link" if place.is_symlink() else "not what a run writes there"
            raise BadRequest(f"{place} is {kind}; name another folder")


@contextmanager
def stopping() -> Iterator[list[int]]:
    """Collect SIGTERM and Ctrl-C in the list so that the current step can finish; a second one stops immediately."""
    caught: list[int] = []

    def record(number: int, _frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {s: signal.signal(s, record) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: its owner handles signals
        before = {}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def trim_log(path: Path, step: int) -> None:
    """Delete rows after ``step``, which a resumed run repeats, and incomplete rows."""
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
