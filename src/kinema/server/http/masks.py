"""/v1/masks: the masks of a document as an inpainting will use them, for editors."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from kinema.server.http import schemas
from kinema.server.http.errors import FieldError
from kinema.server.http.openapi import VIDEO_BODY
from kinema.server.http.service import Here, known_query
from kinema.server.jobs import ASSET_ID
from kinema.server.names import identifiers_in, substituted

router = APIRouter(prefix="/v1/masks", tags=["videos"], dependencies=[Depends(known_query)])


@router.post("", response_model=schemas.Masks, openapi_extra=VIDEO_BODY)
async def masks(request: Request, service: Here) -> dict[str, Any]:
    """The masks of an inpainting, carried from the painted frames to all others by optical flow, at a reduced size: one
    png (in base64) with the frames in rows of ``columns``. The body is that of /v1/videos; its files are not kept.
    """
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
            found = await service.carrying.carried(table, {path: each for each, path in files.items()})
        finally:
            await service.bodies.forget(body)
    return {"object": "masks", **found}


def _path(service: Here, identifier: str) -> str:
    if ASSET_ID.fullmatch(identifier):
        return str(service.engine.asset(identifier)[1])
    return str(service.engine.content(identifier, "video"))
