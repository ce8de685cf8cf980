"""Peak memory of a call, from shapes only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kinema.memory.rehearsal import Rehearsal, layout

MB = 2**20


def peak(call, networks=None):
    rehearsal = Rehearsal(networks or {})
    with torch.no_grad(), rehearsal.phase("it"):
        call()
    return rehearsal.phases["it"].peak


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, device="meta", dtype=dtype)


def test_the_peak_counts_tensors_alive_at_the_same_time():
    x = meta(MB // 4)  # one MiB created outside: not counted
    assert peak(lambda: x + 1) == MB
    assert peak(lambda: (x + 1) * 2 + 1) == 2 * MB
    assert peak(lambda: [x + 1, x + 2, x + 3]) == 3 * MB
    assert peak(lambda: x.add(1).mul_(2).add_(3)) == MB


def test_views_and_weights_take_nothing():
    with torch.device("meta"):
        layer = nn.Linear(64, 64)
    x = meta(8, 64)
    assert peak(lambda: layer.weight.t()[:8]) == 0
    assert peak(lambda: layer(x)) == 8 * 64 * 4


def test_half_precision_needs_half_the_memory():
    x = meta(MB // 4)
    assert peak(lambda: x.half()) == MB // 2


def test_fused_attention_allocates_no_attention_matrix():
    q = meta(1, 1, 4096, 64)
    assert peak(lambda: F.scaled_dot_product_attention(q, q, q)) < 4 * q.nbytes


def test_item_of_a_meta_tensor_returns_a_value():
    def call():
        words = int(meta(3, 8).sum(1).max())
        return meta(4, words) if bool((meta(2) > 0).all()) else meta(1)

    assert peak(call) > 0


def test_each_phase_has_its_own_peak_and_counts_tensors_still_alive():
    rehearsal = Rehearsal({})
    with rehearsal.phase("first"):
        kept = meta(MB // 4) + 1
    with rehearsal.phase("second"):
        (meta(MB // 4) + 1) * 2
    assert rehearsal.phases["first"].peak >= MB
    assert rehearsal.phases["second"].peak >= 3 * MB
    del kept
    with rehearsal.phase("third"):
        meta(10) + 1
    assert rehearsal.phases["third"].peak < MB


def test_gradients_are_counted():
    x = meta(MB // 4).requires_grad_(True)
    rehearsal = Rehearsal({})
    with rehearsal.phase("with"):
        torch.autograd.grad(x.sin().cos().exp().sum(), x)
    assert rehearsal.phases["with"].peak >= 3 * MB > peak(lambda: x.detach().sin_())


def test_it_records_which_networks_ran():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)

    with torch.device("meta"):
        model = Holder()
    rehearsal = Rehearsal(dict(model.named_children()))
    with rehearsal.phase("only a"):
        model.a[0](meta(1, 2))
    assert rehearsal.phases["only a"].networks == {"a"}


@dataclass(frozen=True, eq=False)
class Condition:
    tensor: Any
    other: Any = None


def test_the_layout_of_a_conditioning_is_its_shapes_types_and_plain_values():
    def of(shape=(2, 3), dtype=torch.float32, fps=8.0):
        return layout(Condition([torch.randn(shape).to(dtype)], {"fps": fps}))

    assert of() == of()
    assert len({of(), of(shape=(3, 2)), of(dtype=torch.float16), of(fps=7.0)}) == 4
    network = nn.Linear(1, 1)
    assert layout(Condition(network)) != layout(Condition(network))  # what it does is unknown
