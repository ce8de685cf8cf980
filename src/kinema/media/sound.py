"""The sound of a clip: taken from the file that its frames came from, and carried into the mp4 that is written.

It travels as an audio-only mp4 in memory, which is made and decoded once before the work: nothing can be wrong with
it when the clip is written, and the file that it came from may be gone by then. Packets are copied where an mp4 can
hold their codec, and become AAC otherwise.
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
from kinema.media.containers import opened, sniff
from kinema.media.timing import MAX_FRAME_PIXELS

COPIED = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "alac", "flac"})
"""Codecs that an mp4 holds and players know there."""
AAC_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000})
BITS_A_CHANNEL = 96_000
PREROLL = Fraction(1, 10)
"""Seconds before the first that is heard: decoders need some packets to begin with, and an edit list hides them."""
_DEFAULT = 0x1  # AV_DISPOSITION_DEFAULT
_COVER = 0x400  # AV_DISPOSITION_ATTACHED_PIC


@dataclass(frozen=True)
class _Span:
    """Seconds ``begin`` to ``end`` on a track's own clock, which are ``later`` seconds later in the clip."""

    begin: Fraction
    end: Fraction
    later: Fraction


def carried(heard: SoundSource | None, seconds: float, on_event: OnEvent) -> bytes | None:
    """What is heard of a clip that lasts so long, as an mp4 without pictures; None where there is nothing.

    Says what is left out: sound whose times do not stand, further tracks, and what is damaged; none of it is an error.
    """
    if heard is None:
        return None
    path = Path(heard.file)
    if not path.is_file() or sniff(path) not in ("mov", "matroska", "avi"):
        return None
    made, said = _taken(path, heard, seconds, copy=True)
    if made is None and said == _undecoded(path):  # some containers keep packets as an mp4 does not take them
        made, said = _taken(path, heard, seconds, copy=False)
    if said:
        on_event(Note(said))
    return made


def add(container: Any, heard: bytes) -> None:
    """Give an mp4 that is being written the sound that `carried` returned; its streams of pictures come before."""
    import av

    with av.open(io.BytesIO(heard), format="mov") as source:
        track = source.streams.audio[0]
        stream = container.add_stream_from_template(track)
        end = (track.start_time or 0) + (track.duration or 0)
        for packet in source.demux(track):
            if packet.size:
                # What the last packet was cut to is in the track's length; some codecs' packets tell their own again.
                packet.duration = max(1, min(packet.duration, end - packet.pts))
                packet.stream = stream
                container.mux(packet)


def _taken(path: Path, heard: SoundSource, seconds: float, *, copy: bool) -> tuple[bytes | None, str]:
    """What is heard, if anything is, and the sentence that there is to say."""
    import av

    try:
        with opened(path, str(sniff(path)), MAX_FRAME_PIXELS) as container:
            tracks = list(container.streams.audio)
            if not tracks:
                return None, ""
            if heard.unfit:
                return None, f"the sound of {_named(path)} is left out: {heard.unfit}"
            track = next((t for t in tracks if int(t.disposition) & _DEFAULT), tracks[0])
            copy = copy and track.codec_context.codec.canonical_name in COPIED  # "mp3", not the decoder's "mp3float"
            made = _made(container, track, _span(container, heard, seconds), copy=copy)
            if made is not None:
                _check_decodes(made)
    except (av.FFmpegError, OSError, ValueError, ArithmeticError, AttributeError):  # a codec without decoder is None
        return None, _undecoded(path)
    if made is None or len(tracks) == 1:
        return made, ""
    return made, f"{_named(path)} has {len(tracks)} sound tracks, and the default one is carried"


def _undecoded(path: Path) -> str:
    return f"the sound of {_named(path)} cannot be decoded, so it is left out"


def _named(path: Path) -> str:
    return printable(path.name, 80)


def _span(container: Any, heard: SoundSource, seconds: float) -> _Span:
    """The part that is heard on the clock of the packets, which the first frame that is shown need not begin."""
    pictures = [s for s in container.streams.video if s.codec_context and not int(s.disposition) & _COVER]
    best = max(pictures, key=lambda s: s.codec_context.height * s.codec_context.width, default=None)
    origin = Fraction(0) if best is None or best.start_time is None else best.start_time * best.time_base
    begin, at = Fraction(heard.begin), Fraction(heard.at)
    length = Fraction(seconds) - at
    if heard.seconds is not None:
        length = min(length, Fraction(heard.seconds))
    return _Span(origin + begin, origin + begin + length, at - begin - origin)


def _made(container: Any, track: Any, span: _Span, *, copy: bool) -> bytes | None:
    """The span as an audio-only mp4, or None where nothing sounds in it."""
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
            if over > 0:  # the last one ends with the clip
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
        packet.pts = packet.dts = round((begin + span.later) / tick)  # stored in the order in which it is heard
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
        # Counted in samples: the clock of some containers is too coarse for the encoder's packets.
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


def _check_decodes(made: bytes) -> None:
    import av

    with av.open(io.BytesIO(made), format="mov") as container:
        for _ in container.decode(audio=0):
            pass
