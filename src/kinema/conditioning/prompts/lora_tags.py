"""LoRAs that a prompt names: ``<lora:name:0.8>``, as in AUTOMATIC1111, from a folder of LoRA files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kinema.bounds import printable
from kinema.conditioning.prompts.folders import Folder
from kinema.conditioning.prompts.pieces import weight_of
from kinema.schema import BadRequest, plain_number
from kinema.values import cut

_TAG = re.compile(r"<(\w+):([^<>]+)>")
_NAMES = ("lora", "lyco")
"""LyCORIS files are LoRAs of other kinds."""
_SHOWN = 60


def without_tags(text: str) -> str:
    return _TAG.sub("", text)


def tags(text: str) -> dict[str, float]:
    """Return the LoRAs that a prompt names, with their weights.

    Raises BadRequest for another network than a LoRA, and for weights of parts.
    """
    found: dict[str, float] = {}
    for match in _TAG.finditer(text):
        tag, (name, *weights) = printable(cut(match.group(), _SHOWN)), match[2].split(":")
        if match[1] not in _NAMES:
            raise BadRequest(f"the prompt names {tag}; only LoRAs can be added in a prompt, as <lora:NAME:WEIGHT>")
        if len(set(weights)) > 1 or any("=" in each for each in weights):
            raise BadRequest(f"the prompt gives {tag} several weights; expected one for the whole LoRA")
        weight = weight_of(weights[0]) if weights else 1.0
        if found.setdefault(name.strip(), weight) != weight:
            raise BadRequest(f"the prompt names {tag} and gives the same LoRA another weight; give it once")
    return found


def files_of(named: Mapping[str, float], folder: str | None) -> dict[str, float]:
    """Return the files of these LoRAs and their weights. Raises BadRequest for a LoRA that the folder does not have."""
    if not named:
        return {}
    if folder is None:
        name, weight = next(iter(named.items()))
        own = f"{printable(cut(name, _SHOWN))}.safetensors:{plain_number(weight)}"
        raise BadRequest(
            f"the prompt names the LoRA {printable(cut(name, _SHOWN))}; give its file with --lora {own} and leave "
            "<lora:…> out, or its folder with --lora-folder FOLDER"
        )
    listed = Folder.read(Path(folder), "--lora-folder")
    return {str(listed.file(name, "LoRA")): weight for name, weight in named.items()}
