"""A service that sends too much, or something else than it announced: one sentence, and nothing large is allocated."""

from __future__ import annotations

import base64
import io
import itertools
import json
import zipfile
import zlib

import httpx2
import numpy as np
import pytest
from PIL import Image

from kinema.client.following import Report
from kinema.client.http import Message, parse_events
from kinema.client.outputs import preview_of
from kinema.schema import BadRequest

from .conftest import VIDEO, event, frames, npz


class Run:
    """Unpickling it would be noticed."""

    def __reduce__(self):
        return (pytest.fail, ("code of the service ran",))


def pickled() -> bytes:
    file = io.BytesIO()
    np.savez(file, frames=np.array([Run()], object))
    return file.getvalue()


def bomb() -> bytes:
    """A header that announces a terabyte, and a body of zeros that unpacks to much more than the clip."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**40,)})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.npy", header.getvalue() + bytes(2**20))
        archive.writestr("sound.npy", header.getvalue())
    return file.getvalue()


def cut() -> bytes:
    return npz(frames=frames())[:-40]


def damaged(*, compressed: bool) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, frames=frames())
    data = bytearray(file.getvalue())
    data[200:204] = b"\xff\xff\xff\xff"
    return bytes(data)


def short() -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, frames())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("frames.npy", file.getvalue()[:-1])
    return packed.getvalue()


CONTENTS = {
    "pickled": (pickled, "damaged or cut short|sent frames.npy as object"),
    "bomb": (bomb, "sent frames.npy as uint8"),
    "other size": (lambda: npz(frames=frames(count=2)), r"expected uint8 \(1, 3, 4, 6, 3\)"),
    "other type": (lambda: npz(frames=frames().astype(np.float32)), "sent frames.npy as float32"),
    "no frames": (lambda: npz(sound=np.zeros(1, np.uint8)), "a clip without frames"),
    "cut": (cut, "is damaged or cut short"),
    "short": (short, "is damaged or cut short"),
    "no archive": (lambda: b"<html>", "is damaged or cut short"),
    "damaged": (lambda: damaged(compressed=False), "is damaged or cut short"),
    "damaged, compressed": (lambda: damaged(compressed=True), "is damaged or cut short"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_clip_that_is_not_the_announced_one_is_refused(name, fake):
    make, sentence = CONTENTS[name]
    fake.content["frames"] = make()
    with pytest.raises(BadRequest, match=sentence):
        fake.service().generate("a ball")


def test_a_download_without_end_is_cut_off(fake, monkeypatch):
    monkeypatch.setattr("kinema.client.outputs.MAX_SOUND", 1000)
    sent = []

    def endless():
        while True:
            sent.append(1)
            yield bytes(2**16)

    answer = lambda request: httpx2.Response(200, content=endless())  # noqa: E731
    fake.answers["GET", f"/v1/videos/{VIDEO}/content"] = answer
    with pytest.raises(BadRequest, match="sent more than .* bytes"):
        fake.service().generate("a ball")
    assert len(sent) < 5


@pytest.mark.parametrize(
    "change",
    [{"frames": 0}, {"frames": 10**9}, {"height": "4"}, {"width": True}, {"fps": 0}, {"fps": None}, {"clips": -1}],
)
def test_figures_out_of_range_are_refused_and_the_job_is_removed(fake, change):
    fake.job["settled"] |= change
    with pytest.raises(BadRequest, match="does not say how large the clip is|frames per second"):
        fake.service().generate("a ball")


def test_figures_of_too_many_pixels_are_refused(fake):
    fake.job["settled"] |= {"frames": 4096, "height": 8192, "width": 8192}
    with pytest.raises(BadRequest, match=r"announces a clip of 274,877,906,944 pixels"):
        fake.service().generate("a ball")


def test_a_result_larger_than_the_job_is_refused(fake):
    def stream():
        fake.finish()
        fake.job["result"]["frames"] = 4
        yield event("status", **fake.job)

    fake.streams = [stream]
    with pytest.raises(BadRequest, match="announces a larger clip than the job was settled with"):
        fake.service().generate("a ball")


@pytest.mark.parametrize(
    "recipe", [b"[]", b"{", b'{"recipe": 2}', b'{"recipe": 99, "stages": []}', b"[" * 10_000, b'{"stages": 1e999}']
)
def test_a_recipe_that_is_none_is_refused(fake, recipe):
    fake.content["recipe"] = recipe
    with pytest.raises(BadRequest, match="recipe"):
        fake.service().generate("a ball")


def test_a_recipe_of_a_megabyte_is_refused(fake):
    fake.content["recipe"] = json.dumps({"x": "y" * 2**20}).encode()
    with pytest.raises(BadRequest, match="sent more than 1,048,576 bytes"):
        fake.service().generate("a ball")


def test_an_event_without_end_falls_back_to_asking(fake, monkeypatch):
    monkeypatch.setattr("kinema.client.http.MAX_EVENT", 10_000)

    def endless():
        fake.finish()
        yield event("status", **{**fake.job, "status": "in_progress"})
        while True:
            yield b"data: " + b"x" * 1000

    fake.streams = [endless]
    assert fake.service().generate("a ball").shape.frames == 3


@pytest.mark.parametrize("answer", [b"[]", b"null", b'"x"', b"{", b"\xff\xfe"])
def test_an_answer_that_is_no_object_is_refused(fake, answer):
    fake.answers["POST", "/v1/videos"] = httpx2.Response(200, content=answer)
    with pytest.raises(BadRequest, match=r"http://service:8000 .*(not a JSON object|damaged|UTF-8|JSON)"):
        fake.service().generate("a ball")


@pytest.mark.parametrize("name", ["", "../../etc", "video_1/../..", None, 7, "video_1?x"])
def test_a_job_of_another_name_is_refused(fake, name):
    fake.job["id"] = name
    with pytest.raises(BadRequest, match="it did not name the job"):
        fake.service().generate("a ball")


def test_an_asset_of_another_name_is_refused(fake, tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    fake.answers["POST", "/v1/assets"] = httpx2.Response(200, json={"id": "/etc/passwd"})
    with pytest.raises(BadRequest, match=r"under which name it keeps a\.png"):
        fake.service().animate(tmp_path / "a.png", "a ball")


def test_a_redirect_is_not_followed(fake):
    fake.answers["POST", "/v1/videos"] = httpx2.Response(307, headers={"location": "http://other/"})
    with pytest.raises(BadRequest, match="answered 307"):
        fake.service().generate("a ball")


def png_of(width: int, height: int) -> bytes:
    """A valid png whose rows are zeros, however large."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "png")
    data = bytearray(file.getvalue())
    data[16:24] = width.to_bytes(4) + height.to_bytes(4)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("L", (2, 2)).save(file, "gif")
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        {"frames": 1, "data": base64.b64encode(png_of(60_000, 60_000)).decode()},
        {"frames": 1, "data": base64.b64encode(png_of(4000, 4000)).decode()},
        {"frames": 1, "data": base64.b64encode(gif()).decode()},
        {"frames": 2, "data": base64.b64encode(png_of(3, 1)).decode()},
        {"frames": 1, "data": "not base64!"},
        {"frames": 1, "data": ""},
        {"frames": 0, "data": ""},
        {"frames": "1", "data": None},
    ],
)
def test_a_preview_that_cannot_be_read_is_left_out(data):
    assert preview_of(data) is None


def test_events_of_a_wrong_kind_are_left_out():
    heard = []
    report = Report(heard.append)
    for kind in ("step", "phase", "note", "memory", "status", "preview"):
        for data in ({}, {"index": "1", "total": [], "name": 3, "message": None, "peak_bytes": -1, "notes": 7}):
            report(Message(kind, data))
    report(Message("status", {"notes": [1, None], "queue_position": "2", "status": "queued"}))
    report(Message("step", {"index": 5, "total": 2}))
    assert [type(each).__name__ for each in heard] == ["Memory", "Memory"]


def test_an_event_of_many_lines_is_one_text_and_is_bounded(monkeypatch):
    lines = ["event: note", 'data: {"message":', 'data: "x"}', "", ": comment", "", "data: []", ""]
    assert list(parse_events(iter(lines), "url")) == [Message("note", {"message": "x"})]
    monkeypatch.setattr("kinema.client.http.MAX_EVENT", 1000)
    with pytest.raises(BadRequest, match="sent an event of more than 1,000 bytes"):
        list(parse_events(itertools.repeat("data: 0123456789"), "url"))


def test_a_preview_of_too_many_pixels_is_left_out(monkeypatch):
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "png")
    data = {"frames": 1, "data": base64.b64encode(file.getvalue()).decode()}
    assert preview_of(data).shape == (1, 2, 2, 3)
    monkeypatch.setattr("kinema.client.outputs.MAX_PREVIEW", 3)
    assert preview_of(data) is None
