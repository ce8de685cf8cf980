"""The pocket of AnimateDiff: trained on playroom, and the paper's two claims put to the test.

    python benchmarks/animatediff_pocket.py                        # all of it; the same command goes on
    python benchmarks/animatediff_pocket.py --only base,motion     # some stages
    python benchmarks/animatediff_pocket.py --only measure         # figures of what is trained

Training is that of `kinema train --shipped`, leg by leg (`--dry-run` lists the runs), in OUT/base, outline, night,
moved, panned, filmed, zoomed, motion, left, right and zoom.

Measured are, first, clips of held-out prompts by both personalised models, moved by the motion module that saw the
base alone: how far they keep their style (`kinema.data.styles.share`, beside that of the same image model's single
pictures), whether things move as the prompt says (the oracle), and flicker beside pictures sampled one by one, by three
measures (`FLICKERS`). True clips of the same prompts are measured with them, because thin lines that move change pixels
as flicker does. Second,
how the camera moves with each MotionLoRA merged (`kinema.evaluation.camera`), and whether taking them out leaves every
weight as it was. Clips measured are kept in OUT, so that an interrupted run goes on. Figures, a page and a contact
sheet go to --evidence; the files to ship are named with their sizes.
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
from pocket_told import Told
from torch import Tensor

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
"""The legs that make a file that ships."""
PATTERNS = ("checkered", "striped")
LEAST_DIRECTION, MOST_STYLE, MOST_FLICKER, LEAST_CAMERA, MOST_BYTES = 0.85, 0.1, 1 / 3, 0.9, 10_000_000
SHARP = 0.5
"""A camera's motion that leaves less than this share of what no motion leaves also keeps the texture of the ground."""
FLICKERS = {"pulse": "brightness", "residual": "what steady motion leaves", "flicker": "every pixel"}
"""Second difference of a frame's brightness; `metrics.interpolation_residual`; second difference of pixels."""


@dataclass(frozen=True)
class Options:
    """The command line."""

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
        """What a stage made that the others use."""
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
    parser.add_argument("--only", default="all", help=f"stages with commas: {', '.join(TRAINED)}, measure; or all")
    parser.add_argument("--out", type=Path, default=Path("runs/animatediff-pocket"))
    parser.add_argument("--evidence", type=Path, default=Path("docs/evidence"))
    parser.add_argument("--steps", type=int, help="optimiser steps of each stage; else the recipes'")
    parser.add_argument("--batch", type=int, help="clips (or pictures) a step; else the recipes'")
    parser.add_argument("--prompts", type=int, default=64, help="of each style; all of them name a direction")
    parser.add_argument("--camera-prompts", type=int, default=32, help="of each MotionLoRA")
    parser.add_argument("--sampling-steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device")
    options = Options(**vars(parser.parse_args()))
    if odd := set(options.stages) - {*TRAINED, "measure"}:
        parser.error(f"no stage {min(odd)!r}; there are {', '.join(TRAINED)}, measure")
    return options


# ---------------------------------------------------------------------------------------- training


def trained(options: Options, stage: str) -> None:
    """A run of a stage, begun or gone on with."""
    told = {"out": str(options.out), "seed": options.seed, "save_every": 50, "sample_every": 0, "validate_every": 200}
    asked = {name: getattr(options, name) for name in ("steps", "batch", "threads", "device")}
    told |= {"keep": 1} | {name: value for name, value in asked.items() if value is not None}
    runs = {leg: run for name in SHIPPED.files for leg, run in plan(name, told).items()}
    if train(runs[stage].options, Told(stage)).interrupted:
        raise SystemExit(130)


def minutes(options: Options) -> dict[str, float]:
    """Of training, stage by stage, as the checkpoints count them."""
    found = {}
    for stage in TRAINED:
        if steps := sorted((options.out / stage).glob("step-*.safetensors")):
            found[stage] = round(checkpoint.peek(steps[-1])[0].seconds / 60, 1)
    return found


# --------------------------------------------------------------------------------------- measuring


def measure(options: Options) -> dict[str, Any]:
    """Every clip of both claims, and the figures of it all."""
    kept = Kept(options)
    directed = [p for p in playroom.prompts(8 * options.prompts, options.seed, "simple", "held-out") if names_a_way(p)]
    few = max(1, options.prompts // 4)  # the base is a control only
    looks = {
        name: looks_of(options, kept, name, directed[: options.prompts if name in STYLES else few])
        for name in ("plain", *STYLES)
    }
    plain = playroom.prompts(options.camera_prompts, options.seed + 1, "simple", "held-out")
    scenes = [f"{p} on a {PATTERNS[i % len(PATTERNS)]} background" for i, p in enumerate(plain)]
    system = opened(options, "plain")
    before = {name: p.clone() for name, p in system.model.named_parameters()}
    cameras = {name: cameras_of(options, kept, system, name, scenes) for name in ("none", *CAMERAS)}
    system.use_loras({})
    exact = all(torch.equal(p, before[name]) for name, p in system.model.named_parameters())
    return summary(options, looks, cameras, exact)


def names_a_way(prompt: str) -> bool:
    meaning = playroom.parse(prompt)
    return meaning is not None and meaning.direction is not None


def opened(options: Options, look: str) -> System:
    """The base, or one of its personalised variants, with the motion module in it."""
    add = {} if look == "plain" else {"style": options.file(look)}
    return open_system(options.file("base"), add={**add, "motion": options.file("motion")}, device=options.device)


class Kept:
    """Rows measured before, by what they depend on: weights, sampling and prompts."""

    def __init__(self, options: Options) -> None:
        names = [stage for stage in FILES if options.file(stage).is_file()]
        if missing := [stage for stage in ("base", *STYLES, "motion") if stage not in names]:
            raise SystemExit(f"nothing to measure: {missing[0]} is not trained yet (--only {missing[0]})")
        self.hashes = {stage: files.weight_hash(options.file(stage)) for stage in names}
        self.how = {
            "steps": options.sampling_steps,
            "guidance": options.guidance,
            "measures": [*FLICKERS],
            "camera": "opposite",
        }
        self.path = options.out / "measured.jsonl"
        held = self.path.read_text().splitlines() if self.path.is_file() else []
        self.rows = {json.dumps(row["key"], sort_keys=True): row["row"] for row in map(json.loads, held)}

    def rows_of(
        self, about: Mapping[str, Any], prompts: Sequence[str], seed: int, make: Callable[[str, int], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """A row a prompt, from the file or made now; prompt i has seed + i."""
        rows = []
        weights = {stage: told for stage, told in self.hashes.items() if stage in ("base", "motion", *about.values())}
        for i, prompt in enumerate(prompts):
            key = {**self.how, "weights": weights, **about, "prompt": prompt, "seed": seed + i}
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


def looks_of(options: Options, kept: Kept, look: str, prompts: Sequence[str]) -> list[dict[str, Any]]:
    system = opened(options, look)

    def make(prompt: str, seed: int) -> dict[str, Any]:
        moving = clip_of(options, system, prompt, seed)
        pictures = clip_of(options, system, prompt, seed, effect=0.0)  # the image model, each frame by itself
        fps = system.family.sampling.defaults(system.config).fps
        told, apart = judge(moving, prompt, fps), judge(pictures, prompt, fps)
        shares = {f"share_{style}": styles.share(style, moving) for style in STYLES}
        shares |= {f"pictures_{style}": styles.share(style, pictures) for style in STYLES}
        right = {name: getattr(told, f"{name}_right") for name in ("direction", "motion", "colour", "shape")}
        true = true_clip(system.config, look, prompt, seed)
        clips = {"": (moving, told), "_pictures": (pictures, apart), "_true": (true, judge(true, prompt, fps))}
        flicker = {f"flicker{of}": verdict.flicker for of, (_, verdict) in clips.items()}
        flicker |= {f"pulse{of}": float(luma_second_difference(video[None])) for of, (video, _) in clips.items()}
        flicker |= {f"residual{of}": float(interpolation_residual(video[None])) for of, (video, _) in clips.items()}
        return {**right, **flicker, **shares}

    return kept.rows_of({"look": look}, prompts, options.seed, make)


def true_clip(config: Any, look: str, prompt: str, seed: int) -> Tensor:
    """The prompt as the playroom renders it, in the look, 3×T×H×W."""
    drawn = playroom.sample(
        seed, frames=config.frames, height=config.height, width=config.width, fps=config.fps, caption=prompt
    )
    return styles.apply("" if look == "plain" else look, torch.from_numpy(drawn.video_CTHW))


def cameras_of(options: Options, kept: Kept, system: System, name: str, prompts: Sequence[str]) -> list[dict[str, Any]]:
    if name != "none" and not options.file(name).is_file():
        return []
    system.use_loras({} if name == "none" else {options.file(name): 1.0})

    def make(prompt: str, seed: int) -> dict[str, Any]:
        return vars(camera_of(clip_of(options, system, prompt, seed)))

    return kept.rows_of({"lora": name}, prompts, options.seed, make)


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
        "looks": {name: of_look(rows, name) for name, rows in looks.items()},
        "cameras": {name: of_camera(rows, name) for name, rows in cameras.items() if rows},
        "unmerged_exactly": exact,
    }


def of_look(rows: Sequence[Mapping[str, Any]], look: str) -> dict[str, Any]:
    """Means; ``style_off`` is how far the share of a clip's pixels is from that of pictures, relative to theirs."""
    told = {name: mean([row[name] for row in rows]) for name in rows[0]}
    for flicker in FLICKERS:
        for of in ("", "_true"):
            told[f"{flicker}_ratio{of}"] = told[f"{flicker}{of}"] / max(told[f"{flicker}_pictures"], 1e-9)
    if look in STYLES:
        told["style_off"] = abs(told[f"share_{look}"] / max(told[f"pictures_{look}"], 1e-9) - 1)
    return {"prompts": len(rows), **told}


def of_camera(rows: Sequence[Mapping[str, Any]], lora: str) -> dict[str, Any]:
    names = [row["name"] for row in rows]
    wanted = CAMERAS.get(lora, "still")
    counted = {name: names.count(name) for name in sorted(set(names))}
    share = names.count(wanted) / len(names)
    sharp = sum(row["name"] == wanted and row["left_of_still"] < SHARP for row in rows) / len(rows)
    return {"prompts": len(rows), "wanted": wanted, "share": share, "sharp": sharp, "seen": counted}


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
    """Prompts down; across, the clips of the base and of both variants, and below them the MotionLoRAs'."""
    directed = [p for p in playroom.prompts(8 * rows, options.seed + 2, "simple", "held-out") if names_a_way(p)][:rows]
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
    picture = to_uint8(torch.cat(lines, dim=1)[None, :, None])[0, 0]
    return Image.fromarray(np.asarray(picture))


def strip(video_CTHW: Tensor) -> Tensor:
    """The frames of a clip side by side, and a margin, 3×(H+2)×W."""
    side_by_side = video_CTHW.transpose(1, 2).flatten(2)
    return torch.nn.functional.pad(side_by_side, (0, 8, 0, 2), value=1.0)


def page(told: Mapping[str, Any]) -> str:
    """The evidence as Markdown."""
    looks, cameras = told["looks"], told["cameras"]
    head = f"| model | direction | style share, clips | of pictures | off by | {' | '.join(FLICKERS.values())} |"
    lines = ["# The pocket AnimateDiff, measured", "", "`python benchmarks/animatediff_pocket.py --only measure`", ""]
    lines += [
        f"One motion module, trained on the base alone; {looks[STYLES[0]]['prompts']} held-out prompts.",
        "Flicker, by three measures, is given as a ratio to that of pictures which the same image model draws frame by "
        "frame, and in brackets the ratio of true clips: lines that move change pixels too.",
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
    lines += ["", f"Control: the same shares of the base's own clips are {control}.", ""]
    lines += ["| MotionLoRA | asked | seen so | and texture kept | all that was seen |", "|---|---|---|---|---|"]
    for name, row in cameras.items():
        seen = ", ".join(f"{view} {count}" for view, count in row["seen"].items())
        kept = "" if row["wanted"] == "still" else f"{100 * row['sharp']:.0f} %"
        lines.append(f"| {name} | {row['wanted']} | {100 * row['share']:.0f} % of {row['prompts']} | {kept} | {seen} |")
    lines += ["", f"Taking the LoRAs out leaves every weight as it was: {'yes' if told['unmerged_exactly'] else 'NO'}."]
    for what, unit in (("bytes", "bytes"), ("training_minutes", "minutes of training")):
        each = ", ".join(f"{name} {value:,}" for name, value in told[what].items())
        lines.append(f"{sum(told[what].values()):,.0f} {unit} ({each}).")
    lines += ["", *(f"- {claim}: {'reached' if holds else 'not reached'}" for claim, holds in verdicts(told).items())]
    return "\n".join(lines) + "\n"


def verdicts(told: Mapping[str, Any]) -> dict[str, bool]:
    looks = {name: told["looks"][name] for name in STYLES}
    panned = [told["cameras"][name] for name in CAMERAS if name in told["cameras"]]
    return {
        f"direction right for {100 * LEAST_DIRECTION:.0f} % with both styles": all(
            row["direction"] >= LEAST_DIRECTION for row in looks.values()
        ),
        f"style within {100 * MOST_STYLE:.0f} % of the image model's": all(
            row["style_off"] <= MOST_STYLE for row in looks.values()
        ),
        **{
            f"flicker ({what}) at most a third of frame by frame": all(
                row[f"{of}_ratio"] <= MOST_FLICKER for row in looks.values()
            )
            for of, what in FLICKERS.items()
        },
        f"each MotionLoRA moves the camera its way for {100 * LEAST_CAMERA:.0f} %": len(panned) == len(CAMERAS)
        and all(row["share"] >= LEAST_CAMERA for row in panned),
        "LoRAs come out exactly": bool(told["unmerged_exactly"]),
        f"at most {MOST_BYTES:,} bytes": sum(told["bytes"].values()) <= MOST_BYTES,
    }


if __name__ == "__main__":
    sys.exit(main())
