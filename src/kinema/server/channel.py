"""The child's end of the talk between the server and a child process: JSON lines over its standard streams.

A child ends when the server closes its input or dies. Imports without torch.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import IO, Any

from kinema.bounds import printable
from kinema.schema import BadRequest
from kinema.spelling import named
from kinema.values import cut

Message = dict[str, Any]
PARENT = "KINEMA_SERVER_PID"
"""The environment variable in which a child finds the server's process id."""
MAX_NOTES = 64
"""Most notes that wait for a slow server."""
MAX_SENTENCE = 500
_PDEATHSIG = 1
"""PR_SET_PDEATHSIG of <linux/prctl.h>."""


class Outbox:
    """Messages that wait to be written, in order, of which there are only few at any time.

    A newer step or preview replaces one that waits; of notes the newest `MAX_NOTES` are kept; others are never lost.
    """

    def __init__(self) -> None:
        self._waiting: dict[Any, Any] = {}
        self._count = 0
        self._notes: list[int] = []

    def put(self, kind: str, message: Any) -> None:
        self._count += 1
        key: Any = self._count
        if kind in ("step", "preview"):
            key = kind
            self._waiting.pop(kind, None)  # so that the new one comes after what was put meanwhile
        elif kind == "note":
            self._notes.append(key)
            if len(self._notes) > MAX_NOTES:
                self._waiting.pop(self._notes.pop(0), None)
        self._waiting[key] = message

    def take(self) -> Any:
        """Return the oldest message; None if none waits."""
        if not self._waiting:
            return None
        key = next(iter(self._waiting))
        if not self._waiting.keys() - {key}:
            self._notes.clear()
        return self._waiting.pop(key)

    def __len__(self) -> int:
        return len(self._waiting)


class Channel:
    """Reads messages in one thread and writes them in another, so a slow server never stalls a step."""

    def __init__(self) -> None:
        """Take over the standard streams: what libraries print goes to stderr."""
        self._out: IO[bytes] = os.fdopen(os.dup(1), "wb", buffering=0)
        self._in: IO[bytes] = os.fdopen(os.dup(0), "rb")
        os.dup2(2, 1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        sys.stdout = sys.stderr
        self._outbox, self._changed = Outbox(), threading.Condition()
        self._writing = False
        threading.Thread(target=self._write, name="writer", daemon=True).start()

    def send(self, kind: str, message: Message | Callable[[], Message]) -> None:
        """Queue a message. A function is called by the writer, which leaves costly encoding to it."""
        with self._changed:
            self._outbox.put(kind, message)
            self._changed.notify_all()

    def flush(self, seconds: float = 60.0) -> None:
        """Wait until all messages are written."""
        with self._changed:
            self._changed.wait_for(lambda: not len(self._outbox) and not self._writing, seconds)

    def listen(self, hear: Callable[[Message], None]) -> None:
        """Call ``hear`` with each message, until the server closes the stream; then end the process at once."""

        def read() -> None:
            for line in self._in:
                hear(json.loads(line))
            os._exit(0)

        threading.Thread(target=read, name="reader", daemon=True).start()

    def messages(self) -> Any:
        """Yield messages until the server closes the stream."""
        for line in self._in:
            yield json.loads(line)

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(len(self._outbox)))
                message, self._writing = self._outbox.take(), True
            try:
                self._out.write(json.dumps(message() if callable(message) else message).encode() + b"\n")
            except OSError:
                os._exit(0)  # the server is gone
            finally:
                with self._changed:
                    self._writing = False
                    self._changed.notify_all()


def be_child() -> None:
    """Ignore Ctrl-C, which is the server's to handle, and on Linux die with the server.

    Warnings of libraries address programmers, not those who run a service.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
            os._exit(0)  # the server died before the call


def answer_one(
    answer: Callable[[Message], Any], names: Callable[[Message], Mapping[str, str]], *, memory: str, failed: str
) -> None:
    """Run a child that says that it is ready, answers one message, and ends.

    The answer is ``answer(message)``, or a sentence: that of a `BadRequest`, with ``names`` for its paths; ``memory``
    where it needs more than it may have; ``failed`` and the kind of any other exception.
    """
    be_child()
    channel = Channel()
    channel.send("ready", {"kind": "ready"})
    message = next(channel.messages(), None)
    if message is None:
        return
    reply: Message
    try:
        reply = {"answer": answer(message)}
    except BadRequest as error:
        reply = {"error": sentence(error, names(message))}
    except MemoryError:
        reply = {"error": memory}
    except Exception as error:
        reply = {"error": f"{failed} ({type(error).__name__})"}
    channel.send("answer", {"kind": "answer", **reply})
    channel.flush()


def sentence(error: BaseException, names: Mapping[str, str] | None = None) -> str:
    """Return an exception's message on one line, with paths and options replaced by the names that clients know."""
    text = named(" ".join(str(error).split())) or type(error).__name__
    for path, name in sorted((names or {}).items(), key=lambda pair: -len(pair[0])):
        text = text.replace(path, name)
    return cut(printable(text), MAX_SENTENCE)
