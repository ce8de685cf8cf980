"""The OpenAPI page: FastAPI's, with the bodies of /v1/videos written from their table of fields."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from kinema import __version__
from kinema.server.http import fields
from kinema.server.http.schemas import ErrorAnswer

_UPLOAD = {"type": "string", "format": "binary"}
_ERROR = "#/components/schemas/ErrorAnswer"
ABOUT = (
    "Video generation as the OpenAI SDK speaks it, and what else Kinema does. Files are identifiers of assets and "
    "videos, models are names that /v1/models lists; no path and no URL of a client is opened."
)


def _body(name: str, *, form: str = "", required: bool = True) -> dict[str, Any]:
    """``openapi_extra`` of a route with this body, and this one as a form."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    if form:
        content["multipart/form-data"] = {"schema": {"$ref": f"#/components/schemas/{form}"}}
    return {"requestBody": {"required": required, "content": content}}


VIDEO_BODY = _body("VideoBody", form="VideoForm")
EDIT_BODY = _body("EditBody", form="EditForm")
EXTEND_BODY = _body("ExtendBody", form="ExtendForm")
REMIX_BODY = _body("RemixBody", form="RemixForm")
MOVE_BODY = _body("MoveBody")
ASSET_BODY = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/AssetForm"}}},
    }
}


def binary(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route that answers with a file."""
    content = {kind: {"schema": _UPLOAD} for kind in kinds}
    headers = {name: {"schema": {"type": "string"}} for name in ("ETag", "Content-Disposition", "Accept-Ranges")}
    return {
        200: {"description": "The file", "content": content, "headers": headers},
        206: {"description": "A range of the file", "content": content},
        304: {"description": "The file is the one that the client has"},
    }


def bodies() -> dict[str, Any]:
    """The schemas of bodies, by name."""
    table = {name: fields.schema(f) for name, f in fields.table().items()}
    request = {"type": "object", "description": "JSON form of kinema.Request, in place of single fields"}
    document = {"document": table.pop("document")}
    forms = table | {name: _UPLOAD for name in (*fields.FILES, "input_reference")}
    found: dict[str, Any] = {}
    for name, required in {"Video": [], "Edit": ["prompt", "video"], "Extend": ["prompt", "video"]}.items():
        found[f"{name}Body"] = _object(table | (document | {"request": request} if name == "Video" else {}), required)
        found[f"{name}Form"] = _object(forms | ({"document": _UPLOAD} if name == "Video" else {}), required)
    found["RemixBody"] = found["RemixForm"] = _object(table, ["prompt"])
    before = {"anyOf": [{"type": "string", "pattern": "^video_[0-9a-z]{20,32}$"}, {"type": "null"}]}
    found["MoveBody"] = _object({"before": {**before, "description": "a waiting video; null: to the end"}}, ["before"])
    found["AssetForm"] = _object({"file": {**_UPLOAD, "description": "an image or clip"}}, ["file"])
    return found


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    return found | ({"required": required} if required else {})


def install(app: FastAPI) -> None:
    """Let the app write its page once, with errors in the service's form for every route."""

    def page() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _write(app)
        return app.openapi_schema

    app.openapi = page  # type: ignore[method-assign]


def _write(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title="Kinema", version=__version__, description=ABOUT, routes=app.routes)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    error = ErrorAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= {**error.pop("$defs"), "ErrorAnswer": error} | bodies()
    found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    found["security"] = [{"token": []}, {}]
    for path in found["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {
                "description": "Refused",
                "content": {"application/json": {"schema": {"$ref": _ERROR}}},
            }
    return found
