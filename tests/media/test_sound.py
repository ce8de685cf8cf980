"""Audio of a clip: timing, duration, codec, and notes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import pytest
import torch

from kinema.canvas import SoundSource
from kinema.events import Note
from kinema.media import sound
from kinema.media.read import read_video
from kinema.media.sound import extract_audio
from kinema.schema import Clip

WithSound = Callable[..., Path]
Beep = Callable[[Path | bytes], float | None]
TOLERANCE = 0.003
"""Seconds by which a codec's own delay may move a beep."""


def heard(part: SoundSource, seconds: float) -> tuple[bytes | None, list[str]]:
    notes: list[str] = []

    def listen(event: object) -> None:
        assert isinstance(event, Note)
        notes.append(event.message)

    return extract_audio(part, seconds, listen), notes


def written(track: bytes | None, seconds: float, path: Path) -> Path:
    return Clip(torch.zeros(1, 3, round(8 * seconds), 32, 32), 8.0, {}, track).save(path)[0]


def about(path: Path) -> tuple[str, float]:
    """Codec of the sound, and its end in seconds."""
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        return track.codec_context.codec.canonical_name, float(
            ((track.start_time or 0) + track.duration) * track.time_base
        )


CODECS = [
    ("a.mp4", "aac", "aac"),
    ("a.mp4", "libmp3lame", "mp3"),
    ("a.mov", "alac", "alac"),
    ("a.mkv", "libopus", "opus"),
    ("a.mkv", "flac", "flac"),
    ("a.mov", "pcm_s16le", "aac"),
    ("a.avi", "pcm_s16le", "aac"),
    ("a.avi", "aac", "aac"),
    ("a.avi", "libmp3lame", "mp3"),
]


@pytest.mark.parametrize(("name", "codec", "after"), CODECS)
def test_sound_keeps_its_timing(
    tmp_path: Path, with_sound: WithSound, beep: Beep, name: str, codec: str, after: str
) -> None:
    source = with_sound(tmp_path / name, codec)
    before = beep(source)
    audio, notes = heard(SoundSource(str(source)), 2.0)
    path = written(audio, 2.0, tmp_path / "out.mp4")
    assert beep(path) == pytest.approx(before, abs=TOLERANCE)
    assert about(path)[0] == after
    assert read_video(path).video.shape[2] == 16
    assert not notes


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
@pytest.mark.parametrize(
    ("part", "seconds", "at"),
    [((0.0,), 1.0, 0.5), ((0.25, 1.75), 3.0, 0.25), ((0.0, 1.0, 2.5), 3.5, 3.0), ((0.0,), 9.0, 0.5)],
    ids=["the beginning", "the end, with silence after it", "after silence", "a clip that is longer"],
)
def test_a_part_of_the_sound_keeps_its_position(
    tmp_path: Path, with_sound: WithSound, beep: Beep, name: str, part: tuple[float, ...], seconds: float, at: float
) -> None:
    source = with_sound(tmp_path / name, "pcm_s16le" if name == "a.avi" else "aac")
    audio, _ = heard(SoundSource(str(source), *part), seconds)
    path = written(audio, seconds, tmp_path / "out.mp4")
    assert beep(path) == pytest.approx(at, abs=TOLERANCE)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mp4", "libmp3lame"), ("a.mkv", "flac")])
def test_sound_ends_with_the_clip(tmp_path: Path, with_sound: WithSound, name: str, codec: str) -> None:
    source = with_sound(tmp_path / name, codec)
    audio, _ = heard(SoundSource(str(source)), 1.0)
    assert about(written(audio, 1.0, tmp_path / "out.mp4"))[1] == pytest.approx(1.0, abs=1e-3)


def test_a_part_without_sound_has_none(tmp_path: Path, with_sound: WithSound) -> None:
    source = with_sound(tmp_path / "a.mp4")
    assert heard(SoundSource(str(source), 5.0), 2.0) == (None, [])


def test_the_default_of_several_tracks_is_kept_with_a_note(tmp_path: Path, with_sound: WithSound) -> None:
    source = with_sound(tmp_path / "a.mp4", tracks=3)
    audio, notes = heard(SoundSource(str(source)), 2.0)
    with av.open(str(written(audio, 2.0, tmp_path / "out.mp4"))) as container:
        assert len(container.streams.audio) == 1
    assert notes == ["a.mp4 has 3 sound tracks; only the default one is kept"]


def test_sound_that_no_longer_fits_is_dropped_with_a_note(tmp_path: Path, with_sound: WithSound, clip: Clip) -> None:
    source = with_sound(tmp_path / "a.mp4")
    notes = "the sound of a.mp4 is dropped: it plays slower"
    assert heard(SoundSource(str(source), unfit="it plays slower"), 2.0) == (None, [notes])
    for silent in (clip.save(tmp_path / "b.mp4")[0], clip.save(tmp_path / "b.gif")[0], clip.save(tmp_path / "b")[0]):
        assert heard(SoundSource(str(silent), unfit="it plays slower"), 2.0) == (None, [])


def test_damaged_sound_is_dropped_with_a_note(tmp_path: Path, with_sound: WithSound) -> None:
    source = with_sound(tmp_path / "a.mp4")
    with av.open(str(source)) as container:
        packets = [(p.pos, p.size) for p in container.demux(audio=0) if p.size]
    data = bytearray(source.read_bytes())
    for at, size in packets[5:20]:
        data[at : at + size] = b"\xff" * size
    source.write_bytes(data)
    audio, notes = heard(SoundSource(str(source)), 2.0)
    assert audio is None
    assert notes == ["the sound of a.mp4 cannot be decoded and is dropped"]


def test_sound_with_incompatible_packets_is_re_encoded(
    tmp_path: Path, with_sound: WithSound, beep: Beep, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = with_sound(tmp_path / "a.mov", "alac")

    def refused(*_: object) -> None:
        raise av.error.InvalidDataError(1, "malformed")

    monkeypatch.setattr(sound, "_copied", refused)
    path = written(heard(SoundSource(str(source)), 2.0)[0], 2.0, tmp_path / "out.mp4")
    assert about(path)[0] == "aac"
    assert beep(path) == pytest.approx(0.5, abs=TOLERANCE)


def test_sound_outlives_its_file(tmp_path: Path, with_sound: WithSound, beep: Beep) -> None:
    source = with_sound(tmp_path / "a.mp4")
    audio, _ = heard(SoundSource(str(source)), 2.0)
    source.unlink()
    assert beep(written(audio, 2.0, source)) == pytest.approx(0.5, abs=TOLERANCE)


def test_every_clip_of_a_batch_has_the_sound(tmp_path: Path, with_sound: WithSound, beep: Beep) -> None:
    audio, _ = heard(SoundSource(str(with_sound(tmp_path / "a.mp4"))), 2.0)
    written = Clip(torch.zeros(2, 3, 16, 32, 32), 8.0, {}, audio).save(tmp_path / "b.mp4")
    assert [beep(path) for path in written] == [pytest.approx(0.5, abs=TOLERANCE)] * 2
