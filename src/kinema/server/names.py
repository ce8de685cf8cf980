"""What clients may name: identifiers of uploads and videos, and listed models and LoRAs. Paths are the server's alone.

Imports without torch.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kinema.schema import BadRequest, Request
from kinema.server.jobs import ASSET_ID, VIDEO_ID, Order, ServiceError
from kinema.spelling import named
from kinema.values import quoted

_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
_TAGS = ("<lora:", "<lyco:")
BY_FRAME = {f.name: f.metadata["word"] for f in fields(Request) if f.metadata.get("word") and f.metadata.get("path")}
"""Fields that map frames to files, and the word for one: keyframes."""
NONE = "none"
"""In place of a super-resolution model (`kinema.stages.NONE`)."""


def new_id(kind: str) -> str:
    """Return an identifier that nobody can guess: ``video_…`` or ``asset-…``."""
    return kind + "".join(secrets.choice(_LETTERS) for _ in range(24))


@dataclass(frozen=True)
class Resolved:
    """An order with the server's paths in place of names. ``names`` maps each path to what the client called it.

    ``model`` says what is opened, in words; ``source`` where it is, its add-ons included.
    """

    model: str
    source: Mapping[str, Any]
    request: dict[str, Any]
    names: dict[str, str]

    def message(self) -> dict[str, Any]:
        """The part of a message to a child that says what to run."""
        return {"model": self.model, "source": dict(self.source), "request": self.request, "names": self.names}


@dataclass(frozen=True)
class Names:
    """Where names lead. Each function raises `ServiceError` for one that leads nowhere."""

    model: Callable[[str], Mapping[str, Any]]
    lora: Callable[[str], str]
    file: Callable[[str], Path]
    """The file of an upload or a finished video by its identifier."""
    add_on: Callable[[str], Mapping[str, Any]]
    lora_folder: Path | None = None

    def resolve(self, order: Order, seed: int | None = None) -> Resolved:
        """Replace names by paths. Raises `ServiceError` 400 for anything that is not an identifier or a listed name."""
        asked = checked(order.request)
        names: dict[str, str] = {}

        def file(identifier: str, field: str) -> str:
            if not is_identifier(identifier):
                raise invalid(f"{field} is {quoted(identifier)}; expected the identifier of an upload or a video")
            path = str(self.file(identifier))
            names[path] = identifier
            return path

        def model(name: str) -> str:
            path = str(self.model(name)["source"])
            names[path] = name
            return path

        given = {role: getattr(asked, role) for role in ("image", "last_image", "video", "mask")}
        changes: dict[str, Any] = {role: file(value, role) for role, value in given.items() if value is not None}
        for name, word in BY_FRAME.items():
            changes[name] = {at: file(value, f"{word} {at}") for at, value in getattr(asked, name).items()}
        if asked.image_model is not None:
            changes["image_model"] = model(asked.image_model)
        if asked.super_resolution not in (None, NONE):
            changes["super_resolution"] = model(str(asked.super_resolution))
        if asked.loras is not None:
            changes["loras"] = {}
            for name, weight in asked.loras.items():
                path = self.lora(name)
                names[path] = name
                changes["loras"][path] = weight
        if asked.lora_folder is not None:
            raise invalid("lora_folder is the server's to choose; leave it out")
        if self.lora_folder is not None and any(tag in text for text in _prompts(asked) for tag in _TAGS):
            changes["lora_folder"] = str(self.lora_folder)
            names[str(self.lora_folder)] = "the LoRA folder"
        changes["extra"] = substituted(asked.extra, lambda text: file(text, "extra") if is_identifier(text) else text)
        if seed is not None:
            changes["seed"] = seed
        source = self.model(order.model)
        names[str(source["source"])] = order.model
        parts = {slot: self.add_on(name) for slot, name in order.add.items()}
        names.update({str(part["source"]): order.add[slot] for slot, part in parts.items()})
        source = {**source, "add": {slot: dict(part) for slot, part in parts.items()}}
        return Resolved(order.opened, source, _table(asked.with_(**changes)), names)


def add_on_paths(source: Mapping[str, Any]) -> dict[str, str]:
    """Return the paths of the add-ons in `Resolved.source` by slot."""
    return {slot: part["source"] for slot, part in source.get("add", {}).items()}


def checked(request: Mapping[str, Any]) -> Request:
    """Return the request of an order. Raises `ServiceError` 400."""
    try:
        return Request.from_table(request)
    except BadRequest as error:
        raise invalid(named(str(error))) from None
    except TypeError:
        raise invalid(f"the request is {quoted(request)}; expected a table of options") from None


def _prompts(request: Request) -> list[str]:
    return [request.prompt, request.negative_prompt, *request.prompt_spans.values()]


def _table(request: Request) -> dict[str, Any]:
    return json.loads(request.to_json())


def is_identifier(text: str) -> bool:
    return bool(ASSET_ID.fullmatch(text) or VIDEO_ID.fullmatch(text))


def identifiers_in(value: Any) -> Iterator[str]:
    """Yield the identifiers in a request, wherever they are."""
    if isinstance(value, str):
        if is_identifier(value):
            yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from identifiers_in(key)
            yield from identifiers_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from identifiers_in(inner)


def substituted(value: Any, change: Callable[[str], str]) -> Any:
    """Return a nested value with each text changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {substituted(key, change): substituted(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [substituted(inner, change) for inner in value]
    return value


def invalid(message: str) -> ServiceError:
    return ServiceError(400, "invalid_request", message)
