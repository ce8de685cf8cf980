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


def test_the_name_comes_from_the_prompt(clip):
    assert Output(None, "A red ball, rolls right!").save(clip) == [Path("a-red-ball-rolls-right.mp4")]


def test_a_derived_name_never_overwrites(clip):
    names = [Output(None, "a ball").save(clip)[0].name for _ in range(3)]
    assert names == ["a-ball.mp4", "a-ball-2.mp4", "a-ball-3.mp4"]


def test_a_given_name_that_exists_is_refused_before_any_work(clip):
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


def test_a_name_taken_meanwhile_gets_the_next_free_one(clip):
    output = Output(Path("ball.mp4"), "x")
    output.check()
    Path("ball.mp4").write_text("another run's")
    assert output.save(clip) == [Path("ball-2.mp4")]
    assert Path("ball.mp4").read_text() == "another run's"


@pytest.mark.parametrize("existing", ["ball-1.mp4", "ball.sheet.png"])
def test_every_file_of_a_batch_is_checked(existing):
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
def test_an_impossible_output_is_refused_before_any_work(path, part):
    Path("file").write_text("")
    with pytest.raises(BadRequest, match=part):
        Output(Path(path), "x").check()


def test_zoom_enlarges_pixels_and_is_recorded(clip):
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


# --------------------------------------------------------------------------------- concurrent writers --


def both(first, second):
    """Run two functions concurrently, each in its own thread, and return their results."""
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
    "derived name": {"path": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_pairs_of_concurrent_writers_lose_no_clip(kind, tmp_path, monkeypatch):
    options = {"title": "a ball", **KINDS[kind]}
    clips = options.get("clips", 1)
    for pair in range(50):
        (tmp_path / str(pair)).mkdir()
        monkeypatch.chdir(tmp_path / str(pair))
        notes = []
        outputs = [Output(**options), Output(**options)]
        for output in outputs:
            output.check()
        saving = [partial(output.save, shade(n, clips), notes.append) for n, output in enumerate(outputs)]
        one, two = both(*saving)
        assert not set(one) & set(two)
        assert {p.name for p in Path.cwd().iterdir()} == {p.name for p in one + two}
        for level, paths in enumerate((one, two)):
            assert {read_recipe(path)["model"] for path in paths} == {str(level)}
        if options["path"] is not None:
            assert len(notes) == 1
            assert "was created meanwhile and is kept; this clip is a-2" in notes[0].message


def test_three_processes_writing_one_name_keep_all_clips():
    code = """
import os, torch
from pathlib import Path
from kinema.cli.output import Output
from kinema.schema import Clip
ready, go, runs = os.pipe(), os.pipe(), []
for i in range(3):
    runs.append(os.fork())
    if not runs[-1]:
        os.close(go[1])
        output = Output(Path("a.mp4"), "x")
        os.write(ready[1], b".")
        os.read(go[0], 1)  # until it is closed
        output.save(Clip(torch.full((1, 3, 2, 16, 16), float(i)), 8.0, {"model": str(i)}))
        os._exit(0)
for _ in runs:
    os.read(ready[0], 1)
os.close(go[1])
print(*(os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]) for run in runs))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "0 0 0\n", done.stderr
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["a-2.mp4", "a-3.mp4", "a.mp4"]
    assert {read_recipe(path)["model"] for path in Path.cwd().iterdir()} == {"0", "1", "2"}


# ------------------------------------------------------------------------------- before any work


def test_a_zoom_beyond_the_limits_of_a_format_is_refused():
    limits = (("a.webp", 34, "16,383"), ("a.mp4", 34, "H.264 encoder does not support"), ("a", 64, "smaller zoom"))
    for name, zoom, part in limits:
        shape = Shape(1, 3, 4 if name != "a" else 4000, 512, 512)
        with pytest.raises(BadRequest, match=part):
            Output(Path(name), "x", zoom=zoom).check_clip(shape, 8.0)


def test_what_a_format_changes_is_reported_before_any_work():
    notes = []
    Output(Path("a.gif"), "x").check_clip(Shape(1, 3, 60, 16, 16), 60.0, notes.append)
    Output(Path("a.mp4"), "x").check_clip(Shape(1, 3, 60, 15, 16), 60.0, notes.append)
    assert ["50 of 60 frames" in notes[0].message, "16×15 was padded to 16×16" in notes[1].message] == [True, True]


@pytest.mark.parametrize(("name", "what"), [("a.gif", "a gif"), ("a.webp", "a webp"), ("a", "a folder of frames")])
def test_dropped_sound_is_reported_once(clip, name, what):
    notes = []
    Output(Path(name), "x").save(replace(clip, sound=b"some"), notes.append)
    assert [note.message for note in notes] == [
        f"{what} holds no sound, so the clip's sound is dropped; write an .mp4 to keep it"
    ]
