"""Files that `kinema train` wrote, for conversion to other layouts."""

from __future__ import annotations

from typing import TypeVar

from kinema.checkpoints.files import Header
from kinema.checkpoints.source import Source
from kinema.checkpoints.stream import Stream
from kinema.families.opensora.config import Config as Config2
from kinema.families.opensora.v1.config import Config as Config1
from kinema.schema import BadRequest
from kinema.system import parse_metadata

Line = TypeVar("Line", Config1, Config2)


def open_own(source: Source, line: type[Line]) -> tuple[Line, Stream] | None:
    """The config and the tensors of a file of this line; None for one of another model.

    Raises BadRequest for one with text embeddings of its own.
    """
    family, config = parse_metadata(source.metadata["kinema"], str(source.path))
    if family.name != "opensora" or not isinstance(config, line):
        return None
    if config.words:
        raise BadRequest(f"{source.path.name} has its own text embeddings, which other layouts cannot contain")
    return config, Stream(source.path, source.variant)


def part(stream: Stream, name: str) -> Header:
    """The header of the network of this name, under the names that its tensors have within it."""
    return {n.removeprefix(f"{name}."): entry for n, entry in stream.header.items() if n.startswith(f"{name}.")}
