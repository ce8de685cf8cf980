"""Malformed, oversized and hostile requests are answered with 4xx in the service's form, and open nothing."""

from __future__ import annotations

import json
import socket

import pytest
from hostile import END, GROUPS, form, http, part
from running import running


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def service(folder):
    with running(folder / "store", limits={"upload_bytes": 2**21}) as found:
        yield found
    assert found.opened == []
    assert "Traceback" not in found.log, found.log


def ask(service, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the first answer."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        try:
            connection.sendall(request)
        except (BrokenPipeError, ConnectionResetError):
            pass  # answered before the body was sent
        answer = b""
        while b"\r\n\r\n" not in answer or (not request.startswith(b"HEAD") and len(answer) < length(answer)):
            if not (received := connection.recv(65536)):
                break
            answer += received
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


def length(answer: bytes) -> int:
    head, _, _ = answer.partition(b"\r\n\r\n")
    found = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return len(head) + 4 + (int(found[0].split(b":")[1]) if found else 0)


def complaint(request: bytes, status: int, headers: dict[str, str], body: bytes) -> str:
    """What is wrong with the answer to a request that must be refused; "" if nothing is."""
    if not 400 <= status < 500 or headers.get("x-content-type-options") != "nosniff":
        return f"{status} {headers} {body[:300]!r}"
    if request.startswith(b"HEAD"):
        return ""
    error = json.loads(body[: int(headers["content-length"])])["error"]
    sound = error.keys() == {"message", "type", "param", "code"} and 0 < len(error["message"]) <= 2000
    return "" if sound and "root:" not in error["message"] and "/" + "store" not in error["message"] else str(error)


def test_there_are_enough_hostile_requests():
    assert sum(map(len, GROUPS.values())) >= 200


@pytest.mark.parametrize("group", GROUPS)
def test_hostile_requests_are_refused_in_a_sentence_and_open_nothing(service, group):
    found = {name: complaint(request, *ask(service, request)) for name, request in GROUPS[group].items()}
    assert not {name: each for name, each in found.items() if each}
    assert ask(service, http("GET", "/healthz"))[0] == 200


def test_no_refused_upload_is_left_behind(service, folder):
    assert ask(service, form(part("image", b"\x89PNG" + bytes(64), "x.png") + part("seed", b"x") + END))[0] == 400
    assert ask(service, form(part("image", b"\x89PNG" + bytes(64), "x.png")))[0] == 400
    assert list((folder / "store" / "uploads").iterdir()) == []
    assert json.loads(ask(service, http("GET", "/v1/assets"))[2])["data"] == []


def test_an_upload_gets_a_name_of_the_servers(service, folder):
    name = "../../../../../../tmp/canary\\..\\x.png"
    status, _, body = ask(service, form(part("file", b"\x89PNG" + bytes(64), name) + END, "/v1/assets"))
    assert (status, json.loads(body)["name"]) == (200, "x.png")
    asset = json.loads(body)["id"]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {f"store/assets/{asset}/file"}
    status, headers, body = ask(service, http("GET", f"/v1/assets/{asset}/content"))
    assert (status, headers["content-type"], headers["content-disposition"]) == (
        200, "image/png", f'attachment; filename="{asset}"',
    )  # fmt: skip
    assert body == b"\x89PNG" + bytes(64)
    assert ask(service, http("DELETE", f"/v1/assets/{asset}"))[0] == 200
