"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """``shadow <- d * shadow + (1 - d) * weights`` with d = min(decay, (1 + n) / (10 + n)) at update n.

    The ramp keeps the initial weights from lingering in a short run (as TensorFlow's ExponentialMovingAverage
    with ``num_updates``). ``names`` are the tensors to average (None: all); frozen tensors need no average.
    """

    def __init__(self, model: nn.Module, decay: float, names: Iterable[str] | None = None) -> None:
        self.decay = decay
        self.updates = 0
        weights = model.state_dict()
        self.shadow: dict[str, Tensor] = {k: weights[k].detach().clone() for k in (weights if names is None else names)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        d = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        weights = model.state_dict()
        averages, targets = [], []
        for name, shadow in self.shadow.items():
            if shadow.is_floating_point():
                averages.append(shadow)
                targets.append(weights[name].detach())
            else:
                shadow.copy_(weights[name])
        torch._foreach_lerp_(averages, targets, 1 - d)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Context in which the model has the averaged weights, in eval mode; its own are restored bit-exactly."""
        weights = model.state_dict()
        own = {k: weights[k].detach().clone() for k in self.shadow}
        model.load_state_dict(self.shadow, strict=False)
        model.eval()
        try:
            yield
        finally:
            model.load_state_dict(own, strict=False)
            model.train()
