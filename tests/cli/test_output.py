from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinema.cli.output import Output, slug
from kinema.media.metadata import read_recipe
from kinema.media.read import read_video
from kinema.schema import BadRequest, Clip, Shape


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return Clip(torch.rand(1, 3, 4, 16, 16) * 2 - 1, 8.0, {"model": "m", "request": {"prompt": "a red ball"}})


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_name_is_made_from_the_prompt(clip):
    assert Output(None, "A red ball, rolls right!").save(clip) == [Path("a-red-ball-rolls-right.mp4")]


def test_a_made_name_never_overwrites(clip):
    names = [Output(None, "a ball").save(clip)[0].name for _ in range(3)]
    assert names == ["a-ball.mp4", "a-ball-2.mp4", "a-ball-3.mp4"]


def test_a_told_name_that_exists_is_refused_before_the_work(clip):
    Path("ball.mp4").write_text("mine")
    with pytest.raises(BadRequest, match=r"ball\.mp4 exists.*--overwrite"):
        Output(Path("ball.mp4"), "x").check()
    assert Path("ball.mp4").read_text() == "mine"


def test_overwrite_replaces(clip):
    Path("ball.mp4").write_text("old")
    output = Output(Path("ball.mp4"), "x", overwrite=True)
    output.check()
    assert output.save(clip) == [Path("ball.mp4")]
    assert read_recipe("ball.mp4")["model"] == "m"


def test_a_name_taken_while_the_model_worked_is_stepped_over(clip):
    output = Output(Path("ball.mp4"), "x")
    output.check()
    Path("ball.mp4").write_text("another run's")
    assert output.save(clip) == [Path("ball-2.mp4")]
    assert Path("ball.mp4").read_text() == "another run's"


@pytest.mark.parametrize("existing", ["ball-1.mp4", "ball.sheet.png"])
def test_every_file_that_would_be_written_is_looked_at(existing):
    Path(existing).write_text("mine")
    with pytest.raises(BadRequest, match=existing):
        Output(Path("ball.mp4"), "x", clips=2, contact_sheet=True).check()


def test_a_folder_of_frames_that_exists_is_refused():
    Path("ball").mkdir()
    with pytest.raises(BadRequest, match="ball exists"):
        Output(Path("ball.png"), "x").check()


@pytest.mark.parametrize(
    ("path", "part"), [("nowhere/ball.mp4", "does not exist"), ("ball.avi", ".mp4"), ("file/ball.mp4", "not a folder")]
)
def test_an_output_that_cannot_be_is_refused_before_the_work(path, part):
    Path("file").write_text("")
    with pytest.raises(BadRequest, match=part):
        Output(Path(path), "x").check()


def test_zoom_makes_squares_of_pixels_and_is_in_the_recipe(clip):
    Output(Path("big.webp"), "x", zoom=3).save(clip)
    Output(Path("big.mp4"), "x", zoom=3).save(clip)
    assert read_video("big.mp4").video.shape[-2:] == (48, 48)
    assert read_recipe("big.mp4")["zoom"] == 3


@given(st.text(max_size=300))
def test_a_slug_is_always_a_plain_file_name(title):
    name = slug(title)
    assert name
    assert len(name.encode()) <= 200
    assert "/" not in name
    assert "\\" not in name
    assert "\0" not in name
    assert not name.startswith((".", "-"))
    assert slug(name) == name


# --------------------------------------------------------------------------------- two at one time


def both(first, second):
    """Two functions at the same moment, each in a thread of its own; what they returned."""
    start, results = threading.Barrier(2), {}

    def run(number, work):
        start.wait()
        results[number] = work()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate((first, second))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return [results[i] for i in sorted(results)]


def shade(level, clips=1):
    return Clip(torch.full((clips, 3, 2, 16, 16), level), 8.0, {"model": str(level)})


KINDS = {
    "mp4": {"path": Path("a.mp4")},
    "png folder": {"path": Path("a")},
    "frames as png": {"path": Path("a.png")},
    "sheet": {"path": Path("a.gif"), "contact_sheet": True},
    "batch": {"path": Path("a.webp"), "clips": 2, "contact_sheet": True},
    "made name": {"path": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_pairs_of_writers_of_one_name_lose_no_clip(kind, tmp_path, monkeypatch):
    told = {"title": "a ball", **KINDS[kind]}
    clips = told.get("clips", 1)
    for pair in range(50):
        (tmp_path / str(pair)).mkdir()
        monkeypatch.chdir(tmp_path / str(pair))
        said = []
        outputs = [Output(**told), Output(**told)]
        for output in outputs:
            output.check()
        saving = [partial(output.save, shade(n, clips), said.append) for n, output in enumerate(outputs)]
        one, two = both(*saving)
        assert not set(one) & set(two)
        assert {p.name for p in Path.cwd().iterdir()} == {p.name for p in one + two}
        for level, paths in enumerate((one, two)):
            assert {read_recipe(path)["model"] for path in paths} == {str(level)}
        if told["path"] is not None:
            assert len(said) == 1
            assert "appeared meanwhile and was kept; this clip is a-2" in said[0].message


def test_two_processes_that_write_one_name_keep_both_clips():
    code = """
import sys, torch
from pathlib import Path
from kinema.cli.output import Output
from kinema.schema import Clip
output = Output(Path("a.mp4"), "x")
print("ready", flush=True)
sys.stdin.readline()
output.save(Clip(torch.full((1, 3, 2, 16, 16), float(sys.argv[1])), 8.0, {"model": sys.argv[1]}))
"""
    pipe = subprocess.PIPE
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], stdin=pipe, stdout=pipe, text=True) for i in range(3)
    ]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    assert [run.wait() for run in runs] == [0, 0, 0]
    for run in runs:
        run.communicate()
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["a-2.mp4", "a-3.mp4", "a.mp4"]
    assert {read_recipe(path)["model"] for path in Path.cwd().iterdir()} == {"0", "1", "2"}


# ------------------------------------------------------------------------------- before the work


def test_a_zoom_beyond_what_a_format_holds_is_refused_before_the_work():
    for name, zoom, part in (("a.webp", 34, "16,383"), ("a.mp4", 34, "H.264 encoder does not support"), ("a", 64, "smaller zoom")):
        shape = Shape(1, 3, 4 if name != "a" else 4000, 512, 512)
        with pytest.raises(BadRequest, match=part):
            Output(Path(name), "x", zoom=zoom).check_clip(shape, 8.0)


def test_what_a_format_changes_of_a_clip_is_said_before_the_work():
    said = []
    Output(Path("a.gif"), "x").check_clip(Shape(1, 3, 60, 16, 16), 60.0, said.append)
    Output(Path("a.mp4"), "x").check_clip(Shape(1, 3, 60, 15, 16), 60.0, said.append)
    assert ["50 of 60 frames" in said[0].message, "16×15 was padded to 16×16" in said[1].message] == [True, True]


@pytest.mark.parametrize(("name", "what"), [("a.gif", "a gif"), ("a.webp", "a webp"), ("a", "a folder of frames")])
def test_a_format_without_sound_says_so_once(clip, name, what):
    said = []
    Output(Path(name), "x").save(replace(clip, sound=b"some"), said.append)
    assert [note.message for note in said] == [
        f"{what} holds no sound, so that of the clip is left out; name an .mp4 to keep it"
    ]
