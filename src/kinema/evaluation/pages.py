"""Text of the temporal consistency report, generated from its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kinema.evaluation.results import against_of, describe, figure_of, median_of, number, sides

FLICKER = ("jerk", "high_frequency_ratio", "luma_second_difference", "interpolation_residual", "block_borders")
"""Measures where higher is worse, in plotting order."""
AMOUNTS = ("sharpness", "motion_amount")
"""What blurred or still clips, which are steady too, have less of."""
LABELS = {
    "jerk": "jerk",
    "high_frequency_ratio": "high-frequency power",
    "luma_second_difference": "luma second difference",
    "interpolation_residual": "interpolation residual",
    "block_borders": "change at block borders",
    "flickering": "VBench flickering (1 is still)",
    "sharpness": "sharpness",
    "dynamic_degree": "dynamic degree (px)",
    "motion_amount": "pixel change per second",
    "identity": "identity (0 to 1)",
    "kept": "colour and outline right in every frame",
    "colour": "colour correct",
    "shape": "shape correct",
    "direction": "direction correct",
    "motion": "motion correct",
}
_MEANINGS = """\
- **jerk**: mean |Iₜ₊₁ − 2Iₜ + Iₜ₋₁| over mean |Iₜ₊₁ − Iₜ|. The unsteady share of the change.
- **high-frequency power**: share of temporal power (without DC, Hann window, 64×64 grey) above half Nyquist. It detects
  frame-to-frame flicker; a jump every few frames has most of its power below that and can lower it.
- **luma second difference**: mean |second difference of the mean luma|. Brightness pumping.
- **interpolation residual**: mean |Iₜ − flow midpoint of Iₜ₋₁ and Iₜ₊₁| (OpenCV DIS flow). Change that steady motion
  does not explain.
- **change at block borders**: mean change between separately generated blocks of frames, over the change inside them.
- **identity**: the oracle's share of frames in which the main object keeps its colour and outline. **Colour and outline
  right in every frame** compares them with the prompt in every judged frame.
- VBench flickering rewards blur and stillness; read it only together with dynamic degree, sharpness and motion."""


def page(report: Mapping[str, Any]) -> str:
    """The whole page; ``report`` is the content of ``temporal-consistency.json``."""
    protocol = report["protocol"]
    count = protocol["measured"]
    parts = [
        "# Temporal consistency: the same weights, frame by frame and as a video",
        _finding(report),
        f"![temporal measures as multiples of real clips]({_name(report)}.png)",
        "## What was compared",
        f"One model, `{protocol['model']}` (weights `{protocol['weights']}`), without training. Each of {count} "
        f"{_prompts(protocol)} was sampled twice from the same noise "
        f"(prompt i has seed {protocol['seed']} + i): once normally, and once with {protocol['masked by']}, where "
        f"{report['masked']}. Text, guidance, noise, steps and weights are the same. The network was not trained for "
        "the masked mode; this is intended: it keeps what it learned of single frames and loses what connects them. "
        "Real clips are playroom renderings of the same prompts.",
        f"Protocol: {describe({k: v for k, v in protocol.items() if k not in ('command', 'weights', 'masked by')})}.",
        f"Reproduce with: `{protocol['command']}`",
    ]
    if report["partial"]:
        parts.append(f"**Interrupted: {count} of {protocol['prompts']} prompts were measured.**")
    parts += ["## Results", tables(report), _MEANINGS]
    if report["sheets"]:
        parts += ["## Frames", *(f"![frames of both modes and of a real clip]({name})" for name in report["sheets"])]
    return "\n\n".join(parts) + "\n"


def tables(report: Mapping[str, Any]) -> str:
    """Temporal measures with medians of paired ratios, then identity and oracle scores with paired differences."""
    arms = list(next(iter(report["shares"].values()))["arms"])
    versus = list(next(iter(report["shares"].values()))["against"])
    rule = "|---" * (1 + len(arms) + len(versus)) + "|"
    head = "| " + " | ".join(["temporal measure", *arms, *versus]) + " |"
    lines = [head, rule, *(_measure_line(name, line) for name, line in report["measures"].items())]
    differences = [v.replace(" / ", " − ") for v in versus]
    head = "| " + " | ".join(["share of clips (%) or identity", *arms, *differences]) + " |"
    lines += [
        "",
        head,
        rule,
        *(_line(name, line, percent=name != "identity") for name, line in report["shares"].items()),
    ]
    note = (
        "Temporal measures are medians, of clips and of the ratios of pairs; after a ratio, in how many pairs the "
        "first side is lower / higher. 95 % intervals in parentheses: bootstrap for medians and comparisons, normal "
        "for means, Wilson for shares."
    )
    return "\n".join([*lines, "", note])


def _measure_line(name: str, line: Mapping[str, Any]) -> str:
    against = [against_of(each) for each in line["against"].values()]
    cells = [*(number(median_of(each)) for each in line["arms"].values())]
    cells += [f"{number(each.ratio)}; {sides(each)}" for each in against]
    return f"| {' | '.join([LABELS.get(name, name.replace('_', ' ')), *cells])} |"


def _line(name: str, line: Mapping[str, Any], *, percent: bool) -> str:
    cells = [_cell(figure, percent) for figure in [*line["arms"].values(), *line["against"].values()]]
    return f"| {' | '.join([LABELS.get(name, name.replace('_', ' ')), *cells])} |"


def _cell(data: Any, percent: bool) -> str:
    figure = figure_of(data)
    if not percent:
        return number(figure)
    return f"{100 * figure.mean:.1f} ({100 * figure.low:.1f} to {100 * figure.high:.1f})"


def _finding(report: Mapping[str, Any]) -> str:
    """First paragraph: the main results."""
    key = "frame by frame / as a video"
    measures = report["measures"]
    pairs = {name: against_of(line["against"][key]) for name, line in measures.items() if name in FLICKER}
    parts = [f"{LABELS[name]} ×{number(each.ratio)}" for name, each in pairs.items()]
    real = {name: against_of(measures[name]["against"]["as a video / real"]) for name in (*pairs, *AMOUNTS)}
    relative = [f"{LABELS[name]} ×{number(each.ratio)}" for name, each in real.items()]
    kept = report["shares"]["kept"]["arms"]
    shares = {arm: f"{100 * figure_of(figure).mean:.0f} %" for arm, figure in kept.items()}
    return (
        f"Sampled frame by frame, the same weights score, relative to video sampling: {'; '.join(parts)} "
        f"(medians of paired ratios with 95 % intervals). The main object keeps its colour and outline in every frame "
        f"in {shares['frame by frame']} of clips, as a video in {shares['as a video']}, real clips in "
        f"{shares['real']}. "
        f"Video sampling relative to a real clip of the same prompt each: {'; '.join(relative)}."
    )


def _prompts(protocol: Mapping[str, Any]) -> str:
    if "prompts_file" in protocol:
        return f"prompts of {protocol['prompts_file']}"
    return f"{protocol['split']} prompts of the {protocol['grammar']} grammar"


def _name(report: Mapping[str, Any]) -> str:
    return str(report.get("name", "temporal-consistency"))
