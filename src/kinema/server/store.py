"""The store: jobs, uploads and measured times in a SQLite file. One server at a time uses it.

Only the transitions of `kinema.server.jobs.NEXT` are possible: each is one statement, which changes nothing if the
state is another by then.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

from kinema.schema import BadRequest
from kinema.server.jobs import NEXT, Asset, Job, Order, ServiceError, Settled, Status

APPLICATION = 0x4B6E6D61
"""``PRAGMA application_id`` of a store: "Knma"."""
VERSION = 1
FILE, LOCK = "jobs.sqlite", "lock"
MAGIC = b"SQLite format 3\0"
_SCHEMA = f"""
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, status TEXT NOT NULL, "order" TEXT NOT NULL,
    settled TEXT NOT NULL, created_at REAL NOT NULL, position REAL NOT NULL, progress INTEGER NOT NULL DEFAULT 0,
    started_at REAL, completed_at REAL, attempts INTEGER NOT NULL DEFAULT 0, kills INTEGER NOT NULL DEFAULT 0,
    device TEXT, error_code TEXT, error_message TEXT, result TEXT
);
CREATE INDEX jobs_by_status ON jobs (status, position);
CREATE INDEX jobs_by_age ON jobs (status, number);
CREATE TABLE assets (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, name TEXT NOT NULL,
    bytes INTEGER NOT NULL, created_at REAL NOT NULL, frames INTEGER NOT NULL, fps REAL, height INTEGER NOT NULL,
    width INTEGER NOT NULL, sha256 TEXT NOT NULL
);
CREATE INDEX assets_by_content ON assets (sha256);
CREATE TABLE times (
    number INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, device TEXT NOT NULL, dtype TEXT NOT NULL,
    stages TEXT NOT NULL, seconds REAL NOT NULL
);
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_TABLES = {"jobs", "assets", "times", "settings"}
_JSON = ("order", "settled", "result")
_JOB = ", ".join(f'"{f.name}"' for f in fields(Job))
_ASSET = ", ".join(f.name for f in fields(Asset))
_COLUMNS = frozenset(f.name for f in fields(Job)) - {"id", "status", "order", "created_at"}
MAX_TIMES = 2000
"""Most measured times that are kept, the newest."""


BUSY_SECONDS = 1.0
"""How long a change waits for another program that writes to the file: no request is answered meanwhile."""


class Store:
    """An open store. Methods that raise `ServiceError` 507 (the disk is full) or 503 (another program writes to the
    file) change nothing.
    """

    def __init__(self, folder: Path) -> None:
        """Open or create the store of a folder. Raises BadRequest if it is damaged, foreign, newer or in use."""
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = _locked(folder)
        try:
            path = folder / FILE
            if path.exists() and not path.is_file():
                raise BadRequest(f"{path} is a folder, pipe or device; expected the file of a store")
            if path.exists() and path.stat().st_size:
                check(path)
            else:
                _create(path)
            self._base = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False)
            self._base.execute("PRAGMA journal_mode = WAL")
            self._base.execute("PRAGMA synchronous = FULL")
        except BaseException as error:
            os.close(self.lock)
            if isinstance(error, sqlite3.Error | OSError):
                raise BadRequest(f"the store {folder} cannot be opened: {error}") from error
            raise

    def close(self) -> None:
        self._base.close()
        os.close(self.lock)

    # ---------------------------------------------------------------------------------------- jobs

    def add(self, job: Job) -> Job:
        """Add a job at the end of the queue."""
        with self._transaction() as base:
            base.execute(
                'INSERT INTO jobs (id, status, "order", settled, created_at, position) VALUES (?, ?, ?, ?, ?, ?)',
                (job.id, job.status, _json(job.order), _json(job.settled), job.created_at, self._end()),
            )
        return self.get(job.id)

    def get(self, video_id: str) -> Job:
        """Raises `ServiceError` 404 for an unknown identifier."""
        row = self._base.execute(f"SELECT {_JOB} FROM jobs WHERE id = ?", (video_id,)).fetchone()
        if row is None:
            raise unknown("video", video_id)
        return _job(row)

    def page(
        self, *, after: str | None = None, limit: int = 20, newest_first: bool = True, status: str | None = None
    ) -> tuple[Sequence[Job], bool]:
        """Return up to ``limit`` jobs after the given one, and whether there are more. 404 for an unknown ``after``."""
        where, values = ["1"], list[Any]()
        if after is not None:
            where.append(f"number {'<' if newest_first else '>'} ?")
            values.append(self._number("jobs", "video", after))
        if status is not None:
            where.append("status = ?")
            values.append(status)
        rows = self._base.execute(
            f"SELECT {_JOB} FROM jobs WHERE {' AND '.join(where)} ORDER BY number {'DESC' if newest_first else 'ASC'} "
            "LIMIT ?",
            (*values, limit + 1),
        ).fetchall()
        return [_job(row) for row in rows[:limit]], len(rows) > limit

    def with_status(self, *statuses: Status) -> list[Job]:
        """Return all jobs in these states, in the order of the queue."""
        marks = ", ".join("?" * len(statuses))
        rows = self._base.execute(f"SELECT {_JOB} FROM jobs WHERE status IN ({marks}) ORDER BY position", statuses)
        return [_job(row) for row in rows.fetchall()]

    def queued(self) -> list[str]:
        """Return the identifiers of waiting jobs in order."""
        rows = self._base.execute("SELECT id FROM jobs WHERE status = 'queued' ORDER BY position, number")
        return [row[0] for row in rows.fetchall()]

    def mentioning(self, identifier: str) -> list[Job]:
        """Return waiting and running jobs whose order has this text: those that may take it as an input."""
        rows = self._base.execute(
            f"SELECT {_JOB} FROM jobs WHERE status IN ('queued', 'in_progress', 'cancelling') AND instr(\"order\", ?)",
            (identifier,),
        )
        return [_job(row) for row in rows.fetchall()]

    def identifiers(self, table: Literal["jobs", "assets"]) -> set[str]:
        """Return the identifiers of all jobs or uploads."""
        return {row[0] for row in self._base.execute(f"SELECT id FROM {table}").fetchall()}

    def move_to(self, video_id: str, status: Status, **changes: Any) -> Job | None:
        """Change a job's state, with other columns, if it is in a state that may be followed by this one.

        Returns the job; None if it is in another state, or does not exist, in which case nothing has changed.
        """
        before = [state for state, then in NEXT.items() if status in then]
        assert _COLUMNS >= changes.keys(), changes
        if status == "queued":
            changes = {"position": self._end(), **changes}
        names = "".join(f', "{name}" = ?' for name in changes)
        values = [_json(value) if name in _JSON and value is not None else value for name, value in changes.items()]
        with self._transaction() as base:
            rows = base.execute(
                f"UPDATE jobs SET status = ?{names} WHERE id = ? AND status IN ({', '.join('?' * len(before))}) "
                f"RETURNING {_JOB}",
                (status, *values, video_id, *before),
            ).fetchall()
        return _job(rows[0]) if rows else None

    def place(self, video_id: str, before: str | None) -> Job | None:
        """Put a waiting job before another waiting one, or at the end; None unless both are waiting."""
        with self._transaction() as base:
            order = self.queued()
            if video_id not in order or (before is not None and before not in order):
                return None
            if before != video_id:
                order.remove(video_id)
                order.insert(len(order) if before is None else order.index(before), video_id)
                # Waiting jobs exchange the positions that they have, so the order of others does not matter.
                rows = base.execute("SELECT position FROM jobs WHERE status = 'queued' ORDER BY position, number")
                places = [row[0] for row in rows.fetchall()]
                base.executemany("UPDATE jobs SET position = ? WHERE id = ?", zip(places, order, strict=True))
        return self.get(video_id)

    def counts(self) -> dict[Status, int]:
        """Return the number of jobs in each state."""
        found = dict(self._base.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall())
        return {status: found.get(status, 0) for status in NEXT}

    def remove(self, video_id: str) -> bool:
        """Remove the record of a final job; whether there was one."""
        with self._transaction() as base:
            done = base.execute(
                "DELETE FROM jobs WHERE id = ? AND status IN ('cancelled', 'completed', 'failed', 'interrupted')",
                (video_id,),
            )
        return done.rowcount == 1

    def _end(self) -> float:
        """The position after all jobs."""
        return float(self._base.execute("SELECT coalesce(max(position), 0) + 1 FROM jobs").fetchone()[0])

    # -------------------------------------------------------------------------------------- assets

    def add_asset(self, asset: Asset, sha256: str) -> None:
        with self._transaction() as base:
            values = (*asdict(asset).values(), sha256)
            base.execute(f"INSERT INTO assets ({_ASSET}, sha256) VALUES ({', '.join('?' * len(values))})", values)

    def asset_with(self, sha256: str) -> Asset | None:
        """Return an upload of the same bytes, if there is one."""
        row = self._base.execute(f"SELECT {_ASSET} FROM assets WHERE sha256 = ?", (sha256,)).fetchone()
        return None if row is None else _asset(row)

    def asset(self, asset_id: str) -> Asset:
        """Raises `ServiceError` 404 for an unknown identifier."""
        row = self._base.execute(f"SELECT {_ASSET} FROM assets WHERE id = ?", (asset_id,)).fetchone()
        if row is None:
            raise unknown("asset", asset_id)
        return _asset(row)

    def assets(self, *, after: str | None = None, limit: int = 100) -> tuple[Sequence[Asset], bool]:
        number = 2**62 if after is None else self._number("assets", "asset", after)
        rows = self._base.execute(
            f"SELECT {_ASSET} FROM assets WHERE number < ? ORDER BY number DESC LIMIT ?", (number, limit + 1)
        ).fetchall()
        return [_asset(row) for row in rows[:limit]], len(rows) > limit

    def assets_bytes(self) -> int:
        return int(self._base.execute("SELECT coalesce(sum(bytes), 0) FROM assets").fetchone()[0])

    def remove_asset(self, asset_id: str) -> None:
        with self._transaction() as base:
            base.execute("DELETE FROM assets WHERE id = ?", (asset_id,))

    # --------------------------------------------------------------------------- times and settings

    def add_time(self, *, model: str, device: str, dtype: str, stages: str, seconds: float) -> None:
        with self._transaction() as base:
            base.execute(
                "INSERT INTO times (model, device, dtype, stages, seconds) VALUES (?, ?, ?, ?, ?)",
                (model, device, dtype, stages, seconds),
            )
            base.execute("DELETE FROM times WHERE number <= (SELECT max(number) FROM times) - ?", (MAX_TIMES,))

    def times(self, *, model: str, device: str, dtype: str) -> list[tuple[str, float]]:
        """Return (stages, seconds) of finished jobs, the newest first."""
        rows = self._base.execute(
            "SELECT stages, seconds FROM times WHERE model = ? AND device = ? AND dtype = ? ORDER BY number DESC "
            "LIMIT 100",
            (model, device, dtype),
        )
        return [(stages, seconds) for stages, seconds in rows.fetchall()]

    @property
    def paused(self) -> bool:
        row = self._base.execute("SELECT value FROM settings WHERE name = 'paused'").fetchone()
        return row is not None and row[0] == "1"

    @paused.setter
    def paused(self, paused: bool) -> None:
        with self._transaction() as base:
            base.execute("INSERT OR REPLACE INTO settings VALUES ('paused', ?)", ("1" if paused else "0",))

    # ------------------------------------------------------------------------------------ statements

    def _number(self, table: str, what: str, identifier: str) -> int:
        row = self._base.execute(f"SELECT number FROM {table} WHERE id = ?", (identifier,)).fetchone()
        if row is None:
            raise unknown(what, identifier)
        return int(row[0])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._base.execute("BEGIN IMMEDIATE")
            yield self._base
            self._base.execute("COMMIT")
        except BaseException as error:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _FULL:
                raise disk_full() from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise ServiceError(
                    503, "store_busy", "another program writes to the service's store; try again"
                ) from error
            raise


# ------------------------------------------------------------------------------------------ opening


def check(path: Path) -> None:
    """Raise BadRequest for a file that is damaged, not a store, or of a newer version. Changes nothing."""
    with path.open("rb") as file:
        head = file.read(100)
    if len(head) < 100 or not head.startswith(MAGIC):
        raise _damaged(path, "it is not a SQLite file")
    version, application = struct.unpack(">I", head[60:64])[0], struct.unpack(">I", head[68:72])[0]
    if application != APPLICATION:
        raise BadRequest(f"{path} belongs to another application; choose another --folder for the service")
    log = path.with_name(f"{path.name}-wal")
    mode = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
    try:
        base = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, isolation_level=None)
        try:
            version = max(version, base.execute("PRAGMA user_version").fetchone()[0])
            if version > VERSION:
                raise BadRequest(
                    f"the store {path} has version {version}, and this kinema reads version {VERSION}: install a newer "
                    "kinema or choose another --folder"
                )
            _check_content(path, base)
        finally:
            base.close()
    except sqlite3.Error as error:
        raise _damaged(path, str(error)) from error


def _check_content(path: Path, base: sqlite3.Connection) -> None:
    fault = base.execute("PRAGMA quick_check(1)").fetchone()[0]
    if fault != "ok":
        raise _damaged(path, fault)
    tables = {row[0] for row in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables >= _TABLES:
        raise _damaged(path, f"it has no table {min(_TABLES - tables)}")
    try:
        for row in base.execute(f"SELECT {_JOB} FROM jobs"):
            if _job(row).status not in NEXT:
                raise ValueError(f"a job has the state {row[1]!r}")
        base.execute(f"SELECT {_ASSET} FROM assets").fetchall()
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, f"a job cannot be read ({error})") from error


def _damaged(path: Path, why: str) -> BadRequest:
    why = " ".join(why.split())[:200]
    return BadRequest(f"the store {path} is damaged: {why}; move it away to begin with an empty one")


def _create(path: Path) -> None:
    """Create an empty store, of which there is all or nothing."""
    part = path.with_name(f"{path.name}.new")
    part.unlink(missing_ok=True)
    base = sqlite3.connect(part, isolation_level=None)
    try:
        base.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
    finally:
        base.close()
    part.replace(path)


LOCK_SECONDS = 3.0
"""How long a new server waits for the workers of one that was killed to end: they hold its lock too."""


def _locked(folder: Path) -> int:
    """Return the open lock file of a folder. Raises BadRequest if another server has it."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            _take(handle)
            return handle
        except OSError:
            if time.monotonic() > until:
                os.close(handle)
                raise BadRequest(
                    f"another kinema serve uses the folder {folder}; stop it, or choose another --folder"
                ) from None
            time.sleep(0.05)


def _take(handle: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        return
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --------------------------------------------------------------------------------------------- rows


def unknown(what: str, identifier: str) -> ServiceError:
    return ServiceError(404, "not_found", f"there is no {what} {identifier[:40]!r}")


def disk_full() -> ServiceError:
    return ServiceError(507, "disk_full", "the server's disk is full; delete clips or uploads, then try again")


_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
"""SQLite's codes for a full disk, and for a failed write, where the log or its shared memory cannot grow."""


def _json(value: Any) -> str:
    return json.dumps(value if isinstance(value, Mapping) else asdict(value), ensure_ascii=False)


def _job(row: Sequence[Any]) -> Job:
    values = dict(zip((f.name for f in fields(Job)), row, strict=True))
    settled = Settled(**json.loads(values["settled"]))
    settled = replace(settled, notes=tuple(settled.notes), devices=tuple(settled.devices))
    values |= {"order": Order(**json.loads(values["order"])), "settled": settled}
    values["result"] = None if values["result"] is None else json.loads(values["result"])
    return Job(**values)


def _asset(row: Sequence[Any]) -> Asset:
    return Asset(**dict(zip((f.name for f in fields(Asset)), row, strict=True)))
