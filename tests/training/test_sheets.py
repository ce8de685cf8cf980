"""Logs and sample sheets."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from kinema.data import playroom
from kinema.schema import BadRequest
from kinema.training import outputs


@pytest.fixture
def two_prompts(monkeypatch):
    """Sheets of two prompts instead of six, to save time."""
    prompts = playroom.prompts
    monkeypatch.setattr(playroom, "prompts", lambda count, **options: prompts(2, **options))


def test_a_run_writes_a_log_and_its_options(runs, small, tmp_path):
    runs[0](small(steps=10, validate_every=4, save_every=0))
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 10]
    assert all({"loss", "learning_rate", "grad_norm", "rate", "seconds"} <= row.keys() for row in rows)
    written = json.loads((run / "options.json").read_text())
    assert written["options"]["steps"] == written["recipe"]["steps"] == 10


def test_sheets_of_held_out_prompts_are_written_when_due(runs, small, tmp_path, two_prompts):
    runs[0](small(steps=3, sample_every=2, validate_every=0, save_every=0))
    found = sorted(p.name for p in (tmp_path / "run" / "samples").iterdir())
    assert found == [f"step-{step:08d}-{i}.png" for step in (2, 3) for i in range(2)]
    with Image.open(tmp_path / "run" / "samples" / found[0]) as sheet:
        assert sheet.width > sheet.height


def test_writing_sheets_changes_no_loss(runs, small, two_prompts):
    _, without = runs[0](small(steps=3))
    _, sampled = runs[0](small("sampled", steps=3, sample_every=2))
    assert without.losses == sampled.losses


def test_an_unsupported_request_gets_no_sheet_and_training_continues(runs, small, monkeypatch):
    def refuse(*_args, **_options):
        raise BadRequest("it takes no prompt")

    monkeypatch.setattr(outputs, "generate", refuse)
    result, heard = runs[0](small(steps=2, sample_every=2, validate_every=0))
    assert result.step == 2
    assert any("no sample sheet" in note and "takes no prompt" in note for note in heard.notes)
