"""LoRAs of SVD's U-Net, with diffusers or sgm names. `kinema.checkpoints.lora_formats.Merged` merges them."""

from __future__ import annotations

from pathlib import Path

from kinema.checkpoints.lora_formats import Adapter, read_plain
from kinema.families.svd.config import Config
from kinema.families.svd.layout import SVD, UNET, Outline, table


def read(path: str | Path, outline: Outline = SVD) -> dict[str, Adapter]:
    """Read a plain LoRA file, keyed by module names (``unet.…``). Raises `BadRequest` as `read_plain`."""
    aliases = modules(outline)
    return read_plain(path, aliases.values(), aliases)


def aliases(config: Config) -> dict[str, str]:
    """Map sgm's names of the U-Net's layers to Kinema's; they depend only on the network's depth."""
    plain = len(config.channels) - 1
    return modules(
        Outline(widths=config.channels, resnets=config.layers, attention=(True,) * plain + (False,), depth=1)
    )


def modules(outline: Outline) -> dict[str, str]:
    """Map sgm's names of the U-Net's layers with weights to Kinema's."""
    return {
        row.foreign.removeprefix(UNET).removesuffix(".weight"): row.native[0].removesuffix(".weight")
        for row in table(outline).rows
        if row.foreign.startswith(UNET) and row.foreign.endswith(".weight")
    }
