"""The folder of a run: made, claimed by one run at a time, tidied; and the signals that ask the run to stop."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from kinema import bounds
from kinema.atomic import FULL, check_folder, replacing
from kinema.checkpoints.files import RUN_OPTIONS
from kinema.data.claim import alone
from kinema.schema import BadRequest

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.part")
_LOCK = ".lock"


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """The folder, for this run alone, without what a killed run had half written.

    Raises BadRequest when it cannot be written, when another run is at work in it, when what a run writes in place
    is a link there, or when the disk fills up.
    """
    new = _make(folder)
    check_folder(folder / _LOCK)
    try:
        with alone(folder / _LOCK, f"another training run is at work in {folder}; name another folder, or wait for it"):
            try:
                _tidy(folder)
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


def _tidy(folder: Path) -> None:
    """Refuse links where a run writes in place, which would lead elsewhere; remove torn files of killed runs."""
    for name, is_kind in (("samples", Path.is_dir), ("log.jsonl", Path.is_file)):
        path = folder / name
        if path.is_symlink() or (path.exists() and not is_kind(path)):
            raise BadRequest(
                f"{path} is a link or of another kind than a run makes; move it away, or name another folder"
            )
    for place in (folder, folder / "samples"):
        for path in place.glob(".*.part"):
            if path.is_file() and _LEFTOVER.fullmatch(path.name):
                path.unlink()


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds files and no run: a run writes names of its own there, over whatever has them."""
    held = sorted(p.name for p in folder.glob("*") if not p.name.startswith(".")) if folder.exists() else []
    if held and not _is_run(folder):
        raise BadRequest(
            f"{folder} holds {held[0]} and no training run; expected a new folder, an empty one or a run's"
        )


def _is_run(folder: Path) -> bool:
    if any(folder.glob("step-*.safetensors")):
        return True
    try:
        told = bounds.from_json(bounds.read_bytes(folder / RUN_OPTIONS, bounds.MAX_CONFIG), RUN_OPTIONS, infinite=True)
    except BadRequest:
        return False
    return isinstance(told, dict) and "recipe" in told


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
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("step", 0) <= step:
            kept.append(line)
    with replacing(path) as part:
        part.write_text("".join(f"{line}\n" for line in kept))
