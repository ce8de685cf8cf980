from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinema.cli.output import Output, slug
from kinema.media.metadata import read_recipe
from kinema.media.read import read_video
from kinema.schema import BadRequest, Clip


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
