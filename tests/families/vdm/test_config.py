from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kinema.data import playroom
from kinema.families.vdm.config import from_json, presets, to_json
from kinema.families.vdm.model import VideoUNet
from kinema.schema import BadRequest

PARAMETERS = {
    "ucf101": 1_141_615_107,
    "bair": 132_180_483,
    "kinetics": 1_141_615_107,
    "text-small": 288_663_299,
    "text-large": 1_146_865_155,
    "text-128": 1_134_510_339,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_paper_presets_have_the_recorded_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = VideoUNet(presets()[name])
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(("name", "least", "most"), [("tiny", 50_000, 200_000), ("pocket", 4_000_000, 5_000_000)])
def test_kinema_presets_stay_within_their_size(name: str, least: int, most: int) -> None:
    with torch.device("meta"):
        model = VideoUNet(presets()[name])
    assert least < sum(p.numel() for p in model.parameters()) < most


@pytest.mark.parametrize("name", presets())
def test_a_config_round_trips_through_json(name: str) -> None:
    config = presets()[name]
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_the_pocket_vocabulary_covers_the_playroom() -> None:
    assert set(presets()["pocket"].words) == set(playroom.vocabulary())


def test_paper_presets_attend_at_8_16_and_32() -> None:
    for name in PARAMETERS:
        config = presets()[name]
        sides = [config.side // 2**i for i in range(len(config.widths))]
        assert [side for i, side in enumerate(sides) if config.attends(i)] == [32, 16, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 7}, "multiple of head_dim 7"),
        ({"side": 18}, "multiple of 4"),
        ({"words": ()}, "words"),
        ({"classes": ("jump",)}, "both text"),
    ],
)
def test_an_invalid_config_is_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        replace(presets()["tiny"], **changes)


def test_an_unknown_setting_is_rejected_by_name() -> None:
    with pytest.raises(BadRequest, match="flux_capacitor"):
        from_json({**to_json(presets()["tiny"]), "flux_capacitor": 1})


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan")])
def test_a_shift_that_is_not_positive_is_refused(shift: float) -> None:
    with pytest.raises(BadRequest, match="shift is .*; expected a positive number"):
        replace(presets()["tiny"], shift=shift)


def test_an_image_model_takes_no_further_images() -> None:
    tiny = presets()["tiny"]
    with pytest.raises(BadRequest, match="both per_frame and images"):
        replace(tiny, training=replace(tiny.training, per_frame=True, images=2))
