from __future__ import annotations

import pytest
import torch

from kinema.data import playroom
from kinema.evaluation.consistency import object_consistency
from kinema.schema import BadRequest


def clip(caption: str, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(playroom.sample(seed, caption=caption).video_CTHW)


@pytest.mark.parametrize("caption", ["a red ball rolls right", "a blue star spins", "a green letter K moves up"])
def test_a_real_clip_keeps_its_colour_and_outline_in_every_frame(caption: str) -> None:
    found = object_consistency(clip(caption), caption)
    assert found.complete
    assert found.frames >= 8


def test_one_frame_of_another_colour_is_detected() -> None:
    video = clip("a red ball rolls right")
    video[:, 7] = clip("a blue ball rolls right")[:, 7]
    found = object_consistency(video, "a red ball rolls right")
    assert not found.complete
    assert found.colour < 1


def test_an_outline_that_changes_half_way_is_detected() -> None:
    video = clip("a red ball rolls right")
    video[:, 8:] = clip("a red star moves right")[:, 8:]
    found = object_consistency(video, "a red ball rolls right")
    assert found.colour == 1
    assert found.shape < 0.8


def test_a_clip_without_an_object_is_not_consistent() -> None:
    assert not object_consistency(torch.zeros(3, 16, 64, 64), "a red ball rolls right").complete


def test_a_prompt_outside_the_grammar_is_refused() -> None:
    with pytest.raises(BadRequest, match="not in the playroom grammar"):
        object_consistency(torch.zeros(3, 16, 64, 64), "a cat plays the piano")
