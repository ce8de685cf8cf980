"""The oracle is right on real clips, at chance with other prompts, and independent of the prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kinema.data.playroom import sample
from kinema.evaluation.oracle import judge, spread, summarise, wilson
from kinema.schema import BadRequest

COUNT = 28


@pytest.fixture(scope="module")
def real():
    return [sample(seed, split="all") for seed in range(COUNT)]


def softened(video: np.ndarray, seed: int) -> np.ndarray:
    """Blur of about 0.7 pixels and noise of 0.03, as in a typical generated clip."""
    kernel = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 0.7**2))
    kernel /= kernel.sum()
    for axis in (2, 3):
        ends = [(2, 2) if a == axis else (0, 0) for a in range(4)]
        padded = np.pad(video, ends, mode="edge")
        video = sum(k * np.take(padded, range(i, i + video.shape[axis]), axis) for i, k in enumerate(kernel))
    return video + 0.03 * np.random.default_rng(seed).standard_normal(video.shape)


def test_real_clips_are_judged_correctly(real):
    scores = summarise([judge(s.video_CTHW, s.caption) for s in real])
    assert scores.colour.mean >= 0.97
    assert scores.shape.mean >= 0.95
    assert scores.direction.mean >= 0.97
    assert scores.motion.mean >= 0.93
    assert scores.count.mean >= 0.95
    assert scores.identity.mean >= 0.95


def test_soft_and_noisy_clips_are_judged_correctly(real):
    verdicts = [judge(softened(s.video_CTHW, i), s.caption) for i, s in enumerate(real)]
    scores = summarise(verdicts)
    assert min(scores.colour.mean, scores.shape.mean, scores.direction.mean) >= 0.95
    assert scores.motion.mean >= 0.9


def test_clips_with_other_prompts_score_near_chance(real):
    verdicts = [judge(s.video_CTHW, other.caption) for s, other in zip(real, real[7:] + real[:7], strict=True)]
    scores = summarise(verdicts)
    assert scores.colour.mean < 0.3
    assert scores.shape.mean < 0.35
    assert scores.direction.mean < 0.4


def test_measurements_do_not_depend_on_the_prompt(real):
    for sampled, other in zip(real[:6], real[6:12], strict=True):
        own, with_other_prompt = judge(sampled.video_CTHW, sampled.caption), judge(sampled.video_CTHW, other.caption)
        measured = ("colour", "shape", "letter", "direction", "motion", "count", "identity")
        assert [getattr(own, name) for name in measured] == [getattr(with_other_prompt, name) for name in measured]


def test_a_mirrored_clip_has_the_opposite_direction():
    video = sample(0, caption="a green ball rolls right").video_CTHW
    assert judge(video, "a green ball rolls right").direction_right
    mirrored = judge(video[:, :, :, ::-1], "a green ball rolls right")
    assert mirrored.direction == "left"
    assert not mirrored.direction_right
    assert judge(video[:, ::-1], "a green ball rolls left").direction_right


def test_a_frozen_clip_has_no_direction_no_motion_and_no_flicker():
    video = sample(0, caption="a green ball rolls right").video_CTHW[:, :1].repeat(16, axis=1)
    verdict = judge(video, "a green ball rolls right")
    assert verdict.colour_right
    assert verdict.shape_right
    assert not verdict.direction_right
    assert verdict.motion == "still"
    assert verdict.motion_amount == verdict.flicker == 0


def test_swapped_channels_are_another_colour():
    video = sample(0, caption="a red star spins on a plain grey background").video_CTHW
    assert judge(video, "a red star spins").colour == "red"
    assert judge(video[::-1], "a red star spins").colour == "blue"


@pytest.mark.parametrize("motion", ["rolls left", "moves left", "slides left"])
def test_rolling_moving_and_sliding_are_distinguished(motion: str):
    verdicts = [judge(sample(seed, motion=motion, split="all").video_CTHW, f"a red ball {motion}") for seed in range(8)]
    assert sum(verdict.motion_right for verdict in verdicts) >= 7


def test_an_object_that_changes_loses_its_identity():
    red = sample(4, caption="a red ball spins on a plain grey background").video_CTHW
    star = sample(4, caption="a blue star spins on a plain grey background").video_CTHW
    changed = np.concatenate([red[:, :10], star[:, 10:]], axis=1)
    gone = np.concatenate([red[:, :8], np.zeros_like(red[:, 8:])], axis=1)
    assert judge(red, "a red ball spins").identity > 0.97
    assert judge(changed, "a red ball spins").identity < 0.75
    assert judge(gone, "a red ball rolls right").identity < 0.6


def test_flicker_rises_with_noise_between_frames():
    sampled = sample(5, split="all")
    noise = np.random.default_rng(0).standard_normal(sampled.video_CTHW.shape)
    levels = [judge(sampled.video_CTHW + amount * noise, sampled.caption).flicker for amount in (0.0, 0.02, 0.08)]
    assert levels[0] < levels[1] < levels[2]


def test_two_objects_are_counted_and_the_second_is_named():
    video = sample(2, caption="a red ball moves right above a blue star on a plain grey background").video_CTHW
    verdict = judge(video, "a red ball moves right above a blue star")
    assert verdict.count == 2
    assert verdict.count_right
    assert verdict.second_right
    assert not judge(video, "a red ball moves right above a green star").second_right
    assert not judge(video, "a red ball moves right").count_right
    single = sample(2, caption="a red ball moves right on a plain grey background").video_CTHW
    assert not judge(single, "a red ball moves right above a blue star").count_right


def test_two_objects_of_one_colour_count_as_two():
    video = sample(0, caption="a small red ball moves right on a plain grey background").video_CTHW
    doubled = np.concatenate([video, video], axis=2)
    verdict = judge(doubled, "a red ball moves right")
    assert verdict.count == 2
    assert not verdict.count_right


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_empty_clip_has_no_objects(value: float):
    verdict = judge(np.full((3, 16, 32, 32), value), "a red ball rolls right")
    assert verdict.count == 0
    assert verdict.colour is None
    assert not any([verdict.colour_right, verdict.shape_right, verdict.direction_right, verdict.motion_right])
    assert verdict.identity == 0


def test_torch_clips_larger_clips_and_single_frames_are_judged_too():
    caption = "a purple heart slides down"
    large = sample(3, caption=caption, height=256, width=256, frames=8, fps=4.0).video_CTHW
    verdict = judge(torch.from_numpy(large).to(torch.bfloat16), caption, fps=4.0)
    assert verdict.colour_right
    assert verdict.shape_right
    assert verdict.direction_right
    still = judge(large[:, :1], caption)
    assert still.shape_right
    assert not still.direction_right


@pytest.mark.parametrize(
    ("shape", "prompt"),
    [((3, 64, 64), "a red ball spins"), ((1, 4, 8, 8), "a red ball spins"), ((3, 4, 8, 8), "a cat")],
)
def test_invalid_clips_and_prompts_are_refused(shape: tuple[int, ...], prompt: str):
    with pytest.raises(BadRequest, match="expected 3×T×H×W|not in the playroom grammar"):
        judge(np.zeros(shape), prompt)


def test_intervals_are_wilson_intervals():
    # Wilson 1927: 8 of 10 has the 95 % interval 0.490 to 0.943.
    figure = wilson([True] * 8 + [False] * 2 + [None])
    assert (figure.mean, figure.count) == (0.8, 10)
    assert figure.low == pytest.approx(0.4902, abs=2e-4)
    assert figure.high == pytest.approx(0.9433, abs=2e-4)
    assert wilson([None]) is None
    measured = spread([1.0, 2.0, 3.0])
    assert measured.high - measured.mean == pytest.approx(1.959964 / 3**0.5, rel=1e-5)


def test_the_table_has_a_row_for_each_available_score():
    verdict = judge(sample(0, caption="a red ball spins").video_CTHW, "a red ball spins")
    assert "inf" not in summarise([verdict]).table()
    table = summarise([verdict, verdict]).table()
    assert "| colour | 100.0 % |" in table
    assert "direction" not in table
