"""The server's end: a child process that speaks JSON lines over its standard streams (`kinema.server.channel`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kinema
from kinema.server.channel import PARENT

Message = dict[str, Any]
LONGEST = 64 * 2**20
"""Longest line that is read from a child: the description of a job of many blocks, or a preview."""
START_SECONDS = 180.0
"""Longest wait for a child to import its libraries, on a slow disk."""


class Ended(Exception):
    """The child ended. The message says how: "was killed (signal 9)", "exited with code 1"."""


class Child:
    """A running child process. Leaves no process behind: it ends when this process closes its input or dies."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @staticmethod
    async def start(module: str, folder: Path, *, keep: Sequence[int] = (), offline: bool = True) -> Child:
        """Start ``python -m module`` in ``folder``. ``keep`` are file descriptors that the child keeps open.

        Unless ``offline`` is false, the child downloads nothing.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", module,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=folder, env=_environment(offline),
            limit=LONGEST, pass_fds=() if sys.platform == "win32" else tuple(keep),
            start_new_session=True,  # Ctrl-C at a terminal is the server's: a child that still starts would print
        )  # fmt: skip
        return Child(process)

    @staticmethod
    async def ready(module: str, folder: Path) -> Child:
        """Start a child that answers one message, and wait until it can. Raises OSError, TimeoutError or `Ended`."""
        child = await Child.start(module, folder)
        try:
            async with asyncio.timeout(START_SECONDS):
                await child.receive()
        except BaseException:
            await child.stop()
            raise
        return child

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message. Nothing happens if the child is gone: `receive` reports that."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, RuntimeError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> Message:
        """Wait for the next message. Raises `Ended` once the child has ended, and kills one that breaks the rules."""
        assert self.process.stdout is not None
        try:
            line = await self.process.stdout.readline()
            if line.endswith(b"\n"):
                return json.loads(line)
        except ValueError:  # not JSON, or longer than the limit
            self.kill()
        code = await self.process.wait()
        raise Ended(_ending(code))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def close(self) -> None:
        """Close the child's input, at which it ends."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    async def stop(self) -> None:
        """Kill the child and wait for its end, also while the calling task is cancelled."""
        self.kill()
        await asyncio.shield(self.process.wait())


def _environment(offline: bool) -> dict[str, str]:
    """The server's environment, in which the child finds the same package."""
    paths = [str(Path(kinema.__file__).resolve().parents[1])]
    paths += [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]  # noqa: PTH100
    own = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), PARENT: str(os.getpid())}
    return {**os.environ, **own, **({"HF_HUB_OFFLINE": "1"} if offline else {})}


def _ending(code: int) -> str:
    if code < 0:
        name = f"signal {-code}"
        with contextlib.suppress(ValueError):
            name = f"signal {-code}, {signal.Signals(-code).name}"
        return f"was killed ({name})"
    return f"exited with code {code}"
