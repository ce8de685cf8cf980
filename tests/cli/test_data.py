"""``kinema data``: steps, tables, JSON output and refused requests."""

from __future__ import annotations

import json

import pytest
import torch

from kinema.cli.main import main
from kinema.data import playroom
from kinema.media.write import save_clip
from kinema.schema import Clip

pytest.importorskip("cv2")


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(2):
        sample = playroom.sample(i, frames=12, height=32, width=32, fps=7.0)
        save_clip(Clip(torch.from_numpy(sample.video_CTHW)[None], 7.0), folder / f"{i}.mp4", generated=False)
    return folder


def test_motion_bucket_prints_a_table_and_writes_motion_json(clips, capsys):
    assert main(["data", "motion-bucket", str(clips), "--quiet"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["clip", "fps", "seconds", "motion", "bucket"]
    assert [row.split()[1] for row in rows] == ["7.00", "7.00"]
    assert set(json.loads((clips / "motion.json").read_text())["clips"]) == {"0.mp4", "1.mp4"}


def test_motion_bucket_accepts_files_json_and_middle(clips, capsys):
    files = [str(clips / "0.mp4"), str(clips / "1.mp4")]
    assert main(["data", "motion-bucket", *files, "--json", "--quiet", "--middle", "0.015"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["clip"] for row in rows] == files
    for row in rows:
        assert row["bucket"] == pytest.approx(255 * row["motion"] / (row["motion"] + 0.015))


def test_shots_then_latents_from_the_command_line(clips, tmp_path, capsys):
    assert main(["data", "shots", str(clips), "--out", str(tmp_path / "shots"), "--quiet"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    words = [str(tmp_path / "shots"), "--model", "svd/tiny", "--out", str(tmp_path / "l"), "--quiet", "--threads", "1"]
    assert main(["data", "latents", *words]) == 0
    assert "2 windows of 2 clips, 2 new" in capsys.readouterr().out
    assert main(["data", "latents", *words, "--json-events"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["windows"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["motion"], "`kinema data` has no step 'motion'"),
        (["motion-bucket"], "name a folder of clips, or clips"),
        (["motion-bucket", "nothing.mp4"], "there is no file or folder nothing.mp4"),
        (["motion-bucket", ".", "--middle", "0"], "--middle is 0; expected more than 0"),
        (["shots", "films"], "needs clips and --out"),
        (["shots", "nothing", "--out", "x"], "there is no file or folder nothing"),
        (["shots", ".", "--out", "x", "--side", "2"], "--side is 2; expected 16 pixels or more"),
        (["latents", ".", "--out", "x"], "model is missing"),
        (["latents", ".", "--model", "svd/tiny", "--out", "x", "--shard", "0"], "shard is 0; expected 1"),
    ],
)
def test_a_bad_request_exits_with_code_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["latents", "--help"]])
def test_help_is_printed(words, capsys):
    assert main(["data", *words]) == 0
    assert "usage: kinema data" in capsys.readouterr().out


def test_links_are_followed_with_follow_links_only(clips, tmp_path, capsys):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "0.mp4").symlink_to(clips / "0.mp4")
    for step, *more in (("shots", "--out", str(tmp_path / "s")), ("motion-bucket",)):
        assert main(["data", step, str(linked), *more, "--quiet"]) == 2
        assert "(--follow-links reads it)" in capsys.readouterr().err
        assert main(["data", step, str(linked), *more, "--quiet", "--follow-links"]) == 0
    words = [str(linked), "--model", "svd/tiny", "--out", str(tmp_path / "l"), "--quiet", "--threads", "1"]
    assert main(["data", "latents", *words]) == 2
    assert main(["data", "latents", *words, "--follow-links"]) == 0
