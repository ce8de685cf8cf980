"""``kinema evaluate``: measure a model, or write the report or the curve."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from kinema.atomic import check_folder, replacing, write_numbered
from kinema.evaluation import curve, measuring, report
from kinema.evaluation.curve import Curve
from kinema.evaluation.options import EvaluateOptions
from kinema.evaluation.report import Report
from kinema.evaluation.results import Evaluation
from kinema.events import Note, OnEvent, Phase, ignore
from kinema.schema import BadRequest
from kinema.system import open_system

__all__ = ["EvaluateOptions", "Evaluation", "evaluate"]


def evaluate(options: EvaluateOptions, on_event: OnEvent = ignore) -> Evaluation | Report | Curve:
    """Measure a model and write what the options request: ``output``, the report, or a run's curve.

    Every result has ``table()``, ``to_json()`` and ``partial``, which is True after an interruption with some results.
    Raises BadRequest for invalid options before any weights are read.
    """
    if options.output is not None:
        check_output(Path(options.output), overwrite=options.overwrite)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.curve is not None:
        result: Evaluation | Report | Curve = curve.write(options, on_event)
    else:
        on_event(Phase("load", options.model))
        system = open_system(options.model, preset=options.preset, device=options.device, on_event=on_event)
        measure = report.write if options.report else measuring.measure
        result = measure(system, options, on_event)
    if options.output is not None:
        path = Path(options.output)
        written = save(result.to_json(), path, overwrite=options.overwrite)
        if written != path:
            on_event(Note(f"{path} was created meanwhile; these results are in {written}"))
    return result


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Reject, before any work, a file that exists or cannot be written."""
    check_folder(path)
    if path.is_dir():
        raise BadRequest(f"output {path} is a folder; expected the name of a JSON file")
    if os.path.lexists(path) and not overwrite:
        raise BadRequest(f"{path} exists; choose another name for output, or pass --overwrite to replace it")


def save(text: str, path: Path, *, overwrite: bool = False) -> Path:
    """Write a text file atomically, under a similar name if its own was taken meanwhile. Returns its path."""

    def write(name: Path) -> Path:
        with replacing(name, exclusive=not overwrite) as part:
            part.write_text(text, encoding="utf-8")
        return name

    return write(path) if overwrite else write_numbered(path, write)
