from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from kinema.checkpoints import files
from kinema.evaluation import curve, measuring, temporal
from kinema.evaluation.curve import Curve, LogRow, Point
from kinema.evaluation.oracle import Figure
from kinema.evaluation.run import EvaluateOptions, evaluate
from kinema.events import Event, Note
from kinema.schema import BadRequest
from kinema.system import open_system


@pytest.fixture(autouse=True)
def _without_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (measuring, temporal):
        monkeypatch.setattr(module, "has_flow", lambda: False)


def checkpoint(run: Path, step: int, gain: float) -> Path:
    """A training checkpoint of the tiny model whose averaged weights are ``gain`` times the raw ones."""
    system = open_system("zoetrope", preset="tiny", device="cpu")
    raw = system.model.state_dict()
    tensors = {f"raw.{k}": v for k, v in raw.items()} | {f"ema.{k}": v * gain for k, v in raw.items()}
    note = json.dumps({"family": "zoetrope", "config": system.family.to_json(system.config)})
    state = json.dumps({"step": step, "seconds": step * 2.0})
    path = run / f"step-{step:08d}.safetensors"
    files.write_tensors(path, tensors, {"kinema-model": note, "kinema-training": state})
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    folder.mkdir()
    rows = [{"step": s, "seconds": 2.0 * s, "loss": 1 / s, "validation": 2 / s} for s in (10, 20, 30)]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 4', encoding="utf-8")
    (folder / "options.json").write_text(json.dumps({"recipe": {"batch": 16}}), encoding="utf-8")
    return folder


def test_a_truncated_and_resumed_log_gives_each_step_once(run: Path) -> None:
    with (run / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"step": 30, "seconds": 70.0, "loss": 0.5}\n')
    rows = curve.read_log(run)
    assert [row.step for row in rows] == [10, 20, 30]
    assert rows[-1] == LogRow(30, 70.0, 0.5, None)


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"no log.jsonl; expected the folder of a training run"):
        curve.read_log(tmp_path)


def test_a_training_checkpoint_opens_with_its_averaged_weights(run: Path) -> None:
    path = checkpoint(run, 10, gain=3.0)
    raw = open_system("zoetrope", preset="tiny", device="cpu").model.state_dict()
    opened = curve.open_checkpoint(path, "cpu")
    for name, value in opened.model.state_dict().items():
        torch.testing.assert_close(value, raw[name] * 3)
    assert opened.weights.hash == files.weight_hash(path)


def test_checkpoints_are_scored_once_and_stay_when_deleted(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    evidence = tmp_path / "evidence"
    options = EvaluateOptions(curve=str(run), evidence=str(evidence), prompts=1, steps=1, device="cpu")
    first = checkpoint(run, 10, gain=1.0)
    evaluate(options)
    first.unlink()
    checkpoint(run, 20, gain=2.0)
    evaluate(options)
    events: list[Event] = []
    result = evaluate(options, events.append)
    assert isinstance(result, Curve)
    assert [(p.step, p.seconds) for p in result.points] == [(10, 20.0), (20, 40.0)]
    assert any(isinstance(e, Note) and "already on the curve" in e.message for e in events)
    page = (evidence / "curve.md").read_text(encoding="utf-8")
    assert "| 20 | 320 | 0.7 |" in page
    assert (evidence / "curve.png").stat().st_size > 1000
    other = run.rename(run.with_name("other-run"))
    with pytest.raises(BadRequest, match="is the curve of run my-run, not of other-run"):
        evaluate(EvaluateOptions(curve=str(other), evidence=str(evidence), prompts=1))


def test_an_interruption_keeps_the_checkpoints_scored_so_far(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(run, 10, gain=1.0)
    checkpoint(run, 20, gain=2.0)
    original, calls = measuring.measure, []

    def measure(*args: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(measuring, "measure", measure)
    points, partial = curve.score_checkpoints(run, EvaluateOptions(prompts=1, steps=1, device="cpu"))
    assert partial
    assert [p.step for p in points] == [10]


def test_the_forecast_continues_a_line_in_log_odds_over_log_compute() -> None:
    def figure(seconds: float) -> Figure:
        odds = (seconds / 1000) ** 1.5
        return Figure(odds / (1 + odds), 0, 1, 1_000_000)

    two, four = curve.forecast([(s, figure(s)) for s in (500.0, 1000.0, 2000.0)])
    assert two == pytest.approx(figure(4000).mean, abs=1e-3)
    assert four == pytest.approx(figure(8000).mean, abs=1e-3)


def test_a_forecast_requires_three_checkpoints_and_allows_full_marks() -> None:
    full = Figure(1.0, 0.9, 1.0, 64)
    assert math.isnan(curve.forecast([(1.0, full), (2.0, full)])[0])
    assert curve.forecast([(1.0, full), (2.0, full), (4.0, full)])[0] > 0.9


def test_the_table_has_clips_seen_and_the_forecast() -> None:
    figures = [Figure(x, x - 0.1, x + 0.1, 64) for x in (0.4, 0.6, 0.75)]
    points = [Point(f"h{i}", "f", 100 * 2**i, 60.0 * 2**i, 64, {"colour": f}) for i, f in enumerate(figures)]
    table = Curve("run", 16, [], points).table()
    assert "| 100 | 1,600 | 1.0 | 40.0 % (30.0 to 50.0; 26 of 64 clips) |" in table
    assert "If the trend continues" in table
    assert "colour 8" in table
