"""From a file or folder to a configuration and to tensors under our names: Open-Sora's single file of the transformer,
in any layout, and a folder as diffusers lays them out.

Its VAE is a file of its own, which is found next to the transformer's. Nothing in the weights tells the size of clips:
that is of the published model (256 px unless the user names another).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from kinema.checkpoints.source import Source
from kinema.checkpoints.table import shapes_of
from kinema.families.opensora.config import PRESETS, VAE, Config
from kinema.families.opensora.files import transformer_file, vae_file
from kinema.families.opensora.files.transformer_file import TransformerFile
from kinema.families.opensora.mmdit import MMDiTConfig
from kinema.schema import BadRequest
from kinema.system import FoundCheckpoint

PIPELINE = "OpenSoraPipeline"
"""The class that our folders name; diffusers itself has no pipeline of Open-Sora 2.0."""
TRANSFORMER, CODEC = "transformer", "vae"
PUBLISHED = {"hunyuan": "v2", "dc-ae": "v2-dc-ae"}
ASSUMED_ADJACENT = "its queries and keys are assumed to have Flux's rotary layout, since no tensor records it"


def open_source(source: Source) -> FoundCheckpoint | None:
    """What Open-Sora 2.0 recognises in a source, by headers and JSON alone; None when it is not of this family.

    Raises `BadRequest` for a folder that lacks a part, tensors that do not fit each other, and a ``source.model`` of
    another shape.
    """
    if source.pipeline:
        return _open_folder(source) if source.pipeline == PIPELINE else None
    if transformer_file.is_flux(source.header):
        return None
    file = transformer_file.recognise(source.header, source.metadata)
    if file is None:
        return None
    check(file, source)
    config = replace(_published(file.config, source), absent=("vae",))
    assumed = file.kind == "fused" and transformer_file.ROPE_NOTE not in source.metadata
    notes = (f"{source.name} has fused layers; {ASSUMED_ADJACENT}",) if assumed else ()
    return FoundCheckpoint(config, notes=notes, beside=beside(source.path, config.vae))


def check(file: TransformerFile, source: Source, where: str = "") -> None:
    """Raises BadRequest for tensors that are missing or left over, and for a model that takes guidance as an input."""
    if file.config.guided:
        raise BadRequest(
            f"{source.path} takes the guidance scale as an input (guidance_in), as distilled models do; "
            "Open-Sora 2.0 does not"
        )
    header = source.headers([TRANSFORMER]) if source.pipeline else source.header
    shapes = {name.removeprefix(f"{TRANSFORMER}."): shape for name, shape in shapes_of(header).items()}
    file.check(shapes, where or source.path.name)


def beside(path: Path, kind: VAE) -> dict[str, Path]:
    """The VAE's file next to a transformer's, by its published name; none where it is not there."""
    file = (path if path.is_dir() else path.parent) / vae_file.FILES[kind]
    return {"vae": file} if file.is_file() else {}


def lacking(config: Config) -> str:
    """What to do about a VAE that is not there."""
    file, repository = vae_file.FILES[config.vae], vae_file.REPOSITORIES[config.vae]
    return (
        f"this model has no VAE, as {file} is not next to its file: put it there, or add one "
        f"(--add vae=FILE, or --add vae={repository}/{file} from the hub)"
    )


def _published(transformer: MMDiTConfig, source: Source) -> Config:
    """The sampling of a published model with the sizes of this transformer."""
    kind: VAE = "dc-ae" if transformer.patch == 1 else "hunyuan"
    preset = PRESETS.get(source.model or PUBLISHED[kind])
    if preset is None or preset.words or preset.vae != kind:
        its = f"a token is {transformer.channels} channels of {transformer.patch}×{transformer.patch} latent cells"
        raise BadRequest(f"{source.path} cannot be {source.model}: {its}")
    return replace(preset, transformer=transformer)


def _open_folder(source: Source) -> FoundCheckpoint:
    has_vae = (source.path / CODEC).is_dir()
    parts = (TRANSFORMER, CODEC) if has_vae else (TRANSFORMER,)
    source.need(parts)
    file = folder_file(source)
    if file is None or not file.config.conditioned:
        raise BadRequest(f"{source.path}/{TRANSFORMER} is not a transformer of Open-Sora 2.0, or lacks cond_in")
    check(file, source, f"{source.path.name}/{TRANSFORMER}")
    config = _published(file.config, source)
    if not has_vae:
        return FoundCheckpoint(replace(config, absent=("vae",)), parts, beside=beside(source.path, config.vae))
    inner = Source(source.path / CODEC, source.variant)
    vae = vae_file.recognise(inner.header, source.config(CODEC))
    if vae is None or vae.kind != config.vae or vae.latent != config.transformer.channels:
        raise BadRequest(f"{source.path}/{CODEC} is not {vae_file.TITLES[config.vae]}, which the transformer needs")
    vae.check(inner.header, f"{source.path.name}/{CODEC}")
    return FoundCheckpoint(vae.into(config), parts)


def folder_file(source: Source) -> TransformerFile | None:
    """The layout of a folder's transformer."""
    inner = Source(source.path / TRANSFORMER, source.variant)
    return transformer_file.recognise(inner.header, inner.metadata)


def convert(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a single file, or of a folder's parts, under the network's names; every key used or named."""
    inner = {name: x for name, x in tensors.items() if not name.startswith(f"{CODEC}.")}
    codec = {name: x for name, x in tensors.items() if name.startswith(f"{CODEC}.")}
    named = {name.removeprefix(f"{TRANSFORMER}."): x for name, x in inner.items()}
    header = {name: (tuple(x.shape), x.dtype) for name, x in named.items()}
    kind = transformer_file.kind_of(header)
    assert kind is not None  # it was recognised when the model was opened
    file = TransformerFile(config.transformer, kind, config.transformer.rope)
    return {f"{TRANSFORMER}.{name}": x for name, x in file.to_ours(named, "this file").items()} | codec
