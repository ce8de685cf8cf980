"""Files that `kinema train` wrote, as a source of the other layouts: our names are those of a diffusers folder."""

from __future__ import annotations

from pathlib import Path

from kinema.checkpoints.stream import Stream
from kinema.checkpoints.table import shapes_of
from kinema.families.svd.config import Config
from kinema.families.svd.kinds import kind_of
from kinema.families.svd.layout import Outline, table
from kinema.schema import BadRequest
from kinema.system import family_of


def read(path: Path, variant: str | None = None) -> tuple[Outline, Stream, int] | None:
    """(outline, tensors, frames) of a file with our note, checked from its header; None where it is none of svd.

    Raises BadRequest for a model whose autoencoder and image encoder no other layout has.
    """
    source = Stream(path, variant)
    if "kinema" not in source.metadata:
        return None
    family, config = family_of(source.metadata["kinema"], path.name)
    if family.name != "svd":
        return None
    if kind_of(config).own:
        raise BadRequest(f"{path.name} has an autoencoder of its own, which no other layout has a place for")
    made = outline(config)
    table(made).check_ours(shapes_of(source.header), path.name)
    return made, source, config.frames


def outline(config: Config) -> Outline:
    """The sizes that a list of tensors depends on."""
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
