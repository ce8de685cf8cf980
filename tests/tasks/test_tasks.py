"""The canvas of each task: which pixels are given, which are generated, and which requests are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kinema.canvas import Canvas, Release
from kinema.events import Event, Note, ignore
from kinema.media import read
from kinema.schema import BadRequest, Clip, Request
from kinema.tasks import TASKS


def ramp(frames: int, height: int = 16, width: int = 16) -> torch.Tensor:
    """A clip whose frames are flat greys of different brightness."""
    grey = torch.linspace(-1, 1, frames).mul(127.5).round().div(127.5)
    return grey[None, None, :, None, None].expand(1, 3, frames, height, width).contiguous()


@pytest.fixture
def clip(tmp_path: Path) -> str:
    return str(Clip(ramp(6), 8.0).save(tmp_path / "frames")[0])


@pytest.fixture
def image(tmp_path: Path) -> str:
    from PIL import Image

    path = tmp_path / "red.png"
    Image.new("RGB", (40, 20), (255, 0, 0)).save(path)
    return str(path)


def canvas(task: str, **options: object) -> Canvas:
    request = Request(**{"task": task, "prompt": "a red ball", **options})
    request = TASKS[task].plan(request)
    size = {"frames": request.frames or 8, "height": request.height or 16, "width": request.width or 16}
    return TASKS[task].canvas(replace(request, **size, fps=request.fps or 8.0), ignore)


def given_frames(result: Canvas) -> list[int]:
    whole = result.mask[0, 0].flatten(1).amin(1) > 0
    return whole.nonzero().flatten().tolist()


def test_generate_gives_no_pixels() -> None:
    assert canvas("generate").kind == "nothing"


def test_animate_gives_frame_0_cropped_to_size_with_a_note(image: str) -> None:
    result = canvas("animate", image=image)
    assert given_frames(result) == [0]
    assert torch.allclose(result.video[0, :, 0, 8, 8], torch.tensor([1.0, -1, -1]), atol=1e-3)
    events: list[Event] = []
    TASKS["animate"].canvas(Request(task="animate", image=image, frames=8, height=16, width=16), events.append)
    assert any(isinstance(e, Note) and "40" in e.message for e in events)


def test_tone_mapping_of_an_hdr_clip_is_noted(tmp_path: Path, clip: str) -> None:
    import av

    path = str(tmp_path / "a.mkv")
    with av.open(path, "w") as out:
        stream = out.add_stream("ffv1", rate=8, width=16, height=16, pix_fmt="yuv420p10le")
        frame = av.VideoFrame(16, 16, "yuv420p10le")
        for each in (stream.codec_context, frame):
            each.colorspace, each.color_range, each.color_trc, each.color_primaries = 9, 1, 16, 9
        frame.pts = 0
        out.mux([*stream.encode(frame), *stream.encode()])

    def notes(video: str) -> list[str]:
        events: list[Event] = []
        TASKS["edit"].canvas(Request(task="edit", video=video, frames=1, height=16, width=16, fps=8.0), events.append)
        return [e.message for e in events if isinstance(e, Note) and "tone-mapped" in e.message]

    (note,) = notes(path)
    assert note.startswith(f"{path} is HDR (PQ)")
    assert notes(clip) == []


def test_animate_uses_the_first_frame_of_a_clip_and_a_last_image(clip: str, image: str) -> None:
    result = canvas("animate", image=clip, last_image=image)
    assert given_frames(result) == [0, 7]
    assert torch.allclose(result.video[0, :, 0], torch.tensor(-1.0), atol=1e-2)
    assert given_frames(canvas("animate", image=clip, loop=True)) == [0, 7]


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.webp"])
def test_an_animated_image_is_its_first_frame_as_an_image_and_a_clip_as_a_video(tmp_path: Path, name: str) -> None:
    from PIL import Image

    first, *rest = [Image.new("RGB", (16, 16), (40 * t, 40 * t, 40 * t)) for t in range(6)]
    first.save(tmp_path / name, save_all=True, append_images=rest, duration=200, lossless=True)
    file = str(tmp_path / name)
    assert canvas("animate", image=file).video[0, :, 0].unique().tolist() == [-1.0]
    for task, options in (("edit", {}), ("interpolate", {"every": 2}), ("extend", {"frames": 8})):
        result = canvas(task, video=file, **options)
        known = result.held[0].video if result.held else result.video
        count = {"edit": 6, "interpolate": 11, "extend": 8}[task]
        assert known.shape[2] == count
        given = range(0, 11, 2) if task == "interpolate" else range(6)
        levels = ((known[0, 0, list(given), 8, 8] + 1) * 127.5).round().tolist()
        assert levels == pytest.approx([0, 40, 80, 120, 160, 200], abs=2)


def test_a_cinemagraph_is_still_outside_its_region(image: str) -> None:
    result = canvas("animate", image=image, region=(0.5, 0, 1, 1))
    assert result.mask[0, 0, 0].min() == 1
    assert result.mask[0, 0, 3, :, :8].min() == 1
    assert result.mask[0, 0, 3, :, 8:].max() == 0
    assert torch.equal(result.video[0, :, 5], result.video[0, :, 0])


@pytest.fixture
def greys(tmp_path: Path) -> list[str]:
    """Images of four greys, dark to light."""
    video = ramp(4)
    return [str(Clip(video[:, :, t : t + 1]).save(tmp_path / f"grey-{t}.png")[0]) for t in range(4)]


def test_each_keyframe_is_a_whole_frame_with_or_without_an_image(greys: list[str], clip: str) -> None:
    result = canvas("animate", keyframes={5: greys[1], 2: greys[2]})
    assert given_frames(result) == [2, 5]
    assert result.kind == "frames"
    assert [result.video[0, :, t].unique().item() for t in (2, 5)] == pytest.approx([1 / 3, -1 / 3], abs=1e-2)
    assert result.video[:, :, [0, 1, 3, 4, 6, 7]].abs().max() == 0
    whole = canvas("animate", image=greys[0], last_image=greys[3], keyframes={3: clip})
    assert given_frames(whole) == [0, 3, 7]
    assert [whole.video[0, :, t].unique().item() for t in (0, 3, 7)] == [-1.0, -1.0, 1.0]  # a clip's first frame
    looped = canvas("animate", keyframes={0: greys[2], 4: greys[1]}, loop=True)
    assert given_frames(looped) == [0, 4, 7]
    assert torch.equal(looped.video[:, :, 7], looped.video[:, :, 0])


def test_keyframe_0_equals_the_image(greys: list[str]) -> None:
    for more in ({}, {"loop": True}, {"last_image": greys[1]}, {"region": (0.5, 0, 1, 1)}):
        one, other = canvas("animate", image=greys[2], **more), canvas("animate", keyframes={0: greys[2]}, **more)
        assert torch.equal(one.video, other.video)
        assert torch.equal(one.mask, other.mask)


def test_outside_a_region_each_frame_repeats_the_keyframe_before_it(greys: list[str]) -> None:
    result = canvas("animate", keyframes={2: greys[1], 5: greys[3]}, region=(0.5, 0, 1, 1))
    assert given_frames(result) == [2, 5]
    assert result.mask[0, 0, :, :, :8].min() == 1
    assert result.mask[0, 0, [0, 1, 3, 4, 6, 7], :, 8:].max() == 0
    assert result.video[0, 0, :, 0, 0].tolist() == pytest.approx([-1 / 3] * 5 + [1] * 3, abs=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keyframes": {0: "a.png"}, "image": "b.png"}, "frame 0 is given twice, by the image and by keyframe 0"),
        (
            {"keyframes": {7: "a.png"}, "image": "b.png", "loop": True},
            "last frame is given twice, by --loop and by keyframe 7",
        ),
        (
            {"keyframes": {7: "a.png"}, "last_image": "b.png"},
            "last frame is given twice, by --last-image and by keyframe 7",
        ),
        ({"keyframes": {3: "a.png"}, "loop": True}, "--loop repeats frame 0 at the end, but frame 0 is not given"),
        ({"keyframes": {3: "a.png", 8: "b.png"}}, "keyframe 8 is beyond the end of the clip; expected 0 to 7"),
        ({}, "animate needs an image or a keyframe"),
    ],
)
def test_invalid_keyframes_are_refused_before_a_file_is_read(options: dict, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        canvas("animate", **options)


def test_interpolate_gives_every_kth_frame_and_multiplies_the_rate(clip: str) -> None:
    request = TASKS["interpolate"].plan(Request(task="interpolate", video=clip, every=3))
    assert (request.frames, request.fps) == (16, 24.0)
    result = canvas("interpolate", video=clip, every=3)
    assert given_frames(result) == [0, 3, 6, 9, 12, 15]
    assert torch.allclose(result.video[0, 0, ::3, 0, 0], ramp(6)[0, 0, :, 0, 0], atol=1e-2)


def test_interpolate_between_two_images_gives_the_ends(clip: str, image: str) -> None:
    assert given_frames(canvas("interpolate", image=clip, last_image=image)) == [0, 7]
    with pytest.raises(BadRequest, match="last image"):
        canvas("interpolate", image=clip)


@pytest.mark.parametrize(
    ("options", "given", "total"),
    [
        ({}, [0, 1, 2, 3, 4, 5], 18),
        ({"keep": 2}, [0, 1], 14),
        ({"keep": 2, "frames": 8, "backward": True}, [6, 7], 8),
        ({"keep": 3, "frames": 8, "loop": True}, [0, 1, 2, 7], 8),
    ],
)
def test_extend_keeps_the_requested_frames(clip: str, options: dict, given: list[int], total: int) -> None:
    result = canvas("extend", video=clip, **options)
    assert given_frames(result) == given
    assert result.video.shape[2] == total


def test_extend_continues_from_the_end_or_leads_to_the_start(clip: str) -> None:
    after = canvas("extend", video=clip, keep=2, frames=8)
    assert torch.allclose(after.video[0, 0, :2, 0, 0], ramp(6)[0, 0, -2:, 0, 0], atol=1e-2)
    before = canvas("extend", video=clip, keep=2, frames=8, backward=True)
    assert torch.allclose(before.video[0, 0, -2:, 0, 0], ramp(6)[0, 0, :2, 0, 0], atol=1e-2)


def test_extend_refuses_fewer_frames_than_it_keeps(clip: str) -> None:
    with pytest.raises(BadRequest, match="more"):
        canvas("extend", video=clip, frames=4)


@pytest.mark.parametrize(("part", "most"), [({}, "6 frames of /"), ({"end": "3f"}, "3 frames of the used part of /")])
def test_extend_refuses_to_keep_more_frames_than_there_are(clip: str, part: dict, most: str) -> None:
    with pytest.raises(BadRequest, match=f"--keep is 7; expected at most the {most}"):
        canvas("extend", video=clip, keep=7, **part)


def test_inpaint_generates_the_region_and_outpaint_the_rest(clip: str) -> None:
    inside = canvas("inpaint", video=clip, region=(0, 0, 0.5, 1), frames=6)
    outside = canvas("inpaint", video=clip, region=(0, 0, 0.5, 1), frames=6, outside=True)
    assert inside.mask[0, 0, 2, 0].tolist() == [0.0] * 8 + [1.0] * 8
    assert torch.equal(inside.mask, 1 - outside.mask)


def test_a_mask_file_is_white_where_new_content_is_generated(clip: str, tmp_path: Path) -> None:
    from PIL import Image

    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 16, 4))
    mask.save(tmp_path / "mask.png")
    result = canvas("inpaint", video=clip, mask=str(tmp_path / "mask.png"), frames=6)
    assert result.mask[0, 0, :, 0].max() == 0
    assert result.mask[0, 0, :, 5:].min() == 1


def test_masks_painted_for_frames_are_carried_along_the_clip(clip: str, tmp_path: Path) -> None:
    from PIL import Image

    for name, box in (("a.png", (0, 0, 16, 4)), ("b.png", (0, 0, 16, 8))):
        mask = Image.new("L", (16, 16), 0)
        mask.paste(255, box)
        mask.save(tmp_path / name)
    masks = {1: tmp_path / "a.png", 3: tmp_path / "b.png"}
    result = canvas("inpaint", video=clip, masks=masks, frames=6)
    rows = (1 - result.mask[0, 0]).mean(-1)
    assert rows[1].tolist() == [1.0] * 4 + [0.0] * 12
    assert rows[3].tolist() == [1.0] * 8 + [0.0] * 8
    assert all(rows[t, 0] > 0 and rows[t, -1] == 0 for t in range(6))
    outside = canvas("inpaint", video=clip, masks=masks, frames=6, outside=True)
    assert torch.equal(outside.mask, 1 - result.mask)
    with pytest.raises(BadRequest, match="mask at 7 is beyond the end of the clip; expected 0 to 5"):
        canvas("inpaint", video=clip, masks={7: tmp_path / "a.png"}, frames=6)


def test_inpaint_generates_frames_beyond_the_clip(clip: str) -> None:
    result = canvas("inpaint", video=clip, region=(0, 0, 0.5, 1), frames=8)
    assert result.mask[:, :, 6:].max() == 0


def test_inpaint_without_a_region_is_refused(clip: str) -> None:
    with pytest.raises(BadRequest, match="region"):
        canvas("inpaint", video=clip)


@pytest.mark.parametrize(
    ("task", "options", "what"),
    [
        ("animate", {"last_image": "x.png", "loop": True}, "--last-image or --loop"),
        ("animate", {"outside": True}, "outside"),
        ("inpaint", {"region": (0, 0, 1, 1), "mask": "x.png"}, "--region or --mask"),
        ("inpaint", {"masks": {0: "x.png"}, "mask": "x.png"}, "--mask or --mask-at"),
        ("extend", {"backward": True, "loop": True}, "--backward or --loop"),
        ("interpolate", {"image": "x.png"}, "not both"),
    ],
)
def test_conflicting_options_are_refused(clip: str, task: str, options: dict, what: str) -> None:
    source = {"image": clip} if task == "animate" else {"video": clip}
    with pytest.raises(BadRequest, match=what):
        canvas(task, **source, **options)


def test_a_mask_clip_runs_at_the_rate_of_its_video(tmp_path: Path) -> None:
    """The mask turns white half way, and so must the generated area at the clip's rate."""
    video = Clip(ramp(32), 32.0).save(tmp_path / "video.mp4")[0]
    half = torch.cat([torch.full((1, 3, 16, 16, 16), -1.0), torch.ones(1, 3, 16, 16, 16)], dim=2)
    mask = Clip(half, 32.0).save(tmp_path / "mask.mp4")[0]
    result = canvas("inpaint", video=str(video), mask=str(mask), fps=8.0)
    assert result.video.shape[2] == 8
    assert result.mask[0, 0].amax((1, 2)).tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_edit_starts_from_the_whole_clip_and_holds_its_last_frame(clip: str) -> None:
    result = canvas("edit", video=clip, strength=0.4, frames=8)
    assert result.kind == "nothing"
    (edited,) = result.held
    assert edited.release == Release("strength", 0.4)
    assert bool(edited.mask.all())
    assert torch.equal(edited.video[:, :, 5], edited.video[:, :, 7])


@pytest.mark.parametrize(
    ("task", "what"),
    [("animate", "image"), ("extend", "video"), ("inpaint", "video"), ("edit", "video"), ("interpolate", "video")],
)
def test_a_missing_input_is_named(task: str, what: str) -> None:
    with pytest.raises(BadRequest, match=what):
        canvas(task)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(BadRequest, match="nowhere"):
        canvas("animate", image="nowhere.png")


# ----------------------------------------------------------------------------------- rates and sound


def fast(path: Path, fps: float, frames: int = 6) -> str:
    return str(Clip(ramp(frames), fps).save(path)[0])


@pytest.mark.parametrize(("fps", "every"), [(60.0, 8), (240.0, 2), (30.0, 9)])
def test_a_rate_that_every_raises_too_far_is_refused(tmp_path: Path, fps: float, every: int) -> None:
    with pytest.raises(BadRequest) as refused:
        canvas("interpolate", video=fast(tmp_path / "a.mp4", fps), every=every)
    said = str(refused.value)
    assert f"--every {every} would turn the {fps:g} fps of" in said
    assert f"into {fps * every:g}; expected at most 240" in said
    assert "smaller --every, or give --fps" in said
    assert "fps is" not in said
    assert canvas("interpolate", video=fast(tmp_path / "a.mp4", fps), every=every, fps=fps).heard is not None


def test_too_many_frames_are_refused_with_the_option_to_change(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadRequest, match="--every 2000 would turn the 6 frames of .* into 10,001"):
        canvas("interpolate", video=clip, every=2000)
    monkeypatch.setattr(read, "probe", lambda *_, **__: read.Probe(5000, 24.0, 16, 16))
    with pytest.raises(BadRequest, match=r"has 5,000 frames; expected at most 4,096: .* --start and --end"):
        canvas("edit", video=clip)
    with pytest.raises(BadRequest, match=r"has 5,000 frames to keep.* --keep"):
        canvas("extend", video=clip)


@pytest.mark.parametrize(
    ("task", "options", "heard"),
    [
        ("edit", {}, (0, None, 0)),
        ("edit", {"fps": 4.0, "frames": 2}, (0, None, 0)),
        ("inpaint", {"region": (0, 0, 0.5, 0.5)}, (0, None, 0)),
        ("interpolate", {"every": 3}, (0, None, 0)),
        ("extend", {"frames": 10}, (0, 6 / 8, 0)),
        ("extend", {"frames": 10, "keep": 2}, (4 / 8, 2 / 8, 0)),
        ("extend", {"frames": 10, "keep": 2, "backward": True}, (0, 2 / 8, 1)),
        ("extend", {"frames": 10, "loop": True}, (0, 6 / 8, 0)),
    ],
)
def test_the_sound_of_a_clip_matches_its_frames(
    clip: str, task: str, options: dict[str, object], heard: tuple[float, float | None, float]
) -> None:
    part = canvas(task, video=clip, **options).heard
    assert part is not None
    assert (part.file, part.begin, part.seconds, part.at, part.unfit) == (clip, *heard, "")


@pytest.mark.parametrize(("fps", "how"), [(8.0, "3 times slower"), (48.0, "2 times faster")])
def test_a_clip_that_plays_at_another_speed_has_no_sound(clip: str, fps: float, how: str) -> None:
    part = canvas("interpolate", video=clip, every=3, fps=fps).heard
    assert part is not None
    assert part.unfit == f"the clip plays {how} than it was recorded"


def test_29_97_counts_as_30000_1001(tmp_path: Path) -> None:
    part = canvas("interpolate", video=fast(tmp_path / "a.mp4", 15000 / 1001), every=2, fps=29.97).heard
    assert part is not None
    assert not part.unfit
