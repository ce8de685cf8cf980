"""Text of a training batch: read by a small model's own words or by T5 and CLIP, or precomputed; some is dropped.

Letters: B clips, M tokens, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from kinema.conditioning import t5
from kinema.events import ignore
from kinema.families.opensora.conditioning import training_text
from kinema.families.opensora.config import Config as Config2
from kinema.families.opensora.model import OpenSora
from kinema.families.opensora.training.captions import completed_v1, completed_v2, values
from kinema.families.opensora.v1 import model as first_model
from kinema.families.opensora.v1.config import Config as Config1
from kinema.families.opensora.v1.model import OpenSora1
from kinema.system import Batch, OpenedModel

DROP_EACH = 0.1**0.5
"""2.0: share of T5's states, and of CLIP's embeddings, that become those of no prompt: 0.316; both of them in 0.1."""
STATES, POOLED, TOKENS, EMPTY = "states", "pooled", "tokens", "empty_"
"""Names of precomputed text; `EMPTY` begins those of no prompt."""

# ------------------------------------------------------------------------------------------ 2.0


def of_second(network: OpenSora, config: Config2, batch: Batch, generator: Generator) -> tuple[Tensor, Tensor]:
    """``(states B×M×F, pooled B×F)``, each of which is dropped for itself."""
    shown = _shown(network, config, batch)
    empty = _nothing(network, config, batch)
    device = network.transformer.img_in.weight.device
    found = []
    for text, null in zip(shown, empty, strict=True):
        drop_B = batch.own(torch.rand(batch.count, generator=generator) < DROP_EACH) & batch.drops
        drop = drop_B.reshape(-1, *(1,) * (text.ndim - 1)).to(device)
        found.append(torch.where(drop, null.to(device), text.to(device)))
    states, pooled = found
    return states, pooled


def _shown(network: OpenSora, config: Config2, batch: Batch) -> tuple[Tensor, Tensor]:
    if batch.encoded is not None and STATES in batch.encoded:
        return batch.encoded[STATES], batch.encoded[POOLED]
    size = len(batch.captions), batch.mask.shape[2]
    about = zip(batch.captions, values(batch.fps, *size), values(batch.motion, *size), strict=True)
    return training_text(network, config, replace(batch, captions=[completed_v2(*each) for each in about]))


def _nothing(network: OpenSora, config: Config2, batch: Batch) -> tuple[Tensor, Tensor]:
    if batch.encoded is not None and STATES in batch.encoded:
        return batch.encoded[EMPTY + STATES], batch.encoded[EMPTY + POOLED]
    return training_text(network, config, replace(batch, captions=[""]))


# ------------------------------------------------------------------------------------ 1.0 to 1.3


def of_first(network: OpenSora1, config: Config1, batch: Batch, dropped_B: Tensor) -> tuple[Tensor, Tensor]:
    """``(states B×M×F, mask B×M)``. A dropped prompt is the null text under its own mask, as published."""
    device = next(network.transformer.parameters()).device
    if batch.encoded is not None and STATES in batch.encoded:
        states, mask = batch.encoded[STATES], batch.encoded[TOKENS].bool()
    else:
        motion = values(batch.motion, len(batch.captions), batch.mask.shape[2])
        completed = [completed_v1(config.version, *each) for each in zip(batch.captions, motion, strict=True)]
        if config.words:
            states, mask = first_model.read_words(network, config, completed)
        else:
            place = t5.Place(batch.weights, device, batch.encoders)
            states, mask = t5.encode_masked(completed, config.stdit.tokens, config.stdit.text, place, ignore)
    states = states.to(device)
    null = network.transformer.y_embedder.null(*states.shape[:2]).to(states)
    return torch.where(dropped_B[:, None, None].to(device), null, states), mask.to(device)


# ------------------------------------------------------------------------------------ beforehand


def beforehand(
    system: OpenedModel, captions: Sequence[str], fps: Sequence[float | None], motion: Sequence[float | None]
) -> list[Mapping[str, Tensor]]:
    """What T5 and CLIP make of each caption, under the names that the loss reads; nothing for a model of own words."""
    config = system.config
    if config.words:
        return [{} for _ in captions]
    place = t5.Place(system.weights.place, system.device, system.weights.outside)
    if config.frames == 1:
        fps = motion = [None] * len(captions)
    if isinstance(config, Config1):
        completed = [completed_v1(config.version, *each) for each in zip(captions, motion, strict=True)]
        states, mask = t5.encode_masked(completed, config.stdit.tokens, config.stdit.text, place, ignore)
        return [{STATES: each, TOKENS: kept} for each, kept in zip(states, mask, strict=True)]
    completed = [completed_v2(*each) for each in zip(captions, fps, motion, strict=True)]
    widths = (config.transformer.text, config.transformer.vector)
    states, pooled = t5.encode(completed, config.text_length, widths, place, ignore)
    return [{STATES: each, POOLED: vector} for each, vector in zip(states, pooled, strict=True)]
