"""Read weight files written by `kinema train` for conversion; their tensor names are those of a diffusers folder."""

from __future__ import annotations

from pathlib import Path

from kinema.checkpoints.stream import Stream
from kinema.checkpoints.table import shapes_of
from kinema.families.svd.config import Config
from kinema.families.svd.kinds import kind_of
from kinema.families.svd.layout import Outline, table
from kinema.schema import BadRequest
from kinema.system import parse_metadata


def read(path: Path, variant: str | None = None) -> tuple[Outline, Stream, int] | None:
    """Return (outline, tensors, frames) of a Kinema file, checked from its header; None for other files.

    Raises BadRequest for a model whose autoencoder and image encoder exist in no foreign layout.
    """
    source = Stream(path, variant)
    if "kinema" not in source.metadata:
        return None
    family, config = parse_metadata(source.metadata["kinema"], path.name)
    if family.name != "svd":
        return None
    if kind_of(config).custom_encoders:
        raise BadRequest(f"{path.name} cannot be converted: no other layout supports its autoencoder")
    sizes = outline(config)
    table(sizes).check_native(shapes_of(source.header), path.name)
    return sizes, source, config.frames


def outline(config: Config) -> Outline:
    """Return the sizes that determine the list of tensors."""
    return Outline(
        kind="sv3d" if config.orbit else "svd",
        in_channels=2 * config.latent_channels,
        out_channels=config.latent_channels,
        widths=config.channels,
        resnets=config.layers,
        attention=(*(True for _ in config.channels[1:]), False),
        depth=1,
        context=config.context,
        vector=sum(width for _, width in config.scalars),
        vae_widths=config.vae_channels,
        vae_resnets=config.vae_layers,
        latent=config.latent_channels,
        decoder=config.decoder,
        post_quant=config.post_quant,
        clip_width=config.clip_width,
        clip_hidden=config.clip_mlp,
        clip_layers=config.clip_layers,
        clip_positions=(config.clip_side // config.clip_patch) ** 2 + 1,
        patch=config.clip_patch,
        embedding=config.context,
    )
