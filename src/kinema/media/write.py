"""Clips out: mp4, gif, webp or png frames, whole or not at all, with the recipe inside."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kinema.atomic import check_folder, replacing
from kinema.media import metadata
from kinema.media.colour import exact, to_uint8
from kinema.media.containers import located
from kinema.schema import BadRequest, Clip

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".mp4", ".gif", ".webp", ".png")
CRF = 12
"""Visually lossless at the sizes of pocket models, where one macroblock is a good part of the picture."""
WEBP_QUALITY = 95
_BT709 = 1
_LIMITED = 1

Tags = dict[str, str]


def check_output(path: str | Path) -> None:
    """Refuse an output that `save_clip` would refuse, before the work is done.

    Unknown suffix, missing or unwritable folder, a folder where a file is to be, or a file where a
    folder is to be: `BadRequest`.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise BadRequest(f"cannot write {path}: it is a folder that exists, and the name of a new one was expected")
    if path.suffix.lower() not in SUFFIXES and (path.suffix or path.name.startswith(".")):
        raise BadRequest(
            f"cannot write {path.name}: expected a name ending in .mp4, .gif, .webp or .png, "
            "or a name without an ending for a folder of png frames"
        )
    check_folder(path)
    if path.suffix.lower() in (".mp4", ".gif", ".webp") and path.is_dir():
        raise BadRequest(f"cannot write {path}: it is a folder, and a file name was expected")
    if not path.suffix and path.is_file():
        raise BadRequest(f"cannot write {path}: it is a file, and a name without an ending is a folder of png frames")
    if not path.suffix:
        _refuse_foreign(path)


def save_clip(
    clip: Clip,
    path: str | Path,
    *,
    contact_sheet: bool = False,
    crf: float | None = None,
    generated: bool = True,
    exclusive: bool = False,
) -> list[Path]:
    """Write a clip by its suffix and return the paths written, contact sheets last.

    ``.mp4`` is h264 yuv420p BT.709 with the index first; ``.gif`` and ``.webp`` loop; ``.png`` is a
    picture for one frame and else the folder of that name without the suffix, as is a name without
    one. A batch is written as ``name-0``, ``name-1``…. ``crf`` is x264's quality (mp4 only; 0 best,
    51 worst). A side that is odd gains one repeated row or column in an mp4, said in the recipe's
    ``notes``. ``generated=False`` leaves out the mark of AI-generated media, for clips that are none.

    What exists is replaced by one rename at the end, or with ``exclusive`` never (`kinema.atomic.Taken`); nothing
    half-written stays behind. Raises `BadRequest` for an unknown suffix, a folder that is missing or not writable, a
    full disk, or pixels that are not finite.
    """
    path = Path(path)
    check_output(path)
    suffix = path.suffix.lower()
    if crf is not None and (suffix != ".mp4" or not 0 <= crf <= 51):
        raise BadRequest(f"crf is {crf:g} for {path.name}; expected 0 to 51, and an mp4")
    frames_BTHWC = to_uint8(clip.video)
    if frames_BTHWC.size == 0:
        raise BadRequest(f"the clip is empty ({tuple(clip.video.shape)}), so there is nothing to write to {path.name}")
    written = []
    for index, made_THWC in enumerate(frames_BTHWC):
        target = path if len(frames_BTHWC) == 1 else path.with_name(f"{path.stem}-{index}{path.suffix}")
        recipe = dict(clip.recipe) if len(frames_BTHWC) == 1 else {**clip.recipe, "clip": index}
        frames_THWC, note = _even(made_THWC) if suffix == ".mp4" else (made_THWC, None)
        recipe |= {"notes": [*recipe.get("notes", ()), note]} if note else {}
        tags = metadata.tags(recipe, generated=generated)
        written.append(_save_one(frames_THWC, clip.fps, target, tags, crf, exclusive=exclusive))
    if contact_sheet:
        written.append(_save_sheet(clip, path.with_name(f"{path.stem}.sheet.png"), generated))
    return written


def contact_sheet(clip: Clip, columns: int = 8) -> Image:
    """All frames of a clip on one picture, left to right, ``columns`` a row; each batch item begins a row."""
    from PIL import Image

    if columns < 1:
        raise BadRequest(f"columns is {columns}; expected at least 1")
    frames_BTHWC = to_uint8(clip.video)
    batch, count, height, width, _ = frames_BTHWC.shape
    columns = min(columns, count)
    rows, gap = -(-count // columns), max(1, min(height, width) // 32)
    sheet = np.full((batch * rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for b, frames_THWC in enumerate(frames_BTHWC):
        for t, frame_HWC in enumerate(frames_THWC):
            top, left = (b * rows + t // columns) * (height + gap), t % columns * (width + gap)
            sheet[top : top + height, left : left + width] = frame_HWC
    return Image.fromarray(sheet)


# -------------------------------------------------------------------------------------- one target


def _save_one(
    frames_THWC: np.ndarray, fps: float, path: Path, tags: Tags, crf: float | None, *, exclusive: bool
) -> Path:
    suffix = path.suffix.lower()
    if suffix in ("", ".png") and (suffix == "" or len(frames_THWC) > 1):
        return _save_folder(frames_THWC, fps, path.with_suffix(""), tags, exclusive=exclusive)
    rate = Fraction(fps).limit_denominator(1001)
    with replacing(path, exclusive=exclusive) as part:
        if suffix == ".mp4":
            _write_mp4(frames_THWC, rate, part, tags, CRF if crf is None else crf)
        elif suffix == ".gif":
            _write_gif(frames_THWC, rate, part, tags)
        elif suffix == ".webp":
            _write_webp(frames_THWC, rate, part, tags)
        else:
            _write_png(frames_THWC[0], part, tags)
    return path


def _save_folder(frames_THWC: np.ndarray, fps: float, folder: Path, tags: Tags, *, exclusive: bool) -> Path:
    """``frame-0000.png``… and ``recipe.json``; an existing folder is replaced only if it is such a one."""
    _refuse_foreign(folder)
    if folder.exists() and not folder.is_dir():
        raise BadRequest(f"cannot write frames to {folder}: it is a file, and a folder is needed")
    beside = {**tags, metadata.KEY: json.loads(tags[metadata.KEY]), "fps": fps}
    with replacing(folder, folder=True, exclusive=exclusive) as part:
        for index, frame_HWC in enumerate(frames_THWC):
            _write_png(frame_HWC, part / f"frame-{index:04d}.png", tags)
        (part / metadata.FOLDER_RECIPE).write_text(json.dumps(beside, indent=2) + "\n")
    return folder


def _refuse_foreign(folder: Path) -> None:
    if not folder.is_dir():
        return
    foreign = [p.name for p in folder.iterdir() if p.name != metadata.FOLDER_RECIPE and not p.match("frame-*.png")]
    if foreign:
        raise BadRequest(
            f"the folder {folder} holds other files ({foreign[0]}); expected a new name for the png frames"
        )


def _save_sheet(clip: Clip, path: Path, generated: bool) -> Path:
    sheet = np.asarray(contact_sheet(clip))
    with replacing(path) as part:
        _write_png(sheet, part, metadata.tags(clip.recipe, generated=generated))
    return path


# ----------------------------------------------------------------------------------------- formats


def _write_mp4(frames_THWC: np.ndarray, rate: Fraction, part: Path, tags: Tags, crf: float) -> None:
    import av
    from av.video.reformatter import ColorRange, Colorspace

    # `use_metadata_tags` lets a container that knows only iTunes atoms carry names of our own.
    options = {"movflags": "use_metadata_tags+faststart"}
    with av.open(located(part), "w", format="mp4", options=options) as container:
        container.metadata.update(tags)
        stream = container.add_stream("libx264", rate=rate, options={"crf": f"{crf:g}", "preset": "medium"})
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        codec: Any = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED
        # Slices and threads change the bits; one thread gives one file for one clip on any machine.
        codec.thread_count = 1

        def convert(frame: av.VideoFrame) -> av.VideoFrame:
            made = frame.reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=exact(),
            )
            made.colorspace, made.color_range = _BT709, _LIMITED
            return made

        _encode(container, stream, frames_THWC, rate, convert)


def _write_gif(frames_THWC: np.ndarray, rate: Fraction, part: Path, tags: Tags) -> None:
    """One palette for the whole clip and an ordered dither, which stands still where the picture does."""
    import av

    with io.BytesIO() as raw:
        with av.open(raw, "w", format="gif", options={"loop": "0"}) as container:
            stream = container.add_stream("gif", rate=rate)
            stream.height, stream.width = frames_THWC.shape[1:3]
            stream.pix_fmt = "pal8"
            _encode(container, stream, frames_THWC, rate, _Palette(frames_THWC))
        data = raw.getvalue()
    # The comment goes where every reader finds it: after the header and its colour table.
    table = 3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 0
    part.write_bytes(data[: 13 + table] + metadata.gif_comment(tags) + data[13 + table :])


class _Palette:
    """Maps RGB frames to one palette of 256 colours made from all of them."""

    def __init__(self, frames_THWC: np.ndarray) -> None:
        import av

        height, width = frames_THWC.shape[1:3]
        make = av.filter.Graph()
        source = make.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 25))
        make.link_nodes(source, make.add("palettegen", "reserve_transparent=0"), make.add("buffersink")).configure()
        for index, frame_HWC in enumerate(frames_THWC):
            make.push(_frame(frame_HWC, index, Fraction(25)))
        make.push(None)
        self.palette: Any = make.pull()
        self.height, self.width = height, width

    def __call__(self, frame: Any) -> Any:
        import av

        graph = av.filter.Graph()
        picture = graph.add_buffer(
            width=self.width, height=self.height, format=av.VideoFormat("rgb24"), time_base=frame.time_base
        )
        colours = graph.add_buffer(
            width=self.palette.width,
            height=self.palette.height,
            format=self.palette.format,
            time_base=frame.time_base,
        )
        use = graph.add("paletteuse", "dither=bayer:bayer_scale=3")
        picture.link_to(use, 0, 0)
        colours.link_to(use, 0, 1)
        use.link_to(graph.add("buffersink"))
        graph.configure()
        self.palette.pts, self.palette.time_base = frame.pts, frame.time_base
        picture.push(frame)
        picture.push(None)
        colours.push(self.palette)
        colours.push(None)
        return graph.pull()


def _write_webp(frames_THWC: np.ndarray, rate: Fraction, part: Path, tags: Tags) -> None:
    first, *rest = _pictures(frames_THWC)
    # Whole milliseconds whose sum is right, where each alone would be off by up to a half.
    ends = [round(1000 * (index + 1) / rate) for index in range(len(frames_THWC))]
    first.save(
        part,
        format="WEBP",
        save_all=True,
        append_images=rest,
        duration=[end - begin for begin, end in zip([0, *ends], ends, strict=False)],
        loop=0,
        quality=WEBP_QUALITY,
        method=4,
        exif=metadata.exif(tags),
        xmp=metadata.xmp("digitalSourceType" in tags),
    )


def _write_png(frame_HWC: np.ndarray, part: Path, tags: Tags) -> None:
    from PIL import Image, PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    for name, text in tags.items():
        chunks.add_itxt(name, text)
    chunks.add_itxt("XML:com.adobe.xmp", metadata.xmp("digitalSourceType" in tags).decode())
    Image.fromarray(frame_HWC).save(part, format="PNG", pnginfo=chunks)


# ------------------------------------------------------------------------------------------ shared


def _even(frames_THWC: np.ndarray) -> tuple[np.ndarray, str | None]:
    """yuv420p halves the colour, so its sides must be even: repeat the last row or column."""
    height, width = frames_THWC.shape[1:3]
    if height % 2 == 0 and width % 2 == 0:
        return frames_THWC, None
    padded = np.pad(frames_THWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    after = f"{padded.shape[2]}×{padded.shape[1]}"
    return padded, f"{width}×{height} was padded to {after} by repeating the edge: an mp4 needs even sides"


def _frame(pixels_HWC: np.ndarray, index: int, rate: Fraction) -> Any:
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC), format="rgb24")
    frame.pts, frame.time_base = index, 1 / rate
    return frame


def _encode(
    container: Any, stream: Any, frames_THWC: np.ndarray, rate: Fraction, convert: Callable[[Any], Any]
) -> None:
    for index, pixels_HWC in enumerate(frames_THWC):
        made = convert(_frame(pixels_HWC, index, rate))
        made.pts, made.time_base = index, 1 / rate
        container.mux(stream.encode(made))
    container.mux(stream.encode())


def _pictures(frames_THWC: np.ndarray) -> Iterator[Image]:
    from PIL import Image

    return (Image.fromarray(frame_HWC) for frame_HWC in frames_THWC)
