"""Configs from untrusted data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from kinema import registry
from kinema.checkpoints.settings import MAX_INTEGER, MAX_LIST, FileFault, build_config, naming_faults, validated
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


def test_json_becomes_tuples_and_dataclasses() -> None:
    data = {"widths": [1, 2], "pair": ["b", 2], "inner": {"width": 3}, "extra": 0}
    assert build_config(Sizes, data, "it") == Sizes(widths=(1, 2), pair=("b", 2), inner=Inner(3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"layers": 10**9}, "layers in it is 1000000000; expected a whole number from 1"),
        ({"layers": 0}, "expected a whole number from 1"),
        ({"layers": True}, "layers in it is True"),
        ({"layers": "\x1b[2J" * 10**6}, "layers in it is '"),
        ({"extra": -1}, "expected a whole number from 0"),
        ({"widths": [1] * (MAX_LIST + 1)}, f"has {MAX_LIST + 1} entries"),
        ({"widths": 7}, "expected a list"),
        ({"widths": [[1]]}, "expected a whole number"),
        ({"pair": ["a"]}, "expected 2 values"),
        ({"kind": "z"}, "expected 'x' or 'y'"),
        ({"kind": ["x"]}, "expected 'x' or 'y'"),
        ({"inner": {"width": MAX_INTEGER + 1}}, "width in inner in it"),
        ({"inner": 5}, "expected a table"),
        ({"on": 1}, "expected true or false"),
        ({"rate": float("inf")}, "expected a number"),
        ({"nope\x1b": 1}, "unknown setting"),
        ({"layers": 13}, "inconsistent values: 'thirteen'"),
        ([1], "expected a table of settings"),
    ],
)
def test_an_invalid_setting_is_refused_in_one_short_line(data: Any, message: str) -> None:
    with pytest.raises(BadRequest) as refused:
        build_config(Sizes, data, "it")
    assert message in str(refused.value)
    assert len(str(refused.value)) < 300
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_every_preset_is_valid_and_survives_json(name: str) -> None:
    family = registry.family(name)
    for config in family.presets.values():
        assert validated(config, "it") == config
        assert family.from_json(json.loads(json.dumps(family.to_json(config)))) == config


@pytest.mark.parametrize(
    "error", [KeyError("a"), IndexError(), ValueError("x" * 10**6), ZeroDivisionError(), TypeError()]
)
def test_errors_from_untrusted_names_and_shapes_become_one_line(error: Exception) -> None:
    with pytest.raises(BadRequest, match="it is damaged") as refused, naming_faults("it"):
        raise error
    assert len(str(refused.value)) < 300


def test_a_fault_in_a_file_gets_its_name() -> None:
    with pytest.raises(BadRequest, match=r"^a\.safetensors lacks x$"), naming_faults("a.safetensors"):
        raise FileFault("lacks x")
