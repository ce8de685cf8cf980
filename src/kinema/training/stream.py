"""Training batches by position: the same position always gives the same batch, so a resumed run needs
nothing but its step number to go on exactly.

``Clips`` is a source of captioned clips by index; a batch adds the dropped captions and the canvas.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from kinema.data import motion, playroom, styles
from kinema.data.clip import Clip
from kinema.system import Batch, Recipe

if TYPE_CHECKING:
    from kinema.data.playroom.grammar import Grammar, Split
    from kinema.data.playroom.scene import Scene

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
    from the simplest sentences, which are also what most people type. ``slow`` above 1 shows a part of each scene
    in slow motion, by a factor from 1 to it, drawn evenly in the logarithm. Motions in ``without`` are left out.

    ``scenic`` is simple clips, half of which name a pattern behind the object, and three in five of these a camera
    motion; ``filmed`` the same with four in five, and 85 in a hundred of these. ``camera`` moves the camera of every
    clip, before a pattern that is named, while the camera is not: that motion is to be learnt, whatever is said.
    ``style`` draws the frames anew (`kinema.data.styles`). One frame is of any moment of a scene, and not its first.
    """

    frames: int
    height: int
    width: int
    fps: float = 8.0
    seed: int = 0
    grammar: str = "mixed"
    split: str = "train"
    slow: float = 1.0
    without: tuple[str, ...] = ()
    camera: str = ""
    style: str = ""

    @property
    def skipped(self) -> Sequence[str]:
        return ()

    def clip(self, index: int) -> Clip:
        rng = np.random.default_rng([self.seed, index, _PACE])
        pace = float(np.exp(rng.random() * np.log(self.slow)))
        frames = round((self.frames if self.frames > 1 else _MOMENTS) * pace)
        start = int(rng.integers(frames - self.frames + 1))
        made = self._sample(index, frames, self.fps * pace)
        shown = slice(start, start + self.frames)
        moving = motion.of_scene(made.scene, self.height, self.width)[shown][: self.frames - 1] / pace
        part = frames != self.frames
        video = torch.from_numpy(made.video_CTHW[:, shown].copy() if part else made.video_CTHW)
        scene = _during(made.scene, shown, self.fps) if part else made.scene
        caption = made.caption.partition(" while the camera ")[0] if self.camera else made.caption
        how_much = float(moving.mean()) if len(moving) else 0.0
        return Clip(styles.apply(self.style, video), caption, scene, self.fps, how_much)

    def _sample(self, index: int, frames: int, fps: float) -> playroom.Sample:
        grammar, fixed = self.grammar, self._fixed(index)
        if grammar in ("mixed", *_NAMED):
            grammar = "full" if grammar == "mixed" and index % 8 == 7 else "simple"
        seed: int | list[int] = self.seed * _EPOCH_STRIDE + index
        while True:
            made = playroom.sample(
                seed,
                frames=frames,
                height=self.height,
                width=self.width,
                fps=fps,
                grammar=cast("Grammar", grammar),
                split=cast("Split", self.split),
                **fixed,
            )
            if made.scene.objects[0].motion not in self.without:
                return made
            seed = [seed, 1] if isinstance(seed, int) else [*seed[:-1], seed[-1] + 1]

    def _fixed(self, index: int) -> dict[str, str]:
        """What of a clip's meaning is not left to the grammar."""
        chance, which, moves, way = np.random.default_rng([self.seed, index, _SCENIC]).random(4)
        patterns, cameras = _NAMED.get(self.grammar, (0.0, 0.0))
        if not self.camera and chance >= patterns:
            return {}
        fixed = {"background": PATTERNS[int(which * len(PATTERNS))]}
        if self.camera or moves < cameras:
            fixed["camera"] = self.camera or playroom.CAMERAS[int(way * len(playroom.CAMERAS))]
        return fixed


PATTERNS = ("checkered", "striped")
"""Backgrounds whose every motion shows, at the size of pockets."""
_NAMED = {"scenic": (0.5, 0.6), "filmed": (0.8, 0.85)}
"""Of clips, the share that names a pattern, and of those the share that names a camera motion."""
_PACE, _SCENIC = 0x9ACE, 0x5CE9
_MOMENTS = 16
"""Moments of a scene of which a single frame is one."""


def _during(scene: Scene, shown: slice, fps: float) -> Scene:
    """The part of a scene graph that is shown, at the rate it is shown at."""
    arrays = ("position_T2", "size_T", "angle_T", "visible_T", "opacity_T")
    tracks = [replace(t, **{name: getattr(t, name)[shown] for name in arrays}) for t in scene.objects]
    return replace(scene, objects=tuple(tracks), fps=fps)


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
        video = torch.stack(videos[: self.batch])
        mask = torch.stack([draw_mask(self.recipe.canvas_mix, tuple(video.shape[2:]), g) for _ in range(self.batch)])
        batch = Batch(video, captions[: self.batch], mask, **_told(made[: self.batch]))
        if not self.recipe.images:
            return batch
        # Each picture is one frame of a clip of its own: independent, as VDM §3.1 asks.
        rest, words = videos[self.batch :], captions[self.batch :]
        moments = torch.randint(video.shape[2], (len(rest),), generator=g).tolist()
        images = torch.stack([v[:, t] for v, t in zip(rest, moments, strict=True)])
        k = self.recipe.images
        return replace(
            batch,
            images=images.unflatten(0, (self.batch, k)),
            image_captions=[words[b * k : (b + 1) * k] for b in range(self.batch)],
        )

    def _drop(self, caption: str, g: torch.Generator) -> str:
        return "" if torch.rand((), generator=g).item() < self.recipe.text_drop else caption


def _told(clips: Sequence[Clip]) -> dict[str, Any]:
    """What is known of clips besides pixels and words, as `Batch` holds it."""
    encoded = [clip.encoded for clip in clips if clip.encoded is not None]
    return {
        "scenes": [clip.scene for clip in clips],
        "fps": _numbers([clip.fps for clip in clips]),
        "motion": _numbers([clip.motion for clip in clips]),
        "encoded": {name: torch.stack([e[name] for e in encoded]) for name in encoded[0]} if encoded else None,
    }


def _numbers(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values])


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
