"""Evaluation results: figures with intervals, their protocol, tables and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from kinema.evaluation.intervals import paired_ratio
from kinema.evaluation.oracle import Figure, Scores, spread


@dataclass(frozen=True)
class Compared:
    """One measure on generated clips compared with real clips of the same prompts.

    ``ratio`` is generated over real, which is the mean of several clips per prompt if their content may differ.
    ``control`` is the same ratio for one more real clip: the value to expect without any defect.
    """

    made: Figure
    real: Figure
    ratio: Figure
    control: Figure | None = None

    @classmethod
    def of(
        cls, generated: Sequence[float], real: Sequence[float], control: Sequence[float] | None = None, seed: int = 0
    ) -> Compared:
        first, second = spread(generated), spread(real)
        if first is None or second is None:
            raise ValueError("no clips were measured")
        control_ratio = None if control is None else paired_ratio(control, real, seed)
        return cls(first, second, paired_ratio(generated, real, seed), control_ratio)


@dataclass(frozen=True)
class TextToVideo:
    """Oracle scores, and temporal measures by name."""

    scores: Scores
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


def number(figure: Figure) -> str:
    """``0.512 (0.498 to 0.530)``, to three significant digits."""
    return f"{_digits(figure.mean)} ({_digits(figure.low)} to {_digits(figure.high)})"


def figure_of(data: Mapping[str, Any] | Figure) -> Figure:
    """Read a figure from its JSON, where null means infinite."""
    if isinstance(data, Figure):
        return data
    mean, low, high = (math.inf if data[k] is None else float(data[k]) for k in ("mean", "low", "high"))
    return Figure(mean, low, high, int(data["count"]))


def percent(figure: Figure | None) -> str:
    if figure is None:
        return "not applicable"
    return f"{100 * figure.mean:.1f} % ({100 * figure.low:.1f} to {100 * figure.high:.1f}, {figure.count} clips)"


def to_json(result: Any) -> str:
    return json.dumps(_finite(result), indent=1, ensure_ascii=False) + "\n"


def _temporal_table(temporal: Mapping[str, Compared]) -> str:
    controlled = any(c.control is not None for c in temporal.values())
    heads = ["temporal measure", "generated", "real", "generated / real", *(["real / real"] if controlled else [])]
    rows = [heads, ["---"] * len(heads)]
    for name, c in temporal.items():
        figures = [c.made, c.real, c.ratio, *([c.control] if c.control else [])]
        rows.append([name.replace("_", " "), *map(number, figures)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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
        return round(value, 6) if math.isfinite(value) else None
    return value
