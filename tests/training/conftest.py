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

CHILDREN = """
import gc, json, os, signal, sys
from kinema.checkpoints import files
from kinema.events import TrainStep
from kinema.training.options import TrainOptions
from kinema.training.run import train

class Deadly(dict):
    reads = 0
    def __getitem__(self, key):
        Deadly.reads += 1
        if Deadly.reads > 0.5 * len(self):  # tensors are looked up only when written
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)

def child(options):
    die_at, die_writing = options.pop("die_at", None), options.pop("die_writing", None)
    losses = open(options.pop("losses"), "a", buffering=1)
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

gc.freeze()
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(json.loads(line))
            code = 0
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Trains in a fork for each line of options, and prints its exit code. A fork starts in no time; importing takes two
seconds. This process itself computes nothing, since threads do not survive a fork.
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


@pytest.fixture(scope="session")
def run_elsewhere():
    """Train in a child process; returns its exit code and the losses by step from the file ``losses``."""
    words = [sys.executable, "-c", CHILDREN]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:

        def elsewhere(options, losses, **deaths):
            parent.stdin.write(json.dumps({**options, **deaths, "losses": str(losses)}) + "\n")
            parent.stdin.flush()
            code = int(parent.stdout.readline())
            rows = [json.loads(line) for line in losses.read_text().splitlines()]
            return code, {index: tuple(rest) for index, *rest in rows}

        yield elsewhere
        parent.stdin.close()


@pytest.fixture
def runs(request):
    """(run in this process, run in a child process, which a test that uses it starts)."""
    return run, lambda *of, **deaths: request.getfixturevalue("run_elsewhere")(*of, **deaths)
