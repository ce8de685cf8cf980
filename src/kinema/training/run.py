"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kinema import heap
from kinema.events import Note, OnEvent, Phase, TrainStep, ignore
from kinema.schema import BadRequest
from kinema.system import Batch, System
from kinema.training import checkpoint, optim, outputs, trainable
from kinema.training.options import TrainOptions
from kinema.training.run_folder import check_new, claimed, stopping
from kinema.training.setup import VALIDATION_BATCHES, Run, begin
from kinema.training.stream import prefetch
from kinema.values import counted


@dataclass(frozen=True)
class TrainResult:
    """The run's ``folder``, averaged ``weights`` for `kinema.load`, steps, last loss, and if a signal stopped it."""

    folder: Path
    weights: Path
    step: int
    loss: float
    interrupted: bool


def train(options: TrainOptions, on_event: OnEvent = ignore) -> TrainResult:
    """Train, or resume the run in ``options.out``.

    Resuming is exact: batches, noise and canvases are functions of (seed, step), and the checkpoint holds weights,
    average, optimiser state and generator state. Raises BadRequest for invalid options, an unwritable folder or a
    full disk, keeping the last checkpoint. Raises RuntimeError after ``max_bad_steps`` consecutive non-finite steps.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    source, out = Path(options.model), Path(options.out).resolve()
    if source.exists() and out in (source.resolve(), source.resolve().parent):
        raise BadRequest(
            f"out is {options.out}, which holds {source.name}, the model to fine-tune; name another folder"
        )
    check_new(Path(options.out))
    with claimed(Path(options.out)) as folder, stopping() as stop:
        run = begin(options, folder, on_event)
        if run.system.device.type == "cpu":
            heap.keep()
        state, steps, reported = run.state, run.settings.steps, set[str]()
        if state.step < steps:  # else `begin` has reported that the run is complete
            batch = "buckets" if run.options.buckets else counted(run.settings.batch, "clip")
            on_event(Phase("train", f"{counted(steps, 'step')} of {batch}, {state.precision}"))
        with closing(run.log), closing(prefetch(run.stream, state.step, steps)) as batches:
            while state.step < steps and not stop:
                event = step(run, batches, on_event)
                if _due(options.validate_every, event):
                    event = validated(run, event, on_event)
                run.log.step(event, state)
                on_event(event)
                report_skipped(run, reported, on_event)
                if _due(options.save_every, event):
                    save(run)
                if _due(options.sample_every, event) and not stop:
                    requests = outputs.requests(folder, run.system, run.source)
                    with run.ema.applied(run.model):
                        outputs.write(folder, run.system, run.model, requests, state.step, on_event)
            save(run)
        weights = trainable.export_last(folder, run.ema.shadow, run.model, options, run.description)
        trainable.export_parts(folder, run.ema.shadow, run.system, options, run.description)
    loss = math.nan if state.loss is None else state.loss
    return TrainResult(folder, weights, state.step, loss, interrupted=bool(stop) and state.step < steps)


def step(run: Run, batches: Iterator[Batch], on_event: OnEvent) -> TrainStep:
    """Take one optimiser step on the next batch; it is skipped if the loss or gradient is not finite."""
    state, settings, began = run.state, run.settings, time.perf_counter()
    batch = next(batches)
    rate = optim.rate(state.step, settings.steps, settings.warmup, settings.cooldown)
    for optimiser in run.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * rate * group.get("share", 1.0)
    loss, norm = gradients(run, batch)
    if math.isfinite(loss) and math.isfinite(norm):
        for optimiser in run.optimisers:
            optimiser.step()
        run.ema.update(run.model)
        state.loss, state.bad_in_row = loss, 0
    else:
        on_event(Note(f"step {state.step + 1} skipped: loss {loss}, gradient norm {norm}"))
        state.loss, state.bad_steps, state.bad_in_row = None, state.bad_steps + 1, state.bad_in_row + 1
        if state.bad_in_row >= run.options.max_bad_steps:
            raise RuntimeError(f"{state.bad_in_row} steps in a row were not finite; the last checkpoint is kept")
    run.model.zero_grad(set_to_none=True)
    state.step += 1
    took = time.perf_counter() - began
    state.seconds += took
    lr, clips_per_second = settings.learning_rate * rate, batch.count / took
    return TrainStep(state.step, settings.steps, loss, lr, norm, clips_per_second, bucket=batch.bucket)


def gradients(run: Run, batch: Batch) -> tuple[float, float]:
    """Compute and clip the gradients of one batch; returns (loss, gradient norm before clipping).

    Splitting a batch into parts gives the same gradients up to rounding: each clip keeps its noise.
    """
    seed = run.state.seed * 1_000_003 + run.state.step
    loss = 0.0
    for part in batch.parts(run.options.accumulate):
        each = losses(run.model, run.system, part, seed=seed, precision=run.state.precision)
        mean = each.sum() / batch.count
        mean.backward()
        loss += float(mean.detach())
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.settings.clip_norm)
    return loss, float(norm)


def validated(run: Run, event: TrainStep, on_event: OnEvent) -> TrainStep:
    """The event with the held-out loss, and that by time if the family reports it."""
    loss, at = validate(run)
    if at:
        row = ", ".join(f"{time:.2f}: {each:.4g}" for time, each in at.items())
        on_event(Note(f"step {event.index}, held-out loss by time (0 clean, 1 noise): {row}"))
    return replace(event, validation=loss, validation_at=at or None)


def validate(run: Run) -> tuple[float, dict[float, float]]:
    """Mean loss of the averaged weights on fixed held-out clips with fixed noise, and that at each of the family's
    `Training.times`; exports the best weights.

    Conditions are not dropped.
    """
    state = run.state
    with run.ema.applied(run.model):
        loss, at = _held_out(run)
    finite = loss if math.isfinite(loss) else None
    state.history.append({"step": state.step, "seconds": state.seconds, "validation": finite})
    if finite is not None and (state.best is None or finite < state.best):
        state.best = finite
        trainable.export(run.folder / "best.safetensors", run.ema.shadow, run.model, run.options, run.description)
    return loss, at


@torch.no_grad()
def _held_out(run: Run) -> tuple[float, dict[float, float]]:
    """One batch at a time is in memory, and the family computes once what is the same at every time."""
    times = run.system.family.training.times(run.system.config)
    totals: dict[float | None, float] = dict.fromkeys([None, *times], 0.0)
    for i, batch in enumerate(prefetch(run.held_out, 0, VALIDATION_BATCHES)):
        fixed = replace(batch, drops=False, kept={} if times else None)
        for at in totals:
            each = losses(run.model, run.system, replace(fixed, time=at), seed=i, precision=run.state.precision)
            totals[at] += float(each.mean()) / VALIDATION_BATCHES
    return totals[None], {at: totals[at] for at in times}


def losses(network: nn.Module, system: System, batch: Batch, *, seed: int, precision: str) -> Tensor:
    """The family's loss of each clip, ``[B]``; noise levels and noise depend only on ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    if batch.first == 0:
        torch.manual_seed(seed)  # dropout uses the global generator; later parts of a batch continue its sequence
    device = system.device
    on_device = replace(
        batch,
        video=batch.video.to(device),
        mask=batch.mask.to(device),
        images=None if batch.images is None else batch.images.to(device),
        encoded=None if batch.encoded is None else {k: v.to(device) for k, v in batch.encoded.items()},
        weights=system.weights.place,
        encoders=system.weights.outside,
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return system.family.training.loss(network, system.config, on_device, generator)


def save(run: Run) -> None:
    """Write a checkpoint of the current step unless it exists."""
    if not (run.folder / checkpoint.name(run.state.step)).exists():
        checkpoint.save(run.folder, run.state, run.model, run.ema, run.optimisers, run.description, run.options.keep)


def report_skipped(run: Run, reported: set[str], on_event: OnEvent) -> None:
    """Report the sources' messages on skipped clips, each once."""
    for message in (*run.source.train.skipped, *run.source.held_out.skipped):
        if message not in reported:
            reported.add(message)
            on_event(Note(message))


def _due(every: int, event: TrainStep) -> bool:
    return bool(every) and (event.index % every == 0 or event.index == event.total)
