"""Bodies and what becomes of them."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import PLACES
from over import PNG, Http, message, run

from kinema.server.http.bodies import add_ons, checked, listed
from kinema.server.http.errors import FieldError, Public
from kinema.server.settings import Settings

# ---------------------------------------------------------------------------------------------- bodies


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
async def test_a_remix_replaces_a_named_size_and_a_named_size_replaces_pixels(tmp_path):
    async with Http(tmp_path) as http:
        bodies = http.app.state.service.bodies
        source = (await http.finished())["id"]
        for before, values, after in (
            ({"size": "768px:16:9"}, {"size": "64x48"}, {"width": 64, "height": 48}),
            ({"width": 64, "height": 48}, {"size": "768px:16:9"}, {"size": "768px:16:9"}),
        ):
            job = http.engine.get(source)
            job = replace(job, order=replace(job.order, request={"task": "generate", **before}))
            order = await bodies.remix({"prompt": "y", **values}, job)
            assert order.request == {"task": "generate", "prompt": "y", "seed": 7, **after}


@pytest.mark.parametrize("place", PLACES)
def test_no_path_and_no_url_is_a_name_or_an_identifier(place):
    with pytest.raises(FieldError, match="expected a name that /v1/models lists"):
        listed("model", place)
    with pytest.raises(FieldError, match="add style is .*; expected a name that /v1/models lists") as refused:
        add_ons({"style": place})
    assert refused.value.param == "add"
    for request in ({"image": place}, {"keyframes": {"3": place}}, {"loras": {place: 1.0}}, {"image_model": place}):
        with pytest.raises(FieldError):
            checked({"task": "animate", **request}, {})


def test_a_listed_file_of_the_name_of_a_model_can_be_named():
    assert listed("model", "./vdm/tiny") == "./vdm/tiny"  # as `kinema.server.catalogue` lists it
    for name in ("./", "././vdm", "./.hidden", ".//etc", "./~"):
        with pytest.raises(FieldError, match="expected a name that /v1/models lists"):
            listed("model", name)


@run
async def test_add_ons_are_named_by_slot_in_json_forms_and_requests(tmp_path):
    async with Http(tmp_path) as http:
        add = {"style": "night", "controlnet.depth": "depth.safetensors"}
        assert (await http.create(add=add))["add"] == add
        assert (await http.create())["add"] == {}
        answer = await http.post("/v1/videos", json={"request": {"prompt": "x"}, "add": add})
        assert answer.json()["add"] == add
        form = {"prompt": (None, "x"), "add[style]": (None, "night"), "add[controlnet.depth]": (None, "d.safetensors")}
        answer = await http.post("/v1/videos", files=form)
        assert answer.json()["add"] == {"style": "night", "controlnet.depth": "d.safetensors"}
        for given, words in (
            ({"add": ["night"]}, "expected an object"),
            ({"add": {"style": 3}}, "add style is 3; expected a name"),
            ({"add": {"../x": "night"}}, "add has the slot '../x'; expected one such as motion or controlnet.depth"),
            ({"add": {f"controlnet.c{n}": "night" for n in range(33)}}, "add has 33 slots; expected at most 32"),
        ):
            answer = await http.post("/v1/videos", json={"prompt": "x", **given})
            assert answer.status_code == 400
            assert words in message(answer)
            assert answer.json()["error"]["param"] == "add"


@run
async def test_a_clip_of_the_service_is_changed_by_its_model_with_its_add_ons(tmp_path):
    async with Http(tmp_path) as http:
        source = await http.finished(model="svd-pocket", add={"style": "night"})
        for given, model, add in (
            ({}, "svd-pocket", {"style": "night"}),
            ({"add": {}}, "svd-pocket", {}),
            ({"model": "zoetrope"}, "zoetrope", {}),
        ):
            body = {"prompt": "y", "video": {"id": source["id"]}, **given}
            for answer in (
                await http.post("/v1/videos/edits", json=body),
                await http.post(f"/v1/videos/{source['id']}/remix", json={"prompt": "y", **given}),
            ):
                assert (answer.json()["model"], answer.json()["add"]) == (model, add), answer.text


@run
async def test_a_lora_with_a_path_is_refused_for_its_path(tmp_path):
    async with Http(tmp_path) as http:
        answer = await http.post("/v1/videos", json={"lora": {"name": "ball", "path": "ball.safetensors"}})
        assert message(answer) == "lora has a path, which the service never opens; name a LoRA of /v1/models"


@run
async def test_a_byte_order_mark_is_named(tmp_path):
    async with Http(tmp_path) as http:
        head = {"Content-Type": "application/json"}
        answer = await http.client.post("/v1/videos", content=b'\xef\xbb\xbf{"prompt": "x"}', headers=head)
        assert message(answer) == "the body begins with a byte order mark; expected JSON alone"


@run
async def test_bodies_of_too_many_values_or_parts_are_refused_for_their_number(tmp_path):
    async with Http(tmp_path) as http:
        answer = await http.post("/v1/videos", json={"extra": {"a": [0] * 30_000}})
        assert message(answer) == "the body holds about 30,002 values; at most 20,000 are read"
        answer = await http.post("/v1/videos", files=[(f"extra[{n}]", (None, "x")) for n in range(300)])
        assert (answer.status_code, message(answer)) == (413, "the form has more than 256 parts")


@run
async def test_a_plan_queues_nothing_and_keeps_no_file(tmp_path):
    async with Http(tmp_path) as http:
        answer = await http.post("/v1/videos/plan", data={"prompt": "x"}, files={"image": ("a.png", PNG)})
        assert answer.json() == {
            "object": "video.plan", "frames": 16, "fps": 8.0, "height": 32, "width": 32, "clips": 1, "steps": 4,
            "seed": 7, "task": "animate", "forecast": {"peak_bytes": None}, "notes": ["snapped to 16 frames"],
            "seconds": None, "measured": "", "devices": [],
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


# ---------------------------------------------------------------------------------------------- tables


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


def test_public_messages_name_files_of_the_store_by_their_identifiers(tmp_path):
    asset, video = "asset-" + "1" * 24, "video_" + "2" * 24
    for folder in (tmp_path, Path("store")):
        public = Public(Settings(folder=folder, model_folders=(Path("/models/big"),)))
        assert public(f"{folder}/assets/{asset}/file has no frames") == f"{asset} has no frames"
        assert (
            public(f"cannot read {folder.absolute()}/jobs/{video}.part/clip.mp4: damaged")
            == f"cannot read {video}: damaged"
        )
    assert public("/models/big/x.safetensors is damaged") == "…/x.safetensors is damaged"
    assert public(f"{Path.home()}/secret") == "…/secret"
    assert public("the store is full") == "the store is full"
