"""A folder's scheduler and a single file's marks: each setting is honoured, named or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kinema.checkpoints.source import Source
from kinema.diffusion.schedules import spaced
from kinema.families.animatediff.config import IMAGE, IMAGE_BETAS, V3, Config
from kinema.families.animatediff.files.folder import configs
from kinema.families.animatediff.files.scheduler import marked, scheduled
from kinema.families.animatediff.recipe import image_schedule_of, schedule_of
from kinema.schema import BadRequest

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def read(folder: Path, settings: dict[str, Any], config: Config = IMAGE) -> tuple[Config, tuple[str, ...]]:
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    return scheduled(config, Source(folder))


def test_a_folder_without_a_scheduler_keeps_the_defaults(tmp_path: Path) -> None:
    assert scheduled(IMAGE, Source(tmp_path)) == (IMAGE, ())


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", None])
@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("EulerDiscreteScheduler", "euler"),
        ("EulerAncestralDiscreteScheduler", "euler-ancestral"),
        ("DPMSolverMultistepScheduler", "dpmpp-2m"),
        ("UniPCMultistepScheduler", "unipc"),
        ("DDIMScheduler", "ddim"),
    ],
)
def test_class_spacing_and_karras_give_the_levels_of_diffusers(
    tmp_path: Path, name: str, sampler: str, spacing: str | None, karras: bool
) -> None:
    diffusers = pytest.importorskip("diffusers")
    settings: dict[str, Any] = {**BETAS, "steps_offset": 1}
    if spacing:
        settings["timestep_spacing"] = spacing
    if karras and "Ancestral" not in name and name != "DDIMScheduler":
        settings["use_karras_sigmas"] = True
    if name == "DDIMScheduler":
        settings["clip_sample"] = False
    config, notes = read(tmp_path, {"_class_name": name, **settings})
    assert (config.sampler, notes) == (sampler, ())
    made = getattr(diffusers, name)(**settings)
    schedule = schedule_of(config)
    made.alphas_cumprod = schedule.alphas_cumprod
    made.set_timesteps(20)
    levels = spaced(schedule, 20, config.spacing, karras=config.karras)
    if name == "DDIMScheduler":
        found, expected = schedule.timestep(levels.log_snr[:-1]), made.timesteps
    else:
        found, expected = levels.sigma / levels.alpha, made.sigmas
    torch.testing.assert_close(found, torch.as_tensor(np.array(expected)).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("count", [1000, 400])
def test_betas_and_timesteps_are_honoured_for_clips_and_frames(tmp_path: Path, kind: str, count: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    settings = {
        "beta_schedule": kind, "beta_start": 0.001, "beta_end": 0.01, "num_train_timesteps": count,
        "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "clip_sample": False,
    }  # fmt: skip
    config, notes = read(tmp_path, {"_class_name": "DDIMScheduler", **settings})
    assert (config.predicts, config.steps_offset, notes) == ("v", 0, ())
    expected = diffusers.DDIMScheduler(**settings).alphas_cumprod.double()
    for schedule in (schedule_of(config), image_schedule_of(config)):
        torch.testing.assert_close(schedule.alphas_cumprod, expected, rtol=0, atol=1e-6)


def test_trained_betas_are_honoured(tmp_path: Path) -> None:
    trained = torch.linspace(0.001, 0.02, 300, dtype=torch.float64).tolist()
    settings = {"_class_name": "EulerDiscreteScheduler", "trained_betas": trained, "num_train_timesteps": 300}
    config, _ = read(tmp_path, settings)
    assert schedule_of(config).trained == image_schedule_of(config).trained == tuple(trained)


def test_the_betas_of_a_folder_with_motion_are_those_of_clips(tmp_path: Path) -> None:
    config, _ = read(tmp_path, {"_class_name": "DDIMScheduler", **BETAS, "beta_end": 0.015, "clip_sample": False}, V3)
    assert config.betas == ("scaled_linear", 0.00085, 0.015)
    assert config.image_betas == IMAGE_BETAS


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"_class_name": "DDIMScheduler"}, 1.0),
        ({"_class_name": "DDIMScheduler", "clip_sample": True, "clip_sample_range": 2.5}, 2.5),
        ({"_class_name": "DDIMScheduler", "clip_sample": False}, None),
        ({"_class_name": "EulerDiscreteScheduler"}, None),
    ],
)
def test_clip_sample_is_honoured_and_noted(tmp_path: Path, settings: dict[str, Any], limit: float | None) -> None:
    config, notes = read(tmp_path, {**BETAS, **settings})
    assert config.clip == limit
    assert bool(notes) == (limit is not None)


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"_class_name": "PNDMScheduler"}, "scheduler is 'PNDMScheduler', which Kinema does not have"),
        ({"_class_name": "DDPMScheduler", "clip_sample": False}, "ddim with eta 1 is DDPM"),
        ({"set_alpha_to_one": False}, "has set_alpha_to_one False, which Kinema does not use"),
        ({"thresholding": True}, "has thresholding True"),
        ({"final_sigmas_type": "sigma_min"}, "has final_sigmas_type 'sigma_min'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "has solver_order 3"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "deis"}, "has algorithm_type 'deis'"),
        ({"use_exponential_sigmas": True}, "has use_exponential_sigmas True"),
        ({"invented": 1}, "has invented 1"),
    ],
)
def test_what_sampling_does_not_use_is_named(tmp_path: Path, settings: dict[str, Any], note: str) -> None:
    _, notes = read(tmp_path, {"_class_name": "EulerDiscreteScheduler", **BETAS, **settings})
    assert any(note in each for each in notes)


def test_settings_that_change_nothing_are_not_named(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    for name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        getattr(diffusers, name)(**BETAS).save_pretrained(tmp_path / "scheduler")
        assert scheduled(IMAGE, Source(tmp_path))[1] == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction'; expected epsilon, v_prediction"),
        ({"prediction_type": ["epsilon"]}, "prediction_type .*; expected epsilon"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'; expected one of linear"),
        ({"trained_betas": "many"}, "trained_betas 'many'; expected a list of numbers from 0 to 1"),
        ({"timestep_spacing": "odd"}, "timestep_spacing 'odd'; expected one of leading"),
        ({"trained_betas": [0.1, 2.0]}, "expected a list of numbers from 0 to 1"),
        ({"beta_end": float("inf")}, "beta_end inf; expected a number"),
        ({"beta_end": 1.2}, "betas from 0.00085 to 1.2; expected numbers between 0 and 1"),
        ({"beta_start": -0.1}, "betas from -0.1 to 0.012"),
        ({"beta_start": 0}, "betas from 0 to 0.012"),
        ({"num_train_timesteps": 1}, "num_train_timesteps 1; expected a whole number from 2"),
        ({"num_train_timesteps": 999.5}, "num_train_timesteps 999.5; expected a whole number"),
        ({"steps_offset": -1}, "steps_offset -1; expected a whole number from 0"),
        ({"beta_start": "0.1"}, "beta_start '0.1'; expected a number"),
        ({"use_karras_sigmas": 1}, "use_karras_sigmas 1; expected true or false"),
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR but predicts noise"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        read(tmp_path, {"_class_name": "EulerDiscreteScheduler", **BETAS, **settings})


@pytest.mark.parametrize("count", [99, 10_001])
def test_a_wrong_number_of_trained_betas_is_refused(tmp_path: Path, count: int) -> None:
    from kinema.checkpoints.settings import validated

    config, _ = read(tmp_path, {"_class_name": "EulerDiscreteScheduler", "trained_betas": [0.1] * count, **{
        "num_train_timesteps": 1000}})  # fmt: skip
    with pytest.raises(BadRequest, match=r"there are 99 betas; expected 1000|10,001 entries; expected 10,000 at most"):
        schedule_of(validated(config, "the config"))


# ------------------------------------------------------------------------------------ single files


@pytest.mark.parametrize("predicts", ["eps", "v", "x0"])
@pytest.mark.parametrize("zero", [False, True])
def test_the_written_scheduler_says_what_the_config_does(tmp_path: Path, predicts: Any, zero: bool) -> None:
    if zero and predicts == "eps":
        return
    config = replace(IMAGE, predicts=predicts, zero_snr=zero, spacing="trailing" if zero else "leading")
    found, _ = read(tmp_path, configs(config)["scheduler/scheduler_config.json"])
    names = ("predicts", "zero_snr", "spacing", "betas", "image_betas", "steps_offset", "timesteps", "clip", "sampler")
    assert {name: getattr(found, name) for name in names} == {name: getattr(config, name) for name in names}


def test_betas_of_a_yaml_file_are_used(tmp_path: Path) -> None:
    from kinema.checkpoints.files import write_tensors

    write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)})
    (tmp_path / "a.yaml").write_text("model: {params: {linear_start: 0.001, linear_end: 0.02, timesteps: 500}}")
    config, _ = marked(IMAGE, Source(tmp_path / "a.safetensors"))
    assert config.betas == config.image_betas == ("scaled_linear", 0.001, 0.02)
    assert schedule_of(config).count == 500
    assert config.latent_scale == IMAGE.latent_scale
    (tmp_path / "a.yaml").write_text("model: {params: {scale_factor: 0.5}}")
    assert marked(IMAGE, Source(tmp_path / "a.safetensors"))[0].latent_scale == 0.5
    (tmp_path / "a.yaml").write_text("model: {params: {linear_start: 0.001, linear_end: 2.0}}")
    with pytest.raises(BadRequest, match=r"a.safetensors has betas from 0.001 to 2; expected numbers between 0 and 1"):
        marked(IMAGE, Source(tmp_path / "a.safetensors"))
