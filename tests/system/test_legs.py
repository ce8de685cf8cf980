"""Legs of a training: which a file needs, and what stands in their options."""

from __future__ import annotations

from pathlib import Path

from kinema.system.legs import Leg, Shipped

SHIPPED = Shipped(
    {
        "base": Leg({"model": "family/pocket"}),
        "aside": Leg({"model": "{base}"}),
        "motion": Leg({"model": "{base}", "steps": 3}, "motion.safetensors"),
        "lora": Leg({"model": "family/other", "add": "motion={motion}"}),
    },
    {"whole": "base", "moves": "lora"},
)


def test_a_file_needs_its_leg_and_all_that_go_into_it_in_order():
    assert list(SHIPPED.towards("moves")) == ["base", "motion", "lora"]
    assert list(SHIPPED.towards("whole")) == ["base"]


def test_files_of_earlier_legs_stand_in_options_and_the_rest_is_as_told():
    files = {"base": Path("a/{x}.safetensors"), "motion": Path("m.safetensors")}
    assert SHIPPED.legs["lora"].filled(files) == {"model": "family/other", "add": "motion=m.safetensors"}
    assert SHIPPED.legs["motion"].filled(files) == {"model": "a/{x}.safetensors", "steps": 3}
