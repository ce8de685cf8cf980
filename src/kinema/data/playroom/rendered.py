"""Playroom clips rendered on the fly, each a function of its index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from kinema.data import motion, playroom, styles
from kinema.data.clip import InOrder, TrainingClip
from kinema.data.playroom.scene import View
from kinema.data.playroom.settings import Playroom

if TYPE_CHECKING:
    from kinema.data.playroom.grammar import Grammar, Split
    from kinema.data.playroom.scene import Scene

_SEED_STRIDE = 1_000_003
"""Keeps the scenes of neighbouring seeds apart."""


@dataclass(frozen=True)
class Rendered(InOrder):
    """Clips at a size and frame rate, rendered with the settings ``how``.

    The default grammar, ``mixed``, favours simple sentences: small models learn most from them, and most prompts are
    simple. A single frame is taken at a random time of its scene.
    """

    frames: int
    height: int
    width: int
    fps: float = 8.0
    how: Playroom = Playroom()
    seed: int = 0

    @property
    def skipped(self) -> Sequence[str]:
        return ()

    def clip(self, index: int) -> TrainingClip:
        rng = np.random.default_rng([self.seed, index, _PACE])
        pace = float(np.exp(rng.random() * np.log(self.how.slow)))
        frames = round(max(self.frames if self.frames > 1 else _TIMES, self.how.scene) * pace)
        start = int(rng.integers(frames - self.frames + 1))
        sample = self._sample(index, frames, self.fps * pace)
        part = slice(start, start + self.frames)
        moving = motion.of_scene(sample.scene, self.height, self.width)[part][: self.frames - 1] / pace
        cropped = frames != self.frames
        video = torch.from_numpy(sample.video_CTHW[:, part].copy() if cropped else sample.video_CTHW)
        scene = _during(sample.scene, part, self.fps) if cropped else sample.scene
        caption = self._without_camera(sample.caption)
        score = float(moving.mean()) if len(moving) else 0.0
        return TrainingClip(styles.apply(self.how.style, video), caption, scene, self.fps, score)

    def caption(self, index: int) -> str:
        """The caption of ``clip(index)``, without rendering it."""
        return self._without_camera(self._described(index)[1])

    def _without_camera(self, caption: str) -> str:
        """A camera motion that every clip has is not mentioned."""
        return caption.partition(" while the camera ")[0] if self.how.camera else caption

    def _sample(self, index: int, frames: int, fps: float) -> playroom.Sample:
        meaning, caption, rng = self._described(index)
        return playroom.render_meaning(meaning, caption, View(frames, self.height, self.width, fps), rng)

    def _described(self, index: int) -> tuple[playroom.Meaning, str, np.random.Generator]:
        """The meaning and caption of a clip, and the generator that draws the rest of it."""
        grammar, fixed = self.how.grammar, self._fixed(index)
        if grammar in ("mixed", *_NAMED):
            grammar = "full" if grammar == "mixed" and index % 8 == 7 else "simple"
        seed: int | list[int] = self.seed * _SEED_STRIDE + index
        while True:
            found = playroom.described(seed, cast("Grammar", grammar), cast("Split", self.how.split), **fixed)
            if found[0].motion not in self.how.without:
                return found
            seed = [seed, 1] if isinstance(seed, int) else [*seed[:-1], seed[-1] + 1]

    def _fixed(self, index: int) -> dict[str, str]:
        """The fields of a clip's meaning that the grammar does not sample."""
        chance, which, moves, way = np.random.default_rng([self.seed, index, _SCENIC]).random(4)
        patterns, cameras = _NAMED.get(self.how.grammar, (0.0, 0.0))
        if not self.how.camera and chance >= patterns:
            return {}
        fixed = {"background": PATTERNS[int(which * len(PATTERNS))]}
        if self.how.camera or moves < cameras:
            fixed["camera"] = self.how.camera or playroom.CAMERAS[int(way * len(playroom.CAMERAS))]
        return fixed


PATTERNS = ("checkered", "striped")
"""Backgrounds on which all camera motion is visible at the size of pocket models."""
_NAMED = {"scenic": (0.5, 0.6), "filmed": (0.8, 0.85)}
"""The share of clips with a named pattern, and the share of those with a camera motion."""
_PACE, _SCENIC = 0x9ACE, 0x5CE9
_TIMES = 16
"""Number of frames of a scene from which a single frame is taken."""


def _during(scene: Scene, part: slice, fps: float) -> Scene:
    """The scene graph of a range of frames, at a new frame rate."""
    arrays = ("position_T2", "size_T", "angle_T", "visible_T", "opacity_T")
    tracks = [replace(t, **{name: getattr(t, name)[part] for name in arrays}) for t in scene.objects]
    return replace(scene, objects=tuple(tracks), fps=fps)
