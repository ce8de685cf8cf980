"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """``shadow <- d * shadow + (1 - d) * weights`` with d = min(decay, (1 + n) / (10 + n)) at update n.

    The ramp keeps the random start from lingering in a short run (it is the one of TensorFlow's
    ExponentialMovingAverage with ``num_updates``).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow: dict[str, Tensor] = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        d = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        ours, theirs = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                ours.append(self.shadow[name])
                theirs.append(value.detach())
            else:
                self.shadow[name].copy_(value)
        torch._foreach_lerp_(ours, theirs, 1 - d)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights and is in eval mode; afterwards its own again, to the bit."""
        own = {k: v.detach().clone() for k, v in model.state_dict().items()}
        model.load_state_dict(self.shadow)
        model.eval()
        try:
            yield
        finally:
            model.load_state_dict(own)
            model.train()
