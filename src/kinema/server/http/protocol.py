"""uvicorn's HTTP/1.1 connection with time limits, and with its own errors in the service's form."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from kinema.server.http.errors import payload
from kinema.server.http.security import HEADERS, Stalled

HEAD_SECONDS = 15.0
"""Seconds within which the headers of a request must arrive, and an open connection must send one."""
HEAD_BYTES = 2**15
MAX_CONNECTIONS = 512
"""Connections that may be open; a new one takes the place of the one that has been idle longest. Requests that are
being answered are limited by `kinema.server.http.security`.
"""


def most_connections() -> int:
    """The limit here: at least half of the files that this process may open are for others than connections."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MAX_CONNECTIONS
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files // 2)


class Connection(H11Protocol):
    """A connection that is closed if a request's headers do not arrive in time, or if too many others are open."""

    _timer: asyncio.TimerHandle | None = None
    _heard = 0.0
    """When data arrived last, by the clock of the loop."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.app: Any = self._dropping(self.app)

    def _dropping(self, app: ASGIApp) -> ASGIApp:
        """The app; the connection of a client that does not read is dropped, with what it has not read."""

        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except Stalled:
                self.transport.abort()
                await asyncio.sleep(0)  # so that uvicorn sees that the client has gone

        return run

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._heard = self.loop.time()
        self._make_room()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._waited)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _make_room(self) -> None:
        """Close the connection that has been idle longest, if this one is one too many."""
        is_open = [each for each in self.connections if not each.transport.is_closing()]
        idle = [each for each in is_open if isinstance(each, Connection) and each is not self and each._idle]
        if len(is_open) > most_connections() and idle:
            min(idle, key=lambda each: each._heard).transport.close()

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        super().data_received(data)
        if not self._idle:
            self._stop()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(HEAD_SECONDS, self._waited)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _waited(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer what is no HTTP request, or has headers that are too long."""
        if self.conn.our_state is not h11.IDLE and self.conn.our_state is not h11.SEND_RESPONSE:
            self.transport.close()
            return
        body = json.dumps(payload(400, "invalid_http", "the request is not valid HTTP, or its headers are too long"))
        headers: list[tuple[str, Any]] = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *HEADERS.items(),
        ]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body.encode()), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
