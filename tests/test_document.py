"""Documents: a request and its media in one file."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from kinema import BadRequest, Document, Request
from kinema.document import MAX_EDITOR


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("ball.mp4", "mask.png"):
        (tmp_path / name).write_bytes(b"contents of " + name.encode())
    return tmp_path


def request_(folder: Path) -> Request:
    return Request(
        task="inpaint",
        prompt="a star",
        seed=3,
        video=str(folder / "ball.mp4"),
        masks={0: str(folder / "mask.png"), 4: str(folder / "mask.png")},
    )


def test_a_document_round_trips_with_the_bytes_of_its_media(files: Path) -> None:
    document = Document.of(request_(files), model="zoetrope", loras={"animatediff-pocket-zooms-in": 0.5})
    path = document.save(files / "a.kinema.json")
    again = Document.read(path)
    assert again.model == "zoetrope"
    assert again.loras == {"animatediff-pocket-zooms-in": 0.5}
    assert len(again.media) == 2  # a file that is used twice is stored once
    with again.opened() as request:
        assert request.with_files(request_(files).files()) == request_(files)
        for role, file in request.files().items():
            assert Path(file).read_bytes() == Path(request_(files).files()[role]).read_bytes()
            assert Path(file).name == Path(request_(files).files()[role]).name
        folder = Path(request.video or "").parent.parent
    assert not folder.exists()
    assert json.loads(again.to_json()) == json.loads(path.read_text())


def test_media_may_be_files_beside_the_document_with_the_recorded_hash(files: Path) -> None:
    entry = {"name": "x.mp4", "sha256": sha256(b"contents of ball.mp4").hexdigest(), "file": "ball.mp4"}
    path = files / "b.kinema.json"
    request = {"task": "edit", "prompt": "a star", "video": "media:clip"}
    path.write_text(json.dumps({"kinema_document": 1, "request": request, "media": {"clip": entry}}))
    with Document.read(path).opened() as opened:
        assert Path(opened.video or "").read_bytes() == b"contents of ball.mp4"
    (files / "ball.mp4").write_bytes(b"another clip")
    with pytest.raises(BadRequest, match=r"ball\.mp4 is not the file that the document was made with"):
        Document.read(path).opened().__enter__()


GOOD = {"name": "a.png", "sha256": sha256(b"x").hexdigest(), "data": "eA=="}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinema_document": 2}, "has version 2; expected 1: install a newer kinema"),
        ({"kinema_document": True}, "has version True; expected 1"),
        ({"kinema_document": "1"}, "expected 1"),
        ({"x": 1}, "has 'x', which is not a part of a document"),
        ({"request": []}, "request is .*; expected a table"),
        ({"model": ""}, "model is ''; expected a name"),
        ({"loras": {"a": "b"}}, "the weight of the LoRA 'a' is 'b'; expected a number"),
        ({"editor": {"x": "y" * MAX_EDITOR}}, "editor has more than"),
        ({"request": {"video": "/etc/passwd"}}, "video is '/etc/passwd'; expected media:NAME of its media"),
        ({"request": {"video": "media:b"}}, "video is 'media:b'; expected media:NAME of its media .a."),
        ({"request": {"keyframes": {"0": "../a.png"}}}, "keyframes is '../a.png'; expected media:NAME"),
        ({"request": {"masks": {"0": "a.png"}}}, "masks is 'a.png'; expected media:NAME"),
        ({"request": {"lora_folder": "/tmp"}}, "has no lora_folder: LoRAs are named in its loras"),
        ({"request": {"loras": {"/tmp/x": 1}}}, "has no loras"),
        ({"request": {"image_model": "/tmp/x"}}, "names the model '/tmp/x', which Kinema does not list"),
        ({"request": {"super_resolution": "owner/name"}}, "give --super-resolution yourself"),
        ({"request": {"steps": "many"}}, "steps is 'many'"),
        ({"request": {"nonsense": 1}}, "has the option 'nonsense'"),
        ({"media": {"a/b": GOOD}}, "the medium's name is 'a/b'"),
        ({"media": {"a": 3}}, "the medium a is 3; expected a name, a sha256, and data or file"),
        ({"media": {"a": {**GOOD, "path": "/x"}}}, "the medium a is .*; expected a name"),
        ({"media": {"a": {**GOOD, "file": "x"}}}, "has both data and file; give one"),
        ({"media": {"a": {"name": "x", "sha256": "0" * 64}}}, "has neither data nor file"),
        ({"media": {"a": {**GOOD, "data": "?"}}}, "has data that is not base64"),
        ({"media": {"a": {**GOOD, "data": "eQ=="}}}, "is damaged: the hash of its data is not its sha256"),
        ({"media": {"a": {**GOOD, "sha256": "zz"}}}, "expected 64 hexadecimal digits"),
        *(
            ({"media": {"a": {"name": "x", "sha256": "0" * 64, "file": file}}}, "expected the name of a file in")
            for file in ("../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "..", "", 3)
        ),
    ],
    ids=str,
)
def test_damaged_and_hostile_documents_are_refused_in_one_sentence(change: dict[str, Any], message: str) -> None:
    table = {"kinema_document": 1, "request": {"task": "edit", "prompt": "x"}, "media": {"a": GOOD}, **change}
    with pytest.raises(BadRequest, match=message) as caught:
        Document.from_json(json.dumps(table))
    assert len(str(caught.value)) < 400


def test_a_familys_option_opens_no_file_of_the_machine(files: Path) -> None:
    secret = str(files / "mask.png")
    document = Document({"prompt": "x", "extra": {"control": secret}})
    with pytest.raises(BadRequest, match=r"extra names the file .*; expected media:NAME"), document.opened():
        pass
    document = Document(
        {"prompt": "x", "extra": {"control": "media:a"}}, {"a": Document.of(request_(files)).media["m2"]}
    )
    with document.opened() as request:
        assert Path(request.extra["control"]).read_bytes() == (files / "mask.png").read_bytes()


@pytest.mark.parametrize(
    ("part", "named", "message"),
    [
        ("model", "/tmp/x.safetensors", "the model '/tmp/x.safetensors', which Kinema does not list"),
        ("add", {"motion": "/tmp/x.ckpt"}, "the add-on '/tmp/x.ckpt', which Kinema does not list"),
        ("add", {"motion": "animatediff-pocket-zooms-in"}, "the add-on 'animatediff-pocket-zooms-in'"),
        ("loras", {"/tmp/x": 1.0}, "the LoRA '/tmp/x', which Kinema does not list"),
    ],
)
def test_a_document_opens_with_listed_names_or_without_those_that_the_caller_gives(
    part: Any, named: Any, message: str
) -> None:
    listed = {"model": "animatediff-pocket", "add": {"style": "animatediff-pocket-night"}}
    listed |= {"loras": {"animatediff-pocket-zooms-in": 1.0}}
    document = Document({"prompt": "x"}, **{**listed, part: named})
    with pytest.raises(BadRequest, match=message), document.opened():
        pass
    without = document.without(part)
    with without.opened() as request:
        assert request.prompt == "x"
    left_out = {"model": {"model": None, "add": {}}, "add": {"add": {}}, "loras": {"loras": {}}}[part]
    assert {name: getattr(without, name) for name in listed} == {**listed, **left_out}


def test_not_a_document(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"prompt": "a ball"}')
    with pytest.raises(BadRequest, match=r"x\.json is not a document of Kinema: it has no kinema_document"):
        Document.read(path)
