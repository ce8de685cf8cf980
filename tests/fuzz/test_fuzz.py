"""Damaged files: whatever they are, a reader succeeds or refuses in one sentence, within its time and memory.

Each kind of file is whole first, which must succeed where it says so, then damaged by what hypothesis draws. The
number of inputs is ``KINEMA_FUZZ`` in all (`make fuzz` sets it); by default it is small enough for every run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

sys.path.insert(0, str(Path(__file__).parent))

from damage import damaged, edits
from forks import Ending, Server
from seeds import seeds

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="inputs are read in forks")
NAMES = sorted(seeds()) if hasattr(os, "fork") else []
INPUTS = int(os.environ.get("KINEMA_FUZZ", "1100"))
EACH = -(-INPUTS // max(1, len(NAMES)))
REFUSED = {"replay"}
"""Kinds whose whole file is refused too: the weights are others than the recipe's."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_file_is_read(server: Server, name: str) -> None:
    seed = seeds()[name]
    ended = server.read(name, seed.file(seed.content))
    assert not ended.fault, ended
    assert ended.code == 0 or name in REFUSED, ended


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", NAMES)
@settings(
    max_examples=EACH,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(told=edits)
def test_a_damaged_file_is_read_or_refused_in_a_sentence(server: Server, name: str, told: list) -> None:
    seed = seeds()[name]
    ended = server.read(name, seed.file(damaged(seed.content, told)))
    assert not ended.fault, f"{name} {ended.fault}"


def test_a_reader_that_fails_is_noticed() -> None:
    assert Ending(1, "KeyError: 'x'", 0.1, 10).fault
    assert Ending(-11, "", 0.1, 10).fault
    assert Ending(2, "", 0.1, 10).fault
    assert Ending(2, "x" * 400, 0.1, 10).fault
    assert Ending(2, "a\x1b[31m", 0.1, 10).fault
    assert Ending(0, "", 21.0, 10).fault
    assert Ending(0, "", 1.0, 3 * 2**30).fault
    assert not Ending(2, "a.mp4 is cut short", 1.0, 2**30).fault
