"""Measure how far extensions drift in colour, for each drift control, on clips with a known continuation.

Playroom clips of endless motions are rendered in full. A model is given the first frames and extends them to the full
length, once for each overlap with the previous block (half a block, one frame) and each colour matching mode (free,
seam, anchor). The result is compared with the rendered clip frame by frame:

- colour: distance of the mean colour, in levels of 255 (mean over channels);
- contrast: log2 of the ratio of standard deviations;
- seam: how much more the image changes between adjacent blocks than the rendered clip does there, in levels.

    python benchmarks/extend_drift.py                                    # 6 clips, about ten minutes on two cores
    python benchmarks/extend_drift.py --clips 2 --steps 8 --frames 40

Prints a table, and writes it to --out as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

import kinema
from kinema.atomic import replacing
from kinema.data import playroom
from kinema.events import Event, Note
from kinema.schema import Clip

LASTING = ("spins", "swings", "orbits", "bounces")
MODES = ("free", "seam", "anchor")


@dataclass(frozen=True)
class Drift:
    """Errors of every new frame of a clip, and the jumps between adjacent blocks."""

    colour: list[float]
    contrast: list[float]
    seam: float


def main() -> int:
    options = read_options()
    torch.set_num_threads(options.threads)
    model = kinema.load(options.model)
    own = model.system.family.sampling.defaults(model.system.config)
    length = model.system.lattice.max_frames or own.frames
    arms = [(overlap, mode) for overlap in (length // 2, 1) for mode in MODES]
    clips = [
        playroom.sample(
            [options.seed, i],
            frames=options.frames,
            height=own.height,
            width=own.width,
            fps=own.fps,
            motion=LASTING[i % len(LASTING)],
        )
        for i in range(options.clips)
    ]
    results = {}
    for overlap, mode in arms:
        measured = [one(model, clip, overlap, mode, options) for clip in clips]
        results[f"{overlap} shared, {mode}"] = summary(measured, length // 2)
        sys.stderr.write(f"{overlap} shared, {mode}: done\n")
    result = {
        "model": options.model,
        "weights": model.system.weights.hash,
        "clips": options.clips,
        "given": options.given,
        "frames": options.frames,
        "steps": options.steps,
        "seed": options.seed,
        "arms": results,
    }
    sys.stdout.write(table(results) + "\n")
    if options.out:
        with replacing(options.out) as part:
            part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="zoetrope")
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--given", type=int, default=8, help="given frames")
    parser.add_argument("--frames", type=int, default=56, help="total frames")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def one(model: kinema.api.Model, clip: playroom.Sample, overlap: int, mode: str, options: argparse.Namespace) -> Drift:
    """Extend one clip in one mode and compare it with its rendering."""
    truth = torch.from_numpy(clip.video_CTHW)[None]
    starts: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, Note) and event.message.startswith("block "):
            starts.append(int(event.message.split("frames ")[1].split()[0]))

    with tempfile.TemporaryDirectory() as folder:
        given = Clip(truth[:, :, : options.given], clip.scene.fps).save(Path(folder) / "given", generated=False)[0]
        extended = model.extend(
            given,
            prompt=clip.caption,
            frames=options.frames,
            steps=options.steps,
            overlap=overlap,
            colours=mode,
            seed=options.seed,
            on_event=listen,
        ).video
    new = slice(options.given, None)
    off = (extended - truth).mean((3, 4)).abs().mean((0, 1)) * 127.5
    contrast = torch.log2(extended.std((1, 3, 4)) / truth.std((1, 3, 4)).clamp_min(1e-3))[0]
    change, expected = (x.diff(dim=2).abs().mean((0, 1, 3, 4)) * 127.5 for x in (extended, truth))
    joints = sorted({start + overlap for start in starts if options.given < start + overlap < options.frames})
    jump = float((change - expected)[[j - 1 for j in joints]].mean()) if joints else 0.0
    return Drift(off[new].tolist(), contrast[new].tolist(), jump)


def summary(measured: list[Drift], stretch: int) -> dict[str, float]:
    """Medians over clips, for the first and last stretch of new frames."""

    def of(values: list[list[float]], part: slice) -> float:
        return statistics.median(statistics.fmean(map(abs, each[part])) for each in values)

    first, last = slice(0, stretch), slice(-stretch, None)
    colour, contrast = [d.colour for d in measured], [d.contrast for d in measured]
    return {
        "colour, first": of(colour, first),
        "colour, last": of(colour, last),
        "contrast, first": of(contrast, first),
        "contrast, last": of(contrast, last),
        "seam": statistics.median(d.seam for d in measured),
    }


def table(results: dict[str, dict[str, float]]) -> str:
    names = list(next(iter(results.values())))
    rows = [["", *names], *([arm, *(f"{row[n]:.2f}" for n in names)] for arm, row in results.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
