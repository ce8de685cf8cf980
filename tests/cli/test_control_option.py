"""``--control`` and ``--ip-image``: files, optionally named, become options of a family."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema.cli.options import parse
from kinema.cli.verbs import additions, conditioning_files, request_from, request_options
from kinema.schema import BadRequest


@pytest.mark.parametrize(
    ("given", "extra"),
    [
        ({}, {}),
        ({"control": ["a.mp4"]}, {"control": "a.mp4"}),
        ({"control": ["my-depth=a.mp4", "pose=b/"]}, {"control.my_depth": "a.mp4", "control.pose": "b/"}),
        ({"control": ["frames/x=1.mp4"]}, {"control": "frames/x=1.mp4"}),
        ({"ip_image": ["a.png", "b.png"]}, {"ip_image": ["a.png", "b.png"]}),
        ({"ip_image": ["face=a.png", "style=b.png"]}, {"ip_image.face": "a.png", "ip_image.style": "b.png"}),
    ],
)
def test_a_name_precedes_the_file(given, extra):
    assert conditioning_files(given) == extra


def test_a_file_whose_name_has_an_equals_sign_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("depth=2").touch()
    assert conditioning_files({"control": ["depth=2"]}) == {"control": "depth=2"}


def test_two_clips_for_one_controlnet_or_two_files_for_one_slot_are_refused():
    with pytest.raises(BadRequest, match="gives 2 clips for one ControlNet; give NAME=PATH"):
        conditioning_files({"control": ["a.mp4", "b.mp4"]})
    with pytest.raises(BadRequest, match="given twice; give it once, or name each: --add controlnet.NAME=PATH"):
        additions(["controlnet=a", "controlnet=b"])


def test_they_join_extra_and_the_help_states_that_nothing_is_extracted(capsys):
    options = request_options("generate")
    words = ["a cat", "--control", "depth=a.mp4", "--extra", "control-scale.depth=0.5", "--ip-image", "b.png"]
    request = request_from("generate", parse(options, words, "p", "a"))
    assert request.extra == {"control.depth": "a.mp4", "control_scale.depth": 0.5, "ip_image": "b.png"}
    with pytest.raises(BadRequest, match="control.depth is given twice"):
        request_from("generate", parse(options, [*words, "--extra", "control.depth=c.mp4"], "p", "a"))
    with pytest.raises(SystemExit):
        parse(options, ["--help"], "p", "a")
    assert "Kinema does not extract edges, depth or poses itself" in " ".join(capsys.readouterr().out.split())
