"""The documentation of the API, written from its OpenAPI page. It runs no script and loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse

from kinema import __version__
from kinema.server.http.service import known_query

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; background: #8882; border-radius: 4px; padding: 0 .25em; }
pre { padding: .75em; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .2em .6em .2em 0; border-top: 1px solid #8884; }
h2 { margin-top: 2em; } summary { cursor: pointer; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } a { color: #9cf; } }
"""
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
CSP = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

router = APIRouter(include_in_schema=False, dependencies=[Depends(known_query)])


def _html(title: str, body: str) -> HTMLResponse:
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    text = f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>'
    return HTMLResponse(text, headers={"Content-Security-Policy": CSP})


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    page = request.app.openapi()
    schemas = page["components"]["schemas"]
    parts = [f"<h1>Kinema {escape(__version__)}</h1><p>{escape(page['info']['description'])}</p>"]
    for path, operations in page["paths"].items():
        for method, operation in operations.items():
            parts.extend(_operation(path, method, operation))
    parts.append("<h1>Bodies and answers</h1>")
    for name, schema in schemas.items():
        parts.append(f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{escape(schema.get("description", ""))}</p>')
        parts.extend(_table(schema.get("properties", {}), schema.get("required", ())))
    return _html("Kinema: API", "".join(parts))


def _operation(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
    named = {each["name"]: {**each["schema"], **each} for each in operation.get("parameters", ())}
    if named:
        yield from _table(named, [name for name, each in named.items() if each.get("required")])
    content = operation.get("requestBody", {}).get("content", {})
    for kind, each in content.items():
        yield f"<p>Body: {_kind(each['schema'])} as {escape(kind)}</p>"
    for status, response in operation["responses"].items():
        kinds = [_kind(each["schema"]) for each in response.get("content", {}).values() if each.get("schema")]
        about = f"{escape(response.get('description', ''))} {', '.join(dict.fromkeys(kinds))}"
        yield f"<p>Answer {escape(status)}: {about}</p>"


def _table(properties: dict[str, Any], required: Any) -> Iterator[str]:
    yield "<table>"
    for name, schema in properties.items():
        needed = " (required)" if name in required else ""
        default = f" Default: {schema['default']}." if schema.get("default") is not None else ""
        about = escape(f"{schema.get('description', '')}{needed}.{default}".lstrip("."))
        yield f"<tr><td><code>{escape(name)}</code></td><td>{_kind(schema)}</td><td>{about}</td></tr>"
    yield "</table>"


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(each) for each in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"<code>{escape(str(each))}</code>" for each in schema.get("enum", [schema.get("const")]))
    within = f" {schema['minimum']:g} to {schema['maximum']:g}" if {"minimum", "maximum"} <= schema.keys() else ""
    items = f" of {_kind(schema['items'])}" if schema.get("items") else ""
    return escape(f"{schema.get('type', 'any')}{within}") + items
