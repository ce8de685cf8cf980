"""What an image model's single file says of its noise: in tensors, in metadata, or in a yaml file of the same name.

A network that predicts v looks like one that predicts noise; run as one, it gives a grey blur. Marks, strongest first:

- tensors without values: ``v_pred`` and ``ztsnr`` (ComfyUI, NoobAI);
- metadata: ``modelspec.prediction_type`` (Stability's specification), ``ss_v_parameterization`` and
  ``ss_zero_terminal_snr`` (kohya);
- ldm's config: ``parameterization``, ``timesteps``, ``linear_start`` and ``linear_end``; sgm's: ``scaling_config``.

The config also has the VAE's ``scale_factor``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kinema import bounds
from kinema.bounds import quoted
from kinema.schema import BadRequest

Predicts = Literal["eps", "x0", "v"]
NAMES: dict[str, Predicts] = {
    "eps": "eps", "epsilon": "eps", "v": "v", "v_prediction": "v", "vpred": "v", "x0": "x0", "sample": "x0",
}  # fmt: skip
WORDS = {"eps": "noise", "x0": "the clean image", "v": "v"}
EDM_MARKS = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
MARKS = ("v_pred", "ztsnr", *EDM_MARKS)
"""Tensors that are marks, not weights."""
YAML = (".yaml", ".yml")
MAX_SCALE = 1000
_LDM_ENDS = {"linear_start": 1e-4, "linear_end": 2e-2}
"""Betas that ldm takes where a config states only one of the two."""
_SCALINGS: dict[str, Predicts] = {"EpsScaling": "eps", "VScaling": "v"}


@dataclass(frozen=True)
class Declared:
    """What a file says; None where it says nothing."""

    predicts: Predicts | None = None
    zero_snr: bool = False
    timesteps: int | None = None
    ends: tuple[float, float] | None = None
    """First and last beta."""
    notes: tuple[str, ...] = ()
    latent_scale: float | None = None
    """What the VAE's latents are multiplied by."""


def declared(path: Path, names: Collection[str], metadata: Mapping[str, str]) -> Declared:
    """Collect what a file says. Raises `BadRequest` for an unknown prediction, and a yaml file that is not one."""
    if edm := [name for name in EDM_MARKS if name in names]:
        raise BadRequest(
            f"{path.name} was trained with EDM's preconditioning (it has {edm[0]}), which is not supported"
        )
    config = _beside(path)
    said = [*_in_tensors(names), *_in_metadata(path, metadata), *_in_config(config)]
    zero = "ztsnr" in names or _true(metadata.get("ss_zero_terminal_snr")) or config.get("zero_terminal_snr") is True
    if not said and not zero:
        return Declared(None, False, config.get("timesteps"), _ends(config), (), config.get("scale_factor"))
    predicts, where = said[0] if said else (None, "")
    notes = []
    if predicts not in (None, "eps") or zero:
        with_zero = " with zero terminal SNR" if zero else ""
        notes.append(f"{path.name} predicts {WORDS[predicts or 'eps']}{with_zero}, as {where or 'its marks'} says")
    notes += [
        f"{path.name} predicts {WORDS[value]} by {other}, which is ignored: {where} takes precedence"
        for value, other in said[1:]
        if value != predicts
    ]
    return Declared(predicts, zero, config.get("timesteps"), _ends(config), tuple(notes), config.get("scale_factor"))


def _in_tensors(names: Collection[str]) -> Iterator[tuple[Predicts, str]]:
    if "v_pred" in names:
        yield "v", "its tensor v_pred"


def _in_metadata(path: Path, metadata: Mapping[str, str]) -> Iterator[tuple[Predicts, str]]:
    if name := metadata.get("modelspec.prediction_type"):
        if name.lower() not in NAMES:
            raise BadRequest(
                f"{path.name} has modelspec.prediction_type {quoted(name)}; expected one of {', '.join(NAMES)}"
            )
        yield NAMES[name.lower()], "its metadata (modelspec.prediction_type)"
    if "ss_v_parameterization" in metadata:
        yield "v" if _true(metadata["ss_v_parameterization"]) else "eps", "its metadata (ss_v_parameterization)"


def _true(text: str | None) -> bool:
    return (text or "").strip().lower() in ("true", "1")


# ------------------------------------------------------------------------------------ the yaml file


def _beside(path: Path) -> dict[str, Any]:
    """The settings of a yaml file with the checkpoint's name, empty if there is none."""
    place = next((place for ending in YAML if (place := path.with_suffix(ending)).is_file()), None)
    if place is None:
        return {}
    text = bounds.decoded(bounds.read_bytes(place, bounds.MAX_CONFIG, "a model's config"), place.name)
    data = bounds.from_yaml(text, place.name)
    params = _table(_table(data, "model"), "params")
    found: dict[str, Any] = {"name": place.name}
    if (kind := params.get("parameterization")) is not None:
        if not isinstance(kind, str) or kind.lower() not in NAMES:
            raise BadRequest(f"{place.name} has parameterization {quoted(kind)}; expected eps, v or x0")
        found["predicts"] = NAMES[kind.lower()]
    scaling = _table(_table(_table(params, "denoiser_config"), "params"), "scaling_config").get("target")
    if isinstance(scaling, str):
        name = scaling.rpartition(".")[2]
        if name not in _SCALINGS:
            raise BadRequest(f"{place.name} has the scaling {quoted(name)}; expected one of {', '.join(_SCALINGS)}")
        found["predicts"] = _SCALINGS[name]
    found["zero_terminal_snr"] = any(params.get(key) is True for key in ("zero_terminal_snr", "zsnr"))
    numbers = dict.fromkeys(("linear_start", "linear_end", "scale_factor"), (int, float))
    for key, kinds in {"timesteps": (int,), **numbers}.items():
        value = params.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise BadRequest(f"{place.name} has {key} {quoted(value)}; expected a number")
        if key == "scale_factor" and not 0 < value < MAX_SCALE:
            raise BadRequest(f"{place.name} has scale_factor {quoted(value)}; expected a number from 0 to {MAX_SCALE}")
        found[key] = value
    if params.get("beta_schedule", "linear") != "linear":
        raise BadRequest(f"{place.name} has beta_schedule {quoted(params['beta_schedule'])}; expected linear")
    return found


def _in_config(config: Mapping[str, Any]) -> Iterator[tuple[Predicts, str]]:
    if "predicts" in config:
        yield config["predicts"], config["name"]


def _ends(config: Mapping[str, Any]) -> tuple[float, float] | None:
    if not config.keys() & _LDM_ENDS.keys():
        return None
    start, end = (float(config.get(name, default)) for name, default in _LDM_ENDS.items())
    return start, end


def _table(data: Any, name: str) -> Mapping[str, Any]:
    value = data.get(name) if isinstance(data, Mapping) else None
    return value if isinstance(value, Mapping) else {}
