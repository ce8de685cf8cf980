"""Outputs of a run for people: a log of losses (JSON lines and TensorBoard) and sample sheets."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from kinema.atomic import replacing
from kinema.checkpoints.files import RUN_OPTIONS
from kinema.events import Note, OnEvent, TrainStep
from kinema.generate import generate
from kinema.media.write import contact_sheet, save_clip
from kinema.schema import BadRequest, Clip, Request
from kinema.system import System, TrainingSettings, with_model
from kinema.training.checkpoint import State
from kinema.training.options import TrainOptions
from kinema.training.run_folder import trim_log
from kinema.training.sources import Source

_EVERY, _AT = 10, "validation_at"


class Log:
    """Writes ``options.json``, ``log.jsonl`` and, if TensorBoard is installed, its events.

    A resumed run continues its log after ``step``; later rows are deleted, since those steps are repeated.
    """

    def __init__(self, folder: Path, options: TrainOptions, settings: TrainingSettings, step: int) -> None:
        with replacing(folder / RUN_OPTIONS) as part:
            part.write_text(json.dumps({"options": asdict(options), "recipe": asdict(settings)}, indent=2))
        trim_log(folder / "log.jsonl", step)
        self._file = (folder / "log.jsonl").open("a", buffering=1)
        self._board = _tensorboard(folder, step)

    def step(self, event: TrainStep, state: State) -> None:
        if event.index % _EVERY and event.validation is None and event.index < event.total:
            return
        named = {k: v for k, v in asdict(event).items() if v is not None and k not in ("index", "total", _AT)}
        named |= {f"{_AT}/{time:.2f}": loss for time, loss in (event.validation_at or {}).items()}
        bucket = {"bucket": named.pop("bucket")} if "bucket" in named else {}
        values = {k: v for k, v in named.items() if math.isfinite(v)}  # JSON has no NaN
        row = {"step": event.index, "seconds": round(state.seconds, 2), **values, **bucket}
        self._file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, event.index)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def requests(folder: Path, system: System, source: Source) -> list[Request]:
    """Requests for sample sheets: held-out prompts, or held-out images for a model without text conditioning."""
    if system.family.sampling.defaults(system.config).takes_prompt:
        return [Request(prompt=prompt, seed=i) for i, prompt in enumerate(source.prompts)]
    samples = folder / "samples"
    samples.mkdir(exist_ok=True)
    result = []
    for i in range(IMAGES):
        path = samples / f"picture-{i}.png"
        save_clip(Clip(source.held_out.clip(i).video[None, :, :1]), path, generated=False)
        result.append(Request(task="animate", image=str(path), seed=i))
    return result


IMAGES = 4


def write(
    folder: Path, system: System, model: nn.Module, requests: Sequence[Request], step: int, on_event: OnEvent
) -> list[Path]:
    """Write a contact sheet for each request with the current weights, ``samples/step-N-i.png``; returns the files.

    A request that the model does not support is reported and skipped.
    """
    system, written = with_model(system, model), []
    (folder / "samples").mkdir(exist_ok=True)
    for i, request in enumerate(requests):
        path = folder / "samples" / f"step-{step:08d}-{i}.png"
        try:
            clip = generate(system, request)
        except BadRequest as error:
            on_event(Note(f"no sample sheet for {request.prompt or request.image!r}: {error}"))
            continue
        with replacing(path) as part:
            contact_sheet(clip).save(part, format="PNG")
        written.append(path)
    return written


def _tensorboard(folder: Path, step: int) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # optional: the JSON lines hold the same values
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
