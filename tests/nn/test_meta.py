"""Networks on the meta device, and the size limits of configs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kinema
from kinema.nn import meta as module
from kinema.nn.meta import on_meta, placed
from kinema.schema import BadRequest


def test_a_network_with_too_many_tensors_is_rejected_while_being_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TENSORS", 10)
    built: list[nn.Module] = []
    with pytest.raises(BadRequest, match="more than 10 weight tensors"), on_meta():
        built.extend(nn.Linear(2, 2) for _ in range(100))
    assert len(built) == 5


def test_a_network_with_too_many_parameters_is_rejected() -> None:
    with pytest.raises(BadRequest, match="parameters"), on_meta():
        nn.Linear(2**20, 2**20)


def test_counting_ends_with_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TENSORS", 2)
    with on_meta():
        nn.Linear(1, 1)
    for _ in range(3):
        nn.Linear(1, 1)


def test_sizes_that_cannot_be_built_are_reported_in_one_sentence() -> None:
    with pytest.raises(BadRequest, match="no network can be built from this config"), on_meta():
        nn.GroupNorm(3, 4)


def test_a_table_is_not_computed_on_the_meta_device() -> None:
    with on_meta():
        assert placed((3, 10**9), lambda: pytest.fail("it was computed")).shape == (3, 10**9)
    assert placed((2,), lambda: torch.arange(2.0)).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("zoetrope/tiny", {"depth": 10**6}),
        ("zoetrope/tiny", {"heads": 0}),
        ("vdm/tiny", {"channels": 10**9}),
        ("vdm/tiny", {"multipliers": [1] * 10**6}),
        ("svd/tiny", {"clip_layers": 10**6}),
        ("animatediff/tiny", {"channels": [2**20, 2**20]}),
        ("animatediff/tiny", {"text": [{"layers": 10**8}]}),
        ("svd/tiny", {"fps": "seven"}),
        ("svd/tiny", {"nope": 1}),
    ],
)
def test_invalid_overrides_are_rejected_at_opening(model: str, overrides: dict[str, object]) -> None:
    with pytest.raises(BadRequest) as error:
        kinema.load(model, overrides=overrides)
    assert len(str(error.value)) < 300
