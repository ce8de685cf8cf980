"""Eight known colours, stored in planes by each format's definition, encoded and read back."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kinema.media.frames import ColourTags, DecodedFrame
from kinema.media.read import read_video
from kinema.schema import BadRequest

COLOURS = np.array(
    [
        [[255, 255, 255], [0, 0, 0], [128, 128, 128], [220, 40, 30]],
        [[40, 190, 60], [40, 60, 210], [230, 200, 60], [90, 30, 120]],
    ]
)
SIDE = 16
WEIGHTS = {"709": (0.2126, 0.0722), "601": (0.299, 0.114), "2020": (0.2627, 0.0593)}
NUMBER = {"709": 1, "601": 6, "2020": 9}
LIMITED, FULL = 1, 2


def squares(values: np.ndarray) -> np.ndarray:
    return values.repeat(SIDE, 0).repeat(SIDE, 1)


def levels(path: Path) -> np.ndarray:
    """Centre of each of the eight squares of a clip's first frame: 2×4×3 levels."""
    frame = read_video(path).video[0, :, 0].permute(1, 2, 0).add(1).mul(127.5).round().int().numpy()
    assert frame.shape == (2 * SIDE, 4 * SIDE, 3)
    return frame[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE]


def ycbcr(rgb: np.ndarray, matrix: str, top: int, *, full: bool) -> np.ndarray:
    """Convert R'G'B' in 0..1 to integers in 0..top by BT.601, BT.709 or BT.2020."""
    red, blue = WEIGHTS[matrix]
    luma = red * rgb[..., 0] + (1 - red - blue) * rgb[..., 1] + blue * rgb[..., 2]
    chroma = [(rgb[..., 2] - luma) / (2 - 2 * blue), (rgb[..., 0] - luma) / (2 - 2 * red)]
    unit, half = (top + 1) / 256, (top + 1) / 2
    if full:
        planes = [luma * top, *(c * top + half for c in chroma)]
    else:
        planes = [(16 + 219 * luma) * unit, *(c * 224 * unit + half for c in chroma)]
    return np.stack(planes, -1).round().clip(0, top)


def planar(pix_fmt: str, values: np.ndarray) -> Any:
    """A frame with the H×W×C integers ``values`` in its planes, at the format's own subsampling."""
    import av

    frame = av.VideoFrame(values.shape[1], values.shape[0], pix_fmt)
    for index, component in enumerate(frame.format.components):
        plane, kind = frame.planes[index], np.dtype("<u2" if component.bits > 8 else np.uint8)
        down, across = values.shape[0] // component.height, values.shape[1] // component.width
        padded = np.zeros((component.height, plane.line_size // kind.itemsize), kind)
        padded[:, : component.width] = values[::down, ::across, index]
        plane.update(padded.tobytes())
    return frame


def encoded(path: Path, frame: Any, codec: str, tags: ColourTags, **options: str) -> Path:
    import av

    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=Fraction(8), options=options)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
        context = stream.codec_context
        for target in (context, frame):
            target.colorspace, target.color_range = tags.matrix, tags.range
            target.color_trc, target.color_primaries = tags.transfer, tags.primaries
        for index in range(2):
            frame.pts, frame.time_base = index, Fraction(1, 8)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


YUV = [
    *("yuv410p yuv411p yuv420p yuv422p yuv440p yuv444p yuva420p yuva422p yuva444p".split()),
    *(f"yuv{kind}p{bits}le" for kind in (420, 422, 444) for bits in (9, 10, 12, 14, 16)),
    *("yuv440p10le yuv440p12le yuva420p10le yuva422p12le yuva444p10le yuva444p12le yuva444p16le".split()),
]
GREY = ["gray", "gray9le", "gray10le", "gray12le", "gray14le", "gray16le"]


@pytest.mark.parametrize("range_", [LIMITED, FULL])
@pytest.mark.parametrize("pix_fmt", YUV + GREY)
def test_every_planar_format_decodes_to_its_colours(tmp_path: Path, pix_fmt: str, range_: int) -> None:
    import av

    components = av.VideoFormat(pix_fmt).components
    top = 2 ** components[0].bits - 1
    colours = COLOURS[..., 1:2].repeat(3, -1) if pix_fmt in GREY else COLOURS
    values = ycbcr(colours / 255, "709", top, full=range_ == FULL)
    values = np.dstack([values, np.full(values.shape[:2], top)])
    path = encoded(tmp_path / "a.mkv", planar(pix_fmt, squares(values)), "ffv1", ColourTags(1, range_, 1, 1))
    assert np.abs(levels(path) - colours).max() <= 2


@pytest.mark.parametrize("range_", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", ["601", "709", "2020"])
@pytest.mark.parametrize(
    ("codec", "pix_fmt", "name"),
    [
        ("libx264", "yuv420p", "a.mp4"),
        ("libx264", "yuv422p10le", "a.mov"),
        ("libx264", "yuv444p", "a.mkv"),
        ("libx264", "yuv444p10le", "a.mp4"),
        ("libvpx-vp9", "yuv444p", "a.webm"),
        ("libsvtav1", "yuv420p10le", "a.mp4"),
    ],
)
def test_matrix_and_range_follow_the_stream_tags(
    tmp_path: Path, codec: str, pix_fmt: str, name: str, matrix: str, range_: int
) -> None:
    import av

    top = 2 ** av.VideoFormat(pix_fmt).components[0].bits - 1
    frame = planar(pix_fmt, squares(ycbcr(COLOURS / 255, matrix, top, full=range_ == FULL)))
    path = encoded(tmp_path / name, frame, codec, ColourTags(NUMBER[matrix], range_, 1, 1), crf="2")
    assert np.abs(levels(path) - COLOURS).max() <= 5


@pytest.mark.parametrize("matrix", ["709", "601"])
def test_container_tags_apply_to_untagged_frames(tmp_path: Path, matrix: str) -> None:
    frame = planar("yuv422p10le", squares(ycbcr(COLOURS / 255, matrix, 1023, full=True)))
    path = encoded(tmp_path / "a.mkv", frame, "ffv1", ColourTags(NUMBER[matrix], FULL))
    assert np.abs(levels(path) - COLOURS).max() <= 2


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "name", "off"),
    [
        ("libx264rgb", "rgb24", "a.mp4", 3),
        ("magicyuv", "gbrp", "a.avi", 0),
        ("ffv1", "gbrp10le", "a.mkv", 1),
        ("ffv1", "gbrp16le", "a.mkv", 1),
        ("ffv1", "gbrap12le", "a.mkv", 1),
        ("ffv1", "rgb48le", "a.mkv", 1),
        ("ffv1", "rgba64le", "a.mkv", 1),
        ("ffv1", "bgr0", "a.mkv", 0),
        ("png", "rgb24", "a.mov", 0),
        ("png", "rgb48be", "a.mov", 1),
        ("png", "rgba", "a.avi", 0),
        ("qtrle", "rgb24", "a.mov", 0),
        ("qtrle", "argb", "a.mov", 0),
        ("qtrle", "rgb555be", "a.mov", 11),
        ("rawvideo", "rgb24", "a.mov", 0),
        ("rawvideo", "rgb555be", "a.mov", 11),
        ("rawvideo", "bgr24", "a.avi", 0),
        ("huffyuv", "rgb24", "a.avi", 0),
        ("utvideo", "gbrp", "a.avi", 0),
    ],
)
def test_rgb_in_a_video_is_unchanged(tmp_path: Path, codec: str, pix_fmt: str, name: str, off: int) -> None:
    import av

    frame = av.VideoFrame.from_ndarray(squares(COLOURS).astype(np.uint8), format="rgb24").reformat(format=pix_fmt)
    path = encoded(tmp_path / name, frame, codec, ColourTags(), **({"crf": "1"} if codec == "libx264rgb" else {}))
    assert np.abs(levels(path) - COLOURS).max() <= off


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "name"),
    [
        ("prores_ks", "yuva444p10le", "a.mov"),
        ("ffv1", "yuva420p", "a.mkv"),
        ("ffv1", "yuva444p16le", "a.mkv"),
        ("ffv1", "bgra", "a.mkv"),
        ("ffv1", "rgba64le", "a.mkv"),
        ("qtrle", "argb", "a.mov"),
        ("png", "rgba", "a.mov"),
        ("png", "rgba64be", "a.mov"),
        ("png", "ya8", "a.mov"),
        ("utvideo", "gbrap", "a.avi"),
    ],
)
def test_alpha_of_a_video_is_over_black(tmp_path: Path, codec: str, pix_fmt: str, name: str) -> None:
    import av

    straight = np.dstack([np.full((2, 4, 3), 200), np.array([[0, 255, 128, 0], [255, 64, 192, 255]])])
    frame = av.VideoFrame.from_ndarray(squares(straight).astype(np.uint8), format="rgba").reformat(format=pix_fmt)
    path = encoded(tmp_path / name, frame, codec, ColourTags(6, 0) if pix_fmt.startswith("yuv") else ColourTags())
    expected = straight[..., :3] * straight[..., 3:] / 255
    assert np.abs(levels(path) - expected).max() <= 3


def test_a_palette_shows_its_colours(tmp_path: Path, encode: Any) -> None:
    path = encode(tmp_path / "a.gif", squares(COLOURS).astype(np.uint8)[None], codec="gif", pix_fmt="rgb8")
    steps = np.array([36.5, 36.5, 85])  # rgb8 has 3, 3 and 2 bits
    assert (np.abs(levels(path) - COLOURS) <= steps).all()


@pytest.mark.parametrize("pix_fmt", ["rgb555be", "bgr555be", "rgb565be", "bgr565be"])
def test_two_byte_pixels_are_read_in_the_right_byte_order(pix_fmt: str) -> None:
    import av

    green = 6 if "565" in pix_fmt else 5
    shift = 5 + green if pix_fmt.startswith("rgb") else 0
    frame = av.VideoFrame(37, 5, pix_fmt)
    frame.planes[0].update(np.full(frame.planes[0].buffer_size // 2, 31 << shift, ">u2").tobytes())
    assert (DecodedFrame("a", frame, ColourTags()).pixels() == [255, 0, 0]).all()


@pytest.mark.parametrize("pix_fmt", ["yaf32le", "gray32le", "rgb96le"])
def test_an_unsupported_pixel_format_is_refused_by_name(pix_fmt: str) -> None:
    import av

    with pytest.raises(BadRequest, match=f"pixel format {pix_fmt}, which is not supported"):
        DecodedFrame("a", av.VideoFrame(16, 16, pix_fmt), ColourTags()).pixels()


@pytest.mark.parametrize("number", [0, 2, 3, 15, 17, 77, 255])
def test_undefined_tags_leave_the_pixels_unchanged(number: int) -> None:
    frame = planar("yuv420p", squares(ycbcr(COLOURS / 255, "601", 255, full=False)))
    frame.colorspace = frame.color_trc = frame.color_primaries = number
    frame.color_range = number if number > 2 else 0
    pixels = DecodedFrame("a", frame, ColourTags.of(frame).over(ColourTags())).pixels()
    assert np.abs(pixels[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE].astype(int) - COLOURS).max() <= 2


def test_undefined_tags_are_replaced_by_the_containers() -> None:
    assert ColourTags(3, 9, 77, 200).over(ColourTags(9, 2, 16, 12)) == ColourTags(9, 2, 16, 12)
    assert ColourTags(1, 1, 1, 1).over(ColourTags(9, 2, 16, 12)) == ColourTags(1, 1, 1, 1)


@pytest.mark.parametrize("range_", [LIMITED, FULL])
@pytest.mark.parametrize("bits", [8, 10])
def test_ycgco_is_converted_to_rgb(bits: int, range_: int) -> None:
    red, green, blue = np.moveaxis(COLOURS / 255, -1, 0)
    luma, cg, co = green / 2 + (red + blue) / 4, green / 2 - (red + blue) / 4, (red - blue) / 2
    top, unit = 2**bits - 1, 2 ** (bits - 8)
    scale, chroma, origin = (top, top, 0) if range_ == FULL else (219 * unit, 224 * unit, 16 * unit)
    values = np.stack([luma * scale + origin, *(c * chroma + 128 * unit for c in (cg, co))], -1).round().clip(0, top)
    frame = planar("yuv444p" if bits == 8 else "yuv444p10le", squares(values))
    pixels = DecodedFrame("a", frame, ColourTags(8, range_, 1, 1)).pixels()
    assert np.abs(pixels[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE].astype(int) - COLOURS).max() <= 2


@pytest.mark.parametrize("name", ["bayer_rggb8", "bayer_bggr16le", "xyz12le", "nv12", "p010le", "uyvy422", "yuyv422"])
def test_non_planar_formats_are_decoded(name: str) -> None:
    import av

    frame = av.VideoFrame(32, 16, name)
    for plane in frame.planes:
        plane.update(bytes([128]) * plane.buffer_size)
    assert DecodedFrame("a", frame, ColourTags()).pixels().shape == (16, 32, 3)


@pytest.mark.parametrize("codec", ["png", "qtrle"])
@pytest.mark.parametrize(("turn", "first"), [((0, 1, -1, 0), 4), ((0, -1, 1, 0), 3), ((-1, 0, 0, -1), 7)])
def test_a_rotated_clip_of_pngs_is_read_upright(tmp_path: Path, codec: str, turn: tuple[int, ...], first: int) -> None:
    import av

    pixels = squares(COLOURS).astype(np.uint8)
    a, b, c, d = (one * 65536 for one in turn)
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as out:
        pix_fmt = "rgb24"
        stream: Any = out.add_stream(codec, rate=8, width=64, height=32, pix_fmt=pix_fmt)
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
        frame.pts = 0
        out.mux([*stream.encode(frame), *stream.encode()])
    pixels = read_video(path).video[0, :, 0].add(1).mul(127.5).round().int()
    assert pixels[:, 8, 8].tolist() == COLOURS.reshape(8, 3)[first].tolist()
