"""Periodic motions: the error of what playroom draws is near zero, and that of other paths is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kinema.data import playroom
from kinema.evaluation.consistency import identity_breaks
from kinema.evaluation.periodic import MISSING, distance_to_path, trajectory_error
from kinema.schema import BadRequest

FRAMES, FPS = 32, 6.0
PROMPTS = ("a red ball orbits", "a green star swings", "a blue box bounces")


def clip(prompt: str, seed: int = 3) -> Tensor:
    return torch.from_numpy(
        playroom.sample(seed, frames=FRAMES, height=64, width=64, fps=FPS, caption=prompt).video_CTHW
    )


@pytest.mark.parametrize("prompt", [*PROMPTS, "a red ball orbits fast", "a red ball bounces slowly"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_rendered_clip_has_no_error(prompt: str, seed: int) -> None:
    video = clip(prompt, seed)
    assert trajectory_error(video, prompt, FPS) < 0.012
    assert identity_breaks(video, prompt) == 0


@pytest.mark.parametrize("prompt", PROMPTS)
def test_frames_in_another_order_and_other_motions_have_one(prompt: str) -> None:
    video = clip(prompt)
    shuffled = video[:, torch.from_numpy(np.random.default_rng(0).permutation(FRAMES))]
    other = PROMPTS[(PROMPTS.index(prompt) + 1) % 3]
    assert trajectory_error(shuffled, prompt, FPS) > 0.05
    assert trajectory_error(video, other, FPS) > 0.05
    assert trajectory_error(video[:, :1].expand(-1, FRAMES, -1, -1), prompt, FPS) > 0.06


def test_the_distance_is_that_of_the_nearest_path() -> None:
    seconds = np.arange(FRAMES) / FPS
    angle = 2 * np.pi * (seconds / 1.87 + 0.31)
    orbit = 0.5 + 0.29 * np.stack([np.cos(angle), -np.sin(angle)], 1)
    assert distance_to_path("orbits", seconds, orbit) < 1e-3
    # Noise of this size on both coordinates, less what the few free parameters of the path take up.
    noise = np.random.default_rng(0).normal(size=orbit.shape) * 0.03
    assert distance_to_path("orbits", seconds, orbit + noise) == pytest.approx(0.03 * 2**0.5, rel=0.15)
    # A circle that is too small for playroom stays at a distance.
    assert distance_to_path("orbits", seconds, 0.5 + (orbit - 0.5) / 2.9) == pytest.approx(0.12, abs=0.002)


def test_the_path_of_a_swing_follows_its_arm() -> None:
    seconds = np.arange(FRAMES) / FPS
    angle = 0.7 * np.sin(2 * np.pi * (seconds / 1.4 + 0.2))
    swing = np.array([0.5, 0.8]) - 0.45 * np.stack([np.sin(angle), 1 - np.cos(angle)], 1)
    assert distance_to_path("swings", seconds, swing) < 2e-3
    assert distance_to_path("swings", seconds, swing * [1, -1]) > 0.03


def test_frames_without_the_object_count() -> None:
    video = clip(PROMPTS[0])
    empty = video[:, :, :1, :1].expand_as(video)
    assert trajectory_error(empty, PROMPTS[0], FPS) == MISSING
    assert identity_breaks(empty, PROMPTS[0]) == 1
    half = torch.where(torch.arange(FRAMES)[:, None, None] < FRAMES // 2, video, empty)
    assert trajectory_error(half, PROMPTS[0], FPS) == pytest.approx(MISSING / 2**0.5, abs=0.01)
    assert identity_breaks(half, PROMPTS[0]) == 0.5


def test_another_colour_or_outline_breaks_the_identity() -> None:
    for other in ("a blue ball orbits", "a red star orbits"):
        video, wrong = clip("a red ball orbits"), clip(other)
        mixed = torch.where(torch.arange(FRAMES)[:, None, None] < 24, video, wrong)
        assert 0.2 <= identity_breaks(mixed, "a red ball orbits") <= 0.3


def test_other_prompts_are_refused() -> None:
    for prompt in ("a red ball rolls right", "a castle orbits"):
        with pytest.raises(BadRequest, match="names no periodic motion"):
            trajectory_error(clip(PROMPTS[0]), prompt, FPS)
    with pytest.raises(BadRequest, match="not in the playroom grammar"):
        identity_breaks(clip(PROMPTS[0]), "a castle orbits")
