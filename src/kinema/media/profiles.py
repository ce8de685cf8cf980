"""Convert images to sRGB by ICC profile or PNG gamma; a damaged profile is ignored."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from kinema.media.colour import over_black
from kinema.media.hdr import srgb_signal

if TYPE_CHECKING:
    from PIL.Image import Image

_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
_OF_MODE = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "LAB"}
"""ICC colour space that a profile must have for an image of this mode."""
_SRGB_GAMMA = 1 / 2.2


def levels(image: Image) -> np.ndarray:
    """Convert an image to uint8 H×W×3 sRGB, alpha over black."""
    info = image.info
    alpha_HW = None
    if image.mode == "La":
        image = image.convert("LA")  # Pillow converts "La" to nothing else
    if image.mode in _ALPHA or "transparency" in info:
        whole = image.convert("RGBA")  # undoes premultiplied alpha (RGBa)
        alpha_HW = np.asarray(whole.getchannel("A"))
        image = whole.convert("L" if image.mode in ("L", "LA", "1") else "RGB")
    elif image.mode not in _OF_MODE:
        image = image.convert("L" if image.mode == "1" else "RGB")
    pixels_HWC = np.asarray(_in_srgb(image, info))
    return pixels_HWC if alpha_HW is None else over_black(np.dstack([pixels_HWC, alpha_HW]))


def grey_curve(image: Image) -> np.ndarray | None:
    """sRGB in 0..1 at 256 even steps of a >8-bit grey signal, or None if the signal is already sRGB."""
    from PIL import Image

    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    srgb_C = np.asarray(_in_srgb(ramp, image.info))[0].mean(axis=-1)
    return None if np.array_equal(srgb_C, np.arange(256)) else srgb_C / 255


def frame_in_srgb(pixels_HWC: np.ndarray, profile: bytes) -> np.ndarray:
    """Convert a uint8 H×W×3 video frame with an ICC profile (empty: none) to sRGB."""
    from PIL import Image

    return np.asarray(_in_srgb(Image.fromarray(pixels_HWC), {"icc_profile": profile})) if profile else pixels_HWC


def _in_srgb(image: Image, info: dict[Any, Any]) -> Image:
    """Convert an image of mode L, RGB, CMYK or LAB to sRGB by ``info`` (Pillow's metadata)."""
    from PIL import ImageCms

    profile = info.get("icc_profile")
    if image.mode == "LAB" or profile:
        # Damaged profiles are common in old files whose pixels are fine.
        try:
            return ImageCms.applyTransform(image, _transform(profile, image.mode)) or image
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    if image.mode == "LAB":
        return ImageCms.applyTransform(image, _transform(None, "LAB")) or image
    gamma = info.get("gamma")
    if not profile and "srgb" not in info and isinstance(gamma, float):
        image = _by_gamma(image, gamma)
    return image.convert("RGB")


@lru_cache(maxsize=8)
def _transform(profile: bytes | None, mode: str) -> Any:
    """Transform from a profile (None is CIE L*a*b*) to sRGB; raises `ValueError` if it does not match the mode."""
    from PIL import ImageCms

    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    source = lab if profile is None else ImageCms.getOpenProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip().upper()
    if space != _OF_MODE[mode]:
        raise ValueError(f"{space} profile on an image of mode {mode}")
    # littlecms's optimized path from grey is off by up to ten levels near black.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)


def _by_gamma(image: Image, gamma: float) -> Image:
    """Apply a PNG's gamma, unless it is close to sRGB's own."""
    if not 0.1 <= gamma <= 2 or abs(gamma / _SRGB_GAMMA - 1) < 0.05:
        return image
    table = (srgb_signal((np.arange(256) / 255) ** (1 / gamma)) * 255).round().astype(np.uint8)
    return image.point(table.tolist() * len(image.getbands()))
