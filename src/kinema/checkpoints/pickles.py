"""PyTorch's own files: tensors and plain data, and nothing that could run."""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema.checkpoints.keymap import few
from kinema.schema import BadRequest

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
_WRAPPERS = ("ema", "state_dict", "model", "controlnet")
_NOTES = ("animatediff_config",)
"""Names of what is no tensor, which published files carry and nothing needs."""
_LOOKED_AT = 2**20
"""Bytes of a refused pickle that are searched for the name of what it wanted to run."""


def read_pickle(file: Path, device: str) -> dict[str, Tensor]:
    """Tensors of a ``torch.save`` file, memory-mapped where its age allows it; device "meta" reads no data.

    Raises `BadRequest` for a file that is empty, damaged, holds no tensors, or holds code: that is
    named and never run. There is no way to ask for less care.
    """
    if file.stat().st_size == 0:
        raise BadRequest(f"{file.name} is empty (0 bytes); expected weights")
    try:
        try:
            held = torch.load(file, map_location=device, weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # Files from before PyTorch 1.6 are no zip and cannot be mapped.
            held = torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadRequest(_refusal(file, str(error))) from error
    except Exception as error:  # the parser of a damaged pickle raises whatever its bytes lead it to
        raise BadRequest(f"{file.name} cannot be read: it is cut short, damaged, or no weight file") from error
    return _unwrap(file, held)


def _refusal(file: Path, said: str) -> str:
    found = re.search(r"(?:GLOBAL|class|global:?)\s+([\w.]+\.[\w.]+)", said)
    name = found[1] if found else _first_global(file)
    if name is None:
        return f"{file.name} cannot be read: it is damaged, or holds more than tensors, which is refused"
    return (
        f"{file.name} holds Python code ({name}), which is refused because loading would run it; "
        "get the weights as .safetensors"
    )


def _first_global(file: Path) -> str | None:
    """The first name that a bare pickle would import, found by reading its opcodes, not by running them."""
    with file.open("rb") as opened:
        head = opened.read(_LOOKED_AT)
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(head):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(texts[-2:])
            if isinstance(argument, str):
                texts.append(argument)
    except Exception:  # as above: not a pickle after all
        return None
    return None


def _unwrap(file: Path, held: Any) -> dict[str, Tensor]:
    for _ in range(3):
        if isinstance(held, Mapping):
            held = next((held[name] for name in _WRAPPERS if isinstance(held.get(name), Mapping)), held)
    if not isinstance(held, Mapping):
        raise BadRequest(f"{file.name} holds a {type(held).__name__}; expected named tensors")
    tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    nested = [str(k) for k, value in held.items() if isinstance(value, Mapping) and value and k not in _NOTES]
    if nested or not tensors:
        raise BadRequest(f"{file.name} holds {few(nested) if nested else 'no tensors'}; expected named tensors")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors
