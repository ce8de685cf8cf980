"""The verbs from command line to file, with the untrained tiny model."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

from kinema.cli import plan
from kinema.cli.main import main
from kinema.cli.verbs import VERBS, request_from, request_options
from kinema.media.metadata import read_recipe
from kinema.media.read import read_image, read_video
from kinema.schema import TASK_FIELDS, Clip, Request

TINY = ("--model", "zoetrope/tiny", "--steps", "2", "--quiet")


@pytest.fixture(autouse=True)
def _media(tmp_path, monkeypatch):
    """Run in a folder with a clip and two images."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    video = (torch.rand(1, 3, 8, 16, 16) * 2 - 1).cumsum(2).clamp(-1, 1)
    Clip(video, 8.0).save("clip.mp4")
    Clip(video[:, :, :1], 8.0).save("first.png")
    Clip(video[:, :, -1:], 8.0).save("last.png")


def kinema(capsys, *words: str) -> list[str]:
    """Run a command that must succeed; the lines of its output."""
    code = main(list(words))
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out.splitlines()


WORDS = {
    "generate": ("a red ball rolls right",),
    "animate": ("first.png", "a red ball rolls right"),
    "interpolate": ("clip.mp4", "--every", "2"),
    "extend": ("clip.mp4", "--keep", "4", "--frames", "8"),
    "inpaint": ("clip.mp4", "a red ball rolls right", "--region", "0,0,.5,.5"),
    "edit": ("clip.mp4", "a red ball rolls right"),
}


def test_upscale_writes_a_larger_clip(capsys):
    words = ("clip.mp4", "a red ball", "--model", "vdm/tiny", "--steps", "1", "--height", "32", "--width", "32")
    assert kinema(capsys, "upscale", *words, "--quiet", "-o", "written.mp4") == ["written.mp4"]
    assert read_video("written.mp4").video.shape[-2:] == (32, 32)
    assert set(VERBS) == {*WORDS, "upscale"}


@pytest.mark.parametrize("task", sorted(WORDS))
def test_a_verb_writes_a_clip_and_prints_its_path(task, capsys):
    assert kinema(capsys, task, *WORDS[task], *TINY, "-o", "written.mp4") == ["written.mp4"]
    clip = read_video("written.mp4")
    assert clip.video.isfinite().all()
    recipe = read_recipe("written.mp4")
    assert recipe["stages"][0]["model"] == "zoetrope/tiny"
    assert task in json.dumps(recipe["stages"][0]["request"])


def test_without_trained_weights_a_note_says_that_the_clip_is_noise(capsys):
    assert main(["generate", "a red ball", *TINY[:-1], "-o", "written.mp4"]) == 0
    assert "zoetrope/tiny has no trained weights: the clip is noise" in capsys.readouterr().err


def test_the_name_comes_from_the_prompt_and_nothing_is_overwritten(capsys):
    assert kinema(capsys, "generate", "a red ball", *TINY) == ["a-red-ball.mp4"]
    before = Path("a-red-ball.mp4").read_bytes()
    assert kinema(capsys, "generate", "a red ball", *TINY) == ["a-red-ball-2.mp4"]
    assert Path("a-red-ball.mp4").read_bytes() == before


def test_the_same_seed_is_the_same_file(capsys):
    for name in ("one.mp4", "two.mp4"):
        kinema(capsys, "generate", "a red ball", *TINY, "--seed", "5", "-o", name)
    assert read_recipe("one.mp4") == read_recipe("two.mp4")
    assert Path("one.mp4").read_bytes() == Path("two.mp4").read_bytes()


def test_a_batch_and_a_contact_sheet_are_all_listed(capsys):
    lines = kinema(capsys, "generate", "a ball", *TINY, "--clips", "2", "--contact-sheet", "-o", "b.mp4")
    assert lines == ["b-0.mp4", "b-1.mp4", "b.sheet.png"]
    assert all(Path(name).is_file() for name in lines)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
def test_zoom_enlarges_what_is_written(suffix, capsys):
    kinema(capsys, "generate", "a ball", *TINY, "--zoom", "2", "-o", f"z{suffix}")
    assert read_video(f"z{suffix}").video.shape[-2:] == (32, 32)


def test_json_events_are_lines_of_json_that_end_with_the_paths(capsys):
    lines = kinema(capsys, "generate", "a ball", *TINY[:-1], "--json-events", "-o", "j.mp4")
    events = [json.loads(line) for line in lines]
    steps = [e for e in events if e["event"] == "step"]
    assert [(e["index"], e["total"]) for e in steps] == [(1, 2), (2, 2)]
    assert events[-1] == {"event": "saved", "paths": ["j.mp4"]}


def test_progress_goes_to_stderr_and_reports_snapped_sizes(capsys):
    assert main(["generate", "a ball", *TINY[:-1], "--height", "17", "--frames", "9", "-o", "s.mp4"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "s.mp4\n"
    assert "height 17 snapped to 16" in captured.err
    assert read_video("s.mp4").shape.bcthw == (1, 3, 9, 16, 16)  # frames are never snapped: generated in full, then cut


def test_a_config_file_fills_in_missing_options(capsys):
    Path("c.yaml").write_text("model: zoetrope/tiny\nsteps: 2\nseed: 3\noutput: c.mp4\nquiet: true\nprompt: a ball\n")
    assert kinema(capsys, "generate", "--config", "c.yaml", "--seed", "4") == ["c.mp4"]
    assert '"seed": 4' in json.dumps(read_recipe("c.mp4")["stages"][0]["request"])


def test_between_two_images_the_argument_is_the_prompt(capsys):
    request = request_from("interpolate", {"video": "a ball", "image": "first.png", "last_image": "last.png"})
    assert (request.prompt, request.video) == ("a ball", None)
    lines = kinema(capsys, "interpolate", "a ball", "--image", "first.png", "--last-image", "last.png", *TINY)
    assert lines == ["a-ball.mp4"]


def test_replay_generates_the_same_frames_and_reports_it(capsys):
    kinema(capsys, "generate", "a ball", *TINY, "--seed", "1", "-o", "first.mp4")
    assert main(["replay", "first.mp4", "-o", "again.mp4", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "again.mp4\n"
    assert "are identical to" in captured.err
    assert "are not identical" not in captured.err
    assert Path("again.mp4").read_bytes() == Path("first.mp4").read_bytes()


def test_replay_keeps_zoom_and_works_on_every_format(capsys):
    for suffix in (".gif", ".webp"):
        kinema(capsys, "generate", "a ball", *TINY, "--seed", "1", "--zoom", "2", "-o", f"z{suffix}")
        assert main(["replay", f"z{suffix}", "-o", f"again{suffix}", "--quiet"]) == 0
        assert "are not identical" not in capsys.readouterr().err
        assert read_video(f"again{suffix}").video.shape == read_video(f"z{suffix}").video.shape


def test_replay_uses_the_recorded_random_seed(capsys):
    kinema(capsys, "generate", "a ball", *TINY, "-o", "first.mp4")
    assert main(["replay", "first.mp4", "-o", "again.mp4", "--quiet"]) == 0
    assert "are not identical" not in capsys.readouterr().err


KEYED = ("animate", "a red ball", "--keyframe", "0=first.png", "--keyframe", "5=last.png", *TINY, "--frames", "8")


def test_keyframes_are_exact_and_the_clip_is_named_after_its_prompt(capsys):
    assert kinema(capsys, *KEYED, "--fps", "8", "-o", "keyed.png") == ["keyed"]
    given = torch.cat([read_image(name) for name in ("first.png", "last.png")], dim=2)
    assert torch.equal(read_video("keyed").video[:, :, [0, 5]], given)
    assert kinema(capsys, *KEYED) == ["a-red-ball.mp4"]
    prompts = (
        "generate",
        "--prompt-at",
        "0-3=a red ball",
        "--prompt-at",
        "4-15=a blue ball",
        *TINY,
        "--frames",
        "16",
        "--window",
        "8",
    )
    assert kinema(capsys, *prompts) == ["a-red-ball-2.mp4"]


@pytest.mark.parametrize(
    "given",
    [
        ("keyframe 0=photos/first.png", "keyframe 5=photos/last.png", "keyframe 7=photos/first.png"),
        ("photos/first.png", "photos/last.png"),  # one file for two keyframes
    ],
)
def test_a_clip_with_keyframes_is_replayed_from_them(given, capsys):
    kinema(capsys, *KEYED, "--keyframe", "7=first.png", "-o", "keyed.mp4")
    recipe = read_recipe("keyed.mp4")
    assert recipe["stages"][0]["request"]["keyframes"] == {"0": "first.png", "5": "last.png", "7": "first.png"}
    assert list(recipe["inputs"]) == ["keyframe 0", "keyframe 5", "keyframe 7"]
    Path("photos").mkdir()
    for name in ("first.png", "last.png"):
        Path(name).rename(f"photos/{name}")
    assert main(["replay", "keyed.mp4", "-o", "again.mp4", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert 'give them with --input "keyframe 0=PATH", --input "keyframe 5=PATH"' in err
    words = [word for each in given for word in ("--input", each)]
    assert main(["replay", "keyed.mp4", "-o", "again.mp4", *words]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "are identical to" in err
    assert "is not the file" not in err
    assert read_recipe("again.mp4")["frames_hash"] == recipe["frames_hash"]


def test_the_full_paths_of_keyframes_are_recorded_on_request(capsys, tmp_path):
    kinema(capsys, *KEYED, "--record-paths", "-o", "keyed.mp4")
    recipe = read_recipe("keyed.mp4")
    assert recipe["paths"] == {"keyframe 0": str(tmp_path / "first.png"), "keyframe 5": str(tmp_path / "last.png")}
    assert recipe["stages"][0]["request"]["keyframes"] == {"0": "first.png", "5": "last.png"}


def test_replay_with_other_settings_reports_the_difference(capsys):
    kinema(capsys, "generate", "a ball", *TINY, "--seed", "1", "-o", "first.mp4")
    assert main(["replay", "first.mp4", "-o", "again.mp4", "--quiet", "--dtype", "bf16"]) == 0
    assert "are not identical to" in capsys.readouterr().err


def test_inspect_shows_the_recipe(capsys):
    kinema(capsys, "generate", "a ball", *TINY, "-o", "i.mp4")
    result = json.loads("\n".join(kinema(capsys, "inspect", "i.mp4", "--json")))
    assert result["recipe"]["stages"][0]["model"] == "zoetrope/tiny"
    assert "zoetrope/tiny" in "\n".join(kinema(capsys, "inspect", "i.mp4"))


@pytest.mark.parametrize(
    ("name", "frames", "codec"),
    [("a.mp4", 5, "h264"), ("a.gif", 5, "gif"), ("a.webp", 5, "webp"), ("a.png", 1, "png"), ("frames", 5, "folder")],
)
def test_inspect_describes_a_clip_without_a_recipe(capsys, name, frames, codec):
    shades = torch.linspace(-1, 1, frames)[:, None, None]  # a webp holds equal frames once
    Clip(shades.expand(1, 3, frames, 32, 48).contiguous(), 10.0).save(name)
    for recipe in Path(name).glob("recipe.json"):
        recipe.unlink()
    (line,) = ["".join(kinema(capsys, "inspect", name, "--json"))]
    result = json.loads(line)
    assert (result["frames"], result["width"], result["height"]) == (frames, 48, 32)
    assert codec in result["codec"]
    if frames > 1:
        assert result["fps"] == (8.0 if name == "frames" else 10.0)  # a folder has no frame rate


def test_inspect_reports_a_missing_recipe(capsys):
    Image.new("RGB", (20, 10)).save("photo.jpg")
    page = "\n".join(kinema(capsys, "inspect", "photo.jpg"))
    assert "jpeg" in page
    assert "not written by Kinema" in page
    Path("notes.txt").write_text("words")
    assert main(["inspect", "notes.txt"]) == 2


def test_the_help_of_plan_names_the_other_verbs(capsys):
    with pytest.raises(SystemExit):
        plan.plan(["--help"])
    page = " ".join(capsys.readouterr().out.split())
    assert "where generate may be left out" in page
    assert "animate, interpolate, extend, inpaint, edit" in page
    with pytest.raises(SystemExit):
        plan.plan(["animate", "--help"])
    assert "usage: kinema plan animate" in capsys.readouterr().out


def test_png_is_a_file_for_one_frame_and_a_folder_for_several(capsys):
    lines = kinema(capsys, "generate", "a ball", *TINY, "--frames", "1", "-o", "one.png")
    assert (lines, Path("one.png").is_file()) == (["one.png"], True)
    lines = kinema(capsys, "generate", "a ball", *TINY, "-o", "many.png")
    assert (lines, Path("many").is_dir()) == (["many"], True)


def test_models_lists_the_samplers_with_their_options(capsys):
    listed = json.loads("\n".join(kinema(capsys, "models", "--samplers", "--json")))
    assert listed["ddim"] == {"eta": 0.0}
    assert "ddim" in "\n".join(kinema(capsys, "models", "--samplers"))


def test_plan_reports_the_size_without_running(capsys):
    words = ("plan", "generate", "a ball", "--model", "zoetrope/tiny", "--steps", "7", "--height", "17", "--no-measure")
    result = json.loads("\n".join(kinema(capsys, *words, "--json")))
    assert result["steps"] == 7
    assert result["fits"] is True
    assert result["seconds"] is None
    assert any("snapped" in reason for reason in result["reasons"])
    assert "16×16" in result["size"]


@pytest.mark.parametrize(("steps", "strength", "count"), [("25", "0.75", 18), ("5", "0.9", 4), ("5", "0.1", 0)])
def test_plan_of_an_edit_counts_the_steps_it_runs(capsys, steps, strength, count):
    words = ("edit", "clip.mp4", "a ball", "--model", "zoetrope/tiny", "--steps", steps, "--strength", strength)
    result = json.loads("\n".join(kinema(capsys, "plan", *words, "--no-measure", "--json")))
    assert result["steps"] == count
    assert any("less than one step" in reason for reason in result["reasons"]) == (count == 0)
    done = [json.loads(line) for line in kinema(capsys, *words, "--json-events", "-o", "edited.mp4")]
    assert len([event for event in done if event["event"] == "step"]) == count


def test_plan_measures_time_and_memory(capsys):
    result = json.loads("\n".join(kinema(capsys, "plan", "a ball", "--model", "zoetrope/tiny", "--json")))
    assert result["seconds"] >= result["seconds_a_step"] > 0
    assert result["peak_bytes"] > result["weight_bytes"]
    assert not list(Path().glob("*ball*"))


def test_plan_of_a_model_that_does_not_fit_runs_nothing(capsys, monkeypatch):
    monkeypatch.setattr("kinema.memory.plan.free_bytes", lambda _device: 1000)
    assert main(["plan", "a ball", "--model", "zoetrope/tiny"]) == 1
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.parametrize("task", sorted(VERBS))
def test_a_verb_has_the_options_of_the_schema_and_of_sampling(task):
    names = {o.name for o in request_options(task)}
    somewhere = {name for taken in TASK_FIELDS.values() for name in taken}
    assert names & somewhere == set(TASK_FIELDS[task])
    assert {f.name for f in fields(Request)} - somewhere - {"task", "loras"} == names - somewhere - {
        "motion",
        "control",
        "ip_image",
        "embeddings",
    }


def test_generate_loops_a_clip_in_windows(capsys):
    words = ("generate", "a red ball rolls right", *TINY, "--loop", "-o", "loop.mp4")
    kinema(capsys, *words, "--frames", "16", "--window", "8")
    assert read_recipe("loop.mp4")["stages"][0]["request"]["loop"] is True


# ----------------------------------------------------------------------------- checks before any work, sound


@pytest.fixture
def no_weights(monkeypatch):
    """Reading media or loading weights fails."""

    def fail(*_, **__):
        raise AssertionError("work began")

    monkeypatch.setattr("kinema.system.System.filled", fail)
    monkeypatch.setattr("kinema.media.read.read_video", fail)
    monkeypatch.setattr("kinema.cli.output.MAX_ZOOM", 2000)  # the tiny model generates small frames


@pytest.mark.parametrize(
    ("output", "words", "part"),
    [
        ("a.webp", ("--zoom", "1100", "--frames", "2"), "16,383 pixels"),
        ("a.mp4", ("--zoom", "1100", "--frames", "2"), "H.264 encoder does not support"),
        (f"{'x' * 250}.mp4", ("--clips", "2"), "cannot write"),
        (f"{'x' * 248}.mp4", ("--contact-sheet",), "cannot write"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(output, words, part, no_weights, capsys):
    assert main(["edit", "clip.mp4", "a ball", *TINY, "-o", output, *words]) == 2
    err = capsys.readouterr().err
    assert part in err
    assert len(err) < 400


def test_frames_that_a_gif_drops_are_reported_before_any_work(no_weights, capsys):
    main(["generate", "a ball", *TINY[:-1], "--fps", "60", "--frames", "12", "-o", "a.gif"])
    err = capsys.readouterr().err
    assert "a gif shows at most 50 frames per second: 10 of 12 frames are written" in err
    assert "work began" in err


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (("edit", "talk.mp4", "a ball"), 0.5),
        (("edit", "talk.mp4", "a ball", "--fps", "4"), 0.5),
        (("inpaint", "talk.mp4", "a ball", "--region", "0,0,.5,.5", "--frames", "6"), 0.5),
        (("interpolate", "talk.mp4", "--every", "2"), 0.5),
        (("extend", "talk.mp4", "--frames", "20"), 0.5),
        (("extend", "talk.mp4", "--frames", "20", "--keep", "14"), 0.25),
        (("extend", "talk.mp4", "--frames", "20", "--keep", "8", "--backward"), 2.0),
    ],
)
def test_sound_stays_in_sync_with_its_frames(words, at, with_sound, beep, capsys):
    with_sound(Path("talk.mp4"))
    kinema(capsys, *words, *TINY, "-o", "written.mp4")
    assert beep(Path("written.mp4")) == pytest.approx(at, abs=0.003)


def test_a_replay_keeps_the_sound(with_sound, beep, capsys):
    with_sound(Path("talk.mp4"))
    kinema(capsys, "edit", "talk.mp4", "a ball", *TINY, "-o", "written.mp4")
    kinema(capsys, "replay", "written.mp4", "--input", "video=talk.mp4", "-o", "again.mp4", "--quiet")
    assert beep(Path("again.mp4")) == pytest.approx(0.5, abs=0.003)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("interpolate", "talk.mp4", "--fps", "8", "-o", "written.mp4"), "the clip plays 2 times slower"),
        (("edit", "talk.mp4", "a ball", "-o", "written.gif"), "a gif holds no sound"),
    ],
)
def test_sound_that_cannot_be_kept_is_one_note(words, part, with_sound, beep, capsys):
    with_sound(Path("talk.mp4"))
    assert main([*words, *TINY[:-1]]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "sound" in line]
    assert len(notes) == 1
    assert part in notes[0]


def test_a_path_that_is_not_text_is_printed_as_its_bytes(tmp_path):
    import subprocess
    import sys

    name = b"caf\xe9.mp4"
    words = ["generate", "a ball", *TINY, "--frames", "2", "-o", name]
    process = subprocess.run([sys.executable, "-m", "kinema", *words], capture_output=True, check=True)
    assert process.stdout == name + b"\n"
    assert name in [entry.name for entry in os.scandir(os.fsencode(tmp_path))]


def test_an_edit_of_no_steps_reports_that_nothing_is_sampled(capsys):
    Clip(torch.zeros(1, 3, 2, 64, 64)).save("ball.mp4")
    words = ("-m", "zoetrope/tiny", "--strength", "0", "--steps", "2", "--seed", "1", "-o", "same.mp4")
    assert main(["edit", "ball.mp4", "a ball", *words]) == 0
    err = capsys.readouterr().err
    assert "no steps: the known regions are held to the end" in err
    assert "0 steps" not in err


def test_inspect_rounds_the_frame_rate_in_text_only(capsys):
    Clip(torch.zeros(1, 3, 2, 64, 64), fps=24000 / 1001).save("ball.mp4")
    capsys.readouterr()
    assert main(["inspect", "ball.mp4"]) == 0
    assert "23.976\n" in capsys.readouterr().out
    assert main(["inspect", "ball.mp4", "--json"]) == 0
    assert "23.976023976" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.ini", "a"])
def test_a_config_with_another_suffix_is_refused_by_name(capsys, name):
    assert main(["generate", "a ball", "--config", name]) == 2
    assert capsys.readouterr().err == f"kinema: {name} is not a config file: expected .yaml, .toml or .json\n"


def test_a_preview_file_is_written_and_kept(capsys):
    lines = kinema(capsys, "generate", "a red ball", *TINY[:-1], "--json-events", "--preview", "look.png")
    events = [json.loads(line) for line in lines]
    lines = {"event": "preview", "index": 2, "total": 2, "stage": "base", "file": "look.png"}
    assert [event for event in events if event["event"] == "preview"][-1] == lines
    with Image.open("look.png") as image:
        assert image.size == (48, 16)


def test_an_existing_preview_file_is_replaced_only_with_overwrite(capsys):
    before = Path("first.png").read_bytes()
    assert main(["generate", "a red ball", *TINY, "--preview", "first.png"]) == 2
    assert "first.png exists; choose another name for previews" in capsys.readouterr().err
    assert Path("first.png").read_bytes() == before
    kinema(capsys, "generate", "a red ball", *TINY, "--preview", "first.png", "--overwrite")
    assert Path("first.png").read_bytes() != before


@pytest.mark.parametrize("output", ["written.png", "./written.png"])
def test_a_preview_cannot_be_the_output_file(output, capsys):
    assert main(["generate", "a red ball", *TINY, "-o", output, "--preview", "written.png"]) == 2
    assert "written.png is the clip's own file; give --preview another name" in capsys.readouterr().err


def test_an_unwritable_preview_does_not_end_the_run(capsys, monkeypatch):
    from kinema.previews import PreviewFile

    def full(*_):
        tried.append(1)
        raise OSError("the disk is full")

    tried = []
    monkeypatch.setattr(PreviewFile, "write", full)
    assert main(["generate", "a red ball", *TINY[:-1], "--preview", "look.png", "-o", "written.mp4"]) == 0
    assert capsys.readouterr().err.count("previews stopped: the disk is full") == 1
    assert (len(tried), Path("written.mp4").is_file()) == (1, True)


def test_a_replay_writes_previews(capsys):
    kinema(capsys, "generate", "a red ball", *TINY, "--seed", "5", "-o", "written.gif")
    kinema(capsys, "replay", "written.gif", "--quiet", "--preview", "look.webp", "-o", "again.gif")
    with Image.open("look.webp") as image:
        assert image.format == "WEBP"
