"""Connections of a listening service: slow clients, clients that leave, and stopping."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import sys
import time
import types
from contextlib import contextmanager
from types import SimpleNamespace

import httpx2
import pytest
from running import running

from kinema.schema import BadRequest
from kinema.server import app as server
from kinema.server.http import events as streams
from kinema.server.http import protocol
from kinema.server.jobs import Progress, ServiceError
from kinema.server.settings import Settings

HEAD = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service with little patience, whose videos take a while."""
    limits = {"body_seconds": 0.4, "upload_bytes": 2**20}
    pace = {"seconds": 0.1, "steps": 30, "head_seconds": 0.5, "stalled": 0.5}
    with running(tmp_path_factory.mktemp("store"), limits=limits, **pace) as found:
        yield found
    assert found.log == ""


@contextmanager
def connected(service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        yield connection


def read(connection) -> bytes:
    """All that arrives until the service closes the connection."""
    answer = b""
    while received := connection.recv(65536):
        answer += received
    return answer


def drip(connection, data: bytes, seconds: float) -> int:
    """Send the same again and again; how often it went until the service closed the connection or answered."""
    for count in range(100):
        if select.select([connection], [], [], seconds)[0]:
            return count
        connection.sendall(data)
    return 100


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_connection_without_a_whole_request_is_closed(service, sent):
    with connected(service) as connection:
        connection.sendall(sent)
        assert read(connection) == b""


def test_headers_that_drip_are_cut_off(service):
    with connected(service) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert drip(connection, b"X: y\r\n", 0.05) < 100


def test_headers_without_an_end_are_refused_before_they_fill_the_memory(service):
    with connected(service) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert drip(connection, b"y" * 8000, 0.01) < 10
        assert read(connection).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "body", [b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n", b"Content-Length: 100\r\n\r\n"]
)
def test_a_body_that_stops_is_answered_with_408(service, body):
    with connected(service) as connection:
        connection.sendall(HEAD + body)
        answer = read(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"


def test_a_body_that_drips_is_answered_with_408(service):
    with connected(service) as connection:
        connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
        assert drip(connection, b" ", 0.05) < 100
        assert read(connection).startswith(b"HTTP/1.1 408")


def test_an_upload_that_ends_early_leaves_no_file(service, tmp_path):
    start = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n\x89PNG' + bytes(400_000)
    head = HEAD.replace(b"application/json", b"multipart/form-data; boundary=x")
    for end in (False, True):
        with connected(service) as connection:
            connection.sendall(head + b"Content-Length: 900000\r\n\r\n" + start)
            if end:
                time.sleep(0.1)
            else:
                assert read(connection).startswith(b"HTTP/1.1 408")
    folder = service.folder / "uploads"
    until = time.monotonic() + 5
    while list(folder.iterdir()) and time.monotonic() < until:
        time.sleep(0.02)
    assert list(folder.iterdir()) == []


def test_idle_connections_make_room_for_requests(tmp_path):
    """300 clients that send nothing, or nothing more: the oldest of them go, and what is being answered stays."""
    with running(tmp_path, seconds=20, steps=200, connections=50) as service, contextlib.ExitStack() as stack:
        client = stack.enter_context(httpx2.Client(base_url=service.url, timeout=20))
        video_id = client.post("/v1/videos", json={"prompt": "x"}).json()["id"]
        stream = stack.enter_context(connected(service))
        stream.sendall(f"GET /v1/videos/{video_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert stream.recv(65536).startswith(b"HTTP/1.1 200")
        idle = []
        for number in range(300):
            idle.append(stack.enter_context(connected(service)))
            if number % 2:
                idle[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answer = b""
                while not answer.endswith(b"}"):
                    answer += idle[-1].recv(65536)
        assert client.get("/healthz").status_code == 200
        closed = [each for each in idle if select.select([each], [], [], 0)[0]]
        assert 250 <= len(closed) <= 252
        assert closed == idle[: len(closed)]
        assert not select.select([stream], [], [], 0)[0] or stream.recv(65536) != b""


def test_the_limit_of_connections_leaves_files_for_others(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert protocol.most_connections() == 128
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert protocol.most_connections() == protocol.MAX_CONNECTIONS


def test_a_too_long_upload_is_refused_while_it_is_sent(service):
    head = HEAD.replace(b"application/json", b"multipart/form-data; boundary=x")
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n\x89PNG'
    chunk = b"8000\r\n" + bytes(0x8000) + b"\r\n"
    with connected(service) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % len(part) + part + b"\r\n")
        for _ in range(80):
            connection.sendall(chunk)
        assert connection.recv(20).startswith(b"HTTP/1.1 413")


def test_a_json_body_without_a_length_is_refused_once_it_is_too_long(service):
    with connected(service) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
        for _ in range(40):
            connection.sendall(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
        connection.sendall(b"1\r\n}\r\n0\r\n\r\n")
        assert connection.recv(20).startswith(b"HTTP/1.1 413")


def test_a_client_that_leaves_its_events_frees_the_stream(service):
    with httpx2.Client(base_url=service.url) as client:
        video_id = client.post("/v1/videos", json={"prompt": "x"}).json()["id"]
        with connected(service) as connection:
            connection.sendall(f"GET /v1/videos/{video_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert b"event: status" in connection.recv(65536) + connection.recv(65536)
            assert client.get("/streams").json() == {"streams": 1, "readers": 1}
        until = time.monotonic() + 5
        while any(client.get("/streams").json().values()) and time.monotonic() < until:
            time.sleep(0.02)
        assert client.get("/streams").json() == {"streams": 0, "readers": 0}
        assert client.delete(f"/v1/videos/{video_id}").json()["deleted"]


def test_a_client_that_reads_nothing_is_disconnected(service):
    with connected(service) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(1)
        assert len(read(connection)) < 64 * 2**20


def test_stopping_ends_streams_and_does_not_wait_for_videos(tmp_path):
    with running(tmp_path, seconds=1.0, steps=100) as service, httpx2.Client(base_url=service.url) as client:
        video_id = client.post("/v1/videos", json={"prompt": "x"}).json()["id"]
        with client.stream("GET", f"/v1/videos/{video_id}/events", timeout=20) as events:
            lines = events.iter_lines()
            assert next(lines) == "id: 1"
            since = time.monotonic()
            service.process.terminate()
            assert [line for line in lines if line.startswith("event")]
        service.process.wait(20)
        assert time.monotonic() - since < 8
    assert "Traceback" not in service.log, service.log


# --------------------------------------------------------------------------------------------- serve


def test_a_used_port_is_refused_in_a_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(BadRequest, match=rf"cannot listen on 127.0.0.1 port {port}: address already in use"):
            server.serve(Settings(folder=tmp_path, port=port))


@pytest.mark.parametrize("host", ["no.such.host.invalid", "127.0.0.1.5"])
def test_an_address_of_no_machine_is_refused(tmp_path, host):
    with pytest.raises(BadRequest, match="is no address of this machine|cannot listen on"):
        server.serve(Settings(folder=tmp_path, host=host, token="correct-horse-battery"))


class Idle:
    """An engine with nothing to do that stops the service as soon as it listens."""

    def __init__(self, settings):
        pass

    async def start(self):
        return ["video_1"]

    async def stop(self):
        return ["video_2"]

    def listen(self, listener):
        pass


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_serve_says_where_it_listens_and_returns_what_it_interrupted(tmp_path, monkeypatch, number):
    import signal

    monkeypatch.setitem(sys.modules, "kinema.server.supervisor", types.SimpleNamespace(Supervisor=Idle))
    before = signal.getsignal(getattr(signal, number))
    notes, places = [], []

    def ready(url):
        places.append(url)
        signal.raise_signal(getattr(signal, number))

    stopped = server.serve(Settings(folder=tmp_path, port=0), on_ready=ready, on_note=notes.append)
    assert stopped == server.Stopped(getattr(signal, number), ["video_2"])
    assert places[0].startswith("http://127.0.0.1:")
    assert notes == ["1 video did not finish when the service last ended: video_1"]
    assert signal.getsignal(getattr(signal, number)) == before


def test_a_store_that_cannot_be_used_is_refused_before_listening(tmp_path, monkeypatch):
    class Damaged(Idle):
        async def start(self):
            raise BadRequest("the store is damaged")

    monkeypatch.setitem(sys.modules, "kinema.server.supervisor", types.SimpleNamespace(Supervisor=Damaged))
    with pytest.raises(BadRequest, match="the store is damaged"):
        server.serve(Settings(folder=tmp_path, port=0), on_ready=lambda url: pytest.fail("it listens"))


def test_the_stream_of_a_video_that_was_removed_before_its_first_event_ends():
    async def engine_events(_video_id):
        raise ServiceError(404, "not_found", "there is no video")
        yield

    async def read() -> list:
        service = SimpleNamespace(engine=SimpleNamespace(events=engine_events), stopping=asyncio.Event(), plain=dict)
        return [event async for event in streams._events(service, "video_1", True)]

    assert asyncio.run(read()) == []


def test_a_stream_that_ends_leaves_no_task():
    async def engine_events(_video_id):
        while True:
            yield Progress(kind="note", data={"message": "x"})

    async def read() -> int:
        engine = SimpleNamespace(events=engine_events)
        service = SimpleNamespace(engine=engine, stopping=asyncio.Event(), plain=dict)
        async with contextlib.aclosing(streams._events(service, "video_1", True)) as stream:
            await anext(stream)
        await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    assert asyncio.run(read()) == 1  # this one
