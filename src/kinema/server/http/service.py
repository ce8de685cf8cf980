"""What the routes share: the engine, the settings, the counters, and whether the service is stopping."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from fastapi import Depends, Path, Query, Request

from kinema import registry
from kinema.server.carrying import Carrying
from kinema.server.conversions import Conversions
from kinema.server.engine import Engine
from kinema.server.http.bodies import Bodies
from kinema.server.http.errors import FieldError, Public
from kinema.server.http.metrics import Metrics
from kinema.server.http.security import has_body
from kinema.server.jobs import ASSET_ID, VIDEO_ID, ServiceError
from kinema.server.settings import Settings
from kinema.values import quoted


@dataclass(eq=False)
class Service:
    """Shared by the routes of one app."""

    engine: Engine
    settings: Settings
    public: Public
    metrics: Metrics
    bodies: Bodies
    streams: int = 0
    """Event streams that are open."""
    conversions: Conversions = field(default_factory=Conversions)
    carrying: Carrying = field(init=False)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.carrying = Carrying(self.settings)

    def plain(self, value: Any) -> Any:
        """A value of the engine as JSON: no infinite numbers, and no paths of the server in its texts."""
        match value:
            case str():
                return self.public(value)
            case float():
                return value if math.isfinite(value) else None
            case Mapping():
                return {str(name): self.plain(each) for name, each in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self.plain(each) for each in value]
            case _:
                return value


def service_of(request: Request) -> Service:
    return cast(Service, request.app.state.service)


def known_query(request: Request) -> None:
    """Refuse query parameters that the route does not have, repeated ones, and bodies where none is read."""
    if request.method != "POST" and has_body(request.headers):
        raise ServiceError(400, "unexpected_body", f"{request.method} has no body; give it in the address")
    known = {each.alias for each in request.scope["route"].dependant.query_params}
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            message = (
                registry.unknown_name("query parameter", name, known)
                if known
                else (f"there is no query parameter {quoted(name)}; this address has none")
            )
            raise FieldError(message, name, code="unknown_parameter")
        if given.count(name) > 1:
            raise FieldError(f"{name} is given twice; give it once", name)


def video(video_id: Annotated[str, Path(json_schema_extra={"pattern": "^video_[0-9a-z]{20,32}$"})]) -> str:
    """The identifier of a video in a path. 404 for text that is none."""
    if not VIDEO_ID.fullmatch(video_id):
        raise ServiceError(404, "not_found", f"there is no video {quoted(video_id)}")
    return video_id


def asset(asset_id: Annotated[str, Path(json_schema_extra={"pattern": "^asset-[0-9a-z]{20,32}$"})]) -> str:
    """The identifier of an asset in a path. 404 for text that is none."""
    if not ASSET_ID.fullmatch(asset_id):
        raise ServiceError(404, "not_found", f"there is no asset {quoted(asset_id)}")
    return asset_id


VideoId = Annotated[str, Depends(video)]
AssetId = Annotated[str, Depends(asset)]
Here = Annotated[Service, Depends(service_of)]
Refusals = Annotated[bool, Query(description="answer a refused body with 200, for forms that are still being typed")]
