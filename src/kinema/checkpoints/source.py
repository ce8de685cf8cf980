"""What a user points at, before its weights are read: a weight file, a folder of one, or a pipeline of diffusers.

A pipeline is a folder whose ``model_index.json`` names its parts, one subfolder each: networks with a
``config.json`` and weights, and things without weights (scheduler, tokenizer). All but `Source.tensors` comes from
headers and JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from kinema import bounds
from kinema.checkpoints import files
from kinema.checkpoints.files import Header
from kinema.schema import BadRequest

INDEX = "model_index.json"
MAX_JSON = 16 * 2**20
"""Bytes of a JSON file that are parsed: a pipeline's have a few thousand."""


@dataclass(frozen=True)
class Source:
    """``variant`` picks among a folder's files ("fp16"); ``model`` is the published model the user says it is."""

    path: Path
    variant: str | None = None
    model: str | None = None

    @property
    def name(self) -> str:
        """What people call it: the file's or folder's name, or the repository's in the hub's cache."""
        above = self.path.resolve().parents
        if len(above) > 1 and above[0].name == "snapshots" and above[1].name.startswith("models--"):
            return above[1].name.rpartition("--")[2]
        return self.path.stem if self.path.is_file() else self.path.resolve().name

    # ------------------------------------------------------------------------------- one network

    @cached_property
    def header(self) -> Header:
        """Names, shapes and dtypes of a file or of a folder of one network; empty for a pipeline (`headers`)."""
        return {} if self.pipeline else files.header(self.path, self.variant)

    @cached_property
    def metadata(self) -> dict[str, str]:
        return {} if self.pipeline else files.metadata(self.path, self.variant)

    # --------------------------------------------------------------------------------- a pipeline

    @cached_property
    def index(self) -> dict[str, Any]:
        """``model_index.json``: the pipeline's class, and of each part its library and class. Empty for a file."""
        place = self.path / INDEX
        return read_json(place) if place.is_file() else {}

    @property
    def pipeline(self) -> str:
        """The class of the pipeline, such as ``StableVideoDiffusionPipeline``; "" for anything else."""
        return bounds.printable(str(self.index.get("_class_name", "")), bounds.MAX_QUOTED) or (
            "a pipeline without a class" if self.index else ""
        )

    def config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        """A JSON file of a part; empty where there is none."""
        place = self.path / part / file
        return read_json(place) if place.is_file() else {}

    def need(self, parts: Sequence[str]) -> None:
        """Refuse, in one sentence, a pipeline that lacks some of these networks or their configs."""
        absent = [f"{part}/" for part in parts if not (self.path / part).is_dir()]
        absent += [
            f"{part}/config.json"
            for part in parts
            if f"{part}/" not in absent and not (self.path / part / "config.json").is_file()
        ]
        if absent:
            raise BadRequest(f"the folder {self.path} lacks {_and(absent)}, which a {self.pipeline} is made of")

    # ------------------------------------------------------------------------------------ weights

    def headers(self, parts: Sequence[str]) -> Header:
        """The headers of these parts in one, each tensor's name behind its part's: ``unet.conv_in.weight``."""
        each = {part: files.header(self.path / part, self.variant) for part in parts}
        return {f"{part}.{name}": entry for part, header in each.items() for name, entry in header.items()}

    def tensors(self, parts: Sequence[str] = ()) -> dict[str, Tensor]:
        """All tensors, memory-mapped; of a pipeline those of these parts, named as in `headers`."""
        if not parts:
            return files.read_tensors(self.path, self.variant)
        each = {part: files.read_tensors(self.path / part, self.variant) for part in parts}
        return {f"{part}.{name}": tensor for part, held in each.items() for name, tensor in held.items()}

    def files(self, parts: Sequence[str] = ()) -> list[Path]:
        """The weight files."""
        places = [self.path / part for part in parts] or [self.path]
        return [file for place in places for file in files.weight_files(place, self.variant)]

    def hash(self, parts: Sequence[str] = ()) -> str:
        """`files.weight_hash`; of a pipeline one for all parts, with the configs that say what the weights mean."""
        if not parts:
            return files.weight_hash(self.path, self.variant)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(f"{part} {files.weight_hash(self.path / part, self.variant)}\n".encode())
            digest.update(json.dumps(self.config(part), sort_keys=True).encode())
        return f"sha256-pipeline:{digest.hexdigest()}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a table of names and values; anything else is a `BadRequest`."""
    told = bounds.from_json(bounds.decoded(bounds.read_bytes(path, MAX_JSON, "a config"), str(path)), str(path))
    if not isinstance(told, dict):
        raise BadRequest(f"{path} holds no table of names and values")
    return told


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
