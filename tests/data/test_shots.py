"""Clips cut where the film cuts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from kinema.data import shots
from kinema.data.folder import Folder
from kinema.media.metadata import read_recipe
from kinema.media.read import read_video
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip


def film(path, lengths, fps=8.0, side=32):
    """Shots of slowly brightening colours, one after the other."""
    rng = np.random.default_rng(3)
    frames = []
    for length in lengths:
        colour = rng.integers(40, 200, 3)
        frames += [np.broadcast_to(colour + t, (side, side, 3)) for t in range(length)]
    video = torch.from_numpy(np.stack(frames).astype(np.float32)).permute(3, 0, 1, 2)[None] / 127.5 - 1
    save_clip(Clip(video, fps), path, generated=False)


def test_shots_are_found_where_the_film_cuts(tmp_path):
    film(tmp_path / "film.mp4", [12, 20, 9])
    found = shots.find(tmp_path / "film.mp4", 0.5, 60)
    assert [(s.start, s.end) for s in found] == [(0, 12), (12, 32), (32, 41)]
    assert found[0].fps == 8


def test_short_shots_are_left_out_and_long_ones_cut_evenly(tmp_path):
    film(tmp_path / "film.mp4", [4, 20, 9])
    found = shots.find(tmp_path / "film.mp4", 1.0, 1.5)
    assert [(s.start, s.end) for s in found] == [(4, 14), (14, 24), (24, 33)]


def test_steady_motion_and_flicker_are_no_cut():
    rng = np.random.default_rng(0)
    noisy = 0.5 + 0.2 * rng.normal(size=(20, 8, 8, 3))
    assert shots.cuts(noisy.astype(np.float32)) == []
    assert shots.cuts(np.zeros((5, 8, 8, 3), np.float32)) == []
    assert shots.cuts(np.zeros((1, 8, 8, 3), np.float32)) == []


def test_the_files_hold_the_shots_at_their_rate_and_the_list_serves_training(tmp_path):
    source = tmp_path / "films"
    source.mkdir()
    film(source / "film.mp4", [12, 20, 9], side=48)
    (source / "film.txt").write_text("colours")
    (source / "bad.mp4").write_bytes(b"nothing")
    heard = []
    written = shots.cut(source, tmp_path / "shots", side=32, on_event=heard.append)
    assert [p.name for p in written] == [f"film-{i:03d}.mp4" for i in range(3)]
    made, whole = read_video(written[1]), read_video(source / "film.mp4")
    assert made.fps == 8
    assert made.video.shape == (1, 3, 20, 32, 32)
    assert float((made.video.mean((3, 4)) - whole.video[:, :, 12:32].mean((3, 4))).abs().max()) < 0.05
    rows = [json.loads(line) for line in (tmp_path / "shots" / shots.LIST).read_text().splitlines()]
    assert rows[1]["start"] == 1.5
    assert any("bad.mp4 is left out" in e.message for e in heard)
    clips = Folder.scan(tmp_path / "shots", frames=4, height=16, width=16)
    assert len(clips) == 3
    assert clips.clip(0).caption == "colours"
    assert read_recipe(written[0])["source"] == "film.mp4"


def test_a_folder_that_holds_a_list_and_films_without_a_shot_are_refused(tmp_path):
    film(tmp_path / "film.mp4", [4])
    with pytest.raises(BadRequest, match="there is no shot of 1 seconds or more"):
        shots.cut(tmp_path / "film.mp4", tmp_path / "shots")
    assert not (tmp_path / "shots").exists()
    (tmp_path / "shots").mkdir()
    (tmp_path / "shots" / shots.LIST).write_text("")
    with pytest.raises(BadRequest, match="exists already"):
        shots.cut(tmp_path / "film.mp4", tmp_path / "shots")
    with pytest.raises(BadRequest, match="cannot be; expected the least first"):
        shots.cut(tmp_path / "film.mp4", tmp_path / "other", least_seconds=3, most_seconds=2)


def test_what_goes_wrong_in_writing_is_not_blamed_on_the_film(tmp_path, monkeypatch):
    film(tmp_path / "a.mp4", [12])

    def full(*_told, **_named):
        raise BadRequest("no space left for a-000.mp4")

    monkeypatch.setattr(shots, "save_clip", full)
    heard = []
    with pytest.raises(BadRequest, match="no space left"):
        shots.cut(tmp_path / "a.mp4", tmp_path / "out", on_event=heard.append)
    assert not heard
