"""The training loop: non-finite steps, loss, precision, weight files and faults."""

from __future__ import annotations

import json
import math
import resource
from dataclasses import replace

import pytest
import torch

from kinema import processor
from kinema.checkpoints import files
from kinema.events import TrainStep
from kinema.nn.linear import Linear
from kinema.schema import BadRequest
from kinema.system import open_system
from kinema.training import checkpoint, setup
from kinema.training import run as loop
from kinema.training.options import TrainOptions


@pytest.fixture
def ready(small, tmp_path, heard):
    """A run before its first step."""
    run = setup.begin(TrainOptions(**small()), tmp_path, heard)
    yield run
    run.log.close()


def weights(run):
    return {k: v.detach().clone() for k, v in run.model.state_dict().items()}


def equal(first, second):
    return all(torch.equal(first[k], second[k]) for k in first)


# ------------------------------------------------------------------------------- non-finite steps


def test_a_step_with_a_non_finite_loss_is_skipped_and_reported(ready, heard):
    loop.step(ready, iter([ready.stream.at(0)]), heard)
    before, average, updates = weights(ready), dict(ready.ema.shadow), ready.ema.updates
    bad = ready.stream.at(1)
    bad.video[0, 0, 0, 0, 0] = math.nan
    event = loop.step(ready, iter([bad]), heard)
    assert math.isnan(event.loss)
    assert "step 2 skipped: loss nan" in heard.notes[-1]
    assert equal(before, weights(ready))
    assert equal(average, ready.ema.shadow)
    assert (ready.ema.updates, ready.state.step, ready.state.bad_steps) == (updates, 2, 1)
    assert all(p.grad is None for p in ready.model.parameters())
    assert math.isfinite(loop.step(ready, iter([ready.stream.at(2)]), heard).loss)
    assert (ready.state.bad_steps, ready.state.bad_in_row) == (1, 0)


def test_a_step_with_a_non_finite_gradient_is_skipped(ready, heard):
    before = weights(ready)
    victim = next(iter(ready.model.parameters()))
    hook = victim.register_hook(lambda grad: grad * math.inf)
    event = loop.step(ready, iter([ready.stream.at(0)]), heard)
    hook.remove()
    assert math.isfinite(event.loss)
    assert not math.isfinite(event.grad_norm)
    assert equal(before, weights(ready))
    assert "skipped" in heard.notes[-1]


def test_too_many_bad_steps_in_a_row_end_the_run_and_keep_the_last_checkpoint(runs, small, monkeypatch, tmp_path):
    losses = loop.losses

    def failing(*args, seed, **kwargs):
        return losses(*args, seed=seed, **kwargs) * (math.nan if seed >= 2 else 1)

    monkeypatch.setattr(loop, "losses", failing)
    with pytest.raises(RuntimeError, match="3 steps in a row were not finite"):
        runs[0](small(max_bad_steps=3, validate_every=0, save_every=1, steps=9))
    assert checkpoint.peek(sorted(tmp_path.glob("run/step-*"))[-1])[0].bad_in_row == 2


def test_the_log_stays_json_when_a_loss_is_not_finite(runs, small, monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "losses", lambda *a, **k: torch.full((2,), math.nan, requires_grad=True))
    runs[0](small(steps=2, validate_every=1, save_every=0))

    def refuse(word):
        raise AssertionError(word)

    rows = [json.loads(r, parse_constant=refuse) for r in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2]
    state = files.metadata(tmp_path / "run" / checkpoint.name(2))["kinema-training"]
    assert json.loads(state, parse_constant=refuse)["history"][0]["validation"] is None


def test_a_non_finite_part_skips_the_whole_batch(ready, heard):
    run = replace(ready, options=replace(ready.options, accumulate=2))
    before, bad = weights(run), run.stream.at(0)
    bad.video[0, 0, 0, 0, 0] = math.nan  # in the first clip; the second alone would change weights
    event = loop.step(run, iter([bad]), heard)
    assert math.isnan(event.loss)
    assert equal(before, weights(run))
    assert (run.state.step, run.state.bad_steps) == (1, 1)


# ------------------------------------------------------------------------- loss, rate, precision


def test_the_rate_counts_the_clips_of_all_parts(ready, heard, monkeypatch):
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))
    run = replace(ready, options=replace(ready.options, accumulate=2))
    assert loop.step(run, iter([run.stream.at(0)]), heard).rate == ready.settings.batch / 2


def test_accumulate_must_divide_the_batch(small):
    with pytest.raises(BadRequest, match="accumulate is 3; expected a divisor of the batch of 2 clips"):
        setup.prepare(TrainOptions(**small(accumulate=3)))


def test_loss_falls_when_one_batch_is_repeated(ready, heard):
    batch, settings = ready.stream.at(0), replace(ready.settings, warmup=1, steps=1000)
    batch.mask.zero_()
    fixed = replace(ready, settings=settings)

    @torch.no_grad()
    def measure():
        return float(loop.losses(ready.model, ready.system, batch, seed=5, precision="fp32").mean())

    first = measure()
    for _ in range(40):
        loop.step(fixed, iter([batch]), heard)
    assert measure() < first / 2


def test_gradients_are_clipped_to_the_norm_of_the_settings(ready):
    run = replace(ready, settings=replace(ready.settings, clip_norm=1e-3))
    _, before = loop.gradients(run, ready.stream.at(0))
    after = torch.stack([p.grad.norm() for p in ready.model.parameters() if p.grad is not None]).norm()
    assert before > 1e-3
    assert float(after) == pytest.approx(1e-3, rel=1e-3)


def test_validation_uses_the_averaged_weights_and_restores_the_raw_ones(ready, heard):
    for i in range(3):
        loop.step(ready, iter([ready.stream.at(i)]), heard)
    before = weights(ready)
    validation, _ = loop.validate(ready)
    assert equal(before, weights(ready))
    assert ready.model.training

    def mean(model):
        with torch.no_grad():
            batches = enumerate(ready.held_out.at(i) for i in range(setup.VALIDATION_BATCHES))
            each = [loop.losses(model, ready.system, b, seed=i, precision="fp32").mean() for i, b in batches]
        return float(torch.stack(each).double().mean())

    assert validation != pytest.approx(mean(ready.model.eval()), rel=1e-6)
    ready.model.load_state_dict(ready.ema.shadow)
    assert validation == pytest.approx(mean(ready.model.eval()), rel=1e-6)


def test_best_holds_the_averaged_weights_of_the_lowest_validation(runs, small, monkeypatch, tmp_path):
    """With validation losses 3, 1, 2 the file is from the second."""
    losses, scores = loop.losses, {2: 3.0, 4: 1.0, 6: 2.0}
    best = {}

    def listen(event):
        if isinstance(event, TrainStep) and event.validation is not None:
            best[event.index] = {k: v.clone() for k, v in files.read_tensors(tmp_path / "run/best.safetensors").items()}

    def scored(model, system, batch, *, seed, precision):
        if model.training:
            return losses(model, system, batch, seed=seed, precision=precision)
        return torch.tensor([scores[2 * (len(best) + 1)]])

    monkeypatch.setattr(loop, "losses", scored)
    result, _ = runs[0](small(validate_every=2), listen)
    assert not equal(best[2], best[4])
    assert equal(best[4], best[6])
    assert not equal(best[6], files.read_tensors(result.weights))


def test_bf16_autocast_runs_matrix_products_in_bf16(runs, small, monkeypatch):
    kinds = set()
    linear = Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda self, x: (y := linear(self, x), kinds.add(y.dtype))[0])
    _, heard = runs[0](small(steps=2, precision="bf16", validate_every=2))
    assert torch.bfloat16 in kinds
    assert all(math.isfinite(x) for loss in heard.losses.values() for x in loss if x is not None)


def test_precision_is_bf16_only_if_requested_or_fast(monkeypatch):
    cpu = torch.device("cpu")
    assert setup.precision("bf16", cpu) == "bf16"
    for capabilities, expected in (
        ({}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_tile": True}, "bf16"),
        ({"bf16": True}, "fp32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert setup.precision("auto", cpu) == expected


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_precision_on_an_accelerator_is_bf16_if_native(kind, native, monkeypatch):
    monkeypatch.setattr(processor, "_has_bfloat16", lambda device: native)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": True}, raising=False)  # the host's
    assert setup.precision("auto", torch.device(kind)) == ("bf16" if native else "fp32")


def test_joint_training_gives_the_family_independent_images(runs, small, monkeypatch):
    batches = []
    family = open_system("vdm/tiny").family
    loss = family.training.loss

    def recorded(model, config, batch, generator):
        batches.append(batch)
        return loss(model, config, batch, generator)

    monkeypatch.setattr(family.training, "loss", recorded)
    _, heard = runs[0](small(model="vdm/tiny", steps=2, validate_every=0))
    assert batches[0].images.shape[:3] == (2, 2, 3)
    assert [len(row) for row in batches[0].image_captions] == [2, 2]
    assert all(math.isfinite(loss) for loss, *_ in heard.losses.values())


# -------------------------------------------------------------------------------- weights, faults


def test_the_exported_model_opens_with_the_averaged_weights(runs, small, tmp_path):
    result, _ = runs[0](small(steps=2))
    opened = open_system(result.weights)
    stored = files.read_tensors(tmp_path / "run" / checkpoint.name(2))
    assert opened.config == open_system("zoetrope/tiny").config
    for name, value in opened.model.state_dict().items():
        torch.testing.assert_close(value, stored[f"ema.{name}"].half().float(), atol=0, rtol=0)


def test_fine_tuning_starts_from_a_weight_file_and_keeps_it(runs, small, tmp_path, heard):
    first, _ = runs[0](small(steps=2))
    bytes_before = first.weights.read_bytes()
    run = setup.begin(TrainOptions(**small("tuned", model=str(first.weights))), tmp_path, heard)
    run.log.close()
    weights = files.read_tensors(first.weights)
    assert all(torch.equal(v, weights[k].float()) for k, v in run.model.state_dict().items())
    result, heard = runs[0](small("tuned", model=str(first.weights), steps=2, learning_rate=1e-4))
    assert result.step == 2
    assert first.weights.read_bytes() == bytes_before
    result, heard = runs[0](small("tuned", model=str(first.weights), steps=3, learning_rate=1e-4))
    assert list(heard.losses) == [3]


def test_a_training_checkpoint_as_the_model_is_refused(runs, small, tmp_path):
    runs[0](small(steps=1))
    with pytest.raises(BadRequest, match="is a checkpoint of a training run"):
        runs[0](small("other", model=str(tmp_path / "run" / checkpoint.name(1))))


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(small, runs, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def listen(event):
        if isinstance(event, TrainStep) and event.index == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    try:
        with pytest.raises(BadRequest, match="is full: step-00000004.safetensors was not written"):
            runs[0](small(validate_every=0), listen)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run = tmp_path / "run"
    assert [p.name for p in run.glob("*.safetensors")] == ["step-00000002.safetensors"]
    assert not list(run.glob(".*.part"))
    result, heard = runs[0](small())
    assert list(heard.losses) == [3, 4, 5, 6]


def test_old_checkpoints_are_deleted_only_after_the_new_one_is_written(runs, small, monkeypatch, tmp_path):
    write = files.write_tensors

    def full(path, *rest):
        if path.name == checkpoint.name(4):
            raise BadRequest("full")
        write(path, *rest)

    monkeypatch.setattr(files, "write_tensors", full)
    with pytest.raises(BadRequest, match="full"):
        runs[0](small(keep=1))
    assert (tmp_path / "run" / checkpoint.name(2)).is_file()


def test_skipped_clips_are_reported_once(ready, heard):
    class Source:
        skipped = ("skipped a.mp4: damaged",)

    run, reported = replace(ready, source=replace(ready.source, train=Source())), set()
    for _ in range(3):
        loop.report_skipped(run, reported, heard)
    assert heard.notes == ["skipped a.mp4: damaged"]
