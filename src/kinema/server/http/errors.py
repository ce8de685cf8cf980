"""Errors as the OpenAI SDK reads them: ``{"error": {"message", "type", "param", "code"}}``, one sentence each."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute, Match

import kinema
from kinema.schema import BadRequest
from kinema.server.jobs import ServiceError
from kinema.spelling import named
from kinema.values import cut, quoted

if TYPE_CHECKING:
    from fastapi import FastAPI

    from kinema.server.settings import Settings

LOG = logging.getLogger("kinema.server")
MAX_MESSAGE = 2000
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
_NAMED = re.compile(r"(\w+)(?:\[[^\]]*\])? is ")


PACKAGE = Path(kinema.__file__).parent


class FieldError(ServiceError):
    """A refused field, query parameter or header; ``param`` is its name."""

    def __init__(
        self, message: str, param: str | None = None, *, status: int = 400, code: str = "invalid_value"
    ) -> None:
        super().__init__(status, code, message)
        self.param = param


class Public:
    """Messages without paths of the server: files of the store become identifiers, other folders an ellipsis."""

    def __init__(self, settings: Settings) -> None:
        folders = [settings.folder, *settings.model_folders, PACKAGE, Path.home()]
        folders += filter(None, [settings.lora_folder])
        roots = {str(each) for folder in folders for each in (folder.absolute(), folder.resolve())} - {"/"}
        root = "|".join(re.escape(root) for root in sorted(roots, key=len, reverse=True)) or "(?!)"
        store = f"{root}|{re.escape(str(settings.folder))}"
        file = r"((?:video_|asset-)[0-9a-z]+)(?:\.part)?(?:[/\\][^\s:;,]*)?"
        self._store = re.compile(rf"(?:{store})[/\\](?:jobs|assets)[/\\]{file}")
        self._other = re.compile(root)

    def __call__(self, message: str) -> str:
        return self._other.sub("…", self._store.sub(r"\1", message))


def payload(status: int, code: str | None, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error answer."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def answer(error: ServiceError, public: Public, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer to a refused request."""
    more = dict(headers or {})
    if error.status in (429, 503):
        more.setdefault("Retry-After", "1")
    if error.status == 401:
        more.setdefault("WWW-Authenticate", "Bearer")
    if error.status == 408:
        more["Connection"] = "close"  # or the client could keep sending slowly
    body = payload(error.status, error.code, cut(public(error.message), MAX_MESSAGE), getattr(error, "param", None))
    return JSONResponse(body, error.status, more)


def refused(error: Exception) -> ServiceError:
    """An exception as the error that the client sees. Unexpected ones are logged and say nothing of the server."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, BadRequest):
        message = named(str(error))
        field = _NAMED.match(message)
        return FieldError(message, field[1] if field else None)
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase.lower()
        message = "there is nothing at this address" if error.status_code == 404 else phrase
        return ServiceError(error.status_code, CODES.get(error.status_code, "refused"), message)
    if isinstance(error, ClientDisconnect):
        return ServiceError(400, "incomplete", "the request ended early")
    LOG.error("a request failed", exc_info=error)
    return ServiceError(500, "internal_error", "the service failed to answer; its log has the reason")


def by_200(error: Exception, public: Public) -> JSONResponse:
    """The error of a refused body as an answer by 200, so that a browser reports nothing while a body is typed. Other
    errors are raised again.
    """
    found = refused(error)
    if found.status != 400:
        raise error
    plain = answer(found, public)
    plain.status_code = 200
    return plain


def invalid(error: RequestValidationError) -> FieldError:
    """FastAPI's first complaint about a path or query parameter, as one sentence."""
    first = error.errors()[0]
    name = str(first["loc"][-1])
    if first["type"] == "missing":
        return FieldError(f"the query parameter {name} is missing", name)
    return FieldError(f"{name} is {quoted(first.get('input'))}: {first['msg'][:1].lower()}{first['msg'][1:]}", name)


def _methods(routes: Sequence[BaseRoute], request: Request) -> list[str]:
    """The methods of an address over all of its routes; Starlette names those of the first one."""
    matching = [route for route in routes if route.matches(request.scope)[0] != Match.NONE]
    return sorted({method for route in matching for method in getattr(route, "methods", None) or ()})


def install(app: FastAPI, public: Public, routes: Sequence[BaseRoute]) -> None:
    """Answer all errors of the app's routes in this form."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        headers = dict(getattr(error, "headers", None) or {})
        if isinstance(error, HTTPException) and error.status_code == 405:
            headers["Allow"] = ", ".join(_methods(routes, request))
        return answer(refused(error), public, headers)

    async def validation(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return answer(invalid(error), public)

    for kind in (ServiceError, BadRequest, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, validation)
