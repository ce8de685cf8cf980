"""``kinema``: dispatches to a command and turns every failure into one line and an exit code.

0 done, 1 failed, 2 bad request, 130 interrupted. ``kinema --help`` needs only the table below; a command's module is
imported when the command runs.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from kinema import __version__, bounds, registry
from kinema.schema import BadRequest, Cancelled, JobFailed

COMMANDS: dict[str, tuple[str, str]] = {
    "generate": ("kinema.cli.prompts:generate", "generate a clip from a text prompt"),
    "animate": ("kinema.cli.verbs:animate", "generate a clip from an image"),
    "interpolate": ("kinema.cli.verbs:interpolate", "generate the frames in between"),
    "extend": ("kinema.cli.verbs:extend", "continue a clip, forwards or backwards"),
    "inpaint": ("kinema.cli.verbs:inpaint", "replace a region of a clip"),
    "edit": ("kinema.cli.verbs:edit", "change a clip by a prompt"),
    "upscale": ("kinema.cli.verbs:upscale", "enlarge a clip"),
    "replay": ("kinema.cli.replay:replay", "generate a clip again from its recipe"),
    "inspect": ("kinema.cli.models:inspect", "show what a clip, image or weight file contains"),
    "plan": ("kinema.cli.plan:plan", "forecast time and memory of a request"),
    "models": ("kinema.cli.models:models", "list models and samplers, or show one model"),
    "cache": ("kinema.cli.cache:cache", "show or clear stored text embeddings"),
    "doctor": ("kinema.cli.doctor:doctor", "check that this machine can run kinema"),
    "data": ("kinema.cli.data:data", "prepare clips for training"),
    "train": ("kinema.cli.train:train", "train or fine-tune a model, or resume a run"),
    "evaluate": ("kinema.cli.train:evaluate", "measure a model"),
    "convert": ("kinema.cli.convert:convert", "convert weights between layouts"),
    "serve": ("kinema.cli.serve:serve", "run a video service over HTTP"),
}
"""Command name to ("module:function", help); the function takes the arguments and returns the exit code."""

SECTIONS: dict[str, tuple[str, ...]] = {
    "make clips": ("generate", "animate", "interpolate", "extend", "inpaint", "edit", "upscale"),
    "look and check": ("replay", "inspect", "plan", "models", "cache", "doctor"),
    "train": ("data", "train", "evaluate", "convert"),
    "serve": ("serve",),
}
"""Headings of ``kinema --help`` and the commands under each."""

FAILED, BAD_REQUEST, INTERRUPTED = 1, 2, 130
UNREADABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS}
)
"""Errors caused by a path the user gave, not by the machine."""
NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")
"""How torch's allocators report it; the CPU's raises a plain RuntimeError."""

MAX_MESSAGE = 380
"""Characters of an error message."""
PIXEL_LIMIT = 10**15
FIRST = 'kinema generate "a red ball rolls right" -o ball.mp4'


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code; never raises."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    words, after = words[:end], words[end:]  # nothing after "--" is an option
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    stopped: list[int] = []
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            # The terminal's encoding may not cover a path: print its bytes unchanged.
            stream.reconfigure(errors=errors)
    try:
        words, pixels = _max_pixels(words)
        with _stopping_gently(stopped), warnings.catch_warnings(), bounds.raised_limits(pixels):
            if not (debug or sys.warnoptions):
                warnings.simplefilter("ignore")  # warnings of libraries address programmers, not users
            return _dispatch(words + after)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:
        # The reader closed the pipe (`kinema models | head`); keep Python from reporting it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            import traceback

            traceback.print_exc()
        # Interrupted C code may raise another exception instead.
        message, code = ending(KeyboardInterrupt() if stopped else error, words)
        sys.stderr.write(f"kinema: {message}\n")
        return code


def ending(error: BaseException, words: Sequence[str] = ()) -> tuple[str, int]:
    """(error message, on one line and safe for a terminal; exit code); ``words`` is the command line."""
    message, code = _ending(error, words)
    return bounds.printable(" ".join(message.split()), MAX_MESSAGE), code


def _ending(error: BaseException, words: Sequence[str]) -> tuple[str, int]:
    match error:
        case BadRequest():
            from kinema.spelling import typed

            return typed(str(error), words), BAD_REQUEST
        case KeyboardInterrupt():
            return "interrupted; no partial file was written", INTERRUPTED
        case Cancelled() | JobFailed():
            return str(error), INTERRUPTED if isinstance(error, Cancelled) else FAILED
        case OSError():
            from kinema.atomic import FULL

            where = f"{str(error.filename)[:200]}: " if error.filename else ""
            refused = error.errno in FULL or error.errno in UNREADABLE
            return f"{where}{error.strerror or error}", BAD_REQUEST if refused else FAILED
    if _out_of_memory(error):
        return "out of memory; use fewer frames, a smaller size or fewer clips", FAILED
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first} (run with --debug for the traceback)", FAILED


def _out_of_memory(error: BaseException) -> bool:
    """Whether it is Python's or torch's out-of-memory error; torch's by name, to avoid importing torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(text in message for text in NO_MEMORY)


def _max_pixels(words: Sequence[str]) -> tuple[list[str], int]:
    """(arguments without ``--max-pixels N``, N). The option applies to every command that reads files."""
    rest, given = [], "0"
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name in ("--max-pixels", "--max_pixels"):
            given = value if equals else next(remaining, "")
        else:
            rest.append(word)
    try:
        pixels = int(float(given))
    except (ValueError, OverflowError):
        pixels = -1
    if not 0 <= pixels <= PIXEL_LIMIT:
        expected = f"expected a whole number up to {PIXEL_LIMIT:,}, such as 4e9"
        raise BadRequest(f"--max-pixels is {bounds.quoted(given)}; {expected}")
    return rest, pixels


def _dispatch(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    if name in ("-V", "--version"):
        sys.stdout.write(f"kinema {__version__}\n")
        return 0
    if name not in COMMANDS:
        raise BadRequest(registry.unknown_name("command", name, COMMANDS))
    return registry.resolve(COMMANDS[name][0])(words[1:])


def _help() -> str:
    sections = "\n\n".join(
        "\n".join([f"{heading}:", *(f"  {name:<12} {COMMANDS[name][1]}" for name in names)])
        for heading, names in SECTIONS.items()
    )
    return (
        f"kinema {__version__}: video diffusion in one package\n\n"
        "usage: kinema COMMAND [OPTIONS]\n\n"
        f"start here:\n  {FIRST}\n\n"
        f"{sections}\n\n"
        "The options of a command: kinema COMMAND --help\n\n"
        "with every command:\n"
        "  --debug         print the traceback of an error\n"
        "  --max-pixels N  read larger files (N = frames × height × width), such as 4e9\n\n"
        "kinema --version prints the version.\n"
    )


@contextmanager
def _stopping_gently(stopped: list[int]) -> Iterator[None]:
    """While a command runs, SIGTERM unwinds like an exception, so that temporary files are removed.

    SIGINT is recorded in ``stopped``, unless someone else handles it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGTERM, stop)
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if default:
            signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(main())
