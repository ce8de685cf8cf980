"""What is checked of every request before its route runs, and the headers of every answer.

Browsers are the risk of a service on a loopback address: any page may send requests to it. A page of another site is
refused by its Origin or Sec-Fetch-Site header, a name that was rebound to this address by the Host header, and forms by
the content type. There are no CORS headers, so no other site can read an answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kinema.schema import BadRequest
from kinema.server.http.errors import FieldError, Public, answer, refused
from kinema.server.jobs import ServiceError
from kinema.server.settings import LEAST_TOKEN, MAX_TOKEN, Limits, Settings, is_token
from kinema.values import is_loopback, quoted

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PAGES = frozenset({"/", "/docs"})
OPEN = PAGES | {"/openapi.json", "/healthz"}
STATIC = "/studio/"
"""Paths that need no token, and where such paths start: static, and the same for everyone."""
BODIES = ("application/json", "multipart/form-data")
MAX_TARGET = 4096
"""Maximum bytes of a request's path and query."""
MAX_HEADERS = 64
MAX_HEADER_BYTES = 2**15
MIN_RATE = 1024
"""Minimum bytes a second of a body that takes longer than the permitted silence."""
STALLED = 60.0
"""Seconds after which a client that reads nothing of its answer is disconnected."""
MAX_REQUESTS = 512
"""Maximum requests that are answered at the same time, event streams included."""
MAX_FORMS = 16
"""Maximum forms that are received and read at the same time. Their files lie on disk before they count as assets."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<host>[^/?#@]+)")
_PORTS = {"http": "80", "https": "443"}


def check_address(settings: Settings) -> None:
    """Raise BadRequest if the service would be open to others without a token."""
    if not is_loopback(settings.host) and not settings.token:
        raise BadRequest(
            f"{settings.host} is not a loopback address, so others could use the service; set a token, or listen on "
            "127.0.0.1"
        )
    if settings.token is not None and not is_token(settings.token):
        raise BadRequest(
            f"the token has other characters than printable ASCII, or not {LEAST_TOKEN} to {MAX_TOKEN} of them"
        )


class Hosts:
    """The names under which clients may address the service."""

    def __init__(self, settings: Settings) -> None:
        host = settings.host.strip("[]").lower()
        self._names = {*LOOPBACK, host, *(name.strip("[]").lower() for name in settings.allowed_hosts)}
        self._any_address = host in ("0.0.0.0", "::", "")

    def __contains__(self, name: str) -> bool:
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address  # only names can be rebound, not addresses


class Checks:
    """The checks of a request's headers; each raises `ServiceError`."""

    def __init__(self, settings: Settings) -> None:
        self._hosts = Hosts(settings)
        self._token = None if settings.token is None else hashlib.sha256(settings.token.encode()).digest()
        self._limits = settings.limits

    def __call__(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        self._sizes(scope)
        host = self._host(headers)
        self._origin(scope, headers, host)
        if scope["path"] not in OPEN and not scope["path"].startswith(STATIC):
            self._authorised(headers)
        self._body(scope, headers)

    def _sizes(self, scope: Scope) -> None:
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET:
            raise ServiceError(414, "too_large", f"the address is longer than {MAX_TARGET:,} bytes")
        if len(scope["headers"]) > MAX_HEADERS:
            raise ServiceError(431, "too_large", f"the request has more than {MAX_HEADERS} headers")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            raise ServiceError(431, "too_large", f"the headers are longer than {MAX_HEADER_BYTES:,} bytes")
        if scope["http_version"] not in ("1.0", "1.1"):
            raise ServiceError(400, "invalid_http", "the request is not HTTP/1.1")

    def _host(self, headers: Headers) -> str:
        """The Host header, with its port."""
        given = headers.getlist("host")
        found = _HOST.fullmatch(given[0]) if len(given) == 1 else None
        if found is None:
            raise FieldError("the request needs one Host header", "Host", code="wrong_host")
        if found["name"].strip("[]").lower() not in self._hosts:
            message = f"the service does not answer to the host {quoted(given[0])}; allow it with --allow-host"
            raise FieldError(message, "Host", status=403, code="wrong_host")
        return given[0].lower()

    def _origin(self, scope: Scope, headers: Headers, host: str) -> None:
        site = headers.get("sec-fetch-site", "none")
        opened = scope["method"] == "GET" and scope["path"] in PAGES and headers.get("sec-fetch-mode") == "navigate"
        origins = headers.getlist("origin")
        foreign = site not in ("same-origin", "none") and not opened
        if foreign or any(not _same(origin, host) for origin in origins):
            shown = quoted(origins[0]) if origins else "another site"
            raise FieldError(
                f"requests of pages from {shown} are refused; only this address's own pages may send them",
                "Origin",
                status=403,
                code="wrong_origin",
            )

    def _authorised(self, headers: Headers) -> None:
        if self._token is None:
            return
        given = headers.getlist("authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        digest = hashlib.sha256(token.strip().encode("utf-8", "replace")).digest()
        if not hmac.compare_digest(digest, self._token) or scheme.lower() != "bearer":
            message = "the request needs the service's token, as Authorization: Bearer TOKEN"
            raise FieldError(message, "Authorization", status=401, code="invalid_api_key")

    def _body(self, scope: Scope, headers: Headers) -> None:
        length, empty = headers.get("content-length"), not has_body(headers)
        if length is not None and "transfer-encoding" in headers:  # proxies disagree about which counts
            raise ServiceError(400, "invalid_http", "the body has both a length and a transfer coding")
        if scope["method"] != "POST":
            return  # see `has_body`
        kind = content_type(headers)
        if kind not in BODIES and not (empty and not kind):
            message = f"the content type is {quoted(kind)}; expected application/json or multipart/form-data"
            raise FieldError(message, "Content-Type", status=415, code="unsupported_content_type")
        if "content-encoding" in headers:
            raise FieldError(
                "compressed bodies are refused", "Content-Encoding", status=415, code="unsupported_encoding"
            )
        if length is not None and int(length) > most_bytes(kind, self._limits):
            raise too_large(most_bytes(kind, self._limits))


def content_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def most_bytes(kind: str, limits: Limits) -> int:
    """The maximum length of a body. A form may hold one file of full size, and its texts."""
    return limits.json_bytes if kind != "multipart/form-data" else limits.upload_bytes + limits.json_bytes


def too_large(most: int) -> ServiceError:
    return ServiceError(413, "too_large", f"the body is longer than {most:,} bytes")


def _same(origin: str, host: str) -> bool:
    found = _ORIGIN.fullmatch(origin.lower())
    if found is None:  # "null": a sandboxed page or a file
        return False
    end = f":{_PORTS[found['scheme']]}"
    return found["host"].removesuffix(end) == host.removesuffix(end)


class Guard:
    """ASGI middleware: `Checks`, limits on size and time of bodies, headers of answers, and answers to failures."""

    def __init__(self, app: ASGIApp, settings: Settings, public: Public, count: Callable[[Scope, int], None]) -> None:
        self._app, self._public, self._count = app, public, count
        self._checks, self._limits = Checks(settings), settings.limits
        self._running = self._forms = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answering = Answering(send)
        self._running += 1
        try:
            if self._running > MAX_REQUESTS:
                raise ServiceError(503, "busy", f"the service is answering {MAX_REQUESTS} requests; try again")
            self._checks(scope)
            with self._form(scope):
                await self._app(scope, Body(scope, receive, self._limits), answering)
        except Stalled:
            raise
        except Exception as error:
            failure = refused(error)
            if not answering.status:
                await answer(failure, self._public)(scope, receive, answering)
        finally:
            self._running -= 1
            if answering.status:
                self._count(scope, answering.status)

    @contextmanager
    def _form(self, scope: Scope) -> Iterator[None]:
        """Count a form until it is answered. Raises `ServiceError` 503 for one too many."""
        count = int(content_type(Headers(scope=scope)) == "multipart/form-data")
        if count and self._forms >= MAX_FORMS:
            raise ServiceError(503, "busy", f"the service is receiving {MAX_FORMS} forms; try again")
        self._forms += count
        try:
            yield
        finally:
            self._forms -= count


class Stalled(Exception):
    """The client does not read its answer; `kinema.server.http.protocol` drops the connection."""


class Answering:
    """``send`` with the headers of every answer, and a time limit for clients that do not read."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        try:
            async with asyncio.timeout(STALLED):
                await self._send(message)
        except TimeoutError:
            raise Stalled from None


class Body:
    """``receive`` with limits on the bytes and the time of a body, which hold without a Content-Length too."""

    def __init__(self, scope: Scope, receive: Receive, limits: Limits) -> None:
        self._receive, self._silence = receive, limits.body_seconds
        self._most = most_bytes(content_type(Headers(scope=scope)), limits)
        self._since = monotonic()
        self._got = 0
        self._ended = False

    async def __call__(self) -> Any:
        if self._ended:
            return await self._receive()  # waits for the client to leave
        try:
            async with asyncio.timeout(self._silence):
                message = await self._receive()
        except TimeoutError:
            raise self._slow() from None
        if message["type"] == "http.request":
            self._got += len(message.get("body", b""))
            self._ended = not message.get("more_body", False)
            taken = monotonic() - self._since
            if self._got > self._most:
                raise too_large(self._most)
            if not self._ended and taken > self._silence and self._got < MIN_RATE * taken:
                raise self._slow()
        return message

    def _slow(self) -> ServiceError:
        return ServiceError(408, "timeout", f"the body did not arrive within {self._silence:g} seconds")
