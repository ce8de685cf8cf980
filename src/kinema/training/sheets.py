"""What a run leaves to look at: a log of losses (JSON lines and TensorBoard) and sheets of samples."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from kinema.data import playroom
from kinema.generate import generate
from kinema.media.write import contact_sheet
from kinema.schema import Request, TrainStep
from kinema.system import Recipe, System, with_model
from kinema.training.checkpoint import State
from kinema.training.ema import EMA
from kinema.training.options import TrainOptions

_EVERY = 10
_SHEET_CLIPS = 6


class Log:
    """Writes ``log.jsonl``, ``options.json``, TensorBoard events where it is installed, and ``samples/``."""

    def __init__(self, folder: Path, options: TrainOptions, recipe: Recipe) -> None:
        self.folder = folder
        told = {"options": asdict(options), "recipe": asdict(recipe)}
        (folder / "options.json").write_text(json.dumps(told, indent=2))
        self._file = (folder / "log.jsonl").open("a", buffering=1)
        self._board = _tensorboard(folder)

    def step(self, event: TrainStep, state: State) -> None:
        values = {k: v for k, v in asdict(event).items() if v is not None and k not in ("index", "total")}
        if event.index % _EVERY == 0 or event.validation is not None:
            row = {"step": event.index, "seconds": round(state.seconds, 2), **values}
            self._file.write(json.dumps(row) + "\n")
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(name, value, event.index)
        if event.validation is not None:
            state.history.append({"step": event.index, "seconds": state.seconds, "validation": event.validation})

    def sheet(self, system: System, model: nn.Module, ema: EMA, step: int) -> None:
        """Contact sheets of a few held-out prompts, made with the averaged weights."""
        ema.swap(model)
        model.eval()
        looking = with_model(system, model)
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        for i, prompt in enumerate(playroom.prompts(_SHEET_CLIPS, seed=3, grammar="simple", split="held-out")):
            clip = generate(looking, Request(prompt=prompt, seed=i))
            contact_sheet(clip).save(folder / f"step-{step:08d}-{i}.png")
        model.train()
        ema.swap(model)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _tensorboard(folder: Path) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an extra: the JSON lines hold the same figures
        return None
    return SummaryWriter(str(folder / "tensorboard"))


