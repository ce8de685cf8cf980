"""Training batches by position: the same position always gives the same batch, so a resumed run needs
nothing but its step number to go on exactly.

``Clips`` is a source of captioned clips by index; a batch adds the dropped captions and the canvas.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from kinema.data import playroom
from kinema.data.clip import Clip
from kinema.system import Batch, Recipe

if TYPE_CHECKING:
    from kinema.data.playroom.grammar import Grammar, Split

_EPOCH_STRIDE = 1_000_003
"""Keeps the random draws of neighbouring positions and seeds apart."""


class Clips(Protocol):
    """A source of clips: ``clip(index)``, any index >= 0 is served.

    ``skipped`` are sentences on what was left out so far.
    """

    @property
    def skipped(self) -> Sequence[str]: ...

    def clip(self, index: int) -> Clip: ...


@dataclass(frozen=True)
class Playroom:
    """Playroom rendered on the fly; ``split`` keeps the held-out prompts out of training.

    ``mixed`` is seven simple clips and then one of the full grammar: a small model has most to learn
    from the simplest sentences, which are also what most people type.
    """

    frames: int
    height: int
    width: int
    fps: float = 8.0
    seed: int = 0
    grammar: str = "mixed"
    split: str = "train"

    @property
    def skipped(self) -> Sequence[str]:
        return ()

    def clip(self, index: int) -> Clip:
        grammar = self.grammar if self.grammar != "mixed" else ("full" if index % 8 == 7 else "simple")
        made = playroom.sample(
            self.seed * _EPOCH_STRIDE + index,
            frames=self.frames,
            height=self.height,
            width=self.width,
            fps=self.fps,
            grammar=cast("Grammar", grammar),
            split=cast("Split", self.split),
        )
        return Clip(torch.from_numpy(made.video_CTHW), made.caption, made.scene)


@dataclass(frozen=True)
class Stream:
    """Batches of a source under a recipe's drops and canvases."""

    clips: Clips
    recipe: Recipe
    batch: int
    seed: int = 0

    def at(self, step: int) -> Batch:
        """The batch of optimiser step ``step``; a pure function of (seed, step)."""
        g = torch.Generator().manual_seed((self.seed * _EPOCH_STRIDE + step) * 2 + 1)
        per_clip = 1 + self.recipe.images
        made = [self.clips.clip(step * self.batch * per_clip + i) for i in range(self.batch * per_clip)]
        videos, captions = [clip.video for clip in made], [self._drop(clip.caption, g) for clip in made]
        scenes = [clip.scene for clip in made[: self.batch]]
        video = torch.stack(videos[: self.batch])
        mask = torch.stack([draw_mask(self.recipe.canvas_mix, tuple(video.shape[2:]), g) for _ in range(self.batch)])
        if not self.recipe.images:
            return Batch(video, captions, mask, scenes=scenes)
        # Each picture is one frame of a clip of its own: independent, as VDM §3.1 asks.
        rest, words = videos[self.batch :], captions[self.batch :]
        moments = torch.randint(video.shape[2], (len(rest),), generator=g).tolist()
        images = torch.stack([v[:, t] for v, t in zip(rest, moments, strict=True)])
        k = self.recipe.images
        return Batch(
            video,
            captions[: self.batch],
            mask,
            scenes=scenes,
            images=images.unflatten(0, (self.batch, k)),
            image_captions=[words[b * k : (b + 1) * k] for b in range(self.batch)],
        )

    def _drop(self, caption: str, g: torch.Generator) -> str:
        return "" if torch.rand((), generator=g).item() < self.recipe.text_drop else caption


def ahead(stream: Stream, first: int, last: int) -> Generator[Batch, None, None]:
    """The batches of steps ``first`` to ``last - 1``, each made in a thread while the one before is trained on."""
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
    """A canvas mask 1×T×H×W drawn from the mix: 1 where the pixel is given."""
    frames, height, width = thw
    kinds = list(mix)
    kind = kinds[int(torch.multinomial(torch.tensor([mix[k] for k in kinds]), 1, generator=g))]
    mask = torch.zeros(1, frames, height, width)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, max(low + 1, high), (), generator=g))

    if kind == "first":
        mask[:, 0] = 1
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
        raise ValueError(f"no canvas kind {kind!r}")
    return mask
