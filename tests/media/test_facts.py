"""`facts` reports what a read returns, and what the file stores if that differs."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from kinema.media import read, streams
from kinema.media.read import facts, probe, read_video
from kinema.media.streams import stream_frames
from kinema.schema import BadRequest

Encode = Callable[..., Path]
Moving = Callable[..., np.ndarray]


def agrees(path: Path) -> bool:
    reported, found, clip = facts(path), probe(path), read_video(path)
    frames, height, width = clip.video.shape[2:]
    return (
        (reported["frames"], reported["fps"], reported["height"], reported["width"])
        == (found.frames, found.fps, found.height, found.width)
        == (frames, clip.fps, height, width)
    )


def refused(path: Path) -> None:
    """Raise the error message that `facts` reports for a file that a read rejects."""
    reported = facts(path)
    assert reported["frames"] > 0
    if "refused" in reported:
        raise BadRequest(reported["refused"])


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("a.mp4", "libx264", "yuv420p", {}),
        ("a.mkv", "ffv1", "yuv420p", {}),
        ("a.webm", "libvpx-vp9", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("b.webm", "libvpx", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "5"}),
        ("a.avi", "mpeg4", "yuv420p", {"bf": "2"}),
        ("a.gif", "gif", "rgb8", {}),
    ],
)
@pytest.mark.parametrize("rate", [Fraction(8), Fraction(30000, 1001)])
def test_facts_from_packets_match_a_read(
    tmp_path: Path, encode: Encode, moving: Moving, name: str, codec: str, pix_fmt: str, options: dict, rate: Fraction
) -> None:
    def prepare(stream: object) -> None:
        stream.options = options  # type: ignore[attr-defined]

    path = encode(tmp_path / name, moving(40), codec=codec, pix_fmt=pix_fmt, rate=rate, prepare=prepare)
    assert agrees(path)
    assert "stored" not in facts(path) or name == "a.gif"


def test_an_edit_list_hides_frames(tmp_path: Path, encode: Encode) -> None:
    frames = np.stack([np.full((32, 48, 3), 10 * t, np.uint8) for t in range(12)])
    path = encode(tmp_path / "a.mp4", frames, prepare=lambda s: setattr(s, "options", {"bf": "0"}))
    raw = bytearray(path.read_bytes())
    at = raw.index(b"elst") + 4
    assert raw[at : at + 8] == bytes(7) + b"\1"
    scale = struct.unpack_from(">I", raw, raw.index(b"mdhd") + 16)[0]
    length, start = struct.unpack_from(">Ii", raw, at + 8)
    struct.pack_into(">Ii", raw, at + 8, length * 7 // 12, start + 5 * scale // 8)
    path.write_bytes(raw)
    assert agrees(path)
    assert facts(path)["frames"] == 7
    assert facts(path)["stored"] == {"frames": 12}


def test_a_rotated_clip_is_reported_upright(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    path = encode(tmp_path / "a.mov", moving(4), prepare=lambda s: s.set_display_rotation(90))
    assert agrees(path)
    reported = facts(path)
    assert (reported["width"], reported["height"]) == (32, 48)
    assert reported["stored"] == {"width": 48, "height": 32}


def test_an_uneven_rate_is_reported_as_read(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    path = encode(tmp_path / "a.mkv", moving(6), codec="ffv1", times=(0.0, 0.125, 0.25, 0.75, 0.875, 1.0))
    assert agrees(path)
    assert facts(path)["frames"] == 9
    assert facts(path)["stored"]["frames"] == 6


def test_sound_is_named(tmp_path: Path, moving: Moving) -> None:
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("ffv1", rate=8)
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        tracks = [container.add_stream("pcm_s16le", rate=rate, layout="stereo") for rate in (16000, 44100)]
        for pixels in moving(3):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            container.mux(video.encode(frame))
        for track in tracks:
            heard = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), format="s16", layout="stereo")
            heard.sample_rate = track.rate
            container.mux(track.encode(heard))
    reported = facts(tmp_path / "a.mkv")["sound"]
    assert reported == "pcm_s16le, 2 channels, 16,000 Hz; pcm_s16le, 2 channels, 44,100 Hz"


def test_only_one_frame_is_decoded(
    tmp_path: Path, encode: Encode, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(read, "stream_frames", lambda *a: (seen.append(f) or f for f in stream_frames(*a)))
    assert facts(encode(tmp_path / "a.mp4", moving(20)))["frames"] == 20
    assert len(seen) == 1


@pytest.mark.parametrize("gap", [4000.0, 2_000_000.0])
def test_frames_an_hour_apart_are_refused_and_not_filled(
    tmp_path: Path, encode: Encode, moving: Moving, gap: float
) -> None:
    path = encode(tmp_path / "a.mkv", moving(4), codec="ffv1", times=(0.0, 0.1, 0.2, gap))
    for reader in (refused, probe, read_video):
        with pytest.raises(BadRequest, match="has a frame that lasts|longer than"):
            reader(path)


def test_a_last_frame_that_lasts_for_years_is_refused_and_not_filled(tmp_path: Path, moving: Moving) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.height, stream.width = moving(1).shape[1:3]
        stream.pix_fmt = "yuv420p"
        encoded = [stream.encode(av.VideoFrame.from_ndarray(f, format="rgb24")) for f in moving(4)]
        packets = [packet for some in (*encoded, stream.encode(None)) for packet in some]
        packets[-1].duration = round(1e8 / packets[-1].time_base)
        container.mux(packets)
    for reader in (refused, probe, read_video, partial(read_video, last=2)):
        with pytest.raises(BadRequest, match="has a frame that lasts 100,000,000 seconds"):
            reader(path)


def test_counting_of_long_stills_stops_at_the_limit(
    tmp_path: Path, encode: Encode, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.mkv", moving(4), codec="ffv1", times=(0.0, 0.1, 0.2, 60.0))
    monkeypatch.setattr(read, "MAX_SHOWN", 100)
    with pytest.raises(BadRequest, match="more than 100 frames at"):
        refused(path)


def test_counting_of_packets_stops_at_the_limit(
    tmp_path: Path, encode: Encode, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.mkv", moving(8), codec="ffv1")
    monkeypatch.setattr(streams, "MAX_PACKETS", 7)
    with pytest.raises(BadRequest, match="more than 7 frames"):
        facts(path)


def test_an_out_of_range_rate_keeps_the_duration(tmp_path: Path) -> None:
    from PIL import Image

    images = [Image.fromarray(np.full((16, 16, 3), 60 * t, np.uint8)) for t in range(4)]
    slow, fast = tmp_path / "slow.gif", tmp_path / "fast.webp"
    images[0].save(slow, save_all=True, append_images=images[1:], duration=65_530)
    images[0].save(fast, save_all=True, append_images=images[1:], duration=2, lossless=True)
    assert agrees(slow)
    assert agrees(fast)
    for path, fps, seconds in ((slow, 0.1, 262.12), (fast, 240.0, 0.008)):
        reported = probe(path)
        assert reported.fps == fps
        assert reported.frames / fps == pytest.approx(seconds, abs=0.6 / fps)
        again = read_video(path, fps=fps).video
        assert again.shape[2] == reported.frames
    assert read_video(slow).video[0, 0, -1].mean() == pytest.approx(180 / 127.5 - 1, abs=0.05)


def test_too_many_frames_are_refused_before_one_is_decoded(
    tmp_path: Path, encode: Encode, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.mkv", moving(40), codec="ffv1")
    monkeypatch.setattr(streams, "frames_with_alpha", lambda *_: pytest.fail("a frame was decoded"))
    with pytest.raises(BadRequest, match="more than 32 frames; cut it"):
        read_video(path, max_frames=2)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.mp4", "a.mkv"])
@pytest.mark.parametrize("bound", ["pixels", "seconds"])
def test_a_rejected_file_is_described_with_the_error_of_the_read(
    tmp_path: Path, encode: Encode, moving: Moving, name: str, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    path = tmp_path / name
    if name in ("a.mp4", "a.mkv"):
        encode(path, moving(8))
    else:
        first, *rest = [Image.fromarray(f) for f in moving(8)]
        first.save(path, save_all=True, append_images=rest, duration=130)
    whole = facts(path)
    assert "refused" not in whole
    if bound == "pixels":
        monkeypatch.setattr("kinema.media.timing.DECODED", {"video": (2000, 0), "images": (2000, 0)})
    else:
        monkeypatch.setattr(read, "MAX_SECONDS", 0.5)
    with pytest.raises(BadRequest) as refusal:
        read_video(path)
    reported = facts(path)
    assert reported.pop("refused") == str(refusal.value)
    assert reported == whole


@pytest.mark.parametrize(("transfer", "reported"), [(16, "PQ"), (18, "HLG"), (1, None)])
def test_hdr_is_named(tmp_path: Path, encode: Encode, moving: Moving, transfer: int, reported: str | None) -> None:
    def prepare(stream: av.VideoStream) -> None:
        codec = stream.codec_context
        codec.color_trc, codec.color_primaries, codec.colorspace = transfer, 9, 9

    path = encode(tmp_path / "a.mp4", moving(2), pix_fmt="yuv420p10le", prepare=prepare)
    assert facts(path).get("hdr") == reported
    assert "alpha" not in facts(path)


def test_alpha_is_named(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    clear = np.dstack([moving(1)[0], np.full((32, 48), 90, np.uint8)])[None].repeat(2, 0)
    path = encode(tmp_path / "a.mkv", clear, codec="ffv1", pix_fmt="bgra")
    assert facts(path)["alpha"] == "shown over black"
    assert "hdr" not in facts(path)


def test_a_gif_of_opaque_pixels_has_no_alpha(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    assert "alpha" not in facts(encode(tmp_path / "a.gif", moving(2), codec="gif", pix_fmt="rgb8"))
