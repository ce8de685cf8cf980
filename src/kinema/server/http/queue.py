"""/v1/queue: what waits and runs, pause and resume; and /healthz and /metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from kinema.server.http import schemas
from kinema.server.http.service import Here, Service, known_query
from kinema.server.http.videos import Bare

router = APIRouter(tags=["queue"], dependencies=[Depends(known_query)])
_TEXT = {200: {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}}


def _queue(service: Service) -> dict[str, Any]:
    return {"object": "queue", **service.plain(service.engine.queue())}


@router.get("/v1/queue", response_model=schemas.Queue)
async def queue(service: Here) -> dict[str, Any]:
    """Waiting videos in their order, running ones, and the workers."""
    return _queue(service)


@router.post("/v1/queue/pause", response_model=schemas.Queue, dependencies=Bare)
async def pause(service: Here) -> dict[str, Any]:
    """Start no waiting video until the queue is resumed; running ones finish."""
    await service.engine.pause(True)
    return _queue(service)


@router.post("/v1/queue/resume", response_model=schemas.Queue, dependencies=Bare)
async def resume(service: Here) -> dict[str, Any]:
    """Start waiting videos again."""
    await service.engine.pause(False)
    return _queue(service)


@router.get("/healthz", response_model=schemas.Health)
async def health() -> dict[str, Any]:
    """Whether the service answers. Needs no token."""
    return {"status": "ok"}


@router.get("/metrics", response_class=Response, responses=_TEXT)  # type: ignore[arg-type]
async def metrics(service: Here) -> Response:
    """Counters for Prometheus."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
