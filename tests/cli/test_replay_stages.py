"""Clips of two stages on the command line: made, replayed, inspected and planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kinema import registry
from kinema.checkpoints import files
from kinema.cli import plan
from kinema.cli.main import main
from kinema.cli.requirements import wants_of
from kinema.events import Phase, Step
from kinema.media.metadata import read_recipe
from kinema.schema import BadRequest, Clip, Request

MAKE = ("generate", "a red ball", "--model", "vdm/tiny", "--steps", "1", "--frames", "4", "--seed", "3", "--quiet")
Said = Callable[..., tuple[int, str]]


def saved(path: Path, seed: int) -> Path:
    """The weights of a model of 9×32×32, in a file."""
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
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip whose second model ships, one whose second model is a file, and that file and another."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("made")
    own = saved(folder / "secret" / "large.safetensors", 1)
    saved(folder / "other" / "large.safetensors", 2)
    for name, upper, more in (("ships.mp4", "zoetrope", ()), ("file.mp4", str(own), ("--record-paths",))):
        assert main([*MAKE, "--super-resolution", upper, "-o", str(folder / name), *more]) == 0
    return folder


@pytest.fixture
def replayed(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Replay a clip of the folder: (exit code, what was said)."""

    def run(clip: str, *words: str, upper: str = "") -> tuple[int, str]:
        named = ("--super-resolution", upper if upper == "zoetrope" else str(made / upper)) if upper else ()
        code = main(["replay", str(made / clip), "-o", str(tmp_path / "again.mp4"), *named, *words])
        return code, capsys.readouterr().err

    return run


def recipe_of(path: Path) -> dict[str, Any]:
    return deepcopy(dict(read_recipe(path)))


def test_a_clip_whose_second_model_ships_is_replayed_to_the_bit(replayed: Said) -> None:
    code, said = replayed("ships.mp4")
    assert code == 0, said
    assert "are identical to" in said


def test_a_second_model_from_a_file_is_named_without_its_folder_and_given_again(made: Path, replayed: Said) -> None:
    told = recipe_of(made / "file.mp4")
    paths = told.pop("paths")
    assert "secret" not in json.dumps(told)
    assert told["stages"][1]["request"]["super_resolution"] == told["stages"][1]["model"] == "large.safetensors"
    assert paths == {"super_resolution": str(made / "secret" / "large.safetensors")}
    code, said = replayed("file.mp4")
    assert code == 2
    assert "was made from large.safetensors, which a replay does not look for" in said
    assert "--super-resolution PATH" in said
    code, said = replayed("file.mp4", upper="secret/large.safetensors")
    assert code == 0, said
    assert "are identical to" in said


def test_other_weights_of_the_second_stage_are_said_where_the_user_names_them(replayed: Said) -> None:
    code, said = replayed("file.mp4", upper="other/large.safetensors")
    assert code == 0, said
    assert "other weights than the clip's in the second stage" in said
    assert "are not identical to" in said


def test_other_weights_of_the_second_stage_are_refused_where_the_user_does_not(made: Path, replayed: Said) -> None:
    told = recipe_of(made / "ships.mp4")
    told["stages"][1]["weights"] = "sha256:" + 64 * "0"
    Clip(torch.zeros(1, 3, 2, 16, 16), recipe=told).save(made / "damaged.mp4")
    code, said = replayed("damaged.mp4", "--overwrite")
    assert code == 2
    assert "the weights of the second stage are not those the clip was made with" in said
    assert "pass --super-resolution to name the file" in said
    code, said = replayed("damaged.mp4", upper="zoetrope")
    assert code == 0, said
    assert "other weights than the clip's in the second stage" in said


def test_a_second_model_is_refused_for_a_clip_of_one_stage(made: Path, replayed: Said) -> None:
    told = recipe_of(made / "ships.mp4")
    del told["stages"][1]
    Clip(torch.zeros(1, 3, 2, 16, 16), recipe=told).save(made / "single.mp4")
    code, said = replayed("single.mp4", upper="zoetrope")
    assert code == 2
    assert "single.mp4 was made in one stage: leave --super-resolution out" in said


def test_stages_of_other_pictures_are_refused(made: Path) -> None:
    told = recipe_of(made / "ships.mp4")
    same, other = (Request(task="animate", image=name) for name in ("a.png", "/etc/passwd"))
    wants = wants_of(told, [same, same])
    assert [want.name for want in wants.inputs] == ["a.png"]
    for requests in ([same, other], [same, Request()], [Request(), other]):
        with pytest.raises(BadRequest, match="its stages are of other pictures or clips"):
            wants_of(told, requests)


def test_inspect_shows_each_stage_as_a_table(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(made / "ships.mp4")]) == 0
    lines = capsys.readouterr().out.splitlines()
    one, two = lines.index("  stage 1"), lines.index("  stage 2")
    for lines_of, model in ((lines[one:two], "vdm/tiny"), (lines[two:], "zoetrope")):
        assert f"    {'model':<16} {model}" in lines_of
        assert any(line.startswith("    block 1") and "start 0" in line for line in lines_of)
        assert "    request" in lines_of
    assert f"      {'factor':<16} 4" in lines[two:]


PLAN = ("plan", *MAKE[1:-1], "--super-resolution", "zoetrope")


def test_a_plan_tells_of_both_stages_and_adds_up_their_times(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_measure", lambda *_: plan.Cost(a_step=(0.5, 2.0), around=1.0, calls=6))
    words = [*PLAN[:5], "3", *PLAN[6:]]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == "vdm/tiny then zoetrope"
    assert told["size"] == "1 × 4 frames of 64×64 at 8 fps"
    assert told["latent"] == "1×3×4×16×16 then 1×3×4×64×64"
    assert told["sampling"] == "ddim, 3 steps, guidance 2, then vdm-ancestral, 3 steps, guidance 2"
    assert (told["seconds"], told["seconds_a_step"]) == (1 + 3 * 0.5 + 3 * 2.0, 2.5)
    assert [(stage["stage"], stage["model"]) for stage in told["stages"]] == [
        ("base", "vdm/tiny"),
        ("super-resolution", "zoetrope"),
    ]
    assert "time: 3 × 0.5 s + 3 × 2 s + 1 s, timed just now over 1 and 3 steps" in told["reasons"]
    counts = [sum(p.numel() for p in system.model.parameters()) for system in opened()]
    assert told["parameters"] == sum(counts)


def opened() -> list[Any]:
    from kinema.system import open_system

    return [open_system(name) for name in ("vdm/tiny", "zoetrope")]


def test_a_plan_counts_the_calls_of_both_networks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    large = saved(tmp_path / "models" / "large.safetensors", 1)
    words = [*PLAN[:5], "5", *PLAN[6:-1], str(large), "--guidance", "1"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["network_calls"] == 10
    assert told["seconds"] > 0


def test_each_stage_has_its_share_of_the_time_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 2.0, 10.0, 13.0, 16.0])
    monkeypatch.setattr(plan.time, "perf_counter", lambda: next(now))
    clock = plan.Clock()
    for _ in range(2):
        clock(Phase("load"))
        for index in (1, 2, 3):
            clock(Step(index, 3, 0.0))
    assert clock.shares() == [0.25, 0.75]
