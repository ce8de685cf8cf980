"""Add-on slots of an image model: motion module, VAE, control networks, image prompts and style."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from kinema.checkpoints import ldm, stable_diffusion
from kinema.checkpoints.files import Header
from kinema.checkpoints.lora_formats import is_lora
from kinema.checkpoints.signatures import describe
from kinema.checkpoints.source import Source
from kinema.checkpoints.table import Table, count
from kinema.families.animatediff.config import IMAGE, Config
from kinema.families.animatediff.control import sparse
from kinema.families.animatediff.files import controlnet_file, ip_adapter_file, layout, motion_file
from kinema.families.animatediff.unet import UNet
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest
from kinema.system import FoundCheckpoint


class Slots:
    """AnimateDiff's add-on slots, as used by `kinema.system.open_system`."""

    names: tuple[str, ...] = (
        "motion", "vae", "text", "sparsectrl", "controlnet", "ip-adapter", "image-encoder", "style",
    )  # fmt: skip

    def open(self, config: Config, slot: str, source: Source) -> FoundCheckpoint:
        """Add a file to the config; raises `BadRequest` naming what the file is if it does not fit the slot.

        ``controlnet`` and ``ip-adapter`` can be added several times, with names: ``controlnet.depth``.
        """
        kind, name = _split_slot(slot)
        if kind in SEVERAL:
            return {"controlnet": _open_control, "ip-adapter": _open_adapter}[kind](config, source, name)
        if name != kind:
            raise BadRequest(f"{kind} takes no name; give --add {kind}=FILE")
        opens = {
            "motion": _open_motion,
            "vae": _open_vae,
            "text": _open_text,
            "sparsectrl": _open_sparse,
            "image-encoder": _open_vision,
            "style": _open_style,
        }
        return opens[kind](config, source)

    def convert(self, config: Config, slot: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert an add-on's tensors to the network's names."""
        kind, name = _split_slot(slot)
        if kind in SEVERAL:
            return {"controlnet": _control, "ip-adapter": _adapter}[kind](config, name, tensors)
        if kind == "text":
            return _text(config, tensors)
        convert = {"motion": _motion, "vae": _vae, "sparsectrl": _sparse, "image-encoder": _vision, "style": _style}
        return convert[kind](tensors)


SLOTS = Slots()
SEVERAL = ("controlnet", "ip-adapter")


def _split_slot(slot: str) -> tuple[str, str]:
    """Split ``controlnet.depth`` into kind and name; the default name is the kind."""
    kind, dot, name = slot.partition(".")
    name = name.replace("-", "_")
    if dot and not re.fullmatch(r"\w+", name):
        raise BadRequest(f"{slot!r} has an invalid name; expected letters and digits, such as {kind}.depth")
    return kind, name if dot else kind.replace("-", "_") if kind in SEVERAL else kind


def _wrong_file(source: Source, expected: str) -> BadRequest:
    advice = " (--lora FILE)" if is_lora(source.header) else ""
    return BadRequest(f"{source.path} is {kind_of(source)}{advice}; expected {expected}")


def kind_of(source: Source) -> str:
    """Describe a file for error messages."""
    header = source.header
    if sparse_file := sparse.recognise(header):
        return f"SparseCtrl for {'frames' if sparse_file.kind == 'rgb' else 'scribbles'} (--add sparsectrl=FILE)"
    if other := controlnet_file.other_kind(header):
        return f"{other}, which is not supported"
    if controlnet_file.is_control(header):
        return "a ControlNet (--add controlnet=FILE)"
    if ip_adapter_file.is_adapter(header):
        return "an IP-Adapter (--add ip-adapter=FILE)"
    if stable_diffusion.is_image_model(source.header):
        return "an image model of Stable Diffusion"
    return describe(source)


def _header(tensors: Mapping[str, Tensor]) -> Header:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


# ----------------------------------------------------------------------------------------- motion


def _open_motion(config: Config, source: Source) -> FoundCheckpoint:
    header, left = _motion_part(source.header)
    module = motion_file.recognise(header, source.name)
    if module is None:
        raise _wrong_file(source, "a motion module")
    if config.motion != "none":
        raise BadRequest(f"the model already has motion module {config.motion}; add motion to an image model")
    notes = (*module.notes(source.name), *motion_file.left_note(source.name, header, left))
    return FoundCheckpoint(module.into(config), notes=notes)


def _motion_part(header: Header) -> tuple[Header, list[str]]:
    """The motion modules in a file; SparseCtrl, which has some of its own, stays whole."""
    return (header, []) if sparse.recognise(header) else motion_file.part_of(header)


def _motion(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    header, _ = _motion_part(_header(tensors))
    module = motion_file.recognise(header)
    assert module is not None  # recognised when the model was opened
    tensors = {name: tensors[name] for name in header}
    converted = motion_file.convert(module, tensors) | motion_file.first_layer(tensors)
    return {f"unet.{name}": tensor for name, tensor in converted.items()}


# ------------------------------------------------------------------------------------- SparseCtrl


def _open_sparse(config: Config, source: Source) -> FoundCheckpoint:
    sparse_file = sparse.recognise(source.header)
    if sparse_file is None:
        raise _wrong_file(source, "SparseCtrl")
    return FoundCheckpoint(sparse_file.into(config))


def _sparse(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"sparse.{name}": tensor for name, tensor in sparse.convert(tensors).items()}


# ------------------------------------------------------------------------------------- ControlNet


def _open_control(config: Config, source: Source, name: str) -> FoundCheckpoint:
    control = controlnet_file.recognise(source.header, source.config(""), source.name)
    if control is None:
        raise _wrong_file(source, "a ControlNet")
    return FoundCheckpoint(control.into(config, name), notes=tuple(f"{source.name}: {note}" for note in control.notes))


def _control(config: Config, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    control = controlnet_file.recognise(_header(tensors))
    assert control is not None
    index = [net.name for net in config.controls].index(name)
    return {f"controls.{index}.{key}": tensor for key, tensor in controlnet_file.convert(control, tensors).items()}


# ------------------------------------------------------------------------- IP-Adapter and its encoder


def _open_adapter(config: Config, source: Source, name: str) -> FoundCheckpoint:
    adapter_file = ip_adapter_file.recognise(source.header)
    if adapter_file is None:
        raise _wrong_file(source, "an IP-Adapter")
    return FoundCheckpoint(adapter_file.into(config, name))


def _adapter(config: Config, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    adapter_file = ip_adapter_file.recognise(_header(tensors))
    assert adapter_file is not None
    index = [adapter.name for adapter in config.adapters].index(name)
    converted = ip_adapter_file.convert(adapter_file, config, index, tensors)
    return {f"unet.{key}": tensor for key, tensor in converted.items()}


def _open_vision(config: Config, source: Source) -> FoundCheckpoint:
    size = ip_adapter_file.vision(source.header, source.config(""))
    if size is None:
        raise _wrong_file(source, "a CLIP image encoder")
    config = replace(config, vision=size)
    ip_adapter_file.check_fit(config)
    return FoundCheckpoint(config)


def _vision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"image_encoder.{key}": t for key, t in tensors.items() if not key.endswith("position_ids")}


# ------------------------------------------------------------------------------------------ style


def _open_style(config: Config, source: Source) -> FoundCheckpoint:
    """A style replaces layers of the U-Net with fine-tuned ones."""
    with on_meta():
        known = {f"unet.{name}": tuple(p.shape) for name, p in UNet(config).named_parameters()}
    shapes = {name: shape for name, (shape, _) in source.header.items()}
    if not shapes or any(known.get(name) != shape for name, shape in shapes.items()):
        raise _wrong_file(source, "a style of this model")
    return FoundCheckpoint(config)


def _style(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(tensors)


# -------------------------------------------------------------------------------------------- VAE


def _open_vae(config: Config, source: Source) -> FoundCheckpoint:
    header = {
        _bare(name): entry for name, entry in source.header.items() if not stable_diffusion.is_unused(_prefixed(name))
    }
    if "decoder.conv_in.weight" not in header or "encoder.conv_in.weight" not in header:
        raise _wrong_file(source, "a VAE")
    sizes = stable_diffusion.vae_sizes(header) if _is_ldm(header) else _vae_sizes(header)
    differ = {name: value for name, value in sizes.items() if getattr(config, name) != value}
    if differ and "vae" not in config.absent:
        name, value = next(iter(differ.items()))
        raise BadRequest(f"{source.path} is a VAE with {name} {value}; the model needs {getattr(config, name)}")
    if sizes["latent_channels"] != config.latent_channels:
        own, needed = sizes["latent_channels"], config.latent_channels
        raise BadRequest(f"{source.path} is a VAE with {own} latent channels; the U-Net needs {needed}")
    return FoundCheckpoint(replace(config, **sizes, absent=tuple(part for part in config.absent if part != "vae")))


def _vae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {_bare(name): tensor for name, tensor in tensors.items() if not stable_diffusion.is_unused(_prefixed(name))}
    header = _header(named)
    if not _is_ldm(header):
        return {f"vae.{name}": tensor for name, tensor in named.items()}
    sizes = stable_diffusion.vae_sizes(header)
    rows = ldm.autoencoder(sizes["vae_channels"], sizes["vae_layers"], sizes["latent_channels"])
    converted = Table(rows).forward(named, "this VAE")
    return {f"vae.{name}": tensor for name, tensor in converted.items()}


# --------------------------------------------------------------------------------- text encoders


def _open_text(config: Config, source: Source) -> FoundCheckpoint:
    """The text encoders of a single file, or CLIP-L alone, for a file that has only a U-Net."""
    xl = bool(config.size_embedding)
    header = stable_diffusion.without_unused(source.header)
    found = layout.text_encoders(header, xl)
    if not found and not xl and (alone := layout.text_size(header, "", IMAGE.text[0])):
        found = (alone,)
    if not found:
        raise _wrong_file(source, f"the text encoder{'s' * xl} of this model")
    if (width := sum(size.width for size in found)) != config.context:
        raise BadRequest(f"{source.path} encodes prompts in {width} numbers; the U-Net takes {config.context}")
    return FoundCheckpoint(replace(config, text=found, absent=tuple(part for part in config.absent if part != "text")))


def _text(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {
        stable_diffusion.usual_name(name): tensor
        for name, tensor in tensors.items()
        if not stable_diffusion.is_unused(name)
    }
    if "text_model.embeddings.token_embedding.weight" in named:
        return {f"text_encoder.{name}": tensor for name, tensor in named.items()}
    kept = {name: tensor for name, tensor in named.items() if name.startswith(("cond_stage_model.", "conditioner."))}
    return Table(stable_diffusion.text_rows(config)).forward(kept, "this text encoder")


def _is_ldm(header: Header) -> bool:
    return any(name.startswith("decoder.up.") for name in header)


def _bare(name: str) -> str:
    return name.removeprefix(stable_diffusion.VAE)


def _prefixed(name: str) -> str:
    return name if name.startswith((stable_diffusion.VAE, "model_ema.")) else stable_diffusion.VAE + name


def _vae_sizes(header: Header) -> dict[str, object]:
    """Sizes of a VAE in diffusers' layout."""
    levels = count(header, "decoder.up_blocks.")
    last = levels - 1
    return {
        "vae_channels": tuple(
            header[f"decoder.up_blocks.{last - i}.resnets.0.conv2.weight"][0][0] for i in range(levels)
        ),
        "vae_layers": count(header, "encoder.down_blocks.0.resnets."),
        "latent_channels": header["decoder.conv_in.weight"][0][1],
    }
