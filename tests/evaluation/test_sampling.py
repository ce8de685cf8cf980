from __future__ import annotations

from typing import Any

import pytest
import torch

from kinema import registry
from kinema.api import Model
from kinema.canvas import Canvas
from kinema.evaluation.measuring import first_frames
from kinema.evaluation.sampling import Sampling
from kinema.schema import Request
from kinema.system import System, open_system

PROMPTS = ["a red ball rolls right", "a blue star spins", "a green letter K moves up"]


def lively(name: str = "zoetrope", **options: Any) -> System:
    """An untrained model whose output depends on all its inputs."""
    system = open_system(name, preset="tiny", device="cpu", **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter, p in system.model.named_parameters():
            # SparseCtrl's output grows from level to level; unscaled, it would dominate.
            p.add_((0.02 if parameter.startswith("sparse.") else 0.2) * torch.randn(p.shape, generator=generator))
    return system


@pytest.fixture(scope="module", params=list(registry.FAMILIES))
def system(request: pytest.FixtureRequest) -> System:
    torch.set_num_threads(1)
    return lively(request.param)


def first_of(sampling: Sampling, count: int) -> Canvas:
    return first_frames(torch.stack([sampling.real(PROMPTS[i], i) for i in range(count)]))


def assert_same_as_single_runs(sampling: Sampling, prompts: list[str], canvas: Canvas | None = None) -> None:
    """Clip i of a batch equals the clip of prompt i with seed + i within 1e-4, and the clips are not all equal."""
    together = sampling.clips(prompts, 5, canvas)
    for i, prompt in enumerate(prompts):
        one = None if canvas is None else Canvas.of(canvas.video[i : i + 1], canvas.mask[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], sampling.clips([prompt], 5 + i, one), atol=1e-4, rtol=0)
    assert (together[0] - together[1]).abs().mean() > 1e-3


def test_every_clip_of_a_batch_equals_its_single_run(system: System) -> None:
    sampling = Sampling.of(system, steps=2)
    assert_same_as_single_runs(sampling, PROMPTS[:2])
    alone = Model(system).run(Request(prompt=PROMPTS[1], seed=6, steps=2)).video
    torch.testing.assert_close(sampling.clips(PROMPTS[:2], 5)[1:], alone, atol=1e-4, rtol=0)
    same_seed = [sampling.clips([prompt], 5) for prompt in PROMPTS[:2]]
    assert torch.equal(*same_seed) != system.family.sampling.defaults(system.config).takes_prompt


def test_every_clip_of_a_batch_has_its_own_given_frame(system: System) -> None:
    sampling = Sampling.of(system, steps=2)
    assert_same_as_single_runs(sampling, PROMPTS[:2], first_of(sampling, 2))


@pytest.mark.parametrize("length", ["blocks", "windows"])
def test_every_long_clip_of_a_batch_equals_its_single_run(system: System, length: str) -> None:
    longest = system.lattice.max_frames or 8
    options = {"overlap": longest // 2} if length == "blocks" else {"window": longest}
    sampling = Sampling.of(system, steps=1, frames=longest * 3 // 2, **options)
    assert_same_as_single_runs(sampling, PROMPTS[:2], first_of(sampling, 2) if length == "blocks" else None)


TRAVEL: dict[str, Any] = {"prompt_spans": {3: "a blue star spins"}, "extra": {"effect": [1, 1, 0, 0.5]}}


@pytest.mark.parametrize(
    ("overrides", "prompts", "options"),
    [
        ({}, PROMPTS[:2], TRAVEL),
        ({}, PROMPTS[:2], {**TRAVEL, "window": 2, "overlap": 1}),
        ({}, ["a red ball " * 8, "a blue star"], {}),  # two rows of tokens and one cannot be batched
        ({"sparse": "rgb"}, PROMPTS[:2], {"extra": {"control_scale": [1.0, 0.5, 0.2, 0.7]}}),
        ({"motion": "pia"}, PROMPTS[:2], {"extra": {"affinity": "large"}}),
    ],
    ids=["spans", "spans in windows", "long prompt", "SparseCtrl", "PIA"],
)
def test_animatediff_clips_of_a_batch_equal_their_single_runs(
    overrides: dict[str, Any], prompts: list[str], options: dict[str, Any]
) -> None:
    model = lively("animatediff", overrides=overrides)
    sampling = Sampling.of(model, steps=2, frames=4, **options)
    assert_same_as_single_runs(sampling, prompts, first_of(sampling, 2))


def test_an_empty_prompt_is_denoised_separately() -> None:
    """VDM's null embedding for an empty prompt is not a vector and cannot be batched with vectors."""
    assert_same_as_single_runs(Sampling.of(lively("vdm"), steps=2), [PROMPTS[0], ""])


def test_per_frame_guidance_scales_apply_to_batches() -> None:
    model = lively("svd")
    sampling = Sampling.of(model, steps=2, guidance=1.0, guidance_end=4.0, extra={"guidance_shape": "triangle"})
    assert_same_as_single_runs(sampling, PROMPTS[:2], first_of(sampling, 2))


def test_given_frames_condition_every_clip_and_are_not_restored() -> None:
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


def test_long_clips_are_generated_block_by_block_for_every_prompt() -> None:
    system = lively()
    sampling = Sampling.of(system, steps=1, frames=16, overlap=4)
    assert system.lattice.max_frames == 8
    assert sampling.clips(PROMPTS[:2], 0).shape == (2, 3, 16, 16, 16)


def test_real_clips_have_the_requested_size_and_prompt() -> None:
    sampling = Sampling.of(open_system("zoetrope", preset="tiny", device="cpu"))
    first = sampling.real(PROMPTS[0], 3)
    assert first.shape == (3, 8, 16, 16)
    torch.testing.assert_close(first, sampling.real(PROMPTS[0], 3))
    assert not torch.equal(first, sampling.real(PROMPTS[0], 4))
