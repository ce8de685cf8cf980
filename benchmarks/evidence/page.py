"""The text of docs/evidence/video-diffusion.md, from video-diffusion.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.evidence import protocol
from benchmarks.evidence.summary import BESIDE, KEPT, RIVALS, UNSTEADY

NAMES = {
    "interpolation_residual": "interpolation residual",
    "luma_second_difference": "second difference of luma",
    "high_frequency_ratio": "high-frequency ratio",
    "jerk": "jerk",
    "sharpness": "sharpness",
    "motion_amount": "motion amount",
    "dynamic_degree": "dynamic degree",
    "identity": "identity",
}
ARMS = {name: arm.title for name, arm in protocol.ARMS.items()}


@dataclass(frozen=True)
class Claim:
    """A comparison of the paper: what it found, how it is repeated here, whether its first arm was the better one."""

    title: str
    paper: str
    here: str
    better: bool
    measure: str = "KVD"
    """The measure here that stands for the paper's FVD."""


CLAIMS = {
    "joint": Claim(
        "Joint training on images",
        "FVD 68 with 4 images a clip, 202 without",
        "4 images a clip against none, at equal steps as in the paper, so the images cost {more:.0f} % more "
        "operations. All start from the common stage, so this asks whether images help a model that already knows "
        "them.",
        better=True,
    ),
    "extension": Claim(
        "Reconstruction guidance against replacement",
        "FVD 136 against 451, extended to 64 frames",
        "8 real frames extended to 64 in blocks of 16, 16 steps a block, from equal noise, for prompts whose motion is "
        "endless. The extractor reads clips of 16 frames, so no distance is measured.",
        better=True,
        measure="change at block borders",
    ),
    "langevin": Claim(
        "Langevin corrector",
        "FVD 66.92 with it, 68.19 without (BAIR); 16.2 and 18.6 (Kinetics)",
        "`vdm-langevin` with 32 steps of two evaluations against `vdm-ancestral` with 64 steps of one, γ = 0.",
        better=True,
    ),
    "guidance off": Claim(
        "Guidance 1 against 2",
        "FVD 41.65 at guidance 1, 50.19 at 2; inception score 10.80 and 13.22 (frameskip 1)",
        "the figure's clips are those at guidance 2.",
        better=True,
    ),
    "guidance high": Claim(
        "Guidance 5 against 2",
        "FVD 163.74 at guidance 5, 50.19 at 2; inception score 14.80 and 13.22 (frameskip 1)",
        "the figure's clips are those at guidance 2.",
        better=False,
    ),
}


def page(data: Mapping[str, Any]) -> str:
    found = data["figure"]
    parts = [
        "# Video diffusion against an image model, frame by frame",
        finding(found),
        "![frames of each way, and one line of pixels over time](video-diffusion/frames-1.png)",
        _compared(data),
        "In multiples of the video model's clips of the same prompts: the median of the ratios, its 95 % bootstrap "
        "interval over prompts, and in how many prompts the video model has the lower value (ties count half). The "
        "first four measures are of unsteadiness. A still or blurred clip scores well on them, so sharpness and motion "
        "come with them; blur cannot lower the second difference of luma, which is that of a frame's mean brightness.",
        rivals(found),
        "![every measure as a multiple of real clips](video-diffusion/measures.png)",
        "The measures themselves, as medians over the prompts:",
        medians(found),
        "## What the clips show",
        "What the oracle finds right, of the clips whose prompt asks for it (both clips of each prompt; Wilson's 95 % "
        "interval for as many prompts).",
        shares(found),
        "## Distances between distributions",
        distances(found, data["models"]["extractor"]),
        "## More frames",
        "![frames of two more prompts](video-diffusion/frames-2.png)",
        "## VDM's own claims",
        "Every row compares two arms on the same prompts and seeds. The ratio is the median of first / second; "
        '"lower" counts the prompts in which the first arm has the lower value. Intervals are over prompts '
        "(distances: over clips), and cover one training of each model.",
        outcomes(data["claims"]),
        *(_claim(name, data) for name in CLAIMS),
        "## Protocol",
        _protocol(data),
    ]
    return "\n\n".join(parts) + "\n"


def finding(found: Mapping[str, Any]) -> str:
    """The first lines: the main figures, without a verdict."""

    def against(arm: str, name: str) -> str:
        ratio, lower = (found["measures"][name][kind][arm] for kind in ("to the video model", "video model lower"))
        return f"{NAMES[name]} {number(ratio)} times that of the video model, which is lower in {_of(lower)} prompts"

    fresh, sdedit = ("; ".join(against(arm, name) for name in UNSTEADY[:2]) for arm in ("fresh", "sdedit"))
    motion, sharp = (found["measures"][name]["to real"]["video"] for name in ("motion_amount", "sharpness"))
    right = {name: by_arm["video"] for name, by_arm in found["shares"].items()}
    return (
        "An image model and a video model of one architecture, trained from the same weights on clips in one order, "
        "with equal operations. How unsteady are the clips of an image model (medians of paired ratios, 95 % "
        "intervals)?\n\n"
        f"- **Frame by frame from fresh noise**: {fresh}.\n"
        f"- **Frame by frame, each by SDEdit from the frame before**: {sdedit}.\n"
        "- **Frame by frame from the same noise**: all frames are equal, so nothing moves.\n\n"
        f"Both are small models, and draw poorly: the video model's clips have {number(motion)} times the motion and "
        f"{number(sharp)} times the sharpness of real clips of the same prompts, and show the right "
        + ", ".join(f"{name} in {each['right']} of {each['asked']}" for name, each in right.items())
        + "."
    )


def outcomes(claims: Mapping[str, Any]) -> str:
    """One line for every claim that was measured: the paper's figures, ours, and whether they point the same way."""
    rows = []
    for name, claim in CLAIMS.items():
        if (found := claims.get(name)) is None:
            continue
        if claim.measure in found["distances"]:
            each, equal = found["distances"][claim.measure], 0.0
            compared = f"difference {number(each['difference'])}"
            _, low, high, _ = each["difference"]
        else:
            each, equal = found["measures"][claim.measure], 1.0
            compared = f"ratio {number(each['ratio'])}"
            _, low, high, _ = each["ratio"]
        first, second = (value if isinstance(value, float) else value[0] for value in (each["first"], each["second"]))
        found_here = f"{claim.measure} {plain(first)} against {plain(second)}, {compared}"
        rows.append([claim.title, claim.paper, found_here, _verdict(low, high, equal, better=claim.better)])
    return table(["claim", "paper", "here", "direction"], rows)


def _verdict(low: float | None, high: float | None, equal: float, *, better: bool) -> str:
    """Whether an interval lies on the paper's side of equality; lower values are better."""
    below, above = high is not None and high < equal, low is not None and low > equal
    if not below and not above:
        return "not decided"
    return "the paper's" if below == better else "the opposite"


def medians(found: Mapping[str, Any]) -> str:
    columns = {protocol.REAL: "real clips"} | ARMS
    rows = [
        [NAMES.get(name, name), *(number(found["measures"][name]["medians"][arm]) for arm in columns)]
        for name in (*UNSTEADY, *BESIDE, *KEPT)
    ]
    return table(["measure", *columns.values()], rows)


def rivals(found: Mapping[str, Any]) -> str:
    rows = []
    for name in (*UNSTEADY, *BESIDE):
        measure, cells = found["measures"][name], [number(found["measures"][name]["to the video model"]["real"])]
        for arm in RIVALS:
            cells += [number(measure["to the video model"][arm]), _of(measure["video model lower"][arm])]
        rows.append([NAMES[name], *cells])
    heads = [text for arm in RIVALS for text in (ARMS[arm].removeprefix("frame by frame, "), "video lower")]
    return table(["measure", "real clips", *heads], rows)


def shares(found: Mapping[str, Any]) -> str:
    columns = {protocol.REAL: "real clips"} | ARMS
    rows = [[name, *(_share(by_arm[arm]) for arm in columns)] for name, by_arm in found["shares"].items()]
    return table(["right", *columns.values()], rows)


def distances(found: Mapping[str, Any], extractor: Mapping[str, Any]) -> str:
    by_arm = found["distances"]
    first = next(iter(by_arm.values()))
    kinds = [kind for kind in first if isinstance(first[kind], Mapping)]
    rows = [[ARMS[arm], *(number(each[kind]["distance"]) for kind in kinds)] for arm, each in by_arm.items()]
    rows.append(["real clips", *(number(first[kind]["real"]) for kind in kinds)])
    return "\n\n".join([
        f"Features of `{extractor['name']}` (weights `{extractor['weights']}`), {first['clips']} clips of each arm "
        f"against {first['reference clips']} real clips of the same prompts with other seeds. "
        "KVD is the unbiased cubic MMD; the Fréchet distance depends on N, so compare it with that of real clips only "
        "at this N. 95 % jackknife intervals over clips.",
        table(["clips", *kinds], rows),
    ])  # fmt: skip


def _claim(name: str, data: Mapping[str, Any]) -> str:
    claim = CLAIMS[name]
    found = data["claims"].get(name)
    if found is None:
        return f"### {claim.title}\n\nNot measured yet."
    first, second = found["arms"]
    rows = [
        [NAMES.get(key, key), number(m["first"]), number(m["second"]), number(m["ratio"]), _of(m["first lower"])]
        for key, m in found["measures"].items()
    ]
    rows += [
        [f"{key} right", _share(s["first"]), _share(s["second"]), f"difference {points(s['difference'])}", ""]
        for key, s in found["shares"].items()
    ]
    rows += [
        [key, plain(d["first"]), plain(d["second"]), f"difference {number(d['difference'])}", ""]
        for key, d in found["distances"].items()
    ]
    here = claim.here
    if name == "joint":
        here = here.format(
            more=data["models"]["joint"]["operations"] / data["models"]["video"]["operations"] * 100 - 100
        )
    return "\n\n".join([
        f"### {claim.title}",
        f"Paper: {claim.paper}. Here: {here}",
        table(["measure", first, second, "ratio", f"{first} lower"], rows),
    ])  # fmt: skip


def _compared(data: Mapping[str, Any]) -> str:
    common, image, video = (data["models"][name] for name in ("common", "image", "video"))
    return (
        f"Both are `vdm/pocket` at {protocol.SIDE}×{protocol.SIDE} with {protocol.FRAMES} frames "
        f"({video['parameters']:,} parameters), trained further from one image model ({common['steps']:,} steps) on "
        f"clips in one order. The image model continues to see each frame as an independent image with its own noise "
        f"level ({image['steps']:,} steps of {image['operations'] / 1e9:.1f} GFLOP), the video model sees clips "
        f"({video['steps']:,} steps of {video['operations'] / 1e9:.1f} GFLOP). {len(protocol.prompts())} prompts that "
        f"neither was trained or tuned on, {protocol.PER_PROMPT} clips each; {protocol.SAMPLER}, "
        f"{protocol.SAMPLING_STEPS} steps, guidance {protocol.GUIDANCE:g} for all; SDEdit at strength "
        f"{protocol.STRENGTH:g}."
    )


def _protocol(data: Mapping[str, Any]) -> str:
    trained = [
        f"- {entry['title']}: {entry['steps']:,} steps of {protocol.BATCH} clips, {entry['minutes']:.0f} minutes on "
        f"{entry['threads']} thread{'s' * (entry['threads'] > 1)} of a shared machine; weights `{entry['weights']}`. "
        f"`python -m benchmarks.evidence train {name}`"
        for name in protocol.MODELS
        if (entry := data["models"].get(name))
    ]
    return "\n".join([
        "docs/decisions/0023-evidence.md says what was fixed before anything was measured, and what pilots changed. "
        "Prompts: benchmarks/evidence/prompts.txt; nothing was chosen on them. Measurements of every clip: "
        "docs/evidence/video-diffusion/*.jsonl; all figures: docs/evidence/video-diffusion.json; this page: "
        "`make evidence`, which trains, samples and measures only what is missing. To repeat everything from scratch: "
        "`python -m benchmarks.evidence --evidence FOLDER` with an empty folder.",
        "",
        *trained,
        "",
        "A small model on a toy data set: this shows the effect and its size here, not those of published models.",
    ])  # fmt: skip


# ------------------------------------------------------------------------------------------ cells


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(figure: Sequence[float | None]) -> str:
    value, low, high, _ = figure
    return f"{plain(value)} ({plain(low)} to {plain(high)})"


def points(figure: Sequence[float | None]) -> str:
    value, low, high, _ = (None if x is None else 100 * x for x in figure)
    return f"{value:+.0f} points ({low:+.0f} to {high:+.0f})"


def plain(value: float | None) -> str:
    return "∞" if value is None else f"{value:.3g}"


def _of(figure: Sequence[Any]) -> str:
    """A share of pairs as a count, in which a tie is half a pair; JSON has the share with five digits."""
    return f"{round(2 * figure[0] * figure[3]) / 2:g} of {figure[3]}"


def _share(entry: Mapping[str, Any]) -> str:
    _, low, high, _ = entry["share"]
    return f"{entry['right']} of {entry['asked']} ({100 * low:.0f}–{100 * high:.0f} %)"
