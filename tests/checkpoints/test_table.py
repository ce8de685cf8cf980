"""Tables of complete layouts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kinema.checkpoints.table import MOST_MODULES, Row, Table, count
from kinema.schema import BadRequest


def test_an_endless_table_is_refused() -> None:
    def rows() -> Iterator[Row]:
        n = 0
        while True:
            yield Row(str(n), (1,), (str(n),))
            n += 1

    with pytest.raises(BadRequest, match="more than 100,000 tensors"):
        Table(rows())


def test_modules_are_counted_up_to_a_limit() -> None:
    def header(*numbers: object) -> dict:
        return {f"a.{n}.weight": ((1,), torch.float32) for n in numbers}

    assert count(header(0, 1, 2), "a.") == 3
    assert count(header("x"), "a.") == 0
    for far in (MOST_MODULES, 10**9, "9" * 5000):
        with pytest.raises(BadRequest, match=r"has a module numbered .* at a\.; expected 0 to 255") as refused:
            count(header(0, far), "a.")
        assert len(str(refused.value)) < 200
