"""/v1/videos: create, list, retrieve, delete, content, remix, edits and extensions as the OpenAI SDK sends them; and
plan, cancel, retry and move.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from kinema.document import SUFFIX
from kinema.schema import BadRequest
from kinema.server.conversions import FORMATS
from kinema.server.http import documents, schemas
from kinema.server.http.bodies import CREATE, EDIT, EXTEND, Route
from kinema.server.http.contents import opened
from kinema.server.http.errors import FieldError, by_200
from kinema.server.http.forms import read_json
from kinema.server.http.openapi import EDIT_BODY, EXTEND_BODY, MOVE_BODY, REMIX_BODY, VIDEO_BODY, binary
from kinema.server.http.security import content_type
from kinema.server.http.service import Here, Refusals, Service, VideoId, known_query
from kinema.server.jobs import ASSET_ID, VIDEO_ID, Job, ServiceError, Status
from kinema.values import quoted

Variant = Literal["video", "thumbnail", "spritesheet", "frames", "recipe", "gif", "webp", "zip"]
VARIANTS: dict[str, tuple[str, str]] = {
    "video": ("video/mp4", ".mp4"),
    "thumbnail": ("image/webp", ".webp"),
    "spritesheet": ("image/jpeg", ".jpg"),
    "frames": ("application/octet-stream", ".npz"),
    "recipe": ("application/json", ".json"),
    **{name: (kind, f".{name}") for name, kind in FORMATS.items()},
}
"""Media type and suffix of each file of a clip."""
WHOLE = frozenset({"frames", "recipe", "zip"})
"""Variants that hold all clips of a batch."""
DELETE_ATTEMPTS = 8
FIRST_POLL, SLOWEST_POLL = 0.25, 5.0
KEEP = Query(description="keep the partial clip of a video that is being generated")

router = APIRouter(prefix="/v1/videos", tags=["videos"], dependencies=[Depends(known_query)])


def video_object(service: Service, job: Job, places: Mapping[str, int] | None = None) -> dict[str, Any]:
    """A job as clients see it. ``places`` are the places of waiting jobs in the queue, if the caller has them."""
    settled, request = job.settled, job.order.request
    if places is None:
        places = queue_places(service)
    error = {"code": job.error_code or "failed", "message": job.error_message or ""} if job.error_code else None
    seen = {
        "id": job.id,
        "object": "video",
        "model": job.order.model,
        "add": dict(job.order.add),
        "status": job.status,
        "progress": max(0, min(100, job.progress)),
        "created_at": int(job.created_at),
        "started_at": _seconds(job.started_at),
        "completed_at": _seconds(job.completed_at),
        "expires_at": None,
        "error": error,
        "prompt": request.get("prompt", ""),
        "remixed_from_video_id": job.order.remixed_from,
        "seconds": f"{settled.frames / settled.fps:g}",
        "size": f"{settled.width}x{settled.height}",
        "verb": settled.task,
        "request": request,
        "seed": settled.seed,
        "fps": settled.fps,
        "num_frames": settled.frames,
        "queue_position": places.get(job.id),
        "expected_seconds": settled.seconds,
        "attempts": job.attempts,
        "device": job.device,
        "notes": list(settled.notes),
        "settled": settled.clip(),
        "result": job.result,
    }
    return {**service.plain(seen), "prompt": seen["prompt"], "request": request}  # the client's own texts


def queue_places(service: Service) -> dict[str, int]:
    return {video_id: place for place, video_id in enumerate(service.engine.queue()["queued"])}


def poll_after(job: Job) -> dict[str, str]:
    """The header that says when to ask again: a fiftieth of the expected duration, within bounds."""
    seconds = FIRST_POLL if job.settled.seconds is None else job.settled.seconds / 50
    return {"openai-poll-after-ms": str(int(1000 * max(FIRST_POLL, min(seconds, SLOWEST_POLL))))}


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)


# ------------------------------------------------------------------------------------------ create


async def _submitted(service: Service, request: Request, route: Route) -> JSONResponse:
    async with service.bodies.received(request) as body:
        job = await service.engine.submit(await service.bodies.order(body.values, route))
    return JSONResponse(video_object(service, job), headers=poll_after(job))


@router.post("", response_model=schemas.Video, openapi_extra=VIDEO_BODY)
async def create(request: Request, service: Here) -> JSONResponse:
    """Queue a video. The body is JSON or a form; its fields are those of `kinema.Request`, and OpenAI's."""
    return await _submitted(service, request, CREATE)


@router.post("/plan", response_model=schemas.Plan | schemas.ErrorAnswer, openapi_extra=VIDEO_BODY)
async def plan(request: Request, service: Here, refusals: Refusals = False) -> Response:
    """What a body of /v1/videos would give, and why, without running it. Files of the body are not kept."""
    try:
        async with service.bodies.received(request) as body:
            try:
                settled = await service.engine.plan(await service.bodies.order(body.values))
            finally:
                await service.bodies.forget(body)
    except (BadRequest, ServiceError) as error:
        if not refusals:
            raise
        return by_200(error, service.public)
    return JSONResponse({"object": "video.plan", **service.plain(asdict(settled))})


@router.post("/edits", response_model=schemas.Video, openapi_extra=EDIT_BODY)
async def edits(request: Request, service: Here) -> JSONResponse:
    """Change a video: an upload, or the identifier of a video or asset."""
    return await _submitted(service, request, EDIT)


@router.post("/extensions", response_model=schemas.Video, openapi_extra=EXTEND_BODY)
async def extensions(request: Request, service: Here) -> JSONResponse:
    """Add ``seconds`` to a video: an upload, or the identifier of a video or asset."""
    return await _submitted(service, request, EXTEND)


@router.post("/{video_id}/remix", response_model=schemas.Video, openapi_extra=REMIX_BODY)
async def remix(video_id: VideoId, request: Request, service: Here) -> JSONResponse:
    """Repeat a completed video with another prompt, and other values if given; the seed stays, so the layout does."""
    source = service.engine.get(video_id)
    if source.status != "completed":
        raise ServiceError(409, "wrong_state", f"{video_id} is {source.status}; only completed videos can be remixed")
    async with service.bodies.received(request) as body:
        job = await service.engine.submit(await service.bodies.remix(body.values, source))
    return JSONResponse(video_object(service, job), headers=poll_after(job))


@router.post("/characters", include_in_schema=False)
@router.get("/characters/{_character}", include_in_schema=False)
async def characters() -> None:
    """Characters are a feature of OpenAI's models."""
    raise ServiceError(400, "unsupported", "the service has no characters; give an image as input_reference instead")


# -------------------------------------------------------------------------------------------- read


@router.get("", response_model=schemas.VideoList)
async def listed(
    service: Here,
    after: Annotated[str | None, Query(description="identifier of the last video of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="by the time of creation")] = "desc",
    status: Annotated[Literal[Status] | None, Query(description="only videos in this state")] = None,
) -> dict[str, Any]:
    """Videos, newest first."""
    if after is not None and not VIDEO_ID.fullmatch(after):
        raise FieldError(f"after is {quoted(after)}; expected the identifier of a video", "after")
    jobs, more = service.engine.list(after=after, limit=limit, newest_first=order == "desc", status=status)
    places = queue_places(service)
    return page([video_object(service, job, places) for job in jobs], more)


def page(data: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    """A page of a list, as the SDK's cursors read it."""
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, **ends, "has_more": more}


@router.get("/{video_id}", response_model=schemas.Video)
async def retrieve(video_id: VideoId, service: Here) -> JSONResponse:
    """A video. The header openai-poll-after-ms says when to ask again."""
    job = service.engine.get(video_id)
    return JSONResponse(video_object(service, job), headers=poll_after(job))


@router.get(
    "/{video_id}/content",
    response_class=Response,
    responses=binary(*{kind for kind, _ in VARIANTS.values()}),
)
async def content(
    video_id: VideoId,
    request: Request,
    service: Here,
    variant: Annotated[Variant, Query(description="frames: lossless, as a NumPy archive; zip: as png files")] = "video",
    clip: Annotated[int, Query(ge=0, description="clip of a batch; frames, zip and recipe are of all clips")] = 0,
) -> Response:
    """A file of a finished video. Single ranges are supported."""
    path = await _file(service, video_id, variant, clip)
    kind, suffix = VARIANTS[variant]
    stem = f"{video_id}-{clip}" if clip else video_id
    name = f"{stem}{suffix}" if variant in ("video", "frames", *FORMATS) else f"{stem}-{variant}{suffix}"
    return await opened(path, name, kind, request.headers)


async def _file(service: Service, video_id: str, variant: Any, clip: int) -> Path:
    job = service.engine.get(video_id)
    if clip >= (count := job.settled.clips):
        clips = f"only clip 0 of {video_id} exists" if count == 1 else f"{video_id} has the clips 0 to {count - 1}"
        raise FieldError(f"clip is {clip}; {clips}", "clip", status=404, code="not_found")
    if clip and variant in WHOLE:
        raise FieldError(f"the variant {variant} has all clips of a batch; leave clip out", "clip")
    if variant not in FORMATS:
        return service.engine.content(video_id, variant, clip)
    frames, recipe = (service.engine.content(video_id, each) for each in ("frames", "recipe"))
    fps = (job.result or {}).get("fps", job.settled.fps)
    return await service.conversions.path(frames, recipe, fps, variant, clip)


router.add_api_route("/{video_id}/content", content, methods=["HEAD"], include_in_schema=False)


@router.get("/{video_id}/document", response_class=Response, responses=binary("application/json"))
async def document(
    video_id: VideoId,
    service: Here,
    embed: Annotated[bool, Query(description="with the inputs in it, for use outside of the service")] = False,
) -> Response:
    """The document of a video: its request, with the seed that it used, and its inputs."""
    engine, job = service.engine, service.engine.get(video_id)
    files = {}
    for each in documents.identifiers(job):
        if ASSET_ID.fullmatch(each):
            asset, path = engine.asset(each)
            files[each] = documents.named(each, asset.name), path
        else:
            files[each] = documents.named(each, None), engine.content(each, "video")
    try:
        text = await anyio.to_thread.run_sync(partial(documents.document_of, job, files, embed=embed))
    except OSError:
        raise ServiceError(404, "not_found", "an input is not there any more") from None
    headers = {
        "Content-Disposition": f'attachment; filename="{video_id}{SUFFIX}"',
        "Cache-Control": "private, no-cache",
    }
    return Response(text, 200, headers, "application/json")


# ------------------------------------------------------------------------------------------ change


@router.delete("/{video_id}", response_model=schemas.VideoDeleted)
async def delete(video_id: VideoId, service: Here, keep_partial: Annotated[bool, KEEP] = False) -> dict[str, Any]:
    """Remove a video and its files. One that is being generated is cancelled first, and the answer comes when the
    worker has stopped. If it finished before that, or its partial clip is kept, it stays and ``deleted`` is false.
    """
    engine = service.engine
    for _ in range(DELETE_ATTEMPTS):
        job = engine.get(video_id)
        if job.status == "queued" or job.final:
            if keep_partial and (job.result or {}).get("partial"):
                return _deleted(job, False)
        else:
            job = await engine.cancel(video_id, keep_partial=keep_partial)
            if job.status == "completed" or keep_partial:
                return _deleted(job, False)
        try:
            await engine.delete(video_id)
        except ServiceError as error:
            if error.status != 409 or engine.get(video_id).final:
                raise
            await asyncio.sleep(0.01)  # it started meanwhile
        else:
            return _deleted(job, True)
    raise ServiceError(409, "wrong_state", f"{video_id} keeps changing its state; try again")


def _deleted(job: Job, deleted: bool) -> dict[str, Any]:
    return {"id": job.id, "object": "video.deleted", "deleted": deleted, "status": job.status}


async def _no_body(request: Request) -> None:
    """Refuse a body with values where the route has none."""
    if content_type(request.headers) == "multipart/form-data" or await read_json(request, empty=True):
        raise FieldError("this address takes no values in its body", code="unexpected_body")


Bare = [Depends(_no_body)]


@router.post("/{video_id}/cancel", response_model=schemas.Video, dependencies=Bare)
async def cancel(video_id: VideoId, service: Here, keep_partial: Annotated[bool, KEEP] = False) -> JSONResponse:
    """Cancel a video; the answer comes when the worker has stopped. A video that finished first stays completed."""
    return JSONResponse(video_object(service, await service.engine.cancel(video_id, keep_partial=keep_partial)))


@router.post("/{video_id}/retry", response_model=schemas.Video, dependencies=Bare)
async def retry(video_id: VideoId, service: Here) -> JSONResponse:
    """Queue a cancelled, failed or interrupted video again."""
    return JSONResponse(video_object(service, await service.engine.retry(video_id)))


@router.post("/{video_id}/move", response_model=schemas.Video, openapi_extra=MOVE_BODY)
async def move(video_id: VideoId, request: Request, service: Here) -> JSONResponse:
    """Put a waiting video before another one, or at the end of the queue."""
    if content_type(request.headers) == "multipart/form-data":
        raise FieldError("this address takes JSON", "Content-Type", status=415, code="unsupported_content_type")
    values = await read_json(request)
    if values.keys() != {"before"}:
        raise FieldError(f"the body is {quoted(values)}; expected before: the identifier of a video, or null", "before")
    before = values["before"]
    if before is not None and not (isinstance(before, str) and VIDEO_ID.fullmatch(before)):
        raise FieldError(f"before is {quoted(before)}; expected the identifier of a video, or null", "before")
    return JSONResponse(video_object(service, await service.engine.move(video_id, before=before)))
