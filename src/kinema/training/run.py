"""The training loop: one function that reads top to bottom, its faults handled where they occur."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from kinema.schema import Note, OnEvent, Phase, TrainStep, ignore
from kinema.system import Batch, System
from kinema.training import checkpoint, optim, sheets
from kinema.training.options import TrainOptions
from kinema.training.place import claimed, stopping
from kinema.training.setup import Run, begin
from kinema.training.stream import ahead


@dataclass(frozen=True)
class TrainResult:
    """``folder`` of the run, ``weights`` (averaged, loadable), steps done, last loss, and whether a signal stopped it."""

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
    with claimed(Path(options.out)) as folder, stopping() as stop:
        run = begin(options, folder, on_event)
        state, steps = run.state, run.recipe.steps
        on_event(Phase("train", f"{steps} steps of {run.recipe.batch} clips, {state.precision}"))
        told = 0
        with closing(run.log), closing(ahead(run.stream, state.step, steps)) as batches:
            while state.step < steps and not stop:
                event = step(run, batches, on_event)
                if _due(options.validate_every, event):
                    event = replace(event, validation=look(run))
                run.log.step(event, state)
                on_event(event)
                told = tell_skipped(run, told, on_event)
                if _due(options.save_every, event):
                    save(run)
                if _due(options.sample_every, event) and not stop:
                    with run.ema.applied(run.model):
                        sheets.draw(folder, run.system, run.model, run.source.prompts, state.step, on_event)
        save(run)
        weights = checkpoint.export(folder / "model.safetensors", run.ema.shadow, run.note)
    loss = math.nan if state.loss is None else state.loss
    return TrainResult(folder, weights, state.step, loss, interrupted=bool(stop) and state.step < steps)
