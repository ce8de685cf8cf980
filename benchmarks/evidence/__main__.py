"""Run the evidence: train, sample, measure, write the page; every part resumes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import benchmarks.evidence
from benchmarks.evidence import training
from benchmarks.evidence.protocol import MODELS
from kinema.events import Event, TrainStep


def main() -> int:
    parser = argparse.ArgumentParser(
        "benchmarks.evidence",
        description=benchmarks.evidence.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", nargs="?", choices=("all", "train"), default="all")
    parser.add_argument("model", nargs="*", choices=tuple(MODELS), help="of train: the models; default all")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"), help="folder of the trainings")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.model or MODELS:
        training.weights(options.out, MODELS[name], Shown(MODELS[name].title))
    return 0


class Shown:
    """Prints the progress of a training, with the time left."""

    def __init__(self, title: str) -> None:
        self.title = title

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrainStep) and event.index % 50 == 0:
            print(f"{self.title}: {event.index}/{event.total}, loss {event.loss:.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
