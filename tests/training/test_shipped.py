"""Reproducing shipped weights: the runs of each file and their order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kinema import registry
from kinema.checkpoints import files
from kinema.events import Note
from kinema.schema import BadRequest
from kinema.system.legs import ShippedRun, ShippedRuns
from kinema.training import shipped

OPTIONS = {"batch": 1, "validate_every": 0, "sample_every": 0}
LEGS = {
    "first": ShippedRun({"model": "zoetrope/tiny", "steps": 2}),
    "second": ShippedRun({"model": "{first}", "steps": 1, "seed": 3}),
}


@pytest.fixture
def small(monkeypatch):
    """Replace the shipped weights by two short runs."""
    resolve = registry.resolve
    monkeypatch.setattr(registry, "SHIPPED", {"zoetrope": "here:SMALL"})
    monkeypatch.setattr(registry, "resolve", lambda target: SMALL if target == "here:SMALL" else resolve(target))


SMALL = ShippedRuns(LEGS, {"small": "second"})


def test_every_shipped_file_has_runs():
    names = [name for target in registry.SHIPPED.values() for name in registry.resolve(target).files]
    assert sorted(names) == sorted([*registry.EMBEDDED, *registry.ADD_ONS])


@pytest.mark.parametrize("name", [*registry.EMBEDDED, *registry.ADD_ONS])
def test_runs_have_separate_folders_and_use_outputs_of_earlier_runs(name):
    runs = shipped.plan(name, {"out": "runs", "batch": 2, "seed": 10})
    outputs = set()
    for leg, run in runs.items():
        assert (run.options.out, run.options.batch) == (f"runs/{leg}", 2)
        assert run.options.seed >= 10
        inputs = [run.grown_from or run.options.model, (run.options.add or "").partition("=")[2]]
        assert {str(file) for file in inputs if "safetensors" in str(file)} <= outputs
        outputs.add(str(run.output))


def test_a_camera_lora_needs_every_run_of_its_motion_module():
    legs = list(shipped.plan("animatediff-pocket-pans-left", {}))
    assert legs == ["base", "moved", "panned", "filmed", "zoomed", "motion", "left"]


def test_runs_are_listed_as_commands():
    lines = shipped.lines("svd-pocket", {"steps": 2, "compile": True})
    assert lines[1] == (
        "kinema train runs/svd-pocket/codec/model.safetensors --out runs/svd-pocket/playroom --steps 2 "
        "--stage playroom --compile --split train-v1"
    )
    assert shipped.lines("zoetrope", {})[1].startswith("# runs/zoetrope/sprite-start.safetensors is grown from ")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [("svd-pockt", {}, "did you mean svd-pocket"), ("svd-pocket", {"stage": "codec"}, "stage is set by the runs")],
)
def test_unknown_files_and_options_of_the_runs_are_refused(name, options, message):
    with pytest.raises(BadRequest, match=message):
        shipped.plan(name, options)


@pytest.mark.usefixtures("small")
def test_the_file_is_the_output_of_the_last_run_and_a_second_call_restores_it(tmp_path):
    heard = []
    options = {**OPTIONS, "out": str(tmp_path)}
    result = shipped.train_shipped("small", options, heard.append)
    assert result.weights == tmp_path / "small.safetensors"
    assert result.weights.read_bytes() == (tmp_path / "second/model.safetensors").read_bytes()
    assert files.weight_hash(result.weights) != files.weight_hash(tmp_path / "first/model.safetensors")
    assert [e.message for e in heard if isinstance(e, Note)][0] == "small: first, run 1 of 2"
    before = result.weights.read_bytes()
    result.weights.unlink()
    again = shipped.train_shipped("small", options)
    assert (again.step, again.weights.read_bytes()) == (1, before)


@pytest.mark.usefixtures("small")
def test_no_run_follows_an_interrupted_one(tmp_path, monkeypatch):
    train, started = shipped.train, []

    def interrupted(options, on_event):
        started.append(Path(options.out).name)
        return replace(train(options, on_event), interrupted=True)

    monkeypatch.setattr(shipped, "train", interrupted)
    result = shipped.train_shipped("small", {**OPTIONS, "out": str(tmp_path)})
    assert result.interrupted
    assert started == ["first"]
    assert not (tmp_path / "small.safetensors").exists()


@pytest.mark.usefixtures("small")
def test_a_model_is_grown_once_from_the_named_file(tmp_path, monkeypatch):
    calls = []

    def grow(base, out, on_event):
        calls.append((base, out))
        out.write_bytes(base.read_bytes())

    monkeypatch.setitem(LEGS, "second", replace(LEGS["second"], grow=grow))
    for _ in range(2):
        shipped.train_shipped("small", {**OPTIONS, "out": str(tmp_path)})
    assert calls == [(tmp_path / "first/model.safetensors", tmp_path / "second-start.safetensors")]


def test_a_preset_that_takes_several_runs_is_trained_by_them_unless_another_run_is_asked_for():
    assert shipped.of_preset({"model": "opensora/pocket", "seed": 1, "steps": 3}) == "opensora-pocket"
    assert shipped.of_preset({"model": "opensora/pocket", "stage": "codec"}) is None
    assert shipped.of_preset({"model": "opensora/tiny"}) is None
    assert shipped.of_preset({}) is None
