"""/v1/models: what requests may name, and downloads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Depends

from kinema.server.http import schemas
from kinema.server.http.bodies import listed as model_name
from kinema.server.http.service import Here, Service, known_query
from kinema.server.http.videos import Bare
from kinema.server.jobs import ServiceError
from kinema.values import quoted

SHARED = ("extra", "sizes")
"""Tables of a model's defaults that most presets of a family have in common."""

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(known_query)])


async def _rows(service: Service) -> list[dict[str, Any]]:
    names = service.settings.aliases
    default = names.get(service.settings.model, service.settings.model)
    return [
        {"object": "model", **service.plain(row), "default": row["id"] == default}
        for row in await service.engine.models()
    ]


@router.get("", response_model=schemas.ModelList)
async def listed(service: Here) -> dict[str, Any]:
    """Models, add-ons and LoRAs, with their sizes, licences and downloads."""
    rows, tables = shared(await _rows(service))
    return {"object": "list", "data": rows, "shared": tables, "downloads": not service.settings.offline}


def shared(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """The rows with a name in place of each table in `SHARED`, and the tables by name, each once."""
    names: dict[str, str] = {}
    tables: dict[str, Any] = {}

    def name_of(kind: str, table: Any) -> str:
        name = names.setdefault(kind + json.dumps(table), f"{kind}-{len(names) + 1}")
        tables[name] = table
        return name

    found = []
    for row in rows:
        own = row.get("defaults") or {}
        named = {kind: name_of(kind, own[kind]) for kind in SHARED if own.get(kind) is not None}
        found.append({**row, "defaults": {**own, **named}} if named else row)
    return found, tables


@router.post("/{model_id:path}/download", response_model=schemas.Model, dependencies=Bare)
async def download(model_id: str, service: Here) -> dict[str, Any]:
    """Start the download of a published model, unless one runs already."""
    await service.engine.download(_named(model_id))
    return await _row(service, model_id)


@router.delete("/{model_id:path}/download", response_model=schemas.Model)
async def cancel_download(model_id: str, service: Here) -> dict[str, Any]:
    """Cancel a download."""
    await service.engine.cancel_download(_named(model_id))
    return await _row(service, model_id)


@router.get("/{model_id:path}", response_model=schemas.Model)
async def retrieve(model_id: str, service: Here) -> dict[str, Any]:
    """A model, add-on or LoRA."""
    return await _row(service, model_id)


async def _row(service: Service, model_id: str) -> dict[str, Any]:
    name = service.settings.aliases.get(model_id, model_id)
    for row in await _rows(service):
        if row["id"] == name:
            return row
    raise _unknown(model_id)


def _named(model_id: str) -> str:
    try:
        return model_name("model", model_id)
    except ServiceError:
        raise _unknown(model_id) from None


def _unknown(model_id: str) -> ServiceError:
    return ServiceError(404, "not_found", f"there is no model {quoted(model_id)}; /v1/models lists them")
