"""The same steps as diffusers' schedulers, on a toy noise predictor and the same levels.

diffusers keeps its tables in float32 and its Euler and Heun states as z / alpha; both show in the tolerances
and conversions here, and in nothing else.
"""

from __future__ import annotations

import pytest
import torch

from kinema.diffusion.noise import Noise
from kinema.diffusion.parameterise import EDM, EPS
from kinema.diffusion.samplers import SAMPLERS
from kinema.diffusion.schedules import DiscreteBetas, EDMSigmas, RectifiedFlow, custom, spaced

diffusers = pytest.importorskip("diffusers")

BETAS = DiscreteBetas("scaled_linear", 0.00085, 0.012)
CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (1, 2, 3, 4, 4)


@pytest.fixture
def start():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


def network(z, timestep):
    """A smooth eps(z, t), not a real denoiser, so that every term of a step matters."""
    t = float(timestep) / 1000
    return 0.8 * torch.sin(1.3 * z) * (0.3 + t) + 0.4 * z * t + 0.1


def denoise(z, level):
    eps = network(EPS.scalings(level)[2].reshape(-1, 1, 1, 1, 1) * z, BETAS.timestep(level.log_snr)[0])
    return EPS.x0(eps, z, level)


def run_vp(scheduler, steps, z, **own):
    """A scheduler whose state is z itself."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        z = scheduler.step(network(z, t), t, z, **own).prev_sample
    return z


def run_ve(scheduler, steps, z, alpha):
    """A scheduler whose state is z / alpha."""
    scheduler.set_timesteps(steps)
    x = z / alpha
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    return x


def close(own, reference):
    torch.testing.assert_close(own, reference.to(own), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_alphas_cumprod_are_diffusers(kind):
    reference = diffusers.DDIMScheduler(beta_schedule=kind, beta_start=0.00085, beta_end=0.012).alphas_cumprod
    torch.testing.assert_close(DiscreteBetas(kind, 0.00085, 0.012).alphas_cumprod.float(), reference, rtol=2e-5, atol=0)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [7, 20, 25])
def test_spacings_of_betas_are_diffusers_timesteps(spacing, steps):
    scheduler = diffusers.EulerDiscreteScheduler(**CONFIG, timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    levels = spaced(BETAS, steps, spacing)
    torch.testing.assert_close(BETAS.timestep(levels.log_snr[:-1]), scheduler.timesteps.double(), atol=2e-3, rtol=0)
    torch.testing.assert_close(levels.sigma / levels.alpha, scheduler.sigmas.double(), atol=1e-5, rtol=2e-4)


def test_karras_spacing_is_diffusers():
    scheduler = diffusers.EulerDiscreteScheduler(**CONFIG, use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    levels = spaced(BETAS, 12, "karras")
    torch.testing.assert_close(levels.sigma / levels.alpha, scheduler.sigmas.double(), atol=1e-5, rtol=1e-4)


def test_edm_sigmas_are_diffusers():
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
    scheduler.set_timesteps(18)
    levels = spaced(EDMSigmas(0.002, 80.0), 18, "karras")
    torch.testing.assert_close(levels.sigma, scheduler.sigmas.double(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_is_diffusers(spacing, start):
    scheduler = diffusers.DDIMScheduler(**CONFIG, clip_sample=False, timestep_spacing=spacing, steps_offset=1)
    own = SAMPLERS["ddim"](denoise, start, spaced(BETAS, 20, spacing), noise=Noise([0]))
    close(own, run_vp(scheduler, 20, start))


def test_ddim_with_eta_is_diffusers(start):
    scheduler = diffusers.DDIMScheduler(**CONFIG, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    noise, z = Noise([4]), start
    for t in scheduler.timesteps:
        z = scheduler.step(network(z, t), t, z, eta=0.7, variance_noise=noise.like(z)).prev_sample
    own = SAMPLERS["ddim"](denoise, start, spaced(BETAS, 10, "trailing"), noise=Noise([4]), eta=0.7)
    close(own, z)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_euler_is_diffusers(spacing, start):
    levels = spaced(BETAS, 20, spacing)
    scheduler = diffusers.EulerDiscreteScheduler(**CONFIG, timestep_spacing=spacing, steps_offset=1)
    own = SAMPLERS["euler"](denoise, start, levels, noise=Noise([0]))
    close(own, run_ve(scheduler, 20, start, levels.alpha[0]))


def test_euler_ancestral_is_diffusers(start):
    levels = spaced(BETAS, 20, "leading")
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**CONFIG, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(20)
    x, generator = start / levels.alpha[0], torch.Generator().manual_seed(4)
    for t in scheduler.timesteps:
        eps = network(scheduler.scale_model_input(x, t), t).float()  # their noise follows the output's precision
        x = scheduler.step(eps, t, x, generator=generator).prev_sample.double()
    close(SAMPLERS["euler-ancestral"](denoise, start, levels, noise=Noise([4])), x)


def test_heun_is_diffusers(start):
    levels = spaced(BETAS, 12, "linspace")
    scheduler = diffusers.HeunDiscreteScheduler(**CONFIG, timestep_spacing="linspace")
    own = SAMPLERS["heun"](denoise, start, levels, noise=Noise([0]))
    close(own, run_ve(scheduler, 12, start, levels.alpha[0]))


@pytest.mark.parametrize("steps", [6, 20])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_dpmpp_2m_is_diffusers(spacing, steps, start):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **CONFIG, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing=spacing, steps_offset=1
    )
    reference = run_vp(scheduler, steps, start)
    # Their multistep solvers divide "leading" by steps + 1, unlike their DDIM and Euler: take their own sigmas.
    levels = spaced(BETAS, steps, spacing) if spacing == "trailing" else custom(BETAS, sigmas=scheduler.sigmas.tolist())
    close(SAMPLERS["dpmpp-2m"](denoise, start, levels, noise=Noise([0])), reference)


def test_dpmpp_sde_is_diffusers(start):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **CONFIG, algorithm_type="sde-dpmsolver++", solver_order=2, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(12)
    noise, z = Noise([4]), start
    for t in scheduler.timesteps:
        z = scheduler.step(network(z, t), t, z, variance_noise=noise.like(z)).prev_sample
    own = SAMPLERS["dpmpp-sde"](denoise, start, spaced(BETAS, 12, "trailing"), noise=Noise([4]))
    close(own, z)


@pytest.mark.parametrize("steps", [6, 20])
def test_unipc_is_diffusers(steps, start):
    scheduler = diffusers.UniPCMultistepScheduler(
        **CONFIG, solver_order=2, solver_type="bh2", timestep_spacing="trailing", final_sigmas_type="zero"
    )
    own = SAMPLERS["unipc"](denoise, start, spaced(BETAS, steps, "trailing"), noise=Noise([0]))
    close(own, run_vp(scheduler, steps, start))


def test_lcm_is_diffusers_with_their_boundary_condition_in_the_denoiser(start):
    scheduler = diffusers.LCMScheduler(**CONFIG, original_inference_steps=50)
    scheduler.set_timesteps(4)
    z, generator = start.float(), torch.Generator().manual_seed(4)
    for t in scheduler.timesteps:
        z = scheduler.step(network(z, t), t, z, generator=generator).prev_sample

    def bounded(z, level):
        t, sigma_data = 10 * float(BETAS.timestep(level.log_snr)[0]), 0.5
        c_skip, c_out = sigma_data**2 / (t**2 + sigma_data**2), t / (t**2 + sigma_data**2) ** 0.5
        return c_skip * z + c_out * denoise(z, level)

    betas = BETAS.alphas_cumprod[scheduler.timesteps]
    levels = custom(BETAS, log_snrs=torch.logit(betas).tolist())
    close(SAMPLERS["lcm"](bounded, start, levels, noise=Noise([4])), z)
    assert float(SAMPLERS["lcm"](denoise, start, levels, noise=Noise([4])).sub(z).abs().max()) < 2e-4


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_rectified_flow_euler_is_diffusers(shift, start):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(10)
    z = start
    for t in scheduler.timesteps:
        z = scheduler.step(network(z, t), t, z, return_dict=False)[0]

    def flowing(z, level):
        return z - level.like(z)[1] * network(z, 1000 * float(level.sigma[0]))

    levels = custom(RectifiedFlow(), sigmas=scheduler.sigmas.tolist())
    close(SAMPLERS["euler"](flowing, start, levels, noise=Noise([0])), z)


def test_edm_euler_is_diffusers(start):
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    scheduler.set_timesteps(10)
    x = 80 * start
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), 500), t, x).prev_sample

    denoiser = EDM(0.5).denoiser(lambda z, level: network(z, 500))
    close(SAMPLERS["euler"](denoiser, 80 * start, spaced(EDMSigmas(0.002, 80.0), 10, "karras"), noise=Noise([0])), x)
