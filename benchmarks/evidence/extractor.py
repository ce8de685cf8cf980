"""Features of clips for KVD and Fréchet distances: a small network that recognises what happens in playroom clips.

    python -m benchmarks.evidence.extractor                 # measures the shipped weights
    python -m benchmarks.evidence.extractor --train         # trains them first: 3 minutes of an idle core; resumes
    python -m benchmarks.evidence.extractor --extractor package.module:function

FVD takes its features from a network that was trained to classify Kinetics; this one plays the same part for playroom.
It is trained from scratch, on rendered clips of the training share, to name the colour, shape, motion and direction of
the object. What it learns of a clip ignores flicker and blur, since the object is the same, so its features are joined
by two of the first layer: how much each filter changes between frames, and how strong its edges are.

The command prints how often it is right on clips of the evaluation share, and how far real clips move from other real
clips when their frames are shuffled, repeated, blurred or flicker: an extractor that does not see this cannot compare
videos. The same seed gives the same weights on the same processor and PyTorch.

A user's extractor is a function of B×3×T×H×W in [-1, 1] that returns features B×D; it resizes as it needs.

B batch, C channels, T frames, H height, W width, N clips, D features.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.evidence.distances import Distances, cell, distances
from kinema.atomic import replacing
from kinema.checkpoints import files
from kinema.data import playroom
from kinema.data.playroom.grammar import DIRECTED, FREE_MOTIONS
from kinema.evaluation.metrics import Extractor, Protocol, features
from kinema.evaluation.oracle import Figure, wilson
from kinema.schema import BadRequest

WEIGHTS = Path(__file__).parents[1] / "weights" / "evidence-extractor.safetensors"
RUNS = Path("runs")
SIDE, FRAMES, FPS = 32, 16, 8.0
LEARNED, FILTERS = 64, 16
STEPS, BATCH, RATE = 800, 32, 3e-3
KEPT, STANDARD = 100, 16
"""Steps between stored states of training, and batches over which low-level features are standardised."""
LABELS = {
    "colour": playroom.COLOURS,
    "shape": playroom.SHAPES,
    "motion": (*DIRECTED, *FREE_MOTIONS),
    "direction": (*playroom.DIRECTIONS, "none"),
}
PLAYROOM = "playroom"
_TRAINING, _EVALUATION = 0x7E57, 0xE7A1


# ----------------------------------------------------------------------------------------- network


class Network(nn.Module):
    """Four (2+1)D blocks (Tran et al. 2018), the mean over time and space, and 64 features from which heads classify.

    With 32 low-level ones, D is 96. All have mean 0 and variance 1 over training clips.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            _block(3, FILTERS, stride=2, stride_in_time=1),
            _block(FILTERS, 32, stride=2, stride_in_time=2),
            _block(32, 64, stride=2, stride_in_time=2),
            _block(64, 96, stride=1, stride_in_time=1),
        )
        self.narrow = nn.Linear(96, LEARNED)
        # Without scale and shift, so that a distance does not depend on the scale that training happened to reach.
        self.standard = nn.BatchNorm1d(LEARNED, affine=False)
        self.standard_low = nn.BatchNorm1d(2 * FILTERS, affine=False, momentum=None)
        self.heads = nn.ModuleDict({name: nn.Linear(LEARNED, len(values)) for name, values in LABELS.items()})

    def features(self, video_BCTHW: Tensor) -> Tensor:
        """Features B×D of clips in [-1, 1]."""
        return torch.cat([self.learned(video_BCTHW), self.standard_low(self.low(video_BCTHW))], dim=1)

    def learned(self, video_BCTHW: Tensor) -> Tensor:
        found: Tensor = self.standard(self.narrow(self.blocks(video_BCTHW).mean((2, 3, 4))))
        return found

    def low(self, video_BCTHW: Tensor) -> Tensor:
        """Logarithms of the mean change between frames, and of the mean deviation within one, of the first filters."""
        filtered_BCTHW = self.blocks[0][0](video_BCTHW)
        change_BC = filtered_BCTHW.diff(dim=2).abs().mean((2, 3, 4))
        edges_BC = filtered_BCTHW.std((3, 4)).mean(2)
        # A still clip, or a flat one, has a 0.
        return torch.cat([change_BC, edges_BC], dim=1).add(1e-2).log()

    def forward(self, video_BCTHW: Tensor) -> dict[str, Tensor]:
        """Logits of every label."""
        found_BD = self.learned(video_BCTHW)
        return {name: head(found_BD) for name, head in self.heads.items()}


def _block(before: int, after: int, stride: int, stride_in_time: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(before, after, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        nn.BatchNorm3d(after),
        nn.ReLU(),
        nn.Conv3d(after, after, (3, 1, 1), (stride_in_time, 1, 1), (1, 0, 0), bias=False),
        nn.BatchNorm3d(after),
        nn.ReLU(),
    )


# ------------------------------------------------------------------------------------------- clips


def clips(split: str, seed: Sequence[int], first: int, last: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Rendered clips B×3×T×H×W of simple captions, and the class of each by label."""
    drawn = [
        playroom.sample([*seed, i], frames=FRAMES, height=SIDE, width=SIDE, fps=FPS, grammar="simple", split=split)
        for i in range(first, last)
    ]
    words = [_words(each.caption) for each in drawn]
    classes = {name: torch.tensor([values.index(w[name]) for w in words]) for name, values in LABELS.items()}
    return torch.stack([torch.from_numpy(each.video_CTHW) for each in drawn]), classes


def _words(caption: str) -> dict[str, str]:
    meaning = playroom.parse(caption)
    assert meaning is not None
    return {
        "colour": meaning.colour,
        "shape": meaning.shape,
        "motion": meaning.motion.split()[0],
        "direction": meaning.direction or "none",
    }


# ---------------------------------------------------------------------------------------- training


def train(steps: int, seed: int, path: Path, runs: Path) -> None:
    """Train on clips that are each rendered once, and write the weights as float16.

    Its state is stored in the folder ``runs`` every `KEPT` steps; the same steps and seed resume from there.
    """
    state = runs / f"evidence-extractor-{steps}-{seed}.pt"
    torch.manual_seed(seed)
    network = Network().to(memory_format=torch.channels_last_3d).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    parts = {"network": network, "optimiser": optimiser, "schedule": schedule}
    for step in range(_resumed(state, parts), steps):
        video_BCTHW, classes = clips("train", (_TRAINING, seed), step * BATCH, (step + 1) * BATCH)
        logits = network(video_BCTHW.to(memory_format=torch.channels_last_3d))
        loss = torch.stack([functional.cross_entropy(logits[name], classes[name]) for name in LABELS]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % KEPT == 0:
            _store(state, parts, step + 1)
            print(f"step {step + 1}/{steps}, loss {loss.item():.3f}, {time.process_time():.0f} CPU s", flush=True)
    write(network, steps, seed, path)
    state.unlink(missing_ok=True)


def write(network: Network, steps: int, seed: int, path: Path) -> None:
    """Write a trained network as float16, after standardising its low-level features over training clips."""
    network.load_state_dict(_halved(network))
    network.eval()
    network.standard_low.train()
    with torch.no_grad():
        for first in range(0, STANDARD * BATCH, BATCH):
            network.features(clips("train", (_TRAINING, seed), first, first + BATCH)[0])
    protocol = {
        "clips": steps * BATCH, "steps": steps, "batch": BATCH, "rate": RATE, "seed": seed, "frames": FRAMES,
        "side": SIDE, "fps": FPS, "features": LEARNED + 2 * FILTERS, "grammar": "simple", "split": "train",
        "labels": LABELS, "torch": torch.__version__,
    }  # fmt: skip
    files.write_tensors(path, _halved(network), {"evidence-extractor": json.dumps(protocol)})


def _halved(network: Network) -> dict[str, Tensor]:
    return {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}


def _store(state: Path, parts: Mapping[str, Any], done: int) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    with replacing(state) as part:
        torch.save({name: each.state_dict() for name, each in parts.items()} | {"done": done}, part)


def _resumed(state: Path, parts: Mapping[str, Any]) -> int:
    """Restore a stored run, if there is one; returns the number of steps done."""
    if not state.is_file():
        return 0
    stored = torch.load(state, weights_only=True)
    for name, each in parts.items():
        each.load_state_dict(stored[name])
    return int(stored["done"])


def load(path: Path = WEIGHTS) -> tuple[Extractor, str]:
    """Our extractor and the hash of its weights. Raises BadRequest for a file of another network."""
    return network_of(path).features, files.weight_hash(path)


def network_of(path: Path) -> Network:
    with torch.device("meta"):
        network = Network()
    files.fill(network, files.read_tensors(path), path.name)
    return network.float().eval()


# -------------------------------------------------------------------------------------- extractors


@dataclass(frozen=True)
class Named:
    """An extractor with what a protocol states about it."""

    extract: Extractor
    name: str
    weights: str

    def protocol(self, seed: int) -> Protocol:
        return Protocol(
            extractor=self.name, weights=self.weights, decoder="none", resize=f"{SIDE}×{SIDE}, as sampled",
            frames=FRAMES, fps=FPS, seed=seed,
        )  # fmt: skip


def named_extractor(text: str = PLAYROOM) -> Named:
    """Our extractor ("playroom"), or a user's: ``package.module:function``, then optionally ``#`` and a hash of its
    weights. Raises BadRequest if there is no such function.
    """
    if text == PLAYROOM:
        extract, weights = load()
        return Named(extract, PLAYROOM, weights)
    name, _, weights = text.partition("#")
    module, _, function = name.partition(":")
    expected = f"expected {PLAYROOM} or package.module:function"
    if not module or not function or module.startswith("."):
        raise BadRequest(f"extractor is {text!r}; {expected}")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise BadRequest(f"extractor {text!r} cannot be imported ({error}); {expected}") from error
    if not callable(found):
        raise BadRequest(f"extractor {text!r}: {module} has no function {function!r}; {expected}")
    return Named(_checked(found, name), name, weights or "not stated")


def _checked(extract: Extractor, name: str) -> Extractor:
    def checked(video_BCTHW: Tensor) -> Tensor:
        found_BD = extract(video_BCTHW)
        if not isinstance(found_BD, Tensor) or found_BD.ndim != 2 or len(found_BD) != len(video_BCTHW):
            shape = list(found_BD.shape) if isinstance(found_BD, Tensor) else type(found_BD).__name__
            raise BadRequest(f"extractor {name!r} returned {shape} for {len(video_BCTHW)} clips; expected B×D")
        return found_BD

    return checked


# ------------------------------------------------------------------------------------ measurements


def accuracy(network: Network, count: int, seed: int) -> dict[str, Figure]:
    """Share of evaluation clips whose label is named correctly."""
    right: dict[str, list[bool]] = {name: [] for name in LABELS}
    for first in range(0, count, BATCH):
        video_BCTHW, classes = clips("evaluation", (_EVALUATION, seed), first, min(first + BATCH, count))
        with torch.no_grad():
            logits = network(video_BCTHW)
        for name in LABELS:
            right[name] += (logits[name].argmax(1) == classes[name]).tolist()
    return {name: figure for name, outcomes in right.items() if (figure := wilson(outcomes))}


def shuffled(video_BCTHW: Tensor, generator: torch.Generator) -> Tensor:
    orders = [torch.randperm(video_BCTHW.shape[2], generator=generator) for _ in video_BCTHW]
    return torch.stack([clip[:, order] for clip, order in zip(video_BCTHW, orders, strict=True)])


def still(video_BCTHW: Tensor, _: torch.Generator) -> Tensor:
    return video_BCTHW[:, :, :1].expand_as(video_BCTHW)


def blurred(video_BCTHW: Tensor, _: torch.Generator) -> Tensor:
    frames = functional.pad(video_BCTHW.transpose(1, 2).flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    return functional.avg_pool2d(frames, 3, stride=1).unflatten(0, (len(video_BCTHW), -1)).transpose(1, 2)


def flickering(video_BCTHW: Tensor, generator: torch.Generator, size: float = 0.1) -> Tensor:
    """Another brightness in every frame: normal, with a standard deviation of ``size`` (white minus black is 2)."""
    offsets = torch.randn(len(video_BCTHW), 1, video_BCTHW.shape[2], 1, 1, generator=generator)
    return (video_BCTHW + size * offsets).clamp(-1, 1)


CHANGES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": lambda video_BCTHW, _: video_BCTHW,
    "frames shuffled": shuffled,
    "frame 0 repeated": still,
    "blurred (3×3 mean)": blurred,
    "brightness flickers (0.1)": flickering,
    "brightness flickers (0.03)": lambda video_BCTHW, generator: flickering(video_BCTHW, generator, 0.03),
}


def sensitivity(named: Named, count: int, seed: int) -> dict[str, Distances]:
    """Distances of ``count`` changed real clips from as many other real clips, for every change."""
    protocol = named.protocol(seed)
    real_ND, control_ND = (
        features(_changed(start, count, seed, CHANGES["none"]), named.extract, protocol) for start in (0, count)
    )
    found = {}
    for name, change in CHANGES.items():
        changed_ND = features(_changed(2 * count, count, seed, change), named.extract, protocol)
        found[name] = distances(changed_ND, real_ND, control_ND)
    return found


def _changed(
    start: int, count: int, seed: int, change: Callable[[Tensor, torch.Generator], Tensor]
) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for first in range(start, start + count, BATCH):
        last = min(first + BATCH, start + count)
        yield change(clips("evaluation", (_EVALUATION, seed), first, last)[0], generator)


# ----------------------------------------------------------------------------------------- command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extractor", default=PLAYROOM, help="package.module:function instead of ours")
    parser.add_argument("--train", action="store_true", help=f"train first, and replace {WEIGHTS.name}")
    parser.add_argument("--steps", type=int, help=f"training steps of {BATCH} clips; default {STEPS}")
    parser.add_argument("--seed", type=int, default=0, help="of training, clips and changes")
    parser.add_argument("--clips", type=int, default=256, help="evaluation clips on each side of a distance")
    options = parser.parse_args()
    if (options.steps and not options.train) or (options.train and options.extractor != PLAYROOM):
        parser.error("--steps requires --train, and --train our own extractor")
    torch.set_num_threads(1)
    if options.train:
        train(options.steps or STEPS, options.seed, WEIGHTS, RUNS)
    if options.extractor == PLAYROOM:
        print(f"{WEIGHTS.name}: {WEIGHTS.stat().st_size:,} bytes, {files.weight_hash(WEIGHTS)}")
        for name, figure in accuracy(network_of(WEIGHTS), 4 * options.clips, options.seed).items():
            low, high = 100 * figure.low, 100 * figure.high
            print(f"{name}: {100 * figure.mean:.1f} % ({low:.1f} to {high:.1f}) of {figure.count} evaluation clips")
    named = named_extractor(options.extractor)
    print(f"\nReal clips against other real clips, {named.name} (weights {named.weights}), 95 % jackknife intervals\n")
    print("| change | KVD | Fréchet distance | N, against |\n|---|---|---|---|")
    for name, found in sensitivity(named, options.clips, options.seed).items():
        print(f"| {name} | {cell(found.kvd)} | {cell(found.frechet)} | {found.size}, {found.reference} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
