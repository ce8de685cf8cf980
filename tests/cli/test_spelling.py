"""Options in messages, as the command line spells them."""

from __future__ import annotations

import pytest

from kinema import registry
from kinema.cli.main import main
from kinema.cli.spelling import spelled


@pytest.fixture(autouse=True)
def _loaded() -> None:
    registry.family("opensora")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("guidance_interval is 3; expected 2 numbers", "--guidance-interval is 3; expected 2 numbers"),
        ("prompt_spans is 3", "--prompt-at is 3"),
        ("steps is 0; expected 1 to 10000", "--steps is 0; expected 1 to 10000"),
        ("region is [1, 0, 1, 1]; expected left < right", "--region is [1, 0, 1, 1]; expected left < right"),
        ("motion_score is added to the prompt", "motion-score is added to the prompt"),
        ("opensora has no option 'decode_overlap'", "opensora has no option 'decode-overlap'"),
    ],
)
def test_names_of_options_are_those_of_the_command_line(message: str, shown: str) -> None:
    assert spelled(message) == shown


@pytest.mark.parametrize(
    "message",
    [
        "guidance_interval.mp4 is damaged",
        "clips/guidance_interval is a folder",
        "my-guidance_interval is not a model",
        "guidance_interval-2 is not a model",
        "scaling_factor of the vae is 3",
        "seconds is 3",
        "the number of steps is 3",
        "steps.mp4 is damaged",
        "end is 1 s and start is 9 s",
        "beta_start is 3",
    ],
)
def test_files_and_settings_of_checkpoints_keep_their_names(message: str) -> None:
    assert spelled(message) == message


def test_a_refused_option_is_named_as_it_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a ball", "--guidance-interval", "3,2"]) == 2
    assert capsys.readouterr().err.startswith("kinema: --guidance-interval is ")
    assert main(["train", "zoetrope/tiny", "--learning-rate", "-1"]) == 2
    assert capsys.readouterr().err.startswith("kinema: --learning-rate is -1")
