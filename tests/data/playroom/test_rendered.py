"""Playroom training clips: single frames, cameras, styles, slow motion."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from kinema.data import styles
from kinema.data.motion import of_scene
from kinema.data.playroom import Playroom, parse
from kinema.data.playroom.grammar import in_split
from kinema.data.playroom.rendered import Rendered


def test_a_single_frame_is_at_a_random_time_of_its_scene():
    source = Rendered(1, 32, 32, 8.0, Playroom("simple"))
    clips = [source.clip(i) for i in range(120)]
    assert all(clip.video.shape == (3, 1, 32, 32) for clip in clips)
    right = [c.scene.objects[0].position_T2[0, 0] for c in clips if c.scene.objects[0].motion.endswith("right")]
    assert min(right) < 0.4 < 0.6 < max(right)  # the first frame would be on the left
    assert torch.equal(source.clip(5).video, clips[5].video)


@pytest.mark.parametrize(("grammar", "patterns", "cameras"), [("scenic", 0.5, 0.3), ("filmed", 0.8, 0.68)])
def test_scenic_clips_are_simple_with_patterns_and_camera_motions(grammar, patterns, cameras):
    clips = [Rendered(2, 16, 16, 8.0, Playroom(grammar)).clip(i) for i in range(200)]
    patterned = [c for c in clips if "background" in c.caption]
    moving = [c for c in clips if "while the camera" in c.caption]
    assert abs(len(patterned) / 200 - patterns) < 0.1
    assert abs(len(moving) / 200 - cameras) < 0.1
    assert {c.scene.camera for c in moving} == {"pans left", "pans right", "zooms in", "zooms out"}
    assert {c.scene.camera for c in clips if "while the camera" not in c.caption} == {"still"}
    assert {c.scene.background for c in patterned} == {"checkered", "striped"}
    assert all(len(c.scene.objects) == 1 for c in clips)


@pytest.mark.parametrize("how", [{"grammar": "scenic"}, {"grammar": "filmed"}, {"camera": "pans left"}, {"slow": 4.0}])
def test_clips_of_every_setting_are_of_the_training_share(how):
    clips = [Rendered(2, 8, 8, 8.0, Playroom(**how)).clip(i) for i in range(150)]
    meanings = [parse(clip.caption) for clip in clips]
    assert all(meaning is not None and in_split(meaning, "train") for meaning in meanings)


@pytest.mark.parametrize(
    ("grammar", "seed", "digest"),
    [("mixed", 3, "b81b8b221ffcc53d"), ("scenic", 0, "e73df5345ede1969"), ("filmed", 5, "b28efa463221f508")],
)
def test_the_captions_of_the_shipped_weights_are_unchanged(grammar, seed, digest):
    """Recorded before the split."""
    clips = Rendered(2, 8, 8, 8.0, Playroom(grammar, split="train-v1"), seed)
    captions = "\n".join(clips.clip(i).caption for i in range(100))
    assert hashlib.sha256(captions.encode()).hexdigest()[:16] == digest


def test_a_fixed_camera_motion_is_not_in_the_caption():
    clips = [Rendered(4, 16, 16, 8.0, Playroom("simple", camera="pans left")).clip(i) for i in range(20)]
    assert {c.scene.camera for c in clips} == {"pans left"}
    assert not any("camera" in c.caption for c in clips)
    assert all("background" in c.caption for c in clips)


def test_a_style_applies_to_the_same_scenes():
    plain, styled = (Rendered(2, 32, 32, 8.0, Playroom("simple", style=s)).clip(3) for s in ("", "night"))
    assert plain.caption == styled.caption
    assert torch.equal(styles.apply("night", plain.video), styled.video)


def test_slow_motion_lowers_the_motion_score():
    plain = Rendered(8, 32, 32, 8.0, Playroom("simple"))
    slowed = replace(plain, how=Playroom("simple", slow=4.0))
    means = [np.mean([p.clip(i).motion for i in range(60)]) for p in (plain, slowed)]
    assert 0.35 < means[1] / means[0] < 0.8
    clip = slowed.clip(3)
    assert clip.video.shape == (3, 8, 32, 32)
    assert (clip.fps, clip.scene.fps) == (8.0, 8.0)
    assert all(len(t.size_T) == len(t.position_T2) == 8 for t in clip.scene.objects)
    assert torch.equal(slowed.clip(3).video, clip.video)


def test_the_motion_score_of_slow_motion_is_that_of_its_frames():
    slowed = Rendered(8, 32, 32, 8.0, Playroom("simple", slow=4.0))
    for i in range(6):
        clip = slowed.clip(i)
        assert clip.motion == pytest.approx(of_scene(clip.scene, 32, 32).mean(), rel=1e-4, abs=1e-7)


def test_excluded_motions_do_not_occur():
    plain = Rendered(2, 16, 16, 8.0, Playroom("simple"))
    without = replace(plain, how=Playroom("simple", without=("fades",)))
    motions = [[p.clip(i).scene.objects[0].motion for i in range(60)] for p in (plain, without)]
    assert "fades" in motions[0]
    assert "fades" not in motions[1]
    assert [b for a, b in zip(*motions, strict=True) if a != "fades"] == [a for a in motions[0] if a != "fades"]


def test_a_clip_may_be_a_part_of_a_longer_scene():
    whole = Rendered(20, 16, 16, 6.0, Playroom("simple"))
    part = replace(whole, frames=5, how=Playroom("simple", scene=20))
    starts = set()
    for i in range(12):
        clip, frames = part.clip(i), whole.clip(i).video
        assert clip.caption == whole.clip(i).caption
        starts |= {t for t in range(16) if torch.equal(frames[:, t : t + 5], clip.video)}
    assert len(starts) > 4
    assert Rendered(20, 16, 16, 6.0, Playroom("simple", scene=7)).clip(1).video.shape[1] == 20


@pytest.mark.parametrize(
    "how",
    [
        Playroom(),
        Playroom("filmed", split="train-v1"),
        Playroom("simple", slow=4.0, without=("fades",)),
        Playroom("scenic", camera="pans left"),
    ],
)
def test_the_caption_of_a_clip_is_known_without_rendering_it(how):
    clips = Rendered(4, 16, 16, how=how, seed=2)
    assert [clips.caption(i) for i in range(24)] == [clips.clip(i).caption for i in range(24)]
