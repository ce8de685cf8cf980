"""What benchmarks of pocket models share: the command line, prompts, rendered clips, medians, files of results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinema.atomic import replacing
from kinema.data import playroom

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"
RESAMPLES = 4000


@dataclass(frozen=True)
class Options:
    """Options that all have."""

    what: str
    prompts: int | None
    seed: int
    batch: int
    out: Path
    evidence: Path
    threads: int | None

    def begin(self) -> None:
        """Make the folders, and set up PyTorch for sampling."""
        if self.threads:
            torch.set_num_threads(self.threads)
        self.out.mkdir(parents=True, exist_ok=True)
        self.evidence.mkdir(parents=True, exist_ok=True)
        torch.set_grad_enabled(False)


def parser(text: str | None, what: Sequence[str], name: str, prompts: str) -> argparse.ArgumentParser:
    """A parser of `Options`; ``prompts`` are their default numbers, in words."""
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("what", choices=what)
    found.add_argument("--prompts", type=int, help=f"number of prompts; default {prompts}")
    found.add_argument("--seed", type=int, default=0, help="of the prompts and of the first clip")
    found.add_argument("--batch", type=int, default=8)
    found.add_argument("--out", type=Path, default=Path(f"runs/{name}-measured"))
    found.add_argument("--evidence", type=Path, default=EVIDENCE)
    found.add_argument("--threads", type=int)
    return found


def unseen(count: int, seed: int, motions: Sequence[str] = ()) -> list[str]:
    """Different prompts of the evaluation share, of these motions if any are named."""
    found = dict.fromkeys(playroom.prompts(max(4000, 40 * count), seed, "simple", "evaluation"))
    meanings = {prompt: playroom.parse(prompt) for prompt in found}
    kept = [p for p, meaning in meanings.items() if meaning and (not motions or meaning.motion in motions)]
    if len(kept) < count:
        raise SystemExit(f"there are {len(kept)} unseen prompts of these motions, fewer than {count}")
    return kept[:count]


def rendered(prompt: str, seed: int, frames: int, fps: float, side: int = 64) -> Tensor:
    """What playroom draws for a prompt, 3×T×H×W."""
    sample = playroom.sample(seed, frames=frames, height=side, width=side, fps=fps, caption=prompt)
    return torch.from_numpy(sample.video_CTHW)


def median(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """The median and its 95 % interval (percentile bootstrap)."""
    array = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(np.median(array[draws], axis=1), (0.025, 0.975))
    return {"median": float(np.median(array)), "low": float(low), "high": float(high), "count": len(array)}


def interval(figure: Mapping[str, float]) -> str:
    return f"{figure['median']:.4f} ({figure['low']:.4f} to {figure['high']:.4f}; {figure['count']:.0f} clips)"


def write(path: Path, data: Any) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(data, indent=1) + "\n")
