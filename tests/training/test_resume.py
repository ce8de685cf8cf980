"""Killed and interrupted runs resume exactly."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest
import torch

from kinema.checkpoints import files
from kinema.events import Note, TrainStep
from kinema.schema import BadRequest
from kinema.training import checkpoint
from kinema.training.options import TrainOptions
from kinema.training.run import train


def checkpoints(folder):
    return sorted(p.name for p in folder.glob("step-*"))


def same_tensors(first, second):
    a, b = files.read_tensors(first), files.read_tensors(second)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def whole(runs, small):
    """An uninterrupted run: (folder, losses by step)."""
    result, heard = runs[0](small("whole"))
    return result.folder, heard.losses


def test_resuming_after_kill_9_gives_the_losses_of_the_uninterrupted_run(runs, small, whole, tmp_path):
    folder, expected = whole
    code, before = runs[1](small("killed"), tmp_path / "losses", die_at=5)
    assert code == -signal.SIGKILL
    assert before == {step: expected[step] for step in range(1, 6)}
    assert checkpoints(tmp_path / "killed") == ["step-00000002.safetensors", "step-00000004.safetensors"]
    result, heard = runs[0](small("killed"))
    assert heard.losses == {step: expected[step] for step in (5, 6)}
    assert same_tensors(result.weights, folder / "model.safetensors")
    assert same_tensors(result.folder / "best.safetensors", folder / "best.safetensors")
    assert same_tensors(result.folder / checkpoint.name(6), folder / checkpoint.name(6))


def test_kill_9_while_writing_a_checkpoint_keeps_the_previous_one(runs, small, whole, tmp_path):
    code, _ = runs[1](small("killed"), tmp_path / "losses", die_writing="step-00000004.safetensors")
    assert code == -signal.SIGKILL
    run = tmp_path / "killed"
    assert checkpoints(run) == ["step-00000002.safetensors"]
    (torn,) = run.glob(".*.part")
    assert 0 < torn.stat().st_size < (run / "step-00000002.safetensors").stat().st_size
    _, heard = runs[0](small("killed"))
    assert heard.losses == {step: whole[1][step] for step in (3, 4, 5, 6)}
    assert not list(run.glob(".*.part"))


def test_a_truncated_checkpoint_is_renamed_and_the_previous_one_loads(runs, small, tmp_path):
    runs[0](small(steps=4))
    newest = tmp_path / "run" / "step-00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1000])
    _, heard = runs[0](small())
    assert any("cut short" in note and "step-00000004.damaged" in note for note in heard.notes)
    assert any("resuming from step 2" in note for note in heard.notes)
    assert list(heard.losses) == [3, 4, 5, 6]
    assert "step-00000004.safetensors" in checkpoints(tmp_path / "run")


def test_a_folder_with_only_damaged_checkpoints_is_refused(runs, small, tmp_path):
    runs[0](small(steps=2))
    (tmp_path / "run" / "step-00000002.safetensors").write_bytes(b"nothing")
    for _attempt in range(2):  # the second attempt finds the renamed file and must not restart
        with pytest.raises(BadRequest, match=r"only damaged checkpoints \(1\)"):
            runs[0](small())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves_and_the_run_resumes_exactly(small, heard, whole, tmp_path, number):
    def listen(event):
        heard(event)
        if isinstance(event, TrainStep) and event.index == 3:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    result = train(TrainOptions(**small(save_every=0)), listen)
    assert (result.step, result.interrupted) == (3, True)
    assert checkpoints(tmp_path / "run") == ["step-00000003.safetensors"]
    assert signal.getsignal(number) is before
    result = train(TrainOptions(**small()), heard)
    assert not result.interrupted
    assert heard.losses == whole[1]


def test_a_run_with_accumulation_and_activation_checkpointing_resumes_exactly(runs, small, heard):
    options = {"accumulate": 2, "checkpoint_activations": True}
    expected = runs[0](small("whole", **options))[1].losses

    def listen(event):
        heard(event)
        if isinstance(event, TrainStep) and event.index == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(TrainOptions(**small(**options)), listen).interrupted
    train(TrainOptions(**small(**options)), heard)
    assert heard.losses == expected


def test_a_second_signal_stops_immediately(small, tmp_path):
    def listen(event):
        if isinstance(event, TrainStep) and event.index == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(TrainOptions(**small()), listen)
    assert checkpoints(tmp_path / "run") == ["step-00000002.safetensors"]


def test_only_the_newest_checkpoints_are_kept(runs, small, tmp_path):
    runs[0](small(save_every=1, keep=3))
    assert checkpoints(tmp_path / "run") == [checkpoint.name(step) for step in (4, 5, 6)]


def test_steps_may_grow_and_may_shrink(runs, small):
    runs[0](small(steps=2))
    result, heard = runs[0](small(steps=4))
    assert (list(heard.losses), result.step) == ([3, 4], 4)
    result, heard = runs[0](small(steps=3))
    assert (list(heard.losses), result.step, result.interrupted) == ([], 4, False)
    assert any("all 3 steps are complete" in note for note in heard.notes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch": 3}, "batch 2, not 3"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"precision": "bf16"}, "precision fp32, not bf16"),
        ({"grammar": "full"}, "grammar mixed, not full"),
        ({"split": "train-v1"}, "split train, not train-v1"),
        ({"model": "zoetrope/base"}, "trains another zoetrope"),
        ({"model": "vdm/tiny"}, "trains zoetrope, not vdm"),
    ],
)
def test_resuming_with_incompatible_options_is_refused(runs, small, changes, sentence):
    runs[0](small(steps=1, validate_every=0))
    with pytest.raises(BadRequest, match=re.escape(sentence)):
        runs[0](small(**changes))


def test_a_run_from_before_the_split_continues_only_on_its_own_captions(runs, small, tmp_path):
    old = small(steps=2, split="train-v1", save_every=0, validate_every=0)
    runs[0](old)
    path = tmp_path / "run" / checkpoint.name(2)
    metadata = files.metadata(path)
    state = json.loads(metadata["kinema-training"])
    del state["data"]["split"]
    metadata["kinema-training"] = json.dumps(state)
    files.write_tensors(path, {k: v.clone() for k, v in files.read_tensors(path).items()}, metadata)
    with pytest.raises(BadRequest, match="split train-v1, not train;"):
        runs[0]({**old, "split": None, "steps": 3})
    assert list(runs[0]({**old, "steps": 3})[1].losses) == [3]


def test_a_checkpoint_without_batch_and_data_resumes(runs, small, whole, tmp_path):
    runs[0](small(save_every=4))
    path = tmp_path / "run" / checkpoint.name(4)
    metadata = files.metadata(path)
    kept = ("step", "seed", "precision", "best", "bad_steps", "ema_updates", "seconds", "history")
    state = checkpoint.peek(path)[0]
    metadata["kinema-training"] = json.dumps({k: getattr(state, k) for k in kept})
    files.write_tensors(path, {k: v.clone() for k, v in files.read_tensors(path).items()}, metadata)
    (tmp_path / "run" / checkpoint.name(6)).unlink()
    _, heard = runs[0](small())
    assert heard.losses == {step: whole[1][step] for step in (5, 6)}


def test_a_folder_with_other_files_is_refused_and_they_are_kept(tmp_path):
    (tmp_path / "options.json").write_text("mine")
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(BadRequest, match=r"holds model\.safetensors, which does not belong to a training run"):
        train(TrainOptions(model="vdm/tiny", steps=1, out=str(tmp_path)))
    assert (tmp_path / "model.safetensors").read_text() == "precious"
    (tmp_path / "options.json").write_text('{"recipe": {}}')
    for source in (tmp_path / "model.safetensors", tmp_path):
        with pytest.raises(BadRequest, match="the model to fine-tune"):
            train(TrainOptions(model=str(source), steps=1, out=str(tmp_path)))
    assert (tmp_path / "model.safetensors").read_text() == "precious"


def test_a_resumed_run_reports_changed_settings(tmp_path):
    options = {"model": "vdm/tiny", "out": str(tmp_path / "run"), "batch": 1, "validate_every": 0, "sample_every": 0}
    train(TrainOptions(**options, steps=1, learning_rate=0.5))
    events = []
    train(TrainOptions(**options, steps=2, learning_rate=0.25), events.append)
    notes = [e.message for e in events if isinstance(e, Note)]
    assert "learning rate 0.5 becomes 0.25 from step 1" in notes
    assert "steps 1 becomes 2 from step 1" in notes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"step": "four"}, "its step is 'four'"),
        ({"step": -1}, "its step is -1"),
        ({"ema_updates": None}, "its ema_updates is null; expected a whole number"),
        ({"history": 3}, "its history is 3"),
        ({"data": {"clips": 1}}, "its data is"),
        ({"seconds": "\x1b" * 10**5}, "its seconds is"),
        ({"later": 1}, "later version"),
    ],
)
def test_a_damaged_run_state_is_reported_in_one_sentence(tmp_path, changes, sentence):
    path = tmp_path / checkpoint.name(1)
    state = {**vars(checkpoint.State()), **changes}
    files.write_tensors(path, {"a": torch.zeros(1)}, {"kinema-training": json.dumps(state), "kinema-model": "{}"})
    with pytest.raises(BadRequest, match=sentence) as refused:
        checkpoint.peek(path)
    assert len(str(refused.value)) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda t: t.pop("rng"), "random generator"),
        (lambda t: t.update(rng=torch.zeros(3)), "random generator"),
        (lambda t: t.update({"optim.x": torch.zeros(1)}), "another optimiser"),
        (lambda t: t.update({"optim.0.99999.exp_avg": torch.zeros(1)}), "another optimiser"),
        (lambda t: [t.pop(k) for k in list(t) if k.endswith(".exp_avg")][:0] or t, "is incomplete"),
        (lambda t: t.update({k: v.long() for k, v in t.items() if k.startswith("raw.")}), "is torch.int64"),
        (lambda t: t.update({k: v.long() for k, v in t.items() if k.endswith(".exp_avg")}), "is torch.int64"),
        (lambda t: t.update({k: v.sum() for k, v in t.items() if k.endswith(".exp_avg")}), "with 0 dimensions"),
    ],
)
def test_damaged_checkpoint_tensors_are_refused(runs, small, tmp_path, damage, sentence):
    runs[0](small(steps=1, validate_every=0))
    path = tmp_path / "run" / checkpoint.name(1)
    tensors, metadata = {k: v.clone() for k, v in files.read_tensors(path).items()}, files.metadata(path)
    damage(tensors)
    files.write_tensors(path, tensors, metadata)
    with pytest.raises(BadRequest, match=sentence):
        runs[0](small(steps=2, validate_every=0))
