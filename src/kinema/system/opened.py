"""What a family may use of an opened model."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kinema.checkpoints.lora_use import Loras
from kinema.diffusion.schedules import NoiseLevel
from kinema.schema import Request
from kinema.system.weights import Weights


class OpenedModel(Protocol):
    """The part of an opened model (`kinema.system.System`) that a family may use."""

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> Any: ...

    @property
    def weights(self) -> Weights: ...

    @property
    def model(self) -> nn.Module:
        """The network on its device; weights are loaded on first access."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision the network computes in."""

    @property
    def loras(self) -> Loras:
        """The active LoRAs."""

    @property
    def offline(self) -> bool:
        """Whether text encoders and vocabularies must be found on this machine, without downloads."""

    def levels(self, request: Request) -> NoiseLevel:
        """Return the ``steps + 1`` noise levels of a run, noisiest first."""

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """Encode pixels in [-1, 1] to latents on the model's device."""
