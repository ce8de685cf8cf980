"""Still pictures, animated webps and pngs, and folders of numbered pictures, through Pillow."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kinema import bounds
from kinema.media import profiles
from kinema.media.ancillary import without_clutter
from kinema.media.colour import to_float, to_uint8
from kinema.media.containers import existing, sniff
from kinema.media.metadata import FOLDER_RECIPE, MAX_RECIPE
from kinema.media.structure import animation
from kinema.media.timing import DEFAULT_FPS, MAX_FRAME_PIXELS, Budget, Limits, Timed
from kinema.schema import BadRequest

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_IMAGE_PIXELS = 3 * 2**24
"""Height × width of a picture: 50 megapixels, as phones take them, fit in 2 GiB with every copy that is made."""
MAX_ANIMATION = 2**29
"""Bytes of an animated webp or png, which are held while it is read."""

_PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
FRAME_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


def read_image(path: str | Path, *, max_pixels: int | None = None) -> Tensor:
    """Read a picture as 1×3×1×H×W float32 in [-1, 1]: upright by its EXIF, sRGB, 16 bits where it has them.

    Alpha is over black, as in videos: a picture and the clip made from it must show the same pixels.
    Of a file with several frames the first is read. ``max_pixels`` is `MAX_IMAGE_PIXELS`, or more where
    the user raised that, unless it is given. Raises `BadRequest` for a missing file, no
    picture, one that is cut short, or one of more than ``max_pixels``, before it is decoded.
    """
    path = existing(Path(path))
    if path.is_dir():
        raise BadRequest(f"{path} is a folder; expected a picture")
    with _open_picture(path, _most() if max_pixels is None else max_pixels) as picture:
        return _to_tensor(path, picture)


def _most() -> int:
    return bounds.pixels(MAX_IMAGE_PIXELS)


def animated_frames(path: Path, kind: str, limits: Limits) -> Iterator[Timed]:
    """Frames of an animated "webp" or "apng" (a still has one), at the times that its chunks tell.

    Each is decoded when its pixels are asked for, which is done in order; all are counted before the first.
    """
    found = animation(path, kind)
    limits.check_frame(path.name, found.height, found.width)
    budget = Budget.of(path.name, path.stat().st_size, "pictures")
    budget.check(len(found.holds), found.height, found.width)
    # From memory, since the last frame may be asked for after this generator has ended.
    source = without_clutter(path) or io.BytesIO(bounds.read_bytes(path, MAX_ANIMATION))
    picture = _open_picture(path, limits.frame, source)
    time = 0.0
    for index, hold in enumerate(found.holds):
        yield Timed(time, hold, partial(_shown, path, picture, index + found.first, budget), clock=1e-3)
        time += hold


def animated_first(path: Path, limits: Limits) -> np.ndarray:
    """The first frame of an animated webp or png, uint8 H×W×3, whatever follows it."""
    with _open_picture(path, limits.frame) as picture:
        # Where the default picture of a png is no frame of its animation, Pillow counts it as the first.
        hidden = bool(getattr(picture, "default_image", False))
        return _shown(path, picture, int(hidden), Budget.of(path.name, path.stat().st_size, "pictures"))


def _shown(path: Path, picture: Image, index: int, budget: Budget) -> np.ndarray:
    """Frame ``index`` of an animation, uint8 H×W×3."""
    budget.take(picture.height, picture.width)
    try:
        picture.seek(index)
        return _as_bytes(_deep_grey(picture)) if _is_deep(picture) else profiles.levels(picture)
    except Exception as error:  # Pillow meets whatever bytes people have, and raises what it likes
        raise BadRequest(f"{path.name} is damaged or cut short at frame {index}") from error


def folder_frames(folder: Path, limits: Limits, fps: float | None) -> tuple[float, Iterator[Timed]]:
    """The pictures of a folder in natural order, and their rate: the recipe's, else ``fps``, else 8."""
    files = sorted(
        (p for p in folder.iterdir() if _is_frame(p)),
        key=lambda p: [(0, int(s), "") if s.isdigit() else (1, 0, s) for s in re.split(r"(\d+)", p.name)],
    )
    if not files:
        raise BadRequest(f"the folder {folder} holds no pictures; expected numbered frames such as frame-0001.png")
    rate = _folder_rate(folder) or fps or DEFAULT_FPS
    budget = Budget.of(folder.name, sum(p.stat().st_size for p in files), "pictures")

    def timed() -> Iterator[Timed]:
        for index, file in enumerate(files):
            yield Timed(index / rate, 1 / rate, partial(_picture_bytes, file, limits.frame, budget))

    return rate, timed()


def _is_frame(path: Path) -> bool:
    return path.suffix.lower() in FRAME_SUFFIXES and not path.name.startswith(".") and bounds.is_regular(path)


def _folder_rate(folder: Path) -> float | None:
    beside = folder / FOLDER_RECIPE
    if not bounds.is_regular(beside):
        return None
    try:
        told = bounds.from_json(bounds.read_bytes(beside, MAX_RECIPE), beside.name, infinite=True)
    except BadRequest:
        return None
    rate = told.get("fps") if isinstance(told, dict) else None
    return float(rate) if isinstance(rate, int | float) and 0.1 <= rate <= 240 else None


def _picture_bytes(path: Path, max_pixels: int, budget: Budget) -> np.ndarray:
    with _open_picture(path, max_pixels) as picture:
        budget.take(picture.height, picture.width)
        return _as_bytes(_to_tensor(path, picture))


def _as_bytes(video: Tensor) -> np.ndarray:
    return to_uint8(video)[0, 0]


def written_as(path: Path) -> str:
    """The format of a picture: png, jpeg, …"""
    with _open_picture(path, _most()) as picture:
        return str(picture.format).lower()


def is_picture(path: Path) -> bool:
    """Whether the content is one still picture (an animated gif, webp or png is a clip)."""
    kind = sniff(path)
    if kind in ("mov", "avi", "matroska"):
        return False
    if kind in ("gif", "webp", "apng"):
        return len(animation(path, kind).holds) == 1
    with _open_picture(path, _most()) as picture:
        # A TIFF's pages are no animation; to count them is to read each of its directories, however damaged.
        return picture.format in ("MPO", "TIFF") or getattr(picture, "n_frames", 1) == 1


def count_frames(path: Path) -> int:
    """How many frames a picture says that it has."""
    with _open_picture(path, _most()) as picture:
        return int(getattr(picture, "n_frames", 1))


def is_animated_avif(path: Path) -> bool:
    """Whether a file that Pillow may read as a picture is an AVIF of several."""
    with path.open("rb") as file:
        return file.read(12)[4:] == b"ftypavis"


def _open_picture(path: Path, max_pixels: int, source: io.BytesIO | None = None) -> Image:
    """Open by content, header only; too many pixels are refused before any is decoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():  # of too many pixels, which our own limit answers, and of odd metadata
            warnings.simplefilter("ignore")
            if max_pixels > (Image.MAX_IMAGE_PIXELS or max_pixels):
                Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow has a bound of its own, below what the user asked for
            picture = _identified(source or without_clutter(path) or path)
    except Image.DecompressionBombError as error:
        raise BadRequest(
            f"{path.name} is too large a picture; at most {max_pixels:,} pixels are read{_option(max_pixels)}"
        ) from error
    except UnidentifiedImageError as error:
        raise BadRequest(f"{path.name} is not a picture that can be read; expected png, jpeg, webp, gif…") from error
    except Exception as error:  # Pillow meets whatever bytes people have, and raises what it likes
        raise BadRequest(f"{path.name} is damaged or cut short: it cannot be read as a picture") from error
    width, height = picture.size
    if width * height > max_pixels:
        picture.close()
        raise BadRequest(
            f"{path.name} is {width}×{height}; at most {max_pixels:,} pixels of a picture are read{_option(max_pixels)}"
        )
    return picture


def _option(max_pixels: int) -> str:
    return "" if max_pixels < MAX_FRAME_PIXELS else "; --max-pixels raises that"


def _identified(source: Path | io.BytesIO) -> Image:
    """Opened as one of our formats: the commonest first, since Pillow imports forty modules for the others."""
    from PIL import Image, UnidentifiedImageError

    Image.preinit()
    common = [name for name in _PICTURES if name in Image.OPEN]
    try:
        return Image.open(source, formats=common)
    except UnidentifiedImageError:
        Image.init()
        return Image.open(source, formats=[name for name in _PICTURES if name in Image.OPEN])


def _to_tensor(path: Path, picture: Image) -> Tensor:
    """A picture as 1×3×1×H×W in [-1, 1]."""
    try:
        with warnings.catch_warnings():  # of metadata, which is mended or ignored
            warnings.simplefilter("ignore")
            picture.load()
            upright = _upright(picture)
    except Exception as error:  # Pillow meets whatever bytes people have, and raises what it likes
        raise BadRequest(f"{path.name} is damaged or cut short: its pixels cannot be decoded") from error
    if _is_deep(upright):
        return _deep_grey(upright)
    return to_float(profiles.levels(upright)[None])


def _upright(picture: Image) -> Image:
    """Turned as its Exif says, where that is legible."""
    from PIL import ExifTags
    from PIL.Image import Transpose

    try:
        told = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises whatever the damage makes it stumble over
        told = 1
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(told)
    return picture if turn is None else picture.transpose(turn)


def _is_deep(picture: Image) -> bool:
    return picture.mode.startswith(("I", "F"))


def _deep_grey(picture: Image) -> Tensor:
    """Grey of 16 bits (white is 65535) or float (white is 1, or 255 where it goes past 1) to 1×3×1×H×W."""
    grey_HW = np.nan_to_num(np.asarray(picture, dtype=np.float32))
    white = 65535.0 if picture.mode.startswith("I") else 1.0 if grey_HW.max() <= 1 else 255.0
    grey_HW = (grey_HW / white).clip(0, 1)
    curve = profiles.grey_curve(picture) if picture.mode.startswith("I") else None
    if curve is not None:
        grey_HW = np.interp(grey_HW, np.linspace(0, 1, len(curve)), curve).astype(np.float32)
    return torch.from_numpy(grey_HW).mul(2).sub(1).expand(3, *grey_HW.shape).contiguous()[None, :, None]
