"""Pictures in sRGB: by their ICC profile in every mode, by the gamma of a PNG; one that is damaged is ignored."""

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
"""Which colours a profile has to describe to be one of a picture in this mode (ICC's signatures)."""
_SRGB_GAMMA = 1 / 2.2


def levels(picture: Image) -> np.ndarray:
    """A picture as uint8 H×W×3 in sRGB, alpha over black."""
    told = picture.info
    alpha_HW = None
    if picture.mode == "La":
        picture = picture.convert("LA")  # the only way that Pillow knows from here
    if picture.mode in _ALPHA or "transparency" in told:
        whole = picture.convert("RGBA")  # divides by an alpha that was multiplied in (RGBa)
        alpha_HW = np.asarray(whole.getchannel("A"))
        picture = whole.convert("L" if picture.mode in ("L", "LA", "1") else "RGB")
    elif picture.mode not in _OF_MODE:
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    pixels_HWC = np.asarray(_in_srgb(picture, told))
    return pixels_HWC if alpha_HW is None else over_black(np.dstack([pixels_HWC, alpha_HW]))


def grey_curve(picture: Image) -> np.ndarray | None:
    """For grey of more than 8 bits: sRGB of 0..1 at 256 even steps of the signal, or None where it is the signal."""
    from PIL import Image

    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    shown_C = np.asarray(_in_srgb(ramp, picture.info))[0].mean(axis=-1)
    return None if np.array_equal(shown_C, np.arange(256)) else shown_C / 255


def frame_in_srgb(pixels_HWC: np.ndarray, profile: bytes) -> np.ndarray:
    """uint8 H×W×3 of a video frame that brings an ICC profile (or none: empty), in sRGB."""
    from PIL import Image

    return np.asarray(_in_srgb(Image.fromarray(pixels_HWC), {"icc_profile": profile})) if profile else pixels_HWC


def _in_srgb(picture: Image, told: dict[Any, Any]) -> Image:
    """A picture of mode L, RGB, CMYK or LAB in RGB and sRGB, by what it was ``told`` (Pillow's ``info``)."""
    from PIL import ImageCms

    profile = told.get("icc_profile")
    if picture.mode == "LAB" or profile:
        # A broken profile is common in old files, and the pixels are still a picture.
        try:
            return ImageCms.applyTransform(picture, _transform(profile, picture.mode)) or picture
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    if picture.mode == "LAB":
        return ImageCms.applyTransform(picture, _transform(None, "LAB")) or picture
    gamma = told.get("gamma")
    if not profile and "srgb" not in told and isinstance(gamma, float):
        picture = _by_gamma(picture, gamma)
    return picture.convert("RGB")


@lru_cache(maxsize=8)
def _transform(profile: bytes | None, mode: str) -> Any:
    """From a profile (None is CIE L*a*b*) to sRGB; a `ValueError` where it is none of this mode."""
    from PIL import ImageCms

    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    source = lab if profile is None else ImageCms.getOpenProfile(io.BytesIO(profile))
    described = source.profile.xcolor_space.strip().upper()
    if described != _OF_MODE[mode]:
        raise ValueError(f"a profile of {described} on a picture of {mode}")
    # As littlecms shortens the way from grey, its darkest levels are off by up to ten.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)


def _by_gamma(picture: Image, gamma: float) -> Image:
    """The colours of a PNG that gives the exponent of its signal, where that is not about sRGB's own."""
    if not 0.1 <= gamma <= 2 or abs(gamma / _SRGB_GAMMA - 1) < 0.05:
        return picture
    table = (srgb_signal((np.arange(256) / 255) ** (1 / gamma)) * 255).round().astype(np.uint8)
    return picture.point(table.tolist() * len(picture.getbands()))
