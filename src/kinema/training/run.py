"""The training loop: one function that reads top to bottom, its faults handled where they occur."""

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
from kinema.schema import BadRequest, Note, OnEvent, Phase, TrainStep, ignore
from kinema.system import Batch, System
from kinema.training import checkpoint, learning, optim, sheets
from kinema.training.options import TrainOptions
from kinema.training.place import check_new, claimed, stopping
from kinema.training.setup import Run, begin
from kinema.training.stream import ahead
from kinema.values import counted


@dataclass(frozen=True)
class TrainResult:
    """``folder`` of the run, ``weights`` (averaged, loadable), steps done, last loss, whether a signal cut it short."""

    folder: Path
    weights: Path
    step: int
    loss: float
    interrupted: bool


def train(options: TrainOptions, on_event: OnEvent = ignore) -> TrainResult:
    """Train, or resume the run that stands in ``options.out``.

    Resuming is exact: batches, noise and canvases are functions of (seed, step), and the checkpoint holds
    weights, average, optimiser state and generator, so the losses go on as if nothing had happened.
    Raises BadRequest for options that cannot be, a folder that cannot be written and a full disk; the
    last checkpoint then stands. Raises RuntimeError when ``max_bad_steps`` in a row were not finite.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    source, out = Path(options.model), Path(options.out).resolve()
    if source.exists() and out in (source.resolve(), source.resolve().parent):
        raise BadRequest(
            f"out is {options.out}, which holds {source.name}, the model to go on from; name another folder"
        )
    check_new(Path(options.out))
    with claimed(Path(options.out)) as folder, stopping() as stop:
        run = begin(options, folder, on_event)
        if run.system.device.type == "cpu":
            heap.keep()
        state, steps, told = run.state, run.recipe.steps, set[str]()
        if state.step < steps:  # else `begin` has said that there is nothing left to do
            on_event(
                Phase("train", f"{counted(steps, 'step')} of {counted(run.recipe.batch, 'clip')}, {state.precision}")
            )
        with closing(run.log), closing(ahead(run.stream, state.step, steps)) as batches:
            while state.step < steps and not stop:
                event = step(run, batches, on_event)
                if _due(options.validate_every, event):
                    event = replace(event, validation=validate(run))
                run.log.step(event, state)
                on_event(event)
                tell_skipped(run, told, on_event)
                if _due(options.save_every, event):
                    save(run)
                if _due(options.sample_every, event) and not stop:
                    asked = sheets.requests(folder, run.system, run.source)
                    with run.ema.applied(run.model):
                        sheets.draw(folder, run.system, run.model, asked, state.step, on_event)
            save(run)
        weights = learning.export_last(folder, run.ema.shadow, run.model, options, run.note)
        learning.export_parts(folder, run.ema.shadow, run.system, options)
    loss = math.nan if state.loss is None else state.loss
    return TrainResult(folder, weights, state.step, loss, interrupted=bool(stop) and state.step < steps)


def step(run: Run, batches: Iterator[Batch], on_event: OnEvent) -> TrainStep:
    """One optimiser step on the next batch; one whose loss or gradient is not finite changes no weight."""
    state, recipe, began = run.state, run.recipe, time.perf_counter()
    batch = next(batches)
    rate = optim.rate(state.step, recipe.steps, recipe.warmup, recipe.cooldown)
    for optimiser in run.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * rate * group.get("share", 1.0)
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
    return TrainStep(state.step, recipe.steps, loss, recipe.learning_rate * rate, norm, recipe.batch / took)


def gradients(run: Run, batch: Batch) -> tuple[float, float]:
    """Forward, backward and clipped gradients of one batch: (loss, gradient norm before clipping).

    A batch that is taken in parts has the same gradients, up to rounding: each part sees the noise of its own clips.
    """
    seed = run.state.seed * 1_000_003 + run.state.step
    loss = 0.0
    for part in batch.parts(run.options.accumulate):
        each = losses(run.model, run.system, part, seed=seed, precision=run.state.precision)
        mean = each.sum() / batch.count
        mean.backward()
        loss += float(mean.detach())
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.clip_norm)
    return loss, float(norm)


@torch.no_grad()
def validate(run: Run) -> float:
    """Mean loss of the averaged weights on fixed held-out clips with fixed noise; the best are exported."""
    state = run.state
    with run.ema.applied(run.model):
        each = [
            float(losses(run.model, run.system, batch, seed=i, precision=state.precision).mean())
            for i, batch in enumerate(run.validation)
        ]
    found = sum(each) / len(each)
    told = found if math.isfinite(found) else None
    state.history.append({"step": state.step, "seconds": state.seconds, "validation": told})
    if told is not None and (state.best is None or told < state.best):
        state.best = told
        learning.export(run.folder / "best.safetensors", run.ema.shadow, run.model, run.options, run.note)
    return found


def losses(network: nn.Module, system: System, batch: Batch, *, seed: int, precision: str) -> Tensor:
    """The family's loss of each clip, ``[B]``; noise levels and noise are a function of ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    if batch.first == 0:
        torch.manual_seed(seed)  # dropout draws from the global generator; later parts of a batch go on with it
    device = system.device
    moved = replace(
        batch,
        video=batch.video.to(device),
        mask=batch.mask.to(device),
        images=None if batch.images is None else batch.images.to(device),
        encoded=None if batch.encoded is None else {k: v.to(device) for k, v in batch.encoded.items()},
        weights=system.weights.path,
        encoders=system.weights.outside,
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return system.family.training.loss(network, system.config, moved, generator)


def save(run: Run) -> None:
    """A checkpoint of where the run stands, unless it is there."""
    if not (run.folder / checkpoint.name(run.state.step)).exists():
        checkpoint.save(run.folder, run.state, run.model, run.ema, run.optimisers, run.note, run.options.keep)


def tell_skipped(run: Run, told: set[str], on_event: OnEvent) -> None:
    """Say once what the sources left out."""
    for sentence in (*run.source.train.skipped, *run.source.held_out.skipped):
        if sentence not in told:
            told.add(sentence)
            on_event(Note(sentence))


def _due(every: int, event: TrainStep) -> bool:
    return bool(every) and (event.index % every == 0 or event.index == event.total)
