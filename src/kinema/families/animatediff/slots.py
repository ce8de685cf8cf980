"""What can be added to an image model at opening: a motion module, another VAE, SparseCtrl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from kinema.checkpoints import ldm
from kinema.checkpoints.files import Header
from kinema.checkpoints.signatures import describe
from kinema.checkpoints.source import Source
from kinema.checkpoints.table import Table
from kinema.families.animatediff import layout, motion_file, sparse
from kinema.families.animatediff.config import Config
from kinema.schema import BadRequest
from kinema.system import Found


class Slots:
    """What `kinema.system.open_system` asks of a family that takes additions."""

    names = ("motion", "vae", "sparsectrl")

    def open(self, config: Config, slot: str, source: Source) -> Found:
        """The config with this in it. Raises `BadRequest` for what does not belong there, and says what it is."""
        return {"motion": _open_motion, "vae": _open_vae, "sparsectrl": _open_sparse}[slot](config, source)

    def convert(self, config: Config, slot: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """Its tensors under the network's names."""
        return {"motion": _motion, "vae": _vae, "sparsectrl": _sparse}[slot](tensors)


SLOTS = Slots()


def _wrong(source: Source, wanted: str) -> BadRequest:
    return BadRequest(f"{source.path} is no {wanted}: it is {kind_of(source)}")


def kind_of(source: Source) -> str:
    """What a file is, as people of this family call it."""
    if told := sparse.recognise(source.header):
        return f"SparseCtrl for {'frames' if told.kind == 'rgb' else 'scribbles'} (add sparsectrl=FILE)"
    if layout.is_image_model(source.header):
        return "an image model of Stable Diffusion"
    return describe(source)


def _header(tensors: Mapping[str, Tensor]) -> Header:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


# ----------------------------------------------------------------------------------------- motion


def _open_motion(config: Config, source: Source) -> Found:
    told = motion_file.recognise(source.header, source.name)
    if told is None:
        raise _wrong(source, "motion module")
    if config.motion != "none":
        raise BadRequest(f"the model has the motion module {config.motion} already; add one to an image model")
    return Found(told.into(config))


def _motion(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    told = motion_file.recognise(_header(tensors))
    assert told is not None  # it was when the model was opened
    return {f"unet.{name}": tensor for name, tensor in motion_file.convert(told, tensors).items()}


# ------------------------------------------------------------------------------------- SparseCtrl


def _open_sparse(config: Config, source: Source) -> Found:
    told = sparse.recognise(source.header)
    if told is None:
        raise _wrong(source, "SparseCtrl")
    return Found(told.into(config))


def _sparse(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"sparse.{name}": tensor for name, tensor in sparse.convert(tensors).items()}


# -------------------------------------------------------------------------------------------- VAE


def _open_vae(config: Config, source: Source) -> Found:
    header = {_bare(name): entry for name, entry in source.header.items() if not layout.is_unused(_prefixed(name))}
    if "decoder.conv_in.weight" not in header or "encoder.conv_in.weight" not in header:
        raise _wrong(source, "VAE")
    sizes = layout.vae_sizes(header) if _is_ldm(header) else _vae_sizes(header)
    differ = {name: value for name, value in sizes.items() if getattr(config, name) != value}
    if differ and "vae" not in config.absent:
        name, value = next(iter(differ.items()))
        raise BadRequest(f"{source.path} is a VAE with {name} {value}; the model's has {getattr(config, name)}")
    if sizes["latent_channels"] != config.latent_channels:
        theirs, ours = sizes["latent_channels"], config.latent_channels
        raise BadRequest(f"{source.path} is a VAE of {theirs} latent channels; the U-Net has {ours}")
    return Found(replace(config, **sizes, absent=tuple(part for part in config.absent if part != "vae")))


def _vae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {_bare(name): tensor for name, tensor in tensors.items() if not layout.is_unused(_prefixed(name))}
    header = _header(named)
    if not _is_ldm(header):
        return {f"vae.{name}": tensor for name, tensor in named.items()}
    sizes = layout.vae_sizes(header)
    rows = ldm.autoencoder(sizes["vae_channels"], sizes["vae_layers"], sizes["latent_channels"])
    made = Table(rows).forward(named, "this VAE")
    return {f"vae.{name}": tensor for name, tensor in made.items()}


def _is_ldm(header: Header) -> bool:
    return any(name.startswith("decoder.up.") for name in header)


def _bare(name: str) -> str:
    return name.removeprefix(layout.VAE)


def _prefixed(name: str) -> str:
    return name if name.startswith((layout.VAE, "model_ema.")) else layout.VAE + name


def _vae_sizes(header: Header) -> dict[str, object]:
    """Sizes of a codec under diffusers' names."""
    levels = layout.count(header, "decoder.up_blocks.")
    last = levels - 1
    return {
        "vae_channels": tuple(
            header[f"decoder.up_blocks.{last - i}.resnets.0.conv2.weight"][0][0] for i in range(levels)
        ),
        "vae_layers": layout.count(header, "encoder.down_blocks.0.resnets."),
        "latent_channels": header["decoder.conv_in.weight"][0][1],
    }
