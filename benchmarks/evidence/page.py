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
    measures: Sequence[str] = ("KVD", "Fréchet distance")
    """The measures here that stand for the paper's FVD."""


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
        measures=("change at block borders",),
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
        "The first two prompts that name a direction, with the seed of their first clip, not chosen by result. Every "
        f"third of {protocol.FRAMES} frames. On the right, one column (or row) of pixels over time, which runs down; "
        "the column's top is on the left. It is the column with most contrast, so another one in each clip. Steady "
        "motion is a smooth band, flicker is stripes.",
        "## How large, and how sure",
        "Multiples of the video model's clips of the same prompts: the median of the ratios, its 95 % bootstrap "
        "interval over prompts, and in how many prompts the video model has the lower value (ties count half). The "
        "four measures in bold are of unsteadiness, lower is steadier. A still or blurred clip scores well on them, "
        "so sharpness and motion come with them.",
        rivals(found),
        _compared(data),
        "![every measure as a multiple of real clips](video-diffusion/measures.png)",
        DEFINITIONS,
        "The measures themselves, as medians over the prompts:",
        medians(found),
        "## What the clips show",
        "What the oracle finds right, of the clips whose prompt asks for it. Both clips of each prompt count; the "
        "intervals are Wilson's 95 %, as if each prompt had one clip, since two clips of a prompt are not independent. "
        "For the image model, also by how many points the video model is more often right, with a 95 % bootstrap "
        "interval over prompts.",
        shares(found),
        "## Distances between distributions",
        distances(found, data["models"]["extractor"]),
        "## More frames",
        "![frames of two more prompts](video-diffusion/frames-2.png)",
        "## VDM's own claims",
        "Each row compares two arms on the same prompts and seeds (the loss: on 128 held-out clips). The last columns "
        "give the median of first / second, or the difference where stated, and in how many prompts the first arm is "
        "lower. Intervals are over prompts (loss and distances: over clips). Each model was trained once, so no "
        "interval includes the variation between trainings. Distances are of 64 clips against 128 real ones, so "
        "compare them only within a row.",
        outcomes(data["claims"]),
        "Which measures stand for the paper's FVD in this table was decided after the figures had been read.",
        *(_claim(name, data) for name in CLAIMS),
        "## Protocol",
        _protocol(data),
    ]
    return "\n\n".join(parts) + "\n"


DEFINITIONS = """What the measures are, of clips with values from 0 to 1:

- *interpolation residual*: how far a frame is from the midpoint of its neighbours, each moved along their optical flow;
  at a shorter side of 256
- *second difference of luma*: absolute second difference over time of a frame's mean brightness; blur within a frame
  hardly changes it, blur over time lowers it
- *high-frequency ratio*: share of the power over time above half the Nyquist frequency
- *jerk*: mean second difference of pixels over time, divided by their mean first difference; about 1.73 for frames that
  have nothing to do with each other
- *sharpness*: variance of the Laplacian, in squared grey levels
- *motion amount*: mean change of a pixel in a second
- *dynamic degree*: optical flow of the fastest 5 % of pixels in 1/8 s, in pixels at a shorter side of 256
- *identity*: the oracle's share of frames in which the object keeps its colour and outline
- *frames of the colour, of the outline*: share of frames with the prompt's colour, and with an outline that is at least
  90 % as similar to the prompt's shape as to the most similar one, which a blob is to most shapes"""


def finding(found: Mapping[str, Any]) -> str:
    """The first lines: the main figures, and what qualifies them."""
    measures, right = found["measures"], found["shares"]

    def ratio(arm: str, name: str) -> str:
        return number(measures[name]["to the video model"][arm])

    def against(arm: str, name: str) -> str:
        lower = _of(measures[name]["video model lower"][arm])
        return f"{NAMES[name]} {ratio(arm, name)} times that of the video model, which is lower in {lower} prompts"

    def of(name: str, arm: str = "video") -> str:
        return f"{right[name][arm]['right']} of {right[name][arm]['asked']}"

    fresh, sdedit = ("; ".join(against(arm, name) for name in UNSTEADY[:2]) for arm in ("fresh", "sdedit"))
    one = found["always one shape"]
    return (
        "An image model and a video model of one architecture, trained from the same weights on clips in one order, "
        "with equal training operations. How unsteady are the clips of the image model (medians of paired ratios, 95 % "
        "intervals)?\n\n"
        f"- **Frame by frame from fresh noise**: {fresh}.\n"
        f"- **Frame by frame, each by SDEdit from the frame before**: {sdedit}.\n"
        "- **Frame by frame from the same noise**: all frames are equal, so nothing moves.\n\n"
        f"Not all of the second is steadiness: clips by SDEdit have {ratio('sdedit', 'sharpness')} times the sharpness "
        "of the video model's clips, and blur lowers the interpolation residual. By jerk they hardly differ: "
        f"{against('sdedit', 'jerk')}.\n\n"
        f"Both models are small and draw blobs of the right colour. Of the video model's clips the colour is right in "
        f"{of('colour')}, the shape in {of('shape')} (always a {one['shape']} would be right in {one['right']}), the "
        f"direction in {of('direction')} (guessing: one in four), the kind of motion in {of('motion')} (fresh noise: "
        f"{of('motion', 'fresh')}). So this shows that an object lasts and moves smoothly, not that it moves as asked."
    )


def outcomes(claims: Mapping[str, Any]) -> str:
    """One line for every claim that was measured: the paper's figures, ours, and whether they have the same sign."""
    rows = []
    for name, claim in CLAIMS.items():
        if (found := claims.get(name)) is None:
            continue
        here, verdicts = [], {}
        for measure in claim.measures:
            distant = measure in found["distances"]
            each = found["distances" if distant else "measures"][measure]
            kind, equal = ("difference", 0.0) if distant else ("ratio", 1.0)
            ends = [plain(value if distant else value[0]) for value in (each["first"], each["second"])]
            here.append(f"{measure} {' against '.join(ends)}, {kind} {number(each[kind])}")
            verdicts[measure] = _verdict(*each[kind][1:3], equal, better=claim.better)
        agree = len(set(verdicts.values())) == 1
        said = next(iter(verdicts.values())) if agree else "; ".join(f"{m}: {v}" for m, v in verdicts.items())
        rows.append([claim.title, claim.paper, "; ".join(here), said])
    return table(["claim", "paper", "here", "same sign as in the paper?"], rows)


def _verdict(low: float | None, high: float | None, equal: float, *, better: bool) -> str:
    """Whether an interval lies on the paper's side of equality; lower values are better."""
    below, above = high is not None and high < equal, low is not None and low > equal
    if not below and not above:
        return "undecided"
    return "yes" if below == better else "no, the opposite"


def medians(found: Mapping[str, Any]) -> str:
    columns = {protocol.REAL: "real clips"} | ARMS
    rows = [
        [NAMES.get(name, name), *(number(found["measures"][name]["medians"][arm]) for arm in columns)]
        for name in (*UNSTEADY, *BESIDE, *KEPT)
    ]
    return table(["measure", *columns.values()], rows)


def rivals(found: Mapping[str, Any]) -> str:
    """All measures against the video model. The clips of one noise are left out: they are still."""
    arms, rows = [arm for arm in RIVALS if arm != "same"], []
    for name in (*UNSTEADY, *BESIDE):
        measure, cells = found["measures"][name], [number(found["measures"][name]["to the video model"]["real"])]
        for arm in arms:
            cells += [number(measure["to the video model"][arm]), _of(measure["video model lower"][arm])]
        rows.append([f"**{NAMES[name]}**" if name in UNSTEADY else NAMES[name], *cells])
    heads = [
        text
        for arm in arms
        for text in (f"{ARMS[arm].removeprefix('frame by frame, ')} / video", "prompts with the video lower")
    ]
    return table(["measure", "real clips / video", *heads], rows)


def shares(found: Mapping[str, Any]) -> str:
    columns = {protocol.REAL: "real clips"} | ARMS
    rows = []
    for name, by_arm in found["shares"].items():
        more = found["more right as a video"][name]
        cells = [_share(by_arm[arm]) + (f"; video {points(more[arm])}" if arm in more else "") for arm in columns]
        rows.append([name, *cells])
    return table(["right", *columns.values()], rows)


def distances(found: Mapping[str, Any], extractor: Mapping[str, Any]) -> str:
    by_arm = found["distances"]
    first = next(iter(by_arm.values()))
    kinds = [kind for kind in first if isinstance(first[kind], Mapping)]
    rows = [[ARMS[arm], *(number(each[kind]["distance"]) for kind in kinds)] for arm, each in by_arm.items()]
    rows.append(["real clips", *(number(first[kind]["real"]) for kind in kinds)])
    return "\n\n".join([
        f"Features of `{extractor['name']}` (weights `{extractor['weights']}`), {first['clips']} clips of each arm "
        f"against {first['reference clips']} real clips of the same prompts with other seeds. KVD is the cubic MMD, "
        "unbiased for independent clips; these share their prompts, which puts real against real a little below 0. "
        "The Fréchet distance depends on N, so compare it with that of real clips only at this N. 95 % jackknife "
        "intervals over clips.",
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
        table(["measure", first, second, "ratio or difference", f"{first} lower"], rows),
    ])  # fmt: skip


def _compared(data: Mapping[str, Any]) -> str:
    common, image, video = (data["models"][name] for name in ("common", "image", "video"))
    edited = round(protocol.STRENGTH * protocol.SAMPLING_STEPS)
    return (
        f"Both are `vdm/pocket` at {protocol.SIDE}×{protocol.SIDE} with {protocol.FRAMES} frames "
        f"({video['parameters']:,} parameters), trained further from one image model ({common['steps']:,} steps) on "
        f"clips in one order. The image model continues to see each frame as an independent image with its own noise "
        f"level ({image['steps']:,} steps of {image['operations'] / 1e9:.1f} GFLOP), the video model sees clips "
        f"({video['steps']:,} steps of {video['operations'] / 1e9:.1f} GFLOP). {len(protocol.prompts())} prompts that "
        f"neither was trained or tuned on, {protocol.PER_PROMPT} clips each; {protocol.SAMPLER}, "
        f"{protocol.SAMPLING_STEPS} steps, guidance {protocol.GUIDANCE:g} for all. SDEdit runs the last {edited} of "
        f"these steps (strength {protocol.STRENGTH:g}, noise and signal about equal), so its clips take "
        f"{protocol.SAMPLING_STEPS + (protocol.FRAMES - 1) * edited} evaluations of single frames instead of "
        f"{protocol.FRAMES * protocol.SAMPLING_STEPS}. Other strengths were not measured: a smaller one would be "
        "steadier, and stiller."
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
        "docs/decisions/0023-evidence.md says what was fixed before anything was measured, what pilots changed, and "
        "what was decided after reading. Prompts: benchmarks/evidence/prompts.txt; nothing was chosen on them. "
        "Measurements of every clip: docs/evidence/video-diffusion/*.jsonl; all figures: "
        "docs/evidence/video-diffusion.json; this page: `make evidence`, which trains, samples and measures only what "
        "is missing. To repeat everything from scratch: `python -m benchmarks.evidence --evidence FOLDER` with an "
        "empty folder.",
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
