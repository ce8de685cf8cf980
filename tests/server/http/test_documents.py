"""Documents in bodies of /v1/videos, and of finished videos, over the fake engine."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from over import PNG, Http, message, run

from kinema.document import Document
from kinema.server.http.documents import Given
from kinema.server.http.errors import FieldError

ASSET = "asset-" + "a" * 24


def embedded(data=PNG, name="mask.png"):
    return {"name": name, "sha256": hashlib.sha256(data).hexdigest(), "data": base64.b64encode(data).decode()}


def document(media=None, **request):
    return {"kinema_document": 1, "model": "svd-pocket", "request": request, "media": media or {}}


async def uploaded(http):
    answer = await http.post("/v1/assets", files={"file": ("clip.png", PNG)})
    return answer.json()["id"]


@run
async def test_media_become_assets_and_the_request_the_order(tmp_path):
    async with Http(tmp_path) as http:
        clip = await uploaded(http)
        media = {"clip": {"name": "clip.png", "asset": clip}, "mask": embedded(b"\x89PNG other")}
        given = document(media, task="inpaint", prompt="a star", video="media:clip", masks={"3": "media:mask"})
        video = await http.create(**{"document": given, "prompt": None})
        request = video["request"]
        assert (video["model"], video["verb"], request["video"]) == ("svd-pocket", "inpaint", clip)
        mask = request["masks"]["3"]
        assert http.engine.asset(mask)[1].read_bytes() == b"\x89PNG other"
        assert list(http.engine.uploads_folder.iterdir()) == []


@run
async def test_other_fields_override_the_document(tmp_path):
    async with Http(tmp_path) as http:
        given = document(task="generate", prompt="a star", seed=3, height=64, width=64, extra={"motion_bucket": 9})
        changes = {"prompt": "a ring", "model": "zoetrope", "size": "32x48", "extra": {"motion_bucket": 7}}
        video = await http.create(document=given, **changes)
        assert video["model"] == "zoetrope"
        assert video["request"] == {
            "task": "generate", "prompt": "a ring", "seed": 3, "width": 32, "height": 48,
            "extra": {"motion_bucket": 7},
        }  # fmt: skip
        smaller = await http.create(document=document(task="generate", size="768px:16:9"), size="32x48")
        assert "size" not in smaller["request"]
        longer = await http.create(document=document(task="generate", frames=4, fps=8.0), seconds=2)
        assert longer["request"]["frames"] == 16


@run
async def test_loras_of_a_document_are_those_of_the_order(tmp_path):
    async with Http(tmp_path) as http:
        video = await http.create(document={**document(prompt="a star"), "loras": {"zoetrope": 0.8}}, prompt=None)
        assert video["request"]["loras"] == {"zoetrope": 0.8}


@run
async def test_add_ons_of_a_document_are_those_of_the_order_and_of_its_own_document(tmp_path):
    async with Http(tmp_path) as http:
        given = {**document(prompt="a star"), "add": {"style": "night"}}
        video = await http.finished(document=given, prompt=None)
        assert video["add"] == {"style": "night"}
        assert (await http.create(document=given, add={}, prompt=None))["add"] == {}
        found = (await http.get(f"/v1/videos/{video['id']}/document")).json()
        assert found["add"] == {"style": "night"}
        # The add-ons are those of the document's model: another model has none of them.
        assert (await http.create(document=given, model="svd-pocket", prompt=None))["add"] == {"style": "night"}
        assert (await http.create(document=given, model="zoetrope", prompt=None))["add"] == {}
        of_any = {name: value for name, value in given.items() if name != "model"}
        assert (await http.create(document=of_any, model="zoetrope", prompt=None))["add"] == {"style": "night"}


@run
async def test_a_document_may_be_a_file_of_a_form(tmp_path):
    async with Http(tmp_path) as http:
        text = json.dumps(document({"m": embedded()}, task="animate", image="media:m")).encode()
        answer = await http.post("/v1/videos", data={"seed": "5"}, files={"document": ("a.kinema.json", text)})
        request = answer.json()["request"]
        assert request["seed"] == 5
        assert http.engine.asset(request["image"])[1].read_bytes() == PNG
        assert list(http.engine.uploads_folder.iterdir()) == []
        answer = await http.post("/v1/videos", data={"seed": "5"}, files={"document": ("a.kinema.json", b"{")})
        assert answer.status_code == 400


@run
async def test_a_plan_and_a_refused_document_leave_no_asset(tmp_path):
    async with Http(tmp_path) as http:
        given = document({"m": embedded()}, task="animate", image="media:m")
        assert (await http.post("/v1/videos/plan", json={"document": given})).status_code == 200
        answer = await http.post("/v1/videos", json={"document": {**given, "model": "unknown"}})
        assert answer.status_code == 400
        assert http.engine.files == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (5, "document is 5; expected an object"),
        (document({"m": {"name": "a", "sha256": "0" * 64, "file": "a.png"}}), "names a file, which the service never"),
        (document({"m": {"name": "a", "asset": "/etc/passwd"}}), "expected a name and asset"),
        (document({"m": {"name": "a", "asset": ASSET, "data": ""}}), "expected a name and asset"),
        (document({"m": {**embedded(), "sha256": "0" * 64}}), "is damaged"),
        (document(image="/etc/passwd"), "expected media:NAME"),
        (document(image=ASSET), "expected media:NAME"),
        (document(loras={"a": 1}), "LoRAs are named in its loras"),
        ({**document(), "kinema_document": 2}, "has version 2"),
        (document({f"m{n}": {"name": "a", "asset": ASSET} for n in range(300)}), "300 media; expected at most 256"),
    ],
)
def test_documents_that_open_anything_else_are_refused(given, words):
    with pytest.raises(FieldError, match=words) as caught:
        Given.of(given)
    assert caught.value.param == "document"


@run
async def test_models_of_a_document_are_names_of_the_service(tmp_path):
    async with Http(tmp_path) as http:
        given = Given.of(document(task="animate", image_model="my-model"))
        assert given.order()["request"]["image_model"] == "my-model"
        answer = await http.post("/v1/videos", json={"document": document(task="animate", image_model="../x")})
        assert "a name that /v1/models lists" in message(answer)


@run
async def test_documents_are_for_creating_alone(tmp_path):
    async with Http(tmp_path) as http:
        clip = await uploaded(http)
        for path in ("/v1/videos/edits", "/v1/videos/extensions"):
            answer = await http.post(path, json={"prompt": "a", "video": clip, "document": document()})
            assert "a document is for /v1/videos" in message(answer)
        video = await http.finished()
        answer = await http.post(f"/v1/videos/{video['id']}/remix", json={"prompt": "a", "document": document()})
        assert "single fields in place of a document" in message(answer)
        answer = await http.post("/v1/videos", json={"request": {}, "document": document()})
        assert "document and request are given" in message(answer)


@run
async def test_the_document_of_a_video_gives_the_same_order(tmp_path):
    async with Http(tmp_path) as http:
        clip = await uploaded(http)
        video = await http.finished(verb="inpaint", video=clip, masks={"2": clip}, loras={"zoetrope": 0.5})
        answer = await http.get(f"/v1/videos/{video['id']}/document")
        assert answer.headers["content-disposition"] == f'attachment; filename="{video["id"]}.kinema.json"'
        found = answer.json()
        assert found["media"] == {"m1": {"name": "clip.png", "asset": clip}}
        assert found["request"]["seed"] == video["seed"]
        again = await http.create(document=found, prompt=None)
        assert again["request"] == {**video["request"], "seed": video["seed"]}


@run
async def test_an_embedded_document_is_read_without_the_service(tmp_path):
    async with Http(tmp_path) as http:
        clip = await uploaded(http)
        video = await http.finished(verb="animate", image=clip)
        text = (await http.get(f"/v1/videos/{video['id']}/document?embed=true")).content
        with Document.from_json(text).opened() as request:
            assert Path(request.image).read_bytes() == PNG
            assert (request.task, request.prompt, request.seed) == ("animate", "a red ball", video["seed"])


@run
async def test_carried_masks_need_masks_and_an_inpainting(tmp_path):
    async with Http(tmp_path) as http:
        clip = await uploaded(http)
        answer = await http.post("/v1/masks", json={"verb": "inpaint", "video": clip, "region": [0, 0, 1, 1]})
        assert message(answer) == "masks is empty; expected frames mapped to painted masks"
        asked = await http.post("/v1/masks?refusals=true", json={"verb": "inpaint", "video": clip})
        assert (answer.status_code, asked.status_code) == (400, 200)
        assert asked.json() == answer.json()
        page = (await http.get("/openapi.json")).json()
        answers = page["paths"]["/v1/masks"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert [each["$ref"].rpartition("/")[2] for each in answers["anyOf"]] == ["Masks", "ErrorAnswer"]
