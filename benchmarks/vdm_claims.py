"""Test two claims of Video Diffusion Models (Ho et al. 2022) on playroom with short training runs.

1. Reconstruction guidance keeps extensions coherent where replacement does not (§3.2): real prefixes are
      extended to 64 frames by a 16-frame model, block by block, with both methods, from the same noise.
   2. Joint training on independent images improves videos (§3.1, table 4): the same network, data, seed and
      number of steps, with and without K images per clip.

    python benchmarks/vdm_claims.py                  # 8 minutes of training per arm, then about 10 of sampling
    python benchmarks/vdm_claims.py --minutes 1 --prompts 8

Training resumes and measurements are stored in --out, so an interrupted run can be continued. Results are written to
vdm-extension.json and vdm-joint-images.json in --evidence, and to the report's page if there is one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kinema import registry
from kinema.atomic import replacing
from kinema.canvas import Canvas
from kinema.checkpoints import files
from kinema.data import playroom
from kinema.evaluation import metrics, report
from kinema.evaluation.claims import Claim, Outcome
from kinema.evaluation.consistency import object_consistency
from kinema.evaluation.oracle import judge
from kinema.evaluation.sampling import Sampling
from kinema.evaluation.temporal import STILL
from kinema.events import Event, Note, TrainStep
from kinema.system import Batch, System, Weights, open_system
from kinema.training.options import TrainOptions
from kinema.training.run import train

SIDE, FRAMES, TOTAL, GIVEN = 32, 16, 64, 8
IMAGES = 4
LASTING = ("spins", "swings", "orbits", "bounces")
"""Endless motions: a clip of them can have 16 frames or 64."""
HELD_OUT_CLIPS = 128
_CALIBRATION = 12


@dataclass(frozen=True)
class Options:
    """Command line options; ``steps`` instead of ``minutes`` fixes the length of training."""

    minutes: float
    steps: int | None
    prompts: int
    sampling_steps: int
    batch: int
    seed: int
    out: Path
    evidence: Path
    device: str | None
    threads: int | None
    only: str


def main() -> int:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    options.evidence.mkdir(parents=True, exist_ok=True)
    steps = options.steps or planned_steps(options)
    arms = [IMAGES, 0] if options.only != "extension" else [0]
    weights = {images: trained(options, images, steps) for images in arms}
    claims = {}
    if options.only != "extension":
        claims["vdm-joint-images"] = joint_images(options, weights, steps)
    if options.only != "images":
        claims["vdm-extension"] = extension(options, weights[0], steps)
    for name, claim in claims.items():
        with replacing(options.evidence / f"{name}.json") as part:
            part.write_text(claim.to_json(), encoding="utf-8")
        print(f"\n{claim.claim}\n{claim.table()}")
    if (options.evidence / f"{report.NAME}.json").is_file():
        print(f"\n{report.render(options.evidence)} is up to date")
    return 0


def read_options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="training time per arm")
    parser.add_argument("--steps", type=int, help="optimiser steps per arm, instead of minutes")
    parser.add_argument("--prompts", type=int, default=32, help="prompts per claim")
    parser.add_argument("--sampling-steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=16, help="clips per training step and per sampling batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/vdm-claims"), help="folder of training runs and measurements"
    )
    parser.add_argument("--evidence", type=Path, default=Path("docs/evidence"))
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", choices=("both", "extension", "images"), default="both")
    return Options(**vars(parser.parse_args()))


# ---------------------------------------------------------------------------------------- training


def start(options: Options, images: int) -> Path:
    """Write the untrained model of an arm, with the same initial weights for both."""
    path = options.out / f"start-{images}.safetensors"
    if not path.is_file():
        family = registry.family("vdm")
        pocket = family.presets["pocket"]
        training_settings = replace(pocket.training, batch=options.batch, learning_rate=2e-3, images=images)
        config = replace(
            pocket, side=SIDE, frames=FRAMES, channels=48, multipliers=(1, 2), head_dim=24, attention_sides=(4, 8),
            training=training_settings,
        )  # fmt: skip
        model = System("vdm-claims", family, config, Weights(seed=options.seed)).model
        header = json.dumps({"family": "vdm", "config": family.to_json(config)})
        files.write_tensors(path, model.state_dict(), {"kinema": header})
    return path


def training(options: Options, images: int, steps: int, out: Path) -> TrainOptions:
    return TrainOptions(
        model=str(start(options, images)),
        out=str(out),
        steps=steps,
        seed=options.seed,
        grammar="simple",
        device=options.device,
        threads=options.threads,
        save_every=100,
        sample_every=0,
        validate_every=max(50, steps // 4),
        keep=1,
    )


def planned_steps(options: Options) -> int:
    """Steps that the arm with images takes in the given minutes; measured once and stored for both arms."""
    plan = options.out / "plan.json"
    if plan.is_file():
        stored = json.loads(plan.read_text(encoding="utf-8"))
        if stored["minutes"] == options.minutes:
            return int(stored["steps"])
    began, seconds = time.perf_counter(), []

    def listen(event: Event) -> None:
        if isinstance(event, TrainStep) and event.index > 2:
            seconds.append(options.batch / event.rate)

    folder = options.out / f"calibration-{time.time_ns()}"
    train(training(options, IMAGES, _CALIBRATION, folder), listen)
    steps = max(20, round(options.minutes * 60 / statistics.median(seconds)))
    with replacing(plan) as part:
        part.write_text(json.dumps({"minutes": options.minutes, "steps": steps}), encoding="utf-8")
    print(f"{steps} steps per arm for {options.minutes:g} minutes (measured in {time.perf_counter() - began:.0f} s)")
    return steps


def trained(options: Options, images: int, steps: int) -> Path:
    """The averaged weights of an arm: loaded, resumed or trained."""
    folder = options.out / f"images-{images}-steps-{steps}"
    weights = folder / "model.safetensors"
    if weights.is_file():
        return weights
    progress = Progress(f"training with {images} images per clip")
    result = train(training(options, images, steps, folder), progress)
    if result.interrupted:
        weights.unlink(missing_ok=True)
        print(f"interrupted at step {result.step}; run the same command to resume")
        sys.exit(130)
    return result.weights


class Progress:
    """Prints progress every few seconds, with the time left."""

    def __init__(self, what: str) -> None:
        self.what, self.began, self.last = what, time.monotonic(), 0.0
        self.first: int | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            print(event.message)
        if isinstance(event, TrainStep):
            self.show(event.index, event.total, f", loss {event.loss:.3f}")

    def show(self, done: int, total: int, more: str = "") -> None:
        now = time.monotonic()
        self.first = done - 1 if self.first is None else self.first
        if now - self.last > 10 or done == total:
            self.last = now
            left = (now - self.began) / max(1, done - self.first) * (total - done)
            print(f"{self.what}: {done}/{total}{more}, {left / 60:.1f} min left", flush=True)


# ------------------------------------------------------------------------- claim 1: extension to 64


def extension(options: Options, weights: Path, steps: int) -> Claim:
    """Extend real prefixes to `TOTAL` frames with both methods, from the same noise."""
    system = open_system(weights, device=options.device)
    arms = ("reconstruction", "replacement")
    prompts = lasting_prompts(options)
    samplings = {
        arm: Sampling.of(system, frames=TOTAL, steps=options.sampling_steps, honour=arm, overlap=GIVEN) for arm in arms
    }

    def measured(arm: str, first: int, last: int) -> list[dict[str, float]]:
        prefix = torch.stack([real(p, options.seed + i, FRAMES) for i, p in enumerate(prompts)][first:last])
        canvas = prefix_canvas(prefix)
        own = samplings[arm].clips(prompts[first:last], options.seed + first, canvas)
        videos = torch.lerp(own, canvas.video, canvas.mask.expand_as(own))
        return [extension_measures(v, p) for v, p in zip(videos, prompts[first:last], strict=True)]

    # A block needs the memory of one clip with gradients, so the batch is smaller than for text to video.
    rows = Rows(options, "extension", weights, measured, batch=max(1, options.batch // 4))
    by_arm = {arm: rows.of(arm, len(prompts)) for arm in arms}
    higher = {"identity", "frames with the given colour", "frames with the given outline"}
    outcomes = [
        Outcome.of(
            name, *([row[name] for row in by_arm[arm]] for arm in arms), higher_is_better=name in higher,
            seed=options.seed,
        )
        for name in by_arm[arms[0]][0]
    ]  # fmt: skip
    method = (
        f"The first {GIVEN} frames of real {FRAMES}-frame clips with endless motion ({', '.join(LASTING)}) are "
        f"extended to {TOTAL} frames in blocks of {FRAMES}, each conditioned on the last {GIVEN} frames of the one "
        "before, by reconstruction guidance (with replacement, as in the paper) or by replacement alone, from the same "
        "noise. Seam: the change into each block's first new frame over the clip's other changes. Colour and outline "
        "are compared with the prompt in the frames in which the object is fully visible. Intervals are over prompts "
        "only; each arm uses the same short training run."
    )
    request = samplings[arms[0]].request
    more = {
        "given frames": GIVEN,
        "frames": TOTAL,
        "reconstruction weight": request.reconstruction_weight,
        "guidance": request.guidance,
        "sampler": request.sampler,
    }
    full_protocol = protocol(options, {0: weights}, steps) | more
    return Claim(
        "Reconstruction guidance against replacement, extending to 64 frames", arms, method, full_protocol, outcomes
    )


def lasting_prompts(options: Options) -> list[str]:
    """The first simple evaluation prompts with endless motion."""
    many = playroom.prompts(options.prompts * 8, options.seed, "simple", "evaluation")
    found = [p for p in many if (meaning := playroom.parse(p)) and meaning.motion in LASTING]
    return found[: options.prompts]


def real(prompt: str, seed: int, frames: int) -> torch.Tensor:
    rendered = playroom.sample(seed, frames=frames, height=SIDE, width=SIDE, fps=8.0, caption=prompt)
    return torch.from_numpy(rendered.video_CTHW)


def prefix_canvas(prefix_BCTHW: torch.Tensor) -> Canvas:
    """A canvas of `TOTAL` frames with the first `GIVEN` given."""
    batch = len(prefix_BCTHW)
    video, mask = torch.zeros(batch, 3, TOTAL, SIDE, SIDE), torch.zeros(batch, 1, TOTAL, SIDE, SIDE)
    video[:, :, :GIVEN], mask[:, :, :GIVEN] = prefix_BCTHW[:, :, :GIVEN], 1
    return Canvas.of(video, mask)


def extension_measures(video_CTHW: torch.Tensor, prompt: str) -> dict[str, float]:
    consistency = object_consistency(video_CTHW, prompt)
    change_T = video_CTHW.double().diff(dim=1).abs().mean(dim=(0, 2, 3))
    first_new = torch.zeros(len(change_T), dtype=torch.bool)
    first_new[GIVEN - 1 :: FRAMES - GIVEN] = True
    seam = change_T[first_new].mean() / change_T[~first_new].mean().clamp(min=STILL)
    return {
        "seam at block borders": float(seam),
        "identity": judge(video_CTHW, prompt).identity,
        "frames with the given colour": consistency.colour,
        "frames with the given outline": consistency.shape,
        "jerk": float(metrics.jerk(video_CTHW[None])),
        "high-frequency power": float(metrics.high_frequency_ratio(video_CTHW[None])),
        "luma second difference": float(metrics.luma_second_difference(video_CTHW[None])),
    }


# ------------------------------------------------------------------- claim 2: joint image training


def joint_images(options: Options, weights: dict[int, Path], steps: int) -> Claim:
    """Text to video, and the loss of clips, on evaluation prompts, with and without images in training."""
    systems = {images: open_system(path, device=options.device) for images, path in weights.items()}
    samplings = {k: Sampling.of(system, steps=options.sampling_steps) for k, system in systems.items()}
    prompts = playroom.prompts(options.prompts, options.seed, "simple", "evaluation")

    def measured(arm: str, first: int, last: int) -> list[dict[str, float]]:
        clips = samplings[int(arm)].clips(prompts[first:last], options.seed + first)
        return [text_measures(v, p) for v, p in zip(clips, prompts[first:last], strict=True)]

    rows = Rows(options, "joint-images", weights[IMAGES], measured, batch=options.batch)
    by_arm = [rows.of(str(images), len(prompts)) for images in (IMAGES, 0)]
    losses = [held_out_losses(systems[images], options) for images in (IMAGES, 0)]
    seed = options.seed
    higher = {"colour right", "shape right", "direction right", "identity"}
    outcomes = [Outcome.of("loss of held-out clips (no images)", *losses, higher_is_better=False, seed=seed)]
    for name in by_arm[0][0]:
        applicable = [i for i, row in enumerate(by_arm[0]) if row[name] is not None]
        values = [[arm[i][name] for i in applicable] for arm in by_arm]
        outcomes.append(Outcome.of(name, *values, higher_is_better=name in higher, seed=seed))
    method = (
        f"Two training runs from the same initial weights on the same clips of {FRAMES} frames: with {IMAGES} "
        "independent images per clip, and without. The number of steps is equal, as in the paper, so the images cost "
        "extra time. The loss is that of clips alone, with the same noise for both; the rest is text to video. "
        "Intervals are over clips and prompts only; they do not include the variation between training seeds."
    )
    request = samplings[0].request
    more = {"held-out clips": HELD_OUT_CLIPS, "guidance": request.guidance, "sampler": request.sampler}
    full_protocol = protocol(options, weights, steps) | more
    return Claim("Joint training on images", (f"{IMAGES} images", "none"), method, full_protocol, outcomes)


def text_measures(video_CTHW: torch.Tensor, prompt: str) -> dict[str, Any]:
    verdict = judge(video_CTHW, prompt)
    direction = verdict.direction_right
    return {
        "colour right": float(verdict.colour_right),
        "shape right": float(verdict.shape_right),
        "direction right": None if direction is None else float(direction),
        "identity": verdict.identity,
        "jerk": float(metrics.jerk(video_CTHW[None])),
        "high-frequency power": float(metrics.high_frequency_ratio(video_CTHW[None])),
    }


@torch.no_grad()
def held_out_losses(system: System, options: Options) -> list[float]:
    """Loss of each held-out clip, with noise and noise level seeded by its index."""
    found: list[float] = []
    for first in range(0, HELD_OUT_CLIPS, options.batch):
        seeds = range(first, min(first + options.batch, HELD_OUT_CLIPS))
        rendered = [
            playroom.sample([options.seed, 77, i], frames=FRAMES, height=SIDE, width=SIDE, split="evaluation")
            for i in seeds
        ]
        video = torch.stack([torch.from_numpy(each.video_CTHW) for each in rendered]).to(system.device)
        batch = Batch(video, [each.caption for each in rendered], torch.zeros_like(video[:, :1]))
        generator = torch.Generator().manual_seed(options.seed + first)
        found += system.family.training.loss(system.model, system.config, batch, generator).tolist()
    return found


# ------------------------------------------------------------------------------------------ shared


class Rows:
    """Measurements by arm, stored as they are computed, so that nothing is sampled twice."""

    def __init__(self, options: Options, name: str, weights: Path, measured: Any, batch: int) -> None:
        key = files.weight_hash(weights).rpartition(":")[2][:12]
        settings = f"{options.sampling_steps}-{options.seed}-{options.prompts}-{batch}"
        self.path = options.out / f"{name}-{key}-{settings}.jsonl"
        self.name, self.measured, self.batch = name, measured, batch

    def of(self, arm: str, count: int) -> list[dict[str, Any]]:
        rows = [entry["row"] for entry in self._stored() if entry["arm"] == arm][:count]
        progress = Progress(f"{self.name}, {arm}")
        while len(rows) < count:
            new = self.measured(arm, len(rows), min(count, len(rows) + self.batch))
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps({"arm": arm, "row": row}) + "\n" for row in new))
            rows += new
            progress.show(len(rows), count)
        return rows

    def _stored(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def protocol(options: Options, weights: dict[int, Path], steps: int) -> dict[str, Any]:
    system = open_system(next(iter(weights.values())), device=options.device)
    parameters = sum(p.numel() for p in system.model.parameters())
    return {
        "model": f"vdm, {parameters:,} parameters, {FRAMES}×{SIDE}×{SIDE}",
        "training steps": steps,
        "clips a step": options.batch,
        "training grammar": "simple",
        "prompts": options.prompts,
        "split": "evaluation",
        "seed": options.seed,
        "sampling steps": options.sampling_steps,
        "device": system.device.type,
        "weights": ", ".join(files.weight_hash(path) for path in weights.values()),
        "command": f"python benchmarks/vdm_claims.py --steps {steps} --prompts {options.prompts} --seed {options.seed} "
        f"--sampling-steps {options.sampling_steps} --batch {options.batch}",
    }


if __name__ == "__main__":
    sys.exit(main())
