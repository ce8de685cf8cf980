"""Plots and contact sheets for evidence pages: small PNGs with labels, units and intervals.

matplotlib, from the extras ``eval`` and ``train``, is imported only when a plot is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.atomic import replacing
from kinema.evaluation.oracle import Figure
from kinema.evaluation.results import Median
from kinema.media.colour import to_uint8
from kinema.schema import BadRequest

if TYPE_CHECKING:
    from torch import Tensor

MOST_BYTES = 300_000
"""Largest image of an evidence page, in bytes, since it is committed to the repository."""
_COLOURS = ("#0b6e99", "#d1495b", "#6b7280", "#3a7d44")
_MARKS = ("o", "s", "D", "^")
_DPI = 110
_LABEL, _GAP = 96, 2
_LEGEND = 80
"""Characters of a legend that fit on one line."""


def forest(
    rows: Mapping[str, Mapping[str, Median]],
    path: Path,
    *,
    title: str,
    axis: str,
    at_most: float | None = None,
) -> Path:
    """Plot a dot with its interval for every row and arm, on a logarithmic axis with a line at 1.

    ``rows`` maps a measure to its median by arm; ``at_most`` shades the range from 1 to that value.
    """
    arms = list(next(iter(rows.values())))
    apart = 0.8 / len(arms)
    figure, axes = _figure(7.6, 1.5 + (0.2 + 0.2 * len(arms)) * len(rows))
    axes.set_xscale("log")
    if at_most is not None:
        axes.axvspan(1, at_most, color="#e5e7eb", zorder=0, label=f"up to {at_most:g}×")
    axes.axvline(1, color="#111827", linewidth=1)
    for k, arm in enumerate(arms):
        axes.plot([], [], _MARKS[k], color=_COLOURS[k], markersize=5, label=arm)
        for place, by_arm in enumerate(rows.values()):
            f = by_arm[arm]
            if not math.isfinite(f.median) or f.median <= 0:
                continue
            y = len(rows) - 1 - place + apart * ((len(arms) - 1) / 2 - k)
            _dot(axes, f, y, k)
            end = f.high if math.isfinite(f.high) else f.median
            label_position = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(_short(f.median), (end, y), fontsize=7, **label_position)
    axes.margins(x=0.1)
    axes.set_yticks(range(len(rows) - 1, -1, -1), list(rows))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(axis, fontsize=9, loc="right")
    axes.set_title(title, fontsize=10, loc="left")
    _plain_ticks(axes.xaxis)
    axes.grid(axis="x", which="major", color="#e5e7eb", linewidth=0.6)
    columns = 2 if sum(map(len, arms)) > _LEGEND else len(arms) + 1
    figure.legend(fontsize=8, loc="outside lower center", ncols=columns, frameon=False)
    return _save(figure, path)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _dot(axes: Any, f: Median, y: float, k: int) -> None:
    low, high = (bound if math.isfinite(bound) else f.median for bound in (f.low, f.high))
    reach = [[max(0.0, f.median - low)], [max(0.0, high - f.median)]]
    axes.errorbar([f.median], [y], xerr=reach, fmt=_MARKS[k], color=_COLOURS[k], markersize=5, capsize=3)


def curves(
    loss: Sequence[tuple[float, float]],
    shares: Mapping[str, Sequence[tuple[float, Figure]]],
    path: Path,
    *,
    title: str,
    goals: Mapping[str, float],
) -> Path:
    """Plot held-out loss and scores (0 to 1) against minutes of training; ``goals`` are thin lines."""
    figure, (left, right) = _figure(9.6, 3.8, columns=2)
    if loss:
        left.plot([x for x, _ in loss], [y for _, y in loss], color=_COLOURS[0], marker=".", linewidth=1.2)
    left.set_ylabel("held-out loss (averaged weights)")
    left.set_title(title, fontsize=10, loc="left")
    for k, (name, points) in enumerate(shares.items()):
        minutes, figures = [x for x, _ in points], [f for _, f in points]
        middle = [100 * f.mean for f in figures]
        reach = [[100 * (f.mean - f.low) for f in figures], [100 * (f.high - f.mean) for f in figures]]
        style = {"color": _COLOURS[k % 4], "marker": _MARKS[k % 4], "markersize": 4}
        right.errorbar(minutes, middle, yerr=reach, capsize=2, linewidth=1.2, label=name, **style)
        if name in goals:
            right.axhline(100 * goals[name], color=_COLOURS[k % 4], linewidth=0.8, linestyle=":")
    right.set_ylim(0, 104)
    right.set_ylabel("correct clips (%), 95 % interval")
    if shares:
        right.legend(fontsize=8, loc="lower right")
        right.set_title("oracle scores (dotted: goals)", fontsize=10, loc="left")
    for axes in (left, right):
        axes.set_xlabel("minutes of training")
        axes.grid(color="#e5e7eb", linewidth=0.6)
    return _save(figure, path)


def sheet(rows: Sequence[tuple[str, Tensor]], path: Path) -> Path:
    """Tile clips 3×T×H×W as labelled rows of frames; a row labelled "" without frames is a gap."""
    from PIL import Image, ImageDraw, ImageFont

    clips = [(label, to_uint8(video[None])[0]) for label, video in rows]
    frames, height, width, _ = clips[0][1].shape
    step_y, step_x = height + _GAP, width + _GAP
    heads = sum(label.startswith("# ") for label, _ in clips)
    image = Image.new("RGB", (_LABEL + frames * step_x, len(clips) * step_y + heads * 18 + 16), "white")
    pen, font, top = ImageDraw.Draw(image), ImageFont.load_default(11), 0
    for label, clip_THWC in clips:
        text = label
        if label.startswith("# "):
            head, _, text = label[2:].partition("|")
            pen.text((2, top + 3), head, fill="black", font=ImageFont.load_default(12))
            top += 18
        pen.text((2, top + step_y // 2 - 7), text, fill="#374151", font=font)
        for t, frame_HWC in enumerate(clip_THWC):
            image.paste(Image.fromarray(frame_HWC), (_LABEL + t * step_x, top))
        top += step_y
    pen.text((2, top + 1), "frame", fill="#374151", font=font)
    for t in range(frames):
        pen.text((_LABEL + t * step_x + width // 2 - 5, top + 1), f"{t}", fill="#374151", font=font)
    return _save_small(image, path)


# ------------------------------------------------------------------------------------------ shared


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise BadRequest("plots require matplotlib; install it with: pip install 'kinema[eval]'") from None
    figure = Canvas(figsize=(width, height), dpi=_DPI, layout="constrained")
    return figure, figure.subplots(1, columns)


def _plain_ticks(axis: Any) -> None:
    """Plain numbers on a logarithmic axis, with as many ticks per decade as fit."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    steps = (1, 1.5, 2, 3, 5, 7) if decades < 1.3 else (1, 3) if decades < 3.5 else (1,)
    axis.set_major_locator(LogLocator(base=10, subs=steps, numticks=20))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def _save(figure: Any, path: Path) -> Path:
    from PIL import Image

    raw = io.BytesIO()
    figure.savefig(raw, format="png")
    raw.seek(0)
    with Image.open(raw) as image:
        return _save_small(image.convert("RGB"), path)


def _save_small(image: Any, path: Path) -> Path:
    """Save as PNG with as many colours as fit in `MOST_BYTES`."""
    for colours in (256, 128, 64, 32, 16):
        raw = io.BytesIO()
        image.quantize(colours).save(raw, format="PNG", optimize=True)
        if raw.tell() <= MOST_BYTES:
            break
    with replacing(path) as part:
        part.write_bytes(raw.getvalue())
    return path
