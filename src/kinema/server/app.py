"""The application (`create_app`) and the server process (`serve`)."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from kinema import __version__
from kinema.schema import BadRequest
from kinema.server import options_route, studio_files
from kinema.server.engine import Engine
from kinema.server.http import assets, errors, events, masks, models, openapi, pages, queue, videos
from kinema.server.http.bodies import Bodies
from kinema.server.http.metrics import Metrics
from kinema.server.http.security import Guard, check_address
from kinema.server.http.service import Service
from kinema.server.settings import Settings
from kinema.values import counted

if TYPE_CHECKING:
    import uvicorn

KEEP_ALIVE = 30
STOP_SECONDS = 10
"""Seconds that requests which are being answered get when the service stops."""


@dataclass(frozen=True)
class Stopped:
    """How the service ended: the signal, and the videos that it interrupted."""

    signal: int | None
    interrupted: Sequence[str]


def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """The application over an engine that is started and stopped by the caller."""
    app = FastAPI(title="Kinema", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    public, metrics = errors.Public(settings), Metrics(engine)
    app.state.service = Service(engine, settings, public, metrics, Bodies(engine, settings))
    routers = [module.router for module in (events, videos, assets, masks, models, queue, options_route, pages)]
    static = studio_files.routes()
    errors.install(app, public, [*(route for router in routers for route in router.routes), *static])
    for router in routers:
        app.include_router(router)
    app.router.routes.extend(static)
    openapi.install(app)
    app.add_middleware(Guard, settings=settings, public=public, count=metrics.answered)
    return app


def serve(
    settings: Settings, *, on_ready: Callable[[str], None] = print, on_note: Callable[[str], None] = print
) -> Stopped:
    """Serve until SIGINT or SIGTERM; a second signal ends the process at once.

    ``on_ready`` receives the address once the service listens, ``on_note`` a sentence about videos that the last run
    left unfinished. Raises BadRequest for an address or a store that cannot be used, before listening.
    """
    check_address(settings)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every damaged form
    return asyncio.run(_serve(settings, on_ready, on_note))


async def _serve(settings: Settings, on_ready: Callable[[str], None], on_note: Callable[[str], None]) -> Stopped:
    from kinema.server.supervisor import Supervisor

    with bound(settings) as listening:
        engine = Supervisor(settings)
        left = await engine.start()
        interrupted: Sequence[str] = ()
        try:
            if left:
                on_note(f"{counted(len(left), 'video')} did not finish when the service last ended: {', '.join(left)}")
            app = create_app(engine, settings)
            number = await listen(app, listening, lambda: on_ready(address(settings, listening)))
        finally:
            interrupted = await engine.stop()
    return Stopped(number, interrupted)


def address(settings: Settings, listening: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listening.getsockname()[1]}"


@contextmanager
def bound(settings: Settings) -> Iterator[socket.socket]:
    """A socket at the address, which does not accept connections yet. Raises BadRequest if the address is not free."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise BadRequest(f"{settings.host} port {settings.port} is no address of this machine: {error}") from None
    with listening:
        if hasattr(socket, "SO_REUSEADDR") and hasattr(signal, "SIGUSR1"):  # on Windows it would share the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(where)
        except OSError as error:
            reason = error.strerror or str(error)
            raise BadRequest(f"cannot listen on {settings.host} port {settings.port}: {reason.lower()}") from None
        yield listening


def server_of(app: FastAPI) -> uvicorn.Server:
    """uvicorn with the service's limits. It installs no signal handlers and prints nothing but failures."""
    import uvicorn

    from kinema.server.http.protocol import HEAD_BYTES, Connection

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config: dict[str, Any] = {
        "http": Connection,
        "ws": "none",
        "lifespan": "off",
        "loop": "asyncio",
        "interface": "asgi3",
        "access_log": False,
        "log_level": "error",
        "proxy_headers": False,
        "server_header": False,
        "h11_max_incomplete_event_size": HEAD_BYTES,
        "timeout_keep_alive": KEEP_ALIVE,
        "timeout_graceful_shutdown": STOP_SECONDS,
    }
    return Server(uvicorn.Config(app, **config))


async def listen(app: FastAPI, listening: socket.socket, ready: Callable[[], None]) -> int | None:
    """Run the app on a bound socket until a signal, which is returned."""
    server, loop = server_of(app), asyncio.get_running_loop()
    received: list[int] = []

    def stop(number: int) -> None:
        if received:
            server.force_exit = True
        received.append(number)
        app.state.service.stopping.set()
        server.should_exit = True

    with handled(lambda number: loop.call_soon_threadsafe(stop, number)):
        running = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started and not running.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready()
        await running
    return received[0] if received else None


@contextmanager
def handled(stop: Callable[[int], object]) -> Iterator[None]:
    """Call ``stop`` with the number of the first SIGINT or SIGTERM; the next one is handled as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def first(number: int, _frame: object) -> None:
        restore()
        stop(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, first)
    try:
        yield
    finally:
        restore()
