"""Clips of the playroom rendered on the fly, each a function of its index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from kinema.data import motion, playroom, styles
from kinema.data.clip import TrainingClip
from kinema.data.playroom.settings import Playroom

if TYPE_CHECKING:
    from kinema.data.playroom.grammar import Grammar, Split
    from kinema.data.playroom.scene import Scene

_SEED_STRIDE = 1_000_003
"""Keeps the scenes of neighbouring seeds apart."""


@dataclass(frozen=True)
class Rendered:
    """Clips at a size and rate, as ``how`` says; ``split`` keeps the held-out prompts out of training.

    A small model has most to learn from the simplest sentences, which are also what most people type: hence ``mixed``.
    One frame is of any moment of a scene, and not its first.
    """

    frames: int
    height: int
    width: int
    fps: float = 8.0
    how: Playroom = Playroom()
    seed: int = 0
    split: str = "train"

    @property
    def skipped(self) -> Sequence[str]:
        return ()

    def clip(self, index: int) -> TrainingClip:
        rng = np.random.default_rng([self.seed, index, _PACE])
        pace = float(np.exp(rng.random() * np.log(self.how.slow)))
        frames = round((self.frames if self.frames > 1 else _MOMENTS) * pace)
        start = int(rng.integers(frames - self.frames + 1))
        made = self._sample(index, frames, self.fps * pace)
        shown = slice(start, start + self.frames)
        moving = motion.of_scene(made.scene, self.height, self.width)[shown][: self.frames - 1] / pace
        part = frames != self.frames
        video = torch.from_numpy(made.video_CTHW[:, shown].copy() if part else made.video_CTHW)
        scene = _during(made.scene, shown, self.fps) if part else made.scene
        caption = made.caption.partition(" while the camera ")[0] if self.how.camera else made.caption
        how_much = float(moving.mean()) if len(moving) else 0.0
        return TrainingClip(styles.apply(self.how.style, video), caption, scene, self.fps, how_much)

    def _sample(self, index: int, frames: int, fps: float) -> playroom.Sample:
        grammar, fixed = self.how.grammar, self._fixed(index)
        if grammar in ("mixed", *_NAMED):
            grammar = "full" if grammar == "mixed" and index % 8 == 7 else "simple"
        seed: int | list[int] = self.seed * _SEED_STRIDE + index
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
            if made.scene.objects[0].motion not in self.how.without:
                return made
            seed = [seed, 1] if isinstance(seed, int) else [*seed[:-1], seed[-1] + 1]

    def _fixed(self, index: int) -> dict[str, str]:
        """What of a clip's meaning is not left to the grammar."""
        chance, which, moves, way = np.random.default_rng([self.seed, index, _SCENIC]).random(4)
        patterns, cameras = _NAMED.get(self.how.grammar, (0.0, 0.0))
        if not self.how.camera and chance >= patterns:
            return {}
        fixed = {"background": PATTERNS[int(which * len(PATTERNS))]}
        if self.how.camera or moves < cameras:
            fixed["camera"] = self.how.camera or playroom.CAMERAS[int(way * len(playroom.CAMERAS))]
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
