"""Encode prompts as condition vectors, for sampling and training alike.

Letters: B prompts, E width of the condition vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from kinema import registry
from kinema.conditioning import bert
from kinema.conditioning.pocket import PocketTokenizer
from kinema.families.vdm.config import Config
from kinema.families.vdm.model import VideoUNet
from kinema.schema import BadRequest


@dataclass(frozen=True, eq=False)
class Condition:
    """One guidance branch: a condition vector [1 or B, E], and whether frames attend to each other."""

    vector: Tensor | None = None
    """None means the trained null condition."""
    per_frame: bool = False
    """Process each frame independently, as an image model: temporal attention is restricted to the frame itself."""


def encode(model: nn.Module, config: Config, prompts: Sequence[str], *, offline: bool = False) -> Tensor | None:
    """Return condition vectors [B, E], or None for an unconditional model. An empty prompt gives the trained null.

    With ``offline``, BERT's weights must already be on this machine.
    """
    if not config.conditional:
        return None
    network = cast(VideoUNet, model)  # not an isinstance check: it may be compiled or sharded
    device = network.null.device
    empty_B = torch.tensor([not prompt.strip() for prompt in prompts], device=device)
    if config.classes:
        labels = [class_index(config, prompt) if prompt.strip() else 0 for prompt in prompts]
        return network.encode(labels_B=torch.tensor(labels, device=device), drop_B=empty_B)
    if config.text == "pocket":
        ids_BL = PocketTokenizer(config.words).encode(prompts, config.text_length).to(device)
        return network.encode(*network.reader(ids_BL), drop_B=empty_B)
    text_BLD, keep_BL = bert.load(device=str(device), offline=offline).encode(prompts, config.text_length)
    return network.encode(text_BLD.to(network.null.dtype), keep_BL, drop_B=empty_B)


def class_index(config: Config, prompt: str) -> int:
    """Return the index of the class named by a prompt. Raises BadRequest with the nearest names for an unknown one."""
    names = {name.lower(): i for i, name in enumerate(config.classes)}
    if prompt.strip().lower() not in names:
        raise BadRequest(registry.unknown_name("class of this model", prompt, config.classes))
    return names[prompt.strip().lower()]
