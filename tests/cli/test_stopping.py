"""Ctrl-C with and without --keep-partial."""

from __future__ import annotations

import json
import signal

import pytest

from kinema.cancel import Cancel
from kinema.cli import progress
from kinema.cli.main import main
from kinema.cli.stopping import interruptible
from kinema.events import Phase, Step
from kinema.media.metadata import read_recipe
from kinema.media.read import read_video
from kinema.rollout import Rollout

WORDS = ["generate", "a red ball", "-m", "zoetrope/tiny", "--seed", "1", "--steps", "4", "-o", "ball.mp4"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ctrl_c(monkeypatch):
    """Press Ctrl-C at the events for which a predicate is true."""

    def at(matches):
        hear = progress.Lines.__call__

        def heard(self, event):
            hear(self, event)
            if matches(event):
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(progress.Lines, "__call__", heard)

    return at


def step_2(event):
    return isinstance(event, Step) and event.index == 2


def test_without_the_option_nothing_is_written(ctrl_c, tmp_path, capsys):
    ctrl_c(step_2)
    assert main(WORDS) == 130
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err.endswith("kinema: interrupted; no partial file was written\n")


def test_the_partial_clip_is_written_next_to_the_output_and_reported(ctrl_c, tmp_path, capsys):
    ctrl_c(step_2)
    assert main([*WORDS, "--keep-partial"]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["ball.partial.mp4"]
    captured = capsys.readouterr()
    assert captured.out == "ball.partial.mp4\n"
    assert captured.err.endswith("kinema: interrupted at step 2 of 4; the partial clip is ball.partial.mp4\n")
    assert read_recipe(tmp_path / "ball.partial.mp4")["partial"]["step"] == 2
    assert read_video(tmp_path / "ball.partial.mp4").video.shape[2] == 8


def test_a_partial_clip_replaces_nothing_even_with_overwrite(ctrl_c, tmp_path):
    for name in ("ball.mp4", "ball.partial.mp4"):
        (tmp_path / name).write_text("mine")
    ctrl_c(step_2)
    assert main([*WORDS, "--keep-partial", "--overwrite"]) == 130
    assert {(tmp_path / name).read_text() for name in ("ball.mp4", "ball.partial.mp4")} == {"mine"}
    assert len(list(tmp_path.iterdir())) == 3


def test_partial_frames_go_to_their_own_folder(ctrl_c, tmp_path):
    ctrl_c(step_2)
    for name, folder in (("ball.png", "ball-partial"), ("frames", "frames-partial")):
        assert main([*WORDS[:-1], name, "--keep-partial"]) == 130
        assert len(list((tmp_path / folder).glob("*.png"))) == 8
    assert len(list(tmp_path.iterdir())) == 2


def test_a_second_interrupt_exits_immediately(ctrl_c, tmp_path, capsys):
    ctrl_c(lambda event: step_2(event) or (isinstance(event, Phase) and event.detail.startswith("the partial clip")))
    assert main([*WORDS, "--keep-partial"]) == 130
    assert not list(tmp_path.iterdir())
    assert "no partial file" in capsys.readouterr().err


def test_an_interrupt_before_the_first_step_keeps_nothing(ctrl_c, tmp_path, capsys):
    ctrl_c(lambda event: isinstance(event, Phase) and event.name == "condition")
    assert main([*WORDS, "--keep-partial"]) == 130
    assert not list(tmp_path.iterdir())
    assert "interrupted before the first step; there are no frames to keep" in capsys.readouterr().err


def test_json_events_end_with_the_saved_paths_and_the_code(monkeypatch, capsys):
    hear = Rollout.hear

    def heard(self, event):
        hear(self, event)
        if event.index == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Rollout, "hear", lambda self, event: (heard if isinstance(event, Step) else hear)(self, event))
    assert main([*WORDS, "--keep-partial", "--json-events"]) == 130
    saved, failed = map(json.loads, capsys.readouterr().out.splitlines()[-2:])
    assert saved == {"event": "saved", "paths": ["ball.partial.mp4"], "partial": True}
    assert (failed["event"], failed["code"]) == ("failed", 130)


def test_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT)
    with interruptible(keep=True) as token:
        assert isinstance(token, Cancel)
        assert signal.getsignal(signal.SIGINT) is not before
        signal.raise_signal(signal.SIGINT)
        assert token.cancelled
        assert signal.getsignal(signal.SIGINT) is before
    with interruptible(keep=False) as token:
        assert token is None
        assert signal.getsignal(signal.SIGINT) is before
