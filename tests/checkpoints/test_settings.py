"""Configs made of what a stranger's file says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from kinema import registry
from kinema.checkpoints.settings import LONGEST, MOST, build_config, checked, readable
from kinema.schema import BadRequest


@dataclass(frozen=True)
class Inner:
    width: int = 4


@dataclass(frozen=True)
class Sizes:
    layers: int = 2
    extra: int = 0
    widths: tuple[int, ...] = (8, 16)
    pair: tuple[str, float] = ("a", 1.0)
    kind: Literal["x", "y"] = "x"
    inner: Inner | None = None
    on: bool = False
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.layers == 13:
            raise ValueError("thirteen")


def test_lists_and_tables_of_json_become_the_tuples_and_dataclasses_of_the_config() -> None:
    told = {"widths": [1, 2], "pair": ["b", 2], "inner": {"width": 3}, "extra": 0}
    assert build_config(Sizes, told, "it") == Sizes(widths=(1, 2), pair=("b", 2), inner=Inner(3))


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"layers": 10**9}, "layers in it is 1000000000; expected a whole number from 1"),
        ({"layers": 0}, "expected a whole number from 1"),
        ({"layers": True}, "layers in it is True"),
        ({"layers": "\x1b[2J" * 10**6}, "layers in it is '"),
        ({"extra": -1}, "expected a whole number from 0"),
        ({"widths": [1] * (LONGEST + 1)}, f"has {LONGEST + 1} entries"),
        ({"widths": 7}, "expected a list"),
        ({"widths": [[1]]}, "expected a whole number"),
        ({"pair": ["a"]}, "expected 2 values"),
        ({"kind": "z"}, "expected 'x' or 'y'"),
        ({"kind": ["x"]}, "expected 'x' or 'y'"),
        ({"inner": {"width": MOST + 1}}, "width in inner in it"),
        ({"inner": 5}, "expected a table"),
        ({"on": 1}, "expected true or false"),
        ({"rate": float("inf")}, "expected a number"),
        ({"nope\x1b": 1}, "does not know"),
        ({"layers": 13}, "do not go together: 'thirteen'"),
        ([1], "expected a table of settings"),
    ],
)
def test_a_setting_that_no_model_has_is_one_short_sentence(told: Any, sentence: str) -> None:
    with pytest.raises(BadRequest) as refused:
        build_config(Sizes, told, "it")
    assert sentence in str(refused.value)
    assert len(str(refused.value)) < 300
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_every_preset_passes_and_survives_json(name: str) -> None:
    family = registry.family(name)
    for config in family.presets.values():
        assert checked(config, "it") == config
        assert family.from_json(json.loads(json.dumps(family.to_json(config)))) == config


@pytest.mark.parametrize(
    "error", [KeyError("a"), IndexError(), ValueError("x" * 10**6), ZeroDivisionError(), TypeError()]
)
def test_whatever_a_strangers_names_and_shapes_lead_to_is_one_sentence(error: Exception) -> None:
    with pytest.raises(BadRequest, match="it is damaged") as refused, readable("it"):
        raise error
    assert len(str(refused.value)) < 300
