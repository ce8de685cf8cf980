"""Weights that ship, trained from scratch: which runs make them, and that these follow one another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kinema import registry
from kinema.checkpoints import files
from kinema.events import Note
from kinema.schema import BadRequest
from kinema.system.legs import Leg, Shipped
from kinema.training import shipped

TOLD = {"batch": 1, "validate_every": 0, "sample_every": 0}
LEGS = {
    "first": Leg({"model": "zoetrope/tiny", "steps": 2}),
    "second": Leg({"model": "{first}", "steps": 1, "seed": 3}),
}


@pytest.fixture
def small(monkeypatch):
    """Two short runs in place of what ships."""
    resolve = registry.resolve
    monkeypatch.setattr(registry, "SHIPPED", {"zoetrope": "here:SMALL"})
    monkeypatch.setattr(registry, "resolve", lambda target: SMALL if target == "here:SMALL" else resolve(target))


SMALL = Shipped(LEGS, {"small": "second"})


def test_every_file_that_ships_is_told_how_to_be_made():
    told = [name for target in registry.SHIPPED.values() for name in registry.resolve(target).files]
    assert sorted(told) == sorted([*registry.EMBEDDED, *registry.PARTS])


@pytest.mark.parametrize("name", [*registry.EMBEDDED, *registry.PARTS])
def test_runs_stand_in_folders_of_their_own_and_take_what_earlier_ones_made(name):
    runs = shipped.plan(name, {"out": "made", "batch": 2, "seed": 10})
    made = set()
    for leg, run in runs.items():
        assert (run.options.out, run.options.batch) == (f"made/{leg}", 2)
        assert run.options.seed >= 10
        taken = [run.grown_from or run.options.model, (run.options.add or "").partition("=")[2]]
        assert {str(file) for file in taken if "safetensors" in str(file)} <= made
        made.add(str(run.made))


def test_a_camera_lora_needs_every_leg_of_its_motion_module():
    legs = list(shipped.plan("animatediff-pocket-pans-left", {}))
    assert legs == ["base", "moved", "panned", "filmed", "zoomed", "motion", "left"]


def test_runs_are_listed_as_commands():
    lines = shipped.lines("svd-pocket", {"steps": 2, "compile": True})
    assert lines[1] == (
        "kinema train runs/svd-pocket/codec/model.safetensors --out runs/svd-pocket/playroom --steps 2 "
        "--stage playroom --compile"
    )
    assert shipped.lines("zoetrope", {})[1].startswith("# runs/zoetrope/sprite-start.safetensors is grown from ")


@pytest.mark.parametrize(
    ("name", "told", "part"),
    [("svd-pockt", {}, "did you mean svd-pocket"), ("svd-pocket", {"stage": "codec"}, "stage is set by the runs")],
)
def test_what_does_not_ship_and_options_of_the_runs_are_refused(name, told, part):
    with pytest.raises(BadRequest, match=part):
        shipped.plan(name, told)


@pytest.mark.usefixtures("small")
def test_the_file_is_what_the_last_run_made_and_a_second_call_makes_it_again(tmp_path):
    heard = []
    told = {**TOLD, "out": str(tmp_path)}
    made = shipped.train_shipped("small", told, heard.append)
    assert made.weights == tmp_path / "small.safetensors"
    assert made.weights.read_bytes() == (tmp_path / "second/model.safetensors").read_bytes()
    assert files.weight_hash(made.weights) != files.weight_hash(tmp_path / "first/model.safetensors")
    assert [e.message for e in heard if isinstance(e, Note)][0] == "small: first, run 1 of 2"
    before = made.weights.read_bytes()
    made.weights.unlink()
    again = shipped.train_shipped("small", told)
    assert (again.step, again.weights.read_bytes()) == (1, before)


@pytest.mark.usefixtures("small")
def test_an_interrupted_run_is_the_last(tmp_path, monkeypatch):
    train, begun = shipped.train, []

    def interrupted(options, on_event):
        begun.append(Path(options.out).name)
        return replace(train(options, on_event), interrupted=True)

    monkeypatch.setattr(shipped, "train", interrupted)
    result = shipped.train_shipped("small", {**TOLD, "out": str(tmp_path)})
    assert result.interrupted
    assert begun == ["first"]
    assert not (tmp_path / "small.safetensors").exists()


@pytest.mark.usefixtures("small")
def test_a_model_is_grown_once_from_what_the_leg_names(tmp_path, monkeypatch):
    asked = []

    def grow(base, out, on_event):
        asked.append((base, out))
        out.write_bytes(base.read_bytes())

    monkeypatch.setitem(LEGS, "second", replace(LEGS["second"], grow=grow))
    for _ in range(2):
        shipped.train_shipped("small", {**TOLD, "out": str(tmp_path)})
    assert asked == [(tmp_path / "first/model.safetensors", tmp_path / "second-start.safetensors")]
