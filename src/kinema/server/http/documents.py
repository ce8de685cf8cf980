"""Documents (`kinema.document`) in bodies, and of videos. Their media are assets of the service, or in the document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinema.bounds import from_json, read_bytes
from kinema.document import MAX_BYTES, MAX_MEDIA, VERSION, Document, Medium
from kinema.schema import BadRequest
from kinema.server.http.errors import FieldError
from kinema.server.http.fields import distinct
from kinema.server.jobs import ASSET_ID, VIDEO_ID, Job, ServiceError
from kinema.server.names import identifiers_in, is_identifier, substituted
from kinema.values import quoted, strict

_MEDIA = "media:"
_MODELS = ("image_model", "super_resolution")
"""Fields that name models, which may here be any that the service lists."""
_SIZES = ("size", "height", "width")


def read(path: Path) -> Any:
    """The JSON of a document that came as a file. Raises `FieldError`."""
    try:
        text = read_bytes(path, MAX_BYTES * 3 // 2, "a document of Kinema (JSON)").decode()
        return from_json(text, "the document", pairs=distinct, longest=MAX_BYTES * 4 // 3 + 4)
    except UnicodeDecodeError:
        raise FieldError("the document is not UTF-8 text", "document", code="invalid_json") from None
    except BadRequest as error:
        raise FieldError(str(error), "document", code="invalid_json") from None


@dataclass
class Given:
    """A client's document: what it embeds is still to be stored; ``files`` has the identifier of each other medium."""

    document: Document
    models: Mapping[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def embedded(self) -> Mapping[str, Medium]:
        return self.document.media

    @staticmethod
    def of(table: Any) -> Given:
        """Check a parsed document. Raises `FieldError`."""
        if not isinstance(table, Mapping) or not isinstance(table.get("media", {}), Mapping):
            raise FieldError(f"document is {quoted(table)}; expected an object with kinema_document", "document")
        media, request = table.get("media", {}), table.get("request", {})
        if len(media) > MAX_MEDIA:
            raise FieldError(f"the document has {len(media):,} media; expected at most {MAX_MEDIA}", "document")
        files = {name: _asset(name, entry) for name, entry in media.items() if _has(entry, "asset")}
        for name, entry in media.items():
            if _has(entry, "file"):
                raise FieldError(
                    f"the document's medium {quoted(name)} names a file, which the service never opens; give data or "
                    "asset",
                    "document",
                )
        models = {}
        if isinstance(request, Mapping):
            models = {name: request[name] for name in _MODELS if request.get(name) is not None}
            request = {name: value for name, value in request.items() if name not in models}
        inside = {name: entry for name, entry in media.items() if name not in files}
        try:
            document = Document.from_table(
                {**table, "request": request, "media": inside}, "the document", elsewhere=files
            )
        except BadRequest as error:
            raise FieldError(str(error), "document") from None
        return Given(document, models, files)

    def order(self) -> dict[str, Any]:
        """Its model, and its request in JSON form with identifiers for files; not yet checked like other requests."""
        try:
            request = json.loads(self.document.with_files(self.files).to_json())
        except BadRequest as error:
            raise FieldError(str(error), "document") from None
        if self.document.loras:
            request["loras"] = dict(self.document.loras)
        return {"model": self.document.model, "add": dict(self.document.add), "request": {**request, **self.models}}


def _has(entry: Any, key: str) -> bool:
    return isinstance(entry, Mapping) and key in entry


def _asset(name: str, entry: Mapping[str, Any]) -> str:
    """The identifier of a medium that is an asset or video of the service."""
    identifier = entry["asset"]
    known = {"name", "asset", "sha256"}
    if not entry.keys() <= known or not isinstance(identifier, str) or not is_identifier(identifier):
        raise FieldError(
            f"the document's medium {quoted(name)} is {quoted(entry)}; expected a name and asset, the identifier of an "
            "asset or video",
            "document",
        )
    return identifier


def overridden(values: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a body, and its request: the document's, changed by ``changes``, the body's other fields."""
    given = values["document"]
    own = {name: value for name, value in values.items() if name != "document"}
    if "model" not in own and given["model"] is not None:
        own["model"] = given["model"]
    if given["add"] and given["model"] in (None, own.get("model")):  # add-ons are parts of the document's model
        own.setdefault("add", given["add"])
    if not own.keys() & {"verb", "task"}:
        own["task"] = given["request"].get("task", "generate")
    request = dict(given["request"])
    if changes.keys() & set(_SIZES):
        request = {name: value for name, value in request.items() if name not in _SIZES}
    extra = {**request.get("extra", {}), **_table(changes.get("extra", {}))}
    return own, {**request, **changes, **({"extra": extra} if extra else {})}


def _table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FieldError(f"extra is {quoted(value)}; expected an object", "extra")
    return value


# -------------------------------------------------------------------------------------- of a video


def identifiers(job: Job) -> list[str]:
    """The assets and videos that a job takes as inputs."""
    return list(dict.fromkeys(identifiers_in(job.order.request)))


def document_of(job: Job, files: Mapping[str, tuple[str, Path]], *, embed: bool) -> bytes:
    """The document of a job, with the seed that it used, as JSON. ``files``: name and path of each input.

    Raises `ServiceError` 413 if all embedded media are too large for a document.
    """
    names = {identifier: f"m{number}" for number, identifier in enumerate(files, 1)}
    media: dict[str, Any] = {}
    total = 0
    for identifier, (name, path) in files.items():
        total += path.stat().st_size
        if embed and total > MAX_BYTES:
            raise ServiceError(413, "too_large", f"the inputs have more than {MAX_BYTES:,} bytes; leave embed out")
        if embed:
            data = path.read_bytes()
            media[names[identifier]] = Medium(name, hashlib.sha256(data).hexdigest(), data).to_table()
        else:
            media[names[identifier]] = {"name": name, "asset": identifier}
    request = {name: value for name, value in job.order.request.items() if name not in ("loras", "lora_folder")}
    request = substituted(request, lambda text: _MEDIA + names[text] if text in names else text)
    table: dict[str, Any] = {"kinema_document": VERSION, "model": job.order.model}
    if job.order.add:
        table["add"] = dict(job.order.add)
    if loras := job.order.request.get("loras"):
        table["loras"] = loras
    table |= {"request": {**request, "seed": job.settled.seed}, "media": media}
    return json.dumps(strict(table), ensure_ascii=False, indent=1, allow_nan=False).encode()


def named(identifier: str, name: str | None) -> str:
    """The file name of an input: the client's for an asset, the service's for a video."""
    if ASSET_ID.fullmatch(identifier):
        return (name or "").strip() or identifier
    assert VIDEO_ID.fullmatch(identifier)
    return f"{identifier}.mp4"
