"""A service with the included models, and Chromium: one of each for a module."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from acting import Faults  # noqa: E402
from studio_service import serving  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
SECONDS = 120_000
"""The longest that a test waits for the page, in milliseconds; a clip takes a few seconds on a quiet machine."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("studio") / "store") as found:
        yield found


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as found:
        browser = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, server):
    """Open the studio in a new profile: ``opened(path, **options of the context)``. No page may report an error."""
    contexts, faults = [], Faults()

    def open_page(path: str = "#make", url: str | None = None, **options):
        options.setdefault("viewport", {"width": 1280, "height": 900})
        context = chromium.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(SECONDS)
        page = context.new_page()
        faults.hear(page)
        page.faults = faults
        page.goto(f"{url or server.url}/{path}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults, str(faults)
