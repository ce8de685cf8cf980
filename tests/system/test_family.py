"""The protocols of a family are small, and families implement them completely."""

from __future__ import annotations

from typing import get_type_hints

import pytest

from kinema import registry
from kinema.checkpoints.convert import Layouts
from kinema.system.family import Family, OpenedModel, Sampling
from kinema.system.files import Checkpoints, Slots
from kinema.system.training import Training, Tuning


def members(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")} | set(get_type_hints(protocol))


@pytest.mark.parametrize("protocol", [Family, Sampling, Checkpoints, Slots, Layouts, Training, Tuning, OpenedModel])
def test_no_protocol_of_a_family_has_more_than_twelve_members(protocol: type) -> None:
    assert 0 < len(members(protocol)) <= 12


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_optional_protocols_are_implemented_completely(name: str) -> None:
    family = registry.family(name)
    implemented = {
        Slots: family.checkpoints.slots,
        Layouts: family.checkpoints.layouts,
        Tuning: family.training.tuning,
    }
    missing = {p.__name__: members(p) - set(dir(part)) for p, part in implemented.items() if part is not None}
    assert not any(missing.values()), missing
