"""``kinema evaluate``: measure a model, or write the report or the curve, with the same options."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from kinema.atomic import beside, check_folder, replacing
from kinema.evaluation import curve, measuring, report
from kinema.evaluation.curve import Curve
from kinema.evaluation.options import EvaluateOptions
from kinema.evaluation.report import Report
from kinema.evaluation.results import Evaluation
from kinema.schema import BadRequest, Note, OnEvent, Phase, ignore
from kinema.system import open_system

__all__ = ["EvaluateOptions", "Evaluation", "evaluate"]


def evaluate(options: EvaluateOptions, on_event: OnEvent = ignore) -> Evaluation | Report | Curve:
    """Measure, and write what the options ask for: ``output``, the report, or the curve of a run.

    Every result has ``table()``, ``to_json()`` and ``partial``: True after an interruption that left
    something to keep. Raises BadRequest before any weights are read for what cannot be done.
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
            on_event(Note(f"{path} appeared meanwhile and was kept; these figures are in {written}"))
    return result


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Refuse a file that could not be written, or that exists, before the work is done."""
    check_folder(path)
    if path.is_dir():
        raise BadRequest(f"output is {path}, a folder; expected the name of a JSON file")
    if os.path.lexists(path) and not overwrite:
        raise BadRequest(f"{path} exists; choose another name for output, or pass --overwrite to replace it")


def save(text: str, path: Path, *, overwrite: bool = False) -> Path:
    """Write a text file, whole or not at all; where its name was taken meanwhile, beside it. Returns its path."""

    def write(name: Path) -> Path:
        with replacing(name, exclusive=not overwrite) as part:
            part.write_text(text, encoding="utf-8")
        return name

    return write(path) if overwrite else beside(path, write)
