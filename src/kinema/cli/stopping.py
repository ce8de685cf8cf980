"""Ctrl-C that keeps what there is of a clip: the first one ends the run, the next one ends the command at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from kinema.bounds import printable
from kinema.cancel import Cancel
from kinema.cli.options import Option
from kinema.cli.output import Output
from kinema.cli.progress import Display, JsonLines, Watching
from kinema.events import Phase
from kinema.schema import Cancelled, Clip, Request

if TYPE_CHECKING:
    from kinema.api import Model
    from kinema.job import Asked
    from kinema.previews import PreviewFile

KEEP = Option(
    "keep_partial",
    bool,
    False,
    "on Ctrl-C, write what there is of the clip beside the output (ball.partial.mp4); the next Ctrl-C ends at once",
)


def run_once(  # noqa: PLR0917
    model: Model,
    asked: Asked,
    request: Request,
    output: Output,
    own: Mapping[str, Any],
    show: Display,
    preview: PreviewFile | None = None,
) -> Clip:
    """The clip of a verb. With ``keep_partial`` in ``own``, Ctrl-C writes a partial clip and raises `Cancelled`.

    ``request`` names the files of the clip, for a recipe that tells where they lie.
    """
    try:
        with interruptible(keep=own["keep_partial"]) as token:
            clip = model.run(
                asked,
                on_event=Watching(show, preview),
                on_settled=lambda told: output.check_clip(told.shape, told.fps or 0, show),
                preview=preview is not None and preview.asked,
                cancel=token,
            )
            return with_paths(clip, model, request) if own["record_paths"] else clip
    except Cancelled as cancelled:
        said, partial = str(cancelled).replace("cancelled", "interrupted"), cancelled.clip
    if partial is None:
        raise Cancelled(f"{said}; there are no frames to keep")
    show(Phase("write"))
    partial = with_paths(partial, model, request) if own["record_paths"] else partial
    paths = output.save_partial(partial, show)
    if isinstance(show, JsonLines):
        show.write("saved", {"paths": [str(path) for path in paths], "partial": True})
    else:
        sys.stdout.writelines(f"{path}\n" for path in paths)
    raise Cancelled(f"{said}; the clip so far is {printable(str(paths[0]), 200)}")


@contextmanager
def interruptible(*, keep: bool) -> Iterator[Cancel | None]:
    """A token that the first Ctrl-C sets, to ``keep`` a partial clip; else None, and Ctrl-C does what it did."""
    before = signal.getsignal(signal.SIGINT)
    elsewhere = threading.current_thread() is not threading.main_thread()
    if not keep or elsewhere or before in (None, signal.SIG_IGN):
        yield None
        return
    token = Cancel(keep_partial=True)

    def first(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        token.cancel()

    signal.signal(signal.SIGINT, first)
    try:
        yield token
    finally:
        signal.signal(signal.SIGINT, before)


def with_paths(clip: Clip, model: Model, request: Request) -> Clip:
    """The clip with a recipe that tells where its files lie on this machine, for those who ask for that."""
    from kinema.provenance import paths

    return replace(clip, recipe={**clip.recipe, "paths": paths(model.system, request)})
