from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from kinema import registry
from kinema.cli.main import main

WORDS = ("train", "zoetrope/tiny", "--batch", "2", "--sample-every", "0", "--validate-every", "0", "--out", "run")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_train_prints_weights_that_generate_and_inspect_accept(capsys):
    assert main([*WORDS, "--steps", "2", "--quiet"]) == 0
    weights = capsys.readouterr().out.strip()
    assert Path(weights).is_file()
    assert main(["inspect", weights, "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["family"] == "zoetrope"
    assert page["tensors"] == page["network_tensors"]
    assert main(["generate", "a red ball", "-m", weights, "--steps", "1", "--quiet", "-o", "ball.mp4"]) == 0
    assert Path("ball.mp4").is_file()


def test_the_same_command_resumes_a_run(capsys):
    assert main([*WORDS, "--steps", "1", "--quiet"]) == 0
    capsys.readouterr()
    assert main([*WORDS, "--steps", "2", "--json-events"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["index"] for e in events if e["event"] == "trainstep"] == [2]
    assert events[-1]["event"] == "saved"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("train", "zoetrope/tinny"), "tiny"),
        (("train", "zoetrope/tiny", "--data", "nowhere", "--out", "run"), "nowhere"),
        (("train", "zoetrope/tiny", "--steps", "0", "--out", "run"), "steps"),
        (("train", "--stepz", "3"), "--steps"),
        (("train", "--precision", "fp8"), "fp32"),
        (("evaluate", "--prompts", "0"), "prompts"),
        (("evaluate", "zeotrope", "--prompts", "1"), "zoetrope"),
        (("evaluate", "--grammar", "latin"), "simple"),
    ],
)
def test_a_bad_request_is_one_line(words, part, capsys):
    assert main([*words, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert part in err


@dataclass(frozen=True)
class Result:
    """The part of an evaluation result that the command line uses."""

    partial: bool = False

    def table(self) -> str:
        return "colour 100 %"

    def to_json(self) -> str:
        return '{"colour": 1.0}'


@pytest.mark.parametrize(("partial", "code"), [(False, 0), (True, 130)])
def test_evaluate_prints_the_table_and_an_interrupted_one_exits_130(partial, code, capsys, monkeypatch):
    received = []
    resolve = registry.resolve

    def replacement(target: str):
        if target == "kinema.evaluation.run:evaluate":
            return lambda options, on_event: received.append(options) or Result(partial)
        return resolve(target)

    monkeypatch.setattr(registry, "resolve", replacement)
    assert main(["evaluate", "zoetrope", "--prompts", "3", "--quiet"]) == code
    assert capsys.readouterr().out == "colour 100 %\n"
    assert (received[0].model, received[0].prompts) == ("zoetrope", 3)
    assert main(["evaluate", "zoetrope", "--json-events"]) == code
    assert json.loads(capsys.readouterr().out) == {"event": "result", "colour": 1.0}


def test_a_dry_run_lists_the_runs_and_trains_nothing(capsys):
    assert main(["train", "--shipped", "svd-pocket", "--steps", "2", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "kinema train svd/pocket --out runs/svd-pocket/codec --steps 2 --stage codec --split train-v1"
    assert len(lines) == 2
    assert not Path("runs").exists()


def test_a_preset_that_takes_several_runs_is_trained_by_one_command(capsys):
    assert main(["train", "opensora/pocket", "--out", "runs/mine", "--seed", "2", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "kinema train opensora/pocket --out runs/mine/codec --stage codec --seed 2",
        "kinema train runs/mine/codec/model.safetensors --out runs/mine/flow --stage flow --seed 2",
    ]


def test_a_dry_run_with_json_events_prints_one_event_per_run(capsys):
    words = ["train", "--shipped", "svd-pocket", "--dry-run"]
    assert main(words) == 0
    commands = capsys.readouterr().out.splitlines()
    assert main([*words, "--json-events"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events == [{"event": "run", "command": command} for command in commands]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--dry-run"], "--shipped"),
        (["--shipped", "svd-pocket", "--camera", "pans left"], "camera is set by the runs"),
        (["zoetrope/base", "--shipped", "zoetrope", "--dry-run"], "model is set by the runs"),
    ],
)
def test_options_set_by_the_shipped_runs_are_refused(words, part, capsys):
    assert main(["train", *words, "--quiet"]) == 2
    assert part in capsys.readouterr().err
