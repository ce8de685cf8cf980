"""Train the pocket AnimateDiff on playroom and test the paper's two claims.

    python benchmarks/animatediff_pocket.py                        # everything; resumes where it stopped
    python benchmarks/animatediff_pocket.py --only base,motion     # some training stages
    python benchmarks/animatediff_pocket.py --only measure         # measure what is trained

Training is that of `kinema train --shipped`, one training stage after another (`--dry-run` lists the runs), in
OUT/base, outline, night, moved, panned, filmed, zoomed, motion, left, right and zoom.

First, clips of tuning prompts by both personalised models, with the motion module trained on the base alone, are
measured: how well they keep their style (`kinema.data.styles.share`, compared with single images of the same image
model), whether objects move as prompted (the oracle), and three measures of flicker (`FLICKERS`), compared with images
sampled one by one. Real clips of the same prompts are measured too, since thin moving lines change pixels as flicker
does. Second, the camera motion with each MotionLoRA merged (`kinema.evaluation.camera`), and whether unmerging restores
every weight. Measurements are stored in OUT, so that an interrupted run can resume. The results, a page and a contact
sheet are written to --evidence; the files to ship are listed with their sizes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from training_progress import TrainingProgress

from kinema.atomic import replacing
from kinema.checkpoints import files
from kinema.data import playroom, styles
from kinema.evaluation.camera import camera_of
from kinema.evaluation.metrics import interpolation_residual, luma_second_difference
from kinema.evaluation.oracle import judge
from kinema.families.animatediff.pocket.shipped import SHIPPED
from kinema.generate import generate
from kinema.media.colour import to_uint8
from kinema.schema import Request
from kinema.system import System, open_system
from kinema.training import checkpoint
from kinema.training.run import train
from kinema.training.shipped import plan

STYLES = ("outline", "night")
CAMERAS = {"left": "pans left", "right": "pans right", "zoom": "zooms in"}
TRAINED = tuple(SHIPPED.legs)
FILES = tuple(SHIPPED.files.values())
"""Training stages that produce a shipped file."""
PATTERNS = ("checkered", "striped")
LEAST_DIRECTION, MOST_STYLE, MOST_FLICKER, LEAST_CAMERA, MOST_BYTES = 0.85, 0.1, 1 / 3, 0.9, 10_000_000
SHARP = 0.5
"""A camera motion with less than this share of the error of no motion also preserves the background's texture."""
FLICKERS = {"pulse": "brightness", "residual": "interpolation residual", "flicker": "every pixel"}
"""Second difference of a frame's brightness; `metrics.interpolation_residual`; second difference of pixels."""


@dataclass(frozen=True)
class Options:
    """Command line options."""

    only: str
    out: Path
    evidence: Path
    steps: int | None
    batch: int | None
    prompts: int
    camera_prompts: int
    sampling_steps: int | None
    guidance: float | None
    seed: int
    threads: int | None
    device: str | None

    @property
    def stages(self) -> Sequence[str]:
        return (*TRAINED, "measure") if self.only == "all" else self.only.split(",")

    def file(self, stage: str) -> Path:
        """The file that a training stage produces for the others."""
        return self.out / stage / SHIPPED.legs[stage].makes


def main() -> int:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for stage in TRAINED:
        if stage in options.stages:
            trained(options, stage)
    if "measure" in options.stages:
        result = measure(options)
        write(options, result)
        print(page(result))
    return 0


def read_options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="all", help=f"comma-separated training stages: {', '.join(TRAINED)}, measure; or all"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/animatediff-pocket"))
    parser.add_argument("--evidence", type=Path, default=Path("docs/evidence"))
    parser.add_argument(
        "--steps", type=int, help="optimiser steps per training stage; default: the shipped training settings"
    )
    parser.add_argument("--batch", type=int, help="clips (or images) per step; default: the shipped training settings")
    parser.add_argument("--prompts", type=int, default=64, help="prompts per style, all with a direction")
    parser.add_argument("--camera-prompts", type=int, default=32, help="prompts per MotionLoRA")
    parser.add_argument("--sampling-steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device")
    options = Options(**vars(parser.parse_args()))
    if unknown := set(options.stages) - {*TRAINED, "measure"}:
        parser.error(f"unknown stage {min(unknown)!r}; expected {', '.join(TRAINED)} or measure")
    return options


# ---------------------------------------------------------------------------------------- training


def trained(options: Options, stage: str) -> None:
    """Start or resume a training stage."""
    settings = {
        "out": str(options.out),
        "seed": options.seed,
        "save_every": 50,
        "sample_every": 0,
        "validate_every": 200,
    }
    overrides = {name: getattr(options, name) for name in ("steps", "batch", "threads", "device")}
    settings |= {"keep": 1} | {name: value for name, value in overrides.items() if value is not None}
    runs = {leg: run for name in SHIPPED.files for leg, run in plan(name, settings).items()}
    if train(runs[stage].options, TrainingProgress(stage)).interrupted:
        raise SystemExit(130)


def minutes(options: Options) -> dict[str, float]:
    """Training minutes by training stage, from the checkpoints."""
    found = {}
    for stage in TRAINED:
        if steps := sorted((options.out / stage).glob("step-*.safetensors")):
            found[stage] = round(checkpoint.peek(steps[-1])[0].seconds / 60, 1)
    return found


# --------------------------------------------------------------------------------------- measuring


def measure(options: Options) -> dict[str, Any]:
    """Measure every clip of both claims and summarise the results."""
    store = RowStore(options)
    directed = [p for p in playroom.prompts(8 * options.prompts, options.seed, "simple", "tuning") if has_direction(p)]
    few = max(1, options.prompts // 4)  # the base is a control only
    looks = {
        name: style_rows(options, store, name, directed[: options.prompts if name in STYLES else few])
        for name in ("plain", *STYLES)
    }
    plain = playroom.prompts(options.camera_prompts, options.seed + 1, "simple", "tuning")
    scenes = [f"{p} on a {PATTERNS[i % len(PATTERNS)]} background" for i, p in enumerate(plain)]
    system = opened(options, "plain")
    before = {name: p.clone() for name, p in system.model.named_parameters()}
    cameras = {name: camera_rows(options, store, system, name, scenes) for name in ("none", *CAMERAS)}
    system.use_loras({})
    exact = all(torch.equal(p, before[name]) for name, p in system.model.named_parameters())
    return summary(options, looks, cameras, exact)


def has_direction(prompt: str) -> bool:
    meaning = playroom.parse(prompt)
    return meaning is not None and meaning.direction is not None


def opened(options: Options, look: str) -> System:
    """The base or a personalised variant, with the motion module."""
    add = {} if look == "plain" else {"style": options.file(look)}
    return open_system(options.file("base"), add={**add, "motion": options.file("motion")}, device=options.device)


class RowStore:
    """Stored measurements, keyed by weights, sampling options and prompts."""

    def __init__(self, options: Options) -> None:
        names = [stage for stage in FILES if options.file(stage).is_file()]
        if missing := [stage for stage in ("base", *STYLES, "motion") if stage not in names]:
            raise SystemExit(f"cannot measure: {missing[0]} is not trained yet; run with --only {missing[0]}")
        self.hashes = {stage: files.weight_hash(options.file(stage)) for stage in names}
        self.sampling = {
            "steps": options.sampling_steps,
            "guidance": options.guidance,
            "measures": [*FLICKERS],
            "camera": "opposite",
        }
        self.path = options.out / "measured.jsonl"
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        self.rows = {json.dumps(row["key"], sort_keys=True): row["row"] for row in map(json.loads, lines)}

    def rows_of(
        self, about: Mapping[str, Any], prompts: Sequence[str], seed: int, make: Callable[[str, int], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """One row per prompt, from the file or computed; prompt i has seed + i."""
        rows = []
        weights = {
            stage: digest for stage, digest in self.hashes.items() if stage in ("base", "motion", *about.values())
        }
        for i, prompt in enumerate(prompts):
            key = {**self.sampling, "weights": weights, **about, "prompt": prompt, "seed": seed + i}
            name = json.dumps(key, sort_keys=True)
            if name not in self.rows:
                self.rows[name] = make(prompt, seed + i)
                with self.path.open("a") as file:
                    file.write(json.dumps({"key": key, "row": self.rows[name]}) + "\n")
                print(f"{', '.join(about.values())}: {i + 1} of {len(prompts)}: {self.rows[name]}", flush=True)
            rows.append(self.rows[name])
        return rows


def clip_of(options: Options, system: System, prompt: str, seed: int, **extra: Any) -> Tensor:
    """One clip, 3×T×H×W."""
    request = Request(
        prompt=prompt, seed=seed, steps=options.sampling_steps, guidance=options.guidance, extra=dict(extra)
    )
    return generate(system, request).video[0]


def style_rows(options: Options, store: RowStore, look: str, prompts: Sequence[str]) -> list[dict[str, Any]]:
    system = opened(options, look)

    def make(prompt: str, seed: int) -> dict[str, Any]:
        moving = clip_of(options, system, prompt, seed)
        frames = clip_of(options, system, prompt, seed, effect=0.0)  # the image model, each frame separately
        fps = system.family.sampling.defaults(system.config).fps
        verdict_moving, verdict_frames = judge(moving, prompt, fps), judge(frames, prompt, fps)
        shares = {f"share_{style}": styles.share(style, moving) for style in STYLES}
        shares |= {f"pictures_{style}": styles.share(style, frames) for style in STYLES}
        right = {name: getattr(verdict_moving, f"{name}_right") for name in ("direction", "motion", "colour", "shape")}
        true_video = true_clip(system.config, look, prompt, seed)
        clips = {
            "": (moving, verdict_moving),
            "_pictures": (frames, verdict_frames),
            "_true": (true_video, judge(true_video, prompt, fps)),
        }
        flicker = {f"flicker{of}": verdict.flicker for of, (_, verdict) in clips.items()}
        flicker |= {f"pulse{of}": float(luma_second_difference(video[None])) for of, (video, _) in clips.items()}
        flicker |= {f"residual{of}": float(interpolation_residual(video[None])) for of, (video, _) in clips.items()}
        return {**right, **flicker, **shares}

    return store.rows_of({"look": look}, prompts, options.seed, make)


def true_clip(config: Any, look: str, prompt: str, seed: int) -> Tensor:
    """The prompt as the playroom renders it, in the style, 3×T×H×W."""
    rendered = playroom.sample(
        seed, frames=config.frames, height=config.height, width=config.width, fps=config.fps, caption=prompt
    )
    return styles.apply("" if look == "plain" else look, torch.from_numpy(rendered.video_CTHW))


def camera_rows(
    options: Options, store: RowStore, system: System, name: str, prompts: Sequence[str]
) -> list[dict[str, Any]]:
    if name != "none" and not options.file(name).is_file():
        return []
    system.use_loras({} if name == "none" else {options.file(name): 1.0})

    def make(prompt: str, seed: int) -> dict[str, Any]:
        return vars(camera_of(clip_of(options, system, prompt, seed)))

    return store.rows_of({"lora": name}, prompts, options.seed, make)


def summary(
    options: Options,
    looks: Mapping[str, list[dict[str, Any]]],
    cameras: Mapping[str, list[dict[str, Any]]],
    exact: bool,
) -> dict[str, Any]:
    return {
        "weights": {s: files.weight_hash(options.file(s)) for s in FILES if options.file(s).is_file()},
        "bytes": {s: options.file(s).stat().st_size for s in FILES if options.file(s).is_file()},
        "training_minutes": minutes(options),
        "seed": options.seed,
        "sampling_steps": options.sampling_steps,
        "guidance": options.guidance,
        "looks": {name: style_summary(rows, name) for name, rows in looks.items()},
        "cameras": {name: camera_summary(rows, name) for name, rows in cameras.items() if rows},
        "unmerged_exactly": exact,
    }


def style_summary(rows: Sequence[Mapping[str, Any]], look: str) -> dict[str, Any]:
    """Means; ``style_off`` is the relative difference of the style share between clips and single images."""
    means = {name: mean([row[name] for row in rows]) for name in rows[0]}
    for flicker in FLICKERS:
        for of in ("", "_true"):
            means[f"{flicker}_ratio{of}"] = means[f"{flicker}{of}"] / max(means[f"{flicker}_pictures"], 1e-9)
    if look in STYLES:
        means["style_off"] = abs(means[f"share_{look}"] / max(means[f"pictures_{look}"], 1e-9) - 1)
    return {"prompts": len(rows), **means}


def camera_summary(rows: Sequence[Mapping[str, Any]], lora: str) -> dict[str, Any]:
    names = [row["name"] for row in rows]
    expected = CAMERAS.get(lora, "still")
    counts = {name: names.count(name) for name in sorted(set(names))}
    share = names.count(expected) / len(names)
    sharp = sum(row["name"] == expected and row["left_of_still"] < SHARP for row in rows) / len(rows)
    return {"prompts": len(rows), "wanted": expected, "share": share, "sharp": sharp, "seen": counts}


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


# ---------------------------------------------------------------------------------------- evidence


def write(options: Options, result: Mapping[str, Any]) -> None:
    options.evidence.mkdir(parents=True, exist_ok=True)
    with replacing(options.evidence / "animatediff-pocket.json") as part:
        part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    with replacing(options.evidence / "animatediff-pocket.md") as part:
        part.write_text(page(result), encoding="utf-8")
    with replacing(options.evidence / "animatediff-pocket.png") as part:
        sheet(options).save(part, format="PNG", optimize=True)


def sheet(options: Options, rows: int = 5) -> Image.Image:
    """Contact sheet: a row per prompt with clips of the base and both variants, then a row of the MotionLoRAs."""
    directed = [p for p in playroom.prompts(8 * rows, options.seed + 2, "simple", "tuning") if has_direction(p)][:rows]
    clips = [
        [clip_of(options, system, prompt, options.seed + i) for i, prompt in enumerate(directed)]
        for system in (opened(options, look) for look in ("plain", *STYLES))
    ]
    lines = [torch.cat([strip(column[i]) for column in clips], dim=2) for i in range(len(directed))]
    system = opened(options, "plain")
    prompt = "a red ball bounces on a checkered background"
    panned = []
    for name in CAMERAS:
        if options.file(name).is_file():
            system.use_loras({options.file(name): 1.0})
            panned.append(strip(clip_of(options, system, prompt, options.seed)))
    if len(panned) == len(CAMERAS):
        lines.append(torch.cat(panned, dim=2))
    image = to_uint8(torch.cat(lines, dim=1)[None, :, None])[0, 0]
    return Image.fromarray(np.asarray(image))


def strip(video_CTHW: Tensor) -> Tensor:
    """The frames of a clip in a row, with a margin, 3×(H+2)×W."""
    side_by_side = video_CTHW.transpose(1, 2).flatten(2)
    return torch.nn.functional.pad(side_by_side, (0, 8, 0, 2), value=1.0)


def page(result: Mapping[str, Any]) -> str:
    """The evidence page as Markdown."""
    looks, cameras = result["looks"], result["cameras"]
    head = f"| model | direction | style share, clips | images | difference | {' | '.join(FLICKERS.values())} |"
    lines = [
        "# Measurements of the pocket AnimateDiff",
        "",
        "`python benchmarks/animatediff_pocket.py --only measure`",
        "",
    ]
    lines += [
        f"One motion module, trained on the base alone; {looks[STYLES[0]]['prompts']} prompts of the tuning share.",
        "Flicker, by three measures, is relative to that of images which the same image model generates frame by "
        "frame; the ratio of real clips is in parentheses: moving lines change pixels too.",
        "",
        head,
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name, row in looks.items():
        styled = name in STYLES
        cells = [
            f"{100 * row['direction']:.0f} %",
            f"{row[f'share_{name}']:.3f}" if styled else "",
            f"{row[f'pictures_{name}']:.3f}" if styled else "",
            f"{100 * row['style_off']:.1f} %" if styled else "",
            *(f"{row[f'{of}_ratio']:.2f} ({row[f'{of}_ratio_true']:.2f})" for of in FLICKERS),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    control = ", ".join(f"{style} {looks['plain'][f'share_{style}']:.3f}" for style in STYLES)
    lines += ["", f"Control: the style shares of the base's own clips are {control}.", ""]
    lines += ["| MotionLoRA | expected | found | and texture kept | all estimates |", "|---|---|---|---|---|"]
    for name, row in cameras.items():
        estimates = ", ".join(f"{view} {count}" for view, count in row["seen"].items())
        sharp = "" if row["wanted"] == "still" else f"{100 * row['sharp']:.0f} %"
        lines.append(
            f"| {name} | {row['wanted']} | {100 * row['share']:.0f} % of {row['prompts']} | {sharp} | {estimates} |"
        )
    lines += ["", f"Removing the LoRAs restores every weight: {'yes' if result['unmerged_exactly'] else 'NO'}."]
    for what, unit in (("bytes", "bytes"), ("training_minutes", "minutes of training")):
        each = ", ".join(f"{name} {value:,}" for name, value in result[what].items())
        lines.append(f"{sum(result[what].values()):,.0f} {unit} ({each}).")
    lines += [
        "",
        *(f"- {claim}: {'reached' if reached else 'not reached'}" for claim, reached in verdicts(result).items()),
    ]
    return "\n".join(lines) + "\n"


def verdicts(result: Mapping[str, Any]) -> dict[str, bool]:
    looks = {name: result["looks"][name] for name in STYLES}
    panned = [result["cameras"][name] for name in CAMERAS if name in result["cameras"]]
    return {
        f"direction correct for {100 * LEAST_DIRECTION:.0f} % with both styles": all(
            row["direction"] >= LEAST_DIRECTION for row in looks.values()
        ),
        f"style within {100 * MOST_STYLE:.0f} % of the image model's": all(
            row["style_off"] <= MOST_STYLE for row in looks.values()
        ),
        **{
            f"flicker ({what}) at most a third of frame-by-frame sampling": all(
                row[f"{of}_ratio"] <= MOST_FLICKER for row in looks.values()
            )
            for of, what in FLICKERS.items()
        },
        f"each MotionLoRA produces its camera motion for {100 * LEAST_CAMERA:.0f} %": len(panned) == len(CAMERAS)
        and all(row["share"] >= LEAST_CAMERA for row in panned),
        "LoRAs are unmerged exactly": bool(result["unmerged_exactly"]),
        f"at most {MOST_BYTES:,} bytes": sum(result["bytes"].values()) <= MOST_BYTES,
    }


if __name__ == "__main__":
    sys.exit(main())
