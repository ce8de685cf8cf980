"""``kinema``: picks the command, and turns every ending into one line and an exit code.

0 done, 1 failed, 2 a request that cannot be answered, 130 interrupted. The table below is all that
``kinema --help`` loads; a command's module is imported when it is called.
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
from kinema.schema import BadRequest, Cancelled

COMMANDS: dict[str, tuple[str, str]] = {
    "generate": ("kinema.cli.verbs:generate", "a video from a sentence"),
    "animate": ("kinema.cli.verbs:animate", "a video that begins with a picture"),
    "interpolate": ("kinema.cli.verbs:interpolate", "the frames between the given ones"),
    "extend": ("kinema.cli.verbs:extend", "what comes after a clip, or before it"),
    "inpaint": ("kinema.cli.verbs:inpaint", "new content in a region of a clip"),
    "edit": ("kinema.cli.verbs:edit", "a clip remade from another one"),
    "upscale": ("kinema.cli.verbs:upscale", "a clip made larger"),
    "replay": ("kinema.cli.replay:replay", "make a clip again from the recipe it carries"),
    "plan": ("kinema.cli.plan:plan", "what a request would do and cost, before it runs"),
    "models": ("kinema.cli.models:models", "the models, families and samplers there are"),
    "inspect": ("kinema.cli.models:inspect", "what a weight file or a clip holds"),
    "convert": ("kinema.cli.convert:convert", "weights from one layout to another"),
    "data": ("kinema.cli.data:data", "clips made ready for training: shots, motion, latents"),
    "train": ("kinema.cli.train:train", "train a model, or resume a run"),
    "evaluate": ("kinema.cli.train:evaluate", "measure a model"),
    "doctor": ("kinema.cli.doctor:doctor", "whether this machine has what kinema needs"),
}
"""Command name to "module:function" (takes the words after the name, returns the exit code) and its help."""

FAILED, BAD_REQUEST, INTERRUPTED = 1, 2, 130
UNREADABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS}
)
"""What is wrong with a name that the user gave, not with the machine."""
NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")
"""How torch's allocators word it, the CPU's in a plain RuntimeError."""

LONGEST = 380
"""Characters of the last sentence."""
MOST_PIXELS = 10**15
FIRST = 'kinema generate "a red ball rolls right" -o ball.mp4'


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code is returned, nothing is raised."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    words, after = words[:end], words[end:]  # what follows "--" is no option
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    stopped: list[int] = []
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            # A name may hold what this terminal's encoding cannot show: a path is printed as the bytes that it is.
            stream.reconfigure(errors=errors)
    try:
        words, pixels = _max_pixels(words)
        with _stopping_gently(stopped), warnings.catch_warnings(), bounds.raised(pixels):
            if not (debug or sys.warnoptions):
                warnings.simplefilter("ignore")  # a library's advice to programmers is no answer to a user
            return _dispatch(words + after)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:
        # The reader of our output went away (`kinema models | head`); Python must not complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            import traceback

            traceback.print_exc()
        # C code that is interrupted may raise what it likes instead.
        message, code = ending(KeyboardInterrupt() if stopped else error)
        sys.stderr.write(f"kinema: {message}\n")
        return code


def ending(error: BaseException) -> tuple[str, int]:
    """The sentence, on one line that a terminal may print, and the exit code of what went wrong."""
    message, code = _ending(error)
    return bounds.printable(" ".join(message.split()), LONGEST), code


def _ending(error: BaseException) -> tuple[str, int]:
    match error:
        case BadRequest():
            return str(error), BAD_REQUEST
        case KeyboardInterrupt():
            return "interrupted; no half file is left behind", INTERRUPTED
        case Cancelled():
            return str(error), INTERRUPTED
        case OSError():
            from kinema.atomic import FULL

            where = f"{str(error.filename)[:200]}: " if error.filename else ""
            refused = error.errno in FULL or error.errno in UNREADABLE
            return f"{where}{error.strerror or error}", BAD_REQUEST if refused else FAILED
    if _out_of_memory(error):
        return "out of memory; ask for fewer frames, a smaller size or fewer clips", FAILED
    first = (str(error).strip().splitlines() or ["no further word"])[0]
    return f"{type(error).__name__}: {first} (--debug shows where)", FAILED


def _out_of_memory(error: BaseException) -> bool:
    """Python's own error, or torch's by name: this module does without torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in said for word in NO_MEMORY)


def _max_pixels(words: Sequence[str]) -> tuple[list[str], int]:
    """The words without ``--max-pixels N``, and that N, which holds for every command that reads files."""
    left, told = [], "0"
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("--max-pixels", "--max_pixels"):
            told = value if equals else next(rest, "")
        else:
            left.append(word)
    try:
        pixels = int(float(told))
    except (ValueError, OverflowError):
        pixels = -1
    if not 0 <= pixels <= MOST_PIXELS:
        said = f"expected a whole number up to {MOST_PIXELS:,}, such as 4e9"
        raise BadRequest(f"--max-pixels is {bounds.quoted(told)}; {said}")
    return left, pixels


def _dispatch(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    if name in ("-V", "--version"):
        sys.stdout.write(f"kinema {__version__}\n")
        return 0
    if name not in COMMANDS:
        raise BadRequest(registry.unknown("command", name, COMMANDS))
    return registry.resolve(COMMANDS[name][0])(words[1:])


def _help() -> str:
    rows = "\n".join(f"  {name:<12} {about}" for name, (_, about) in COMMANDS.items())
    return (
        f"kinema {__version__}: video diffusion in one package\n\n"
        f"usage: kinema COMMAND …\n\n{rows}\n\n"
        f"first:  {FIRST}\n"
        "more:   kinema COMMAND --help\n"
        "also:   --version, and with any command --debug for a full traceback,\n"
        "        or --max-pixels N (frames × height × width) to read a file that is refused for its size\n"
    )


@contextmanager
def _stopping_gently(stopped: list[int]) -> Iterator[None]:
    """While a command runs, SIGTERM unwinds like an exception, so that temporary files are removed.

    Signals by which a user ends a command are added to ``stopped``, where nobody else handles them.
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
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(main())
