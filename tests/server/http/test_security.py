"""Who may send requests: hosts, origins and the token."""

from __future__ import annotations

import asyncio

import pytest
from over import TOKEN, Http, message, run

from kinema.schema import BadRequest
from kinema.server.http import security
from kinema.server.settings import Settings


@run
async def test_a_token_is_required_for_everything_but_the_static_pages(tmp_path):
    async with Http(tmp_path, token=TOKEN) as http:
        for path in ("/", "/docs", "/openapi.json", "/healthz"):
            assert (await http.get(path)).status_code == 200
        video = f"/v1/videos/video_{'0' * 24}"
        closed = ("/v1/videos", "/metrics", "/v1/models", "/v1/queue", video, f"{video}/events", f"{video}/content")
        for path in closed:
            for given in (None, "", TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer x", f"Bearer {TOKEN}x", "Bearer ÿ"):
                headers = {} if given is None else {"Authorization": given.encode("latin-1")}
                answer = await http.get(path, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            right = await http.get(path, headers={"Authorization": f"Bearer {TOKEN}"})
            assert right.status_code in (200, 404)
        twice = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")]
        assert (await http.get("/v1/videos", headers=twice)).status_code == 401


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        ({}, "localhost:8000", 200),
        ({}, "LOCALHOST", 200),
        ({}, "[::1]:8000", 200),
        ({}, "studio.example", 403),
        ({"allowed_hosts": ("Studio.example",)}, "studio.example:8443", 200),
        ({"host": "10.1.2.3", "token": TOKEN}, "10.1.2.3:8000", 200),
        ({"host": "10.1.2.3", "token": TOKEN}, "10.1.2.4:8000", 403),
        ({"host": "0.0.0.0", "token": TOKEN}, "10.1.2.4:8000", 200),
        ({"host": "::", "token": TOKEN}, "rebound.example", 403),
    ],
)
def test_only_known_hosts_are_answered(tmp_path, settings, host, status):
    @run
    async def test(folder):
        async with Http(folder, **settings) as http:
            assert (await http.get("/healthz", headers={"Host": host})).status_code == status

    test(tmp_path)


@run
async def test_the_services_own_pages_may_send_requests(tmp_path):
    async with Http(tmp_path, allowed_hosts=("studio.example",)) as http:
        for host, origin in {
            "localhost:8000": "http://localhost:8000",
            "studio.example": "https://studio.example",
            "studio.example:443": "https://studio.example",
        }.items():
            headers = {"Host": host, "Origin": origin, "Sec-Fetch-Site": "same-origin"}
            assert (await http.post("/v1/queue/pause", headers=headers)).status_code == 200


@run
async def test_a_link_from_another_site_may_open_the_pages_only(tmp_path):
    async with Http(tmp_path) as http:
        headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert (await http.get("/", headers=headers)).status_code == 200
        assert (await http.get("/v1/videos", headers=headers)).status_code == 403


@run
async def test_the_documentation_runs_no_script_and_loads_nothing(tmp_path):
    async with Http(tmp_path) as http:
        answer = await http.get("/docs")
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "frame-ancestors 'none'" in policy
        assert "<script" not in answer.text
        assert "src=" not in answer.text
        assert "/v1/videos/{video_id}/events" in answer.text
        assert "negative_prompt" in answer.text


@run
async def test_one_form_more_than_are_received_at_once_is_503_and_others_are_answered(tmp_path):
    going = asyncio.Event()

    async def slow():
        yield b"--x\r\n"
        await going.wait()

    headers = {"Content-Type": "multipart/form-data; boundary=x"}

    async def fill(http):
        open_ones = [asyncio.create_task(http.post("/v1/assets", content=slow(), headers=headers)) for _ in range(2)]
        await asyncio.sleep(0.1)
        refused = await http.post("/v1/assets", content=b"--x--", headers=headers)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert message(refused) == "the service is receiving 2 forms; try again"
        assert (await http.post("/v1/queue/pause")).status_code == 200
        going.set()
        assert [answer.status_code for answer in await asyncio.gather(*open_ones)] == [400, 400]
        assert (await http.post("/v1/assets", content=b"--x--", headers=headers)).status_code == 400

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(security, "MAX_FORMS", 2)
        async with Http(tmp_path) as http:
            await fill(http)


@run
async def test_no_answer_permits_another_origin(tmp_path):
    async with Http(tmp_path) as http:
        for path in ("/", "/v1/videos", "/nothing"):
            answer = await http.get(path)
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert answer.headers["x-frame-options"] == "DENY"
            assert "server" not in answer.headers


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"host": "0.0.0.0"}, "not a loopback address"),
        ({"host": "192.168.1.5"}, "not a loopback address"),
        ({"host": "studio.example"}, "not a loopback address"),
        ({"token": "x" * 15}, "16 to 256"),
        ({"token": "with a space in it"}, "printable"),
    ],
)
def test_an_open_address_without_a_token_is_refused(tmp_path, settings, expected):
    with pytest.raises(BadRequest, match=expected):
        security.check_address(Settings(folder=tmp_path, **settings))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_addresses_need_no_token(tmp_path, host):
    security.check_address(Settings(folder=tmp_path, host=host))
