"""Training batches by position: each batch depends only on (seed, step), so a run resumes exactly from its step.

A batch adds caption dropout and canvas masks to the clips of a source (`kinema.data.clip.Clips`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kinema.data.clip import Clips, TrainingClip
from kinema.system import Batch, TrainingSettings

_EPOCH_STRIDE = 1_000_003
"""Separates the random seeds of neighbouring positions and run seeds."""


@dataclass(frozen=True)
class Stream:
    """Batches of a source with the caption dropout and canvas masks of the training settings.

    ``batch`` is the number of clips of a batch; those of buckets have their own.
    """

    clips: Clips
    settings: TrainingSettings
    batch: int
    seed: int = 0

    def at(self, step: int) -> Batch:
        """The batch of optimiser step ``step``; a pure function of (seed, step)."""
        g = torch.Generator().manual_seed((self.seed * _EPOCH_STRIDE + step) * 2 + 1)
        # With images, each is a frame of a different clip, since VDM §3.1 uses independent images.
        bucket, clips = self.clips.drawn(step, self.batch * (1 + self.settings.images))
        count = len(clips) // (1 + self.settings.images)
        videos, captions = [clip.video for clip in clips], [self._drop(clip.caption, g) for clip in clips]
        video = torch.stack(videos[:count])
        thw = (clips[0].frames or video.shape[2], *video.shape[3:])
        mask = torch.stack([draw_mask(self.settings.canvas_mix, thw, g) for _ in range(count)])
        batch = Batch(video, captions[:count], mask, **_conditioning(clips[:count]), bucket=bucket)
        if not self.settings.images:
            return batch
        rest, image_captions = videos[count:], captions[count:]
        times = torch.randint(video.shape[2], (len(rest),), generator=g).tolist()
        images = torch.stack([v[:, t] for v, t in zip(rest, times, strict=True)])
        k = self.settings.images
        return replace(
            batch,
            images=images.unflatten(0, (count, k)),
            image_captions=[image_captions[b * k : (b + 1) * k] for b in range(count)],
        )

    def _drop(self, caption: str, g: torch.Generator) -> str:
        return "" if torch.rand((), generator=g).item() < self.settings.text_drop else caption


def _conditioning(clips: Sequence[TrainingClip]) -> dict[str, Any]:
    """The fields of a `Batch` besides pixels and captions."""
    encoded = [clip.encoded for clip in clips if clip.encoded is not None]
    return {
        "scenes": [clip.scene for clip in clips],
        "fps": _tensor([clip.fps for clip in clips]),
        "motion": _tensor([clip.motion for clip in clips]),
        "encoded": {name: torch.stack([e[name] for e in encoded]) for name in encoded[0]} if encoded else None,
    }


def _tensor(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values])


def prefetch(stream: Stream, first: int, last: int) -> Generator[Batch, None, None]:
    """Yield the batches of steps ``first`` to ``last - 1``, each prepared in a thread during the previous step."""
    if first >= last:
        return
    with ThreadPoolExecutor(1, "batches") as pool:
        pending = pool.submit(stream.at, first)
        for step in range(first, last):
            batch = pending.result()
            if step + 1 < last:
                pending = pool.submit(stream.at, step + 1)
            yield batch


def draw_mask(mix: Mapping[str, float], thw: tuple[int, ...], g: torch.Generator) -> Tensor:
    """Sample a canvas mask 1×T×H×W by kind from the mix: 1 where the pixel is given.

    A canvas that would give the whole clip, as most kinds would an image, gives nothing: there is nothing to learn.
    """
    frames, height, width = thw
    kinds = list(mix)
    kind = kinds[int(torch.multinomial(torch.tensor([mix[k] for k in kinds]), 1, generator=g))]
    mask = torch.zeros(1, frames, height, width)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, max(low + 1, high), (), generator=g))

    if kind == "first":
        mask[:, 0] = 1
    elif kind == "last":
        mask[:, -1] = 1
    elif kind == "ends":
        mask[:, [0, -1]] = 1
    elif kind == "prefix":
        mask[:, : pick(1, frames // 2 + 1)] = 1
    elif kind == "suffix":
        mask[:, -pick(1, frames // 2 + 1) :] = 1
    elif kind == "every":
        mask[:, :: pick(2, max(3, frames // 2))] = 1
    elif kind == "region":
        mask += 1
        top, left = pick(0, height // 2), pick(0, width // 2)
        mask[:, :, top : top + pick(height // 4, height * 3 // 4), left : left + pick(width // 4, width * 3 // 4)] = 0
        if pick(0, 2):
            mask = 1 - mask
    elif kind != "nothing":
        raise ValueError(f"unknown canvas kind {kind!r}")
    return torch.zeros_like(mask) if bool(mask.all()) else mask
