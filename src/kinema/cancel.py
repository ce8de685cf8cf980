"""Cancel a run from any thread: the token, and the checks during a run.

The token is thread-local, like PyTorch's no_grad: `cancellable` sets it for a whole job, and long operations call
`checkpoint` between their parts. So no layer passes a token on, all stages share one, and code outside of a job
(training, planning) has none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from kinema.events import Event, OnEvent
from kinema.schema import Cancelled


class Cancel:
    """A token that cancels a run from any thread. Use one token per run: once set, it stays set.

    >>> token = kinema.Cancel(keep_partial=True)
    >>> threading.Timer(60, token.cancel).start()
    >>> try:
    ...     clip = model.generate("a red ball rolls right", cancel=token)
    ... except kinema.Cancelled as cancelled:
    ...     clip = cancelled.clip

    The run raises `Cancelled` after the current call of the network, or the current part of encoding or decoding; the
    model stays usable. With ``keep_partial`` the clip is first decoded from the last x0 estimate; this may be changed
    until the token is set.
    """

    def __init__(self, *, keep_partial: bool = False) -> None:
        self.keep_partial = keep_partial
        self._set = threading.Event()

    def cancel(self) -> None:
        """Cancel the run. May be called repeatedly, before the run starts, and from a signal handler."""
        self._set.set()

    @property
    def cancelled(self) -> bool:
        return self._set.is_set()


class _Here(threading.local):
    token: Cancel | None = None


_here = _Here()


@contextmanager
def cancellable(token: Cancel | None) -> Iterator[None]:
    """Set the token that `checkpoint` checks in this thread; None disables checks."""
    before, _here.token = _here.token, token
    try:
        yield
    finally:
        _here.token = before


def checkpoint() -> None:
    """Raise `Cancelled` if this thread's job was cancelled. Call it before each part of a long operation."""
    _check(_here.token)


def job_checkpoint() -> Callable[[], None]:
    """Return `checkpoint` of this thread's job, for threads that work for it (downloads)."""
    return partial(_check, _here.token)


def _check(token: Cancel | None) -> None:
    if token is not None and token.cancelled:
        raise Cancelled(keep_partial=token.keep_partial)


def checking(on_event: OnEvent) -> OnEvent:
    """Return a listener that checks for cancellation after each event: between steps, blocks, passes and phases."""

    def checked(event: Event) -> None:
        on_event(event)
        checkpoint()

    return checked
