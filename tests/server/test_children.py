"""Child processes: JSON lines, whatever libraries print; they never outlive the server, and never wait for it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kinema
from kinema.server.channel import sentence
from kinema.server.children import Child, Ended

CHILD = """
import os, sys, time
from kinema.server.channel import Channel, be_child
be_child()
channel = Channel()
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a child that runs this code after the set-up that every child has."""
    source = Path(kinema.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{source}")

    async def started(code: str) -> Child:
        (tmp_path / "a_child.py").write_text(CHILD + code)
        return await Child.start("a_child", tmp_path)

    return started


def test_what_libraries_print_is_no_message(start):
    async def talk() -> dict:
        child = await start(
            "print('hello'); os.write(1, b'from C\\n'); message = next(channel.messages())\n"
            "channel.send('x', {'got': message, 'print': sys.stdout is sys.stderr}); channel.flush()\n"
        )
        child.send({"a": "é\n"})
        reply = await child.receive()
        with pytest.raises(Ended, match="exited with code 0"):
            await child.receive()
        return reply

    assert asyncio.run(talk()) == {"got": {"a": "é\n"}, "print": True}


@pytest.mark.parametrize(
    ("code", "how"),
    [("sys.exit(3)", r"exited with code 3"), ("os.kill(os.getpid(), 9)", r"was killed \(signal 9, SIGKILL\)")],
)
def test_the_end_of_a_child_is_described(start, code, how):
    async def ends() -> None:
        child = await start(code)
        with pytest.raises(Ended, match=how):
            await child.receive()
        child.send({"nobody": "hears"})

    asyncio.run(ends())


def test_a_child_that_breaks_the_rules_is_killed(start):
    async def ends() -> None:
        child = await start("channel._out.write(b'no json\\n'); time.sleep(60)")
        with pytest.raises(Ended, match="SIGKILL"):
            await child.receive()

    asyncio.run(ends())


def test_a_busy_child_ends_when_its_input_is_closed_and_ignores_ctrl_c(start):
    async def ends() -> float:
        child = await start(
            "channel.listen(lambda m: None); channel.send('x', {}); time.sleep(0.5); channel.send('x', {})\n"
            "end = time.time() + 60\nwhile time.time() < end: pass"
        )
        await child.receive()
        os.kill(child.pid, signal.SIGINT)
        await child.receive()
        began = time.monotonic()
        child.close()
        with pytest.raises(Ended):
            await child.receive()
        return time.monotonic() - began

    assert asyncio.run(ends()) < 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_ctrl_c_at_a_terminal_does_not_reach_a_child_that_still_starts(start):
    async def session() -> int:
        child = await start("time.sleep(60)")
        try:
            return os.getsid(child.pid)
        finally:
            await child.stop()

    assert asyncio.run(session()) != os.getsid(0)


def test_a_child_that_does_not_read_dies_with_a_killed_server(tmp_path):
    (tmp_path / "a_child.py").write_text(CHILD + "channel.send('x', {}); time.sleep(60)")
    server = f"""
import asyncio, os
from pathlib import Path
from kinema.server.children import Child
async def main():
    child = await Child.start("a_child", Path({str(tmp_path)!r}))
    await child.receive()
    print(child.pid, flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    paths = f"{tmp_path}{os.pathsep}{Path(kinema.__file__).parents[1]}"
    done = subprocess.run(
        [sys.executable, "-c", server], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    pid = int(done.stdout)
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_server_that_does_not_read_never_stalls_the_sender(start, tmp_path):
    code = f"""
for index in range(20_000):
    channel.send("step", {{"step": index, "pad": "x" * 1000}})
open({str(tmp_path / "sent")!r}, "w").close()
channel.flush()
"""

    async def slow() -> list[int]:
        child, until = await start(code), time.monotonic() + 30
        while not (tmp_path / "sent").exists():
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        found = []
        try:
            while True:
                found.append((await child.receive())["step"])
        except Ended:
            return found

    steps = asyncio.run(slow())
    assert steps[-1] == 19_999
    assert steps == sorted(steps)


def test_messages_name_uploads_and_not_the_server_s_paths():
    names = {"/store/assets/a": "asset-a", "/store/assets/a/a.mp4": "asset-b"}
    assert sentence(ValueError("no /store/assets/a/a.mp4\nhere: \x1b[0m"), names) == "no asset-b here: \\x1b[0m"
    assert sentence(KeyError()) == "KeyError"
    assert len(sentence(ValueError("a" * 10_000))) == 500
