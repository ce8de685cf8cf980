"""The parts of the evidence: which clips are sampled and measured, from which models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.evidence import pictures, protocol, sampling
from benchmarks.evidence.rows import Row, Rows, measure
from benchmarks.measuring import rendered
from kinema.canvas import Canvas
from kinema.data import playroom
from kinema.evaluation import metrics
from kinema.evaluation.consistency import object_consistency
from kinema.evaluation.metrics import Extractor
from kinema.evaluation.oracle import judge
from kinema.evaluation.sampling import Sampling
from kinema.evaluation.temporal import STILL
from kinema.system import Batch, System

LANGEVIN, ANCESTRAL = 32, 64
"""Steps; a step of vdm-langevin evaluates the network twice."""
GAMMA = {"gamma": 0.0}
"""The paper's value for BAIR and Kinetics, on which it compares the two."""
OFF, HIGH = 1.0, 5.0
"""Guidance scales besides the protocol's."""
LOSSES, LOSS_SEED = 128, 77
TOTAL, GIVEN, EXTENSION_STEPS, EXTENDED = 64, 8, 16, 16
LASTING = ("spins", "swings", "orbits", "bounces")
"""Endless motions: a clip of them can have 16 frames or 64."""
BATCH = 16


@dataclass(frozen=True)
class Bench:
    """What a part needs: its opened models by name, the extractor, the folder of rows, what the rows depend on."""

    systems: Mapping[str, System]
    extract: Extractor
    folder: Path
    head: Mapping[str, Any]

    def rows(self, part: str) -> Rows:
        own = {
            "extension": [TOTAL, GIVEN, EXTENSION_STEPS, EXTENDED],
            "langevin": [LANGEVIN, ANCESTRAL, GAMMA],
            "guidance": [OFF, HIGH],
            "losses": [LOSSES, LOSS_SEED, BATCH],
        }
        settings = protocol.fingerprint() | ({"own": own[part]} if part in own else {})
        return Rows(self.folder / f"{part}.jsonl", {"part": part, **self.head, "settings": settings})


def figure(bench: Bench) -> None:
    """Every arm and the real clips, and other real clips for distances; strips of the clips that will be shown."""
    rows, prompts = bench.rows("figure"), protocol.prompts()
    count = len(prompts)

    def measured(arm: str, first: int, last: int) -> list[Row]:
        repetition, start = divmod(first, count)
        chosen = prompts[start : start + last - first]
        videos = sampling.clips(arm.removeprefix("other "), bench.systems, chosen, _seed(arm, start, repetition))
        for i, video in enumerate(videos):
            if repetition == 0:
                pictures.keep(bench.folder / "strips", arm, start + i, video)
        each = [measure(v, p, protocol.FPS, bench.extract) for v, p in zip(videos, chosen, strict=True)]
        return [{"repetition": repetition, **row} for row in each]

    for arm in (protocol.REAL, OTHER, *protocol.ARMS):
        rows.measured(arm, protocol.PER_PROMPT * count, BATCH, partial(measured, arm))


OTHER = f"other {protocol.REAL}"
"""Real clips of the same prompts with other seeds, which the distances are measured from."""


def _seed(arm: str, index: int, repetition: int) -> int:
    return protocol.seed_of(index, repetition + (protocol.PER_PROMPT if arm == OTHER else 0))


# ------------------------------------------------------------------------------------- VDM's claims


def images(bench: Bench) -> None:
    """Text to video by the model with images in training; that without is the figure's."""
    _text_to_video(bench, "images", {"4 images": sampling.settings(bench.systems["joint"])})


def langevin(bench: Bench) -> None:
    """The Langevin corrector against none, at equal evaluations of the network."""
    steps, video = {"langevin": LANGEVIN, "ancestral": ANCESTRAL}, bench.systems["video"]
    arms = {
        arm: sampling.settings(video, sampler=f"vdm-{arm}", steps=count, sampler_options=GAMMA)
        for arm, count in steps.items()
    }
    _text_to_video(bench, "langevin", arms)


def guidance(bench: Bench) -> None:
    """Guidance off and high; the figure has the protocol's."""
    video = bench.systems["video"]
    arms = {f"guidance {scale:g}": sampling.settings(video, guidance=scale) for scale in (OFF, HIGH)}
    _text_to_video(bench, "guidance", arms)


def _text_to_video(bench: Bench, part: str, arms: Mapping[str, Sampling]) -> None:
    """A clip of every prompt from its first seed, for every arm."""
    rows, prompts = bench.rows(part), protocol.prompts()
    for arm, chosen in arms.items():

        def measured(first: int, last: int, chosen: Sampling = chosen) -> list[Row]:
            videos = chosen.clips(prompts[first:last], protocol.seed_of(first, 0))
            pairs = zip(videos, prompts[first:last], strict=True)
            return [measure(v, p, protocol.FPS, bench.extract) for v, p in pairs]

        rows.measured(arm, len(prompts), BATCH, measured)


def losses(bench: Bench) -> None:
    """The loss of clips alone, with equal noise, of the models with and without images in training."""
    rows = bench.rows("losses")
    for arm, name in (("4 images", "joint"), ("no images", "video")):
        rows.measured(arm, LOSSES, BATCH, partial(_losses, bench.systems[name]))


@torch.no_grad()
def _losses(system: System, first: int, last: int) -> list[Row]:
    size = {"frames": protocol.FRAMES, "height": protocol.SIDE, "width": protocol.SIDE, "fps": protocol.FPS}
    made = [
        playroom.sample([LOSS_SEED, i], **size, grammar=protocol.GRAMMAR, split="evaluation")
        for i in range(first, last)
    ]
    video = torch.stack([torch.from_numpy(each.video_CTHW) for each in made])
    batch = Batch(video, [each.caption for each in made], torch.zeros_like(video[:, :1]))
    found = system.family.training.loss(system.model, system.config, batch, torch.Generator().manual_seed(first))
    return [{"prompt": each.caption, "loss": loss} for each, loss in zip(made, found.tolist(), strict=True)]


def extension(bench: Bench) -> None:
    """Real prefixes extended to 64 frames, each block from the last 8 frames before it, by both methods."""
    rows, prompts = bench.rows("extension"), lasting()
    for arm in ("reconstruction", "replacement"):
        chosen = sampling.settings(
            bench.systems["video"], frames=TOTAL, steps=EXTENSION_STEPS, honour=arm, overlap=GIVEN
        )

        def measured(first: int, last: int, chosen: Sampling = chosen) -> list[Row]:
            seed = protocol.seed_of(first, 0)
            canvas = _prefixes(prompts[first:last], seed)
            own = chosen.clips(prompts[first:last], seed, canvas)
            videos = torch.lerp(own, canvas.video, canvas.mask.expand_as(own))
            return [_extended(v, p) for v, p in zip(videos, prompts[first:last], strict=True)]

        rows.measured(arm, len(prompts), 8, measured)


def lasting() -> list[str]:
    """The first prompts with an endless motion."""
    meanings = {prompt: playroom.parse(prompt) for prompt in protocol.prompts()}
    return [prompt for prompt, meaning in meanings.items() if meaning and meaning.motion in LASTING][:EXTENDED]


def _prefixes(prompts: Sequence[str], seed: int) -> Canvas:
    """A canvas of `TOTAL` frames, of which the first `GIVEN` are those of real clips."""
    side = protocol.SIDE
    real = [rendered(p, seed + i, protocol.FRAMES, protocol.FPS, side) for i, p in enumerate(prompts)]
    video, mask = torch.zeros(len(real), 3, TOTAL, side, side), torch.zeros(len(real), 1, TOTAL, side, side)
    video[:, :, :GIVEN], mask[:, :, :GIVEN] = torch.stack(real)[:, :, :GIVEN], 1
    return Canvas.of(video, mask)


def _extended(video_CTHW: Tensor, prompt: str) -> Row:
    kept, whole = object_consistency(video_CTHW, prompt), video_CTHW[None]
    change_T = video_CTHW.double().diff(dim=1).abs().mean(dim=(0, 2, 3))
    first_new = torch.zeros(len(change_T), dtype=torch.bool)
    first_new[GIVEN - 1 :: protocol.FRAMES - GIVEN] = True
    return {
        "prompt": prompt,
        "change at block borders": float(change_T[first_new].mean() / change_T[~first_new].mean().clamp(min=STILL)),
        "identity": judge(video_CTHW, prompt, protocol.FPS).identity,
        "frames of the colour": kept.colour,
        "frames of the outline": kept.shape,
        "jerk": float(metrics.jerk(whole)),
        "high_frequency_ratio": float(metrics.high_frequency_ratio(whole)),
        "luma_second_difference": float(metrics.luma_second_difference(whole)),
        "sharpness": float(metrics.sharpness(whole)),
        "motion_amount": float(whole.diff(dim=2).abs().mean()) / 2 * protocol.FPS,
    }
