"""Clips with a super-resolution stage on the command line: generated, replayed, inspected and planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kinema import forecast, registry
from kinema.checkpoints import files
from kinema.cli.main import main
from kinema.cli.requirements import requirements_of
from kinema.events import Phase, Step
from kinema.media.metadata import read_recipe
from kinema.schema import BadRequest, Clip, Request

MAKE = ("generate", "a red ball", "--model", "vdm/tiny", "--steps", "1", "--frames", "4", "--seed", "3", "--quiet")
Replay = Callable[..., tuple[int, str]]


def saved(path: Path, seed: int) -> Path:
    """Save the weights of a model of 9×32×32."""
    family = registry.family("vdm")
    config = replace(family.presets["tiny"], frames=9, side=32, attention_sides=(8, 16))
    torch.manual_seed(seed)
    model = family.build(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    path.parent.mkdir(exist_ok=True)
    files.write_tensors(
        path, model.state_dict(), {"kinema": json.dumps({"family": "vdm", "config": family.to_json(config)})}
    )
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip whose second model ships, one whose second model is a file, that file, and another file."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("clips")
    own = saved(folder / "secret" / "large.safetensors", 1)
    saved(folder / "other" / "large.safetensors", 2)
    for name, second, more in (("ships.mp4", "zoetrope", ()), ("file.mp4", str(own), ("--record-paths",))):
        assert main([*MAKE, "--super-resolution", second, "-o", str(folder / name), *more]) == 0
    return folder


@pytest.fixture
def replayed(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Replay:
    """Replay a clip of the folder: (exit code, stderr)."""

    def run(clip: str, *words: str, second: str = "") -> tuple[int, str]:
        named = ("--super-resolution", second if second == "zoetrope" else str(clips / second)) if second else ()
        code = main(["replay", str(clips / clip), "-o", str(tmp_path / "again.mp4"), *named, *words])
        return code, capsys.readouterr().err

    return run


def recipe_of(path: Path) -> dict[str, Any]:
    return deepcopy(dict(read_recipe(path)))


def test_a_clip_whose_second_model_ships_is_replayed_bit_for_bit(replayed: Replay) -> None:
    code, err = replayed("ships.mp4")
    assert code == 0, err
    assert "are identical to" in err


def test_a_second_model_from_a_file_is_recorded_by_name_and_must_be_given(clips: Path, replayed: Replay) -> None:
    recipe = recipe_of(clips / "file.mp4")
    paths = recipe.pop("paths")
    assert "secret" not in json.dumps(recipe)
    assert recipe["stages"][1]["request"]["super_resolution"] == recipe["stages"][1]["model"] == "large.safetensors"
    assert paths == {"super_resolution": str(clips / "secret" / "large.safetensors")}
    code, err = replayed("file.mp4")
    assert code == 2
    assert "replaying file.mp4 needs large.safetensors" in err
    assert "--super-resolution PATH" in err
    code, err = replayed("file.mp4", second="secret/large.safetensors")
    assert code == 0, err
    assert "are identical to" in err


def test_other_weights_of_the_second_stage_are_reported_if_the_user_names_them(replayed: Replay) -> None:
    code, err = replayed("file.mp4", second="other/large.safetensors")
    assert code == 0, err
    assert "the weights of the super-resolution model are not those of the clip" in err
    assert "are not identical to" in err


def test_other_weights_of_the_second_stage_are_refused_otherwise(clips: Path, replayed: Replay) -> None:
    recipe = recipe_of(clips / "ships.mp4")
    recipe["stages"][1]["weights"] = "sha256:" + 64 * "0"
    Clip(torch.zeros(1, 3, 2, 16, 16), recipe=recipe).save(clips / "damaged.mp4")
    code, err = replayed("damaged.mp4", "--overwrite")
    assert code == 2
    assert "the weights of the super-resolution model are not those the clip was generated with" in err
    assert "pass --super-resolution to name the file" in err
    code, err = replayed("damaged.mp4", second="zoetrope")
    assert code == 0, err
    assert "the weights of the super-resolution model are not those of the clip" in err


def test_a_second_model_is_refused_for_a_single_stage_clip(clips: Path, replayed: Replay) -> None:
    recipe = recipe_of(clips / "ships.mp4")
    del recipe["stages"][1]
    Clip(torch.zeros(1, 3, 2, 16, 16), recipe=recipe).save(clips / "single.mp4")
    code, err = replayed("single.mp4", second="zoetrope")
    assert code == 2
    assert "single.mp4 has no super-resolution stage; omit --super-resolution" in err


def test_stages_with_different_images_are_refused(clips: Path) -> None:
    recipe = recipe_of(clips / "ships.mp4")
    same, other = (Request(task="animate", image=name) for name in ("a.png", "/etc/passwd"))
    requirements = requirements_of(recipe, [same, same])
    assert [each.name for each in requirements.inputs] == ["a.png"]
    for requests in ([same, other], [same, Request()], [Request(), other]):
        with pytest.raises(BadRequest, match="its stages have different images or clips"):
            requirements_of(recipe, requests)


def test_inspect_prints_each_stage(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(clips / "ships.mp4")]) == 0
    lines = capsys.readouterr().out.splitlines()
    one, two = lines.index("  stage 1"), lines.index("  stage 2")
    for lines_of, model in ((lines[one:two], "vdm/tiny"), (lines[two:], "zoetrope")):
        assert f"    {'model':<16} {model}" in lines_of
        assert any(line.startswith("    block 1") and "start 0" in line for line in lines_of)
        assert "    request" in lines_of
    assert f"      {'factor':<16} 4" in lines[two:]


PLAN = ("plan", *MAKE[1:-1], "--super-resolution", "zoetrope")


def test_a_forecast_covers_both_stages_and_adds_up_their_times(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "_measure", lambda *_: forecast.Cost(a_step=(0.5, 2.0), around=1.0, calls=6))
    words = [*PLAN[:5], "3", *PLAN[6:]]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == "vdm/tiny then zoetrope"
    assert result["size"] == "1 × 4 frames of 64×64 at 8 fps"
    assert result["latent"] == "1×3×4×16×16 then 1×3×4×64×64"
    assert result["sampling"] == "ddim, 3 steps, guidance 2, then vdm-ancestral, 3 steps, guidance 2"
    assert (result["seconds"], result["seconds_a_step"]) == (1 + 3 * 0.5 + 3 * 2.0, 2.5)
    assert [(stage["stage"], stage["model"]) for stage in result["stages"]] == [
        ("base", "vdm/tiny"),
        ("super-resolution", "zoetrope"),
    ]
    assert "time: 3 × 0.5 s + 3 × 2 s + 1 s, measured just now over 1 and 3 steps" in result["reasons"]
    counts = [sum(p.numel() for p in system.model.parameters()) for system in opened()]
    assert result["parameters"] == sum(counts)


def opened() -> list[Any]:
    from kinema.system import open_system

    return [open_system(name) for name in ("vdm/tiny", "zoetrope")]


def test_a_forecast_counts_the_calls_of_both_networks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    large = saved(tmp_path / "models" / "large.safetensors", 1)
    words = [*PLAN[:5], "5", *PLAN[6:-1], str(large), "--guidance", "1"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["network_calls"] == 10
    assert result["seconds"] > 0


def test_each_stage_gets_its_share_of_the_time_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 2.0, 10.0, 13.0, 16.0])
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: next(now))
    clock = forecast.StepClock()
    for _ in range(2):
        clock(Phase("load"))
        for index in (1, 2, 3):
            clock(Step(index, 3, 0.0))
    assert clock.shares() == [0.25, 0.75]
