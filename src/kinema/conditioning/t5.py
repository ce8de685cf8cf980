"""T5 and CLIP as Open-Sora 2.0 and Flux read prompts: states of T5-XXL and the pooled embedding of CLIP-L."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kinema.schema import OnEvent


@dataclass(frozen=True)
class Place:
    """Where encoders are looked for and run: beside a model's ``weights``, then in the hub's cache."""

    weights: Path | None
    device: torch.device
    offline: bool = False


def encode(prompts: Sequence[str], length: int, place: Place, on_event: OnEvent) -> tuple[Tensor, Tensor]:
    raise NotImplementedError
