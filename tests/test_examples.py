"""Every example runs, on the tiny preset; one that is not listed here fails."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from kinema.diffusion.samplers import SAMPLERS
from kinema.media.read import read_video

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested_here() -> None:
    elsewhere = {"service"}  # tests/client/test_of_a_service.py, which has a service
    assert {p.stem for p in EXAMPLES.glob("*.py")} == {"six_verbs", "own_sampler"} | elsewhere


def test_six_verbs_write_six_clips(tmp_path: Path) -> None:
    paths = load("six_verbs").main("zoetrope/tiny", str(tmp_path / "clips"))
    assert [p.stem for p in paths] == ["ball", "animate", "interpolate", "extend", "inpaint", "edit"]
    assert [read_video(p).shape.frames for p in paths] == [8, 8, 15, 16, 8, 8]


def test_an_own_sampler_runs_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinema.diffusion.samplers.SAMPLERS", SAMPLERS)
    try:
        assert load("own_sampler").main("zoetrope/tiny") >= 0
    finally:
        SAMPLERS.pop("midpoint", None)
