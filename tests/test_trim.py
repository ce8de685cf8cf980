"""Trimming: the accepted forms of start and end."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest

from kinema.schema import BadRequest
from kinema.trim import trim_of


@pytest.mark.parametrize(
    ("given", "frame"),
    [
        ("36f", 36), (" 36 f ", 36), ("0f", 0), ("1.5", 36), ("1.5s", 36), (".5 s", 12), ("2.", 48), (1.5, 36), (2, 48),
        ("0:01.5", 36), ("1:00", 1440), ("01:00:01", 86424), ("1:2:03.5", 89364),
    ],
)  # fmt: skip
def test_a_start_is_seconds_or_a_frame(given: object, frame: int) -> None:
    assert trim_of(given, None).frames("a.mp4", 10**6, 24.0) == range(frame, 10**6)


@pytest.mark.parametrize(
    "given",
    ["", "f", "s", "x", "-1", "-1f", "1.5f", "nan", "inf", "1e3", "0:60", "1:60:00", "1:", "9" * 400, "9" * 400 + "f",
     "1:2:3:4", "1\n2", "٣", float("nan"), float("inf"), -0.5, -1, 10**400, True, [1], Fraction(1, 2)],
)  # fmt: skip
@pytest.mark.parametrize("name", ["start", "end"])
def test_an_invalid_position_is_refused_in_one_sentence(name: str, given: object) -> None:
    with pytest.raises(
        BadRequest, match=rf"^{name} is .*; expected seconds \(1\.5 or 0:01\.5\) or a frame \(36f\)"
    ) as e:
        trim_of(*((given, None) if name == "start" else (None, given)))
    assert len(str(e.value)) < 200
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("start", "end"), [(2, 1), ("1.5", 1.5), ("8f", "4f"), ("0:02", "1s")])
def test_an_end_before_the_start_is_refused_before_a_clip_is_opened(start: object, end: object) -> None:
    with pytest.raises(BadRequest, match="expected an end after the start"):
        trim_of(start, end)


def test_the_end_is_exclusive_and_adjacent_parts_share_no_frame() -> None:
    assert trim_of("4f", "6f").frames("a.mp4", 10, 8.0) == range(4, 6)
    for at in (0.3, 0.31, 0.3125, 0.37, 0.4375):
        before, after = (trim_of(*part).frames("a.mp4", 10, 8.0) for part in ((None, at), (at, None)))
        assert [*before, *after] == list(range(10))


def test_a_part_beyond_the_clip_is_refused_with_its_length() -> None:
    has = r"a\.mp4 has 10 frames \(1\.25 s\)"
    for start in ("10f", 1.25, "9:00"):
        with pytest.raises(BadRequest, match=rf"^start is .*, but {has}; expected an earlier start$"):
            trim_of(start, None).frames("a.mp4", 10, 8.0)
    for end in ("11f", 1.4):
        with pytest.raises(BadRequest, match=rf"^end is .*, but {has}; expected an earlier end, or none$"):
            trim_of(None, end).frames("a.mp4", 10, 8.0)
    assert trim_of("9f", "10f").frames("a.mp4", 10, 8.0) == range(9, 10)
    with pytest.raises(
        BadRequest, match=r"start is frame 8 and end is 0\.5 s, which leaves no frame of a\.mp4 at 8 fps"
    ):
        trim_of("8f", 0.5).frames("a.mp4", 10, 8.0)
    with pytest.raises(BadRequest, match=r"^end is 0\.01 s, which leaves no frame"):
        trim_of(None, 0.01).frames("a.mp4", 10, 8.0)
    with pytest.raises(BadRequest) as long:
        trim_of("99f", None).frames("a" * 1000, 10, 8.0)
    assert len(str(long.value)) < 300


def test_the_module_imports_without_heavy_libraries() -> None:
    code = "import sys, kinema.trim; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'av')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
