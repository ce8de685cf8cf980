"""The text of the report on temporal consistency, made from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kinema.evaluation.claims import Claim
from kinema.evaluation.results import figure_of, number, told

FLICKER = ("jerk", "high_frequency_ratio", "luma_second_difference", "interpolation_residual", "block_borders")
"""Measures of which more is worse, in the order of the plot."""
LABELS = {
    "jerk": "jerk",
    "high_frequency_ratio": "high-frequency power",
    "luma_second_difference": "luma second difference",
    "interpolation_residual": "interpolation residual",
    "block_borders": "change at block borders",
    "flickering": "VBench flickering (1 is still)",
    "sharpness": "sharpness",
    "dynamic_degree": "dynamic degree (px)",
    "motion_amount": "change of a pixel a second",
    "identity": "identity (0 to 1)",
    "kept": "colour and outline kept in every frame",
    "colour": "colour right",
    "shape": "shape right",
    "direction": "direction right",
    "motion": "kind of motion right",
}
_MEANINGS = """\
- **jerk**: mean |Iₜ₊₁ − 2Iₜ + Iₜ₋₁| over mean |Iₜ₊₁ − Iₜ|. How much of the change is not steady.
- **high-frequency power**: share of temporal power (DC left out, Hann window, 64×64 grey) above half Nyquist. It
  sees flicker from frame to frame; a jump every few frames has most of its power below and can lower it.
- **luma second difference**: mean |second difference of the mean luma|. Brightness that pumps.
- **interpolation residual**: mean |Iₜ − flow midpoint of Iₜ₋₁ and Iₜ₊₁| (OpenCV DIS flow). What steady motion does
  not explain.
- **change at block borders**: mean change between blocks of frames that were made apart, over the change inside.
- **identity**: the oracle's share of frames in which the main object keeps its colour and outline. **Kept** asks it
  of every judged frame of a clip, against the prompt.
- VBench flickering rewards blur and stillness, so it stands beside dynamic degree, sharpness and motion, and says
  nothing alone."""


def page(report: Mapping[str, Any], claims: Sequence[Claim]) -> str:
    """The whole page; ``report`` is what ``temporal-consistency.json`` holds."""
    protocol = report["protocol"]
    count = protocol["measured"]
    parts = [
        "# Temporal consistency: the same weights, frame by frame and as a video",
        _finding(report),
        f"![temporal measures as multiples of real clips]({_name(report)}.png)",
        "## What was compared",
        f"One model, `{protocol['model']}` (weights `{protocol['weights']}`), nothing trained. Each of {count} "
        f"{protocol['split']} prompts of the {protocol['grammar']} grammar was sampled twice from the same noise "
        f"(prompt i has seed {protocol['seed']} + i): once as it is, and once with {protocol['masked by']}, where "
        f"{report['masked']}. Text, guidance, noise, steps and weights are the same; the network was not trained "
        "for the masked way, which is the point: what it knows of a still picture is kept, and what connects the "
        "frames is taken away. Real clips are playroom renderings of the same prompts.",
        f"Protocol: {told({k: v for k, v in protocol.items() if k not in ('command', 'weights', 'masked by')})}.",
        f"Again: `{protocol['command']}`",
    ]
    if report["partial"]:
        parts.append(f"**Interrupted: {count} of {protocol['prompts']} prompts were measured.**")
    parts += ["## Figures", tables(report), _MEANINGS]
    if report["sheets"]:
        parts += ["## Frames", *(f"![frames of both ways and of a real clip]({name})" for name in report["sheets"])]
    if claims:
        parts += ["## VDM's own claims on playroom", *(_claim(claim) for claim in claims)]
    return "\n\n".join(parts) + "\n"


def tables(report: Mapping[str, Any]) -> str:
    """Temporal measures with paired ratios, then identity and the oracle's shares with paired differences."""
    arms = list(next(iter(report["shares"].values()))["arms"])
    versus = list(next(iter(report["shares"].values()))["against"])
    rule = "|---" * (1 + len(arms) + len(versus)) + "|"
    head = "| " + " | ".join(["over time", *arms, *versus]) + " |"
    lines = [head, rule, *(_line(name, line, percent=False) for name, line in report["measures"].items())]
    apart = [v.replace(" / ", " − ") for v in versus]
    head = "| " + " | ".join(["share of clips (%) or identity", *arms, *apart]) + " |"
    lines += [
        "",
        head,
        rule,
        *(_line(name, line, percent=name != "identity") for name, line in report["shares"].items()),
    ]
    note = "In brackets 95 % intervals: normal for means, Wilson for shares, paired bootstrap for comparisons."
    return "\n".join([*lines, "", note])


def _line(name: str, line: Mapping[str, Any], *, percent: bool) -> str:
    cells = [_cell(figure, percent) for figure in [*line["arms"].values(), *line["against"].values()]]
    return f"| {' | '.join([LABELS.get(name, name.replace('_', ' ')), *cells])} |"


def _cell(told_: Any, percent: bool) -> str:
    figure = figure_of(told_)
    if not percent:
        return number(figure)
    return f"{100 * figure.mean:.1f} ({100 * figure.low:.1f} to {100 * figure.high:.1f})"


def _finding(report: Mapping[str, Any]) -> str:
    """The first paragraph: what came out, in the figures themselves."""
    key = "frame by frame / as a video"
    ratios = {name: figure_of(line["against"][key]) for name, line in report["measures"].items() if name in FLICKER}
    parts = [f"{LABELS[name]} ×{number(figure)}" for name, figure in ratios.items()]
    real = {name: figure_of(report["measures"][name]["against"]["as a video / real"]) for name in ratios}
    beside = [f"{LABELS[name]} ×{number(figure)}" for name, figure in real.items()]
    kept = report["shares"]["kept"]["arms"]
    shares = {arm: f"{100 * figure_of(figure).mean:.0f} %" for arm, figure in kept.items()}
    return (
        f"Sampled frame by frame, the same weights give, against sampling as a video: {'; '.join(parts)} "
        f"(paired ratios with 95 % intervals). The main object keeps its colour and outline in every frame in "
        f"{shares['frame by frame']} of clips, as a video in {shares['as a video']}, real clips in {shares['real']}. "
        f"As a video, against real clips of the same prompts: {'; '.join(beside)}."
    )


def _claim(claim: Claim) -> str:
    protocol = told(claim.protocol)
    return "\n\n".join([f"### {claim.claim}", claim.method, claim.table(), f"Protocol: {protocol}."])


def _name(report: Mapping[str, Any]) -> str:
    return str(report.get("name", "temporal-consistency"))
