"""Output formats: limits, checked before sampling, and encoders.

Frames are uint8 T×H×W×3; ``part`` is the temporary file that `kinema.atomic.replacing` renames at the end.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kinema.media import metadata, sound
from kinema.media.colour import swscale_flags
from kinema.media.containers import file_url
from kinema.media.timing import RATES
from kinema.schema import BadRequest, Shape

if TYPE_CHECKING:
    from PIL.Image import Image

CRF = 12
"""Visually lossless at pocket-model sizes, where one macroblock is a large part of the image."""
WEBP_QUALITY = 95
MAX_SIDES = {".gif": 65_535, ".webp": 16_383}
"""Largest 16-bit and 14-bit values."""
_BT709 = 1
_LIMITED = 1

Tags = dict[str, str]


@dataclass(frozen=True)
class Clock:
    """A format's time base: ticks per second, and the least ticks that viewers honour for a frame.

    Browsers show a frame of 10 ms or less for 100 ms, so a faster clip would play at a tenth of its speed.
    """

    ticks: int
    least: int


CLOCKS = {".gif": Clock(100, 2), ".webp": Clock(1000, 11)}


# --------------------------------------------------------------------------------------- limits


def rate_of(fps: float) -> Fraction:
    """Convert frames per second to a fraction, including NTSC's 30000/1001. Raises `BadRequest` outside 0.1 to 240."""
    if not (math.isfinite(fps) and RATES[0] <= fps <= RATES[1]):
        raise BadRequest(f"fps is {fps:g}; expected {RATES[0]:g} to {RATES[1]:g}")
    return Fraction(fps).limit_denominator(1001)


def check(suffix: str, shape: Shape, fps: float) -> list[str]:
    """Return notes on what a file with this suffix changes in a clip (padding, dropped frames).

    Raises `BadRequest` if the format cannot hold the clip or its encoder is not installed.
    """
    rate, size = rate_of(fps), f"{shape.width}×{shape.height}"
    if max(shape.height, shape.width) > MAX_SIDES.get(suffix, math.inf):
        raise BadRequest(
            f"the clip is {size}, but a {suffix[1:]} is limited to {MAX_SIDES[suffix]:,} pixels per side; "
            "use a smaller size or zoom, or write png frames"
        )
    if suffix == ".mp4":
        padded, note = even(shape.height, shape.width)
        _try(lambda container: _x264(container, *padded, rate, CRF), "H.264", *padded)
        return [note] if note else []
    if suffix == ".webp":
        from PIL import features

        if not features.check("webp"):
            raise BadRequest("the installed Pillow cannot write WebP; write an .mp4, .gif or .png")
    if suffix == ".gif":
        _try(lambda container: _gif(container, shape.height, shape.width), "GIF", shape.height, shape.width)
    if suffix in CLOCKS:
        return dropped_note(suffix, shape.frames, rate)
    return []


def even(height: int, width: int) -> tuple[tuple[int, int], str | None]:
    """Return the even (height, width) that yuv420p requires, and a note if a side was odd."""
    padded = (height + height % 2, width + width % 2)
    if padded == (height, width):
        return padded, None
    after = f"{padded[1]}×{padded[0]}"
    return padded, f"{width}×{height} was padded to {after} by repeating the edge: an mp4 requires even sides"


def dropped_note(suffix: str, frames: int, rate: Fraction) -> list[str]:
    """Return a note on the frames that the format drops because of its frame rate limit, if any."""
    kept = len(frame_timing(CLOCKS[suffix], frames, rate)[0])
    if kept == frames:
        return []
    clock = CLOCKS[suffix]
    return [
        f"a {suffix[1:]} shows at most {clock.ticks // clock.least} frames per second: {kept} of {frames} frames are "
        f"written; the duration stays {float(frames / rate):.3g} s"
    ]


def frame_timing(clock: Clock, frames: int, rate: Fraction) -> tuple[list[int], list[int]]:
    """Return (indices of the frames to write, ticks per frame); the ticks add up to the clip's duration."""
    whole = max(Fraction(frames * clock.ticks) / rate, Fraction(clock.least))
    count = min(frames, int(whole / clock.least))
    ends = [math.floor(whole * (index + 1) / count + Fraction(1, 2)) for index in range(count)]
    indices = [(2 * index + 1) * frames // (2 * count) for index in range(count)]
    return indices, [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def _try(add: Callable[[Any], Any], name: str, height: int, width: int) -> None:
    """Open an encoder at this size and rate: only trying shows whether it is installed and supports them."""
    import av

    try:
        with av.open(io.BytesIO(), "w", format="mp4" if name == "H.264" else "gif") as container:
            add(container).codec_context.open()
    except av.codec.codec.UnknownCodecError as error:
        raise BadRequest(f"the installed PyAV has no {name} encoder; write another format") from error
    except av.FFmpegError as error:
        raise BadRequest(
            f"the {name} encoder does not support {width}×{height} (the limit is about 16,384×8,192); "
            "use a smaller size or zoom, or write png frames"
        ) from error


# ------------------------------------------------------------------------------------- encoders


def write_mp4(
    frames_THWC: np.ndarray,
    rate: Fraction,
    part: Path,
    tags: Tags,
    crf: float | None = None,
    audio: bytes | None = None,
) -> None:
    """Write h264 yuv420p BT.709 with the index first, and the audio from `kinema.media.sound`; sides must be even."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    # `use_metadata_tags` allows custom tag names in mp4; without a limit on the interleaving delay, audio and video
    # packets stay interleaved however long the clip is.
    options = {"movflags": "use_metadata_tags+faststart", "max_interleave_delta": "0"}
    with av.open(file_url(part), "w", format="mp4", options=options) as container:
        container.metadata.update(tags)
        height, width = frames_THWC.shape[1:3]
        stream = _x264(container, height, width, rate, CRF if crf is None else crf)

        def convert(frame: av.VideoFrame) -> av.VideoFrame:
            converted = frame.reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=swscale_flags(),
            )
            converted.colorspace, converted.color_range = _BT709, _LIMITED
            return converted

        if audio is not None:
            sound.add(container, audio)
        _encode(container, stream, frames_THWC, range(len(frames_THWC)), 1 / rate, convert)


def _x264(container: Any, height: int, width: int, rate: Fraction, crf: float) -> Any:
    # x264's macroblock tree gives other bits now and then for the same frames, even in one thread.
    options = {"crf": f"{crf:g}", "preset": "medium", "x264-params": "mbtree=0"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.height, stream.width = height, width
    stream.pix_fmt = "yuv420p"
    codec: Any = stream.codec_context
    codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
    codec.color_range = _LIMITED
    # Slices and threads change the bits; one thread gives one file for one clip on any machine.
    codec.thread_count = 1
    return stream


def write_gif(frames_THWC: np.ndarray, rate: Fraction, part: Path, tags: Tags) -> None:
    """Write a gif with one palette for the whole clip; ordered dither does not flicker in still areas."""
    import av

    clock = CLOCKS[".gif"]
    indices, holds = frame_timing(clock, len(frames_THWC), rate)
    frames_THWC = frames_THWC[indices]
    starts = [sum(holds[:index]) for index in range(len(holds))]
    with io.BytesIO() as raw:
        # A gif delay is the time to the next frame, so the last frame's is set separately.
        options = {"loop": "0", "final_delay": str(holds[-1])}
        with av.open(raw, "w", format="gif", options=options) as container:
            stream = _gif(container, *frames_THWC.shape[1:3])
            _encode(container, stream, frames_THWC, starts, Fraction(1, clock.ticks), _Palette(frames_THWC))
        data = raw.getvalue()
    # Insert the comment where every reader looks for it: after the header and its colour table.
    table = 3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 0
    part.write_bytes(data[: 13 + table] + metadata.gif_comment(tags) + data[13 + table :])


def _gif(container: Any, height: int, width: int) -> Any:
    stream = container.add_stream("gif", rate=CLOCKS[".gif"].ticks)
    stream.height, stream.width = height, width
    stream.pix_fmt = "pal8"
    return stream


class _Palette:
    """Maps RGB frames to one palette of 256 colours computed from all of them."""

    def __init__(self, frames_THWC: np.ndarray) -> None:
        import av

        height, width = frames_THWC.shape[1:3]
        graph = av.filter.Graph()
        source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 25))
        graph.link_nodes(source, graph.add("palettegen", "reserve_transparent=0"), graph.add("buffersink")).configure()
        for index, frame_HWC in enumerate(frames_THWC):
            graph.push(_frame(frame_HWC, index, Fraction(1, 25)))
        graph.push(None)
        self.palette: Any = graph.pull()
        self.height, self.width = height, width

    def __call__(self, frame: Any) -> Any:
        import av

        graph = av.filter.Graph()
        video = graph.add_buffer(
            width=self.width, height=self.height, format=av.VideoFormat("rgb24"), time_base=frame.time_base
        )
        colours = graph.add_buffer(
            width=self.palette.width,
            height=self.palette.height,
            format=self.palette.format,
            time_base=frame.time_base,
        )
        use = graph.add("paletteuse", "dither=bayer:bayer_scale=3")
        video.link_to(use, 0, 0)
        colours.link_to(use, 0, 1)
        use.link_to(graph.add("buffersink"))
        graph.configure()
        self.palette.pts, self.palette.time_base = frame.pts, frame.time_base
        video.push(frame)
        video.push(None)
        colours.push(self.palette)
        colours.push(None)
        return graph.pull()


def write_webp(frames_THWC: np.ndarray, rate: Fraction, part: Path, tags: Tags, method: int = 4) -> None:
    """Write a lossy, looping webp. ``method`` is the encoder's effort, 0 (fastest) to 6 (smallest)."""
    indices, holds = frame_timing(CLOCKS[".webp"], len(frames_THWC), rate)
    first, *rest = _images(frames_THWC, indices)
    first.save(
        part,
        format="WEBP",
        save_all=True,
        append_images=rest,
        duration=holds,
        loop=0,
        quality=WEBP_QUALITY,
        method=method,
        exif=metadata.exif(tags),
        xmp=metadata.xmp("digitalSourceType" in tags),
    )


def write_png(frame_HWC: np.ndarray, part: Path, tags: Tags) -> None:
    """Write one image."""
    from PIL import Image, PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    for name, text in tags.items():
        chunks.add_itxt(name, text)
    chunks.add_itxt("XML:com.adobe.xmp", metadata.xmp("digitalSourceType" in tags).decode())
    Image.fromarray(frame_HWC).save(part, format="PNG", pnginfo=chunks)


# --------------------------------------------------------------------------------------- shared


def _frame(pixels_HWC: np.ndarray, pts: int, time_base: Fraction) -> Any:
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC), format="rgb24")
    frame.pts, frame.time_base = pts, time_base
    return frame


def _encode(
    container: Any,
    stream: Any,
    frames_THWC: np.ndarray,
    starts: Sequence[int],
    time_base: Fraction,
    convert: Callable[[Any], Any],
) -> None:
    for start, pixels_HWC in zip(starts, frames_THWC, strict=True):
        converted = convert(_frame(pixels_HWC, start, time_base))
        converted.pts, converted.time_base = start, time_base
        container.mux(stream.encode(converted))
    container.mux(stream.encode())


def _images(frames_THWC: np.ndarray, indices: Sequence[int]) -> list[Image]:
    from PIL import Image

    return [Image.fromarray(frames_THWC[index]) for index in indices]
