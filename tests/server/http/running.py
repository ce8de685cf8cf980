"""A listening service in a process of its own, and what that process opened.

This file is also the server: ``python running.py FOLDER`` serves the fake engine and prints its port, and at the end
every file, connection and program outside of its folder and of Python's own that was opened after the start.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Running:
    """``port`` of the service, and after its end ``opened``: what it should not have opened."""

    port: int
    folder: Path
    process: subprocess.Popen
    opened: list[str] = field(default_factory=list)
    log: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running(folder: Path, **settings):
    command = [sys.executable, __file__, str(folder), json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(process.stderr.read())
        service = Running(json.loads(line)["port"], folder, process)
        try:
            yield service
        finally:
            process.send_signal(signal.SIGTERM)
            out, service.log = process.communicate(timeout=60)
        service.opened = json.loads(out)["opened"]
        assert process.returncode == 0, service.log


def main(folder: Path, given: dict) -> None:
    import asyncio

    sys.path.insert(0, str(Path(__file__).parent))
    from fake import FakeEngine

    from kinema.server import app as server
    from kinema.server.http import protocol, security
    from kinema.server.settings import Limits, Settings

    limits = Limits(**given.pop("limits", {}))
    pace = {name: given.pop(name) for name in ("seconds", "steps") if name in given}
    opened: list[str] = []
    protocol.HEAD_SECONDS = given.pop("head_seconds", protocol.HEAD_SECONDS)
    protocol.MAX_CONNECTIONS = given.pop("connections", protocol.MAX_CONNECTIONS)
    security.STALLED = given.pop("stalled", security.STALLED)

    async def serve() -> None:
        settings = Settings(folder=folder, port=0, limits=limits, **given)
        engine = FakeEngine(folder, **pace)
        await engine.start()
        with server.bound(settings) as listening:

            def ready() -> None:
                sys.addaudithook(watch(folder, opened))
                sys.stdout.write(json.dumps({"port": listening.getsockname()[1]}) + "\n")
                sys.stdout.flush()

            app = server.create_app(engine, settings)
            inspectable(app, engine)
            await server.listen(app, listening, ready)
            await engine.stop()

    asyncio.run(serve())
    sys.stdout.write(json.dumps({"opened": opened}) + "\n")


def inspectable(app, engine) -> None:
    """Add what tests ask of the process: open streams, and an answer of 64 MiB."""
    from starlette.responses import JSONResponse, StreamingResponse

    @app.get("/streams", include_in_schema=False)
    async def streams():
        readers = sum(map(len, engine.readers.values()))
        return JSONResponse({"streams": app.state.service.streams, "readers": readers})

    @app.get("/large", include_in_schema=False)
    async def large():
        async def parts():
            for _ in range(1024):
                yield bytes(2**16)

        return StreamingResponse(parts())


def watch(folder: Path, opened: list[str]):
    own = [
        folder,
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(__file__).parents[3],
        Path("/usr/lib"),
        Path("/dev/null"),
    ]
    allowed = tuple(str(path.resolve()) for path in own)

    def hook(event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[0], str | bytes):
            path = args[0].decode() if isinstance(args[0], bytes) else args[0]
            if not str(Path(path).resolve()).startswith(allowed):
                opened.append(path)
        elif event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.posix_spawn"):
            opened.append(f"{event} {args}")

    return hook


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), json.loads(sys.argv[2]))
