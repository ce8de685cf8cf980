"""The temporal consistency report: the same weights sampled as a video and frame by frame.

Nothing is trained. ``write`` samples and measures, and writes ``temporal-consistency.json``, a plot and contact sheets;
``render`` builds the page from those files.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from kinema.atomic import check_folder, replacing, write_numbered
from kinema.checkpoints.settings import naming_faults
from kinema.checkpoints.source import read_json
from kinema.data import playroom
from kinema.evaluation import measuring, pages, plots
from kinema.evaluation.consistency import object_consistency
from kinema.evaluation.intervals import median, paired_difference
from kinema.evaluation.options import EvaluateOptions
from kinema.evaluation.oracle import Figure, Verdict, judge, spread, wilson
from kinema.evaluation.results import Against, Median, to_json
from kinema.evaluation.sampling import Sampling
from kinema.evaluation.temporal import border_change, temporal
from kinema.events import Note, OnEvent, Phase, ignore
from kinema.schema import BadRequest
from kinema.system import System

PROMPTS = 64
NAME = "temporal-consistency"
ARMS = ("as a video", "frame by frame", "real")
_OPTION = "per_frame"
"""The family option that prevents frames from attending to each other."""
_SUPPORTED = ("zoetrope", "vdm")
"""Families with that option."""
_SHOWN, _CLIPS_A_SHEET = 4, 2


@dataclass(frozen=True)
class MeasuredClip:
    """Measurements of one clip of one arm."""

    verdict: Verdict
    kept: bool
    measures: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One prompt and seed with clips by arm; ``videos`` 3×T×H×W only if they are shown on the page."""

    prompt: str
    seed: int
    arms: Mapping[str, MeasuredClip]
    videos: Mapping[str, Tensor]


@dataclass(frozen=True)
class MeasureLine:
    """One temporal measure: medians by arm, and paired comparisons by name."""

    arms: Mapping[str, Median]
    against: Mapping[str, Against]


@dataclass(frozen=True)
class Line:
    """One share or mean: figures by arm, and paired differences by name."""

    arms: Mapping[str, Figure]
    against: Mapping[str, Figure]


@dataclass(frozen=True)
class Report:
    """Results of the report; ``page`` and ``sheets`` are files in the evidence folder."""

    protocol: Mapping[str, Any]
    masked: str
    measures: Mapping[str, MeasureLine]
    shares: Mapping[str, Line]
    partial: bool = False
    page: str = ""
    sheets: Sequence[str] = field(default_factory=tuple)

    def table(self) -> str:
        """Markdown: temporal measures with ratios, then shares with differences."""
        return pages.tables(asdict(self))

    def to_json(self) -> str:
        return to_json(self)

    def __str__(self) -> str:
        return self.table()


def write(system: System, options: EvaluateOptions, on_event: OnEvent = ignore) -> Report:
    """Sample every prompt twice from the same noise, measure, and write the page with its images.

    Raises BadRequest for a family without frame-by-frame sampling.
    """
    option, masked = per_frame_option(system)
    evidence = Path(options.evidence)
    check_folder(evidence.absolute())
    if (evidence / f"{NAME}.json").exists() and not options.overwrite:
        raise BadRequest(f"{evidence} already has a report; choose another folder, or pass --overwrite to replace it")
    evidence.mkdir(exist_ok=True)
    video = measuring.sampling_of(system, options, on_event)
    frame_by_frame = replace(video, request=video.request.with_(extra={option: True}))
    prompts = measuring.prompts_of(options, PROMPTS)
    measuring.note_known_prompts(system.name, options, prompts, on_event)
    on_event(Phase("measure", f"{len(prompts)} prompts, as a video and frame by frame"))
    displayed = prompts_to_display(prompts)

    def measured(i: int, j: int) -> list[Row]:
        return report_rows(video, frame_by_frame, prompts[i:j], options.seed + i, displayed)

    rows, stopped = measuring.gather(measured, len(prompts), options.batch, on_event)
    on_event(Phase("write", str(evidence / f"{NAME}.md")))
    report = Report(
        protocol={
            **measuring.protocol(video, options, prompts),
            "measured": len(rows),
            "masked by": f"{option}=True",
            "command": command(options),
        },
        masked=masked,
        measures=measure_lines(rows, options.seed),
        shares=share_lines(rows, options.seed),
        partial=stopped,
        page=f"{NAME}.md",
        sheets=sheet_names(rows),
    )
    place = _claim_folder(report, evidence, overwrite=options.overwrite)
    if place != evidence:
        on_event(Note(f"another report was written to {evidence} meanwhile; this one is in {place}"))
    evidence = place
    draw_sheets(rows, evidence)
    draw_plot(report, evidence / f"{NAME}.png")
    render(evidence)
    return report


def _claim_folder(report: Report, evidence: Path, *, overwrite: bool) -> Path:
    """Write the report's JSON, which claims a folder for the other files; returns the folder."""
    if overwrite:
        _write(evidence / f"{NAME}.json", report.to_json())
        return evidence

    def claim(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        _write(folder / f"{NAME}.json", report.to_json(), exclusive=True)
        return folder

    return write_numbered(evidence, claim, lambda folder: os.path.lexists(folder / f"{NAME}.json"))


def render(evidence: Path) -> Path:
    """Write the page from ``temporal-consistency.json``."""
    path = evidence / f"{NAME}.json"
    if not path.is_file():
        raise BadRequest(f"{evidence} has no {NAME}.json; run `kinema evaluate --report` first")
    report = read_json(path)
    page = evidence / f"{NAME}.md"
    with naming_faults(str(path)):
        text = pages.page(report)
    _write(page, text)
    return page


def per_frame_option(system: System) -> tuple[str, str]:
    """(the option that separates frames, a description of what it masks)."""
    name = system.family.name
    if name not in _SUPPORTED:
        raise BadRequest(
            f"{name} cannot be sampled frame by frame; the report supports {' and '.join(_SUPPORTED)} models"
        )
    if name == "vdm":
        return _OPTION, (
            "every temporal attention layer restricts each frame to itself, which is how VDM treats the independent "
            "images of joint training; nothing else in the network connects frames"
        )
    size = _block(system)
    return _OPTION, (
        f"nothing passes between groups of {size} frames: temporal convolutions are zero-padded at group borders, and "
        f"attention between groups is masked. A zoetrope token covers {size} frames, so this is the smallest unit that "
        f"the network can generate; each group of {size} attends to itself, the text and its position in time"
    )


# --------------------------------------------------------------------------------------- measuring


def prompts_to_display(prompts: Sequence[str]) -> set[str]:
    """The first prompts that name a direction, chosen before any clip is generated."""
    directed = [p for p in prompts if (meaning := playroom.parse(p)) is not None and meaning.direction is not None]
    return set((directed or list(prompts))[:_SHOWN])


def report_rows(
    video: Sampling, frame_by_frame: Sampling, prompts: Sequence[str], seed: int, displayed: Collection[str] = ()
) -> list[Row]:
    """Sample and measure these prompts under every arm; both generated arms start from the same noise."""
    together, single = video.clips(prompts, seed), frame_by_frame.clips(prompts, seed)
    fps = video.request.fps or 8.0
    block = _block(video.system)
    rows = []
    for i, prompt in enumerate(prompts):
        clips = dict(zip(ARMS, (together[i], single[i], video.real(prompt, seed + i)), strict=True))
        arms = {arm: _measured(clip, prompt, fps, block) for arm, clip in clips.items()}
        rows.append(Row(prompt, seed + i, arms, clips if prompt in displayed else {}))
    return rows


def _measured(video_CTHW: Tensor, prompt: str, fps: float, block: int) -> MeasuredClip:
    measures = {**temporal(video_CTHW, fps), **border_change(video_CTHW, block)}
    return MeasuredClip(judge(video_CTHW, prompt, fps), object_consistency(video_CTHW, prompt).complete, measures)


def _block(system: System) -> int:
    """Frames per token, which are generated together even in frame-by-frame mode."""
    return int(system.config.merge) if system.family.name == "zoetrope" else 1


def measure_lines(rows: Sequence[Row], seed: int) -> dict[str, MeasureLine]:
    lines = {}
    for name in rows[0].arms[ARMS[0]].measures:
        values = {arm: [row.arms[arm].measures[name] for row in rows] for arm in ARMS}
        against = {_versus(a, b): Against.of(values[a], values[b], seed) for a, b in _pairs()}
        lines[name] = MeasureLine({arm: Median.of(median(values[arm], seed)) for arm in ARMS}, against)
    return lines


def share_lines(rows: Sequence[Row], seed: int) -> dict[str, Line]:
    """Identity (0 to 1) and shares of clips, compared by differences."""
    lines = {}
    identity = {arm: [row.arms[arm].verdict.identity for row in rows] for arm in ARMS}
    differences = {_versus(a, b): paired_difference(identity[a], identity[b], seed) for a, b in _pairs()}
    lines["identity"] = Line({arm: _figure(identity[arm]) for arm in ARMS}, differences)
    for name in ("kept", "colour", "shape", "direction", "motion"):
        outcomes = {arm: [_outcome(row.arms[arm], name) for row in rows] for arm in ARMS}
        asked = [i for i, outcome in enumerate(outcomes["real"]) if outcome is not None]
        if asked:
            known = {arm: [float(bool(outcomes[arm][i])) for i in asked] for arm in ARMS}
            differences = {_versus(a, b): paired_difference(known[a], known[b], seed) for a, b in _pairs()}
            shares = {arm: wilson([bool(v) for v in known[arm]]) for arm in ARMS}
            lines[name] = Line({arm: f for arm, f in shares.items() if f is not None}, differences)
    return lines


def _outcome(clip: MeasuredClip, name: str) -> bool | None:
    return clip.kept if name == "kept" else getattr(clip.verdict, f"{name}_right")


def _pairs() -> list[tuple[str, str]]:
    return [("frame by frame", "as a video"), ("as a video", "real"), ("frame by frame", "real")]


def _versus(arm: str, reference: str) -> str:
    return f"{arm} / {reference}"


def _figure(values: Sequence[float]) -> Figure:
    figure = spread(values)
    if figure is None:
        raise ValueError("no clips were measured")
    return figure


# ------------------------------------------------------------------------------------------ images


def draw_plot(report: Report, path: Path) -> Path:
    """Plot every temporal measure as a multiple of real clips, for both sampling modes."""
    rows = {
        pages.LABELS.get(name, name): {arm: line.against[_versus(arm, "real")].ratio for arm in ARMS[:2]}
        for name, line in report.measures.items()
        if name in pages.FLICKER
    }
    count, model = report.protocol["measured"], report.protocol["model"]
    title = f"The same weights in two sampling modes ({model}, {count} prompts)"
    axis = "multiple of a real clip of the same prompt (log scale; median of pairs with 95 % bootstrap interval)"
    return plots.forest(rows, path, title=title, axis=axis, at_most=1.5)


def sheet_names(rows: Sequence[Row]) -> list[str]:
    """File names of the contact sheets of `draw_sheets`."""
    count = sum(bool(row.videos) for row in rows)
    return [f"{NAME}-{number + 1}.png" for number in range(-(-count // _CLIPS_A_SHEET))]


def draw_sheets(rows: Sequence[Row], evidence: Path) -> list[Path]:
    """Draw contact sheets of the rows that have videos."""
    displayed = [row for row in rows if row.videos]
    paths = []
    for number, name in enumerate(sheet_names(rows)):
        lines = []
        for row in displayed[number * _CLIPS_A_SHEET : (number + 1) * _CLIPS_A_SHEET]:
            head = f"# {row.prompt} (seed {row.seed})|"
            lines += [(f"{head if arm == ARMS[0] else ''}{arm}", video) for arm, video in row.videos.items()]
        paths.append(plots.sheet(lines, evidence / name))
    return paths


def command(options: EvaluateOptions) -> str:
    """The command line that reproduces this report."""
    default = EvaluateOptions()
    model = [measuring.plain_name(options.model)] if options.model != default.model else []
    words = ["kinema evaluate", *model, "--report"]
    for name in ("preset", "prompts", "grammar", "split", "seed", "steps", "sampler", "guidance", "batch"):
        value = getattr(options, name)
        if value != getattr(default, name):
            words.append(f"--{name} {value}")
    if options.prompts_file is not None:
        words.append(f"--prompts-file {Path(options.prompts_file).name}")
    return " ".join(words)


def _write(path: Path, text: str, *, exclusive: bool = False) -> None:
    with replacing(path, exclusive=exclusive) as part:
        part.write_text(text, encoding="utf-8")
