from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from kinema.atomic import AlreadyExists
from kinema.media import formats
from kinema.media.colour import to_float, to_uint8
from kinema.media.metadata import read_recipe
from kinema.media.read import read_video
from kinema.media.write import check_output, contact_sheet, save_clip
from kinema.schema import BadRequest, Clip, Shape

Psnr = Callable[[torch.Tensor, torch.Tensor], float]
Moving = Callable[..., np.ndarray]
NAMES = ["clip.mp4", "clip.gif", "clip.webp", "clip.png", "frames"]


@pytest.mark.parametrize(("name", "least"), [("a.mp4", 38), ("a.gif", 33), ("a.webp", 38), ("a.png", 90), ("a", 90)])
def test_a_clip_survives_writing_and_reading(tmp_path: Path, clip: Clip, psnr: Psnr, name: str, least: float) -> None:
    (written,) = save_clip(clip, tmp_path / name)
    again = read_video(written)
    assert again.video.shape == clip.video.shape
    assert again.fps == pytest.approx(clip.fps, rel=1e-6)
    assert psnr(again.video, clip.video) > least


@pytest.mark.parametrize("fps", [1.0, 7.5, 8.0, 12.0, 24.0, 30000 / 1001, 60.0])
@pytest.mark.parametrize("name", ["a.mp4", "a.webp", "a"])
def test_the_frame_rate_survives(tmp_path: Path, clip: Clip, name: str, fps: float) -> None:
    (written,) = save_clip(replace(clip, fps=fps), tmp_path / name)
    # A webp counts whole milliseconds, so 30 and 29.97 fps are equal over six frames.
    assert read_video(written).fps == pytest.approx(fps, rel=2e-3 if name == "a.webp" else 1e-5)


def test_an_mp4_is_h264_yuv420p_bt709_with_its_index_first(tmp_path: Path, clip: Clip) -> None:
    (written,) = save_clip(clip, tmp_path / "a.mp4")
    raw = written.read_bytes()
    assert raw.index(b"moov") < raw.index(b"mdat")
    with av.open(str(written)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (int(codec.colorspace), int(codec.color_primaries), int(codec.color_trc)) == (1, 1, 1)
        assert int(codec.color_range) == 1


def test_saturated_colours_keep_their_values_through_an_mp4(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 255, 255)]
    frames = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in colours])
    (written,) = save_clip(Clip(to_float(frames)), tmp_path / "a.mp4")
    again = to_uint8(read_video(written).video)[0]
    assert np.abs(again.astype(int) - frames).max() <= 4


def test_the_same_clip_is_written_as_the_same_bytes(tmp_path: Path, clip: Clip) -> None:
    for name in ("mp4", "gif", "webp"):
        one, two = (save_clip(clip, tmp_path / f"{n}.{name}")[0].read_bytes() for n in "ab")
        assert one == two


def test_an_mp4_of_moving_textures_is_the_same_each_time(tmp_path: Path) -> None:
    torch.manual_seed(0)
    coarse = torch.rand(1, 3, 10, 32, 17)
    moving = Clip(torch.nn.functional.interpolate(coarse, size=(10, 250, 130), mode="trilinear") * 2 - 1)
    files = {save_clip(moving, tmp_path / f"{number}.mp4")[0].read_bytes() for number in range(12)}
    assert len(files) == 1


def test_odd_sides_are_padded_and_noted_in_the_recipe(tmp_path: Path, moving: Moving, psnr: Psnr) -> None:
    odd = Clip(to_float(moving(4, 33, 47)))
    (written,) = save_clip(odd, tmp_path / "a.mp4")
    video = read_video(written).video
    assert video.shape[-2:] == (34, 48)
    assert psnr(video[..., :33, :47], odd.video) > 36
    assert psnr(video[..., 33, :47], odd.video[..., 32, :]) > 34
    assert read_recipe(written)["notes"] == [
        "47×33 was padded to 48×34 by repeating the edge: an mp4 requires even sides"
    ]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_odd_sides_are_kept_if_the_format_allows_them(tmp_path: Path, moving: Moving, name: str) -> None:
    (written,) = save_clip(Clip(to_float(moving(3, 33, 47))), tmp_path / name)
    assert read_video(written).video.shape[-2:] == (33, 47)
    assert read_recipe(written) == {}


def test_a_batch_is_one_file_for_each_item(tmp_path: Path, clip: Clip, psnr: Psnr) -> None:
    both = replace(clip, video=torch.cat([clip.video, -clip.video]))
    written = save_clip(both, tmp_path / "a.mp4")
    assert [p.name for p in written] == ["a-0.mp4", "a-1.mp4"]
    for index, path in enumerate(written):
        assert psnr(read_video(path).video, both.video[index : index + 1]) > 35
        assert read_recipe(path) == {**clip.recipe, "clip": index}


def test_a_gif_and_a_webp_loop(tmp_path: Path, clip: Clip) -> None:
    for name in ("a.gif", "a.webp"):
        with Image.open(save_clip(clip, tmp_path / name)[0]) as image:
            assert image.info["loop"] == 0
            assert image.n_frames == clip.video.shape[2]


def test_a_still_part_of_a_gif_does_not_flicker(tmp_path: Path, moving: Moving) -> None:
    still = Clip(to_float(np.repeat(moving(1), 5, axis=0)))
    video = read_video(save_clip(still, tmp_path / "a.gif")[0]).video
    assert video.shape[2] == 5
    assert (video - video[:, :, :1]).abs().max() == 0


def test_frozen_frames_merged_by_webp_keep_their_timing(tmp_path: Path, moving: Moving, psnr: Psnr) -> None:
    frames = moving(6)
    frames[3] = frames[2]
    (written,) = save_clip(Clip(to_float(frames)), tmp_path / "a.webp")
    again = read_video(written)
    assert again.fps == pytest.approx(8)
    assert psnr(again.video, to_float(frames)) > 38


def test_one_png_frame_is_an_image_and_several_are_a_folder(tmp_path: Path, clip: Clip) -> None:
    assert save_clip(clip, tmp_path / "a.png") == [tmp_path / "a"]
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == [*(f"frame-{i:04d}.png" for i in range(6)), "recipe.json"]
    (single,) = save_clip(replace(clip, video=clip.video[:, :, :1]), tmp_path / "b.png")
    assert single.is_file()
    assert read_recipe(single) == clip.recipe


def test_a_folder_is_replaced_only_if_it_has_nothing_but_frames(tmp_path: Path, clip: Clip) -> None:
    save_clip(clip, tmp_path / "a")
    save_clip(replace(clip, video=clip.video[:, :, :2]), tmp_path / "a")
    assert len(list((tmp_path / "a").glob("*.png"))) == 2
    (tmp_path / "a" / "thesis.tex").write_text("do not lose")
    with pytest.raises(BadRequest, match=r"thesis\.tex"):
        save_clip(clip, tmp_path / "a")
    assert (tmp_path / "a" / "thesis.tex").read_text() == "do not lose"


def test_a_contact_sheet_shows_every_frame_in_order(tmp_path: Path, clip: Clip) -> None:
    written = save_clip(clip, tmp_path / "a.mp4", contact_sheet=True)
    assert [p.name for p in written] == ["a.mp4", "a.sheet.png"]
    sheet = np.asarray(contact_sheet(clip, columns=4))
    frames = to_uint8(clip.video)[0]
    assert sheet.shape[:2] == (2 * 32 + 1, 4 * 48 + 3)
    assert np.array_equal(sheet[33:65, 49:97], frames[5])
    assert read_recipe(tmp_path / "a.sheet.png") == clip.recipe


def test_an_unknown_suffix_is_refused_with_the_supported_ones(tmp_path: Path, clip: Clip) -> None:
    with pytest.raises(BadRequest, match=r"\.mp4, \.gif, \.webp or \.png"):
        save_clip(clip, tmp_path / "a.mkv")


def test_a_missing_folder_and_a_folder_that_is_a_file_are_refused(tmp_path: Path, clip: Clip) -> None:
    with pytest.raises(BadRequest, match="does not exist"):
        save_clip(clip, tmp_path / "none" / "a.mp4")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadRequest, match="is a file"):
        check_output(tmp_path / "file" / "a.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(BadRequest, match="it is a folder"):
        save_clip(clip, tmp_path / "folder.mp4")


def test_a_read_only_folder_is_refused(tmp_path: Path, clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, which ignores mode bits, so the system call is made to fail.
    def no(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", no)
    with pytest.raises(BadRequest, match=r"cannot write .*a\.mp4: Permission denied"):
        save_clip(clip, tmp_path / "a.mp4")


def test_crf_is_refused_for_other_formats_and_out_of_range(tmp_path: Path, clip: Clip) -> None:
    for name, crf in (("a.gif", 12), ("a.mp4", 52)):
        with pytest.raises(BadRequest, match="crf is"):
            save_clip(clip, tmp_path / name, crf=crf)


def test_a_lower_crf_gives_better_quality(tmp_path: Path, clip: Clip, psnr: Psnr) -> None:
    good, bad = (read_video(save_clip(clip, tmp_path / "a.mp4", crf=crf)[0]).video for crf in (4, 40))
    assert psnr(good, clip.video) > psnr(bad, clip.video) + 3


def test_non_finite_pixels_leave_the_old_file(tmp_path: Path, clip: Clip) -> None:
    save_clip(clip, tmp_path / "a.mp4")
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(BadRequest, match="NaN or infinite"):
        save_clip(replace(clip, video=clip.video * float("nan")), tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, clip: Clip, monkeypatch: pytest.MonkeyPatch, name: str, stop: type[BaseException]
) -> None:
    (old,) = save_clip(clip, tmp_path / name)
    before = read_video(old).video

    def stopped(*args: object, **kwargs: object) -> None:
        raise stop

    for inner in ("_frame", "_images"):
        monkeypatch.setattr(formats, inner, stopped)
    monkeypatch.setattr(Image.Image, "save", stopped)
    with pytest.raises(stop):
        save_clip(replace(clip, video=-clip.video), tmp_path / name)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == [old.name]
    assert torch.equal(read_video(old).video, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_gives_a_one_line_error_and_leaves_no_file(tmp_path: Path, name: str) -> None:
    """A file size limit stands in for a small disk: the kernel fails the write (both errors are in `atomic.FULL`)."""
    resource = pytest.importorskip("resource")
    noise = Clip(torch.randn(1, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0)))
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, usual[1]))
    try:
        with pytest.raises(BadRequest, match=r"is full: .* was not written"):
            save_clip(noise, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert list(tmp_path.iterdir()) == []


def test_only_generated_media_is_marked_as_generated(tmp_path: Path, clip: Clip) -> None:
    for generated in (True, False):
        (written,) = save_clip(clip, tmp_path / f"{generated}.mp4", generated=generated)
        with av.open(str(written)) as container:
            assert (container.metadata.get("digitalSourceType") == "trainedAlgorithmicMedia") is generated
            assert ("AI-generated" in container.metadata.get("comment", "")) is generated
            assert container.metadata["title"] == "a réd ball rolls"
        for name in ("a.gif", "a.webp", "a.png"):
            for path in save_clip(clip, tmp_path / name, generated=generated):
                file = path / "frame-0003.png" if path.is_dir() else path
                assert (b"trainedAlgorithmicMedia" in file.read_bytes()) is generated


def test_an_empty_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="empty"):
        save_clip(Clip(torch.zeros(1, 3, 0, 8, 8)), tmp_path / "a.mp4")


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_an_existing_folder_is_refused_as_output(name: str) -> None:
    with pytest.raises(BadRequest, match="an existing folder"):
        check_output(name)


def test_a_folder_with_other_files_is_refused_before_sampling(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "notes.txt").write_text("mine")
    with pytest.raises(BadRequest, match=r"holds notes.txt, which does not belong to a clip of png frames"):
        check_output(tmp_path / "frames")


# ------------------------------------------------------------------------------ names that are taken


@pytest.mark.parametrize("name", NAMES)
def test_an_exclusive_clip_replaces_nothing(tmp_path: Path, clip: Clip, name: str) -> None:
    (written,) = save_clip(clip, tmp_path / name, exclusive=True)
    before = read_video(written).video
    with pytest.raises(AlreadyExists):
        save_clip(replace(clip, video=-clip.video), tmp_path / name, exclusive=True)
    assert torch.equal(read_video(written).video, before)
    assert list(tmp_path.iterdir()) == [written]


@pytest.mark.parametrize("taken", ["a-1.mp4", "a.sheet.png"])
def test_a_batch_is_written_completely_or_not_at_all(tmp_path: Path, clip: Clip, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    both = replace(clip, video=torch.cat([clip.video, -clip.video]))
    with pytest.raises(AlreadyExists):
        save_clip(both, tmp_path / "a.mp4", contact_sheet=True, exclusive=True)
    assert [p.name for p in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "mine"


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_disk_full_halfway_leaves_nothing_of_an_exclusive_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: Clip, exclusive: bool
) -> None:
    def write(_frames: object, _rate: object, path: Path, *_: object) -> None:
        if len(list(tmp_path.glob("a-*"))) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_text("a clip")

    monkeypatch.setattr("kinema.media.formats.write_gif", write)
    with pytest.raises(BadRequest, match="is full"):
        save_clip(replace(clip, video=clip.video.repeat(4, 1, 1, 1, 1)), tmp_path / "a.gif", exclusive=exclusive)
    assert len(list(tmp_path.iterdir())) == (0 if exclusive else 2)


AWKWARD = ["2026-11-28T16:20:05.mp4", "100%d.mp4", "-x.mp4", "a\nb.mp4", "file:x.gif", "a#b?c&d.webp", "é🎬.mp4"]


@pytest.mark.parametrize("name", AWKWARD)
def test_any_legal_file_name_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: Clip, name: str) -> None:
    (tmp_path / "a:b %d").mkdir()
    monkeypatch.chdir(tmp_path)
    for place in (Path(name), Path("a:b %d") / name):
        (written,) = save_clip(clip, place)
        assert written == place
        assert read_video(place.rename(tmp_path / f"plain{place.suffix}")).video.shape == clip.video.shape


@pytest.mark.parametrize("name", ["a-1.mp4", "a.sheet.png"])
def test_every_name_of_a_batch_is_checked_before_sampling(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(BadRequest, match="it is a folder"):
        check_output(tmp_path / "a.mp4", Shape(2, 3, 4, 16, 16), contact_sheet=True)


def test_the_folder_of_png_frames_is_checked_before_sampling(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(BadRequest, match=r"holds notes.txt, which does not belong to a clip of png frames"):
        check_output(tmp_path / "a.png", Shape(1, 3, 4, 16, 16))
    check_output(tmp_path / "a.png", Shape(1, 3, 1, 16, 16))
