"""What clients may name: nothing else becomes a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema.server.jobs import ASSET_ID, VIDEO_ID, Order, ServiceError
from kinema.server.names import Names, add_on_paths, identifiers_in, new_id

ASSET, VIDEO = "asset-" + "a" * 24, "video_" + "b" * 24


def model(name: str) -> dict[str, str]:
    if name not in ("zoetrope", "style.safetensors"):
        raise ServiceError(400, "model_not_found", f"no model {name}")
    return {"source": f"/models/{name}"}


def lora(name: str) -> str:
    if name != "soft":
        raise ServiceError(400, "lora_not_found", f"no LoRA {name}")
    return "/loras/soft.safetensors"


def file(identifier: str) -> Path:
    if identifier not in (ASSET, VIDEO):
        raise ServiceError(404, "not_found", "unknown")
    return Path("/store") / identifier


NAMES = Names(model, lora, file, model, Path("/loras"))


def resolve(**request):
    return NAMES.resolve(Order(model="zoetrope", request=request))


def test_identifiers_become_the_server_s_paths_wherever_files_belong():
    found = resolve(
        task="animate", image=ASSET, last_image=VIDEO, keyframes={"3": ASSET}, mask=ASSET, image_model="zoetrope",
        super_resolution="none", loras={"soft": 0.5}, extra={"control": {"depth": VIDEO}, "ip_image": [ASSET, 3]},
    )  # fmt: skip
    assert found.request == {
        "task": "animate", "image": f"/store/{ASSET}", "last_image": f"/store/{VIDEO}",
        "keyframes": {"3": f"/store/{ASSET}"}, "mask": f"/store/{ASSET}", "image_model": "/models/zoetrope",
        "super_resolution": "none", "loras": {"/loras/soft.safetensors": 0.5},
        "extra": {"control": {"depth": f"/store/{VIDEO}"}, "ip_image": [f"/store/{ASSET}", 3]},
    }  # fmt: skip
    assert found.names[f"/store/{ASSET}"] == ASSET
    assert found.names["/models/zoetrope"] == "zoetrope"


HOSTILE = [
    "/etc/passwd",
    "../secret.png",
    "C:\\x.png",
    "http://host/x.png",
    "file:///x",
    "x.png",
    "",
    "~",
    "asset-1",
    "-",
]


@pytest.mark.parametrize("field", ["image", "last_image", "video", "mask"])
@pytest.mark.parametrize("value", HOSTILE)
def test_a_file_that_is_no_identifier_is_refused(field, value):
    with pytest.raises(ServiceError, match="expected the identifier of an upload or a video") as refused:
        resolve(task="animate", **{field: value})
    assert refused.value.status == 400


@pytest.mark.parametrize("value", HOSTILE)
def test_paths_in_other_fields_are_refused(value):
    fields = ({"keyframes": {"0": value}}, {"loras": {value: 1.0}}, {"image_model": value}, {"lora_folder": value})
    for request in (*fields, {"super_resolution": value}):
        with pytest.raises(ServiceError) as refused:
            resolve(task="animate", **request)
        assert refused.value.status == 400
    with pytest.raises(ServiceError):
        NAMES.resolve(Order(model=value, request={}))
    with pytest.raises(ServiceError):
        NAMES.resolve(Order(model="zoetrope", request={}, add={"style": value}))


def test_add_ons_become_the_server_s_paths_and_are_a_part_of_what_is_opened():
    found = NAMES.resolve(Order(model="zoetrope", request={}, add={"style": "style.safetensors"}))
    assert found.source == {
        "source": "/models/zoetrope", "add": {"style": {"source": "/models/style.safetensors"}},
    }  # fmt: skip
    assert add_on_paths(found.source) == {"style": "/models/style.safetensors"}
    assert found.model == "zoetrope + style=style.safetensors"
    assert found.names["/models/style.safetensors"] == "style.safetensors"
    assert NAMES.resolve(Order(model="zoetrope", request={})).model == "zoetrope"


def test_options_of_another_type_are_refused_with_the_package_s_sentence():
    with pytest.raises(ServiceError, match="image is 3; expected text"):
        resolve(image=3)
    with pytest.raises(ServiceError, match="which this version does not know"):
        resolve(output_path="/tmp/x")


def test_only_a_prompt_that_names_a_lora_gets_the_lora_folder():
    assert resolve(prompt="a <lora:soft:1>").request["lora_folder"] == "/loras"
    assert "lora_folder" not in resolve(prompt="a").request


def test_the_seed_of_the_plan_is_the_seed_of_the_run():
    assert NAMES.resolve(Order(model="zoetrope", request={"prompt": "a"}), 7).request["seed"] == 7


def test_identifiers_are_found_at_any_depth():
    request = {"image": ASSET, "extra": {"control": [{VIDEO: 1}]}, "prompt": f"{ASSET} x"}
    assert set(identifiers_in(request)) == {ASSET, VIDEO}


def test_new_identifiers_have_the_form_that_is_checked():
    assert VIDEO_ID.fullmatch(new_id("video_"))
    assert ASSET_ID.fullmatch(new_id("asset-"))
