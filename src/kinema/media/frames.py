"""Convert a decoded video frame to upright sRGB pixels.

The frame's own tags take precedence over those of its stream, which come from the container. Undefined tag values are
treated as unspecified, so that they do not keep a frame from being displayed.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kinema.media import hdr
from kinema.media.colour import over_black, swscale_flags
from kinema.media.hdr import Look
from kinema.media.profiles import frame_in_srgb
from kinema.schema import BadRequest

_UNSPECIFIED = 2
_YCGCO, _2020_CL, _BY_PRIMARIES, _BY_PRIMARIES_CL, _ICTCP = 8, 10, 12, 13, 14
_SCALED = {1, 4, 5, 6, 7, 9}
"""Matrices that swscale supports: BT.709, FCC, BT.601 (twice), SMPTE 240M, BT.2020."""
_FROM_YCGCO = np.array([[1, -1, 1], [1, 1, 0], [1, -1, -1]])
_FROM_ICTCP_PQ = np.linalg.inv(np.array([[2048, 2048, 0], [6610, -13613, 7003], [17933, -17390, -543]]) / 4096)
_FROM_ICTCP_HLG = np.linalg.inv(np.array([[2048, 2048, 0], [3625, -7465, 3840], [9500, -9212, -288]]) / 4096)
_LIMITED, _FULL = 1, 2
_SWAPPED = {f"{order}{bits}be": f"{order}{bits}le" for order in ("rgb", "bgr") for bits in (555, 565)}
"""swscale reads these with the wrong byte order."""
_FATAL = {"yaf32be", "yaf32le"}
"""swscale aborts the process on these formats."""


@dataclass(frozen=True)
class ColourTags:
    """Colour matrix, range (1 limited, 2 full), transfer and primaries as H.273 code points."""

    matrix: int = _UNSPECIFIED
    range: int = 0
    transfer: int = _UNSPECIFIED
    primaries: int = _UNSPECIFIED

    @classmethod
    def of(cls, source: Any) -> ColourTags:
        """Tags of a frame or codec context."""
        return cls(source.colorspace, source.color_range, source.color_trc, source.color_primaries)

    def over(self, fallback: ColourTags) -> ColourTags:
        """These tags, with undefined values taken from ``fallback``."""
        return ColourTags(
            self.matrix if self.matrix in _SCALED | {_YCGCO, 10, 12, 13, _ICTCP} else fallback.matrix,
            self.range if self.range in (_LIMITED, _FULL) else fallback.range,
            self.transfer if self.transfer in range(1, 19) and self.transfer not in (2, 3) else fallback.transfer,
            self.primaries if self.primaries in (*range(4, 13), 1, 22) else fallback.primaries,
        )


@dataclass(frozen=True)
class DecodedFrame:
    """A decoded frame with its colour tags, pixel aspect ratio (width by height) and separately decoded alpha."""

    name: str
    frame: Any
    tags: ColourTags
    ratio: float = 1.0
    alpha: Any = None
    decoder: str = ""

    @property
    def look(self) -> Look:
        profiled = replace(self.tags, transfer=_UNSPECIFIED, primaries=_UNSPECIFIED)  # an ICC profile takes precedence
        return _look(self.frame, profiled if "ICC_PROFILE" in self._side_data else self.tags)

    @property
    def nature(self) -> dict[str, str]:
        """HDR and alpha by name, if the frame has them."""
        hdr_name = {hdr.PQ: "PQ", hdr.HLG: "HLG"}.get(self.look.transfer)
        # Every gif decodes to a format with alpha, even without transparent pixels.
        own = self.decoder != "gif" and any(c.is_alpha for c in self.frame.format.components)
        has_alpha = self.alpha is not None or own
        return {**({"hdr": hdr_name} if hdr_name else {}), **({"alpha": "shown over black"} if has_alpha else {})}

    @property
    def _side_data(self) -> dict[str, bytes]:
        return _read_side_data(self.frame, self.decoder)

    def pixels(self) -> np.ndarray:
        """uint8 H×W×3: square pixels, sRGB, alpha over black, upright. Raises `BadRequest`."""
        import av

        frame, look, size, side_data = self.frame, self.look, self._size(), self._side_data
        try:
            signal_HWC = _signal(frame, self.tags, look, size)
            alpha_HW = None if self.alpha is None else _levels_of_alpha(self.alpha, frame, size)
        except (av.FFmpegError, ValueError) as error:
            raise BadRequest(
                f"{self.name} uses the pixel format {frame.format.name}, which is not supported; convert it to yuv420p"
            ) from error
        colours_HWC, own_HW = signal_HWC[..., :3], signal_HWC[..., 3] if signal_HWC.shape[2] == 4 else None
        if signal_HWC.dtype == np.uint16:
            colours_HWC = hdr.to_sdr(colours_HWC, look)
            own_HW = None if own_HW is None else (own_HW >> 8).astype(np.uint8)
        colours_HWC = frame_in_srgb(colours_HWC, side_data.get("ICC_PROFILE", b""))
        for over_HW in (own_HW, alpha_HW):
            if over_HW is not None:
                colours_HWC = over_black(np.dstack([colours_HWC, over_HW]))
        return _upright(colours_HWC, _matrix(frame, side_data))

    def _size(self) -> dict[str, int]:
        if abs(self.ratio - 1) > 0.01 and 0.1 < self.ratio < 10:
            return {"width": max(1, round(self.frame.width * self.ratio)), "height": self.frame.height}
        return {}


def _look(frame: Any, tags: ColourTags) -> Look:
    """Interpret the tags for this frame."""
    kinds = {hdr.PQ: hdr.PQ, hdr.HLG: hdr.HLG, hdr.LINEAR: hdr.LINEAR, hdr.SRGB: hdr.SRGB}
    transfer = kinds.get(tags.transfer, hdr.BT709)
    wide = hdr.BT2020 if transfer in (hdr.PQ, hdr.HLG) else hdr.BT709  # BT.2100 defines no others
    tagged = tags.primaries if tags.primaries != _UNSPECIFIED else wide
    primaries = tagged if tagged in (hdr.BT2020, hdr.P3_DCI, hdr.P3_D65) else hdr.BT709
    if tags.matrix == _ICTCP and _is_yuv(frame) and transfer in (hdr.PQ, hdr.HLG):
        return Look(transfer, hdr.BT2020, lms=True)
    if tags.range == _LIMITED and _is_grey(frame):
        # swscale treats all grey as full range, whatever the tags.
        unit = 2 ** (frame.format.components[0].bits - 8)
        return Look(transfer, primaries, black=16 * unit / (256 * unit - 1), white=235 * unit / (256 * unit - 1))
    return Look(transfer, primaries)


def _signal(frame: Any, tags: ColourTags, look: Look, size: dict[str, int]) -> np.ndarray:
    """The frame as full-range H×W×3 (×4 with alpha): uint8 if its look is plain, otherwise uint16 R'G'B' or L'M'S'."""
    if frame.format.name in _FATAL:
        raise ValueError(frame.format.name)
    if frame.format.name in _SWAPPED:
        frame = _swapped(frame)
    if _is_yuv(frame) and (tags.matrix == _YCGCO or look.lms):
        return _by_hand(frame, tags, look, size)
    frame.colorspace, frame.color_range = _scaled(tags), tags.range if tags.range in (_LIMITED, _FULL) else 0
    has_alpha = any(c.is_alpha for c in frame.format.components) or frame.format.name == "pal8"
    kind = ("rgba" if has_alpha else "rgb24") if look.plain else ("rgba64le" if has_alpha else "rgb48le")
    return frame.to_ndarray(format=kind, interpolation=swscale_flags(), **size)


def _scaled(tags: ColourTags) -> int:
    """The matrix for swscale. An unspecified one means BT.601: FFmpeg makes most untagged clips from RGB with it."""
    if tags.matrix in (_BY_PRIMARIES, _BY_PRIMARIES_CL):
        return {hdr.BT709: 1, hdr.BT2020: 9}.get(tags.primaries, _UNSPECIFIED)
    if tags.matrix == _2020_CL:  # constant luminance is unused in practice: take the nearest
        return 9
    return tags.matrix if tags.matrix in _SCALED else _UNSPECIFIED


def _by_hand(frame: Any, tags: ColourTags, look: Look, size: dict[str, int]) -> np.ndarray:
    """Convert YCgCo or ICtCp, which swscale does not support, to uint16 R'G'B' or L'M'S' H×W×3 (×4 with alpha)."""
    full = tags.range == _FULL or frame.format.name.startswith("yuvj")
    has_alpha = any(c.is_alpha for c in frame.format.components)
    frame.colorspace, frame.color_range = 1, _FULL if full else _LIMITED
    options = {
        "dst_colorspace": 1,
        "dst_color_range": _FULL if full else _LIMITED,
        "interpolation": swscale_flags(),
        **size,
    }
    stored_HWC = frame.reformat(format="yuv444p16le", **options).to_ndarray(channel_last=True)
    origin = np.array([0 if full else 4096, 32768, 32768], np.float32)
    unit = np.array([65535] * 3 if full else [219 * 256, 224 * 256, 224 * 256], np.float32)
    values_HWC = (stored_HWC - origin) / unit
    ictcp = _FROM_ICTCP_PQ if look.transfer == hdr.PQ else _FROM_ICTCP_HLG
    matrix = ictcp if look.lms else _FROM_YCGCO
    signal_HWC = (values_HWC @ matrix.T.astype(np.float32) * 65535).round().clip(0, 65535).astype(np.uint16)
    if not has_alpha:
        return signal_HWC
    alpha_HW = frame.to_ndarray(format="rgba64le", interpolation=swscale_flags(), **size)[..., 3]
    return np.dstack([signal_HWC, alpha_HW])


def _is_grey(frame: Any) -> bool:
    name = frame.format.name
    return name.startswith(("gray", "ya8", "ya16")) and not name.startswith("grayf")  # float grey has black at 0


def _is_yuv(frame: Any) -> bool:
    kind = frame.format
    return not kind.is_rgb and len(kind.components) >= 3 and not kind.name.startswith(("xyz", "bayer"))


def _swapped(frame: Any) -> Any:
    """The frame with the two bytes of each pixel swapped."""
    import av

    swapped = av.VideoFrame(frame.width, frame.height, _SWAPPED[frame.format.name])
    source, target = frame.planes[0], swapped.planes[0]
    rows = np.frombuffer(source, np.uint16).reshape(frame.height, -1)[:, : frame.width].byteswap()
    padded = np.zeros((frame.height, target.line_size // 2), np.uint16)
    padded[:, : frame.width] = rows
    target.update(padded.tobytes())
    return swapped


def _levels_of_alpha(alpha: Any, frame: Any, size: dict[str, int]) -> np.ndarray:
    """Return uint8 H×W alpha from the luma of an alpha frame, which is full range whatever its tags."""
    alpha.color_range = _FULL
    size = size or {"width": frame.width, "height": frame.height}
    return alpha.to_ndarray(format="gray", interpolation=swscale_flags(), dst_color_range=_FULL, **size)


def _read_side_data(frame: Any, decoder: str) -> dict[str, bytes]:
    """Side data of a frame by FFmpeg type name."""
    # PyAV frees the dictionary of a side data entry and the frame frees it again, which crashes the process. Only the
    # png decoders attach such a dictionary (the ICC profile's name).
    if decoder in ("png", "apng"):
        return {}
    try:
        return {data.type.name: bytes(data) for data in frame.side_data}
    except ValueError:  # a type of side data that PyAV does not name
        return {}


def _matrix(frame: Any, side_data: dict[str, bytes]) -> tuple[float, float, float, float]:
    """The 2×2 part (a, b, c, d) of the display matrix: x' = a·x + c·y, y' = b·x + d·y."""
    if "DISPLAYMATRIX" in side_data:
        a, b, _, c, d, *_ = struct.unpack("=9i", side_data["DISPLAYMATRIX"])
        return a, b, c, d
    turn = math.radians(frame.rotation)  # the same matrix without flips; 0 if there is none
    return math.cos(turn), -math.sin(turn), math.sin(turn), math.cos(turn)


def _upright(pixels_HWC: np.ndarray, matrix: tuple[float, float, float, float]) -> np.ndarray:
    a, b, c, d = matrix
    swapped = abs(b) > abs(a)
    if swapped:
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    if (c if swapped else a) < 0:
        pixels_HWC = pixels_HWC[:, ::-1]
    if (b if swapped else d) < 0:
        pixels_HWC = pixels_HWC[::-1]
    return np.ascontiguousarray(pixels_HWC)
