"""Tasks on trimmed clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kinema.canvas import Canvas
from kinema.events import Event, Note, ignore
from kinema.schema import TASK_FIELDS, BadRequest, Clip, Request
from kinema.tasks import TASKS

SIDE = 16
FRAMES = 12


def ramp(frames: int) -> torch.Tensor:
    """A clip whose frames are flat greys of different brightness."""
    grey = torch.linspace(-1, 1, frames).mul(127.5).round().div(127.5)
    return grey[None, None, :, None, None].expand(1, 3, frames, SIDE, SIDE).contiguous()


@pytest.fixture
def clip(tmp_path: Path) -> str:
    return str(Clip(ramp(FRAMES), 8.0).save(tmp_path / "frames")[0])


@pytest.fixture
def video(tmp_path: Path) -> str:
    return str(Clip(ramp(FRAMES), 8.0).save(tmp_path / "clip.mp4")[0])


@pytest.fixture
def image(tmp_path: Path) -> str:
    return str(Clip(ramp(FRAMES)[:, :, -1:], 8.0).save(tmp_path / "white.png")[0])


def planned(task: str, **options: object) -> Request:
    return TASKS[task].plan(Request(**{"task": task, "prompt": "a red ball", **options}))


def canvas(task: str, events: list[Event] | None = None, **options: object) -> Canvas:
    request = planned(task, **options)
    size = {"frames": request.frames or 8, "height": request.height or SIDE, "width": request.width or SIDE}
    request = replace(request, **size, fps=request.fps or 8.0)
    return TASKS[task].canvas(request, ignore if events is None else events.append)


def known(result: Canvas) -> torch.Tensor:
    """Return one value per frame of the given, edited or small clip."""
    if result.small is not None:
        return result.small.video[0, 0, :, 0, 0]
    return (result.held[0] if result.held else result.given).video[0, 0, :, 0, 0]


WHOLE = ramp(FRAMES)[0, 0, :, 0, 0]


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=0.03)


def test_every_task_that_takes_a_clip_supports_trimming() -> None:
    for task, names in TASK_FIELDS.items():
        assert ("video" in names) == ("end" in names)
        assert ("start" in names) == (task != "generate")


@pytest.mark.parametrize("form", ["clip", "video"])
def test_edit_and_inpaint_use_the_trimmed_part(request: pytest.FixtureRequest, form: str) -> None:
    path, part = request.getfixturevalue(form), {"start": "3f", "end": 1.0}
    for task, options in (("edit", {}), ("inpaint", {"region": (0.5, 0.5, 1, 1)})):
        plan = planned(task, video=path, **part, **options)
        assert (plan.frames, plan.fps) == (5, 8)
        assert near(known(canvas(task, video=path, **part, **options)), WHOLE[3:8])
    assert near(
        known(canvas("edit", video=path, fps=4.0, **part)),
        WHOLE[[3, 5, 7]][: planned("edit", video=path, fps=4.0, **part).frames],
    )


def test_interpolate_counts_the_frames_of_the_part(clip: str) -> None:
    events: list[Event] = []
    result = canvas("interpolate", events, video=clip, start="2f", end="6f", every=3)
    assert result.shape.frames == 10
    assert near(known(result)[::3], WHOLE[2:6])
    assert not any(isinstance(e, Note) and "do not fit" in e.message for e in events)
    with pytest.raises(BadRequest, match="has 1 frame between its start and end; interpolate needs two"):
        planned("interpolate", video=clip, start="2f", end="3f")


def test_extend_keeps_the_end_of_the_part_or_its_start(clip: str) -> None:
    part = {"video": clip, "start": "2f", "end": "8f"}
    events: list[Event] = []
    result = canvas("extend", events, keep=4, frames=9, **part)
    assert near(known(result)[:4], WHOLE[4:8])
    assert any(isinstance(e, Note) and "the last 4 of 6 frames" in e.message for e in events)
    assert near(known(canvas("extend", keep=4, frames=9, backward=True, **part))[5:], WHOLE[2:6])
    assert planned("extend", **part).keep == 6


def test_upscale_enlarges_the_part(clip: str) -> None:
    result = canvas("upscale", video=clip, start="2f", end="6f", height=2 * SIDE, width=2 * SIDE)
    assert result.shape.frames == 4
    assert near(known(result), WHOLE[2:6])


def test_a_mask_clip_is_trimmed_with_its_clip(clip: str, tmp_path: Path, image: str) -> None:
    light = torch.full((1, 3, FRAMES, SIDE, SIDE), -1.0)
    light[:, :, 7:] = 1
    mask = str(Clip(light, 8.0).save(tmp_path / "mask")[0])
    part = {"video": clip, "start": 0.625, "end": "10f"}
    assert canvas("inpaint", mask=mask, **part).mask[0, 0, :, 0, 0].tolist() == [1, 1, 0, 0, 0]
    assert canvas("inpaint", mask=image, **part).mask[0, 0, :, 0, 0].tolist() == [0] * 5
    short = str(Clip(light[:, :, :4], 8.0).save(tmp_path / "short")[0])
    with pytest.raises(BadRequest, match=r"start is 0\.625 s, but short has 4 frames"):
        canvas("inpaint", mask=short, **part)


def test_a_mask_of_another_rate_starts_at_the_same_second(clip: str, tmp_path: Path) -> None:
    light = torch.full((1, 3, FRAMES // 2, SIDE, SIDE), -1.0)
    light[:, :, 4:] = 1  # from second 1 on
    mask = str(Clip(light, 4.0).save(tmp_path / "mask.mp4")[0])
    result = canvas("inpaint", video=clip, mask=mask, start="4f")
    assert result.mask[0, 0, :, 0, 0].tolist()[:3] == [1, 1, 1]
    assert result.mask[0, 0, :, 0, 0].tolist()[5:] == [0, 0, 0]


def test_animate_starts_with_the_frame_at_start(clip: str, video: str, image: str) -> None:
    for path in (clip, video):
        result = canvas("animate", image=path, start="5f", last_image=path)
        assert near(known(result)[:1], WHOLE[5:6])
        assert near(known(result)[-1:], WHOLE[:1])
    with pytest.raises(BadRequest, match=r"start is 1\.0, but .*white\.png is an image; leave --start out"):
        planned("animate", image=image, start=1.0)
    with pytest.raises(BadRequest, match="give an image, or leave --start out"):
        planned("animate", keyframes={"0": clip}, start=1.0)
    with pytest.raises(BadRequest, match=r"start is 9 s, but frames has 12 frames"):
        planned("animate", image=clip, start=9)
    with pytest.raises(BadRequest, match="--start and --end apply to a video, not to two images"):
        planned("interpolate", image=image, last_image=image, end=1.0)


@pytest.mark.parametrize(
    ("task", "options", "heard"),
    [
        ("edit", {}, (3 / 8, 5 / 8, 0)),
        ("edit", {"frames": 3}, (3 / 8, 5 / 8, 0)),
        ("edit", {"end": None}, (3 / 8, None, 0)),
        ("edit", {"start": None}, (0, 1, 0)),
        ("inpaint", {"region": (0, 0, 0.5, 0.5)}, (3 / 8, 5 / 8, 0)),
        ("interpolate", {"every": 3}, (3 / 8, 5 / 8, 0)),
        ("upscale", {"height": 32, "width": 32}, (3 / 8, 5 / 8, 0)),
        ("extend", {"frames": 10}, (3 / 8, 5 / 8, 0)),
        ("extend", {"frames": 10, "keep": 2}, (6 / 8, 2 / 8, 0)),
        ("extend", {"frames": 10, "keep": 2, "backward": True}, (3 / 8, 2 / 8, 1)),
    ],
)
def test_the_sound_is_trimmed_with_the_clip(
    video: str, task: str, options: dict[str, object], heard: tuple[float, float | None, float]
) -> None:
    part = canvas(task, **{"video": video, "start": "3f", "end": "1s", **options}).heard
    assert part is not None
    assert (part.file, part.begin, part.seconds, part.at, part.unfit) == (video, *heard, "")
