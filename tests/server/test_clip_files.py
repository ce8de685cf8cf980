"""The files of a clip: complete or absent, also when the disk is full."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
import torch
from PIL import Image

from kinema.media.metadata import read_recipe
from kinema.media.read import read_video
from kinema.schema import Clip
from kinema.server import clip_files

ID = "video_" + "a" * 24
RECIPE = {"recipe": 2, "stages": [{"stage": "base", "request": {"seed": 7}}]}


def clip(clips: int = 1) -> Clip:
    video = torch.linspace(-1, 1, clips * 3 * 6 * 16 * 32).reshape(clips, 3, 6, 16, 32)
    return Clip(video, 8.0, RECIPE)


def test_a_finished_folder_has_every_variant_and_its_result(tmp_path):
    signed = []
    result = clip_files.save(clip(), tmp_path / "part", ID, sign=signed.append)
    folder = tmp_path / ID
    assert sorted(file.name for file in tmp_path.iterdir()) == [ID]
    assert clip_files.result_of(folder) == result
    assert signed == [tmp_path / "part" / f"{ID}.mp4"]
    assert {name: result[name] for name in ("clips", "frames", "fps", "height", "width", "seed", "partial")} == {
        "clips": 1, "frames": 6, "fps": 8.0, "height": 16, "width": 32, "seed": 7, "partial": False,
    }  # fmt: skip
    names = {variant: clip_files.file_of(folder, ID, variant) for variant in result["variants"]}
    assert read_video(names["video"]).shape.bcthw == (1, 3, 6, 16, 32)
    assert read_recipe(names["video"])["stages"] == json.loads(names["recipe"].read_text())["stages"]
    assert Image.open(names["thumbnail"]).size == (32, 16)
    assert Image.open(names["spritesheet"]).size == (160, 32)  # 6 frames of 32×16 in rows of 5


def test_frames_are_lossless_and_keep_the_sound(tmp_path):
    clip_files.save(clip(2), tmp_path / "part", ID)
    with np.load(tmp_path / ID / "frames.npz") as found:
        frames_NTHWC = found["frames"]
    clip_files._write_frames(tmp_path / "sound.npz", frames_NTHWC, b"sound")
    with np.load(tmp_path / "sound.npz") as found:
        assert found["sound"].tobytes() == b"sound"
        assert np.array_equal(found["frames"], frames_NTHWC)
    expected = clip(2).video.add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
    assert np.abs(frames_NTHWC.astype(int) - expected.numpy().astype(int)).max() <= 1
    assert frames_NTHWC.shape == (2, 6, 16, 32, 3)


def test_a_batch_has_a_file_for_each_clip_and_the_first_is_the_video(tmp_path):
    result = clip_files.save(clip(3), tmp_path / "part", ID)
    assert result["files"] == [f"{ID}.mp4", f"{ID}-1.mp4", f"{ID}-2.mp4"]
    assert all((tmp_path / ID / name).is_file() for name in result["files"])
    means = []
    for number in range(3):
        files = [clip_files.file_of(tmp_path / ID, ID, name, number) for name in ("video", "thumbnail", "spritesheet")]
        assert files[0].name == result["files"][number]
        clips = [read_video(files[0]).video.mean(), *(np.asarray(Image.open(each)).mean() for each in files[1:])]
        means.append(clips)
    assert means == sorted(means)  # each clip is brighter than the one before
    assert all(len({each[at] for each in means}) == 3 for at in range(3))
    assert clip_files.file_of(tmp_path / ID, ID, "frames", 2).name == "frames.npz"


@pytest.mark.parametrize("step", ["_write_frames", "_write_images", "sync"])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch, step):
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(clip_files, step, full)
    with pytest.raises(clip_files.DiskFull):
        clip_files.save(clip(), tmp_path / "part", ID)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_in_the_writer_of_the_mp4_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("kinema.media.formats.write_mp4", full)
    with pytest.raises(clip_files.DiskFull):
        clip_files.save(clip(), tmp_path / "part", ID)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_its_last_file_is_not_finished(tmp_path):
    clip_files.save(clip(), tmp_path / "part", ID)
    (tmp_path / ID / clip_files.RESULT).unlink()
    assert clip_files.result_of(tmp_path / ID) is None
    (tmp_path / ID / clip_files.RESULT).write_text('{"fra')
    assert clip_files.result_of(tmp_path / ID) is None


def test_only_known_folders_stay(tmp_path):
    for name in ("known", "other.1.part"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    clip_files.tidy(tmp_path, {"known": None})
    assert [entry.name for entry in tmp_path.iterdir()] == ["known"]


def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").touch()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "far")
    clip_files.remove(link)
    assert (tmp_path / "far" / "file").is_file()
    assert not link.is_symlink()
