"""Sound that goes with a clip: where it is heard, how long, in which codec, and what is said of it."""

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
from kinema.media.sound import carried
from kinema.schema import Clip

WithSound = Callable[..., Path]
Beep = Callable[[Path | bytes], float | None]
AT_ONCE = 0.003
"""Seconds by which a codec's own delay may move a beep."""


def heard(part: SoundSource, seconds: float) -> tuple[bytes | None, list[str]]:
    said: list[str] = []

    def listen(event: object) -> None:
        assert isinstance(event, Note)
        said.append(event.message)

    return carried(part, seconds, listen), said


def written(track: bytes | None, seconds: float, path: Path) -> Path:
    return Clip(torch.zeros(1, 3, round(8 * seconds), 32, 32), 8.0, {}, track).save(path)[0]


def about(path: Path) -> tuple[str, float]:
    """Codec of the sound, and the second at which it ends."""
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
def test_sound_is_heard_when_it_was_recorded(
    tmp_path: Path, with_sound: WithSound, beep: Beep, name: str, codec: str, after: str
) -> None:
    source = with_sound(tmp_path / name, codec)
    before = beep(source)
    kept, said = heard(SoundSource(str(source)), 2.0)
    made = written(kept, 2.0, tmp_path / "made.mp4")
    assert beep(made) == pytest.approx(before, abs=AT_ONCE)
    assert about(made)[0] == after
    assert read_video(made).video.shape[2] == 16
    assert not said


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
@pytest.mark.parametrize(
    ("part", "seconds", "at"),
    [((0.0,), 1.0, 0.5), ((0.25, 1.75), 3.0, 0.25), ((0.0, 1.0, 2.5), 3.5, 3.0), ((0.0,), 9.0, 0.5)],
    ids=["the beginning", "the end, with silence after it", "after silence", "a clip that is longer"],
)
def test_a_part_of_the_sound_is_heard_at_its_place(
    tmp_path: Path, with_sound: WithSound, beep: Beep, name: str, part: tuple[float, ...], seconds: float, at: float
) -> None:
    source = with_sound(tmp_path / name, "pcm_s16le" if name == "a.avi" else "aac")
    kept, _ = heard(SoundSource(str(source), *part), seconds)
    made = written(kept, seconds, tmp_path / "made.mp4")
    assert beep(made) == pytest.approx(at, abs=AT_ONCE)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mp4", "libmp3lame"), ("a.mkv", "flac")])
def test_sound_ends_with_the_clip(tmp_path: Path, with_sound: WithSound, name: str, codec: str) -> None:
    source = with_sound(tmp_path / name, codec)
    kept, _ = heard(SoundSource(str(source)), 1.0)
    assert about(written(kept, 1.0, tmp_path / "made.mp4"))[1] == pytest.approx(1.0, abs=1e-3)


def test_sound_of_which_the_part_is_silent_to_its_end_is_none(tmp_path: Path, with_sound: WithSound) -> None:
    source = with_sound(tmp_path / "a.mp4")
    assert heard(SoundSource(str(source), 5.0), 2.0) == (None, [])


def test_the_default_one_of_several_tracks_is_carried_and_that_is_said(tmp_path: Path, with_sound: WithSound) -> None:
    source = with_sound(tmp_path / "a.mp4", tracks=3)
    kept, said = heard(SoundSource(str(source)), 2.0)
    with av.open(str(written(kept, 2.0, tmp_path / "made.mp4"))) as container:
        assert len(container.streams.audio) == 1
    assert said == ["a.mp4 has 3 sound tracks, and the default one is carried"]


def test_times_that_do_not_stand_are_one_note_and_only_where_there_is_sound(
    tmp_path: Path, with_sound: WithSound, clip: Clip
) -> None:
    source = with_sound(tmp_path / "a.mp4")
    said = "the sound of a.mp4 is left out: it plays slower"
    assert heard(SoundSource(str(source), unfit="it plays slower"), 2.0) == (None, [said])
    for silent in (clip.save(tmp_path / "b.mp4")[0], clip.save(tmp_path / "b.gif")[0], clip.save(tmp_path / "b")[0]):
        assert heard(SoundSource(str(silent), unfit="it plays slower"), 2.0) == (None, [])


def test_damaged_sound_is_a_note_and_costs_no_clip(tmp_path: Path, with_sound: WithSound) -> None:
    source = with_sound(tmp_path / "a.mp4")
    with av.open(str(source)) as container:
        packets = [(p.pos, p.size) for p in container.demux(audio=0) if p.size]
    data = bytearray(source.read_bytes())
    for at, size in packets[5:20]:
        data[at : at + size] = b"\xff" * size
    source.write_bytes(data)
    kept, said = heard(SoundSource(str(source)), 2.0)
    assert kept is None
    assert said == ["the sound of a.mp4 cannot be decoded, so it is left out"]


def test_sound_whose_packets_an_mp4_does_not_take_is_encoded_anew(
    tmp_path: Path, with_sound: WithSound, beep: Beep, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = with_sound(tmp_path / "a.mov", "alac")

    def refused(*_: object) -> None:
        raise av.error.InvalidDataError(1, "malformed")

    monkeypatch.setattr(sound, "_copied", refused)
    made = written(heard(SoundSource(str(source)), 2.0)[0], 2.0, tmp_path / "made.mp4")
    assert about(made)[0] == "aac"
    assert beep(made) == pytest.approx(0.5, abs=AT_ONCE)


def test_sound_outlives_its_file(tmp_path: Path, with_sound: WithSound, beep: Beep) -> None:
    source = with_sound(tmp_path / "a.mp4")
    kept, _ = heard(SoundSource(str(source)), 2.0)
    source.unlink()
    assert beep(written(kept, 2.0, source)) == pytest.approx(0.5, abs=AT_ONCE)


def test_every_clip_of_a_batch_has_the_sound(tmp_path: Path, with_sound: WithSound, beep: Beep) -> None:
    kept, _ = heard(SoundSource(str(with_sound(tmp_path / "a.mp4"))), 2.0)
    written = Clip(torch.zeros(2, 3, 16, 32, 32), 8.0, {}, kept).save(tmp_path / "b.mp4")
    assert [beep(path) for path in written] == [pytest.approx(0.5, abs=AT_ONCE)] * 2
