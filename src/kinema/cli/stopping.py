"""Ctrl-C with --keep-partial: the first one stops sampling and keeps the partial clip, the second one exits."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, cast

from kinema.bounds import printable
from kinema.cancel import Cancel
from kinema.cli.output import Output
from kinema.cli.progress import Display, JsonLines, PreviewWriter
from kinema.events import OnEvent, Phase
from kinema.options import Option
from kinema.schema import Cancelled, Clip, Request

if TYPE_CHECKING:
    from kinema.api import Model
    from kinema.previews import PreviewFile

KEEP = Option(
    "keep_partial",
    bool,
    False,
    "on Ctrl-C, write the unfinished clip next to the output (ball.partial.mp4), and during super-resolution also the "
    "small one (ball.small.mp4); a second Ctrl-C exits immediately",
)


class Runner(Protocol):
    """A loaded model, or a service."""

    def run(
        self,
        request: Any,
        *,
        on_event: OnEvent,
        on_settled: Callable[[Request], None],
        preview: Any,
        cancel: Cancel | None,
    ) -> Clip: ...


def run_once(  # noqa: PLR0917
    model: Runner,
    job: Any,
    request: Request,
    output: Output,
    settings: Mapping[str, Any],
    show: Display,
    preview: PreviewFile | None = None,
) -> Clip:
    """Run a job and return its clip. With ``keep_partial``, Ctrl-C writes a partial clip and raises `Cancelled`.

    ``request`` names the input files, for ``record_paths``.
    """
    try:
        with interruptible(keep=settings["keep_partial"]) as token:
            clip = model.run(
                job,
                on_event=PreviewWriter(show, preview),
                on_settled=lambda settled: output.check_clip(settled.shape, settled.fps or 0, show),
                preview=preview is not None and preview.asked,
                cancel=token,
            )
            return with_paths(clip, model, request) if settings["record_paths"] else clip
    except Cancelled as cancelled:
        message = str(cancelled).replace("cancelled", "interrupted")
        kept = {"partial": cancelled.clip, "small": cancelled.small}
    clips = {mark: clip for mark, clip in kept.items() if clip is not None}
    if not clips:
        raise Cancelled(f"{message}; there are no frames to keep")
    show(Phase("write"))
    paths = []
    for mark, kept_clip in clips.items():
        named = with_paths(kept_clip, model, request) if settings["record_paths"] else kept_clip
        paths += output.save_kept(named, mark, show)
    if isinstance(show, JsonLines):
        show.write("saved", {"paths": [str(path) for path in paths], "partial": True})
    else:
        sys.stdout.writelines(f"{path}\n" for path in paths)
    what = "the partial clip" if "partial" in clips else "the small clip"
    raise Cancelled(f"{message}; {what} is {printable(str(paths[0]), 200)}")


@contextmanager
def interruptible(*, keep: bool) -> Iterator[Cancel | None]:
    """With ``keep``, a token that the first Ctrl-C sets; otherwise None, and Ctrl-C keeps its handler."""
    before = signal.getsignal(signal.SIGINT)
    in_thread = threading.current_thread() is not threading.main_thread()
    if not keep or in_thread or before in (None, signal.SIG_IGN):
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


def with_paths(clip: Clip, model: Runner, request: Request) -> Clip:
    """The clip with the full paths of its files in the recipe (``--record-paths``)."""
    from kinema.provenance import paths

    return replace(clip, recipe={**clip.recipe, "paths": paths(cast("Model", model).system, request)})
