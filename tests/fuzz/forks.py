"""One fork an input: what reads a file, run apart, with its time, memory, exit code and words.

This file is also the server: ``python forks.py`` imports the libraries once and forks for each line of standard input.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SECONDS = 20
BYTES = 2 * 2**30
WORDS = 400
CEILING = 8 * 2**30
"""Address space of a child beyond what it has at the fork: the machine is to live on."""


@dataclass(frozen=True)
class Ending:
    """``code`` is the exit code, or minus the signal; ``said`` the last line on standard error."""

    code: int
    said: str
    seconds: float
    bytes: int

    @property
    def fault(self) -> str:
        """What is wrong with it; "" where nothing is."""
        if self.seconds > SECONDS:
            return f"took {self.seconds:.0f} s"
        if self.bytes > BYTES:
            return f"needed {self.bytes / 2**30:.1f} GiB"
        if self.code not in (0, 2):
            return f"ended with {self.code}: {self.said[:300]}"
        if self.code == 2 and not self.said.strip():
            return "was refused without a word"
        if self.code == 2 and len(self.said) >= WORDS:
            return f"was refused in {len(self.said):,} characters: {self.said[:WORDS]}"
        if self.code == 2 and not self.said.isprintable():
            return f"printed control characters: {self.said!r}"
        return ""


class Server:
    """A process that has everything imported and reads one damaged file after the other."""

    def __init__(self) -> None:
        import subprocess

        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "forks.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self, seed: str, content: bytes) -> Ending:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([seed, content.hex()]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server is gone"
        return Ending(**json.loads(answer))

    def close(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()


# -------------------------------------------------------------------------------------- the server


def serve() -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    sys.path.insert(0, str(HERE))
    from seeds import seeds

    import kinema.cli.verbs
    import kinema.generate
    import kinema.media.read
    import kinema.training.run  # noqa: F401

    known = seeds()
    for name in modules(known):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page that it visits
    for line in sys.stdin:
        name, content = json.loads(line)
        print(json.dumps(vars(one(known[name], bytes.fromhex(content)))), flush=True)  # noqa: T201


def modules(known) -> list[str]:
    """What reading each whole file imports; a fork tells, so that only modules stay, not what readers keep.

    Imported once here, they are not imported again in every fork.
    """
    told = Path(tempfile.mkdtemp(prefix="fuzz")) / "modules"
    child = os.fork()
    if child == 0:
        before = set(sys.modules)
        with contextlib.suppress(BaseException):
            null = os.open(os.devnull, os.O_RDWR)
            for to in (0, 1, 2):
                os.dup2(null, to)
            for seed in known.values():
                folder = told.parent / "read"
                folder.mkdir()
                place(seed, seed.file(seed.content), folder)
                os.chdir(folder)
                with contextlib.suppress(Exception):
                    seed.read(folder)
                shutil.rmtree(folder)
            told.write_text("\n".join(name for name in sys.modules if name not in before))
        os._exit(0)
    os.waitpid(child, 0)
    try:
        return told.read_text().split()
    finally:
        shutil.rmtree(told.parent)


def place(seed, content: bytes, folder: Path) -> None:
    for name, data in {**seed.beside, seed.name: content}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def one(seed, content: bytes) -> Ending:
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        place(seed, content, folder)
        words = folder.with_suffix(".words")
        child = os.fork()
        if child == 0:
            inside(seed, folder, words)
        late = threading.Timer(SECONDS + 1, os.kill, (child, signal.SIGKILL))
        late.start()
        _, status, used = os.wait4(child, 0)
        late.cancel()
        said = words.read_text(errors="backslashreplace").strip().splitlines() if words.exists() else []
        code = os.waitstatus_to_exitcode(status)
        last = said[-1].removeprefix("kinema: ") if said else ""
        # Seconds of work, not of waiting: other tests share the machine. What hangs is ended by the timer.
        seconds = SECONDS + 1.0 if code == -signal.SIGKILL else used.ru_utime + used.ru_stime
        return Ending(code, last, seconds, used.ru_maxrss * 1024)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".words").unlink(missing_ok=True)


def inside(seed, folder: Path, words: Path) -> None:
    """The child: ends with the reader's exit code, its words in a file."""
    code = 70
    try:
        handle = os.open(words, os.O_CREAT | os.O_WRONLY)
        null = os.open(os.devnull, os.O_RDWR)
        for to, source in ((0, null), (1, null), (2, handle)):
            os.dup2(source, to)
        sys.stdin = open(0)
        os.chdir(folder)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + CEILING, held + CEILING))
        code = ended(seed, folder)
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(seed, folder: Path) -> int:
    from kinema.cli.main import ending

    try:
        code = seed.read(folder)
        return code if isinstance(code, int) else 0
    except BaseException as error:
        if os.environ.get("FUZZ_DEBUG"):
            import traceback

            traceback.print_exc()
        said, code = ending(error)
        with contextlib.suppress(UnicodeError):
            sys.stderr.write(f"kinema: {' '.join(said.split())}\n")
        return code


if __name__ == "__main__":
    serve()
