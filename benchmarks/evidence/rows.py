"""Measurements of clips, one JSON line for each, stored as they are made, so that nothing is sampled twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema.atomic import replacing
from kinema.evaluation.consistency import object_consistency
from kinema.evaluation.metrics import Extractor
from kinema.evaluation.oracle import judge
from kinema.evaluation.temporal import temporal

Row = Mapping[str, Any]
ORACLE = ("colour", "shape", "direction", "motion")
"""What a prompt asks for, which the oracle finds right or wrong; None where a prompt asks for no direction."""


class Rows:
    """The rows of one part of the evidence, in ``path``; ``head`` is what they depend on, and must not change."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path, self.head = path, dict(head)
        head, self.rows = stored(path)
        if head and head != self.head:
            raise SystemExit(f"{path} was measured with {head}; expected {self.head}: move it away to measure again")

    def of(self, arm: str) -> list[Row]:
        return [row for row in self.rows if row["arm"] == arm]

    def measured(self, arm: str, count: int, batch: int, measure: Callable[[int, int], Sequence[Row]]) -> list[Row]:
        """The rows of an arm; ``measure(i, j)`` makes those of items i to j - 1 that are missing."""
        while (done := len(self.of(arm))) < count:
            last = min(count, done + batch)
            self.rows += [{"arm": arm, **row} for row in measure(done, last)]
            self._save()
            print(f"{self.path.stem}, {arm}: {last} of {count}", flush=True)
        return self.of(arm)

    def _save(self) -> None:
        text = "".join(json.dumps(entry) + "\n" for entry in (self.head, *self.rows))
        with replacing(self.path) as part:
            part.write_text(text, encoding="utf-8")


def stored(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """What the rows of a file depend on, and the rows; nothing if there is no file. Exits if a line is broken."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else ["{}"]
    read: list[Any] = []
    for number, line in enumerate(lines, start=1):
        try:
            read.append(json.loads(line))
        except ValueError:
            raise SystemExit(f"{path}: line {number} is not JSON; delete it, and what is missing is measured") from None
    head, *rows = read
    return head, rows


@torch.no_grad()
def measure(video_CTHW: Tensor, prompt: str, fps: float, extract: Extractor) -> dict[str, Any]:
    """Everything that the evidence measures of one clip."""
    verdict, kept = judge(video_CTHW, prompt, fps), object_consistency(video_CTHW, prompt)
    return {
        "prompt": prompt,
        **{name: _short(value) for name, value in temporal(video_CTHW, fps).items()},
        **{name: getattr(verdict, f"{name}_right") for name in ORACLE},
        "identity": _short(verdict.identity),
        "frames of the colour": _short(kept.colour),
        "frames of the outline": _short(kept.shape),
        "features": [float(f"{value:.4g}") for value in extract(video_CTHW[None])[0].tolist()],
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")
