from __future__ import annotations

import contextlib
import errno
import signal
import subprocess
import sys

import pytest

import kinema
from kinema import __main__, bounds, registry
from kinema.cli import main as cli
from kinema.schema import BadRequest


@pytest.fixture
def command(monkeypatch):
    """Install a function as the command ``try``."""

    def install(function):
        monkeypatch.setitem(cli.COMMANDS, "try", ("somewhere:something", "a try"))
        monkeypatch.setattr(registry, "resolve", lambda _target: function)

    return install


def raiser(error):
    def command(_words):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (BadRequest("frames is 0"), 2, "frames is 0"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "ball.mp4"), 2, "ball.mp4: No space left"),
        (OSError(errno.EIO, "Input/output error"), 1, "Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied", "ball.png"), 2, "ball.png: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "ball"), 2, "ball: Is a directory"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), 2, "File name too long"),
        (MemoryError(), 1, "out of memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA: tried to allocate 2 GiB"), 1, "use fewer frames"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "use fewer frames"),
        (RuntimeError("first line\nsecond line"), 1, "RuntimeError: first line (run with --debug"),
        (RuntimeError(), 1, "RuntimeError"),
        (AssertionError("never"), 1, "AssertionError: never"),
    ],
)
def test_every_error_is_one_line_and_an_exit_code(command, capsys, error, code, part):
    command(raiser(error))
    assert cli.main(["try"]) == code
    err = capsys.readouterr().err
    assert err.startswith("kinema: ")
    assert part in err
    assert err.count("\n") == 1


def test_debug_prints_the_traceback_and_is_not_passed_on(command, capsys):
    seen = []

    def fail(words):
        seen.extend(words)
        raise RuntimeError("deep")

    command(fail)
    assert cli.main(["try", "--debug", "x"]) == 1
    assert seen == ["x"]
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.rstrip().splitlines()[-1].startswith("kinema: RuntimeError: deep")


def test_an_interrupt_that_surfaces_as_another_error_exits_with_130(command, capsys):
    """C code that calls back into Python may swallow the exception and raise another one."""

    def interrupted(_words):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ValueError("could not determine the shape")

    command(interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore SIGINT
    try:
        assert cli.main(["try"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted" in capsys.readouterr().err


def test_sigterm_unwinds_so_that_temporary_files_are_removed(command):
    cleaned = []

    def work(_words):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned.append(True)

    command(work)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["try"]) == 128 + signal.SIGTERM
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is before


def test_no_command_prints_the_help(capsys):
    assert cli.main([]) == 0
    first = capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out == first
    assert all(f"  {name} " in first for name in cli.COMMANDS)


def test_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"kinema {kinema.__version__}\n"


def test_an_unknown_command_gets_the_nearest_name(capsys):
    assert cli.main(["generte"]) == 2
    assert "did you mean generate" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_in_the_table_exists_and_has_help(name, capsys):
    assert cli.main([name, "--help"]) == 0
    assert f"usage: kinema {name}" in capsys.readouterr().out


def test_a_closed_pipe_is_not_an_error():
    code = "import sys\nfrom kinema.cli.main import main\nsys.exit(main(['generate', '--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(60) == 0
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_an_interrupt_during_the_import_is_one_line(monkeypatch, capsys):
    class Interrupted:
        @staticmethod
        def find_spec(name, *_args):
            if name == "kinema.cli.main":
                raise KeyboardInterrupt
            return None

    monkeypatch.delitem(sys.modules, "kinema.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    assert __main__.main() == 130
    assert capsys.readouterr().err == "kinema: interrupted before the command started\n"


@pytest.mark.parametrize("words", [["--max-pixels", "4e9"], ["--max-pixels=4_000_000_000"], ["--max_pixels=4e9"]])
def test_max_pixels_raises_the_bound_of_any_command_while_it_runs(command, words):
    seen = []
    command(lambda rest: seen.append((rest, bounds.max_pixels(100))) or 0)
    assert cli.main(["try", "a", *words, "b"]) == 0
    assert seen == [(["a", "b"], 4_000_000_000)]
    assert bounds.max_pixels(100) == 100


@pytest.mark.parametrize("value", ["many", "-1", "nan", "1e400", ""])
def test_an_invalid_max_pixels_is_refused(command, capsys, value):
    command(lambda _rest: 0)
    assert cli.main(["try", "--max-pixels", value]) == 2
    assert f"--max-pixels is {value!r}; expected a whole number" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--max-pixels", "--max-pixels=x", "--debug"])
def test_arguments_after_two_dashes_are_not_options(command, word):
    seen = []
    command(lambda rest: seen.append(rest) or 0)
    assert cli.main(["try", "--max-pixels", "4e9", "a", "--", word, "3"]) == 0
    assert seen == [["a", "--", word, "3"]]


def test_a_message_that_is_too_long_keeps_its_end(command, capsys):
    def refuse(_rest):
        raise BadRequest(f"the file {'x' * 10**5} is a folder; expected an image")

    command(refuse)
    assert cli.main(["try"]) == 2
    err = capsys.readouterr().err
    assert len(err) < 400
    assert err.startswith("kinema: the file xxx")
    assert err.endswith("xxx is a folder; expected an image\n")
