"""The routes over the fake engine, without a network."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace

import httpx2
import pytest
from fake import FakeEngine

from kinema.schema import BadRequest
from kinema.server.app import create_app
from kinema.server.http import security
from kinema.server.jobs import Progress
from kinema.server.settings import Limits, Settings

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
TOKEN = "correct-horse"


class Http:
    """A client of an app over a fake engine. ``async with`` starts and stops the engine."""

    def __init__(self, folder, base="http://localhost:8000", pace=(0.0, 2), **settings):
        self.engine = FakeEngine(folder, *pace)
        self.settings = Settings(folder=folder, **settings)
        self.base = base

    async def __aenter__(self):
        await self.engine.start()
        self.app = create_app(self.engine, self.settings)
        transport = httpx2.ASGITransport(app=self.app)
        self.client = httpx2.AsyncClient(transport=transport, base_url=self.base)
        return self

    async def __aexit__(self, *_):
        await self.engine.stop()
        await self.client.aclose()

    async def get(self, path, **options):
        return await self.client.get(path, **options)

    async def post(self, path, **options):
        return await self.client.post(path, **options)

    async def create(self, **values):
        answer = await self.post("/v1/videos", json={"prompt": "a red ball", **values})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def until(self, video_id, status):
        while (job := self.engine.get(video_id)).status != status:
            assert not job.final, job.status
            await asyncio.sleep(0.002)

    async def finished(self, **values):
        video = await self.create(**values)
        await self.until(video["id"], "completed")
        return video


def run(test):
    """Run an asynchronous test within a time limit."""

    def wrapper(tmp_path):
        asyncio.run(asyncio.wait_for(test(tmp_path), 30))

    wrapper.__name__ = test.__name__
    return wrapper


def message(answer):
    return answer.json()["error"]["message"]


def lines(text):
    """The events of a stream: kind and data."""
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.strip().split("\n\n")]
    return [(block["event"], json.loads(block["data"])) for block in blocks]


# ------------------------------------------------------------------------------------------- bodies


@run
async def test_seconds_become_frames_at_the_rate_of_the_body_or_the_model(tmp_path):
    async with Http(tmp_path) as http:
        assert (await http.create(seconds="1.5"))["num_frames"] == 12
        assert (await http.create(seconds=2, fps=12))["num_frames"] == 24
        assert (await http.create(seconds=0.01))["num_frames"] == 1


@run
async def test_seconds_of_an_extension_add_to_the_kept_frames(tmp_path):
    async with Http(tmp_path) as http:
        source = (await http.finished(num_frames=20))["id"]
        body = {"prompt": "x", "video": {"id": source}, "seconds": "1"}
        assert (await http.post("/v1/videos/extensions", json=body)).json()["num_frames"] == 28
        assert (await http.post("/v1/videos/extensions", json={**body, "keep": 4})).json()["num_frames"] == 12
        assert (await http.post("/v1/videos/extensions", json={**body, "fps": 16})).json()["num_frames"] == 56
        answer = await http.post("/v1/videos/extensions", json={**body, "start": 1})
        assert message(answer) == "seconds is not for a part of a clip; give frames for start and end"


@run
async def test_a_size_sets_width_and_height(tmp_path):
    async with Http(tmp_path) as http:
        assert (await http.create(size="64x48"))["request"] == {
            "task": "generate", "prompt": "a red ball", "width": 64, "height": 48,
        }  # fmt: skip


@run
async def test_a_body_may_be_the_request_itself(tmp_path):
    async with Http(tmp_path) as http:
        request = {"task": "generate", "prompt": "x", "frames": 9, "sampler_options": {"gamma": 0.3}}
        answer = await http.post("/v1/videos", json={"model": "svd-pocket", "request": request})
        assert (answer.json()["model"], answer.json()["request"]) == ("svd-pocket", request)


@run
async def test_the_verb_follows_from_an_image_and_may_be_named(tmp_path):
    async with Http(tmp_path) as http:
        image = (await http.post("/v1/assets", files={"file": ("a.png", PNG)})).json()["id"]
        assert (await http.create(image=image))["verb"] == "animate"
        assert (await http.create(input_reference={"file_id": image}))["request"]["image"] == image
        assert (await http.create(verb="interpolate", image=image, last_image=image))["verb"] == "interpolate"


@run
async def test_a_data_url_becomes_an_asset(tmp_path):
    async with Http(tmp_path) as http:
        url = "data:image/png;base64," + base64.b64encode(PNG).decode()
        image = (await http.create(input_reference={"image_url": url}))["request"]["image"]
        assert http.engine.asset(image)[1].read_bytes() == PNG
        assert list(http.engine.uploads_folder.iterdir()) == []


@run
async def test_files_of_a_form_become_assets_by_their_field(tmp_path):
    async with Http(tmp_path) as http:
        files = {"image": ("a.png", PNG), "last_image": ("b.png", PNG), "keyframes[5]": ("c.png", PNG)}
        answer = await http.post("/v1/videos", data={"prompt": "x", "loop": "false", "clips": "2"}, files=files)
        request = answer.json()["request"]
        assert {*http.engine.files} == {request["image"], request["last_image"], request["keyframes"]["5"]}
        assert request["clips"] == 2


@run
async def test_an_option_of_the_family_goes_into_extra(tmp_path):
    async with Http(tmp_path) as http:
        assert (await http.create(flow_shift=3.0))["request"]["extra"] == {"flow_shift": 3.0}
        answer = await http.post("/v1/videos", json={"guidance_scale_2": 3.0})
        assert "guidance_scale_2" in message(answer)


@run
async def test_an_alias_names_a_model(tmp_path):
    async with Http(tmp_path, aliases={"sora-2": "svd-pocket"}) as http:
        assert (await http.create(model="sora-2"))["model"] == "svd-pocket"
        assert (await http.get("/v1/models/sora-2")).json()["id"] == "svd-pocket"


@run
async def test_a_clip_is_changed_by_the_model_that_it_came_from(tmp_path):
    async with Http(tmp_path) as http:
        source = (await http.finished(model="svd-pocket"))["id"]
        answer = await http.post("/v1/videos/edits", json={"prompt": "x", "video": source})
        assert answer.json()["model"] == "svd-pocket"


@run
async def test_a_remix_replaces_size_and_duration(tmp_path):
    async with Http(tmp_path) as http:
        source = await http.finished(size="64x48", num_frames=9, seed=5)
        body = {"prompt": "y", "size": "32x32", "seconds": "2"}
        remix = (await http.post(f"/v1/videos/{source['id']}/remix", json=body)).json()
        assert (remix["size"], remix["num_frames"], remix["seed"]) == ("32x32", 16, 5)
        http.engine.held.clear()
        waiting = await http.create()
        http.engine.jobs[waiting["id"]] = replace(http.engine.get(waiting["id"]), status="failed")
        assert (await http.post(f"/v1/videos/{waiting['id']}/remix", json=body)).status_code == 409


@run
async def test_a_plan_queues_nothing_and_keeps_no_file(tmp_path):
    async with Http(tmp_path) as http:
        answer = await http.post("/v1/videos/plan", data={"prompt": "x"}, files={"image": ("a.png", PNG)})
        assert answer.json() == {
            "object": "video.plan", "frames": 16, "fps": 8.0, "height": 32, "width": 32, "clips": 1, "steps": 4,
            "seed": 7, "task": "animate", "forecast": {"peak_bytes": None}, "notes": ["snapped to 16 frames"],
            "seconds": None, "measured": "",
        }  # fmt: skip
        assert (http.engine.jobs, http.engine.files) == ({}, {})


@run
async def test_messages_hold_no_path_of_the_server(tmp_path):
    async with Http(tmp_path) as http:
        answer = await http.post("/v1/videos", json={"prompt": "x", "size": "4096x4096", "clips": 8})
        assert message(answer) == f"video_{'0' * 24} has too many pixels"
        http.engine.add_asset = lambda part, name: http.engine.plan(part / "x")  # fails: no order
        answer = await http.post("/v1/assets", files={"file": ("a.png", PNG)})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert str(tmp_path) not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"


# ----------------------------------------------------------------------------- delete, cancel, queue


@run
async def test_delete_of_a_running_video_waits_until_the_worker_has_stopped(tmp_path):
    async with Http(tmp_path, pace=(0.03, 100)) as http:
        video_id = (await http.create())["id"]
        await http.until(video_id, "in_progress")
        answer = await http.client.delete(f"/v1/videos/{video_id}")
        assert answer.json() == {"id": video_id, "object": "video.deleted", "deleted": True, "status": "cancelled"}
        assert video_id not in http.engine.jobs


@run
async def test_a_kept_partial_clip_stays_however_often_its_delete_is_repeated(tmp_path):
    async with Http(tmp_path, pace=(0.03, 100)) as http:
        video_id = (await http.create())["id"]
        await http.until(video_id, "in_progress")
        for _ in range(2):
            answer = await http.client.delete(f"/v1/videos/{video_id}?keep_partial=true")
            assert (answer.json()["deleted"], answer.json()["status"]) == (False, "cancelled")
        assert (await http.client.delete(f"/v1/videos/{video_id}")).json()["deleted"]


@run
async def test_a_video_that_finished_before_its_delete_stays(tmp_path):
    async with Http(tmp_path, pace=(0.03, 100)) as http:
        video_id = (await http.create())["id"]
        await http.until(video_id, "in_progress")

        async def finish(video_id, *, keep_partial):
            http.engine.tasks[video_id].cancel()
            http.engine.change(video_id, status="completed")
            return http.engine.get(video_id)

        http.engine.cancel = finish
        answer = await http.client.delete(f"/v1/videos/{video_id}")
        assert (answer.json()["deleted"], answer.json()["status"]) == (False, "completed")
        assert (await http.client.delete(f"/v1/videos/{video_id}")).json()["deleted"]


@run
async def test_a_video_that_starts_during_its_delete_is_cancelled_too(tmp_path):
    async with Http(tmp_path, pace=(0.03, 100)) as http:
        http.engine.held.clear()
        video_id, delete = (await http.create())["id"], http.engine.delete

        async def late(video_id):
            http.engine.delete = delete
            http.engine.held.set()
            await http.until(video_id, "in_progress")
            await delete(video_id)

        http.engine.delete = late
        assert (await http.client.delete(f"/v1/videos/{video_id}")).json()["deleted"]
        assert video_id not in http.engine.jobs


@run
async def test_delete_of_a_used_clip_is_refused_at_once(tmp_path):
    from kinema.server.jobs import ServiceError

    async with Http(tmp_path) as http:
        video_id = (await http.finished())["id"]

        async def used(video_id):
            raise ServiceError(409, "in_use", f"{video_id} is used")

        http.engine.delete = used
        assert (await http.client.delete(f"/v1/videos/{video_id}")).status_code == 409


@run
async def test_cancel_retry_and_move_answer_the_video(tmp_path):
    async with Http(tmp_path) as http:
        http.engine.held.clear()
        one, two = (await http.create())["id"], (await http.create())["id"]
        assert (await http.get(f"/v1/videos/{two}")).json()["queue_position"] == 1
        answer = await http.post(f"/v1/videos/{two}/move", json={"before": one})
        assert (answer.json()["id"], answer.json()["queue_position"]) == (two, 0)
        assert (await http.post(f"/v1/videos/{two}/move", json={"before": None})).json()["queue_position"] == 1
        assert (await http.post(f"/v1/videos/{one}/cancel")).json()["status"] == "cancelled"
        assert (await http.post(f"/v1/videos/{one}/retry")).json()["status"] == "queued"
        assert (await http.post(f"/v1/videos/{one}/retry")).status_code == 409


@run
async def test_pause_and_resume_answer_the_queue(tmp_path):
    async with Http(tmp_path) as http:
        assert (await http.post("/v1/queue/pause")).json()["paused"]
        assert (await http.get("/v1/queue")).json()["object"] == "queue"
        assert not (await http.post("/v1/queue/resume")).json()["paused"]


@run
async def test_list_may_be_limited_to_a_status(tmp_path):
    async with Http(tmp_path) as http:
        done = (await http.finished())["id"]
        http.engine.held.clear()
        await http.create()
        found = (await http.get("/v1/videos?status=completed")).json()
        assert ([video["id"] for video in found["data"]], found["first_id"], found["last_id"]) == ([done], done, done)


# ------------------------------------------------------------------------------------------- events


async def watched(http, query=""):
    """A video, and its events from when it was queued."""
    http.engine.held.clear()
    video_id = (await http.create())["id"]
    reading = asyncio.create_task(http.get(f"/v1/videos/{video_id}/events{query}"))
    while not http.engine.readers[video_id]:
        await asyncio.sleep(0.002)
    http.engine.held.set()
    return video_id, await reading


@run
async def test_events_end_with_the_final_status_and_are_numbered(tmp_path):
    async with Http(tmp_path, pace=(0.01, 3)) as http:
        video_id, answer = await watched(http)
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = lines(answer.text)
        assert [kind for kind, _ in found] == ["status", "status", *["step", "preview"] * 3, "status"]
        assert [data["status"] for kind, data in found if kind == "status"] == ["queued", "in_progress", "completed"]
        assert found[-1][1]["id"] == video_id
        assert found[3][1] == {"index": 1, "data": "A" * 5000}
        assert [line for line in answer.text.split("\n") if line.startswith("id: ")] == [
            f"id: {number}" for number in range(1, len(found) + 1)
        ]
        assert http.app.state.service.streams == 0


@run
async def test_events_may_leave_previews_out(tmp_path):
    async with Http(tmp_path, pace=(0.01, 3)) as http:
        found = lines((await watched(http, "?previews=false"))[1].text)
        assert {kind for kind, _ in found} == {"status", "step"}


@run
async def test_events_hold_no_infinite_number_and_no_path(tmp_path):
    async with Http(tmp_path) as http:
        http.engine.held.clear()
        video_id = (await http.create())["id"]
        reading = asyncio.create_task(http.get(f"/v1/videos/{video_id}/events"))
        while not http.engine.readers[video_id]:
            await asyncio.sleep(0.002)
        data = {"log_snr": float("-inf"), "message": f"read {tmp_path}/assets/asset-{'1' * 24}/file"}
        http.engine.send(video_id, Progress(kind="note", data=data))
        http.engine.held.set()
        found = dict(lines((await reading).text))
        assert found["note"] == {"log_snr": None, "message": f"read asset-{'1' * 24}"}


@run
async def test_streams_beyond_the_limit_are_refused_until_one_ends(tmp_path):
    async with Http(tmp_path, limits=Limits(streams=1)) as http:
        http.engine.held.clear()
        video_id = (await http.create())["id"]
        reading = asyncio.create_task(http.get(f"/v1/videos/{video_id}/events"))
        while not http.engine.readers[video_id]:
            await asyncio.sleep(0.002)
        assert (await http.get(f"/v1/videos/{video_id}/events")).status_code == 429
        http.engine.held.set()
        await reading
        assert (await http.get(f"/v1/videos/{video_id}/events")).status_code == 200


@run
async def test_streams_end_when_the_service_stops(tmp_path):
    async with Http(tmp_path) as http:
        http.engine.held.clear()
        video_id = (await http.create())["id"]
        reading = asyncio.create_task(http.get(f"/v1/videos/{video_id}/events"))
        while not http.engine.readers[video_id]:
            await asyncio.sleep(0.002)
        http.app.state.service.stopping.set()
        assert lines((await reading).text)[-1][1]["status"] == "queued"
        assert http.engine.readers[video_id] == set()


# ------------------------------------------------------------------------------------------ content


@run
async def test_content_has_its_type_a_name_of_the_servers_and_a_validator(tmp_path):
    async with Http(tmp_path) as http:
        video_id = (await http.finished())["id"]
        where = f"/v1/videos/{video_id}/content"
        answer = await http.get(where)
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["content-disposition"] == f'attachment; filename="{video_id}.mp4"'
        again = await http.get(where, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        head = await http.client.head(where)
        assert (head.content, head.headers["content-length"]) == (b"", str(len(answer.content)))
        kinds = {"thumbnail": "image/webp", "spritesheet": "image/jpeg", "recipe": "application/json"}
        for variant, kind in kinds.items():
            assert (await http.get(f"{where}?variant={variant}")).headers["content-type"] == kind


@pytest.mark.parametrize(
    ("given", "start", "end"),
    [("bytes=0-3", 0, 4), ("bytes=2000-", 2000, 2060), ("bytes=-5", 2055, 2060), ("bytes=9-99999", 9, 2060)],
)
def test_a_range_answers_a_part_of_the_file(tmp_path, given, start, end):
    @run
    async def test(folder):
        async with Http(folder) as http:
            where = f"/v1/videos/{(await http.finished())['id']}/content"
            whole = (await http.get(where)).content
            answer = await http.get(where, headers={"Range": given})
            assert (answer.status_code, answer.content) == (206, whole[start:end])
            assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(whole)}"
            stale = await http.get(where, headers={"Range": given, "If-Range": '"other"'})
            assert (stale.status_code, stale.content) == (200, whole)

    test(tmp_path)


@run
async def test_ranges_outside_the_file_are_refused(tmp_path):
    async with Http(tmp_path) as http:
        where = f"/v1/videos/{(await http.finished())['id']}/content"
        for given in ("bytes=2060-", "bytes=9-3", "bytes=-0", "bytes=-", "bytes=x-y", "bytes=1e3-", "bytes=0-0-1"):
            answer = await http.get(where, headers={"Range": given})
            assert (given, answer.status_code) == (given, 416)
            assert answer.headers["content-range"] == "bytes */2060"
        for given in ("bytes=" + "9" * 5000 + "-", "bytes=٣-"):
            assert (await http.get(where, headers={"Range": given.encode()})).status_code == 416
        for given in ("bytes=0-1,3-4", "bytes=" + "0-," * 5000, "chars=0-1"):  # not supported: the whole file
            answer = await http.get(where, headers={"Range": given})
            assert (answer.status_code, len(answer.content)) == (200, 2060)


@run
async def test_a_clip_that_is_not_there_yet_is_not_found(tmp_path):
    async with Http(tmp_path) as http:
        http.engine.held.clear()
        video_id = (await http.create())["id"]
        assert (await http.get(f"/v1/videos/{video_id}/content")).status_code == 404
        http.engine.held.set()
        await http.until(video_id, "completed")
        (tmp_path / "jobs" / video_id / "video").unlink()
        assert (await http.get(f"/v1/videos/{video_id}/content")).status_code == 404
        (tmp_path / "jobs" / video_id / "video").symlink_to("/etc/hostname")
        assert (await http.get(f"/v1/videos/{video_id}/content")).status_code == 404


@run
async def test_assets_are_uploaded_listed_read_and_removed(tmp_path):
    async with Http(tmp_path) as http:
        asset = (await http.post("/v1/assets", files={"file": ("a.png", PNG)})).json()
        assert {"id", "object", "kind", "name", "bytes", "frames", "height", "width"} <= asset.keys()
        assert (await http.get("/v1/assets")).json()["data"] == [asset]
        assert (await http.get(f"/v1/assets/{asset['id']}")).json() == asset
        content = await http.get(f"/v1/assets/{asset['id']}/content")
        assert (content.content, content.headers["content-type"]) == (PNG, "image/png")
        assert (await http.get(f"/v1/assets/{asset['id']}/recipe")).status_code == 404
        http.engine.asset(asset["id"])[1].with_name("recipe.json").write_text("{}")
        assert (await http.get(f"/v1/assets/{asset['id']}/recipe")).json() == {}
        assert (await http.client.delete(f"/v1/assets/{asset['id']}")).json()["deleted"]
        assert (await http.get(f"/v1/assets/{asset['id']}")).status_code == 404


# ----------------------------------------------------------------------------------------- security


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
        ({"token": "short"}, "8 to 512"),
        ({"token": "with a space"}, "printable"),
    ],
)
def test_an_open_address_without_a_token_is_refused(tmp_path, settings, expected):
    with pytest.raises(BadRequest, match=expected):
        security.check_address(Settings(folder=tmp_path, **settings))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_addresses_need_no_token(tmp_path, host):
    security.check_address(Settings(folder=tmp_path, host=host))


# ------------------------------------------------------------------------------------------ metrics


@run
async def test_metrics_count_jobs_steps_requests_and_workers(tmp_path):
    async with Http(tmp_path, pace=(0.01, 3)) as http:
        await http.finished()
        await http.get("/v1/videos/../nothing")
        text = (await http.get("/metrics")).text
        for line in (
            'kinema_jobs{status="completed"} 1.0',
            "kinema_job_seconds_count 1.0",
            "kinema_step_seconds_count 2.0",
            "kinema_queue_length 0.0",
            'kinema_worker_restarts_total{device="cpu"} 1.0',
            'kinema_loaded_bytes{device="cpu"} 64.0',
            'kinema_requests_total{code="200",method="POST",route="/v1/videos"} 1.0',
            'kinema_requests_total{code="404",method="GET",route="other"} 1.0',
        ):
            assert f"\n{line}\n" in text


# ------------------------------------------------------------------------------------------- tables


@run
async def test_every_field_of_a_request_has_a_schema_with_its_help_and_range(tmp_path):
    from dataclasses import fields

    from kinema.schema import Request

    async with Http(tmp_path) as http:
        page = (await http.get("/openapi.json")).json()
        body = page["components"]["schemas"]["VideoBody"]["properties"]
        for f in fields(Request):
            if f.name in ("task", "lora_folder", "size"):
                continue
            assert body[f.name]["description"] == f.metadata["help"]
        assert body["frames"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 4096}
        assert body["num_frames"]["anyOf"] == body["frames"]["anyOf"]
        assert body["fit"]["enum"] == ["crop", "pad"]
        assert page["components"]["schemas"]["EditBody"]["required"] == ["prompt", "video"]
        assert "lora_folder" not in body
