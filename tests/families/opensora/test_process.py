"""The published schedule, shifts and guidance scales of Open-Sora 2.0, from runs of its own code at 7ad6a96."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from kinema.diffusion.guidance import Guided
from kinema.diffusion.schedules import NoiseLevel
from kinema.families.opensora import conditioning, process
from kinema.families.opensora.config import V2, V2_768, V2_DC_AE, Config
from kinema.families.opensora.family import FAMILY
from kinema.schema import Request, Shape
from kinema.system import System, Weights

LEVEL = NoiseLevel(torch.ones(1), torch.ones(1))


def sigmas(config: Config, steps: int, shape: Shape) -> Tensor:
    """The noise levels of a run, as the sampler gets them."""
    request = Request(steps=steps, frames=shape.frames, height=shape.height, width=shape.width)
    return System("opensora", FAMILY, config, Weights(seed=0)).levels(request).sigma


# -------------------------------------------------------------------------------------- schedule


def test_five_steps_of_144_tokens_and_33_latent_frames() -> None:
    told = sigmas(V2, 5, Shape(1, 3, 129, 192, 192))
    assert V2.tokens(192, 192) == 144
    assert told.tolist() == pytest.approx([1, 0.95583, 0.89028, 0.78291, 0.5749, 0], abs=5e-6)


@pytest.mark.parametrize(
    ("config", "begin", "end"),
    [(V2, (1, 0.99645, 0.99278), (0.19281, 0.10474, 0)), (V2_768, (1,), (0.33096, 0.19503, 0))],
    ids=["256px", "768px"],
)
def test_fifty_steps(config: Config, begin: tuple[float, ...], end: tuple[float, ...]) -> None:
    told = sigmas(config, 50, Shape(1, 3, config.frames, config.height, config.width)).tolist()
    assert len(told) == 51
    assert told[: len(begin)] == pytest.approx(begin, abs=5e-6)
    assert told[-len(end) :] == pytest.approx(end, abs=5e-6)


@pytest.mark.parametrize(
    ("config", "tokens", "frames", "shift"),
    [(V2, 252, 33, 5.7326), (V2_768, 2304, 33, 11.8721), (V2_DC_AE, 576, 32, 6.5997)],
    ids=["256px", "768px", "dc-ae"],
)
def test_tokens_and_shifts(config: Config, tokens: int, frames: int, shift: float) -> None:
    shape = Shape(1, 3, config.frames, config.height, config.width)
    assert config.tokens(config.height, config.width) == tokens
    assert FAMILY.sampling.lattice(config).latent(shape).frames == frames
    assert process.shift(tokens, frames) == pytest.approx(shift, abs=5e-5)


def test_the_shift_is_linear_in_tokens_and_grows_with_the_root_of_the_frames() -> None:
    assert process.shift(256, 1) == pytest.approx(1)
    assert process.shift(4096, 1) == pytest.approx(3)
    assert process.shift(4096, 25) == pytest.approx(15)


def test_a_config_may_set_its_own_shift() -> None:
    shape = Shape(1, 3, 129, 192, 336)
    told = sigmas(replace(V2, shift=3.0), 2, shape).tolist()
    assert told == pytest.approx([1, 0.75, 0])
    assert told != pytest.approx(sigmas(V2, 2, shape).tolist())


# -------------------------------------------------------------------------------------- guidance


def scales(config: Config, **options: Any) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """The scales of image and text guidance by step, for a request to this model."""
    told: dict[str, Any] = {"frames": 129, "height": 192, "width": 336, "steps": 50} | options
    image, text = (each.scale for each in conditioning.guidance(config, Request(**told)).differences)

    def at(scale: Any) -> Callable[[int], Any]:
        return lambda step: scale(step, LEVEL) if callable(scale) else scale

    return at(image), at(text)


def test_text_guidance_oscillates_from_the_tenth_step_on() -> None:
    _, text = scales(V2, task="generate")
    assert [text(step) for step in range(16)] == [*[7.5] * 11, 1, 7.5, 1, 7.5, 1]
    _, text = scales(V2, task="generate", extra={"oscillate": False}, guidance=4.0)
    assert [text(step) for step in range(16)] == [4.0] * 16


def test_image_guidance_oscillates_with_it_or_by_itself() -> None:
    image, _ = scales(V2, task="extend")
    assert [image(step) for step in range(16)] == [*[3] * 11, 1, 3, 1, 3, 1]
    image, text = scales(V2, task="extend", extra={"oscillate_image": False, "image_guidance": 2.0})
    assert [image(step) for step in range(16)] == [2.0] * 16
    assert text(11) == 1


@pytest.mark.parametrize("task", ["animate", "interpolate"])
def test_dynamic_image_guidance_grows_over_the_frames_to_a_limit_that_falls_over_the_steps(task: Any) -> None:
    """For g = 3 the limit at step 10 of 50 is 2.6."""
    image, _ = scales(V2, task=task)
    assert torch.allclose(image(10), torch.linspace(1, 2.6, 33))
    assert torch.allclose(image(0), torch.linspace(1, 3, 33))
    assert image(11) == 1  # as published, the scale of 1 that oscillation gives stays 1
    last = [float(image(step)[-1]) for step in range(0, 50, 2)]
    assert all(later < earlier for earlier, later in pairwise(last))


def test_dynamic_image_guidance_is_of_images_and_can_be_turned_off() -> None:
    assert scales(V2, task="extend")[0](10) == 3
    assert scales(V2, task="animate", extra={"dynamic_image": False})[0](10) == 3
    image, _ = scales(V2, task="animate", extra={"oscillate_image": False})
    assert torch.allclose(image(11), torch.linspace(1, 3 - 2 * 11 / 50, 33))


def test_a_clip_of_which_nothing_is_given_has_two_branches() -> None:
    """Exactly: text guidance of the positive over the negative branch, whatever the scale of image guidance."""
    negative, positive = object(), object()
    told = conditioning.guidance(V2, Request(frames=129, height=192, width=336, steps=50))
    merged = told.merged({"positive": positive, "negative": negative, "blank": negative})
    assert set(merged.branches) == {"positive", merged.base}
    assert [each.of for each in merged.differences] == ["positive"]


@pytest.mark.parametrize("step", [0, 10, 11])
def test_three_branches_add_up_as_published(step: int) -> None:
    """``u2 + g_img (u1 - u2) + g_txt (c - u1)``, of branches that are numbers."""
    values = {"blank": 1.0, "negative": 10.0, "positive": 100.0}
    request = Request(task="extend", frames=129, height=192, width=336, steps=50)
    system = System("opensora", FAMILY, V2, Weights(seed=0))
    levels = system.levels(request)

    def constant(value: float) -> Callable[[Tensor, NoiseLevel], Tensor]:
        return lambda z, _level: torch.full_like(z, value)

    branches = {name: constant(value) for name, value in values.items()}
    guided = Guided(branches, conditioning.guidance(V2, request), levels=levels)
    level = NoiseLevel(levels.alpha[step : step + 1], levels.sigma[step : step + 1])
    image, text = (1, 1) if step == 11 else (3, 7.5)
    made = guided(torch.zeros(1, 16, 33, 2, 2), level)
    assert made.unique().tolist() == [1 + image * 9 + text * 90]


# -------------------------------------------------------------------------------- parameterisation


def test_sigma_min_is_in_the_target_and_not_in_the_estimate() -> None:
    x0, eps = torch.randn(2, 1, 3, 2, 2, 2)
    level = NoiseLevel(torch.tensor([0.3]), torch.tensor([0.7]))
    assert torch.allclose(process.VELOCITY.target(x0, eps, level), (1 - 1e-5) * eps - x0, atol=1e-7)
    z = level.add_noise(x0, eps)
    denoise = process.VELOCITY.denoiser(lambda _z, _level: eps - x0)
    assert torch.allclose(denoise(z, level), x0, atol=1e-5)
