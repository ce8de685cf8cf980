"""Spacings of timesteps and Karras's are those of diffusers' schedulers, given the same tables in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kinema.diffusion.schedules import (
    OF_TIMESTEPS,
    SPACINGS,
    CosineLogSNR,
    DiscreteBetas,
    EDMSigmas,
    NoiseLevel,
    RectifiedFlow,
    check_spacing,
    spaced,
)
from kinema.schema import BadRequest

diffusers = pytest.importorskip("diffusers")

BETAS = DiscreteBetas("scaled_linear", 0.00085, 0.012)
CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STEPS = (2, 7, 20, 30)
"""Not 1: diffusers' Euler and DDIM then begin at the cleanest timestep with linspace, which is of no use."""
MULTISTEP = (diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler)


def close(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(np.array(expected), dtype=torch.float64), rtol=1e-6, atol=1e-6)


def scheduler(kind: Any, steps: int, betas: DiscreteBetas = BETAS, **config: Any) -> Any:
    """A scheduler with our float64 table, after ``set_timesteps``."""
    made = kind(**CONFIG, steps_offset=1, **config)
    made.alphas_cumprod = betas.alphas_cumprod
    made.set_timesteps(steps)
    return made


def ratio(levels: NoiseLevel) -> Tensor:
    return levels.sigma / levels.alpha


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_spacings_are_those_of_euler(kind: str, spacing: str, steps: int) -> None:
    made = scheduler(getattr(diffusers, kind), steps, timestep_spacing=spacing)
    levels = spaced(BETAS, steps, spacing)
    close(ratio(levels), made.sigmas)
    found, expected = BETAS.timestep(levels.log_snr[:-1]), made.timesteps.double()
    # The network gets the timestep of linspace's sigma, which diffusers interpolates linearly, by its log-SNR.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2 if spacing == "linspace" else 1e-6)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("given", ["leading", "trailing", "linspace"])
def test_spacings_are_those_of_ddim(given: str, steps: int) -> None:
    made = scheduler(diffusers.DDIMScheduler, steps, timestep_spacing=given)
    levels = spaced(BETAS, steps, "respaced" if given == "linspace" else given)
    close(BETAS.timestep(levels.log_snr[:-1]), made.timesteps)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("given", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", MULTISTEP)
def test_open_spacings_are_those_of_multistep_solvers(kind: Any, given: str, steps: int) -> None:
    made = scheduler(kind, steps, timestep_spacing=given)
    levels = spaced(BETAS, steps, given if given == "trailing" else f"open-{given}")
    close(BETAS.timestep(levels.log_snr[:-1]), made.timesteps)
    close(ratio(levels), made.sigmas)


@pytest.mark.parametrize("steps", [7, 20, 30])
def test_linspace_differs_for_multistep_solvers(steps: int) -> None:
    """docs: with linspace their last step begins before the cleanest timestep, Euler's at it."""
    made = scheduler(MULTISTEP[0], steps, timestep_spacing="linspace")
    assert float((ratio(spaced(BETAS, steps, "linspace")) - made.sigmas).abs().max()) > 0.1


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_karras_is_between_the_ends_of_the_spacing_as_in_euler(kind: str, spacing: str, steps: int) -> None:
    made = scheduler(getattr(diffusers, kind), steps, timestep_spacing=spacing, use_karras_sigmas=True)
    levels = spaced(BETAS, steps, spacing, karras=True)
    repeated = kind.startswith("Heun")
    sigmas = torch.cat([made.sigmas[:1], made.sigmas[1:-1:2], made.sigmas[-1:]]) if repeated else made.sigmas
    close(ratio(levels), sigmas)
    if not repeated:
        torch.testing.assert_close(BETAS.timestep(levels.log_snr[:-1]), made.timesteps.double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("given", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", MULTISTEP)
def test_karras_of_multistep_solvers_is_over_the_whole_schedule(kind: Any, given: str, steps: int) -> None:
    made = scheduler(kind, steps, timestep_spacing=given, use_karras_sigmas=True)
    close(ratio(spaced(BETAS, steps, "karras")), made.sigmas)


def test_the_offset_moves_leading_spacing() -> None:
    made = diffusers.EulerDiscreteScheduler(**CONFIG, timestep_spacing="leading", steps_offset=0)
    made.set_timesteps(20)
    betas = DiscreteBetas("scaled_linear", 0.00085, 0.012, offset=0)
    close(betas.timestep(spaced(betas, 20, "leading").log_snr[:-1]), made.timesteps)


# ------------------------------------------------------------------------------------------ betas


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("count", [1000, 500])
def test_betas_are_those_of_diffusers(kind: Any, zero: bool, count: int) -> None:
    made = diffusers.DDIMScheduler(
        beta_schedule=kind, beta_start=0.001, beta_end=0.012, num_train_timesteps=count, rescale_betas_zero_snr=zero
    )
    found = DiscreteBetas(kind, 0.001, 0.012, count, zero_snr=zero).alphas_cumprod
    torch.testing.assert_close(found, made.alphas_cumprod.double(), rtol=0, atol=1e-6)


def test_trained_betas_are_used_as_they_are() -> None:
    trained = tuple(torch.linspace(0.002, 0.03, 200, dtype=torch.float64).tolist())
    made = diffusers.DDIMScheduler(trained_betas=list(trained), num_train_timesteps=200)
    found = DiscreteBetas("linear", 0.5, 0.6, 200, trained)
    torch.testing.assert_close(found.alphas_cumprod, made.alphas_cumprod.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trained": (0.1, 0.2)}, "there are 2 betas; expected 1000"),
        ({"trained": (0.1, 1.0), "count": 2}, "betas have values outside 0 to 1"),
        ({"kind": "sigmoid"}, "betas are 'sigmoid'; expected one of linear"),
    ],
)
def test_bad_betas_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        DiscreteBetas(**{"kind": "linear", "start": 0.001, "end": 0.01, **arguments})


@pytest.mark.parametrize("spacing", SPACINGS)
def test_zero_terminal_snr_begins_at_pure_noise(spacing: Any) -> None:
    betas = DiscreteBetas("scaled_linear", 0.00085, 0.012, zero_snr=True)
    levels = spaced(betas, 12, spacing)
    assert bool((levels.log_snr.diff() > 0).all())
    assert bool(levels.log_snr.isfinite().all())
    if "leading" not in spacing:
        assert (float(levels.alpha[0]), float(levels.sigma[0])) == (0, 1)
        assert float(betas.timestep(levels.log_snr[:1])) == 999
    timesteps = betas.timestep(levels.log_snr[:-1])
    if spacing in OF_TIMESTEPS:
        torch.testing.assert_close(timesteps, timesteps.round(), rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("spacing", OF_TIMESTEPS)
@pytest.mark.parametrize("schedule", [RectifiedFlow(), EDMSigmas(), CosineLogSNR()], ids=repr)
def test_spacings_of_timesteps_need_timesteps(schedule: Any, spacing: str) -> None:
    with pytest.raises(BadRequest, match=f"spacing {spacing} needs discrete timesteps, .* use uniform, linspace"):
        check_spacing(schedule, spacing)
    check_spacing(BETAS, spacing)


def test_two_ways_to_space_steps_are_refused() -> None:
    with pytest.raises(BadRequest, match="choose one"):
        spaced(BETAS, 10, "log-snr", karras=True)


@pytest.mark.parametrize(("steps", "spacing"), [(1001, "leading"), (1000, "open-linspace")])
def test_more_steps_than_timesteps_are_refused(steps: int, spacing: Any) -> None:
    with pytest.raises(BadRequest, match=f"steps is {steps}; expected at most 1000"):
        spaced(BETAS, steps, spacing)
