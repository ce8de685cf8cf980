"""Options in messages, as the command line spells them and as the service names its fields."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import kinema
from kinema import registry
from kinema.cli.main import main
from kinema.spelling import named, typed


@pytest.fixture(autouse=True)
def _loaded() -> None:
    registry.family("opensora")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("guidance_interval is 3; expected 2 numbers", "--guidance-interval is 3; expected 2 numbers"),
        ("prompt_spans is 3", "--prompt-at is 3"),
        ("steps is 0; expected 1 to 10,000", "--steps is 0; expected 1 to 10,000"),
        ("overlap applies only to windows: leave it out", "--overlap applies only to windows: leave it out"),
        ("every needs super_resolution", "--every needs --super-resolution"),
        ("region is [1, 0, 1, 1]; expected left < right", "--region is [1, 0, 1, 1]; expected left < right"),
        ("motion_score is added to the prompt", "motion-score is added to the prompt"),
        ("opensora has no option 'decode_overlap'", "opensora has no option 'decode-overlap'"),
    ],
)
def test_names_of_options_are_those_of_the_command_line(message: str, shown: str) -> None:
    assert typed(message) == shown


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
    assert typed(message) == message


def test_a_refused_option_is_named_as_it_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a ball", "--guidance-interval", "3,2"]) == 2
    assert capsys.readouterr().err.startswith("kinema: --guidance-interval is ")
    assert main(["train", "zoetrope/tiny", "--learning-rate", "-1"]) == 2
    assert capsys.readouterr().err.startswith("kinema: --learning-rate is -1")


@pytest.mark.parametrize("option", [["--motion", "5"], ["--motion=5"]])
def test_an_option_of_a_family_is_named_as_it_was_typed(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a ball", *option]) == 2
    assert capsys.readouterr().err.startswith("kinema: zoetrope has no option --motion; ")
    assert main(["generate", "a ball", "--extra", "motion-bucket=5"]) == 2
    assert capsys.readouterr().err.startswith("kinema: zoetrope has no option 'motion-bucket'; ")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("give a --window shorter than the clip", "give a window shorter than the clip"),
        ("leave prompt spans (--prompt-at) out", "leave prompt spans (prompt_spans) out"),
        ("--keep is 3; keep fewer with --keep", "keep is 3; keep fewer with keep"),
        ("ball has 9 pixels; --max-pixels raises that", "ball has 9 pixels"),
        ("it has a; give it with --lora a, or its folder with --lora-folder FOLDER", "it has a; give it with loras a"),
        ("clip --frame.mp4 is damaged", "clip --frame.mp4 is damaged"),
        ("the prompt is '--window'", "the prompt is '--window'"),
        ("x is --unknown", "x is --unknown"),
    ],
)
def test_the_service_names_its_fields(message: str, shown: str) -> None:
    assert named(message) == shown


LOCAL = {"cli", "training", "evaluation", "data", "studio"}
"""Packages whose sentences only the command line shows."""
OPERATORS = {"store.py", "models.py", "security.py", "catalogue.py", "signatures.py", "convert.py", "verb_options.py"}
"""Modules whose sentences are for whoever starts the service or converts files."""


OPTION = re.compile("--(?!include )[a-z]")  # --include is an option of `hf download`


def sentences() -> Iterator[tuple[str, str]]:
    """All sentences that name an option as the command line does, with the module that has them."""
    root = Path(kinema.__file__).parent
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if place.parts[0] in LOCAL or place.name in OPERATORS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                for each in ast.walk(node):
                    text = _text(each)
                    if OPTION.search(re.sub("`[^`]*`", "", text)):
                        yield str(place), text


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_no_sentence_of_the_service_names_an_option_of_the_command_line() -> None:
    found = [*sentences()]
    assert len(found) > 50
    shown = {text: named(re.sub("`[^`]*`", "X", text)) for _, text in found}
    assert {text for text, here in shown.items() if OPTION.search(here)} == set()
