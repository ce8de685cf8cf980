"""/v1/assets: uploads that requests may name."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Query, Request, Response

from kinema.server.http import schemas
from kinema.server.http.contents import opened
from kinema.server.http.errors import FieldError
from kinema.server.http.forms import read_form
from kinema.server.http.openapi import ASSET_BODY, binary
from kinema.server.http.security import content_type
from kinema.server.http.service import AssetId, Here, known_query
from kinema.server.http.videos import page
from kinema.server.jobs import ASSET_ID, Asset
from kinema.values import quoted

TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF....WEBP": "image/webp",
    b"....ftyp": "video/mp4",
    b"\x1aE\xdf\xa3": "video/webm",
}
"""Media types by the first bytes of a file; a dot is any byte."""
OTHER = "application/octet-stream"
RECIPE = "recipe.json"
"""The recipe that was in an uploaded clip, next to the file."""

router = APIRouter(prefix="/v1/assets", tags=["assets"], dependencies=[Depends(known_query)])


def _media_type(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(12)
    return next((kind for mark, kind in TYPES.items() if re.match(mark, start, re.DOTALL)), OTHER)


def asset_object(asset: Asset) -> dict[str, Any]:
    return {**asdict(asset), "object": "asset", "created_at": int(asset.created_at)}


@router.post("", response_model=schemas.Asset, openapi_extra=ASSET_BODY)
async def upload(request: Request, service: Here) -> dict[str, Any]:
    """Upload an image or clip as the form's ``file``. It is decoded once, in a process with limits."""
    if content_type(request.headers) != "multipart/form-data":
        message = "uploads are forms: multipart/form-data with the field file"
        raise FieldError(message, "Content-Type", status=415, code="unsupported_content_type")
    engine = service.engine
    form = await read_form(request, engine.uploads_folder, service.settings.limits, lambda name: name == "file")
    try:
        if len(form.files) != 1 or form.texts:
            raise FieldError("the form has other fields than one file", "file")
        return asset_object(await engine.add_asset(form.files[0].path, form.files[0].name))
    finally:
        await anyio.to_thread.run_sync(form.discard)


@router.get("", response_model=schemas.AssetList)
async def listed(
    service: Here,
    after: Annotated[str | None, Query(description="identifier of the last asset of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """Assets, newest first."""
    if after is not None and not ASSET_ID.fullmatch(after):
        raise FieldError(f"after is {quoted(after)}; expected the identifier of an asset", "after")
    assets, more = service.engine.assets(after=after, limit=limit)
    return page([asset_object(each) for each in assets], more)


@router.get("/{asset_id}", response_model=schemas.Asset)
async def retrieve(asset_id: AssetId, service: Here) -> dict[str, Any]:
    """What is known of an asset."""
    return asset_object(service.engine.asset(asset_id)[0])


@router.get("/{asset_id}/content", response_class=Response, responses=binary(*dict.fromkeys(TYPES.values()), OTHER))
async def content(asset_id: AssetId, request: Request, service: Here) -> Response:
    """The file as it was uploaded."""
    path = service.engine.asset(asset_id)[1]
    kind = await anyio.to_thread.run_sync(_media_type, path)
    return await opened(path, asset_id, kind, request.headers)


@router.get(
    "/{asset_id}/recipe",
    response_class=Response,
    responses={**binary("application/json"), 204: {"description": "The asset has no recipe"}},
)
async def recipe(asset_id: AssetId, request: Request, service: Here) -> Response:
    """The recipe inside an uploaded clip that Kinema generated; 204 if there is none."""
    path = service.engine.asset(asset_id)[1].with_name(RECIPE)
    if not await anyio.Path(path).is_file():
        return Response(status_code=204)
    return await opened(path, f"{asset_id}-recipe.json", "application/json", request.headers)


router.add_api_route("/{asset_id}/content", content, methods=["HEAD"], include_in_schema=False)


@router.delete("/{asset_id}", response_model=schemas.Deleted)
async def delete(asset_id: AssetId, service: Here) -> dict[str, Any]:
    """Remove an asset that no waiting or running video uses."""
    service.engine.asset(asset_id)
    await service.engine.delete_asset(asset_id)
    return {"id": asset_id, "object": "asset.deleted", "deleted": True}
