"""``--document``: the options of a verb from a document (`kinema.document`); the command line overrides them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kinema.options import Option
from kinema.schema import BadRequest, Request, TaskName

if TYPE_CHECKING:
    from kinema.document import Document

DOCUMENT = Option(
    "document",
    Path | None,
    None,
    "document of the studio (.kinema.json): a request with its images, clips and masks; the command line overrides it",
    metavar="FILE",
    path=True,
)

_NAMES: Mapping[str, Literal["add", "loras"]] = {"add": "add", "lora": "loras"}
"""Options that replace the names of a document: a part of it by option."""


@contextmanager
def with_document(task: TaskName, given: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The options of the command line, and those of its document that it does not give.

    The document's media are in a temporary folder meanwhile. Raises BadRequest for a document of another verb.
    """
    if given.get(DOCUMENT.name) is None:
        yield given
        return
    from kinema.document import Document

    document = Document.read(given[DOCUMENT.name])
    if given.get("model", document.model) != document.model and document.model is not None:
        document = document.without("model")
    document = document.without(*(_NAMES[name] for name in _NAMES if name in given))
    with document.opened() as request:
        if request.task != task:
            raise BadRequest(
                f"the document is for kinema {request.task}, not {task}: kinema {request.task} --document "
                f"{given[DOCUMENT.name]}"
            )
        yield {**_options(document, request), **given, "extra": {**request.extra, **given.get("extra", {})}}


def _options(document: Document, request: Request) -> dict[str, Any]:
    """A document's request, model and LoRAs as options."""
    named = {name: getattr(request, name) for name in json.loads(request.to_json()) if name != "task"}
    if document.model is not None:
        named["model"] = document.model
    if document.loras:
        named["lora"] = [f"{name}:{weight:g}" for name, weight in document.loras.items()]
    if document.add:
        named["add"] = [f"{slot}={name}" for slot, name in document.add.items()]
    return named
