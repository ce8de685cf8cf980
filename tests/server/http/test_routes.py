"""The routes over the fake engine: changes, events, files and counters."""

from __future__ import annotations

import asyncio

import pytest
from over import PNG, Http, lines, message, run

from kinema.server.http import events
from kinema.server.jobs import Progress
from kinema.server.settings import Limits

# ------------------------------------------------------------------------------- delete, cancel, queue


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


# ---------------------------------------------------------------------------------------------- events


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
async def test_a_late_status_event_shows_the_state_that_it_is_about(tmp_path):
    async with Http(tmp_path) as http:
        video_id = (await http.finished())["id"]
        progress = Progress(kind="status", data={"status": "in_progress", "created_at": 0.5})
        data = events._data(http.app.state.service, video_id, progress)
        assert (data["id"], data["status"], data["object"]) == (video_id, "in_progress", "video")
        assert data["created_at"] > 1  # whole seconds, as everywhere else
        gone = events._data(http.app.state.service, f"video_{'0' * 24}", progress)
        assert gone == {"id": f"video_{'0' * 24}", "object": "video", "status": "in_progress", "created_at": 0.5}


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


# --------------------------------------------------------------------------------------------- content


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


@run
async def test_each_clip_of_a_batch_has_its_content(tmp_path):
    async with Http(tmp_path) as http:
        video_id = (await http.finished(clips=3))["id"]
        where = f"/v1/videos/{video_id}/content"
        first, second = [await http.get(f"{where}?clip={clip}") for clip in (0, 1)]
        assert second.content == first.content + b"\1"
        assert second.headers["content-disposition"] == f'attachment; filename="{video_id}-1.mp4"'
        name = (await http.get(f"{where}?variant=thumbnail&clip=2")).headers["content-disposition"]
        assert name == f'attachment; filename="{video_id}-2-thumbnail.webp"'
        for query, status, words in (
            ("clip=3", 404, f"clip is 3; {video_id} has the clips 0 to 2"),
            ("clip=-1", 400, "clip is"),
            ("clip=1&variant=frames", 400, "the variant frames has all clips of a batch; leave clip out"),
            ("clip=1&variant=zip", 400, "the variant zip has all clips of a batch; leave clip out"),
        ):
            answer = await http.get(f"{where}?{query}")
            assert (answer.status_code, words in message(answer)) == (status, True), answer.text
        single = (await http.finished())["id"]
        answer = await http.get(f"/v1/videos/{single}/content?clip=1")
        assert message(answer) == f"clip is 1; only clip 0 of {single} exists"


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
async def test_a_plan_answers_a_refused_body_as_an_error_or_if_asked_by_200(tmp_path):
    async with Http(tmp_path) as http:
        for body in ({"prompt": "x", "frames": 5000}, {"prompt": "x", "nope": 1}, {"prompt": "x", "model": "other"}):
            plain = await http.post("/v1/videos/plan", json=body)
            asked = await http.post("/v1/videos/plan?refusals=true", json=body)
            assert (plain.status_code, asked.status_code) == (400, 200)
            assert asked.json() == plain.json()
        page = (await http.get("/openapi.json")).json()
        answers = page["paths"]["/v1/videos/plan"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert [each["$ref"].rpartition("/")[2] for each in answers["anyOf"]] == ["Plan", "ErrorAnswer"]
        assert (await http.post("/v1/videos/plan?refusals=true", json={"prompt": "x"})).json()["frames"] == 16
        assert (await http.post("/v1/videos?refusals=true", json={"prompt": "x"})).status_code == 400
        gone = await http.post("/v1/videos/plan?refusals=true", json={"verb": "edit", "video": "asset-" + "0" * 24})
        assert gone.status_code == 404


@run
async def test_assets_are_uploaded_listed_read_and_removed(tmp_path):
    async with Http(tmp_path) as http:
        asset = (await http.post("/v1/assets", files={"file": ("a.png", PNG)})).json()
        assert {"id", "object", "kind", "name", "bytes", "frames", "height", "width"} <= asset.keys()
        assert (await http.get("/v1/assets")).json()["data"] == [asset]
        assert (await http.get(f"/v1/assets/{asset['id']}")).json() == asset
        content = await http.get(f"/v1/assets/{asset['id']}/content")
        assert (content.content, content.headers["content-type"]) == (PNG, "image/png")
        assert (await http.get(f"/v1/assets/{asset['id']}/recipe")).status_code == 204
        page = (await http.get("/openapi.json")).json()
        assert "204" in page["paths"]["/v1/assets/{asset_id}/recipe"]["get"]["responses"]
        http.engine.asset(asset["id"])[1].with_name("recipe.json").write_text("{}")
        assert (await http.get(f"/v1/assets/{asset['id']}/recipe")).json() == {}
        assert (await http.client.delete(f"/v1/assets/{asset['id']}")).json()["deleted"]
        assert (await http.get(f"/v1/assets/{asset['id']}")).status_code == 404


# --------------------------------------------------------------------------------------------- metrics


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


# ------------------------------------------------------------------------------------------- models


@run
async def test_tables_that_models_have_in_common_are_sent_once(tmp_path):
    async with Http(tmp_path) as http:
        (row, *_), help_ = await http.engine.models(), {"motion_bucket": "how much moves"}
        names = ("a/one", "a/two", "a/three")
        tables = [{"extra": help_, "sizes": {}}, {"extra": help_, "sizes": {"768px": [768, 768]}}, {"fps": 8.0}]
        rows = [{**row, "id": name, "defaults": own} for name, own in zip(names, tables, strict=True)]

        async def models():
            return [*rows, {**row, "id": "lora", "kind": "lora", "defaults": None}]

        http.engine.models = models
        answer = (await http.get("/v1/models")).json()
        assert sorted(map(str, answer["shared"].values())) == sorted(map(str, [help_, {}, {"768px": [768, 768]}]))
        first, second, third, lora = [each["defaults"] for each in answer["data"]]
        assert first["extra"] == second["extra"] != first["sizes"] != second["sizes"]
        whole = [{kind: answer["shared"][each[kind]] for kind in ("extra", "sizes")} for each in (first, second)]
        assert (whole, third, lora) == (tables[:2], {"fps": 8.0}, None)
        assert (await http.get("/v1/models/a/one")).json()["defaults"] == tables[0]
