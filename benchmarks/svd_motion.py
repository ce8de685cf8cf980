"""What svd-pocket does to an image at low and high motion buckets: does the object move, or does it dissolve?

    python -m benchmarks.svd_motion measure          # measures, and a sheet of frames to look at

Images are first frames of rendered clips of the unseen prompts that name a direction (docs/evidence/unseen-prompts.csv,
seeds 5000 and up), animated at each bucket from the same noise. Medians over the clips:

- travel: the distance of the object's centre between the first and the last frame in which it is found, in shorter
  sides. An object that moves travels.
- change: the mean change of a pixel per second. A dissolving object changes pixels without travelling.
- overlap: of the object in the last three frames with that of the first frame, moved to the same place (intersection
  over union). An object that moves keeps its form; one that rolls turns it, which the rendered clips show.
- sharpness: of the last three frames over that of the first. Noise and frayed edges raise it, blur lowers it.
- outline and identity: the share of frames with the image's outline, and how constant outline and colour are. Both are
  the oracle's, which takes the most similar outline.

Results go to svd-pocket-motion.json and svd-pocket-motion.png in --evidence; measured clips to --out, so that an
interrupted run continues.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import measuring
from benchmarks.measuring import interval, median, write
from benchmarks.unseen_prompts import SEED, listed
from kinema.atomic import replacing
from kinema.data import playroom
from kinema.evaluation import metrics
from kinema.evaluation.consistency import object_consistency
from kinema.evaluation.measuring import first_frames
from kinema.evaluation.objects import find_objects
from kinema.evaluation.oracle import judge
from kinema.evaluation.outline import centroids_and_radii
from kinema.evaluation.plots import sheet
from kinema.evaluation.sampling import Sampling
from kinema.system import open_system

MODEL, IMAGES, SHOWN = "svd-pocket", 6, 3
BUCKETS = (20, 110, 200)
MEASURES = ("travel", "overlap", "change", "sharpness", "outline", "identity")
LAST = 3
REAL = "rendered"


def main() -> int:
    parser = measuring.parser(__doc__, ("measure",), "svd-motion", f"{IMAGES}, one an image")
    options = measuring.Options(**vars(parser.parse_args()))
    if (options.seed, options.batch) != (0, parser.get_default("batch")):
        parser.error("--seed and --batch do not apply: seeds belong to the unseen prompts, and all clips are one batch")
    options.begin()
    prompts = directed(options.prompts or IMAGES)
    clips = animated(options, prompts)
    rows = {name: [measures(v, p) for v, p in zip(videos, prompts, strict=True)] for name, videos in clips.items()}
    result = {
        "command": "python -m benchmarks.svd_motion measure",
        "weights": open_system(MODEL).weights.hash,
        "prompts": prompts,
        "seed": SEED,
        "arms": {name: {m: median([row[m] for row in each]) for m in MEASURES} for name, each in rows.items()},
        "clips": rows,
    }
    write(options.evidence / "svd-pocket-motion.json", result)
    draw(clips, prompts, options)
    print(table(result))
    return 0


def directed(count: int) -> list[str]:
    """The first unseen prompts that name a direction."""
    return [p for p in listed() if (meaning := playroom.parse(p)) and meaning.direction][:count]


def animated(options: measuring.Options, prompts: list[str]) -> dict[str, Tensor]:
    """Clips N×3×T×H×W of every bucket, and the rendered ones whose first frames they animate."""
    found: dict[str, Tensor] = {}
    system = open_system(MODEL)
    weights = str(system.weights.hash).rpartition(":")[2][:12]
    for bucket in BUCKETS:
        sampling = Sampling.of(system, extra={"motion_bucket": bucket})
        found.setdefault(REAL, torch.stack([sampling.real(p, SEED + i) for i, p in enumerate(prompts)]))
        path = options.out / f"bucket-{bucket}-{len(prompts)}-{weights}.pt"
        if not path.is_file():
            clips = sampling.clips(prompts, SEED, first_frames(found[REAL]))
            with replacing(path) as part:
                torch.save(clips, part)
            print(f"bucket {bucket}: {len(prompts)} clips", flush=True)
        found[f"bucket {bucket}"] = torch.load(path, weights_only=True)
    return found


def measures(video_CTHW: Tensor, prompt: str) -> dict[str, float]:
    fps = 7.0
    first, last = (metrics.sharpness(part[None]) for part in (video_CTHW[:, :1], video_CTHW[:, -LAST:]))
    travelled, overlapping = object_motion(video_CTHW, prompt)
    return {
        "travel": travelled,
        "overlap": overlapping,
        "change": float(video_CTHW.diff(dim=1).abs().mean() / 2 * fps),
        "sharpness": float(last / first),
        "outline": object_consistency(video_CTHW, prompt).shape,
        "identity": judge(video_CTHW, prompt, fps).identity,
    }


def object_motion(video_CTHW: Tensor, prompt: str) -> tuple[float, float]:
    """Travel and overlap of the prompt's object, both 0 where it is not found."""
    meaning = playroom.parse(prompt)
    assert meaning is not None
    tracks = find_objects(((video_CTHW.float() + 1) / 2).clamp(0, 1).numpy())
    found = next((each for each in tracks if each.colour == meaning.colour), None)
    if found is None:
        return 0.0, 0.0
    centres, _ = centroids_and_radii(found.cover_THW)
    seen = np.flatnonzero(np.isfinite(centres[:, 0]))
    if not len(seen) or seen[0] != 0:
        return 0.0, 0.0
    steps = centres - centres[0]
    overlaps = [overlap(found.mask_THW[0], found.mask_THW[t], steps[t]) for t in range(len(centres))[-LAST:]]
    return float(np.linalg.norm(steps[seen[-1]])) / min(video_CTHW.shape[2:]), float(np.mean(overlaps))


def overlap(first_HW: NDArray[np.bool_], last_HW: NDArray[np.bool_], step: NDArray[np.float32]) -> float:
    """Intersection over union of two masks, the first moved by a step (x, y) in pixels; 0 for an empty one."""
    if not last_HW.any():
        return 0.0
    right, down = (round(float(each)) for each in step)
    height, width = first_HW.shape
    moved = np.zeros_like(first_HW)
    y, x = np.nonzero(first_HW)
    y, x = y + down, x + right
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    moved[y[inside], x[inside]] = True
    return float((moved & last_HW).sum() / (moved | last_HW).sum())


def draw(clips: Mapping[str, Tensor], prompts: list[str], options: measuring.Options) -> None:
    lines = []
    for i, prompt in enumerate(prompts[:SHOWN]):
        head = f"# {prompt} (seed {SEED + i})|"
        lines += [(f"{head if name == REAL else ''}{name}", videos[i]) for name, videos in clips.items()]
    sheet(lines, options.evidence / "svd-pocket-motion.png")


def table(result: Mapping[str, Any]) -> str:
    lines = [f"| | {' | '.join(MEASURES)} |", "|---" * (1 + len(MEASURES)) + "|"]
    lines += [f"| {name} | {' | '.join(interval(f[m]) for m in MEASURES)} |" for name, f in result["arms"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
