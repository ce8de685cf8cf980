"""Motion scores of clips, compared with known motion and with scene graphs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kinema.data import motion, motion_file
from kinema.data.folder import Folder
from kinema.data.playroom import sample
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip

pytest.importorskip("cv2")


def panning(speed: float, frames: int = 9, side: int = 96, fps: float = 8.0) -> list[np.ndarray]:
    """A smooth random texture that moves right by ``speed`` sides per second."""
    rng = np.random.default_rng(0)
    waves = rng.normal(size=(12, 2)) * 12
    phases, colours = rng.random(12) * 6.28, rng.random((12, 3))
    y, x = np.mgrid[0:side, 0:side] / side
    textures = []
    for t in range(frames):
        at = x - speed * t / fps
        value = sum(
            np.sin(a * at + b * y + p)[..., None] * c for (a, b), p, c in zip(waves, phases, colours, strict=True)
        )
        textures.append(np.clip(127 + 25 * value, 0, 255).astype(np.uint8))
    return textures


@pytest.mark.parametrize("speed", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("side", [64, 160])
def test_a_pan_of_known_speed_is_measured_at_any_size(speed, side):
    assert 0.65 * speed < motion.of_frames(panning(speed, side=side), 8.0) < 0.9 * speed


def test_the_score_is_independent_of_the_frame_rate():
    slow, fast = (motion.of_frames(panning(0.2, frames=n, fps=fps), fps) for n, fps in ((5, 4.0), (17, 16.0)))
    assert slow == pytest.approx(fast, rel=0.1)


def test_a_still_clip_and_a_single_frame_have_no_motion():
    still = panning(0.0)
    assert motion.of_frames(still, 8.0) < 0.002
    assert motion.of_frames(still[:1], 8.0) == 0


def test_buckets_increase_stay_within_255_and_invert():
    values = [0.0, 0.01, 0.1, 1.0, 100.0]
    buckets = [motion.bucket(v) for v in values]
    assert buckets == sorted(buckets)
    assert buckets[0] == 0
    assert buckets[2] == 127.5
    assert buckets[-1] < 255
    assert [motion.motion_of(b) for b in buckets] == pytest.approx(values)
    assert torch.equal(motion.bucket(torch.tensor([0.1])), torch.tensor([127.5]))


def test_flow_orders_playroom_clips_as_their_scene_graphs_do():
    from scipy.stats import spearmanr

    exact, measured = [], []
    for i in range(40):
        rendered = sample(i, frames=16, height=64, width=64, fps=8.0)
        if rendered.scene.objects[0].motion == "fades":
            continue
        exact.append(motion.of_scene(rendered.scene, 64, 64).mean())
        frames = ((rendered.video_CTHW + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 3, 0)
        measured.append(motion.of_frames(list(np.ascontiguousarray(frames)), 8.0))
    assert spearmanr(exact, measured).statistic > 0.8


def test_a_scene_counts_translation_rotation_growth_and_the_camera():
    scene = sample(3, caption="a red ball moves right", frames=8).scene
    track = scene.objects[0]
    still = replace(track, position_T2=np.repeat(track.position_T2[:1], 8, 0), angle_T=track.angle_T * 0)
    still = replace(still, size_T=np.full(8, 0.4), opacity_T=np.ones(8), visible_T=np.ones(8))
    area = np.pi * 0.2**2

    def of(track, **changes):
        return motion.of_scene(replace(scene, objects=(track,), fps=8.0, **changes), 64, 64)

    steps = np.arange(8)
    moving = replace(still, position_T2=np.stack([0.3 + 0.01 * steps, np.full(8, 0.5)], 1))
    turning, growing = replace(still, angle_T=0.1 * steps), replace(still, size_T=0.4 + 0.01 * steps)
    assert of(still) == pytest.approx(np.zeros(7))
    assert of(moving) == pytest.approx(np.full(7, 0.08 * area))
    assert of(turning) == pytest.approx(np.full(7, 0.8 * 0.2 / np.sqrt(2) * area))
    assert of(growing)[0] == pytest.approx(0.08 / 2 / np.sqrt(2) * np.pi * 0.2025**2, rel=1e-3)
    panned = of(still, camera="pans right")
    assert panned == pytest.approx(np.full(7, 0.26 / 8 * 8 * (1 - area)), rel=1e-3)
    assert of(still, camera="zooms in").min() > 0.01


# ------------------------------------------------------------------------------------ motion.json


def clip(path, speed, frames=9):
    video = np.stack(panning(speed, frames)).transpose(3, 0, 1, 2)
    save_clip(Clip(torch.from_numpy(video)[None].float() / 127.5 - 1, 8.0), path, generated=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, speed in (("a.mp4", 0.05), ("sub/b.mp4", 0.4)):
        clip(tmp_path / name, speed)
        (tmp_path / name).with_suffix(".txt").write_text("something moves")
    return tmp_path


def opened(folder):
    return Folder.scan(folder, frames=4, height=32, width=32, fps=4.0)


def test_measured_motion_and_rate_reach_training(folder):
    assert {c.motion for c in map(opened(folder).clip, range(2))} == {None}
    rows = {row.name: row for row in motion_file.measure([folder])[folder]}
    assert rows["a.mp4"].fps == 8
    assert rows["a.mp4"].seconds == pytest.approx(9 / 8)
    assert rows["a.mp4"].bucket == pytest.approx(motion.bucket(rows["a.mp4"].motion))
    clips = opened(folder)
    served = sorted((c.motion, c.fps) for c in map(clips.clip, range(2)))
    assert served == [(round(rows[n].motion, 6), 4.0) for n in ("a.mp4", "sub/b.mp4")]
    assert clips.fingerprint != replace(clips, motions={}).fingerprint
    filmed = Folder.scan(folder, frames=3, height=32, width=32, frameskip=2)
    assert filmed.clip(0).fps == 4.0


def test_a_single_file_is_added_to_the_list_of_its_folder(folder):
    motion_file.measure([folder / "a.mp4"])
    motion_file.measure([folder / "sub" / "b.mp4"])
    clip(folder / "c.mp4", 0.1)
    motion_file.measure([folder / "c.mp4"])
    assert set(json.loads((folder / motion_file.NAME).read_text())["clips"]) == {"a.mp4", "c.mp4"}
    assert None not in {c.motion for c in map(opened(folder).clip, range(3))}


def test_a_changed_clip_counts_as_unmeasured_and_is_reported(folder):
    motion_file.measure([folder])
    clip(folder / "a.mp4", 0.3, frames=16)
    clips = opened(folder)
    assert sorted(str(c.motion is None) for c in map(clips.clip, range(2))) == ["False", "True"]
    assert "1 of 2 clips have no motion score, or changed since (a.mp4)" in clips.skipped[-1]


def test_a_damaged_list_and_missing_clips_are_refused(folder, tmp_path):
    (folder / motion_file.NAME).write_text('{"clips": {"a.mp4": {"motion": "fast", "bytes": 3}}}')
    with pytest.raises(BadRequest, match="is damaged"):
        opened(folder)
    with pytest.raises(BadRequest, match="there is no file or folder"):
        motion_file.measure([tmp_path / "none"])
    with pytest.raises(BadRequest, match="name a folder"):
        motion_file.measure([])


def test_an_unreadable_clip_is_reported_and_skipped(folder):
    (folder / "bad.mp4").write_bytes(b"nothing")
    heard = []
    rows = motion_file.measure([folder], on_event=heard.append)[folder]
    assert {row.name for row in rows} == {"a.mp4", "sub/b.mp4"}
    assert any("skipped bad.mp4" in event.message for event in heard)


@pytest.mark.parametrize("text", ['{"bones": [1, 2]}', "[1]", "not JSON", "link"])
def test_a_foreign_motion_json_is_kept(folder, text):
    if text == "link":
        (folder / "mine.json").write_text('{"clips": {}}')
        (folder / motion_file.NAME).symlink_to(folder / "mine.json")
    else:
        (folder / motion_file.NAME).write_text(text)
    before = (folder / motion_file.NAME).read_text()
    with pytest.raises(BadRequest, match=r"motion\.json (was not written by|is damaged)"):
        motion_file.measure([folder])
    assert (folder / motion_file.NAME).read_text() == before
    assert (folder / motion_file.NAME).is_symlink() == (text == "link")


def test_training_skips_and_reports_a_foreign_list(folder, tmp_path_factory):
    (folder / motion_file.NAME).write_text('{"bones": []}')
    assert any("skipped motion.json: not written by" in s for s in opened(folder).skipped)
    (folder / motion_file.NAME).unlink()
    motion_file.measure([folder])
    outside = tmp_path_factory.mktemp("outside") / "motion.json"
    (folder / motion_file.NAME).rename(outside)
    (folder / motion_file.NAME).symlink_to(outside)
    clips = opened(folder)
    assert {clips.clip(i).motion for i in range(2)} == {None}
    assert any("skipped motion.json: outside the folder" in s for s in clips.skipped)
    assert len(Folder.scan(folder, frames=4, height=32, width=32, follow_links=True).motions) == 2


def test_rows_added_by_another_process_meanwhile_are_kept(folder, monkeypatch):
    of_frames = motion.of_frames

    def meanwhile(*args):
        if not (folder / motion_file.NAME).exists():
            motion_file._write(folder, [motion_file.Measured("sub/b.mp4", 8.0, 1.0, 0.5, 100.0)])
        return of_frames(*args)

    monkeypatch.setattr(motion, "of_frames", meanwhile)
    motion_file.measure([folder / "a.mp4"])
    assert set(json.loads((folder / motion_file.NAME).read_text())["clips"]) == {"a.mp4", "sub/b.mp4"}


def test_concurrent_writers_wait_for_each_other(folder):
    """Each writer reads the list and adds a row; without the lock, rows would be lost."""
    from concurrent.futures import ThreadPoolExecutor

    names = [f"{i}.mp4" for i in range(8)]
    for name in names:
        (folder / name).write_bytes(b"x")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: motion_file._write(folder, [motion_file.Measured(name, 8.0, 1.0, 0.5, 1.0)]), names))
    assert set(names) <= set(json.loads((folder / motion_file.NAME).read_text())["clips"])
