"""Audio of a clip: extracted from the source file and written to the output mp4.

It is held in memory as an audio-only mp4, encoded and test-decoded before sampling, so that writing the clip cannot
fail on it and the source file may disappear. Packets are copied if mp4 supports their codec, otherwise transcoded to
AAC.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from kinema.bounds import printable
from kinema.canvas import SoundSource
from kinema.events import Note, OnEvent
from kinema.media.containers import open_container, sniff
from kinema.media.timing import MAX_FRAME_PIXELS

COPIED = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "alac", "flac"})
"""Codecs that are valid in mp4 and widely supported by players."""
AAC_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000})
BITS_A_CHANNEL = 96_000
PREROLL = Fraction(1, 10)
"""Seconds of audio kept before the first audible sample for decoders to start with; an edit list hides them."""
_DEFAULT = 0x1  # AV_DISPOSITION_DEFAULT
_COVER = 0x400  # AV_DISPOSITION_ATTACHED_PIC


@dataclass(frozen=True)
class _Span:
    """Seconds ``begin`` to ``end`` on a track's own clock; ``later`` is the offset to the clip's clock."""

    begin: Fraction
    end: Fraction
    later: Fraction


def extract_audio(source: SoundSource | None, seconds: float, on_event: OnEvent) -> bytes | None:
    """Extract the audio for a clip of this many seconds as an audio-only mp4; None if there is none.

    Reports, without an error, what is dropped: audio that no longer matches the frames, extra tracks, damaged tracks.
    """
    if source is None:
        return None
    path = Path(source.file)
    if not path.is_file() or sniff(path) not in ("mov", "matroska", "avi"):
        return None
    audio, note = _extract(path, source, seconds, copy=True)
    if audio is None and note == _undecoded(path):  # some containers store packets in a form that mp4 does not allow
        audio, note = _extract(path, source, seconds, copy=False)
    if note:
        on_event(Note(note))
    return audio


def add(container: Any, audio: bytes) -> None:
    """Add the audio from `extract_audio` to an mp4 being written, after its video stream."""
    import av

    with av.open(io.BytesIO(audio), format="mov") as source:
        track = source.streams.audio[0]
        stream = container.add_stream_from_template(track)
        end = (track.start_time or 0) + (track.duration or 0)
        for packet in source.demux(track):
            if packet.size:
                # The last packet's trimmed duration is in the track's length; some codecs restore the full one.
                packet.duration = max(1, min(packet.duration, end - packet.pts))
                packet.stream = stream
                container.mux(packet)


def _extract(path: Path, source: SoundSource, seconds: float, *, copy: bool) -> tuple[bytes | None, str]:
    """Return the audio, if any, and a note for the user, if any."""
    import av

    try:
        with open_container(path, str(sniff(path)), MAX_FRAME_PIXELS) as container:
            tracks = list(container.streams.audio)
            if not tracks:
                return None, ""
            if source.unfit:
                return None, f"the sound of {_named(path)} is dropped: {source.unfit}"
            track = next((t for t in tracks if int(t.disposition) & _DEFAULT), tracks[0])
            copy = copy and track.codec_context.codec.canonical_name in COPIED  # "mp3", not the decoder's "mp3float"
            audio = _audio_mp4(container, track, _span(container, source, seconds), copy=copy)
            if audio is not None:
                _check_decodes(audio)
    except (av.FFmpegError, OSError, ValueError, ArithmeticError, AttributeError):  # a codec without a decoder is None
        return None, _undecoded(path)
    if audio is None or len(tracks) == 1:
        return audio, ""
    return audio, f"{_named(path)} has {len(tracks)} sound tracks; only the default one is kept"


def _undecoded(path: Path) -> str:
    return f"the sound of {_named(path)} cannot be decoded and is dropped"


def _named(path: Path) -> str:
    return printable(path.name, 80)


def _span(container: Any, source: SoundSource, seconds: float) -> _Span:
    """Convert the audible part to the packets' clock, which may not start at the first displayed frame."""
    videos = [s for s in container.streams.video if s.codec_context and not int(s.disposition) & _COVER]
    best = max(videos, key=lambda s: s.codec_context.height * s.codec_context.width, default=None)
    origin = Fraction(0) if best is None or best.start_time is None else best.start_time * best.time_base
    begin, at = Fraction(source.begin), Fraction(source.at)
    length = Fraction(seconds) - at
    if source.seconds is not None:
        length = min(length, Fraction(source.seconds))
    return _Span(origin + begin, origin + begin + length, at - begin - origin)


def _audio_mp4(container: Any, track: Any, span: _Span, *, copy: bool) -> bytes | None:
    """Return the span as an audio-only mp4, or None if it has no audio."""
    import av

    raw, count = io.BytesIO(), 0
    with av.open(raw, "w", format="mp4") as out:
        if copy:
            stream = out.add_stream_from_template(track)
            packets = _copied(container, track, span)
        else:
            stream = _aac(out, track)
            packets = _encoded(container, track, stream, span)
        for packet in packets:
            over = (packet.pts + packet.duration) * packet.time_base - (span.end + span.later)
            if over > 0:  # trim the last packet to the clip
                packet.duration = max(1, packet.duration - int(over / packet.time_base))
            packet.stream = stream
            out.mux(packet)
            count += 1
    return raw.getvalue() if count else None


def _copied(container: Any, track: Any, span: _Span) -> Iterator[Any]:
    for packet in container.demux(track):
        if not packet.size or packet.pts is None:
            continue
        begin, hold = packet.pts * packet.time_base, (packet.duration or 0) * packet.time_base
        tick = Fraction(1, track.codec_context.sample_rate)
        if begin + hold <= span.begin - PREROLL:
            continue
        if begin >= span.end:
            return
        packet.time_base, packet.duration = tick, round(hold / tick)
        packet.pts = packet.dts = round((begin + span.later) / tick)  # audio is stored in presentation order
        yield packet


def _encoded(container: Any, track: Any, stream: Any, span: _Span) -> Iterator[Any]:
    for frame in container.decode(track):
        if frame.pts is None:
            continue
        begin = frame.pts * frame.time_base
        if begin + Fraction(frame.samples, frame.sample_rate) <= span.begin:
            continue
        if begin >= span.end:
            break
        # Count in samples: the clock of some containers is too coarse for the encoder's packets.
        frame.time_base = Fraction(1, frame.sample_rate)
        frame.pts = round((begin + span.later) / frame.time_base)
        yield from stream.encode(frame)
    end = span.end + span.later
    yield from (packet for packet in stream.encode(None) if packet.pts * packet.time_base < end)


def _aac(out: Any, track: Any) -> Any:
    rate, channels = track.codec_context.sample_rate, min(track.codec_context.channels, 2)
    stream = out.add_stream("aac", rate=rate if rate in AAC_RATES else 48000)
    stream.codec_context.layout = "mono" if channels == 1 else "stereo"
    stream.codec_context.bit_rate = BITS_A_CHANNEL * channels
    return stream


def _check_decodes(audio: bytes) -> None:
    import av

    with av.open(io.BytesIO(audio), format="mov") as container:
        for _ in container.decode(audio=0):
            pass
