"""/v1/videos/{id}/events: what happens to a video, as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from kinema.server.http.service import Here, Service, VideoId, known_query
from kinema.server.http.videos import video_object
from kinema.server.jobs import Progress, ServiceError

OF_EVENT = ("status", "progress", "error", "result")
"""Keys that an event of a new status has itself."""
PING = 10
"""Seconds between comments that keep the connection open."""
_EVENT = {"type": "object", "properties": {name: {"type": "string"} for name in ("id", "event", "data")}}
_STREAM = {200: {"description": "Events", "content": {"text/event-stream": {"schema": _EVENT}}}}

router = APIRouter(prefix="/v1/videos", tags=["videos"], dependencies=[Depends(known_query)])


class Stream(EventSourceResponse):
    """A stream that counts as open until it ends, however it ends."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.service.streams += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.service.streams -= 1


@router.get("/{video_id}/events", response_class=Response, responses=_STREAM)  # type: ignore[arg-type]
async def events(
    video_id: VideoId,
    service: Here,
    previews: Annotated[bool, Query(description="whether to send previews")] = True,
) -> Response:
    """The video's status, then its phases, steps, notes and previews, until its final status."""
    service.engine.get(video_id)
    if service.streams >= service.settings.limits.streams:
        raise ServiceError(429, "too_many_streams", f"{service.streams} event streams are open; close one first")
    stream = Stream(_events(service, video_id, previews), ping=PING, ping_message_factory=_ping, sep="\n")
    stream.service = service
    return stream


def _ping() -> ServerSentEvent:
    return ServerSentEvent(comment="ping", sep="\n")


async def _events(service: Service, video_id: str, previews: bool) -> AsyncIterator[ServerSentEvent]:
    """The engine's events, until the last one or until the service stops."""
    source = service.engine.events(video_id)
    stopping = asyncio.ensure_future(service.stopping.wait())
    number = 0
    try:
        while (progress := await _next(source, stopping)) is not None:
            if progress.kind == "preview" and not previews:
                continue
            number += 1
            data = json.dumps(_data(service, video_id, progress), ensure_ascii=False, allow_nan=False)
            yield ServerSentEvent(data, event=progress.kind, id=str(number), sep="\n")
    except ServiceError as error:
        if error.status != 404:  # else the video was removed before its first event: nothing is left to tell
            raise
    finally:
        stopping.cancel()
        if hasattr(source, "aclose"):
            await source.aclose()


async def _next(source: AsyncIterator[Progress], stopping: asyncio.Future[Any]) -> Progress | None:
    """The next event; None at the end."""
    following = asyncio.ensure_future(anext(source, None))
    try:
        await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return following.result() if following.done() else None
    finally:
        if not following.done():
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following


def _data(service: Service, video_id: str, progress: Progress) -> Any:
    """The data of an event. A status is the whole video, in the state of the event: the job may have changed since."""
    if progress.kind == "preview":  # an image: no text that could name a path
        return dict(progress.data)
    own = service.plain(progress.data)
    if progress.kind != "status":
        return own
    try:
        whole = video_object(service, service.engine.get(video_id))
    except ServiceError:  # removed meanwhile
        return {"id": video_id, "object": "video", **own}
    return {**whole, **{name: own[name] for name in OF_EVENT if name in own}}
