"""The scheduler of a diffusers folder, and the marks of a single file: noise levels, prediction, sampler and spacing.

Each setting is honoured, or named in a note, or refused where sampling would go wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_args

from kinema.bounds import first_names, quoted
from kinema.checkpoints.declared import NAMES, declared
from kinema.checkpoints.source import Source
from kinema.diffusion.schedules import BetaKind
from kinema.families.animatediff.config import Config
from kinema.schema import BadRequest, Spacing

CLASSES = {
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
}
"""diffusers' classes and the samplers that are the same."""
_MULTISTEP = ("dpmpp-2m", "dpmpp-sde", "unipc")
_CLIPS = ("DDIMScheduler", "DDPMScheduler")
"""Classes that clip x0 unless a folder says otherwise."""
_FROM_ZERO = (*(name for name in CLASSES if name not in ("DDIMScheduler", "LCMScheduler")), "LMSDiscreteScheduler")
"""Classes whose spacing is linspace unless a folder says otherwise; leading for the others."""
_SPACINGS: dict[str, Spacing] = {"leading": "leading", "trailing": "trailing", "linspace": "linspace"}
_USED = frozenset(
    "beta_start beta_end beta_schedule trained_betas num_train_timesteps prediction_type timestep_spacing steps_offset "
    "use_karras_sigmas rescale_betas_zero_snr clip_sample clip_sample_range algorithm_type".split()
)
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "set_alpha_to_one": (True,),
    "thresholding": (False,),
    "final_sigmas_type": ("zero",),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "use_flow_sigmas": (False,),
    "flow_shift": (1.0,),
    "use_dynamic_shifting": (False,),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "rho": (7.0,),
    "timestep_type": ("discrete",),
    "interpolation_type": ("linear",),
    "solver_order": (2,),
    "solver_type": ("midpoint", "bh2"),
    "predict_x0": (True,),
    "disable_corrector": ([],),
    "solver_p": (None,),
    "lower_order_final": (True,),
    "euler_at_final": (False,),
    "lambda_min_clipped": (None, float("-inf")),
    "variance_type": (None, "fixed_small"),
    "skip_prk_steps": (True, False),
    "dynamic_thresholding_ratio": (0.995,),
    "sample_max_value": (1.0,),
    "original_inference_steps": (50,),
    "timestep_scaling": (10.0,),
    "time_shift_type": ("exponential",),
    "shift_terminal": (None,),
}
"""Settings that Kinema does not have, and the values with which they change nothing."""


def scheduled(config: Config, source: Source) -> tuple[Config, tuple[str, ...]]:
    """Return the config with the folder's scheduler, and notes. Raises `BadRequest` for what it cannot follow."""
    settings = source.config("scheduler", "scheduler_config.json", infinite=True)
    if not settings:
        return config, ()
    where = f"{source.path}/scheduler"
    predicts = settings.get("prediction_type", "epsilon")
    if predicts not in ("epsilon", "v_prediction", "sample"):
        raise BadRequest(f"{where} has prediction_type {quoted(predicts)}; expected epsilon, v_prediction or sample")
    kind = settings.get("beta_schedule", config.betas[0])
    if kind not in get_args(BetaKind):
        raise BadRequest(f"{where} has beta_schedule {quoted(kind)}; expected one of {', '.join(get_args(BetaKind))}")
    trained = settings.get("trained_betas") or ()
    if not isinstance(trained, list | tuple) or not all(_is_number(beta) and 0 < beta < 1 for beta in trained):
        raise BadRequest(f"{where} has trained_betas {quoted(trained)}; expected a list of numbers from 0 to 1")
    values: dict[str, Any] = {
        "predicts": NAMES[predicts],
        "betas": (kind, *(_number(settings, f"beta_{end}", default, where) for end, default in _ends(config))),
        "trained_betas": tuple(map(float, trained)),
        "timesteps": _count(settings, "num_train_timesteps", len(trained) or 1000, where, least=2),
        "steps_offset": _count(settings, "steps_offset", 0, where),
        "karras": _flag(settings, "use_karras_sigmas", False, where),
        "zero_snr": _flag(settings, "rescale_betas_zero_snr", False, where),
    }
    if config.motion == "none":
        values |= {"image_betas": values["betas"], "image_trained_betas": values["trained_betas"]}
    name = str(settings.get("_class_name", ""))
    if _flag(settings, "clip_sample", name in _CLIPS, where):
        values["clip"] = _number(settings, "clip_sample_range", 1.0, where)
    sampler, notes = _sampler(config, settings, name)
    spacing = _spacing(settings, name, sampler, where)
    if values["karras"] and sampler in _MULTISTEP:
        spacing, values["karras"] = "karras", False
    config = replace(config, sampler=sampler, spacing=spacing, **values)
    check(config, where)
    return config, tuple(f"{source.path.name}'s scheduler {note}" for note in (*notes, *_unused(settings, config)))


def check(config: Config, where: str) -> None:
    """Raise BadRequest for betas that give no noise levels, and for noise prediction at pure noise (x0 undefined)."""
    for _kind, start, end in (config.betas, config.image_betas):
        if not (0 < start < 1 and 0 < end < 1):
            raise BadRequest(f"{where} has betas from {start:g} to {end:g}; expected numbers between 0 and 1")
    if config.zero_snr and config.predicts == "eps":
        raise BadRequest(f"{where} has zero terminal SNR but predicts noise, which is undefined at pure noise")


def marked(config: Config, source: Source) -> tuple[Config, tuple[str, ...]]:
    """Return the config with what a single file says of its noise (`kinema.checkpoints.declared`), and notes."""
    said = declared(source.path, source.header, source.metadata)
    values: dict[str, Any] = {}
    if said.predicts is not None:
        values["predicts"] = said.predicts
    if said.zero_snr:
        values |= {"zero_snr": True, "spacing": "trailing"}
    if said.timesteps is not None:
        values["timesteps"] = said.timesteps
    if said.ends is not None:
        values["betas"] = values["image_betas"] = (config.betas[0], *said.ends)
    if said.latent_scale is not None:
        values["latent_scale"] = float(said.latent_scale)
    config = replace(config, **values)
    check(config, source.path.name)
    return config, said.notes


def _sampler(config: Config, settings: Mapping[str, Any], name: str) -> tuple[str, tuple[str, ...]]:
    """The sampler that is the scheduler's class, or the config's with a note."""
    if name not in CLASSES:
        same = " (ddim with eta 1 is DDPM)" if name == "DDPMScheduler" else ""
        said = f"is {quoted(name)}, which Kinema does not have; its own default sampler is used{same}"
        return config.sampler, (said,) if name else ()
    algorithm = settings.get("algorithm_type", "dpmsolver++")
    if name == "DPMSolverMultistepScheduler" and algorithm != "dpmsolver++":
        if algorithm == "sde-dpmsolver++":
            return "dpmpp-sde", ()
        return "dpmpp-2m", (f"has algorithm_type {quoted(algorithm)}; Kinema samples with dpmpp-2m (dpmsolver++)",)
    return CLASSES[name], ()


def _spacing(settings: Mapping[str, Any], name: str, sampler: str, where: str) -> Spacing:
    """The spacing of diffusers' name for this class."""
    given = settings.get("timestep_spacing", "linspace" if name in _FROM_ZERO else "leading")
    if given not in _SPACINGS:
        raise BadRequest(f"{where} has timestep_spacing {quoted(given)}; expected one of {', '.join(_SPACINGS)}")
    if sampler in _MULTISTEP and given != "trailing":
        return cast(Spacing, f"open-{given}")
    if given == "linspace" and name not in _FROM_ZERO:
        return "respaced"
    return "trailing" if sampler == "lcm" else _SPACINGS[given]


def _unused(settings: Mapping[str, Any], config: Config) -> tuple[str, ...]:
    """Notes on settings without effect here."""
    notes = []
    if config.clip is not None:
        notes.append(f"clips x0 to ±{config.clip:g} (clip_sample); the noise follows the clipped x0")
    if config.sampler == "lcm":
        notes.append(
            "takes every 20th timestep (LCMScheduler); Kinema's trailing spacing differs by up to 20 timesteps"
        )
    known = {name: value for name, value in settings.items() if not name.startswith("_") and name not in _USED}
    differ = [
        f"{name} {quoted(value)}" for name, value in known.items() if not _same(value, _WITHOUT_EFFECT.get(name, ()))
    ]
    if differ:
        notes.append(f"has {first_names(differ[:3])}{', …' * (len(differ) > 3)}, which Kinema does not use")
    return tuple(notes)


def _same(value: Any, harmless: tuple[Any, ...]) -> bool:
    return any(type(value) is type(each) and value == each for each in harmless) or (
        _is_number(value) and any(_is_number(each) and value == each for each in harmless)
    )


def _ends(config: Config) -> tuple[tuple[str, float], tuple[str, float]]:
    return ("start", config.betas[1]), ("end", config.betas[2])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(settings: Mapping[str, Any], name: str, default: float, where: str) -> float:
    value = settings.get(name, default)
    if not _is_number(value) or not math.isfinite(value):
        raise BadRequest(f"{where} has {name} {quoted(value)}; expected a number")
    return float(value)


def _count(settings: Mapping[str, Any], name: str, default: int, where: str, least: int = 0) -> int:
    value = _number(settings, name, default, where)
    if value != int(value) or value < least:
        raise BadRequest(f"{where} has {name} {quoted(settings[name])}; expected a whole number from {least}")
    return int(value)


def _flag(settings: Mapping[str, Any], name: str, default: bool, where: str) -> bool:
    value = settings.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{where} has {name} {quoted(value)}; expected true or false")
    return value
