"""Training runs small enough for tests, in this process or in one that may be killed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from kinema.events import Note, TrainStep
from kinema.training.options import TrainOptions
from kinema.training.run import train

CHILD = """
import json, os, signal, sys
from kinema.checkpoints import files
from kinema.events import TrainStep
from kinema.training.options import TrainOptions
from kinema.training.run import train

told = json.loads(sys.argv[1])
die_at, die_writing = told.pop("die_at", None), told.pop("die_writing", None)
losses = open(told.pop("losses"), "a", buffering=1)

class Deadly(dict):
    reads = 0
    def __getitem__(self, key):
        Deadly.reads += 1
        if Deadly.reads > 0.5 * len(self):  # by name a tensor is read only to be written
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)

write = files.write_tensors
if die_writing:
    files.write_tensors = lambda path, tensors, *rest: write(
        path, Deadly(tensors) if path.name == die_writing else tensors, *rest)

def listen(event):
    if isinstance(event, TrainStep):
        losses.write(json.dumps([event.index, event.loss, event.grad_norm, event.validation]) + chr(10))
        if event.index == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

train(TrainOptions(**told), listen)
"""


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(tmp_path):
    """``small(out, **changes)``: options of a run of a few tiny steps."""

    def make(out="run", **changes):
        told = {"model": "zoetrope/tiny", "steps": 6, "batch": 2, "threads": 1, "precision": "fp32"}
        told |= {"save_every": 2, "sample_every": 0, "validate_every": 3}
        return {**told, "out": str(tmp_path / out), **changes}

    return make


class Heard(list):
    """Listens to events; ``losses`` are {step: (loss, gradient norm, validation)}."""

    def __call__(self, event):
        self.append(event)

    @property
    def losses(self):
        return {e.index: (e.loss, e.grad_norm, e.validation) for e in self if isinstance(e, TrainStep)}

    @property
    def notes(self):
        return [e.message for e in self if isinstance(e, Note)]


@pytest.fixture
def heard():
    return Heard()


def run(told, heard=None):
    """(result, what was heard) of a run in this process."""
    heard = Heard() if heard is None else heard
    return train(TrainOptions(**told), heard), heard


def run_elsewhere(told, losses, **deaths):
    """Run in a process of its own; its exit code, and losses by step in the file ``losses``."""
    argument = json.dumps({**told, **deaths, "losses": str(losses)})
    done = subprocess.run([sys.executable, "-c", CHILD, argument], capture_output=True, text=True, timeout=200)
    rows = [json.loads(line) for line in losses.read_text().splitlines()]
    return done.returncode, {index: tuple(rest) for index, *rest in rows}


@pytest.fixture
def runs():
    """The two ways to run."""
    return run, run_elsewhere
