"""Shot detection and cutting."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from kinema.data import shot_folder, shots
from kinema.data.folder import Folder
from kinema.media.metadata import read_recipe
from kinema.media.read import read_video
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip


def film(path, lengths, fps=8.0, side=32):
    """Write consecutive shots of slowly brightening colours."""
    rng = np.random.default_rng(3)
    frames = []
    for length in lengths:
        colour = rng.integers(40, 200, 3)
        frames += [np.broadcast_to(colour + t, (side, side, 3)) for t in range(length)]
    video = torch.from_numpy(np.stack(frames).astype(np.float32)).permute(3, 0, 1, 2)[None] / 127.5 - 1
    save_clip(Clip(video, fps), path, generated=False)


def test_shots_start_at_cuts(tmp_path):
    film(tmp_path / "film.mp4", [12, 20, 9])
    found = shots.find(tmp_path / "film.mp4", 0.5, 60)
    assert [(s.start, s.end) for s in found] == [(0, 12), (12, 32), (32, 41)]
    assert found[0].fps == 8


def test_short_shots_are_dropped_and_long_ones_split_evenly(tmp_path):
    film(tmp_path / "film.mp4", [4, 20, 9])
    found = shots.find(tmp_path / "film.mp4", 1.0, 1.5)
    assert [(s.start, s.end) for s in found] == [(4, 14), (14, 24), (24, 33)]


def test_steady_motion_and_flicker_are_not_cuts():
    rng = np.random.default_rng(0)
    noisy = 0.5 + 0.2 * rng.normal(size=(20, 8, 8, 3))
    assert shots.cuts(noisy.astype(np.float32)) == []
    assert shots.cuts(np.zeros((5, 8, 8, 3), np.float32)) == []
    assert shots.cuts(np.zeros((1, 8, 8, 3), np.float32)) == []


def test_files_hold_the_shots_at_their_rate_and_the_list_is_usable_for_training(tmp_path):
    source = tmp_path / "films"
    source.mkdir()
    film(source / "film.mp4", [12, 20, 9], side=48)
    (source / "film.txt").write_text("colours")
    (source / "bad.mp4").write_bytes(b"nothing")
    heard = []
    written = shots.cut(source, tmp_path / "shots", side=32, on_event=heard.append)
    assert [p.name for p in written] == [f"film-{i:03d}.mp4" for i in range(3)]
    shot, whole = read_video(written[1]), read_video(source / "film.mp4")
    assert shot.fps == 8
    assert shot.video.shape == (1, 3, 20, 32, 32)
    assert float((shot.video.mean((3, 4)) - whole.video[:, :, 12:32].mean((3, 4))).abs().max()) < 0.05
    rows = [json.loads(line) for line in (tmp_path / "shots" / shots.LIST).read_text().splitlines()]
    assert rows[1]["start"] == 1.5
    assert any("skipped bad.mp4" in e.message for e in heard)
    clips = Folder.scan(tmp_path / "shots", frames=4, height=16, width=16)
    assert len(clips) == 3
    assert clips.clip(0).caption == "colours"
    assert read_recipe(written[0])["source"] == "film.mp4"


def test_an_existing_list_and_films_without_shots_are_refused(tmp_path):
    film(tmp_path / "film.mp4", [4])
    with pytest.raises(BadRequest, match="no shot lasts 1 s or longer"):
        shots.cut(tmp_path / "film.mp4", tmp_path / "shots")
    assert not (tmp_path / "shots").exists()
    (tmp_path / "shots").mkdir()
    (tmp_path / "shots" / shots.LIST).write_text("")
    with pytest.raises(BadRequest, match="already exists"):
        shots.cut(tmp_path / "film.mp4", tmp_path / "shots")
    with pytest.raises(BadRequest, match="shots are to last 3 to 2 s; expected a --least-seconds above 0"):
        shots.cut(tmp_path / "film.mp4", tmp_path / "other", least_seconds=3, most_seconds=2)


def test_write_errors_are_not_attributed_to_the_film(tmp_path, monkeypatch):
    film(tmp_path / "a.mp4", [12])

    def full(*_args, **_options):
        raise BadRequest("no space left for a-000.mp4")

    monkeypatch.setattr(shots, "save_clip", full)
    heard = []
    with pytest.raises(BadRequest, match="no space left"):
        shots.cut(tmp_path / "a.mp4", tmp_path / "out", on_event=heard.append)
    assert not heard


# ------------------------------------------------------------------ existing files and resuming


def listed(out):
    return [json.loads(line) for line in (out / shots.LIST).read_text().splitlines()]


def test_clips_that_differ_in_folder_or_suffix_get_distinct_shots(tmp_path):
    source = tmp_path / "films"
    (source / "x").mkdir(parents=True)
    for name in ("a.mp4", "a.gif", "x/b.mp4", "x-b.gif"):
        film(source / name, [9])
    written = shots.cut(source, tmp_path / "out")
    assert len({path.name for path in written}) == 4
    rows = listed(tmp_path / "out")
    assert {row["source"] for row in rows} == {"a.mp4", "a.gif", "x/b.mp4", "x-b.gif"}
    assert [row["file_name"] for row in rows] == [path.name for path in written]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*(p.name for p in written), shots.LIST}


@pytest.mark.parametrize("name", ["film-000.mp4", "FILM-007.mp4", "metadata.jsonl", ".shots.jsonl"])
def test_existing_files_are_kept_and_refused_before_work_starts(tmp_path, name, monkeypatch):
    film(tmp_path / "film.mp4", [9])
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('"mine"\n')
    monkeypatch.setattr(shots, "find", lambda *_: pytest.fail("work started"))
    with pytest.raises(BadRequest, match="name another folder"):
        shots.cut(tmp_path / "film.mp4", out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {name: '"mine"\n'}


def test_a_file_created_meanwhile_is_kept(tmp_path, monkeypatch):
    film(tmp_path / "film.mp4", [9])
    out = tmp_path / "out"
    find = shots.find

    def late(*args):
        (out / "film-000.mp4").write_text("mine")
        return find(*args)

    monkeypatch.setattr(shots, "find", late)
    with pytest.raises(BadRequest, match="exists"):
        shots.cut(tmp_path / "film.mp4", out)
    assert [path.name for path in out.iterdir()] == ["film-000.mp4"]
    assert (out / "film-000.mp4").read_text() == "mine"


def test_interrupted_work_resumes_to_the_same_result(tmp_path, monkeypatch):
    source = tmp_path / "films"
    source.mkdir()
    for name in "abc":
        film(source / f"{name}.mp4", [9, 9])
    whole = shots.cut(source, tmp_path / "whole")
    save, saved, heard = shots.save_clip, [], []

    def stopping(clip, path, **options):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(path.name)
        return save(clip, path, **options)

    monkeypatch.setattr(shots, "save_clip", stopping)
    with pytest.raises(KeyboardInterrupt):
        shots.cut(source, tmp_path / "out", on_event=heard.append)
    assert "3 shots so far in" in heard[-1].message
    with (tmp_path / "out" / shot_folder.WORK).open("a") as journal:
        journal.write('{"file_name": "b-001')  # a row cut short by a kill
    with pytest.raises(BadRequest, match="other options"):
        shots.cut(source, tmp_path / "out", side=32)
    monkeypatch.setattr(
        shots, "save_clip", lambda clip, path, **options: (saved.append(path.name), save(clip, path, **options))[1]
    )
    again = shots.cut(source, tmp_path / "out")
    assert saved == [path.name for path in whole]  # no shot was written twice
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in whole]
    assert listed(tmp_path / "out") == listed(tmp_path / "whole")
    assert not (tmp_path / "out" / shot_folder.WORK).exists()


CUT = """
import os, sys
from pathlib import Path
from kinema.data import shots
from kinema.schema import BadRequest
ready, go, runs = os.pipe(), os.pipe(), []
for film in sys.argv[2:]:
    runs.append(os.fork())
    if not runs[-1]:
        os.close(go[1])
        os.write(ready[1], b".")
        os.read(go[0], 1)  # until it is closed
        try:
            shots.cut(Path(film), Path(sys.argv[1]))
        except BadRequest as error:
            print(error, flush=True)
            os._exit(2)
        os._exit(0)
for _ in runs:
    os.read(ready[0], 1)
os.close(go[1])
print(*(os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]) for run in runs))
"""
"""Cuts films into one folder, each in a fork that begins when all are ready; prints the exit codes last."""


def test_of_two_processes_one_cuts_all_shots_and_the_other_is_refused(tmp_path):
    films = []
    for i, lengths in enumerate(([9, 9], [9, 9, 9])):
        films.append(tmp_path / str(i) / "film.mp4")
        films[-1].parent.mkdir()
        film(films[-1], lengths)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", CUT, out, *films], capture_output=True, text=True, timeout=120, check=True
    )
    said, ended = done.stdout.splitlines()
    codes = [int(code) for code in ended.split()]
    assert sorted(codes) == [0, 2]
    assert "name another folder" in said
    assert len(listed(out)) == (2, 3)[codes.index(0)]
    assert {p.name for p in out.glob("*.mp4")} == {row["file_name"] for row in listed(out)}


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "film.mp4")
    with pytest.raises(BadRequest, match="is not a regular file"):
        shots.cut(tmp_path / "film.mp4", tmp_path / "out")
