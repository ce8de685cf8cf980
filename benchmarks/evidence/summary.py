"""The figures of the evidence, computed from the rows: medians, paired ratios, win rates, shares, distances."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.evidence import distances, protocol
from benchmarks.evidence.parts import HIGH, OFF, OTHER
from benchmarks.evidence.rows import ORACLE, Row
from kinema.data import playroom
from kinema.evaluation.intervals import median, paired_difference, paired_median_ratio, win_rate
from kinema.evaluation.oracle import Figure, share_interval

UNSTEADY = ("interpolation_residual", "luma_second_difference", "high_frequency_ratio", "jerk")
"""Measures of unsteadiness, lower is steadier; a blurred or still clip scores well on them."""
BESIDE = ("sharpness", "motion_amount", "dynamic_degree")
"""What they are always shown with."""
KEPT = ("identity", "frames of the colour", "frames of the outline")
Compared = dict[str, Any]


def figure(rows: Sequence[Row]) -> dict[str, Any]:
    """The summary of the figure's arms, against real clips and against the video model."""
    arms = {arm: [row for row in rows if row["arm"] == arm] for arm in (protocol.REAL, *protocol.ARMS)}
    other = features([row for row in rows if row["arm"] == OTHER])
    control = features(arms[protocol.REAL])
    measures = {}
    for name in (*UNSTEADY, *BESIDE, *KEPT):
        values = {arm: by_prompt(found, name) for arm, found in arms.items()}
        measures[name] = {
            "medians": {arm: median(each) for arm, each in values.items()},
            "to real": {arm: paired_median_ratio(values[arm], values[protocol.REAL]) for arm in protocol.ARMS},
            "to the video model": {
                arm: paired_median_ratio(each, values["video"]) for arm, each in values.items() if arm != "video"
            },
            "video model lower": {
                arm: win_rate(values["video"], each) for arm, each in values.items() if arm in RIVALS
            },
        }
    return {
        "measures": measures,
        "shares": {name: {arm: share(found, name) for arm, found in arms.items()} for name in ORACLE},
        "more right as a video": {name: {arm: more_right(arms, name, arm) for arm in RIVALS} for name in ORACLE},
        "always one shape": one_shape(arms["video"]),
        "distances": {arm: distance(features(arms[arm]), other, control) for arm in protocol.ARMS},
    }


def more_right(arms: Mapping[str, Sequence[Row]], name: str, arm: str) -> Figure:
    """How much more often the video model is right than an arm: the difference of their shares, over prompts."""
    values = [by_prompt([row for row in arms[each] if row[name] is not None], name) for each in ("video", arm)]
    return paired_difference(*values)


def one_shape(rows: Sequence[Row]) -> dict[str, Any]:
    """The shape that most prompts ask for, and for how many clips: what a model that draws nothing else gets right."""
    meanings = [playroom.parse(row["prompt"]) for row in rows]
    (shape, count), *_ = Counter(meaning.shape for meaning in meanings if meaning).most_common(1)
    return {"shape": shape, "right": count}


RIVALS = tuple(arm for arm in protocol.ARMS if arm != "video")


def claims(rows: Mapping[str, Sequence[Row]]) -> dict[str, Compared]:
    """The summary of each of VDM's claims whose parts were measured: the first arm against the second."""
    other = features([row for row in rows["figure"] if row["arm"] == OTHER])
    plain_clips = [row for row in rows["figure"] if row["arm"] == "video" and row["repetition"] == 0]
    every = (*UNSTEADY, *BESIDE, *KEPT)
    found = {}

    def pair(part: str, first: str, second: str, names: Sequence[str]) -> Compared:
        both = [[row for row in rows[part] if row["arm"] == arm] for arm in (first, second)]
        return compared(first, second, *both, names, other)

    def against_plain(part: str, first: str, second: str) -> Compared:
        """An arm against the figure's video arm, of the same prompts and seeds."""
        return compared(first, second, [r for r in rows[part] if r["arm"] == first], plain_clips, every, other)

    if "images" in rows and "losses" in rows:
        joint = against_plain("images", "4 images", "no images")
        joint["measures"] = pair("losses", "4 images", "no images", ("loss",))["measures"] | joint["measures"]
        found["joint"] = joint
    if "extension" in rows:
        extended = ("change at block borders", *UNSTEADY[1:], "sharpness", "motion_amount", *KEPT)
        found["extension"] = pair("extension", "reconstruction", "replacement", extended)
    if "langevin" in rows:
        found["langevin"] = pair("langevin", "langevin", "ancestral", every)
    if "guidance" in rows:
        off, middle, high = (f"guidance {scale:g}" for scale in (OFF, protocol.GUIDANCE, HIGH))
        found["guidance off"] = against_plain("guidance", off, middle)
        found["guidance high"] = against_plain("guidance", high, middle)
    return found


def compared(
    first: str, second: str, a: Sequence[Row], b: Sequence[Row], names: Sequence[str], other_ND: Tensor
) -> Compared:  # noqa: PLR0917
    """Two arms on the same prompts: medians, paired ratios and win rates; shares with their differences; distances."""
    measures = {}
    for name in names:
        values = [[float(row[name]) for row in rows] for rows in (a, b)]
        measures[name] = {
            "first": median(values[0]),
            "second": median(values[1]),
            "ratio": paired_median_ratio(*values),
            "first lower": win_rate(*values),
        }
    found: Compared = {"arms": [first, second], "measures": measures, "shares": {}, "distances": {}}
    if ORACLE[0] not in a[0]:
        return found
    for name in ORACLE:
        asked = [i for i, row in enumerate(a) if row[name] is not None]
        right = [[float(rows[i][name]) for i in asked] for rows in (a, b)]
        found["shares"][name] = {
            "first": share(a, name), "second": share(b, name), "difference": paired_difference(*right)
        }  # fmt: skip
    farther = distances.differences(features(a), features(b), other_ND)
    each = [distances.kernel_distance, distances.frechet_distance]
    for name, distance_of, difference in zip(("KVD", "Fréchet distance"), each, farther, strict=True):
        values = [distance_of(features(rows), other_ND) for rows in (a, b)]
        found["distances"][name] = {"first": values[0], "second": values[1], "difference": difference}
    return found


def by_prompt(rows: Sequence[Row], name: str) -> list[float]:
    """The value of each prompt: the mean over its clips."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["prompt"], []).append(float(row[name]))
    return [math.fsum(each) / len(each) for each in values.values()]


def share(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """How many of the clips whose prompt asks for it are right, with Wilson's interval for as many prompts."""
    asked = [row for row in rows if row[name] is not None]
    prompts = by_prompt(asked, name)
    return {
        "right": sum(row[name] for row in asked),
        "asked": len(asked),
        "share": share_interval(math.fsum(prompts) / len(prompts), len(prompts)),
    }


def features(rows: Sequence[Row]) -> Tensor:
    """The extractor's features N×D."""
    return torch.tensor([row["features"] for row in rows], dtype=torch.float64)


def distance(generated_ND: Tensor, real_ND: Tensor, control_ND: Tensor) -> dict[str, Any]:
    found = distances.distances(generated_ND, real_ND, control_ND)
    rows = {name: {"distance": own, "real": real} for name, own, real in found.rows()}
    return {**rows, "clips": found.size, "reference clips": found.reference}


def plain(value: Any) -> Any:
    """Figures as lists [value, low, high, count], for JSON; infinite ends are null."""
    if isinstance(value, Figure):
        ends = [value.mean, value.low, value.high]
        return [*(float(f"{x:.5g}") if math.isfinite(x) else None for x in ends), value.count]
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
