"""The report on temporal consistency: the same weights as a video model and frame by frame.

It trains nothing. ``write`` samples and measures, and leaves ``temporal-consistency.json``, a plot and
contact sheets; ``render`` makes the page from those files and from the results of experiments beside them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from kinema.atomic import beside, check_folder, replacing
from kinema.checkpoints.settings import readable
from kinema.checkpoints.source import read_json
from kinema.data import playroom
from kinema.evaluation import claims, measuring, pages, plots
from kinema.evaluation.intervals import paired_difference, paired_ratio
from kinema.evaluation.kept import kept
from kinema.evaluation.options import EvaluateOptions
from kinema.evaluation.oracle import Figure, Verdict, judge, spread, wilson
from kinema.evaluation.results import to_json
from kinema.evaluation.sampling import Sampling
from kinema.evaluation.temporal import borders, temporal
from kinema.events import Note, OnEvent, Phase, ignore
from kinema.schema import BadRequest
from kinema.system import System

PROMPTS = 64
NAME = "temporal-consistency"
ARMS = ("as a video", "frame by frame", "real")
_OPTION = "per_frame"
"""The option by which a family forbids its frames to see each other."""
_APART = ("zoetrope", "vdm")
"""The families that have it."""
_SHOWN, _CLIPS_A_SHEET = 4, 2


@dataclass(frozen=True)
class MeasuredClip:
    """What was measured on one clip of one arm."""

    verdict: Verdict
    kept: bool
    measures: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One prompt and its seed under the arms, by name; ``videos`` 3×T×H×W where they are to be shown."""

    prompt: str
    seed: int
    arms: Mapping[str, MeasuredClip]
    videos: Mapping[str, Tensor]


@dataclass(frozen=True)
class Line:
    """One measure: its figure by arm, and the paired comparisons by name (ratios, or differences of shares)."""

    arms: Mapping[str, Figure]
    against: Mapping[str, Figure]


@dataclass(frozen=True)
class Report:
    """The figures of the report; ``page`` and ``sheets`` are files in the evidence folder."""

    protocol: Mapping[str, Any]
    masked: str
    measures: Mapping[str, Line]
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
    """Sample every prompt twice from the same noise, measure, and write the page with its pictures.

    Raises BadRequest for a family that cannot be sampled frame by frame.
    """
    option, masked = apart(system)
    evidence = Path(options.evidence)
    check_folder(evidence.absolute())
    if (evidence / f"{NAME}.json").exists() and not options.overwrite:
        raise BadRequest(f"{evidence} holds a report; choose another folder, or pass --overwrite to replace it")
    evidence.mkdir(exist_ok=True)
    video = measuring.sampling_of(system, options, on_event)
    frame_by_frame = replace(video, request=video.request.with_(extra={option: True}))
    prompts = measuring.prompts_of(options, PROMPTS)
    on_event(Phase("measure", f"{len(prompts)} prompts, as a video and frame by frame"))
    shown = to_show(prompts)

    def measured(i: int, j: int) -> list[Row]:
        return report_rows(video, frame_by_frame, prompts[i:j], options.seed + i, shown)

    rows, stopped = measuring.gather(measured, len(prompts), options.batch, on_event)
    on_event(Phase("write", str(evidence / f"{NAME}.md")))
    report = Report(
        protocol={
            **measuring.protocol(video, options, len(prompts)),
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
    place = _claimed(report, evidence, overwrite=options.overwrite)
    if place != evidence:
        on_event(Note(f"another report was written to {evidence} meanwhile and was kept; this one is in {place}"))
    evidence = place
    draw_sheets(rows, evidence)
    draw_plot(report, evidence / f"{NAME}.png")
    render(evidence)
    return report


def _claimed(report: Report, evidence: Path, *, overwrite: bool) -> Path:
    """The folder that the report's figures went to, which makes it the place of all the rest."""
    if overwrite:
        _write(evidence / f"{NAME}.json", report.to_json())
        return evidence

    def claim(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        _write(folder / f"{NAME}.json", report.to_json(), exclusive=True)
        return folder

    return beside(evidence, claim, lambda folder: os.path.lexists(folder / f"{NAME}.json"))


def render(evidence: Path) -> Path:
    """Write the page from ``temporal-consistency.json`` and the experiments' JSON files in the folder."""
    path = evidence / f"{NAME}.json"
    if not path.is_file():
        raise BadRequest(f"{evidence} holds no {NAME}.json; run `kinema evaluate --report` first")
    report = read_json(path)
    page = evidence / f"{NAME}.md"
    with readable(str(path)):
        text = pages.page(report, claims.read(evidence))
    _write(page, text)
    return page


def apart(system: System) -> tuple[str, str]:
    """(the option that keeps frames apart, a sentence that says what exactly it forbids)."""
    name = system.family.name
    if name not in _APART:
        raise BadRequest(f"{name} cannot be sampled frame by frame; the report needs a model of {' or '.join(_APART)}")
    if name == "vdm":
        return _OPTION, (
            "every temporal attention layer lets a frame attend to itself alone, which is how VDM treats the "
            "independent images of joint training; nothing else in the network connects frames"
        )
    size = _block(system)
    return _OPTION, (
        f"nothing passes between groups of {size} frames: temporal convolutions see zeros beyond their group, and "
        f"attention from one group to another is forbidden. A token of zoetrope holds {size} frames, so this is the "
        f"least its network can make by itself; each group of {size} sees itself and the words, and its place in time"
    )


# --------------------------------------------------------------------------------------- measuring


def to_show(prompts: Sequence[str]) -> set[str]:
    """The first prompts that name a direction: chosen before any clip of them is made."""
    directed = [p for p in prompts if (meaning := playroom.parse(p)) is not None and meaning.direction is not None]
    return set((directed or list(prompts))[:_SHOWN])


def report_rows(
    video: Sampling, frame_by_frame: Sampling, prompts: Sequence[str], seed: int, shown: Collection[str] = ()
) -> list[Row]:
    """Clips of these prompts under every arm; both generated arms start from the same noise."""
    together, single = video.clips(prompts, seed), frame_by_frame.clips(prompts, seed)
    fps = video.request.fps or 8.0
    block = _block(video.system)
    rows = []
    for i, prompt in enumerate(prompts):
        clips = dict(zip(ARMS, (together[i], single[i], video.real(prompt, seed + i)), strict=True))
        arms = {arm: _measured(clip, prompt, fps, block) for arm, clip in clips.items()}
        rows.append(Row(prompt, seed + i, arms, clips if prompt in shown else {}))
    return rows


def _measured(video_CTHW: Tensor, prompt: str, fps: float, block: int) -> MeasuredClip:
    measures = {**temporal(video_CTHW, fps), **borders(video_CTHW, block)}
    return MeasuredClip(judge(video_CTHW, prompt, fps), kept(video_CTHW, prompt).whole, measures)


def _block(system: System) -> int:
    """Frames that the network makes together even when frames are kept apart."""
    return int(system.config.merge) if system.family.name == "zoetrope" else 1


def measure_lines(rows: Sequence[Row], seed: int) -> dict[str, Line]:
    lines = {}
    for name in rows[0].arms[ARMS[0]].measures:
        values = {arm: [row.arms[arm].measures[name] for row in rows] for arm in ARMS}
        ratios = {_versus(a, b): paired_ratio(values[a], values[b], seed) for a, b in _pairs()}
        lines[name] = Line({arm: _figure(values[arm]) for arm in ARMS}, ratios)
    return lines


def share_lines(rows: Sequence[Row], seed: int) -> dict[str, Line]:
    """Identity (0 to 1) and shares of clips; comparisons are differences."""
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
        raise ValueError("nothing was measured")
    return figure


# ---------------------------------------------------------------------------------------- pictures


def draw_plot(report: Report, path: Path) -> Path:
    """Every temporal measure as a multiple of real clips, under both ways of sampling."""
    rows = {
        pages.LABELS.get(name, name): {arm: line.against[_versus(arm, "real")] for arm in ARMS[:2]}
        for name, line in report.measures.items()
        if name in pages.FLICKER
    }
    count, model = report.protocol["measured"], report.protocol["model"]
    title = f"The same weights, sampled two ways ({model}, {count} prompts)"
    axis = "multiple of real clips of the same prompts (log scale; 95 % paired bootstrap interval)"
    return plots.forest(rows, path, title=title, axis=axis, at_most=1.5)


def sheet_names(rows: Sequence[Row]) -> list[str]:
    """The names of the contact sheets of `draw_sheets`."""
    count = sum(bool(row.videos) for row in rows)
    return [f"{NAME}-{number + 1}.png" for number in range(-(-count // _CLIPS_A_SHEET))]


def draw_sheets(rows: Sequence[Row], evidence: Path) -> list[Path]:
    """Contact sheets of the rows whose clips were kept."""
    shown = [row for row in rows if row.videos]
    paths = []
    for number, name in enumerate(sheet_names(rows)):
        lines = []
        for row in shown[number * _CLIPS_A_SHEET : (number + 1) * _CLIPS_A_SHEET]:
            head = f"# {row.prompt} (seed {row.seed})|"
            lines += [(f"{head if arm == ARMS[0] else ''}{arm}", video) for arm, video in row.videos.items()]
        paths.append(plots.sheet(lines, evidence / name))
    return paths


def command(options: EvaluateOptions) -> str:
    """The command line that makes this report again."""
    default = EvaluateOptions()
    model = [measuring.plain_name(options.model)] if options.model != default.model else []
    words = ["kinema evaluate", *model, "--report"]
    for name in ("preset", "prompts", "grammar", "split", "seed", "steps", "sampler", "guidance", "batch"):
        value = getattr(options, name)
        if value != getattr(default, name):
            words.append(f"--{name} {value}")
    return " ".join(words)


def _write(path: Path, text: str, *, exclusive: bool = False) -> None:
    with replacing(path, exclusive=exclusive) as part:
        part.write_text(text, encoding="utf-8")
