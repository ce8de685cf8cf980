"""The figures of the other cards: svd-pocket, animatediff-pocket, opensora-pocket and lumiere-pocket."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.cards.figures import Passage, card, counted, decimals, interval, middle, percent, read

SVD, ANIMATEDIFF, OPENSORA, LUMIERE = (card(family) for family in ("svd", "animatediff", "opensora", "lumiere"))


# ------------------------------------------------------------------------------------------ svd-pocket


def svd() -> Iterator[Passage]:
    made = read("docs/evidence/svd-pocket.json")
    for row in made["buckets"]:
        text = f"| {row['bucket']} | {{flow}} | {{change}} | {{identity}} | {{outline}} % |"
        figures = {name: decimals(row[name], 3) for name in ("flow", "change", "identity")}
        yield Passage(SVD, text, figures | {"outline": percent(row["outline_kept"])})
    clips = made["pictures"] * len(made["buckets"])
    yield Passage(
        SVD,
        "rank correlation {means} over the means, {each} on average over the buckets of one image, and bucket 160 "
        "moves more than 60 for {more} of {n} images.",
        {
            "means": decimals(made["spearman_of_means"], 2),
            "each": decimals(made["spearman_of_each_picture"], 2),
            "more": f"{round(made['more_at_160_than_at_60'] * made['pictures'])}",
            "n": f"{made['pictures']}",
        },
    )
    yield Passage(
        SVD,
        "has a mean PSNR of {psnr} dB against the image (28 dB or more in {enough} of {n} clips)",
        {
            "psnr": decimals(made["psnr_mean"], 1),
            "enough": f"{round(made['psnr_share_28'] * clips)}",
            "n": f"{clips}",
        },
    )
    yield Passage(
        SVD,
        "The object's colour and outline are kept in {kept} % of frames",
        {"kept": percent(made["first_frame_kept"])},
    )
    yield from _svd_motion()


def _svd_motion() -> Iterator[Passage]:
    made = read("docs/evidence/svd-pocket-motion.json")
    measures = ("travel", "overlap", "change", "sharpness")
    cells = " | ".join(f"{{{each}}} ({{{each}_low}} to {{{each}_high}})" for each in measures)
    for name, arm in made["arms"].items():
        figures = {k: v for each in measures for k, v in middle(each, arm[each], 2).items()}
        row = f"| {name} | {cells} | {{outline}} % |"
        yield Passage(SVD, row, figures | {"outline": percent(arm["outline"]["median"])})


# ------------------------------------------------------------------------------------ animatediff-pocket


def animatediff() -> Iterator[Passage]:
    made = read("docs/evidence/animatediff-pocket.json")
    minutes = made["training_minutes"]
    legs = ("moved", "panned", "filmed", "zoomed", "motion")
    yield Passage(
        ANIMATEDIFF,
        "the base for 1,000 steps of 64 images ({base} minutes), each style for 960 of 64 ({outline} and {night}), the "
        "motion module in five legs of 2,400, 400, 1,500, 500 and 1,200 steps of 8 clips ({motion} minutes)",
        {name: f"{minutes[name]:.0f}" for name in ("outline", "night")}
        | {"base": f"{minutes['base']:.1f}", "motion": f"{sum(minutes[leg] for leg in legs):.0f}"},
    )
    yield Passage(
        ANIMATEDIFF,
        "the MotionLoRAs of rank 6 for 600 steps of 8 ({left} and {right} minutes), 2,400 for the zoom ({zoom}).",
        {name: f"{minutes[name]:.0f}" for name in ("left", "right", "zoom")},
    )
    for style in ("outline", "night"):
        look = made["looks"][style]
        text = (
            f"| {style} | {{right}} of {{n}} | {{share}}, {{images}} | {{pulse}} ({{pulse_true}}) "
            "| {residual} ({residual_true}) | {flicker} ({flicker_true}) |"
        )
        figures = {"right": f"{round(look['direction'] * look['prompts'])}", "n": f"{look['prompts']}"}
        figures |= {"share": decimals(look[f"share_{style}"], 3), "images": decimals(look[f"pictures_{style}"], 3)}
        for name in ("pulse", "residual", "flicker"):
            figures |= {name: decimals(look[f"{name}_ratio"], 2)}
            figures |= {f"{name}_true": decimals(look[f"{name}_ratio_true"], 2)}
        yield Passage(ANIMATEDIFF, text, figures)
    looks = {name: made["looks"][name] for name in ("plain", "outline", "night")}
    yield Passage(
        ANIMATEDIFF,
        "brightness changes unsteadily {plain} (plain), {outline} (outline) and {night} (night) times as much as in "
        "true clips",
        {name: decimals(look["pulse"] / look["pulse_true"], 1) for name, look in looks.items()},
    )
    cameras = made["cameras"]
    counts = {name: round(each["share"] * each["prompts"]) for name, each in cameras.items()}
    sharp = {f"{name}_sharp": round(each["sharp"] * each["prompts"]) for name, each in cameras.items()}
    yield Passage(
        ANIMATEDIFF,
        "MotionLoRAs on patterned backgrounds, {n} prompts each: the camera pans left in {left}, right in {right} and "
        "zooms in in {zoom}; without a MotionLoRA all {none} are still.",
        {name: f"{count}" for name, count in counts.items()} | {"n": f"{cameras['none']['prompts']}"},
    )
    yield Passage(
        ANIMATEDIFF,
        "In {left_sharp}, {right_sharp} and {zoom_sharp} of them, the residual is also less than half",
        {name: f"{count}" for name, count in sharp.items()},
    )


# -------------------------------------------------------------------------------------- opensora-pocket


def opensora() -> Iterator[Passage]:
    made = read("docs/evidence/opensora-pocket.json")["models"]
    for model in ("opensora-pocket", "zoetrope"):
        for steps in ("4", "8", "16", "32"):
            row = made[model][steps]
            shares = ("colour", "direction", "motion", "shape", "count")
            cells = [f"{{{name}}} % ({{{name}_low}}–{{{name}_high}})" for name in shares]
            medians = ("flicker", "sharpness", "motion_amount")
            cells += [f"{{{name}}} ({{{name}_low}}–{{{name}_high}})" for name in medians]
            cells += ["{seconds}", "{cpu_seconds}"]
            figures = {k: v for name in shares for k, v in interval(name, row[name]).items()}
            figures |= {k: v for name in medians for k, v in middle(name, row[name], 2).items()}
            figures |= {name: decimals(row[name]["median"], 2) for name in ("seconds", "cpu_seconds")}
            yield Passage(OPENSORA, f"| {model}, {steps} | {' | '.join(cells)} |", figures)
    seconds = {name: made[name]["16"]["cpu_seconds"]["median"] for name in ("opensora-pocket", "zoetrope")}
    yield Passage(
        OPENSORA,
        "at 16 steps {own} seconds of the CPU a clip against {other}",
        {"own": decimals(seconds["opensora-pocket"], 2), "other": decimals(seconds["zoetrope"], 2)},
    )
    shapes = [made["zoetrope"][steps]["shape"]["mean"] for steps in ("4", "8", "16", "32")]
    yield Passage(
        OPENSORA,
        "at shapes ({least} to {most} % of clips against one in five)",
        {"least": percent(min(shapes)), "most": percent(max(shapes))},
    )
    yield from _opensora_training()


def _opensora_training() -> Iterator[Passage]:
    logs = {stage: _last_line(f"docs/evidence/opensora-pocket-{stage}.jsonl") for stage in ("codec", "flow")}
    yield Passage(
        OPENSORA,
        "for {minutes} minutes: the codec for {codec} steps of 8 clips, the rest for {flow} steps of 16",
        {"minutes": f"{sum(row['seconds'] for row in logs.values()) / 60:.0f}"}
        | {stage: f"{row['step']:,}" for stage, row in logs.items()},
    )
    curves = read("docs/evidence/opensora-pocket-curve.json")
    for stage, steps in (("codec", 1600), ("flow", 3000)):
        rows = next(each for name, each in curves.items() if name.startswith(stage))
        off = [abs(row["other"] - row["shipped"]) for row in rows]
        yield Passage(
            OPENSORA,
            f"| {stage}, to step {{last}} of {steps:,} | {{windows}} | {{spread}} | {{noise}} | {{ratio}} |",
            {
                "last": f"{rows[-1]['step']}",
                "windows": f"{len(rows)}",
                "spread": f"{sum(o <= row['spread'] for o, row in zip(off, rows, strict=True))}",
                "noise": f"{sum(o <= row['noise'] for o, row in zip(off, rows, strict=True))}",
                "ratio": decimals(statistics.median(row["other"] / row["shipped"] for row in rows), 3),
            },
        )


def _last_line(name: str) -> dict[str, Any]:
    return read(name)[-1]


# --------------------------------------------------------------------------------------- lumiere-pocket


def lumiere() -> Iterator[Passage]:
    made = read("docs/evidence/lumiere-applications.json")
    for name, row in made["applications"].items():
        exact = "{exact} of {exact_n} |" if "given pixels equal to the bit" in row else "|"
        shares = " | ".join(f"{{{each}}} of {{{each}_n}}" for each in ("colour", "shape", "motion"))
        figures = {k: v for each in ("colour", "shape", "motion") for k, v in counted(each, row[each], made["prompts"])}
        cells = [f"| {name} | {exact} {shares}", "{whole}"]
        figures["whole"] = decimals(row["frames of one identity"]["median"], 2)
        if "style" in row:
            cells.append("{style}")
            figures["style"] = decimals(row["style"]["median"], 2)
        if "given pixels equal to the bit" in row:
            figures["exact"], figures["exact_n"] = row["given pixels equal to the bit"].split(" of ")
        yield Passage(LUMIERE, " | ".join(cells) + " |", figures)
    yield from _rival()
    borders = read("docs/evidence/lumiere-borders.json")["arms"]
    arms = {"averaged": borders["averaged"]["mean"], "separate": borders["separate"]["mean"]}
    yield Passage(
        LUMIERE,
        "is {averaged} times that elsewhere ({averaged_low} to {averaged_high}), and {separate} ({separate_low} to "
        "{separate_high}) if windows are sampled separately",
        {
            f"{name}{end}": decimals(arm[key], 3)
            for name, arm in arms.items()
            for end, key in (("", "mean"), ("_low", "low"), ("_high", "high"))
        },
    )
    rows = read("benchmarks/results/2026-11-29-cpu2-avx512_bf16-lumiere-cost.json")["rows"]
    times = [row["seconds"]["halved"] / row["seconds"]["all frames"] for row in rows]
    sizes = [row["bytes"]["halved"] / row["bytes"]["all frames"] for row in rows]
    yield Passage(
        LUMIERE,
        "{least} to {most} of the time of a frame and {size} of its activations in training",
        {
            "least": decimals(min(times), 2),
            "most": decimals(max(times), 2),
            "size": decimals(statistics.median(sizes), 2),
        },
    )


def _rival() -> Iterator[Passage]:
    made = read("docs/evidence/lumiere-rival.json")
    arms = {"a": made["arms"]["one pass"], "b": made["arms"]["cascade"], "d": made["one pass less cascade"]}
    errors = {k: v for name, arm in arms.items() for k, v in middle(name, arm["trajectory_error"], 3).items()}
    yield Passage(
        LUMIERE,
        "| distance from the nearest such motion, in shorter sides | {a} ({a_low} to {a_high}) | {b} ({b_low} to "
        "{b_high}) | {real} | {d} ({d_low} to {d_high}) |",
        errors | {"real": decimals(made["arms"]["rendered"]["trajectory_error"]["median"], 3)},
    )
    breaks = {}
    for name, arm in arms.items():
        figure = arm["identity_breaks"]
        breaks |= {name: percent(figure["median"])}
        breaks |= {f"{name}_low": percent(figure["low"]), f"{name}_high": percent(figure["high"])}
    yield Passage(
        LUMIERE,
        "| frames in which the object is not itself | {a} % ({a_low} to {a_high}) | {b} % ({b_low} to {b_high}) "
        "| {real} % | {d} points more ({d_low} to {d_high}) |",
        breaks | {"real": percent(made["arms"]["rendered"]["identity_breaks"]["median"])},
    )
    new = made["new_parameters"]
    yield Passage(
        LUMIERE,
        "Both together have {times} times the new parameters",
        {"times": decimals((new["keyframes"] + new["between"]) / new["one pass"], 2)},
    )
