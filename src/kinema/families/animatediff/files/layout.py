"""Recognise the image model in a single file of Stable Diffusion."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kinema.checkpoints import stable_diffusion
from kinema.checkpoints.files import Header
from kinema.checkpoints.stable_diffusion import (
    TEXT,
    UNET,
    VAE,
    XL_TEXT,
    is_image_model,
    open_clip_sizes,
    text_sizes,
    unet_sizes,
    vae_sizes,
    without_unused,
)
from kinema.checkpoints.table import Table
from kinema.conditioning.clip_text import ClipTextSize
from kinema.families.animatediff.config import IMAGE, SDXL_IMAGE, Config
from kinema.schema import BadRequest


@dataclass(frozen=True)
class ImageFile:
    """A recognised single file: the image model's config, and whether it contains a VAE and text encoders."""

    config: Config
    vae: bool
    text: bool

    @property
    def table(self) -> Table:
        return Table(stable_diffusion.rows(self.config, vae=self.vae, text=self.text))


def recognise(header: Header) -> ImageFile | None:
    """Recognise an image model by keys and shapes; None for a file without an image U-Net.

    Raises `BadRequest` naming the model if no motion modules exist for it.
    """
    header = without_unused(header)
    if not is_image_model(header):
        return None
    xl = f"{UNET}label_emb.0.0.weight" in header
    sizes = unet_sizes(header, xl)
    if sizes["in_channels"] != 4:
        what = {9: "an inpainting", 8: "an instruction"}.get(sizes["in_channels"], "another")
        raise BadRequest(f"this is {what} model of Stable Diffusion ({sizes['in_channels']} channels); expected 4")
    if not xl and (any(name.startswith("cond_stage_model.model.") for name in header) or sizes["linear"]):
        raise BadRequest("this is Stable Diffusion 2; motion modules exist for Stable Diffusion 1.5 and XL")
    base = SDXL_IMAGE if xl else IMAGE
    vae = any(name.startswith(f"{VAE}decoder.") for name in header)
    if vae:
        sizes |= vae_sizes({name.removeprefix(VAE): entry for name, entry in header.items() if name.startswith(VAE)})
    text = text_encoders(header, xl)
    if text:
        sizes["text"] = text
    return ImageFile(replace(base, **sizes), vae, bool(text))


def text_size(header: Header, prefix: str, base: ClipTextSize) -> ClipTextSize | None:
    """Size of the text encoder behind a prefix in transformers' layout; None if there is none."""
    sizes = text_sizes(header, prefix)
    return replace(base, **sizes) if sizes else None


def text_encoders(header: Header, xl: bool) -> tuple[ClipTextSize, ...]:
    """Sizes of the text encoders of a single file; empty if it lacks one."""
    if not xl:
        only = text_size(header, TEXT, IMAGE.text[0])
        return (only,) if only else ()
    first = text_size(header, XL_TEXT[0], SDXL_IMAGE.text[0])
    second = open_clip_sizes(header, XL_TEXT[1]) if first else None
    return (first, replace(SDXL_IMAGE.text[1], **second)) if first and second else ()
