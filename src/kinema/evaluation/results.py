"""Evaluation results: figures with intervals, their protocol, tables and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from kinema.evaluation.intervals import median, paired_median_ratio, win_rate
from kinema.evaluation.oracle import Figure, Scores

STEADIER = {
    "jerk": "lower",
    "high_frequency_ratio": "lower",
    "luma_second_difference": "lower",
    "interpolation_residual": "lower",
    "flickering": "higher",
    "sharpness": "",
    "motion_amount": "",
    "dynamic_degree": "",
}
"""Temporal measures in the order of tables, and which side of a pair is the steadier one. Blurred and still clips are
steady too, so sharpness and motion always follow."""


@dataclass(frozen=True)
class Median:
    """A median with its 95 % interval over ``count`` clips (percentile bootstrap)."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, figure: Figure) -> Median:
        return cls(figure.mean, figure.low, figure.high, figure.count)


@dataclass(frozen=True)
class Against:
    """Clips compared with others, pair by pair: the median of the pairs' ratios, and in how many they are lower.

    ``lower_share`` is the share in which they are lower, equal pairs counting half.
    """

    ratio: Median
    lower: int
    higher: int
    lower_share: Figure

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float], seed: int = 0) -> Against:
        pairs = list(zip(first, second, strict=True))
        lower, higher = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
        return cls(Median.of(paired_median_ratio(first, second, seed)), lower, higher, win_rate(first, second))


@dataclass(frozen=True)
class Compared:
    """One measure on generated clips compared with one real clip each, of the same prompt.

    ``control`` compares a second real clip of the prompt with the first: what to expect without any defect.
    """

    made: Median
    real: Median
    against: Against
    control: Against | None = None

    @classmethod
    def of(
        cls, generated: Sequence[float], real: Sequence[float], control: Sequence[float] | None = None, seed: int = 0
    ) -> Compared:
        return cls(
            Median.of(median(generated, seed)),
            Median.of(median(real, seed)),
            Against.of(generated, real, seed),
            None if control is None else Against.of(control, real, seed),
        )


@dataclass(frozen=True)
class Counted:
    """How many of ``prompts`` prompts came out right."""

    right: int
    prompts: int


@dataclass(frozen=True)
class TextToVideo:
    """Oracle scores, how many prompts of each kind of motion have the right one, and temporal measures by name."""

    scores: Scores
    motions: Mapping[str, Counted]
    temporal: Mapping[str, Compared]


@dataclass(frozen=True)
class ImageToVideo:
    """Results for clips animated from the first frame of a real clip.

    ``psnr_own`` (dB; ``psnr_own_least`` is the minimum) compares the model's own frame 0, before the given pixels are
    restored, with the image; ``exact_after`` is the share of clips whose frame 0 equals the image afterwards.
    ``kept`` is the share of clips whose object has the given colour and outline in every judged frame. ``seam`` is the
    change from frame 0 to 1 as a multiple of the clip's other changes. ``temporal`` compares each measure with the real
    clips that the images come from, which have the same background and object.
    """

    psnr_own: Figure
    psnr_own_least: float
    exact_after: Figure
    identity: Compared
    kept: Figure
    kept_real: Figure
    colour: Figure
    shape: Figure
    direction: Figure | None
    seam: Compared
    temporal: Mapping[str, Compared]


@dataclass(frozen=True)
class Evaluation:
    """All measurements. ``partial`` means that it was interrupted and covers fewer clips."""

    protocol: Mapping[str, Any]
    text_to_video: TextToVideo | None = None
    image_to_video: ImageToVideo | None = None
    clips: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    partial: bool = False

    def table(self) -> str:
        """Markdown: the protocol in one line, then one table per task."""
        parts = [describe(self.protocol)]
        if self.partial:
            parts.append("**Interrupted: results cover only the clips measured so far.**")
        if self.text_to_video:
            parts += [
                "## Text to video",
                self.text_to_video.scores.table(),
                f"Motion by kind: {counted(self.text_to_video.motions)}.",
                _temporal_table(self.text_to_video.temporal),
            ]
        if self.image_to_video:
            parts += [
                "## Image to video",
                _image_table(self.image_to_video),
                _temporal_table(self.image_to_video.temporal),
            ]
        return "\n\n".join(parts)

    def to_json(self) -> str:
        """Results overall and per clip as JSON; non-finite numbers are null."""
        return to_json(self)

    def __str__(self) -> str:
        return self.table()


# ------------------------------------------------------------------------------------------ text


def describe(protocol: Mapping[str, Any]) -> str:
    """The protocol as one line of text."""
    flat = {k: v for k, v in protocol.items() if not isinstance(v, Mapping) and v is not None}
    flat |= {k: v for inner in protocol.values() if isinstance(inner, Mapping) for k, v in inner.items()}
    return ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in flat.items())


def number(figure: Figure | Median) -> str:
    """``0.512 (0.498 to 0.530)``, to three significant digits."""
    middle = figure.median if isinstance(figure, Median) else figure.mean
    return f"{_digits(middle)} ({_digits(figure.low)} to {_digits(figure.high)})"


def counted(motions: Mapping[str, Counted]) -> str:
    """``bounces 3 of 4, spins 0 of 3``."""
    return ", ".join(f"{name} {each.right} of {each.prompts}" for name, each in motions.items())


def sides(against: Against) -> str:
    """``42 / 86``: the pairs in which the first side is lower, and higher."""
    return f"{against.lower} / {against.higher}"


def median_of(data: Mapping[str, Any] | Median) -> Median:
    """Read a median from its JSON, where null means infinite: below, as a lower bound."""
    if isinstance(data, Median):
        return data
    low = -math.inf if data["low"] is None else float(data["low"])
    middle, high = (math.inf if data[k] is None else float(data[k]) for k in ("median", "high"))
    return Median(middle, low, high, int(data["count"]))


def against_of(data: Mapping[str, Any] | Against) -> Against:
    """Read a comparison from its JSON."""
    if isinstance(data, Against):
        return data
    return Against(median_of(data["ratio"]), int(data["lower"]), int(data["higher"]), figure_of(data["lower_share"]))


def figure_of(data: Mapping[str, Any] | Figure) -> Figure:
    """Read a figure from its JSON, where null means infinite."""
    if isinstance(data, Figure):
        return data
    mean, low, high = (math.inf if data[k] is None else float(data[k]) for k in ("mean", "low", "high"))
    return Figure(mean, low, high, int(data["count"]))


def percent(figure: Figure | None) -> str:
    if figure is None:
        return "not applicable"
    bounds = f"{100 * figure.low:.1f} to {100 * figure.high:.1f}"
    return f"{100 * figure.mean:.1f} % ({bounds}; {round(figure.mean * figure.count)} of {figure.count} clips)"


def to_json(result: Any) -> str:
    return json.dumps(_finite(result), indent=1, ensure_ascii=False) + "\n"


def _temporal_table(temporal: Mapping[str, Compared]) -> str:
    controlled = any(c.control is not None for c in temporal.values())
    heads = ["temporal measure", "steadier", "generated", "real", "generated / real", "lower / higher than real"]
    heads += ["real / real", "lower / higher"] if controlled else []
    rows = [heads, ["---"] * len(heads)]
    for name in sorted(temporal, key=[*STEADIER].index):
        c = temporal[name]
        cells = [name.replace("_", " "), STEADIER[name], number(c.made), number(c.real)]
        cells += [text for each in (c.against, c.control) if each for text in (number(each.ratio), sides(each))]
        rows.append(cells)
    note = "Medians with 95 % intervals (bootstrap): of clips, and of the pairs' ratios; clips are paired by prompt."
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", note])


def _image_table(image: ImageToVideo) -> str:
    rows = {
        "PSNR of the model's own frame 0 (dB)": f"{number(image.psnr_own)}, least {image.psnr_own_least:.1f}",
        "frame 0 equals the image afterwards": percent(image.exact_after),
        "colour and outline right in every frame": f"{percent(image.kept)}; real clips {percent(image.kept_real)}",
        "colour": percent(image.colour),
        "shape": percent(image.shape),
        "direction": percent(image.direction),
        "identity": f"{number(image.identity.made)}; real clips {number(image.identity.real)}",
        "seam after frame 0": f"{number(image.seam.made)}; real clips {number(image.seam.real)}",
    }
    return "\n".join(
        ["| measure | figure and 95 % interval |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]
    )


def _digits(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _finite(asdict(value))
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
