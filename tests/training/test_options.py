"""Invalid options are refused by name before anything is opened."""

from __future__ import annotations

import math

import pytest

from kinema.schema import BadRequest
from kinema.training.options import TrainOptions


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"batch": -1},
        {"learning_rate": math.nan},
        {"learning_rate": 0.0},
        {"seed": -1},
        {"seed": 2**31},
        {"keep": 0},
        {"threads": 0},
        {"save_every": -1},
        {"max_bad_steps": 0},
        {"precision": "fp8"},
        {"grammar": "loud"},
        {"data": "clips", "crop": "left"},
        {"data": "clips", "frameskip": 0},
    ],
    ids=str,
)
def test_an_invalid_option_is_refused_by_name(options):
    with pytest.raises(BadRequest, match=list(options)[-1]):
        TrainOptions(**options)


@pytest.mark.parametrize("options", [{"frameskip": 2}, {"flip": True}, {"crop": "random"}], ids=str)
def test_options_of_real_clips_are_refused_with_playroom(options):
    with pytest.raises(BadRequest, match="applies only to real clips"):
        TrainOptions(**options)
    assert TrainOptions(data="clips", **options)


@pytest.mark.parametrize("options", [{"grammar": "full"}, {"split": "train-v1"}], ids=str)
def test_options_of_playroom_are_refused_with_real_clips(options):
    with pytest.raises(BadRequest, match=f"{list(options)[0]} applies only to playroom"):
        TrainOptions(data="clips", **options)


def test_training_on_evaluation_prompts_only_is_refused():
    with pytest.raises(BadRequest, match="split is 'evaluation'; expected one of train, train-v1"):
        TrainOptions(split="evaluation")
