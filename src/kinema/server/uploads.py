"""Uploaded images and clips: decoded once within limits, then kept in ``assets/ID/``."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinema.atomic import FULL
from kinema.bounds import printable
from kinema.server import clip_files
from kinema.server.inspections import Inspections
from kinema.server.jobs import Asset, ServiceError
from kinema.server.names import new_id
from kinema.server.settings import Settings
from kinema.server.store import Store, disk_full, unknown

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif"),
    *(".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".apng"),
}
RECIPE = "recipe.json"
MAX_NAME = 200


class Uploads:
    """The folders ``uploads/``, of files on their way in, and ``assets/``."""

    def __init__(self, settings: Settings, store: Store, inspections: Inspections) -> None:
        self.limits, self.store, self.inspections = settings.limits, store, inspections
        self.incoming, self.folder = settings.folder / "uploads", settings.folder / "assets"
        self._times: dict[str, int] = {}
        """How often an upload was sent to this process, and once more if it was there before."""

    def tidy(self) -> None:
        """Remove what a killed server left behind."""
        clip_files.tidy(self.incoming, ())
        clip_files.tidy(self.folder, self.store.identifiers("assets"))

    async def add(self, part: Path, name: str) -> Asset:
        """Take over a file of ``uploads/``; see `kinema.server.engine.Engine.add_asset`."""
        try:
            if part.parent.resolve() != self.incoming.resolve() or part.is_symlink() or not part.is_file():
                raise ServiceError(400, "invalid_upload", "the upload is not a file of the uploads folder")
            size = part.stat().st_size
            if size > self.limits.upload_bytes:
                raise _too_large(f"the file has {size:,} bytes; expected at most {self.limits.upload_bytes:,}")
            digest = await asyncio.to_thread(_digest, part)
            if (there := self._same(digest)) is not None:
                return there
            self._check_room(size)
            found = await self.inspections.inspect(part)
            if (there := self._same(digest)) is not None:  # sent twice at once
                return there
            self._check_room(size)  # others have been added meanwhile
            return self._keep(part, name, size, digest, found)
        except OSError as error:
            raise disk_full() if error.errno in FULL else error from error
        finally:
            part.unlink(missing_ok=True)

    def _check_room(self, size: int) -> None:
        if self.store.assets_bytes() + size > self.limits.assets_bytes:
            raise _too_large(f"all uploads together may have {self.limits.assets_bytes:,} bytes; delete some first")

    def _same(self, digest: str) -> Asset | None:
        """Return the upload with the same bytes, if there is one; a record whose file was lost goes."""
        found = self.store.asset_with(digest)
        if found is None:
            return None
        try:
            self.file(found.id)
        except ServiceError:
            self.remove(found.id)
            return None
        self._times[found.id] = self._times.get(found.id, 1) + 1
        return found

    def was_last(self, asset_id: str) -> bool:
        """Take back one sending of an upload; whether nobody else has sent it."""
        self._times[asset_id] = self._times.get(asset_id, 2) - 1
        return self._times[asset_id] == 0

    def _keep(self, part: Path, name: str, size: int, digest: str, found: dict[str, Any]) -> Asset:
        asset_id, recipe = new_id("asset-"), found.pop("recipe", None)
        asset = Asset(
            id=asset_id, name=printable(name, MAX_NAME), bytes=size, created_at=time.time(), **found
        )  # fmt: skip
        folder = self.folder / asset_id
        try:
            folder.mkdir()
            suffix = Path(name).suffix.lower()
            part.rename(folder / f"{asset_id}{suffix if suffix in SUFFIXES else ''}")
            if recipe is not None:
                (folder / RECIPE).write_text(recipe, encoding="utf-8")
            self.store.add_asset(asset, digest)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._times[asset_id] = 1
        return asset

    def file(self, asset_id: str) -> Path:
        """Return the file of an upload. Raises `ServiceError` 404 if it is gone."""
        folder = self.folder / asset_id
        files = [file for file in folder.glob(f"{asset_id}*") if file.is_file()] if folder.is_dir() else []
        if not files:
            raise unknown("asset", asset_id)
        return files[0]

    def list(self, *, after: str | None, limit: int) -> tuple[Sequence[Asset], bool]:
        return self.store.assets(after=after, limit=limit)

    def remove(self, asset_id: str) -> None:
        self.store.asset(asset_id)
        self.store.remove_asset(asset_id)
        self._times.pop(asset_id, None)
        clip_files.remove(self.folder / asset_id)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _too_large(message: str) -> ServiceError:
    return ServiceError(413, "too_large", message)
