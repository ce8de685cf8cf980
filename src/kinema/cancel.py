"""Cancelling a run from any thread: the token, and the places where the work looks at it.

A token belongs to the thread that does the work, as PyTorch's no_grad does: `cancellable` sets it for a whole job, and
whatever takes long calls `checkpoint` between its parts. So nothing hands a token from layer to layer, a second stage
has that of the first, and code that runs outside of a job (training, planning) has none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kinema.events import Event, OnEvent
from kinema.schema import Cancelled


class Cancel:
    """Ends a run of a model, from any thread. One token is for one run: once set, it stays set.

    >>> token = kinema.Cancel(keep_partial=True)
    >>> threading.Timer(60, token.cancel).start()
    >>> try:
    ...     clip = model.generate("a red ball rolls right", cancel=token)
    ... except kinema.Cancelled as cancelled:
    ...     clip = cancelled.clip

    The run ends with `Cancelled` after the call of the network, or the part of encoding or decoding, that is under
    way, and the model is as usable as before. With ``keep_partial`` the clip is decoded from the last estimate first;
    it may be changed until the token is set.
    """

    def __init__(self, *, keep_partial: bool = False) -> None:
        self.keep_partial = keep_partial
        self._set = threading.Event()

    def cancel(self) -> None:
        """End the run. May be called more than once, before the run begins, and from a signal handler."""
        self._set.set()

    @property
    def cancelled(self) -> bool:
        return self._set.is_set()


class _Here(threading.local):
    token: Cancel | None = None


_here = _Here()


@contextmanager
def cancellable(token: Cancel | None) -> Iterator[None]:
    """Have `checkpoint` look at this token, in this thread; with None it looks at none."""
    before, _here.token = _here.token, token
    try:
        yield
    finally:
        _here.token = before


def checkpoint() -> None:
    """Raise `Cancelled` if the job of this thread is to end. Call it before each part of what takes long."""
    token = _here.token
    if token is not None and token.cancelled:
        raise Cancelled(keep_partial=token.keep_partial)


def checking(on_event: OnEvent) -> OnEvent:
    """The listener, with a checkpoint after each event: between steps, blocks, passes and phases."""

    def told(event: Event) -> None:
        on_event(event)
        checkpoint()

    return told
