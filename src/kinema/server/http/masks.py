"""/v1/masks: the masks of a document as an inpainting will use them, for editors."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from kinema.schema import BadRequest
from kinema.server.http import schemas
from kinema.server.http.errors import FieldError, by_200
from kinema.server.http.openapi import VIDEO_BODY
from kinema.server.http.service import Here, Refusals, Service, known_query
from kinema.server.jobs import ASSET_ID, ServiceError
from kinema.server.names import identifiers_in, substituted

router = APIRouter(prefix="/v1/masks", tags=["videos"], dependencies=[Depends(known_query)])


@router.post("", response_model=schemas.Masks | schemas.ErrorAnswer, openapi_extra=VIDEO_BODY)
async def masks(request: Request, service: Here, refusals: Refusals = False) -> Response:
    """The masks of an inpainting, carried from the painted frames to all others by optical flow, at a reduced size: one
    png (in base64) with the frames in rows of ``columns``. The body is that of /v1/videos; its files are not kept.
    """
    try:
        found = await _carried(request, service)
    except (BadRequest, ServiceError) as error:
        if not refusals:
            raise
        return by_200(error, service.public)
    return JSONResponse({"object": "masks", **found})


async def _carried(request: Request, service: Service) -> dict[str, Any]:
    async with service.bodies.received(request) as body:
        try:
            order = await service.bodies.order(body.values)
            asked = order.request
            if not asked.get("masks"):
                raise FieldError("masks is empty; expected frames mapped to painted masks", "masks")
            if asked.get("task") != "inpaint":
                raise FieldError("masks are carried over a clip that is inpainted; expected the task inpaint", "task")
            settled = await service.engine.plan(order)
            files = {each: _path(service, each) for each in identifiers_in(asked)}
            table = {name: asked[name] for name in ("task", "video", "masks", "start", "end", "fit", "outside")
                     if name in asked}  # fmt: skip
            table = substituted(table, lambda text: files.get(text, text))
            table |= {name: getattr(settled, name) for name in ("frames", "fps", "height", "width")}
            return await service.carrying.carried(table, {path: each for each, path in files.items()})
        finally:
            await service.bodies.forget(body)


def _path(service: Service, identifier: str) -> str:
    if ASSET_ID.fullmatch(identifier):
        return str(service.engine.asset(identifier)[1])
    return str(service.engine.content(identifier, "video"))
