"""What a call needs, told from shapes alone."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from kinema.memory.rehearsal import Rehearsal

MB = 2**20


def peak(call, networks=None):
    told = Rehearsal(networks or {})
    with torch.no_grad(), told.phase("it"):
        call()
    return told.phases["it"].peak


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, device="meta", dtype=dtype)


def test_the_peak_is_what_lives_at_once():
    x = meta(MB // 4)  # a MiB, made outside: not counted
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


def test_half_precision_takes_half():
    x = meta(MB // 4)
    assert peak(lambda: x.half()) == MB // 2


def test_fused_attention_makes_no_matrix_of_all_pairs():
    q = meta(1, 1, 4096, 64)
    assert peak(lambda: F.scaled_dot_product_attention(q, q, q)) < 4 * q.nbytes


def test_a_number_read_off_a_tensor_stops_nothing():
    def call():
        words = int(meta(3, 8).sum(1).max())
        return meta(4, words) if bool((meta(2) > 0).all()) else meta(1)

    assert peak(call) > 0


def test_each_phase_has_its_own_peak_and_counts_what_still_lives():
    told = Rehearsal({})
    with told.phase("first"):
        kept = meta(MB // 4) + 1
    with told.phase("second"):
        (meta(MB // 4) + 1) * 2
    assert told.phases["first"].peak >= MB
    assert told.phases["second"].peak >= 3 * MB
    del kept
    with told.phase("third"):
        meta(10) + 1
    assert told.phases["third"].peak < MB


def test_gradients_are_counted():
    x = meta(MB // 4).requires_grad_(True)
    told = Rehearsal({})
    with told.phase("with"):
        torch.autograd.grad(x.sin().cos().exp().sum(), x)
    assert told.phases["with"].peak >= 3 * MB > peak(lambda: x.detach().sin_())


def test_it_says_which_networks_ran():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)

    with torch.device("meta"):
        model = Holder()
    told = Rehearsal(dict(model.named_children()))
    with told.phase("only a"):
        model.a[0](meta(1, 2))
    assert told.phases["only a"].networks == {"a"}
