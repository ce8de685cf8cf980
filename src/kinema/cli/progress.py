"""Display of events: a progress bar on a terminal, plain lines in a log, JSON lines for programs."""

from __future__ import annotations

import math
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from kinema.bounds import as_json, printable
from kinema.events import Event, Memory, Note, Phase, Preview, Step, TrainStep
from kinema.schema import BadRequest

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress, TaskID

    from kinema.previews import PreviewFile

LINE_EVERY = 5.0
"""Seconds between plain progress lines."""

NOTABLE = 1.1
"""A new memory peak is reported if it exceeds the last reported one by this factor."""

TENSORS = ("x0", "picture")
"""Tensor fields of events, left out of JSON."""

PHASES = {
    "load": "loading the model",
    "condition": "preparing inputs",
    "sample": "sampling",
    "decode": "decoding",
    "write": "writing",
    "train": "training",
    "encode": "encoding",
    "measure": "measuring",
    "upload": "sending a file",
    "queue": "waiting in the service's queue",
    "download": "fetching the clip",
}


class Display(AbstractContextManager["Display"], Protocol):
    """Event listener while a command runs; leaving the context restores the terminal."""

    def __call__(self, event: Event) -> None: ...


def display(*, quiet: bool = False, json_events: bool = False) -> Display:
    """The display for these options and this terminal. All except JSON lines write to stderr."""
    if json_events:
        return JsonLines(sys.stdout)
    if quiet:
        return Silent()
    return Bar() if sys.stderr.isatty() else Lines(sys.stderr)


class Silent:
    """Displays nothing."""

    def __call__(self, event: Event) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class JsonLines(Silent):
    """One JSON object per line: ``{"event": "step", "index": 3, "total": 20, …}``; a failure is the last line."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __call__(self, event: Event) -> None:
        self.write(
            type(event).__name__, {f.name: getattr(event, f.name) for f in fields(event) if f.name not in TENSORS}
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            from kinema.cli.main import ending  # a circular import at module level

            message, code = ending(error)
            self.write("failed", {"message": message, "code": code})

    def write(self, name: str, values: dict[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self.stream.write(as_json({"event": name.lower(), **finite}) + "\n")
        self.stream.flush()


class PreviewWriter:
    """Event listener that writes previews to their file and passes all other events to a display.

    If the file cannot be written, previews stop and the clip continues.
    """

    def __init__(self, show: Display, file: PreviewFile | None) -> None:
        self.show, self.file = show, file

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Preview):
            self.show(event)
        elif self.file is not None:
            try:
                self.file.write(event)
            except (BadRequest, OSError) as error:
                self.file = None
                self.show(Note(f"previews stopped: {error}"))
                return
            if isinstance(self.show, JsonLines):
                values = {"index": event.index, "total": event.total, "stage": event.stage}
                self.show.write("preview", {**values, "file": str(self.file.path)})


class Lines(Silent):
    """Plain lines for logs and pipes: every phase and note, and a step every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.last = time.monotonic()
        self.peak = 0
        self.began: float | None = None
        """When the sampling of all stages, or else this phase, began."""
        self.first: int | None = None
        """Steps completed before this phase: a resumed run does not start at 0."""
        self.sampling = False
        """Whether steps are shares of a job, whose later phases belong to it."""

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if self.first is None and isinstance(event, Step | TrainStep):
            self.first = event.index - 1
        if isinstance(event, Phase):
            self.last, self.first = now, None
            self.sampling = self.sampling and event.name != "write"  # the end of a job
            if not self.sampling:
                self.began = now
            self._print(f"{_phase(event)} …")
        elif isinstance(event, Note):
            self._print(event.message)
        elif isinstance(event, Memory) and event.peak_bytes > NOTABLE * self.peak:
            self.peak = event.peak_bytes
            self._print(_peak(event))
        elif isinstance(event, Step | TrainStep) and (now - self.last >= LINE_EVERY or event.index == event.total):
            self.last = now
            self._print(f"{_count(event)}{_figures(event)}, {_duration(self._remaining(event, now))} left")
        if isinstance(event, Step) and event.share is not None:
            self.sampling = True

    def _remaining(self, event: Step | TrainStep, now: float) -> float:
        spent = now - (self.began or now)
        if isinstance(event, Step) and event.share is not None:
            return spent / event.share * (1 - event.share)
        return spent / (event.index - (self.first or 0)) * (event.total - event.index)

    def _print(self, text: str) -> None:
        self.stream.write(f"kinema: {printable(text)}\n")
        self.stream.flush()


class Bar(Silent):
    """A progress bar with the remaining time, on a terminal."""

    def __init__(self) -> None:
        self.progress = _bar()
        self.task: TaskID | None = None
        self.peak = 0
        self.sampling = False
        """Whether the bar shows the share of a job that is done, in all of its phases."""

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Phase):
            self.sampling = self.sampling and event.name != "write"  # the end of a job
            if self.task is not None and self.sampling:
                self.progress.update(self.task, description=_phase(event), figures="")
                return
            if self.task is not None:
                self.progress.remove_task(self.task)
            self.task = self.progress.add_task(_phase(event), total=None, figures="")
        elif isinstance(event, Note):
            self.progress.console.print(f"kinema: {printable(event.message)}", highlight=False, markup=False)
        elif isinstance(event, Step | TrainStep) and self.task is not None:
            figures = f"{_count(event)}{_figures(event)}"
            share = event.share if isinstance(event, Step) else None
            done, total = (event.index, event.total) if share is None else (share, 1)
            self.progress.update(self.task, completed=done, total=total, figures=figures)
            self.sampling = share is not None
        elif isinstance(event, Memory) and event.peak_bytes > NOTABLE * self.peak:
            self.peak = event.peak_bytes
            self.progress.console.print(f"kinema: {_peak(event)}", highlight=False, markup=False)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
        transient=True,
    )


def _phase(event: Phase) -> str:
    name = PHASES.get(event.name, event.name)
    return f"{name} ({printable(event.detail)})" if event.detail else name


def _peak(event: Memory) -> str:
    return f"{event.peak_bytes / 2**30:.2f} GiB peak memory, including libraries"


def _count(event: Step | TrainStep) -> str:
    step = f"step {event.index}/{event.total}"
    if not isinstance(event, Step) or event.share is None or event.share == event.index / event.total:
        return step
    return f"{step} ({event.share:.0%} of all stages)"


def _figures(event: Step | TrainStep) -> str:
    if isinstance(event, Step):
        return ""
    held_out = "" if event.validation is None else f", held-out {event.validation:.4f}"
    bucket = "" if event.bucket is None else f", {printable(event.bucket)}"
    return f", loss {event.loss:.4f}{held_out}, {event.rate:.1f} clips/s{bucket}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
