"""The protocols of a family: few members each, and what a family has is whole."""

from __future__ import annotations

from typing import get_type_hints

import pytest

from kinema import registry
from kinema.checkpoints.convert import Layouts
from kinema.system.family import Family, Opened, Sampling
from kinema.system.files import Checkpoints, Slots
from kinema.system.training import Training, Tuning


def members(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")} | set(get_type_hints(protocol))


@pytest.mark.parametrize("protocol", [Family, Sampling, Checkpoints, Slots, Layouts, Training, Tuning, Opened])
def test_no_protocol_of_a_family_has_more_than_twelve_members(protocol: type) -> None:
    assert 0 < len(members(protocol)) <= 12


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_what_a_family_says_it_has_is_all_there(name: str) -> None:
    family = registry.family(name)
    offered = {
        Slots: family.checkpoints.slots,
        Layouts: family.checkpoints.layouts,
        Tuning: family.training.tuning,
    }
    lacks = {p.__name__: members(p) - set(dir(told)) for p, told in offered.items() if told is not None}
    assert not any(lacks.values()), lacks
