"""Fixtures for the HTTP layer: the fake engine, in memory or behind a listening service."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from running import running  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
MP4 = b"\0\0\0\x18ftypmp42" + bytes(64)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A listening service whose videos finish at once."""
    with running(tmp_path_factory.mktemp("store")) as found:
        yield found
    assert found.opened == []


@pytest.fixture
def png():
    return PNG


@pytest.fixture
def mp4():
    return MP4
