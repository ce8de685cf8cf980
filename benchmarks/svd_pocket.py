"""Train the pocket Stable Video Diffusion on playroom and test its motion bucket.

    python benchmarks/svd_pocket.py                       # train both training stages, then measure; resumes
    python benchmarks/svd_pocket.py --only train --out runs/svd-pocket
    python benchmarks/svd_pocket.py --only measure --model runs/svd-pocket/playroom/model.safetensors

Training is `kinema train --shipped svd-pocket --out OUT`.

Clips are animated from the first frames of playroom scenes of the tuning share (the only one that these weights are not
trained on, docs/decisions/0015), at every bucket from the same noise, and measured as decoded, before the given image
is restored in frame 0 (whose latents are held): amount of motion (optical flow, and mean pixel change), PSNR of frame 0
against the image, and consistency of the object (the oracle). Measurements are stored in OUT, so that an interrupted
run can resume. The result is written to svd-pocket.json in --evidence.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from training_progress import TrainingProgress

from kinema.atomic import replacing
from kinema.checkpoints import files
from kinema.data import motion, playroom
from kinema.evaluation.consistency import object_consistency
from kinema.evaluation.measuring import first_frames
from kinema.evaluation.oracle import judge
from kinema.evaluation.sampling import Sampling
from kinema.media.colour import to_uint8
from kinema.system import System, open_system
from kinema.training.shipped import train_shipped

BUCKETS = (20, 60, 110, 160, 200)
LEAST_SPEARMAN, LEAST_PSNR = 0.9, 28.0


@dataclass(frozen=True)
class Options:
    """Command line options."""

    only: str
    model: Path | None
    out: Path
    evidence: Path
    steps: int | None
    batch: int | None
    images: int
    sampling_steps: int | None
    guidance: float | None
    at_once: int
    seed: int
    threads: int | None
    device: str | None


def main() -> int:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    model = options.model
    if options.only != "measure":
        model = trained(options)
        print(f"trained: {model} ({model.stat().st_size / 2**20:.1f} MiB)")
    if options.only == "train":
        return 0
    result = measure(options, model or options.out / "playroom" / "model.safetensors")
    options.evidence.mkdir(parents=True, exist_ok=True)
    with replacing(options.evidence / "svd-pocket.json") as part:
        part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    return 0


def read_options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("both", "train", "measure"), default="both")
    parser.add_argument("--model", type=Path, help="weights to measure instead of those trained here")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/svd-pocket"), help="folder of training runs and measurements"
    )
    parser.add_argument("--evidence", type=Path, default=Path("docs/evidence"))
    parser.add_argument(
        "--steps", type=int, help="optimiser steps per training stage; default: the shipped training settings"
    )
    parser.add_argument("--batch", type=int, help="clips per step; default: the shipped training settings")
    parser.add_argument("--images", type=int, default=64, help="images to measure")
    parser.add_argument("--sampling-steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--at-once", type=int, default=16, help="clips per sampling batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device")
    return Options(**vars(parser.parse_args()))


# ---------------------------------------------------------------------------------------- training


def trained(options: Options) -> Path:
    """The weights after both training stages, trained or resumed."""
    settings = {
        "out": str(options.out),
        "seed": options.seed,
        "save_every": 50,
        "sample_every": 300,
        "validate_every": 200,
    }
    overrides = {name: getattr(options, name) for name in ("steps", "batch", "threads", "device")}
    settings |= {name: value for name, value in overrides.items() if value is not None}
    run = train_shipped("svd-pocket", settings, TrainingProgress("svd-pocket"))
    if run.interrupted:
        raise SystemExit(130)
    return run.weights


# --------------------------------------------------------------------------------------- measuring


def measure(options: Options, path: Path) -> dict[str, Any]:
    """Measure every image at every bucket and summarise the results."""
    system = open_system(path, device=options.device)
    prompts = [p for p in playroom.prompts(2 * options.images, options.seed, "simple", "tuning") if "fade" not in p]
    prompts = prompts[: options.images]
    store = options.out / f"measured-{files.weight_hash(path).rpartition(':')[2][:12]}.jsonl"
    rows = []
    for bucket in BUCKETS:
        rows += rows_of(options, system, prompts, bucket, store)
    return summary(options, system, path, rows)


def rows_of(options: Options, system: System, prompts: Sequence[str], bucket: int, store: Path) -> list[dict[str, Any]]:
    """One row per image, from the file or sampled."""
    sampling_options = {"guidance": options.guidance, "steps": options.sampling_steps}
    sampling = Sampling.of(system, extra={"motion_bucket": bucket}, **sampling_options)
    key = {"bucket": bucket, "seed": options.seed, **sampling_options}
    stored = [json.loads(line) for line in store.read_text().splitlines()] if store.is_file() else []
    rows = [row["row"] for row in stored if row["key"] == key][: len(prompts)]
    while len(rows) < len(prompts):
        first = len(rows)
        words = prompts[first : first + options.at_once]
        real = torch.stack([sampling.real(p, options.seed + first + i) for i, p in enumerate(words)])
        clips = sampling.clips(words, options.seed + first, first_frames(real))
        new = [
            {"picture": first + i, "bucket": bucket, **measures(clip, true, prompt, float(sampling.request.fps or 7))}
            for i, (clip, true, prompt) in enumerate(zip(clips, real, words, strict=True))
        ]
        with store.open("a") as file:
            file.writelines(json.dumps({"key": key, "row": row}) + "\n" for row in new)
        rows += new
        print(f"bucket {bucket}: {len(rows)} of {len(prompts)} images", flush=True)
    return rows


def measures(clip_CTHW: Tensor, real_CTHW: Tensor, prompt: str, fps: float) -> dict[str, float]:
    error = (clip_CTHW[:, 0] - real_CTHW[:, 0]).square().mean().clamp_min(1e-10) / 4
    consistency = object_consistency(clip_CTHW, prompt)
    return {
        "flow": motion.of_frames(list(to_uint8(clip_CTHW[None])[0]), fps),
        "change": float(clip_CTHW.diff(dim=1).abs().mean() / 2 * fps),
        "psnr": float(-10 * error.log10()),
        "identity": judge(clip_CTHW, prompt, fps).identity,
        "colour_kept": consistency.colour,
        "outline_kept": consistency.shape,
    }


def summary(options: Options, system: System, path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    measured = [name for name in rows[0] if name not in ("picture", "bucket")]
    of_bucket = [{n: mean([r[n] for r in rows if r["bucket"] == b]) for n in measured} for b in BUCKETS]
    pictures = sorted({row["picture"] for row in rows})
    each = [[r["flow"] for r in rows if r["picture"] == p] for p in pictures]
    asked = [motion.motion_of(b, system.config.motion_middle) for b in BUCKETS]
    table_rows = [{"bucket": b, "asked": a, **figures} for b, a, figures in zip(BUCKETS, asked, of_bucket, strict=True)]
    means = [row["flow"] for row in of_bucket]
    psnr = [row["psnr"] for row in rows]
    return {
        "weights": files.weight_hash(path),
        "parameters": sum(p.numel() for p in system.model.parameters()),
        "pictures": len(pictures),
        "guidance": options.guidance,
        "steps": options.sampling_steps,
        "seed": options.seed,
        "buckets": table_rows,
        "spearman_of_means": spearman(BUCKETS, means),
        "spearman_pooled": spearman([r["bucket"] for r in rows], [r["flow"] for r in rows]),
        "spearman_of_each_picture": mean([spearman(BUCKETS, flows) for flows in each]),
        "more_at_160_than_at_60": mean([float(flows[3] > flows[1]) for flows in each]),
        "psnr_mean": mean(psnr),
        "psnr_share_28": mean([float(p >= LEAST_PSNR) for p in psnr]),
        "identity": mean([row["identity"] for row in rows]),
        "first_frame_kept": mean([row["colour_kept"] * row["outline_kept"] for row in rows]),
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        "| bucket | requested motion | flow | change per second | frame 0, dB | identity |",
        "|---|---|---|---|---|---|",
    ]
    for r in result["buckets"]:
        cells = [
            f"{r['asked']:.4f}",
            f"{r['flow']:.4f}",
            f"{r['change']:.4f}",
            f"{r['psnr']:.1f}",
            f"{r['identity']:.3f}",
        ]
        lines.append(f"| {r['bucket']} | {' | '.join(cells)} |")
    reached = result["spearman_of_means"] >= LEAST_SPEARMAN and result["psnr_mean"] >= LEAST_PSNR
    lines += [
        "",
        f"Spearman of bucket and flow: {result['spearman_of_means']:.2f} of the five means, "
        f"{result['spearman_of_each_picture']:.2f} per image, {result['spearman_pooled']:.2f} over all clips",
        f"More motion at 160 than at 60: {100 * result['more_at_160_than_at_60']:.0f} % of {result['pictures']} images",
        f"Frame 0: {result['psnr_mean']:.1f} dB mean, {100 * result['psnr_share_28']:.0f} % of clips at 28 dB or above",
        f"Identity {result['identity']:.3f}; frames with the given colour and outline {result['first_frame_kept']:.3f}",
        f"Targets (Spearman {LEAST_SPEARMAN} of means, {LEAST_PSNR:g} dB): {'reached' if reached else 'not reached'}",
    ]
    return "\n".join(lines)


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank; 0 if either side is constant."""
    ranks = [_ranks(np.asarray(values, float)) for values in (first, second)]
    if min(np.ptp(r) for r in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


if __name__ == "__main__":
    sys.exit(main())
