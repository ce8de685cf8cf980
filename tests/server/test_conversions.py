"""Clips in other formats: the file is right, written once for all who ask, and nothing is left of a failure."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from kinema.media.metadata import find_recipe
from kinema.server import conversions
from kinema.server.conversions import Conversions
from kinema.server.converter import convert
from kinema.server.jobs import ServiceError

RECIPE = {"recipe": 2, "stages": [{"stage": "base", "model": "zoetrope"}]}


@pytest.fixture
def job(tmp_path):
    """The folder of a finished job: 5 frames of 16×24, each of one grey."""
    folder = tmp_path / "video_0123456789abcdefghij"
    folder.mkdir()
    frames = np.full((2, 5, 16, 24, 3), 40, np.uint8) * np.arange(1, 6, dtype=np.uint8)[None, :, None, None, None]
    np.savez(folder / "frames.npz", frames=frames)
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    return folder


def message(job, suffix: str) -> dict:
    given = {"frames": str(job / "frames.npz"), "recipe": str(job / "recipe.json"), "fps": 8.0, "clip": 0}
    return {**given, "target": str(job / f"clip.{suffix}")}


def test_a_zip_has_all_frames_without_loss(job):
    convert(message(job, "zip"))
    with zipfile.ZipFile(job / "clip.zip") as archive:
        assert archive.namelist()[4:6] == ["clip-0/frame-0004.png", "clip-1/frame-0000.png"]
        pixels = np.asarray(Image.open(io.BytesIO(archive.read("clip-1/frame-0002.png"))))
    assert (pixels == 120).all()
    assert pixels.shape == (16, 24, 3)


def test_an_animation_of_a_batch_is_the_clip_that_is_asked_for(job):
    frames = np.stack([np.full((5, 16, 24, 3), grey, np.uint8) for grey in (40, 200)])
    np.savez(job / "frames.npz", frames=frames)
    convert({**message(job, "webp"), "clip": 1})
    assert np.asarray(Image.open(job / "clip.webp").convert("L")).mean() > 190
    assert find_recipe(job / "clip.webp")["clip"] == 1


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_has_the_frames_and_the_recipe(job, suffix):
    convert(message(job, suffix))
    with Image.open(job / f"clip.{suffix}") as image:
        assert (image.n_frames, image.size) == (5, (24, 16))
        image.seek(3)
        assert abs(np.asarray(image.convert("RGB")).astype(int) - 160).max() < 4
    assert find_recipe(job / f"clip.{suffix}")["stages"] == RECIPE["stages"]


def test_a_file_is_written_by_one_process_for_all_who_ask(job, monkeypatch):
    started = []
    start = conversions.Child.start

    async def counted(module, folder):
        started.append(module)
        return await start(module, folder)

    monkeypatch.setattr(conversions.Child, "start", counted)

    async def ask():
        own = Conversions()
        given = (job / "frames.npz", job / "recipe.json", 8.0, "zip")
        paths = await asyncio.gather(*(own.path(*given) for _ in range(3)))
        return {*paths, await own.path(*given)}

    (path,) = asyncio.run(ask())
    assert started == ["kinema.server.converter"]
    assert path == job / f"{job.name}.zip"
    assert len(zipfile.ZipFile(path).namelist()) == 10


def test_a_clip_that_cannot_be_converted_is_refused_and_leaves_no_file(job):
    (job / "frames.npz").write_bytes(b"not an archive")
    with pytest.raises(ServiceError, match="the clip cannot be converted") as refused:
        asyncio.run(Conversions().path(job / "frames.npz", job / "recipe.json", 8.0, "zip"))
    assert refused.value.status == 500
    assert sorted(each.name for each in job.iterdir()) == ["frames.npz", "recipe.json"]
