"""Open-Sora 1.x from the command line: strategies, loops, prompt files, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kinema.cli.main import main
from kinema.media.metadata import read_recipe
from kinema.media.read import read_image, read_video

QUICK = ("--model", "opensora/tiny-1.2", "--steps", "1", "--seed", "5", "--quiet")


@pytest.fixture
def here(media: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.chdir(media)
    return media


def test_a_strategy_with_its_references_is_recorded_and_replayed_to_the_bit(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.mp4"
    strategy = ("--extra", "mask-strategy=0;0,1,0,5,4", "--extra", "reference-path=one.png;clip")
    assert main(["generate", "a red ball", *QUICK, *strategy, "-o", str(out)]) == 0
    recipe = read_recipe(out)
    assert set(recipe["extra_inputs"]) == {"one.png", "clip"}
    assert recipe["stages"][0]["request"]["extra"]["reference_path"] == ["one.png", "clip"]
    inputs = ("--input", "one.png=one.png", "--input", "clip=clip")
    assert main(["replay", str(out), *inputs, "-o", str(tmp_path / "b.mp4")]) == 0
    assert "are identical to those of a.mp4, bit for bit" in capsys.readouterr().err


def test_a_strangers_recipe_does_not_open_the_references_that_it_names(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.mp4"
    strategy = ("--extra", "mask-strategy=0", "--extra", "reference-path=one.png")
    assert main(["generate", "a red ball", *QUICK, *strategy, "-o", str(out)]) == 0
    assert main(["replay", str(out), "-o", str(tmp_path / "b.mp4")]) == 2
    assert "needs one.png; give it with --input one.png=PATH" in capsys.readouterr().err


def test_animate_and_extend_keep_what_is_given(here: Path, tmp_path: Path) -> None:
    assert main(["animate", "one.png", "a red ball", *QUICK, "-o", str(tmp_path / "a.png")]) == 0
    assert torch.equal(read_video(tmp_path / "a").video[:, :, :1], read_image("one.png"))
    command = ["extend", "clip", "a red ball", *QUICK, "--keep", "17", "--frames", "34"]
    assert main([*command, "-o", str(tmp_path / "b.png")]) == 0
    assert torch.equal(read_video(tmp_path / "b").video[:, :, :17], read_video("clip").video[:, :, -17:])


def test_an_edit_from_the_command_line(here: Path, tmp_path: Path) -> None:
    assert main(["edit", "clip", "a blue star", *QUICK, "--steps", "2", "--strength", "0.5", "-o",
                 str(tmp_path / "a.png")]) == 0  # fmt: skip
    assert read_video(tmp_path / "a").shape.frames == 34


def test_loops_from_the_command_line(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    assert main(["generate", "|0|a red ball|1|a blue star", *QUICK, "--extra", "loop=2", "-o", str(out)]) == 0
    [stage] = read_recipe(out)["stages"]
    assert [block["prompt"] for block in stage["blocks"]] == ["a red ball", "a blue star"]
    assert read_video(out).shape.frames == 51


def test_a_file_of_prompts_gives_a_clip_each_by_name(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    line = 'a red ball {"reference_path": "one.png", "mask_strategy": "0"}'
    prompts.write_text(f"{line}\n\na blue star\n")
    assert main(["generate", "--prompts", str(prompts), *QUICK, "-o", str(tmp_path / "out.mp4")]) == 0
    written = [tmp_path / "out-1.mp4", tmp_path / "out-2.mp4"]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    first, second = (read_recipe(path)["stages"][0]["request"] for path in written)
    assert (first["prompt"], first["extra"]["mask_strategy"]) == ("a red ball", "0,0,0,0,1,0")
    assert (second["prompt"], second.get("extra")) == ("a blue star", None)
    assert (first["seed"], second["seed"]) == (5, 6)
    assert main(["generate", "--prompts", str(prompts), *QUICK, "-o", str(tmp_path / "out.mp4")]) == 2
    assert "out-1.mp4 exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ('a ball\na star {"mask": "0"}', (), "prompts.txt line 2 has the key 'mask'"),
        ('a ball\na star {"reference_path": "one.png", "mask_strategy": "0,0,0,99"}', (), "prompt 2 of prompts.txt: "),
        ("a ball", ("a star",), "--prompts gives the prompts"),
        ("a ball", ("--preview", "p.png"), "--preview shows one clip"),
        (" \n", (), "prompts.txt has no prompts"),
        ('a {"reference_path": "one.png"}', ("--extra", "reference-path=one.png"), "given by --extra and by prompt 1"),
    ],
)
def test_a_bad_file_of_prompts_is_refused_before_a_clip_is_made(  # noqa: PLR0917
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, options: Any, message: str
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(text)
    command = ["generate", *options, "--prompts", str(prompts), *QUICK, "-o", str(tmp_path / "out.mp4")]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.mp4"))


def test_a_table_of_prompts_with_references_as_in_1_3(here: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("text,reference_path\na red ball,one.png\na blue star,two.png\n")
    quick = ("--model", "opensora/tiny-1.3", *QUICK[2:], "--extra", "cond-type=i2v_tail")
    assert main(["generate", "--prompts", str(prompts), *quick, "-o", str(tmp_path / "out.mp4")]) == 0
    extra = [read_recipe(tmp_path / f"out-{i}.mp4")["stages"][0]["request"]["extra"] for i in (1, 2)]
    assert [each["reference_path"] for each in extra] == [["one.png"], ["two.png"]]
    assert [each["cond_type"] for each in extra] == ["i2v_tail"] * 2
    prompts.write_text("text,image\na red ball,one.png\n")
    assert main(["generate", "--prompts", str(prompts), *quick, "-o", str(tmp_path / "other.mp4")]) == 2


def test_other_models_have_no_prompt_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a ball")
    assert main(["generate", "--prompts", str(prompts), "--model", "opensora/tiny", "--quiet"]) == 2
    assert "this model does not read prompt files" in capsys.readouterr().err
