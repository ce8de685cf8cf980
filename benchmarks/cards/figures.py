"""Passages of documents with figures from files of results: their numbers as text, comparison and filling in."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kinema.evaluation.results import Against

ROOT = Path(__file__).parents[2]
_NUMBER = r"[−-]?\d[\d,]*(?:\.\d+)?"
_NAME = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Passage:
    """A passage of a document, with names in braces in the places of numbers, and these numbers as text."""

    document: str
    template: str
    figures: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        return _NAME.findall(self.template)

    def found(self, text: str) -> re.Match[str] | None:
        """Where the document has the passage, whatever its numbers. Raises ValueError if it has more than one."""
        parts = _NAME.split(self.template)
        literal = [r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in parts[::2]]
        matches = list(re.finditer(f"({_NUMBER})".join(literal), text))
        if len(matches) > 1:
            raise ValueError(f"{self.document} has {len(matches)} passages like {self.template!r}")
        return matches[0] if matches else None

    def faults(self, text: str) -> list[str]:
        """How the document differs from the file, one line each."""
        match = self.found(text)
        if match is None:
            return [f"{self.document} lacks the passage: {self.template}"]
        return [
            f"{self.document}: {name} is {said}, in the file {self.figures[name]}: {self.template[:90]}"
            for name, said in zip(self.names, match.groups(), strict=True)
            if said != self.figures[name]
        ]

    def filled(self, text: str) -> str:
        """The document with the file's numbers in this passage."""
        match = self.found(text)
        if match is None:
            return text
        for number, name in reversed([*enumerate(self.names, start=1)]):
            text = text[: match.start(number)] + self.figures[name] + text[match.end(number) :]
        return text


def card(family: str) -> str:
    return f"src/kinema/families/{family}/README.md"


@cache
def read(name: str) -> Any:
    """A file of results by its path from the root: JSON, or the rows of JSON lines."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)


def digits(value: float) -> str:
    """Three significant digits."""
    text = f"{value:.3g}"
    return f"{value:.7f}".rstrip("0") if "e-" in text else text if abs(value) < 1000 else f"{value:.0f}"


def decimals(value: float, places: int) -> str:
    return f"{value:.{places}f}".replace("-", "−")


def percent(value: float) -> str:
    return f"{math.floor(100 * value + 0.5)}"


def share(name: str, figure: Mapping[str, Any]) -> dict[str, str]:
    """A share in percent with its bounds, and as a count."""
    found = {name: figure["mean"], f"{name}_low": figure["low"], f"{name}_high": figure["high"]}
    right = {f"{name}_right": f"{round(figure['mean'] * figure['count'])}", f"{name}_n": f"{figure['count']}"}
    return {key: percent(value) for key, value in found.items()} | right


def interval(name: str, figure: Mapping[str, Any]) -> dict[str, str]:
    """A share in percent with its bounds."""
    return {key: text for key, text in share(name, figure).items() if not key.endswith(("_right", "_n"))}


def counted(name: str, figure: Mapping[str, Any], count: int) -> Iterator[tuple[str, str]]:
    yield name, f"{round(figure['share'] * count)}"
    yield f"{name}_n", f"{count}"


def middle(name: str, figure: Mapping[str, Any], places: int | None = None) -> dict[str, str]:
    """A median with its bounds, with so many decimals, or three significant digits."""
    found = {name: figure["median"], f"{name}_low": figure["low"], f"{name}_high": figure["high"]}
    return {key: digits(value) if places is None else decimals(value, places) for key, value in found.items()}


def against(name: str, data: Mapping[str, Any]) -> dict[str, str]:
    """A paired comparison: the median ratio with its bounds, and the pairs in which the first side is lower, higher."""
    return middle(name, data["ratio"]) | {f"{name}_lower": f"{data['lower']}", f"{name}_higher": f"{data['higher']}"}


def compared(data: Mapping[str, Any]) -> dict[str, str]:
    """A temporal measure of `kinema evaluate`: both medians, the comparison ``x``, and that of the control ``c``."""
    medians = {"made": digits(data["made"]["median"]), "real": digits(data["real"]["median"])}
    return medians | against("x", data["against"]) | against("c", data["control"])


def of_pairs(name: str, first: Sequence[float], second: Sequence[float]) -> dict[str, str]:
    """A paired comparison of clips, for files that have the clips alone."""
    found = Against.of(first, second)
    ratio = {"median": found.ratio.median, "low": found.ratio.low, "high": found.ratio.high}
    return against(name, {"ratio": ratio, "lower": found.lower, "higher": found.higher})
