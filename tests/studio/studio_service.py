"""`kinema serve` for the tests of the studio."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

STARTED = re.compile(r"serving on (http://127\.0\.0\.1:\d+) ")


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
