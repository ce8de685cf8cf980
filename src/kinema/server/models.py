"""The list of models for clients, and downloads of published ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinema import registry
from kinema.server.catalogue import Catalogue, Entry, hub_folder
from kinema.server.children import Child, Ended
from kinema.server.jobs import ServiceError
from kinema.server.planning import Planning
from kinema.server.settings import Settings

DESCRIBE_SECONDS = 60.0


@dataclass
class Download:
    """A download that runs or has ended."""

    state: str = "running"
    bytes: int = 0
    total: int | None = None
    error: str | None = None
    task: asyncio.Task[None] | None = None

    def row(self) -> dict[str, Any]:
        return {"state": self.state, "bytes": self.bytes, "total": self.total, "error": self.error}


class Models:
    """Rows of models; what the planner says of one is kept until its files change."""

    def __init__(self, settings: Settings, catalogue: Catalogue, planning: Planning, folder: Path) -> None:
        self.settings, self.catalogue, self.planning, self.folder = settings, catalogue, planning, folder
        self.downloads: dict[str, Download] = {}
        self._described: dict[tuple[str, str], Mapping[str, Any]] = {}

    async def rows(self) -> Sequence[Mapping[str, Any]]:
        await self.catalogue.refresh()
        if not self.catalogue.presets:
            await self.planning.ask({"do": "describe", **self._source(self.catalogue.model("zoetrope"))}, 60.0)
        default = self.settings.aliases.get(self.settings.model, self.settings.model)
        await self.catalogue.refresh()
        entries, others = self.catalogue.entries(), self.catalogue.others()
        return [*[await self._row(entry) | {"default": entry.id == default} for entry in entries], *others]

    async def _row(self, entry: Entry) -> dict[str, Any]:
        described = await self._description(entry)
        download = self.downloads.get(entry.id)
        about = {"family": None, "parameters": None, "bytes": 0, "defaults": None, **described}
        here = not described.get("error") and entry.kind != "published" or bool(described.get("family"))
        row = {
            "id": entry.id, "kind": entry.kind, "licence": entry.licence, "here": here,
            "download": None if download is None else download.row(), **about,
        }  # fmt: skip
        if entry.kind == "published":
            row["repository"] = registry.ALIASES[entry.id]
        return row

    async def _description(self, entry: Entry) -> Mapping[str, Any]:
        """Return what the planner says of a model, or its sentence on why it cannot be opened."""
        if entry.kind == "published" and not entry.stamp:
            return {}
        key = (entry.id, entry.stamp)
        if key not in self._described:
            try:
                message = {"do": "describe", **self._source(entry)}
                self._described[key] = await self.planning.ask(message, DESCRIBE_SECONDS)
            except ServiceError as error:
                if error.status != 400:
                    raise
                self._described[key] = {} if entry.kind == "published" else {"error": error.message}
        return self._described[key]

    @staticmethod
    def _source(entry: Entry) -> dict[str, Any]:
        names = {} if entry.path is None else {str(entry.path): entry.id}
        return {"model": entry.id, "source": dict(entry.to_source()), "names": names}

    # ----------------------------------------------------------------------------------- downloads

    async def download(self, model_id: str) -> Mapping[str, Any]:
        if model_id not in registry.ALIASES:
            raise ServiceError(404, "not_found", registry.unknown_name("published model", model_id, registry.ALIASES))
        if self.settings.offline:
            raise ServiceError(403, "offline", "this service downloads nothing; start it with --allow-downloads")
        await self.catalogue.refresh()
        before = self.downloads.get(model_id)
        if before is None or before.state != "running":
            download = self.downloads[model_id] = Download()
            download.task = asyncio.create_task(self._download(model_id, download))
        return await self._row(self.catalogue.model(model_id))

    async def cancel_download(self, model_id: str) -> None:
        download = self.downloads.get(model_id)
        if download is None:
            raise ServiceError(404, "not_found", "there is no download of this model")
        if download.task is not None and download.state == "running":
            download.state = "cancelled"
            download.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await download.task

    async def _download(self, model_id: str, download: Download) -> None:
        """Run the process that downloads a model; what it has stays in the hub's cache if it is cancelled."""
        try:
            child = await Child.start("kinema.server.downloader", self.folder, offline=False)
        except OSError as error:
            download.state, download.error = "failed", f"the process that downloads does not start ({error.strerror})"
            return
        parts = [each for each in registry.DEFAULT_ADD_ONS.get(model_id, {}).values() if "/" in each]
        names = [registry.ALIASES[model_id], *parts]
        child.send({"names": names, "folders": [str(hub_folder("/".join(name.split("/")[:2]))) for name in names]})
        try:
            while True:
                message = await child.receive()
                if message["kind"] == "bytes":
                    download.bytes, download.total = message["bytes"], message["total"]
                else:
                    download.state, download.error = message["state"], message.get("error")
                    break
        except Ended as ended:
            download.state, download.error = "failed", f"the process that downloads {ended}"
        finally:
            await child.stop()
            self._described = {key: each for key, each in self._described.items() if key[0] != model_id}

    async def stop(self) -> None:
        for name, download in self.downloads.items():
            if download.state == "running":
                await self.cancel_download(name)
