"""Training runs of shipped weights: which runs a file needs, and how references in options are filled in."""

from __future__ import annotations

from pathlib import Path

from kinema.system.legs import ShippedRun, ShippedRuns

SHIPPED = ShippedRuns(
    {
        "base": ShippedRun({"model": "family/pocket"}),
        "aside": ShippedRun({"model": "{base}"}),
        "motion": ShippedRun({"model": "{base}", "steps": 3}, "motion.safetensors"),
        "lora": ShippedRun({"model": "family/other", "add": "motion={motion}"}),
    },
    {"whole": "base", "moves": "lora"},
)


def test_a_file_needs_its_run_and_all_earlier_runs_it_builds_on_in_order():
    assert list(SHIPPED.towards("moves")) == ["base", "motion", "lora"]
    assert list(SHIPPED.towards("whole")) == ["base"]


def test_references_become_files_and_other_options_are_unchanged():
    files = {"base": Path("a/{x}.safetensors"), "motion": Path("m.safetensors")}
    assert SHIPPED.legs["lora"].filled(files) == {"model": "family/other", "add": "motion=m.safetensors"}
    assert SHIPPED.legs["motion"].filled(files) == {"model": "a/{x}.safetensors", "steps": 3}
