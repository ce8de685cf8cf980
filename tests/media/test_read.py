from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from kinema.media.colour import to_float, to_uint8
from kinema.media.images import is_image
from kinema.media.read import fit, read_image, read_video
from kinema.media.timing import TimedFrame, resampled
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip

Moving = Callable[..., np.ndarray]
Encode = Callable[..., Path]
Psnr = Callable[[torch.Tensor, torch.Tensor], float]


def numbered(count: int) -> np.ndarray:
    """Numbered frames: frame t is grey 10·t + 20."""
    return np.stack([np.full((32, 32, 3), 10 * t + 20, np.uint8) for t in range(count)])


def numbers(clip: Clip) -> list[int]:
    grey = to_uint8(clip.video)[0].mean((1, 2, 3))
    return [round((value - 20) / 10) for value in grey.tolist()]


# ------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "libx264", "yuv444p"),
        ("a.mkv", "ffv1", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
    ],
)
def test_common_files_are_read(
    tmp_path: Path, encode: Encode, moving: Moving, psnr: Psnr, name: str, codec: str, pix_fmt: str
) -> None:
    path = encode(tmp_path / name, moving(8), codec=codec, pix_fmt=pix_fmt)
    clip = read_video(path)
    assert clip.video.shape == (1, 3, 8, 32, 48)
    assert clip.fps == pytest.approx(8, rel=1e-3)
    assert psnr(clip.video, to_float(moving(8))) > (18 if name == "a.gif" else 28)


def test_an_avi_with_reordered_frames_is_even_and_in_order(tmp_path: Path, encode: Encode) -> None:
    clip = read_video(encode(tmp_path / "a.avi", numbered(12)))
    assert numbers(clip) == list(range(12))
    assert clip.fps == 8


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_a_rotated_video_is_read_upright(
    tmp_path: Path, encode: Encode, moving: Moving, psnr: Psnr, degrees: int
) -> None:
    upright = moving(3, 32, 48)
    # Phones store the frame rotated, with a matrix that rotates it back, counter-clockwise by `degrees`.
    stored = np.rot90(upright, -degrees // 90, axes=(1, 2))
    path = encode(tmp_path / "a.mp4", np.ascontiguousarray(stored), prepare=lambda s: s.set_display_rotation(degrees))
    clip = read_video(path)
    assert clip.video.shape[-2:] == (32, 48)
    assert psnr(clip.video, to_float(upright)) > 28


def test_a_mirrored_video_is_read_mirrored(tmp_path: Path, encode: Encode, moving: Moving, psnr: Psnr) -> None:
    def mirror(stream: object) -> None:
        stream.set_display_matrix([-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30])  # type: ignore[attr-defined]

    clip = read_video(encode(tmp_path / "a.mp4", moving(2), prepare=mirror))
    assert psnr(clip.video, to_float(moving(2)).flip(-1)) > 28


def test_non_square_pixels_are_made_square(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    def wide(stream: object) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)  # type: ignore[attr-defined]

    assert read_video(encode(tmp_path / "a.mp4", moving(2), prepare=wide)).video.shape[-2:] == (32, 64)


def test_alpha_in_a_video_is_over_black(tmp_path: Path, encode: Encode) -> None:
    frames = np.full((2, 32, 32, 4), 255, np.uint8)
    frames[:, :, 16:, 3] = 0
    clip = read_video(encode(tmp_path / "a.mov", frames, codec="png", pix_fmt="rgba"))
    assert to_uint8(clip.video)[0, 0, 0, [0, 31]].tolist() == [[255] * 3, [0] * 3]


def test_the_best_of_several_streams_is_read(tmp_path: Path, moving: Moving) -> None:
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = []
        for height, width in ((16, 16), (32, 48)):
            stream = container.add_stream("ffv1", rate=8)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            streams.append(stream)
        for t in range(3):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(moving(3, stream.height, stream.width)[t], format="rgb24")
                container.mux(stream.encode(frame.reformat(format="yuv420p")))
        for stream in streams:
            container.mux(stream.encode())
    assert read_video(tmp_path / "a.mkv").video.shape == (1, 3, 3, 32, 48)


# ------------------------------------------------------------------------------------------- timing


def test_start_frames_and_fps_select_the_nearest_frames(tmp_path: Path, encode: Encode) -> None:
    path = encode(tmp_path / "a.mp4", numbered(20))
    assert numbers(read_video(path)) == list(range(20))
    assert numbers(read_video(path, start=0.5, frames=3)) == [4, 5, 6]
    assert numbers(read_video(path, fps=4)) == list(range(0, 20, 2))
    doubled = read_video(path, fps=16)
    assert doubled.fps == 16
    assert doubled.video.shape[2] == 40
    assert numbers(read_video(path, start=1.0, fps=2, frames=2)) == [8, 12]


def test_a_start_between_key_frames_is_exact(tmp_path: Path, encode: Encode) -> None:
    path = encode(tmp_path / "a.mp4", numbered(20), prepare=lambda s: s.options.update({"g": "6"}) or None)
    for first in (0, 1, 5, 6, 7, 13, 19):
        assert numbers(read_video(path, start=first / 8, frames=1)) == [first]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.floats(2, 60), st.floats(1, 60))
def test_resampling_takes_the_nearest_frame_for_as_long_as_the_clip_lasts(count: int, rate: float, fps: float) -> None:
    frames = [TimedFrame(t / rate, 1 / rate, lambda t=t: np.array(t)) for t in range(count)]
    taken = [int(f.pixels()) for f in resampled(iter(frames), fps, None)]
    assert abs(len(taken) - count / rate * fps) <= 1 or len(taken) == 1
    for k, index in enumerate(taken):
        best = min(abs(k / fps - t / rate) for t in range(count))
        assert abs(k / fps - index / rate) == pytest.approx(best, abs=1e-9)


def test_an_uneven_rate_is_made_even_and_keeps_its_timing(tmp_path: Path, encode: Encode) -> None:
    times = [0.0, 0.125, 0.25, 0.75, 0.875, 1.0]  # two frames are missing between the third and the fourth
    clip = read_video(encode(tmp_path / "a.mkv", numbered(6), codec="ffv1", times=times))
    assert clip.fps == pytest.approx(8)
    assert numbers(clip) in ([0, 1, 2, 2, 3, 3, 3, 4, 5], [0, 1, 2, 2, 2, 3, 3, 4, 5])


def test_small_jitter_of_time_stamps_drops_no_frame(tmp_path: Path, encode: Encode) -> None:
    times = [t / 8 + (0.02 if t % 2 else 0) for t in range(10)]
    assert numbers(read_video(encode(tmp_path / "a.mkv", numbered(10), codec="ffv1", times=times))) == list(range(10))


def test_a_start_after_the_end_is_refused(tmp_path: Path, encode: Encode) -> None:
    with pytest.raises(BadRequest, match=r"start is 9 s, but a\.mp4 has 8 frames \(1 s\)"):
        read_video(encode(tmp_path / "a.mp4", numbered(8)), start=9)


# ------------------------------------------------------------------------------------------- limits


def test_frames_pixels_and_seconds_are_counted(tmp_path: Path, encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.mp4", numbered(20))
    with pytest.raises(BadRequest, match="more than 19 frames"):
        read_video(path, max_frames=19)
    with pytest.raises(BadRequest, match="more than 10,000 pixels over all frames"):
        read_video(path, max_pixels=10_000)
    monkeypatch.setattr("kinema.media.read.MAX_SECONDS", 1.0)
    with pytest.raises(BadRequest, match="longer than 1 seconds"):
        read_video(path)
    assert read_video(path, max_frames=4, max_pixels=5000, frames=4).video.shape[2] == 4


def test_skipped_frames_are_limited_too(tmp_path: Path, encode: Encode) -> None:
    path = encode(tmp_path / "a.mp4", np.repeat(numbered(4), 10, axis=0))
    with pytest.raises(BadRequest, match="more than 32 frames"):
        read_video(path, fps=0.1, max_frames=2)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv"])
def test_a_frame_beyond_the_limit_is_refused_by_its_header(tmp_path: Path, encode: Encode, name: str) -> None:
    path = encode(tmp_path / name, [np.zeros((1024, 2048, 3), np.uint8)])
    with pytest.raises(BadRequest, match=rf"{name} is 2048×1024; frames are limited to 1,000,000 pixels"):
        read_video(path, max_pixels=1_000_000)


def test_a_size_that_the_header_hides_is_refused_by_the_decoder(tmp_path: Path, encode: Encode) -> None:
    raw = encode(tmp_path / "a.mp4", [np.zeros((1024, 2048, 3), np.uint8)]).read_bytes()
    at = raw.index(b"avc1", raw.index(b"stsd")) + 4 + 24
    assert raw[at : at + 4] == (2048).to_bytes(2, "big") + (1024).to_bytes(2, "big")
    (tmp_path / "b.mp4").write_bytes(raw[:at] + (64).to_bytes(2, "big") * 2 + raw[at + 4 :])
    with pytest.raises(BadRequest, match=r"b\.mp4"):
        read_video(tmp_path / "b.mp4", max_pixels=1_000_000)


# -------------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.avi", "a.gif", "a.webp"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
def test_a_truncated_file_gives_a_one_line_error(
    tmp_path: Path, clip: Clip, encode: Encode, moving: Moving, name: str, share: float
) -> None:
    whole = tmp_path / name
    if name in ("a.mp4", "a.gif", "a.webp"):
        save_clip(clip, whole)
    else:
        encode(whole, moving(8), codec={"a.webm": "libvpx-vp9", "a.mkv": "ffv1"}.get(name, "mpeg4"))
    raw = whole.read_bytes()
    cut = tmp_path / f"cut{whole.suffix}"
    cut.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(BadRequest, match=r"cut\.\w+") as caught:
        read_video(cut)
    assert "\n" not in str(caught.value)


def test_an_mp4_whose_index_comes_last_is_refused_when_cut(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    raw = encode(tmp_path / "a.mp4", moving(8)).read_bytes()
    assert raw.index(b"mdat") < raw.index(b"moov")
    (tmp_path / "b.mp4").write_bytes(raw[: raw.index(b"moov") - 4])
    with pytest.raises(BadRequest, match="cut short"):
        read_video(tmp_path / "b.mp4")


def test_files_that_are_not_videos_give_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("#EXTM3U\nhttp://127.0.0.1/secret\n" * 10)
    (tmp_path / "zeros.mp4").write_bytes(bytes(4096))
    for name, expected in (
        ("empty", "is empty"),
        ("text", "not a supported video"),
        ("zeros", "not a supported video"),
    ):
        with pytest.raises(BadRequest, match=expected):
            read_video(tmp_path / f"{name}.mp4")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadRequest, match="contains no images"):
        read_video(tmp_path / "folder")


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(BadRequest, match="no video stream"):
        read_video(tmp_path / "a.mp4")


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "sunset.mp4").write_bytes(b"x")
    with pytest.raises(BadRequest, match=r"did you mean sunset\.mp4\?"):
        read_video(tmp_path / "sunste.mp4")
    with pytest.raises(BadRequest, match="does not exist"):
        read_image(tmp_path / "no" / "a.png")
    with pytest.raises(BadRequest, match="too long"):
        read_image(tmp_path / ("a" * 300))


def test_random_corruption_only_raises_bad_request(tmp_path: Path, clip: Clip) -> None:
    random = np.random.default_rng(0)
    for name in ("a.mp4", "a.gif", "a.webp"):
        raw = np.frombuffer(save_clip(clip, tmp_path / name)[0].read_bytes(), np.uint8)
        for _ in range(25):
            turned = raw.copy()
            turned[random.integers(0, len(raw), 12)] = random.integers(0, 256, 12)
            (tmp_path / f"b{name}").write_bytes(turned.tobytes())
            try:
                read_video(tmp_path / f"b{name}", max_pixels=2**22)
            except BadRequest:
                pass


# ------------------------------------------------------------------------------------------ folders


def test_a_folder_of_images_is_a_clip_in_natural_order(tmp_path: Path) -> None:
    for index in (0, 2, 10, 1):
        Image.fromarray(numbered(11)[index]).save(tmp_path / f"f{index}.png")
    clip = read_video(tmp_path)
    assert numbers(clip) == [0, 1, 2, 10]
    assert clip.fps == 8
    assert read_video(tmp_path, fps=24).fps == 24
    assert numbers(read_video(tmp_path, start=0.25)) == [2, 10]


def test_a_folder_with_a_recipe_has_its_own_rate(tmp_path: Path, clip: Clip) -> None:
    save_clip(replace(clip, fps=4.0), tmp_path / "a")
    assert read_video(tmp_path / "a").fps == 4
    assert read_video(tmp_path / "a", fps=8).video.shape[2] == 12


def test_a_folder_of_several_sizes_is_refused(tmp_path: Path, moving: Moving) -> None:
    Image.fromarray(moving(1)[0]).save(tmp_path / "0.png")
    Image.fromarray(moving(1, 16, 16)[0]).save(tmp_path / "1.png")
    with pytest.raises(BadRequest, match="changes size at frame 1 from 48×32 to 16×16"):
        read_video(tmp_path)


# ------------------------------------------------------------------------------------------- images


def test_every_image_mode_becomes_rgb(tmp_path: Path, moving: Moving) -> None:
    image = Image.fromarray(moving(1)[0])
    for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "F"):
        path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr", "F") else "a.png")
        image.convert("L" if mode == "I;16" else mode).convert(mode).save(path)
        video = read_image(path)
        assert video.shape == (1, 3, 1, 32, 48)
        assert video.min() >= -1
        assert video.max() <= 1


def test_exif_orientation_is_honoured(tmp_path: Path, moving: Moving) -> None:
    upright = moving(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° clockwise for display
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(to_uint8(read_image(tmp_path / "a.png"))[0, 0], upright)


def test_sixteen_bits_keep_more_than_eight(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    Image.fromarray(grey).save(tmp_path / "a.png")
    video = read_image(tmp_path / "a.png")
    assert torch.allclose(video[0, 1, 0].double(), torch.from_numpy(grey / 65535 * 2 - 1), atol=1e-6)
    assert video[0, 0].unique().numel() == 4096


def test_a_dark_sixteen_bit_image_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").max() < -0.99


def test_an_image_and_a_clip_of_it_agree_on_alpha(tmp_path: Path) -> None:
    rgba = np.full((8, 8, 4), 255, np.uint8)
    rgba[:, 4:, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "0.png")
    assert torch.equal(read_image(tmp_path / "0.png"), read_video(tmp_path).video)
    assert read_image(tmp_path / "0.png")[0, :, 0, 0, 7].tolist() == [-1.0] * 3


def test_an_srgb_profile_changes_nothing(tmp_path: Path, moving: Moving) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(moving(1)[0]).save(tmp_path / "a.png", icc_profile=profile)
    assert np.abs(to_uint8(read_image(tmp_path / "a.png"))[0, 0].astype(int) - moving(1)[0]).max() <= 1
    Image.fromarray(moving(1)[0]).save(tmp_path / "b.png", icc_profile=b"broken")
    assert np.array_equal(to_uint8(read_image(tmp_path / "b.png"))[0, 0], moving(1)[0])


def test_a_30000_by_30000_image_is_refused_before_decoding(tmp_path: Path) -> None:
    raw = io.BytesIO()
    Image.new("1", (8, 8)).save(raw, "PNG")
    data = bytearray(raw.getvalue())
    import struct
    import zlib

    for name, side in (("huge", 30_000), ("large", 12_000)):
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        (tmp_path / f"{name}.png").write_bytes(data)
        with pytest.raises(BadRequest, match=rf"{name}\.png is .*limited to 50,331,648 pixels"):
            read_image(tmp_path / f"{name}.png")


def test_a_file_that_is_not_an_image_gives_a_one_line_error(tmp_path: Path, moving: Moving) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(BadRequest, match="not a supported image"):
        read_image(tmp_path / "a.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(BadRequest, match="is empty"):
        read_image(tmp_path / "empty.png")
    for name in ("b.png", "b.jpg"):
        Image.fromarray(moving(1, 64, 64)[0]).save(tmp_path / name)
        raw = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(raw[: len(raw) * 2 // 3])
        with pytest.raises(BadRequest, match="damaged or cut short"):
            read_image(tmp_path / name)


def test_media_is_identified_by_content_not_by_name(tmp_path: Path, clip: Clip, moving: Moving) -> None:
    Image.fromarray(moving(1)[0]).save(tmp_path / "photo.mp4", format="JPEG")
    assert is_image(tmp_path / "photo.mp4")
    assert read_image(tmp_path / "photo.mp4").shape[2] == 1
    save_clip(clip, tmp_path / "a.mp4")[0].rename(tmp_path / "clip.jpg")
    for path in (tmp_path / "clip.jpg", *(save_clip(clip, tmp_path / name)[0] for name in ("a.gif", "a.webp", "a"))):
        assert path.is_dir() or not is_image(path)
        assert read_video(path).video.shape[2] == 6


# ---------------------------------------------------------------------------------------------- fit


def test_fit_returns_the_same_tensor_when_sizes_agree(clip: Clip) -> None:
    video, note = fit(clip.video, 32, 48)
    assert video is clip.video
    assert note is None


@pytest.mark.parametrize("how", ["crop", "pad"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 64), (20, 90), (7, 3)])
def test_fit_gives_the_requested_size_and_a_note(clip: Clip, how: str, height: int, width: int) -> None:
    video, note = fit(clip.video, height, width, how)  # type: ignore[arg-type]
    assert video.shape == (1, 3, 6, height, width)
    assert video.min() >= -1
    assert video.max() <= 1
    assert note is not None
    assert note.startswith("48×32 was")


def test_crop_keeps_the_middle_and_pad_keeps_everything() -> None:
    video = torch.full((1, 3, 1, 10, 20), -0.5)
    video[..., 5:15] = 0.5
    cropped, note = fit(video, 10, 10)
    assert cropped.unique().tolist() == [0.5]
    assert note == "20×10 was cropped to 10×10 and resized to 10×10"
    padded, note = fit(video, 20, 20, "pad")
    assert torch.equal(padded[..., 5:15, :], video)
    assert padded[..., :5, :].unique().tolist() == [-1.0]
    assert note == "20×10 was resized to 20×10 and padded with black to 20×20"


def test_a_fine_pattern_shrinks_to_its_mean_without_aliasing() -> None:
    checks = ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float().mul(2).sub(1)
    small, _ = fit(checks.expand(1, 3, 1, 64, 64), 16, 16)
    assert small.abs().max() < 0.05


def test_an_unknown_fit_is_refused(clip: Clip) -> None:
    with pytest.raises(BadRequest, match="crop or pad"):
        fit(clip.video, 8, 8, "stretch")  # type: ignore[arg-type]
