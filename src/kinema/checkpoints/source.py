"""A source of weights that a user names: a weight file, the folder of a network, or a diffusers pipeline.

A pipeline is a folder whose ``model_index.json`` names its components, one subfolder each: networks with a
``config.json`` and weights, and others without weights (scheduler, tokenizer). Only `Source.tensors` and `Source.hash`
read weights; the rest comes from headers and JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema import bounds
from kinema.checkpoints import files
from kinema.checkpoints.files import Header
from kinema.checkpoints.storage import View
from kinema.schema import BadRequest

INDEX = "model_index.json"
MAX_JSON = 16 * 2**20
"""Limit on the bytes of a JSON file; a pipeline's have a few thousand."""


@dataclass(frozen=True)
class Source:
    """``variant`` selects among a folder's files ("fp16"); ``model`` is the published model that the user named."""

    path: Path
    variant: str | None = None
    model: str | None = None

    @property
    def name(self) -> str:
        """The name of the file or folder, or of the repository for a folder in the hub's cache."""
        above = self.path.resolve().parents
        if len(above) > 1 and above[0].name == "snapshots" and above[1].name.startswith("models--"):
            return above[1].name.rpartition("--")[2]
        return self.path.stem if self.path.is_file() else self.path.resolve().name

    # ------------------------------------------------------------------------------- one network

    @cached_property
    def header(self) -> Header:
        """Names, shapes and dtypes in a file or a network's folder; empty for a pipeline (see `headers`)."""
        return self._view.header

    @cached_property
    def _view(self) -> View:
        return View({}, {}) if self.pipeline else files.viewed(self.path, self.variant)

    @property
    def notes(self) -> tuple[str, ...]:
        """How a file's weights are stored, where that is not plain."""
        return self._view.notes

    @cached_property
    def metadata(self) -> dict[str, str]:
        return {} if self.pipeline else files.metadata(self.path, self.variant)

    # --------------------------------------------------------------------------------- a pipeline

    @cached_property
    def index(self) -> dict[str, Any]:
        """``model_index.json``: the pipeline's class, and the library and class of each component. Empty for a file."""
        place = self.path / INDEX
        return read_json(place) if place.is_file() else {}

    @property
    def pipeline(self) -> str:
        """The class of the pipeline, such as ``StableVideoDiffusionPipeline``; "" for other sources."""
        return bounds.printable(str(self.index.get("_class_name", "")), bounds.MAX_QUOTED) or (
            "of an unknown class" if self.index else ""
        )

    def config(self, part: str, file: str = "config.json", *, infinite: bool = False) -> dict[str, Any]:
        """Return the content of a component's JSON file; empty if it does not exist.

        ``infinite`` allows ±Infinity, which diffusers writes for schedulers.
        """
        place = self.path / part / file
        return read_json(place, infinite=infinite) if place.is_file() else {}

    def need(self, parts: Sequence[str]) -> None:
        """Raise BadRequest if a pipeline lacks any of these networks or their configs."""
        absent = [f"{part}/" for part in parts if not (self.path / part).is_dir()]
        absent += [
            f"{part}/config.json"
            for part in parts
            if f"{part}/" not in absent and not (self.path / part / "config.json").is_file()
        ]
        if absent:
            raise BadRequest(f"the folder {self.path} lacks {_and(absent)}, which the pipeline {self.pipeline} needs")

    # ------------------------------------------------------------------------------------ weights

    def headers(self, parts: Sequence[str]) -> Header:
        """Return the merged headers of components, with names such as ``unet.conv_in.weight``."""
        each = {part: files.header(self.path / part, self.variant) for part in parts}
        return {f"{part}.{name}": entry for part, header in each.items() for name, entry in header.items()}

    def narrow(self, parts: Sequence[str] = ()) -> set[str]:
        """Return the names of weights stored in 8 bits or fewer and read as more (`files.narrow`)."""
        if not parts:
            return set() if self.pipeline else files.narrow(self.path, self.variant)
        return {f"{part}.{name}" for part in parts for name in files.narrow(self.path / part, self.variant)}

    def tensors(self, parts: Sequence[str] = (), widened: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Return all tensors, memory-mapped; for a pipeline those of ``parts``, named as in `headers`.

        Quantised and scaled weights become ``widened``.
        """
        if not parts:
            return files.read_tensors(self.path, self.variant, widened)
        each = {part: files.read_tensors(self.path / part, self.variant, widened) for part in parts}
        return {f"{part}.{name}": tensor for part, tensors in each.items() for name, tensor in tensors.items()}

    def files(self, parts: Sequence[str] = ()) -> list[Path]:
        """Return the weight files; for a pipeline those of ``parts``."""
        places = [self.path / part for part in parts] or [self.path]
        return [file for place in places for file in files.weight_files(place, self.variant)]

    def hash(self, parts: Sequence[str] = ()) -> str:
        """Return `files.weight_hash`; for a pipeline, one hash over the weights and configs of ``parts``."""
        if not parts:
            return files.weight_hash(self.path, self.variant)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(f"{part} {files.weight_hash(self.path / part, self.variant)}\n".encode())
            digest.update(json.dumps(self.config(part), sort_keys=True).encode())
        return f"sha256-pipeline:{digest.hexdigest()}"


def read_json(path: Path, *, infinite: bool = False) -> dict[str, Any]:
    """Read a JSON file that contains an object. Raises `BadRequest` for anything else."""
    text = bounds.decoded(bounds.read_bytes(path, MAX_JSON, "a config"), str(path))
    data = bounds.from_json(text, str(path), infinite=infinite)
    if not isinstance(data, dict):
        raise BadRequest(f"{path} is not a JSON object; expected names and values in braces")
    return data


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
