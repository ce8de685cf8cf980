"""The studio's files over HTTP: a fixed list with fixed types, and a strict Content-Security-Policy on each answer.

The files are read once, at start: no path of a request is ever opened.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data: blob:"),
        *("media-src 'self' blob:", "connect-src 'self'", "font-src 'none'", "frame-ancestors 'none'"),
        *("base-uri 'none'", "form-action 'self'", "require-trusted-types-for 'script'"),
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class File:
    """A file of the page, also gzipped; ``tag`` is the hash that browsers compare with theirs."""

    content: bytes
    zipped: bytes
    kind: str
    tag: str


def read() -> Mapping[str, File]:
    """The files of the package's studio folder by name."""
    found = {}
    for entry in resources.files("kinema").joinpath("studio").iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if suffix in TYPES:
            content = entry.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
            found[entry.name] = File(content, gzip.compress(content, 6, mtime=0), TYPES[suffix], tag)
    return found


def routes() -> list[BaseRoute]:
    """``/`` (the page) and ``/studio/NAME`` (its files)."""
    files = read()

    def answer(request: Request) -> Response:
        file = files.get(request.path_params.get("name", "index.html"))
        if file is None:
            return PlainTextResponse("no such file\n", 404, HEADERS)
        headers = {**HEADERS, "ETag": file.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if request.headers.get("if-none-match") == file.tag:
            return Response(None, 304, headers)
        zipped = "gzip" in request.headers.get("accept-encoding", "")
        if zipped:
            headers["Content-Encoding"] = "gzip"
        return Response(file.zipped if zipped else file.content, 200, headers, file.kind)

    return [Route("/", answer), Route("/studio/{name}", answer)]
