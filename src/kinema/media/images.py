"""Read still images, animated webps and pngs, and folders of numbered images with Pillow."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kinema import bounds
from kinema.media import profiles
from kinema.media.ancillary import without_clutter
from kinema.media.colour import to_float, to_uint8
from kinema.media.containers import readable_path, sniff
from kinema.media.metadata import FOLDER_RECIPE, MAX_RECIPE
from kinema.media.structure import animation
from kinema.media.timing import DEFAULT_FPS, MAX_FRAME_PIXELS, Budget, Limits, TimedFrame
from kinema.schema import BadRequest

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MAX_IMAGE_PIXELS = 3 * 2**24
"""Height × width of an image: 50 megapixels, as from phones, fit in 2 GiB with all intermediate copies."""
MAX_ANIMATION = 2**29
"""Bytes of an animated webp or png, which is held in memory while it is read."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
FRAME_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


def read_image(path: str | Path, *, max_pixels: int | None = None) -> Tensor:
    """Read an image as 1×3×1×H×W float32 in [-1, 1]: upright by its EXIF, sRGB, 16 bits if it has them.

    Alpha is composited over black, as in videos, so that an image and a clip of it have the same pixels.
    Of a file with several frames the first is read. ``max_pixels`` defaults to `MAX_IMAGE_PIXELS`, or the user's higher
    limit. Raises `BadRequest`, before decoding, if the file is missing, truncated, not an image or larger than
    ``max_pixels``.
    """
    return _to_tensor(_read_pixels(path, max_pixels))


def image_size(path: str | Path) -> tuple[int, int]:
    """Decode an image and return its (height, width), upright. Refuses what `read_image` refuses; loads no torch."""
    height, width = _read_pixels(path).shape[:2]
    return height, width


def _read_pixels(path: str | Path, max_pixels: int | None = None) -> np.ndarray:
    path = readable_path(Path(path))
    if path.is_dir():
        raise BadRequest(f"{path} is a folder; expected an image")
    with _open_image(path, _default_limit() if max_pixels is None else max_pixels) as image:
        return _pixels(path, image)


def _default_limit() -> int:
    return bounds.max_pixels(MAX_IMAGE_PIXELS)


def animated_frames(path: Path, kind: str, limits: Limits) -> Iterator[TimedFrame]:
    """Yield the frames of an animated "webp" or "apng" (one if still), timed by its chunks.

    All frames are counted first; each is decoded when its pixels are requested, which must happen in order.
    """
    found = animation(path, kind)
    limits.check_frame(path.name, found.height, found.width)
    budget = Budget.of(path.name, path.stat().st_size, "images")
    budget.check(len(found.holds), found.height, found.width)
    # Read into memory, since the last frame may be requested after this generator has ended.
    source = without_clutter(path) or io.BytesIO(bounds.read_bytes(path, MAX_ANIMATION))
    image = _open_image(path, limits.frame, source)
    time = 0.0
    for index, hold in enumerate(found.holds):
        yield TimedFrame(time, hold, partial(_decode_frame, path, image, index + found.first, budget), clock=1e-3)
        time += hold


def animated_first(path: Path, limits: Limits) -> np.ndarray:
    """Decode the first frame of an animated webp or png, uint8 H×W×3."""
    with _open_image(path, limits.frame) as image:
        # Pillow counts a png's default image as the first frame even if it is not part of the animation.
        hidden = bool(getattr(image, "default_image", False))
        return _decode_frame(path, image, int(hidden), Budget.of(path.name, path.stat().st_size, "images"))


def _decode_frame(path: Path, image: Image, index: int, budget: Budget) -> np.ndarray:
    """Decode frame ``index`` of an animation, uint8 H×W×3."""
    budget.take(image.height, image.width)
    try:
        image.seek(index)
        return _as_bytes(_deep_grey(image)) if _is_deep(image) else profiles.levels(image)
    except Exception as error:  # Pillow raises anything on damaged files
        raise BadRequest(f"{path.name} is damaged or cut short at frame {index}") from error


def folder_frames(folder: Path, limits: Limits, fps: float | None) -> tuple[float, Iterator[TimedFrame]]:
    """Images of a folder in natural order, and their rate: the recipe's, else ``fps``, else 8."""
    files = sorted(
        (p for p in folder.iterdir() if _is_frame(p)),
        key=lambda p: [(0, int(s), "") if s.isdigit() else (1, 0, s) for s in re.split(r"(\d+)", p.name)],
    )
    if not files:
        raise BadRequest(f"the folder {folder} contains no images; expected numbered frames such as frame-0001.png")
    rate = _folder_rate(folder) or fps or DEFAULT_FPS
    budget = Budget.of(folder.name, sum(p.stat().st_size for p in files), "images")

    def timed() -> Iterator[TimedFrame]:
        for index, file in enumerate(files):
            yield TimedFrame(index / rate, 1 / rate, partial(_image_bytes, file, limits.frame, budget))

    return rate, timed()


def _is_frame(path: Path) -> bool:
    return path.suffix.lower() in FRAME_SUFFIXES and not path.name.startswith(".") and bounds.is_regular(path)


def _folder_rate(folder: Path) -> float | None:
    recipe = folder / FOLDER_RECIPE
    if not bounds.is_regular(recipe):
        return None
    try:
        data = bounds.from_json(bounds.read_bytes(recipe, MAX_RECIPE), recipe.name, infinite=True)
    except BadRequest:
        return None
    rate = data.get("fps") if isinstance(data, dict) else None
    return float(rate) if isinstance(rate, int | float) and 0.1 <= rate <= 240 else None


def _image_bytes(path: Path, max_pixels: int, budget: Budget) -> np.ndarray:
    with _open_image(path, max_pixels) as image:
        budget.take(image.height, image.width)
        return _as_bytes(_pixels(path, image))


def _as_bytes(pixels: np.ndarray) -> np.ndarray:
    return to_uint8(_to_tensor(pixels))[0, 0]


def image_format(path: Path) -> str:
    """Name the format of an image: png, jpeg, …"""
    with _open_image(path, _default_limit()) as image:
        return str(image.format).lower()


def is_image(path: Path) -> bool:
    """Whether the content is a single still image (an animated gif, webp or png is a clip)."""
    kind = sniff(path)
    if kind in ("mov", "avi", "matroska"):
        return False
    if kind in ("gif", "webp", "apng"):
        return len(animation(path, kind).holds) == 1
    with _open_image(path, _default_limit()) as image:
        # TIFF pages are not an animation, and counting them reads every directory, even damaged ones.
        return image.format in ("MPO", "TIFF") or getattr(image, "n_frames", 1) == 1


def count_frames(path: Path) -> int:
    """Number of frames that an image declares."""
    with _open_image(path, _default_limit()) as image:
        return int(getattr(image, "n_frames", 1))


def is_animated_avif(path: Path) -> bool:
    """Whether a file is an animated AVIF, which Pillow would open as an image."""
    with path.open("rb") as file:
        return file.read(12)[4:] == b"ftypavis"


def _open_image(path: Path, max_pixels: int, source: io.BytesIO | None = None) -> Image:
    """Open by content, reading only the header; rejects too many pixels before decoding."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():  # about too many pixels (our own limit applies) and unusual metadata
            warnings.simplefilter("ignore")
            if max_pixels > (Image.MAX_IMAGE_PIXELS or max_pixels):
                Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit is below the user's
            image = _identified(source or without_clutter(path) or path)
    except Image.DecompressionBombError as error:
        raise BadRequest(
            f"{path.name} is too large; images are limited to {max_pixels:,} pixels{_option(max_pixels)}"
        ) from error
    except UnidentifiedImageError as error:
        raise BadRequest(f"{path.name} is not a supported image; expected png, jpeg, webp, gif…") from error
    except Exception as error:  # Pillow raises anything on damaged files
        raise BadRequest(f"{path.name} is damaged or cut short: it cannot be read as an image") from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise BadRequest(
            f"{path.name} is {width}×{height}; images are limited to {max_pixels:,} pixels{_option(max_pixels)}"
        )
    return image


def _option(max_pixels: int) -> str:
    return "" if max_pixels < MAX_FRAME_PIXELS else "; --max-pixels raises that"


def _identified(source: Path | io.BytesIO) -> Image:
    """Open as one of the supported formats, common ones first: Pillow imports forty modules for the others."""
    from PIL import Image, UnidentifiedImageError

    Image.preinit()
    common = [name for name in _FORMATS if name in Image.OPEN]
    try:
        return Image.open(source, formats=common)
    except UnidentifiedImageError:
        Image.init()
        return Image.open(source, formats=[name for name in _FORMATS if name in Image.OPEN])


def _to_tensor(pixels: np.ndarray) -> Tensor:
    """Convert uint8 H×W×3, or deep grey H×W in 0..1, to 1×3×1×H×W in [-1, 1]."""
    if pixels.ndim == 3:
        return to_float(pixels[None])
    import torch

    return torch.from_numpy(pixels).mul(2).sub(1).expand(3, *pixels.shape).contiguous()[None, :, None]


def _pixels(path: Path, image: Image) -> np.ndarray:
    """Decode an image to uint8 H×W×3, or deep grey to float32 H×W in 0..1."""
    try:
        with warnings.catch_warnings():  # about metadata, which is repaired or ignored
            warnings.simplefilter("ignore")
            image.load()
            upright = _upright(image)
    except Exception as error:  # Pillow raises anything on damaged files
        raise BadRequest(f"{path.name} is damaged or cut short: its pixels cannot be decoded") from error
    return _deep_grey(upright) if _is_deep(upright) else profiles.levels(upright)


def _upright(image: Image) -> Image:
    """Rotate or flip by the Exif orientation, if it is readable."""
    from PIL import ExifTags
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises anything on damaged Exif
        orientation = 1
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(orientation)
    return image if turn is None else image.transpose(turn)


def _is_deep(image: Image) -> bool:
    return image.mode.startswith(("I", "F"))


def _deep_grey(image: Image) -> np.ndarray:
    """Convert 16-bit grey (white is 65535) or float grey (white is 1, or 255 if it exceeds 1) to 0..1."""
    grey_HW = np.nan_to_num(np.asarray(image, dtype=np.float32))
    white = 65535.0 if image.mode.startswith("I") else 1.0 if grey_HW.max() <= 1 else 255.0
    grey_HW = (grey_HW / white).clip(0, 1)
    curve = profiles.grey_curve(image) if image.mode.startswith("I") else None
    if curve is not None:
        grey_HW = np.interp(grey_HW, np.linspace(0, 1, len(curve)), curve).astype(np.float32)
    return grey_HW
