"""Faults, load and cancels of the service's engine, with the tiny untrained vdm: prints a table.

    python -m benchmarks.serve kills            # server and worker killed with -9 in each state, 10 times each
    python -m benchmarks.serve kills --rows worker/completed
    python -m benchmarks.serve load             # 200 jobs and 50 listeners: memory and descriptors of the server
    python -m benchmarks.serve cancels          # 30 cancels in each phase: seconds until the worker has stopped
    python -m benchmarks.serve steps            # seconds of a step with and without events and previews

``host FOLDER`` is the process that `kills` ends: it runs the engine on a folder and prints the jobs as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from kinema.server.jobs import Job, Order, Progress, Settled
from kinema.server.settings import Settings
from kinema.server.supervisor import Supervisor

MODEL = "vdm/tiny"
STATES = ("queued", "load", "step", "write", "cancelling", "completed")
"""Where `kills` kills: a status, a phase, or the first step."""


def order(steps: int = 8, **changes) -> Order:
    return Order(model=MODEL, request={"prompt": "a ball", "frames": 4, "steps": steps, **changes})


def settled(steps: int = 8) -> Settled:
    """What the planner says of `order`, so that no planner is needed."""
    stage = {"stage": "base", "model": MODEL, "frames": 4, "size": [1, 3, 4, 16, 16], "steps": steps}
    forecast = {"device": "cpu", "dtype": "float32", "stages": [stage]}
    return Settled(
        frames=4, fps=8.0, height=16, width=16, clips=1, steps=steps, seed=1, task="generate", forecast=forecast
    )  # fmt: skip


def engine(folder: Path, steps: int = 8) -> Supervisor:
    """An engine whose orders are settled as `settled` says; it starts no planner and no inspector."""
    supervisor = Supervisor(Settings(folder=folder, devices=("cpu",), threads=1))

    async def planned(asked: Order) -> tuple[Settled, Order]:
        return settled(steps), asked

    supervisor._planned = planned
    return supervisor


async def started(supervisor: Supervisor) -> list[str]:
    from kinema.server.inspections import Inspections
    from kinema.server.planning import Planning

    warm = Planning.warm, Inspections.warm
    Planning.warm = Inspections.warm = lambda _self: None
    try:
        return list(await supervisor.start())
    finally:
        Planning.warm, Inspections.warm = warm


async def all_final(supervisor: Supervisor) -> list[Job]:
    while supervisor.store.with_status("queued", "in_progress", "cancelling"):
        await asyncio.sleep(0.02)
    return list(supervisor.store.page(limit=10_000, newest_first=False)[0])


def reached(state: str, progress: Progress) -> bool:
    """Whether an event shows that a job is in one of `STATES`."""
    if progress.kind == "status":
        return progress.data["status"] == state
    return progress.kind == state or (progress.kind == "phase" and progress.data["name"] == state)


# -------------------------------------------------------------------------------------------- host


async def host(folder: Path, rounds: int, kill_at: str, victim: str) -> None:
    """Run what waits, then ``rounds`` times two new jobs, at whose first event of ``kill_at`` the victim is killed."""
    supervisor, armed = engine(folder), [False]
    found: dict = {"interrupted": await started(supervisor)}
    await all_final(supervisor)
    print(json.dumps(found | {"jobs": shown(supervisor, await all_final(supervisor))}), flush=True)

    def hear(video_id: str, progress: Progress) -> None:
        if armed[0] and kill_at == "cancelling" and progress.kind == "step":
            asyncio.get_running_loop().create_task(supervisor.cancel(video_id, keep_partial=False))
        if armed[0] and reached(kill_at, progress):
            armed[0] = False
            os.kill(os.getpid() if victim == "server" else supervisor.workers[0].child.pid, signal.SIGKILL)

    supervisor.listen(hear)
    for _ in range(rounds):
        while supervisor.workers[0].state != "idle":
            await asyncio.sleep(0.02)
        armed[0] = True
        for _ in range(2):
            await supervisor.submit(order())
        await all_final(supervisor)
    print(json.dumps(found | {"jobs": shown(supervisor, await all_final(supervisor))}), flush=True)
    await supervisor.stop()


def shown(supervisor: Supervisor, jobs: list[Job]) -> list[dict]:
    return [
        {"id": job.id, "status": job.status, "attempts": job.attempts, "kills": job.kills, "error": job.error_code,
         "clip": (supervisor.folder / "jobs" / job.id / "result.json").is_file()}
        for job in jobs
    ]  # fmt: skip


def run_host(folder: Path, rounds: int = 0, kill_at: str = "", victim: str = "server") -> tuple[dict, bool]:
    """Return the last that `host` printed, and whether it was killed."""
    words = ["host", str(folder), "--rounds", str(rounds), "--kill-at", kill_at, "--victim", victim]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serve", *words], capture_output=True, text=True, timeout=1200,
        cwd=Path(__file__).parents[1], check=False,
    )  # fmt: skip
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]), done.returncode != 0


EXPECTED: dict[str, dict[str, set[str]]] = {
    "server": {
        "queued": {"completed"}, "load": {"interrupted"}, "step": {"interrupted"},
        "write": {"interrupted", "completed"}, "cancelling": {"interrupted"}, "completed": {"completed"},
    },
    "worker": {
        "queued": {"completed"}, "load": {"failed"}, "step": {"failed"}, "write": {"failed", "completed"},
        "cancelling": {"cancelled"}, "completed": {"completed"},
    },
}  # fmt: skip
"""How the job ends during which a process was killed. A killed worker that wrote its clip has finished."""


def faults(jobs: list[dict], interrupted: set[str], victim: str, state: str, rounds: int) -> list[str]:
    """What is wrong with the jobs of all rounds."""
    # A server that dies when its first job is queued has accepted one job only.
    each = 1 if (victim, state) == ("server", "queued") else 2
    wrong = [] if len(jobs) == each * rounds else [f"{len(jobs)} jobs of {each * rounds}"]
    for number, job in enumerate(jobs):
        expected = EXPECTED[victim][state] if number % each == 0 else {"completed"}
        if job["status"] not in expected:
            wrong.append(f"a job is {job['status']}")
        if job["attempts"] != 1:
            wrong.append(f"a job ran {job['attempts']} times")
        if (job["status"] == "completed") != job["clip"]:
            wrong.append("completed without a clip")
    named = interrupted == {job["id"] for job in jobs if job["status"] == "interrupted"}
    return wrong if named else [*wrong, "an interrupted job is not named"]


def killed(victim: str, state: str, rounds: int) -> list[str]:
    """Kill ``rounds`` times, starting the server again on the same folder, and return what is wrong at the end."""
    interrupted: set[str] = set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if victim == "worker":
            return faults(run_host(folder, rounds, state, victim)[0]["jobs"], interrupted, victim, state, rounds)
        for _ in range(rounds):
            found, died = run_host(folder, 1, state, victim)
            interrupted |= {*found["interrupted"]}
            if not died:
                return ["the server was not killed"]
        found, _ = run_host(folder)
        return faults(found["jobs"], interrupted | {*found["interrupted"]}, victim, state, rounds)


def kills(repeats: int, rows: Collection[str]) -> None:
    print(f"{'killed with -9':<16}{'at':<12}{'times':>6}{'lost, repeated or wrong':>26}{'seconds':>9}")
    for state in STATES:
        for victim in EXPECTED:
            if rows and f"{victim}/{state}" not in rows:
                continue
            began, wrong = time.monotonic(), killed(victim, state, repeats)
            seconds = time.monotonic() - began
            print(f"{victim:<16}{state:<12}{repeats:>6}{len(wrong):>26}{seconds:>9.0f}", *wrong, flush=True)


# -------------------------------------------------------------------------------------------- load


def usage() -> tuple[int, int]:
    """Resident bytes and open descriptors of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path("/proc/self/fd").iterdir()))


async def load(jobs: int, listeners: int) -> None:
    """Submit jobs while clients listen; a tenth of them never read fast enough."""
    with tempfile.TemporaryDirectory() as folder:
        supervisor = engine(Path(folder), steps=4)
        await started(supervisor)

        async def listen(video_id: str, pause: float) -> int:
            count = 0
            async for _ in supervisor.events(video_id):
                count += 1
                await asyncio.sleep(pause)
            return count

        async def round_of(count: int) -> int:
            accepted = [await supervisor.submit(order(steps=4)) for _ in range(count)]
            watched = [accepted[number * count // listeners].id for number in range(min(listeners, count))]
            tasks = [asyncio.create_task(listen(each, 0.5 if n % 10 == 0 else 0)) for n, each in enumerate(watched)]
            await all_final(supervisor)
            return sum(await asyncio.gather(*tasks))

        await round_of(10)
        before, began = usage(), time.monotonic()
        peak, watching = [0], asyncio.create_task(watch(lambda: peak.__setitem__(0, max(peak[0], usage()[0]))))
        events = await round_of(jobs)
        watching.cancel()
        after, seconds = usage(), time.monotonic() - began
        states = Counter(job.status for job in await all_final(supervisor))
        await supervisor.stop()
    print(f"{jobs} jobs, {listeners} listeners, {events} events, {seconds:.0f} s, {seconds / jobs:.2f} s a job")
    print("jobs by state:", dict(states))
    print(f"resident memory of the server: {before[0] / 2**20:.1f} MiB before, {after[0] / 2**20:.1f} MiB after, "
          f"{peak[0] / 2**20:.1f} MiB at most")  # fmt: skip
    print(f"descriptors: {before[1]} before, {after[1]} after")


async def watch(look: Callable[[], None]) -> None:
    while True:
        look()
        await asyncio.sleep(0.1)


# ----------------------------------------------------------------------------------------- cancels


LONG_STEPS = Order(
    model="zoetrope",
    request={
        "prompt": "a red ball rolls right", "clips": 4, "frames": 16, "height": 64, "width": 64, "steps": 6
    },
)  # fmt: skip
LONG_DECODING = Order(
    model="opensora-pocket",
    request={
        "prompt": "a red ball rolls right", "clips": 8, "frames": 17, "height": 192, "width": 192, "steps": 1
    },
)  # fmt: skip
PHASES = {
    "queued": LONG_STEPS, "load": LONG_STEPS, "condition": LONG_STEPS, "sample": LONG_STEPS, "step": LONG_STEPS,
    "decode": LONG_DECODING, "write": LONG_DECODING,
}  # fmt: skip
"""The order whose run is cancelled in each phase: one with long steps, one that decodes long, in chunks."""


async def cancels(repeats: int, phases: Sequence[str]) -> None:
    """Cancel at the start of each phase, after the first step, and at any time of decoding.

    A cancel is late if the worker stops half a second later than the longest step of zoetrope takes: a chunk of
    decoding, a few frames of one layer, is shorter. A job whose clip is being written completes: the finished clip
    beats a late cancel, which is answered when it is written.
    """
    with tempfile.TemporaryDirectory() as folder:
        supervisor = Supervisor(Settings(folder=Path(folder), devices=("cpu",)))
        await supervisor.start()
        longest, _ = await baseline(supervisor, LONG_STEPS)
        _, decoding = await baseline(supervisor, LONG_DECODING)
        print(f"longest step {longest:.3f} s; decoding in chunks {decoding:.3f} s; both without a cancel")
        print(
            f"{'cancelled at':<14}{'times':>6}{'median s':>10}{'longest s':>11}{'late':>6}{'completed':>11}{'in s':>7}"
        )
        for state in phases:
            asked, seconds = PHASES[state], dict[str, list[float]](cancelled=[], completed=[])
            for number in range(repeats):
                wait = decoding * number / repeats if state == "decode" else 0
                spent, status = await cancelled(supervisor, asked, state, wait)
                seconds[status].append(spent)
            stopped, finished = seconds["cancelled"], seconds["completed"]
            late = sum(each > longest + 0.5 for each in stopped)
            print(
                f"{state:<14}{repeats:>6}{statistics.median(stopped or [0]):>10.3f}{max(stopped, default=0):>11.3f}"
                f"{late:>6}{len(finished):>11}{max(finished, default=0):>7.2f}", flush=True,
            )  # fmt: skip
        await supervisor.stop()


async def baseline(supervisor: Supervisor, asked: Order) -> tuple[float, float]:
    """Seconds of the longest step and of decoding, without a cancel."""
    at: list[tuple[str, float]] = []
    job = await supervisor.submit(asked)
    async for event in supervisor.events(job.id):
        if event.kind in ("step", "phase"):
            at.append((event.data.get("name", "step"), time.monotonic()))
    spans = [(now[0], then[1] - now[1]) for now, then in zip(at, at[1:], strict=False)]
    longest = max(seconds for name, seconds in spans if name in ("sample", "step"))
    return longest, max(seconds for name, seconds in spans if name == "decode")


async def cancelled(supervisor: Supervisor, asked: Order, state: str, wait: float) -> tuple[float, str]:
    """Seconds from the request to cancel, ``wait`` after ``state``, until the worker has stopped; the state then."""
    if state == "queued":
        await supervisor.pause(True)
    job = await supervisor.submit(asked)
    if state != "queued":
        async for event in supervisor.events(job.id):
            if reached(state, event):
                break
    await asyncio.sleep(wait)
    began = time.monotonic()
    job = await supervisor.cancel(job.id, keep_partial=False)
    seconds = time.monotonic() - began
    await supervisor.pause(False)
    return seconds, job.status


# ------------------------------------------------------------------------------------------- steps


def steps(rounds: int) -> None:
    """Alternate runs of one model with and without the worker's events and previews, in one process."""
    import kinema
    from kinema.events import Event, Step
    from kinema.previews import Previews
    from kinema.server.worker import Run, Worker

    class Sink:
        """A channel that encodes messages in another thread, as the worker's does."""

        def __init__(self) -> None:
            from concurrent.futures import ThreadPoolExecutor

            self.pool = ThreadPoolExecutor(1)

        def send(self, _kind: str, message) -> None:
            self.pool.submit(lambda: json.dumps(message() if callable(message) else message))

    model = kinema.load("zoetrope")
    own = {"dtype": None, "threads": None, "memory": None, "offload": "auto", "compile": False, "device": "cpu"}
    worker = Worker(Sink(), {**own, "preview_rate": 4.0, "c2pa_certificate": None, "c2pa_key": None})
    message = {"job": "video", "names": {}, "folder": ".", "stages": ["base"]}

    def run(*, served: bool) -> tuple[list[float], float]:
        """Seconds of each step but the first, and CPU seconds of the process for a step."""
        at: list[float] = []
        hear = Run(worker, message, kinema.Cancel()).heard

        def listen(event: Event) -> None:
            if isinstance(event, Step):
                at.append(time.perf_counter())
                cpu.append(time.process_time())
            if served:
                hear(event)

        cpu: list[float] = []
        model.generate(
            "a red ball rolls right", seed=1, clips=3, steps=5, on_event=listen, preview=served and Previews(rate=4.0)
        )
        return [b - a for a, b in zip(at, at[1:], strict=False)], (cpu[-1] - cpu[0]) / (len(cpu) - 1)

    run(served=True)
    spent: dict[bool, list[float]] = {True: [], False: []}
    used: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * rounds):
        each, cpu = run(served=number % 2 == 0)
        spent[number % 2 == 0] += each
        used[number % 2 == 0].append(cpu)
    for name, found in (("seconds", spent), ("CPU seconds", used)):
        with_, without = (statistics.median(found[served]) for served in (True, False))
        ratio = f"{with_:.3f} with events and previews, {without:.3f} without, ratio {with_ / without:.3f}"
        print(f"{name} of a step: {ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, most in (("kills", 10), ("cancels", 30), ("steps", 5)):
        added = commands.add_parser(name)
        added.add_argument("--repeats", type=int, default=most)
        if name == "kills":
            known = [f"{victim}/{state}" for state in STATES for victim in EXPECTED]
            added.add_argument("--rows", nargs="+", choices=known, default=(), help="only these")
        if name == "cancels":
            added.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES), help="only these")
    many = commands.add_parser("load")
    many.add_argument("--jobs", type=int, default=200)
    many.add_argument("--listeners", type=int, default=50)
    hosted = commands.add_parser("host")
    hosted.add_argument("folder", type=Path)
    hosted.add_argument("--rounds", type=int, default=0)
    hosted.add_argument("--kill-at", default="")
    hosted.add_argument("--victim", choices=("server", "worker"), default="server")
    words = parser.parse_args()
    if words.command == "host":
        asyncio.run(host(words.folder, words.rounds, words.kill_at, words.victim))
    elif words.command == "load":
        asyncio.run(load(words.jobs, words.listeners))
    elif words.command == "cancels":
        asyncio.run(cancels(words.repeats, words.phases))
    elif words.command == "kills":
        kills(words.repeats, words.rows)
    else:
        steps(words.repeats)


if __name__ == "__main__":
    main()
