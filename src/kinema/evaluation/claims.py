"""Results of paired experiments, stored as JSON next to a report: two arms, the same prompts.

``benchmarks/vdm_claims.py`` writes them; the report only displays them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinema.checkpoints.source import read_json
from kinema.evaluation.intervals import paired_difference
from kinema.evaluation.oracle import Figure, spread
from kinema.evaluation.results import figure_of, to_json
from kinema.schema import BadRequest

_PATTERN = "vdm-*.json"


@dataclass(frozen=True)
class Outcome:
    """One measure under both arms; ``difference`` is first minus second, paired by prompt."""

    measure: str
    higher_is_better: bool
    first: Figure
    second: Figure
    difference: Figure

    @classmethod
    def of(
        cls, measure: str, first: Sequence[float], second: Sequence[float], *, higher_is_better: bool, seed: int = 0
    ) -> Outcome:
        a, b = spread(first), spread(second)
        if a is None or b is None:
            raise ValueError("no clips were measured")
        return cls(measure, higher_is_better, a, b, paired_difference(first, second, seed))

    @property
    def favours(self) -> str:
        """ "first", "second" or "neither": the arm that the confidence interval of the difference favours."""
        if self.difference.low <= 0 <= self.difference.high:
            return "neither"
        return "first" if (self.difference.mean > 0) == self.higher_is_better else "second"


@dataclass(frozen=True)
class Claim:
    """One tested claim: its text, the two arms, the method and the outcomes."""

    claim: str
    arms: tuple[str, str]
    method: str
    protocol: Mapping[str, Any]
    outcomes: Sequence[Outcome]

    def table(self) -> str:
        """Markdown, one row per measure, with the favoured arm."""
        a, b = self.arms
        lines = [f"| measure | {a} | {b} | {a} − {b} | favours |", "|---|---|---|---|---|"]
        named = {"first": a, "second": b, "neither": "neither"}
        for o in self.outcomes:
            better = "higher" if o.higher_is_better else "lower"
            difference = f"{o.difference.mean:+.4g} ({o.difference.low:+.4g} to {o.difference.high:+.4g})"
            cells = [f"{o.measure} ({better} is better)", f"{o.first.mean:.4g}", f"{o.second.mean:.4g}", difference]
            lines.append(f"| {' | '.join([*cells, named[o.favours]])} |")
        return "\n".join(lines)

    def to_json(self) -> str:
        return to_json(self)

    def __str__(self) -> str:
        return self.table()


def read(folder: Path) -> list[Claim]:
    """Read the claims of ``vdm-*.json`` in a folder, by file name. Raises BadRequest for an invalid file."""
    return [_read(path) for path in sorted(folder.glob(_PATTERN))]


def _read(path: Path) -> Claim:
    try:
        data = read_json(path)
        outcomes = [
            Outcome(o["measure"], o["higher_is_better"], *(figure_of(o[k]) for k in ("first", "second", "difference")))
            for o in data["outcomes"]
        ]
        return Claim(data["claim"], tuple(data["arms"]), data["method"], data["protocol"], outcomes)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadRequest(f"{path} was not written by benchmarks/vdm_claims.py") from None
