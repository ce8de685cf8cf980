from __future__ import annotations

from pathlib import Path

import pytest

from kinema.evaluation import claims
from kinema.evaluation.claims import Claim, Outcome
from kinema.schema import BadRequest


def outcome(first: float, second: float, *, higher: bool) -> Outcome:
    spreads = [-0.1, 0.0, 0.1, 0.05]
    return Outcome.of("seam", [first + s for s in spreads], [second + s / 2 for s in spreads], higher_is_better=higher)


@pytest.mark.parametrize(
    ("first", "second", "higher", "favoured"),
    [(2, 1, True, "first"), (2, 1, False, "second"), (1, 2, False, "first"), (1, 1, True, "neither")],
)
def test_an_arm_is_favoured_only_beyond_the_interval(first: float, second: float, higher: bool, favoured: str) -> None:
    assert outcome(first, second, higher=higher).favours == favoured


def test_a_claim_is_read_back_unchanged(tmp_path: Path) -> None:
    claim = Claim("It holds", ("a", "b"), "How.", {"seed": 0}, [outcome(2, 1, higher=False)])
    (tmp_path / "vdm-test.json").write_text(claim.to_json(), encoding="utf-8")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    (found,) = claims.read(tmp_path)
    assert found.table() == claim.table()
    assert "seam (lower is better)" in found.table()
    assert found.table().endswith("| b |")


def test_an_invalid_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "vdm-bad.json").write_text('{"claim": 1}', encoding="utf-8")
    with pytest.raises(BadRequest, match="vdm-bad.json was not written by"):
        claims.read(tmp_path)
