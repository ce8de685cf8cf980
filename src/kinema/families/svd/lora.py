"""LoRAs of SVD's U-Net, under the names of diffusers or of sgm. Merging is `kinema.checkpoints.lora_formats.Merged`."""

from __future__ import annotations

from pathlib import Path

from kinema.checkpoints.lora_formats import Adapter, read_lora
from kinema.families.svd.config import Config
from kinema.families.svd.layout import SVD, UNET, Outline, table


def read(path: str | Path, outline: Outline = SVD) -> dict[str, Adapter]:
    """A LoRA file by our module names (``unet.…``). Raises `BadRequest` for any tensor that fits no layer."""
    aliases = modules(outline)
    return read_lora(path, aliases.values(), aliases)


def aliases(config: Config) -> dict[str, str]:
    """sgm's names of the U-Net's layers to ours; the depth of the network is all that they depend on."""
    plain = len(config.channels) - 1
    return modules(
        Outline(widths=config.channels, resnets=config.layers, attention=(True,) * plain + (False,), depth=1)
    )


def modules(outline: Outline) -> dict[str, str]:
    """The U-Net's layers with a matrix or kernel: sgm's name to ours."""
    return {
        row.theirs.removeprefix(UNET).removesuffix(".weight"): row.ours[0].removesuffix(".weight")
        for row in table(outline).rows
        if row.theirs.startswith(UNET) and row.theirs.endswith(".weight") and len(row.shape) > 1
    }
