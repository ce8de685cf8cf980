"""The figures of zoetrope's card, and README's of zoetrope."""

from __future__ import annotations

import csv
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.cards.figures import (
    ROOT,
    Passage,
    against,
    card,
    compared,
    decimals,
    middle,
    of_pairs,
    read,
    share,
)
from kinema.data.playroom import parse

README, ZOETROPE = "README.md", card("zoetrope")
TEMPORAL = {
    "jerk": "jerk | lower",
    "high_frequency_ratio": "high frequency ratio | lower",
    "luma_second_difference": "second difference of luma | lower",
    "interpolation_residual": "interpolation residual | lower",
    "flickering": "flickering (VBench) | higher",
    "sharpness": "sharpness |",
    "motion_amount": "motion amount |",
}
"""The rows of the table of temporal measures, each with the steadier side."""
SCORES = ("colour", "shape", "letter", "direction", "motion", "count")


# ------------------------------------------------------------------------------------------- zoetrope


def unseen_prompts() -> Iterator[Passage]:
    """Zoetrope on the unseen prompts."""
    made = read("docs/evidence/zoetrope-unseen.json")
    found = made["text_to_video"]
    with (ROOT / "docs/evidence/unseen-prompts.csv").open(encoding="utf-8", newline="") as file:
        tuned = sum(row["tuned"] == "yes" for row in csv.DictReader(file))
    yield Passage(
        ZOETROPE,
        "{measured} of {prompts} sentences whose strings no training, validation or tuning of a shipped model had",
        {name: f"{made['protocol'][name]}" for name in ("measured", "prompts")},
    )
    yield Passage(ZOETROPE, "Settings were chosen on {tuned} of the 64 combinations", {"tuned": f"{tuned}"})
    for name in SCORES:
        row = f"| {name} | {{x}} % | {{x_low}} % to {{x_high}} % | {{x_right}} of {{x_n}} |"
        yield Passage(ZOETROPE, row, share("x", found["scores"][name]))
    yield motions(ZOETROPE, found["motions"])
    yield other_real_clip(made["clips"])
    for name, label in TEMPORAL.items():
        row = (
            f"| {label} | {{made}} | {{real}} | {{x}} ({{x_low}} to {{x_high}}) | {{x_lower}}, {{x_higher}} "
            "| {c} ({c_low} to {c_high}) | {c_lower}, {c_higher} |"
        )
        yield Passage(ZOETROPE, row, compared(found["temporal"][name]))


def other_real_clip(clips: Sequence[Mapping[str, Any]]) -> Passage:
    return Passage(
        ZOETROPE,
        "Against the second real clip, the second difference of luma is {luma} ({luma_low} to {luma_high}) times, "
        "higher in {luma_higher} of {n} pairs, sharpness {sharp} times and motion amount {moved} times.",
        _controlled(clips, luma="luma_second_difference", sharp="sharpness", moved="motion_amount")
        | {"n": f"{len(clips)}"},
    )


def motions(document: str, found: Mapping[str, Mapping[str, int]]) -> Passage:
    kinds = ("bounces", "fades", "grows", "moves", "orbits", "rolls", "shrinks", "slides", "spins", "swings")
    text = "Motion by kind: " + ", ".join(f"{kind} {{{kind}}} of {{{kind}_n}}" for kind in kinds) + "."
    values = {kind: found.get(kind, {"right": 0, "prompts": 0}) for kind in kinds}
    right = {kind: f"{each['right']}" for kind, each in values.items()}
    return Passage(document, text, right | {f"{kind}_n": f"{each['prompts']}" for kind, each in values.items()})


def tuning_prompts() -> Iterator[Passage]:
    """Zoetrope on the tuning prompts; these files are older, and have a real clip each as their control."""
    made = read("docs/evidence/zoetrope.json")
    texts = [clip for clip in made["clips"] if "made" in clip]
    images = [clip for clip in made["clips"] if "psnr_own" in clip]
    yield Passage(
        ZOETROPE,
        "colour {colour_right} of {colour_n}, shape {shape_right} of {shape_n}, letter {letter_right} of {letter_n}, "
        "direction {direction_right} of {direction_n}, motion {motion_right} of {motion_n}, spins {spins} of "
        "{spins_n}, fades {fades} of {fades_n}.",
        _counts(made["text_to_video"]["scores"]) | _by_kind(texts, "spins") | _by_kind(texts, "fades"),
    )
    yield Passage(
        ZOETROPE,
        "the second difference is {luma} ({luma_low} to {luma_high}) times that of one real clip each, higher in "
        "{luma_higher} of {n} pairs; the interpolation residual {residual}, sharpness {sharp} and motion amount "
        "{moved} times.",
        {"n": f"{len(texts)}"}
        | _controlled(texts, luma="luma_second_difference", residual="interpolation_residual")
        | _controlled(texts, sharp="sharpness", moved="motion_amount"),
    )
    wrong = [clip for clip in texts if not clip["verdict"]["motion_right"]]
    kinds = Counter(_kind(clip) for clip in wrong)
    sliding = [clip for clip in wrong if _kind(clip) in ("rolls", "moves", "slides")]
    assert all(clip["verdict"]["direction_right"] for clip in sliding)
    yield Passage(
        ZOETROPE,
        "Of {wrong} wrong motions, {sliding} are another kind of translation in the right direction (rolling instead "
        "of moving, which differ only in whether marks rotate), {spins} should spin and {fades} should fade.",
        {
            "wrong": f"{len(wrong)}",
            "sliding": f"{len(sliding)}",
            "spins": f"{kinds['spins']}",
            "fades": f"{kinds['fades']}",
        },
    )
    yield from _full_grammar()
    yield from _images(made["image_to_video"], images)


def _full_grammar() -> Iterator[Passage]:
    made = read("docs/evidence/zoetrope-full.json")
    scores = made["text_to_video"]["scores"]
    text = ", ".join(
        f"{name} {{{name}_right}} of {{{name}_n}}" for name in ("colour", "shape", "direction", "motion", "count")
    )
    yield Passage(
        ZOETROPE,
        f"comes out poorly: {text}, the second object {{second_right}} of {{second_n}}. The second difference of luma "
        "is {luma} times, the interpolation residual {residual} times that of one real clip each, with sharpness "
        "{sharp} times.",
        _counts(scores, (*SCORES, "second"))
        | _controlled(
            made["clips"], luma="luma_second_difference", residual="interpolation_residual", sharp="sharpness"
        ),
    )


def _images(found: Mapping[str, Any], clips: Sequence[Mapping[str, Any]]) -> Iterator[Passage]:
    psnr, names = found["psnr_own"], ("exact_after", "kept", "shape", "direction")
    yield Passage(
        ZOETROPE,
        "frame 0 equals the image in {exact_after_right} of {exact_after_n}. The model's own estimate of frame 0, "
        "before the image replaces it, has a mean PSNR of {psnr} dB ({low} to {high}). Colour and outline are kept "
        "in every frame in {kept_right} of {kept_n} clips, shape is right in {shape_right} of {shape_n}, direction in "
        "{direction_right} of {direction_n}.",
        {"psnr": decimals(psnr["mean"], 1), "low": decimals(psnr["low"], 1), "high": decimals(psnr["high"], 1)}
        | _counts(found, names),
    )
    luma = [[clip[side]["luma_second_difference"] for clip in clips] for side in ("temporal", "temporal_real")]
    seams = {name: statistics.median(clip[name] for clip in clips) for name in ("seam", "seam_real")}
    yield Passage(
        ZOETROPE,
        "Frame 1 differs from frame 0 {seam} times as much as later frames from one another, in real clips {seam_real} "
        "times (medians). The second difference of luma is {luma} ({luma_low} to {luma_high}) times that of the real "
        "clip each, which has the same background and object, higher in {luma_higher} of {n} pairs.",
        {name: decimals(value, 2) for name, value in seams.items()} | of_pairs("luma", *luma) | {"n": f"{len(clips)}"},
    )


def _counts(scores: Mapping[str, Any], names: Sequence[str] = SCORES) -> dict[str, str]:
    return {key: text for name in names for key, text in share(name, scores[name]).items()}


def _kind(clip: Mapping[str, Any]) -> str:
    meaning = parse(clip["prompt"])
    assert meaning is not None
    return meaning.motion.split(" ")[0]


def _by_kind(clips: Sequence[Mapping[str, Any]], kind: str) -> dict[str, str]:
    """How many prompts ask for a kind of motion, and how many clips have it."""
    asked = [clip["verdict"]["motion_right"] for clip in clips if _kind(clip) == kind]
    return {kind: f"{sum(asked)}", f"{kind}_n": f"{len(asked)}"}


def _controlled(clips: Sequence[Mapping[str, Any]], **names: str) -> dict[str, str]:
    """Measures of clips paired with those of one real clip each."""
    figures = {}
    for name, measure in names.items():
        figures |= of_pairs(name, *([clip[side][measure] for clip in clips] for side in ("made", "control")))
    return figures


# --------------------------------------------------------------------------------------------- README


def readme() -> Iterator[Passage]:
    made = read("docs/evidence/zoetrope-unseen.json")
    found, temporal = made["text_to_video"], made["text_to_video"]["temporal"]
    spins = found["motions"].get("spins", {"right": 0, "prompts": 0})
    yield Passage(
        README,
        "On {measured} sentences that no training or tuning read in these words, colours are right in {colour_right} "
        "of {colour_n} clips, shapes in {shape_right} (letters in {letter_right} of {letter_n}), directions in "
        "{direction_right} of {direction_n}, motions in {motion_right} (spins in {spins} of {spins_n}).",
        _counts(found["scores"])
        | {
            "spins": f"{spins['right']}",
            "spins_n": f"{spins['prompts']}",
            "measured": f"{made['protocol']['measured']}",
        },
    )
    yield Passage(
        README,
        "brightness flickers {luma} times as much ({luma_low} to {luma_high}, more in {luma_higher} of {n} pairs; "
        "a second real clip {control} times), sharpness is {sharp} times and motion {moved} times theirs",
        against("luma", temporal["luma_second_difference"]["against"])
        | against("sharp", temporal["sharpness"]["against"])
        | against("moved", temporal["motion_amount"]["against"])
        | middle("control", temporal["luma_second_difference"]["control"]["ratio"])
        | {"n": f"{temporal['sharpness']['against']['ratio']['count']}"},
    )
