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


class Connection(H11Protocol):
    """A connection that is closed if a request's headers do not arrive in time."""

    _timer: asyncio.TimerHandle | None = None

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
        self._timer = self.loop.call_later(HEAD_SECONDS, self._waited)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        between = self.cycle is None or self.cycle.response_complete
        if not between:
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
