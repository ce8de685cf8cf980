from __future__ import annotations

import io
import json
import math

import pytest
import torch

from kinema.cli.progress import Bar, JsonLines, Lines, Silent, display
from kinema.events import Memory, Note, Phase, Preview, Step, TrainStep
from kinema.schema import BadRequest

EVENTS = [
    Phase("load", "zoetrope"),
    Note("height 65 snapped to 64"),
    Phase("sample"),
    Step(1, 2, math.inf, torch.zeros(1)),
    Step(2, 2, 3.5),
    Preview(2, 2, torch.zeros(1, 4, 4, 3, dtype=torch.uint8)),
    TrainStep(5, 10, 0.25, 1e-3, 0.9, 4.0, 0.3),
    Memory(2**30),
]


def test_json_lines_are_json_without_tensors():
    stream = io.StringIO()
    with JsonLines(stream) as show:
        for event in EVENTS:
            show(event)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [
        "phase",
        "note",
        "phase",
        "step",
        "step",
        "preview",
        "trainstep",
        "memory",
    ]
    assert lines[3] == {"event": "step", "index": 1, "total": 2, "log_snr": None, "share": None}
    assert lines[6]["validation"] == 0.3


def test_plain_lines_have_phases_notes_and_the_last_step():
    stream = io.StringIO()
    with Lines(stream) as show:
        for event in EVENTS:
            show(event)
    text = stream.getvalue()
    assert "loading the model (zoetrope)" in text
    assert "height 65 snapped to 64" in text
    assert "step 2/2" in text
    assert "step 1/2" not in text
    assert "1.00 GiB peak memory" in text
    assert "\x1b" not in text


def test_a_memory_peak_is_reported_again_only_if_it_grew():
    stream = io.StringIO()
    with Lines(stream) as show:
        for peak in (2**30, 2**30, 2**30 + 1, 2**31):
            show(Memory(peak))
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1.00", "2.00"]


def test_a_bar_shows_the_phase_and_accepts_every_event(capsys):
    with Bar() as show:
        for event in EVENTS:
            show(event)
        assert show.progress.tasks[-1].description == "sampling"
        assert (show.progress.tasks[-1].completed, show.progress.tasks[-1].total) == (5, 10)
    err = capsys.readouterr().err
    assert "height 65 snapped" in err
    assert "1.00 GiB peak memory" in err


STAGES = [
    Phase("sample", "base"),
    Step(1, 2, 0.0, share=0.2),
    Step(2, 2, 0.0, share=0.4),
    Phase("load", "large"),
    Phase("sample", "large"),
    Step(1, 4, 0.0, share=0.55),
]


def test_one_bar_shows_the_progress_of_all_stages():
    with Bar() as show:
        seen = []
        for event in STAGES:
            show(event)
            task = show.progress.tasks[-1]
            seen.append((task.id, task.description, task.completed, task.total))
    assert [each[2:] for each in seen[1:]] == [(0.2, 1), (0.4, 1), (0.4, 1), (0.4, 1), (0.55, 1)]
    assert len({each[0] for each in seen}) == 1
    assert seen[-1][1] == "sampling (large)"
    assert show.progress.tasks[-1].fields["figures"] == "step 1/4 (55% of all stages)"


def test_the_remaining_time_in_lines_is_that_of_all_stages(monkeypatch):
    now = iter([0, 100, 110, 120, 130, 140, 155])
    monkeypatch.setattr("kinema.cli.progress.time.monotonic", lambda: next(now))
    stream = io.StringIO()
    with Lines(stream) as show:
        for event in STAGES:
            show(event)
    assert stream.getvalue().splitlines()[2] == "kinema: step 2/2 (40% of all stages), 30 s left"
    assert stream.getvalue().splitlines()[-1] == "kinema: step 1/4 (55% of all stages), 45 s left"


def test_the_next_clip_has_a_progress_of_its_own(monkeypatch):
    again = [Phase("write"), Phase("sample"), Step(1, 2, 0.0, share=0.25)]
    with Bar() as show:
        for event in [*STAGES, *again]:
            show(event)
        assert [(task.completed, task.total, task.finished) for task in show.progress.tasks] == [(0.25, 1, False)]
    now = iter([0, 100, 110, 120, 130, 140, 155, 200, 210, 220])
    monkeypatch.setattr("kinema.cli.progress.time.monotonic", lambda: next(now))
    stream = io.StringIO()
    with Lines(stream) as show:
        for event in [*STAGES, *again]:
            show(event)
    assert stream.getvalue().splitlines()[-1] == "kinema: step 1/2 (25% of all stages), 30 s left"


def test_stdout_stays_clean_for_the_result(capsys):
    for show in (Silent(), Bar(), Lines(__import__("sys").stderr)):
        with show:
            for event in EVENTS:
                show(event)
    assert capsys.readouterr().out == ""


def test_the_display_follows_the_options():
    assert isinstance(display(quiet=True), Silent)
    assert isinstance(display(json_events=True, quiet=True), JsonLines)
    assert isinstance(display(), Lines)  # under pytest stderr is not a terminal


def test_a_failure_is_the_last_json_line():
    stream = io.StringIO()

    def fail():
        with JsonLines(stream) as show:
            show(Note("so far"))
            raise BadRequest("no such\nclip")

    with pytest.raises(BadRequest):
        fail()
    last = json.loads(stream.getvalue().splitlines()[-1])
    assert last == {"event": "failed", "message": "no such clip", "code": 2}
