"""What a single file says of its noise."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema.checkpoints.declared import Declared, declared
from kinema.schema import BadRequest


def said(path: Path, *names: str, **metadata: str) -> Declared:
    return declared(path, names, {name.replace("__", "."): value for name, value in metadata.items()})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_a_file_without_marks_says_nothing(path: Path) -> None:
    assert said(path, "a.weight", format="pt") == Declared()


@pytest.mark.parametrize(
    ("names", "metadata", "predicts", "zero"),
    [
        (("v_pred",), {}, "v", False),
        (("v_pred", "ztsnr"), {}, "v", True),
        ((), {"modelspec__prediction_type": "v"}, "v", False),
        ((), {"modelspec__prediction_type": "epsilon"}, "eps", False),
        ((), {"ss_v_parameterization": "True", "ss_v2": "False"}, "v", False),
        ((), {"ss_v_parameterization": "False"}, "eps", False),
        ((), {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, "v", True),
    ],
)
def test_tensors_and_metadata_are_read(
    path: Path, names: tuple[str, ...], metadata: dict[str, str], predicts: str, zero: bool
) -> None:
    found = said(path, *names, **metadata)
    assert (found.predicts, found.zero_snr) == (predicts, zero)
    assert bool(found.notes) == (predicts == "v" or zero)


@pytest.mark.parametrize(
    ("text", "predicts"),
    [
        ("model:\n  params:\n    parameterization: v\n", "v"),
        ('model:\n  params:\n    parameterization: "v"\n', "v"),
        ("model:\n  params:\n    parameterization: eps\n", "eps"),
        (
            "model:\n  params:\n    denoiser_config:\n      params:\n        scaling_config:\n"
            "          target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n",
            "v",
        ),
        ("model:\n  params:\n    unet_config: {}\n", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_a_yaml_file_with_its_name_is_read(path: Path, suffix: str, text: str, predicts: str | None) -> None:
    path.with_suffix(suffix).write_text(text)
    assert said(path).predicts == predicts


def test_betas_and_timesteps_of_the_yaml_file_are_read(path: Path) -> None:
    path.with_suffix(".yaml").write_text(
        "model:\n  params:\n    linear_start: 0.001\n    linear_end: 0.02\n    timesteps: 500\n"
    )
    found = said(path)
    assert (found.ends, found.timesteps) == ((0.001, 0.02), 500)
    path.with_suffix(".yaml").write_text("model:\n  params:\n    linear_start: 0.001\n")
    assert said(path).ends == (0.001, 0.02)  # ldm's default of the other
    path.with_suffix(".yaml").write_text("model:\n  params:\n    linear_end: 0.01\n")
    assert said(path).ends == (0.0001, 0.01)


def test_the_scale_of_latents_of_the_yaml_file_is_read(path: Path) -> None:
    assert said(path).latent_scale is None
    path.with_suffix(".yaml").write_text("model: {params: {scale_factor: 0.13025, parameterization: v}}")
    assert said(path).latent_scale == 0.13025
    for value in ("-1", "0", "1.0e+300", ".inf", ".nan", "true", "[1]", "a"):
        path.with_suffix(".yaml").write_text(f"model: {{params: {{scale_factor: {value}}}}}")
        with pytest.raises(BadRequest):
            said(path)


def test_the_strongest_mark_counts_and_the_other_is_named(path: Path) -> None:
    path.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: eps\n")
    found = said(path, "v_pred", modelspec__prediction_type="epsilon")
    assert found.predicts == "v"
    assert len(found.notes) == 3
    assert "predicts noise by its metadata (modelspec.prediction_type), which is ignored" in found.notes[1]
    assert "predicts noise by model.yaml, which is ignored" in found.notes[2]


@pytest.mark.parametrize(
    ("names", "metadata", "message"),
    [
        (("edm_mean",), {}, "trained with EDM's preconditioning"),
        ((), {"modelspec__prediction_type": "flow"}, "has modelspec.prediction_type 'flow'; expected one of"),
    ],
)
def test_other_predictions_are_refused(
    path: Path, names: tuple[str, ...], metadata: dict[str, str], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        said(path, *names, **metadata)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{'bcdefgh'[i]}: &{'bcdefgh'[i]} [{', '.join(['*' + 'abcdefgh'[i]] * 9)}]\n" for i in range(7)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: " + "y" * 300_000, "model.yaml is .* at most"),
        (BOMB, "holds more than|values"),
        ("model: {params: {parameterization: !!python/object/apply:os.system [ls]}}", "is not YAML"),
        ("model: [unclosed", "is not YAML"),
        ("model:\n  params:\n    parameterization: flow\n", "has parameterization 'flow'; expected eps, v or x0"),
        ("model:\n  params:\n    parameterization: [v]\n", "has parameterization .*; expected eps, v or x0"),
        ("model:\n  params:\n    timesteps: many\n", "has timesteps 'many'; expected a number"),
        ("model:\n  params:\n    beta_schedule: cosine\n", "has beta_schedule 'cosine'; expected linear"),
    ],
    ids=["huge", "bomb", "code", "damaged", "unknown", "list", "text", "cosine"],
)
def test_a_hostile_or_unknown_yaml_file_is_refused(path: Path, text: str, message: str) -> None:
    path.with_suffix(".yaml").write_text(text)
    with pytest.raises(BadRequest, match=message):
        said(path)
