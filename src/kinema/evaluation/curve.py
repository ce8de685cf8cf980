"""Scores against compute: a run's losses over time, with oracle scores of its checkpoints.

Scores are kept in ``curve.json`` by weight hash, so the curve can be updated while a run is in progress, and
checkpoints that the run has deleted stay on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinema import bounds
from kinema.atomic import check_folder, replacing
from kinema.checkpoints import files
from kinema.checkpoints.settings import naming_faults
from kinema.checkpoints.source import read_json
from kinema.evaluation import measuring, plots
from kinema.evaluation.options import EvaluateOptions
from kinema.evaluation.oracle import Figure, Scores
from kinema.evaluation.results import figure_of, percent, to_json
from kinema.events import Note, OnEvent, Phase, ignore
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest
from kinema.system import System, Weights, open_system, parse_metadata, with_model

GOALS = {"colour": 0.95, "shape": 0.80, "direction": 0.90}
SHARES = ("colour", "shape", "direction", "motion")
MAX_LOG = 2**30
"""Largest log that is read, in bytes."""
_STATE = "step-*.safetensors"


@dataclass(frozen=True)
class LogRow:
    """One line of a run's log; ``seconds`` is the training time so far."""

    step: int
    seconds: float
    loss: float
    validation: float | None = None


@dataclass(frozen=True)
class Point:
    """Scores of one checkpoint over ``prompts`` prompts."""

    weights: str
    file: str
    step: int
    seconds: float
    prompts: int
    scores: Mapping[str, Figure]


@dataclass(frozen=True)
class Curve:
    """A run's log and its checkpoints' scores, by step."""

    run: str
    clips_a_step: int
    log: Sequence[LogRow]
    points: Sequence[Point]
    partial: bool = False

    def table(self) -> str:
        """Markdown: scores by checkpoint, and an extrapolation to more training."""
        lines = ["| step | clips seen | minutes | " + " | ".join(SHARES) + " |", "|---|---|---|" + "---|" * len(SHARES)]
        for p in self.points:
            cells = " | ".join(percent(p.scores.get(name)) for name in SHARES)
            lines.append(f"| {p.step} | {p.step * self.clips_a_step:,} | {p.seconds / 60:.1f} | {cells} |")
        parts = []
        for name in SHARES:
            two, four = forecast([(p.seconds, p.scores[name]) for p in self.points if name in p.scores])
            if math.isfinite(two):
                parts.append(f"{name} {100 * two:.0f} % at twice and {100 * four:.0f} % at four times")
        if parts:
            lines += ["", f"If the trend continues (log-odds linear in log compute): {'; '.join(parts)} the compute."]
        if self.partial:
            lines += ["", "**Interrupted: some checkpoints are not scored yet.**"]
        return "\n".join(lines)

    def to_json(self) -> str:
        return to_json(self)

    def __str__(self) -> str:
        return self.table()


def write(options: EvaluateOptions, on_event: OnEvent = ignore) -> Curve:
    """Score the run's checkpoints and write ``curve.json``, ``curve.png`` and ``curve.md`` to the evidence folder."""
    assert options.curve is not None
    run, evidence = Path(options.curve), Path(options.evidence)
    check_folder(evidence.absolute())
    evidence.mkdir(exist_ok=True)
    log = read_log(run)
    known = _read_points(evidence / "curve.json", run.name)
    points, partial = score_checkpoints(run, options, on_event, known=known)
    curve = Curve(run.name, _clips_a_step(run), log, sorted(points, key=lambda p: (p.step, p.file)), partial)
    on_event(Phase("write", str(evidence / "curve.md")))
    _write(evidence / "curve.json", curve.to_json())
    draw(curve, evidence / "curve.png")
    _write(evidence / "curve.md", page(curve, options))
    return curve


def read_log(run: Path) -> list[LogRow]:
    """Read ``log.jsonl``, sorted by step; if a resumed run logged a step twice, the later line counts.

    Raises BadRequest if there is no log. An incomplete last line is ignored.
    """
    path = run / "log.jsonl"
    if not path.is_file():
        raise BadRequest(f"{run} has no log.jsonl; expected the folder of a training run")
    rows: dict[int, LogRow] = {}
    for line in bounds.read_bytes(path, MAX_LOG, "a run's log").decode(errors="replace").splitlines():
        try:
            entry = bounds.from_json(line, path.name)
            validation = entry.get("validation")
            validation = None if validation is None else float(validation)
            row = LogRow(int(entry["step"]), float(entry["seconds"]), float(entry["loss"]), validation)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        rows[row.step] = row
    return [rows[step] for step in sorted(rows)]


def score_checkpoints(
    run: Path, options: EvaluateOptions, on_event: OnEvent = ignore, known: Sequence[Point] = ()
) -> tuple[list[Point], bool]:
    """Score a run's ``step-*.safetensors`` and exported ``model.safetensors``; also returns whether it was interrupted.

    Checkpoints in ``known`` (by weight hash and number of prompts) are not measured again.
    """
    points = list(known)
    log = read_log(run)
    count = options.prompts or measuring.PROMPTS
    settings = replace(options, animate=False, prompts=count)
    exported = [path for path in (run / "model.safetensors",) if path.is_file()]
    for path in [*sorted(run.glob(_STATE)), *exported]:
        digest = files.weight_hash(path)
        if any(p.weights == digest and p.prompts >= count for p in points):
            on_event(Note(f"{path.name} is already on the curve"))
            continue
        on_event(Phase("load", path.name))
        step, seconds = _step_and_seconds(path, log)
        try:
            result = measuring.measure(open_checkpoint(path, options.device), settings, on_event)
        except KeyboardInterrupt:
            return points, True
        if result.partial or result.text_to_video is None:
            return points, True
        scores = _figures(result.text_to_video.scores)
        points = [p for p in points if p.weights != digest and p.step != step]
        points.append(Point(digest, path.name, step, seconds, count, scores))
    return points, False


def open_checkpoint(path: Path, device: str | None = None) -> System:
    """Open an exported model, or a training checkpoint with its averaged weights."""
    header = files.metadata(path).get("kinema-model")
    if header is None:
        return open_system(path, device=device)
    family, config = parse_metadata(header, str(path))
    with on_meta():
        model = family.build(config)
    tensors = {k.removeprefix("ema."): v for k, v in files.read_tensors(path).items() if k.startswith("ema.")}
    files.fill(model, tensors, where=str(path))
    chosen = torch.device(device) if device else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    system = System(path.name, family, config, Weights(path), device=chosen)
    return with_model(system, model.to(device=chosen, dtype=system.dtype).eval().requires_grad_(False))


def forecast(points: Sequence[tuple[float, Figure]]) -> tuple[float, float]:
    """Extrapolate shares to two and four times the last point's compute, log-odds linear in log compute.

    Weighted least squares with the binomial weight n·p·(1 - p); NaN with fewer than three points. Half a clip is added
    to both outcomes to keep shares off 0 and 1 (Agresti's correction).
    """
    points = [(x, f) for x, f in points if x > 0]
    if len({x for x, _ in points}) < 3:
        return math.nan, math.nan
    counts = np.array([f.count for _, f in points], np.float64)
    share = (np.array([f.mean for _, f in points]) * counts + 0.5) / (counts + 1)
    x = np.log([x for x, _ in points])
    weight = np.sqrt(counts * share * (1 - share))
    slope, start = np.polyfit(x, np.log(share / (1 - share)), 1, w=weight)
    odds = np.exp(start + slope * (x.max() + np.log([2.0, 4.0])))
    two, four = odds / (1 + odds)
    return float(two), float(four)


def draw(curve: Curve, path: Path) -> Path:
    """Draw the curve as a PNG: held-out loss on the left, scores on the right."""
    loss = [(row.seconds / 60, row.validation) for row in curve.log if row.validation is not None]
    shares = {
        name: found
        for name in SHARES
        if (found := [(p.seconds / 60, p.scores[name]) for p in curve.points if name in p.scores])
    }
    steps = curve.log[-1].step if curve.log else 0
    title = f"{curve.run}: {steps:,} steps of {curve.clips_a_step} clips"
    return plots.curves(loss, shares, path, title=title, goals=GOALS)


def page(curve: Curve, options: EvaluateOptions) -> str:
    """Text of the page ``curve.md``."""
    count = options.prompts or measuring.PROMPTS
    return "\n".join(
        [
            "# Scores against compute",
            "",
            f"Written by `kinema evaluate --curve`: {count} {options.share} prompts of the {options.grammar} grammar, "
            f"seed {options.seed}, averaged weights, 95 % Wilson intervals. Minutes are training time on the run's "
            "machine. The learning rate falls to zero at the end of a run, which is when scores improve most, so "
            "earlier points are lower than those of a run scheduled to stop there.",
            "",
            "![held-out loss and oracle scores against minutes of training](curve.png)",
            "",
            curve.table(),
            "",
        ]
    )


# ------------------------------------------------------------------------------------------ shared


def _step_and_seconds(path: Path, log: Sequence[LogRow]) -> tuple[int, float]:
    """(step, seconds) of a checkpoint from its own header, else the end of the log."""
    header = files.metadata(path).get("kinema-training")
    if header is not None:
        state = bounds.from_json(header, f"the training state in {path}")
        with naming_faults(str(path)):
            return int(state["step"]), float(state["seconds"])
    return (log[-1].step, log[-1].seconds) if log else (0, 0.0)


def _clips_a_step(run: Path) -> int:
    try:
        return int(read_json(run / "options.json")["recipe"]["batch"])
    except (OSError, ValueError, KeyError, TypeError):
        return 1


def _figures(scores: Scores) -> dict[str, Figure]:
    return {name: figure for name in SHARES if (figure := getattr(scores, name)) is not None}


def _read_points(path: Path, run: str) -> list[Point]:
    if not path.is_file():
        return []
    try:
        data: dict[str, Any] = read_json(path)
        points = [
            Point(**{**row, "scores": {k: figure_of(v) for k, v in row["scores"].items()}}) for row in data["points"]
        ]
        name = data["run"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadRequest(f"{path} is not a curve written by Kinema; move it away to start a new one") from None
    if name != run:
        raise BadRequest(
            f"{path} is the curve of run {bounds.printable(str(name), 80)}, not of {run}; use another evidence folder"
        )
    return points


def _write(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
