"""Small training runs, in this process or in a child that may be killed."""

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

options = json.loads(sys.argv[1])
die_at, die_writing = options.pop("die_at", None), options.pop("die_writing", None)
losses = open(options.pop("losses"), "a", buffering=1)

class Deadly(dict):
    reads = 0
    def __getitem__(self, key):
        Deadly.reads += 1
        if Deadly.reads > 0.5 * len(self):  # tensors are looked up only when written
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

train(TrainOptions(**options), listen)
"""


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(tmp_path):
    """``small(out, **changes)``: options of a run with a few tiny steps."""

    def make(out="run", **changes):
        options = {"model": "zoetrope/tiny", "steps": 6, "batch": 2, "threads": 1, "precision": "fp32"}
        options |= {"save_every": 2, "sample_every": 0, "validate_every": 3}
        return {**options, "out": str(tmp_path / out), **changes}

    return make


class Heard(list):
    """An event listener; ``losses`` are {step: (loss, gradient norm, validation)}."""

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


def run(options, heard=None):
    """Train in this process; returns (result, events)."""
    heard = Heard() if heard is None else heard
    return train(TrainOptions(**options), heard), heard


def run_elsewhere(options, losses, **deaths):
    """Train in a child process; returns its exit code and the losses by step from the file ``losses``."""
    argument = json.dumps({**options, **deaths, "losses": str(losses)})
    done = subprocess.run([sys.executable, "-c", CHILD, argument], capture_output=True, text=True, timeout=200)
    rows = [json.loads(line) for line in losses.read_text().splitlines()]
    return done.returncode, {index: tuple(rest) for index, *rest in rows}


@pytest.fixture
def runs():
    """(run in this process, run in a child process)."""
    return run, run_elsewhere
