"""A service with the included models, and Chromium: one of each for a module."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
STARTED = re.compile(r"serving on (http://127\.0\.0\.1:\d+) ")
SECONDS = 120_000
"""The longest that a test waits for the page, in milliseconds; a clip takes a few seconds on a quiet machine."""


class Server:
    """`kinema serve` in a process of its own."""

    def __init__(self, folder: Path, *words: str, token: str | None = None) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "kinema", "serve", "--folder", str(folder), "--port", "0", "--threads", "1"]
        environment = {name: value for name, value in os.environ.items() if name != "KINEMA_TOKEN"}
        if token:
            environment["KINEMA_TOKEN"] = token
        self.process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self.started = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self.started.wait(120), self.lines
        found = [STARTED.search(line) for line in self.lines]
        assert any(found), self.lines
        self.url = next(each[1] for each in found if each)

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if STARTED.search(line):
                self.started.set()
        self.started.set()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@contextmanager
def serving(folder: Path, *words: str, token: str | None = None):
    server = Server(folder, *words, token=token)
    try:
        yield server
    finally:
        server.stop()


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


class Faults(list):
    """Errors that a page reports: exceptions, violations of the policy, and requests that were not expected to fail."""

    def hear(self, page) -> None:
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on("console", lambda message: self.append(message.text) if message.type == "error" else None)


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
    assert not faults
