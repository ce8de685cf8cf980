from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from kinema.evaluation.measuring import first_frames
from kinema.evaluation.sampling import Sampling, join
from kinema.generate import Model
from kinema.schema import BadRequest, Request
from kinema.system import System, open_system

PROMPTS = ["a red ball rolls right", "a blue star spins", "a green letter K moves up"]


def lively(name: str = "zoetrope") -> System:
    """An untrained model whose output depends on everything it is given."""
    system = open_system(name, preset="tiny", device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in system.model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return system


@pytest.mark.parametrize("name", ["zoetrope", "vdm"])
def test_every_clip_of_a_batch_of_prompts_is_what_the_user_gets_for_that_prompt_and_seed(name: str) -> None:
    system = lively(name)
    together = Sampling.of(system, steps=2).clips(PROMPTS, seed=5)
    for i, prompt in enumerate(PROMPTS):
        alone = Model(system).run(Request(prompt=prompt, seed=5 + i, steps=2)).video
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-4, rtol=1e-3)
    assert (together[0] - together[1]).abs().mean() > 1e-3


def test_given_frames_reach_every_clip_of_a_batch_and_are_not_put_back() -> None:
    system = lively()
    sampling = Sampling.of(system, steps=2)
    reals = torch.stack([sampling.real(p, i) for i, p in enumerate(PROMPTS)])
    canvas = first_frames(reals)
    together = sampling.clips(PROMPTS, 0, canvas)
    alone = sampling.clips(PROMPTS[1:2], 1, first_frames(reals[1:2]))
    torch.testing.assert_close(together[1:2], alone, atol=2e-4, rtol=1e-3)
    without = sampling.clips(PROMPTS[1:2], 1)
    assert (alone - without).abs().mean() > 1e-3
    assert not torch.equal(together[:, :, 0], reals[:, :, 0])


def test_a_clip_longer_than_the_model_is_made_block_by_block_for_every_prompt() -> None:
    system = lively()
    sampling = Sampling.of(system, steps=1, frames=16, overlap=4)
    assert system.lattice.max_frames == 8
    assert sampling.clips(PROMPTS[:2], 0).shape == (2, 3, 16, 16, 16)


def test_real_clips_have_the_size_and_the_prompt_asked_for() -> None:
    sampling = Sampling.of(open_system("zoetrope", preset="tiny", device="cpu"))
    first = sampling.real(PROMPTS[0], 3)
    assert first.shape == (3, 8, 16, 16)
    torch.testing.assert_close(first, sampling.real(PROMPTS[0], 3))
    assert not torch.equal(first, sampling.real(PROMPTS[0], 4))


@dataclass(frozen=True)
class Condition:
    words: torch.Tensor
    flag: bool = False


def test_conditions_join_along_the_batch_and_refuse_what_no_batch_can_hold() -> None:
    one, two = Condition(torch.ones(1, 2)), Condition(torch.zeros(1, 2))
    assert join([one, two]).words.tolist() == [[1, 1], [0, 0]]
    with pytest.raises(BadRequest, match="flag differs.*--batch 1"):
        join([one, Condition(torch.zeros(1, 2), flag=True)])
    with pytest.raises(BadRequest, match="int fit no batch"):
        join([1, 2])
