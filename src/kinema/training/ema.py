"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """``shadow <- d * shadow + (1 - d) * weights`` with d = min(decay, (1 + n) / (10 + n)) at update n.

    The ramp keeps the random start from lingering in a short run (it is the one of TensorFlow's
    ExponentialMovingAverage with ``num_updates``). ``names`` are the tensors averaged (None: all), since those
    that are not trained have no other average than themselves.
    """

    def __init__(self, model: nn.Module, decay: float, names: Iterable[str] | None = None) -> None:
        self.decay = decay
        self.updates = 0
        held = model.state_dict()
        self.shadow: dict[str, Tensor] = {k: held[k].detach().clone() for k in (held if names is None else names)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        d = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        held = model.state_dict()
        ours, theirs = [], []
        for name, shadow in self.shadow.items():
            if shadow.is_floating_point():
                ours.append(shadow)
                theirs.append(held[name].detach())
            else:
                shadow.copy_(held[name])
        torch._foreach_lerp_(ours, theirs, 1 - d)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights and is in eval mode; afterwards its own again, to the bit."""
        held = model.state_dict()
        own = {k: held[k].detach().clone() for k in self.shadow}
        model.load_state_dict(self.shadow, strict=False)
        model.eval()
        try:
            yield
        finally:
            model.load_state_dict(own, strict=False)
            model.train()
