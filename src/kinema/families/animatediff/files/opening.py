"""Open single files (as on CivitAI) and diffusers folders, with or without a motion module: config and tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from kinema.bounds import quoted
from kinema.checkpoints.files import Header
from kinema.checkpoints.source import Source
from kinema.checkpoints.stable_diffusion import UNET, VAE, is_unused, usual_name, without_unused
from kinema.checkpoints.table import count
from kinema.conditioning.clip_text import BIG_G, ClipTextSize
from kinema.families.animatediff.config import IMAGE, PRESETS, SDXL_IMAGE, Config
from kinema.families.animatediff.files import layout, motion_file
from kinema.families.animatediff.files.scheduler import marked, scheduled
from kinema.schema import BadRequest
from kinema.system import FoundCheckpoint

PIPELINES = re.compile(r"(StableDiffusion(XL)?|AnimateDiff\w*|LatentConsistencyModel|PIA)Pipeline")
CONV_IN = "unet.conv_in.weight"
MOTION_PART = "motion_adapter"
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""The VAE's attention in diffusers' names until 2023, still found in Stable Diffusion's folders."""


def open_source(source: Source) -> FoundCheckpoint | None:
    """Recognise a source by headers and JSON alone; None if it does not belong to this family.

    Raises `BadRequest` for an image model without matching motion modules, a folder that lacks a part, and a
    ``source.model`` of another shape.
    """
    if source.pipeline:
        return _open_folder(source) if PIPELINES.fullmatch(source.pipeline) else None
    image = layout.recognise(source.header)
    if image is None:
        return None
    image.table.check_foreign({name: shape for name, (shape, _) in without_unused(source.header).items()}, source.name)
    config = replace(image.config, absent=(*(() if image.vae else ("vae",)), *(() if image.text else ("text",))))
    config, notes = marked(config, source)
    return FoundCheckpoint(_as_preset(config, source), notes=notes)


def convert(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the tensors of a single file or a folder's parts to the network's names; unknown keys raise."""
    if any(name.startswith(UNET) for name in tensors):
        image = layout.ImageFile(config, "vae" not in config.absent, "text" not in config.absent)
        image = replace(image, vae=_any(tensors, VAE), text=_any(tensors, "cond"))
        file_tensors = {usual_name(name): tensor for name, tensor in tensors.items() if not is_unused(name)}
        return image.table.forward(file_tensors, "this file")
    native = {native_name(name): tensor for name, tensor in tensors.items() if not is_unused(name)}
    image_part = {name: tensor for name, tensor in native.items() if not _is_motion(name)}
    motion_tensors = {_without_part(name): tensor for name, tensor in native.items() if _is_motion(name)}
    conv_in = native.get(CONV_IN)
    if config.motion == "pia" and conv_in is not None and conv_in.shape[1] > config.in_channels:
        # A U-Net saved by diffusers with PIA: its first layer combines the image model's and PIA's.
        motion_tensors[motion_file.CONV_IN[0]] = conv_in
        image_part[CONV_IN] = conv_in[:, : config.in_channels].contiguous()
    if motion_tensors and (module := motion_file.recognise(_header(motion_tensors))):
        converted = motion_file.convert(module, motion_tensors) | motion_file.first_layer(motion_tensors)
        image_part |= {f"unet.{name}": tensor for name, tensor in converted.items()}
    return image_part


def _any(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) and not is_unused(name) for name in tensors)


def _header(tensors: Mapping[str, Tensor]) -> Header:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _as_preset(config: Config, source: Source) -> Config:
    """Check the config against the published model given by the user."""
    if source.model is None:
        return config
    preset = PRESETS.get(source.model)
    if preset is None or (preset.motion, preset.channels) != (config.motion, config.channels):
        what = "an image model" if config.motion == "none" else f"a model with motion module {config.motion}"
        raise BadRequest(f"{source.path} is {what}; it cannot be opened as {source.model}")
    return config


# ---------------------------------------------------------------------------------------- folders


def _open_folder(source: Source) -> FoundCheckpoint:
    parts = ["unet", "vae", "text_encoder"]
    if (source.path / "text_encoder_2").is_dir():
        parts.append("text_encoder_2")
    source.need(parts)
    header = {native_name(name): entry for name, entry in source.headers(parts).items() if not is_unused(name)}
    if not any(_is_motion(name) for name in header) and (source.path / MOTION_PART).is_dir():
        parts.append(MOTION_PART)
        header |= source.headers([MOTION_PART])
    config = _sized(header, source)
    motion_header = {_without_part(name): entry for name, entry in header.items() if _is_motion(name)}
    if motion_header and config.in_channels == 2 * motion_file.LATENT_CHANNELS + 1:
        motion_header[motion_file.CONV_IN[0]] = header[CONV_IN]
        config = replace(config, in_channels=motion_file.LATENT_CHANNELS)
    notes = _unused_parts(source)
    if motion_header and (module := motion_file.recognise(motion_header, source.name)):
        config, notes = module.into(config), (*module.notes(source.name), *notes)
        heads = source.config("unet").get("motion_num_attention_heads", config.motion_heads)
        config = replace(config, motion_heads=_per_level(heads, 1)[0])
    config, scheduler_notes = scheduled(config, source)
    return FoundCheckpoint(_as_preset(config, source), tuple(parts), (*notes, *scheduler_notes))


def _unused_parts(source: Source) -> tuple[str, ...]:
    """Notes on parts of a pipeline's folder that are only used as add-ons."""
    slots = (("controlnet", "controlnet"), ("image_encoder", "image-encoder"))
    return tuple(
        f"{source.path.name} has a {part} that is not used; to use it, --add {slot}={source.path / part}"
        for part, slot in slots
        if (source.path / part / "config.json").is_file()
    )


def native_name(name: str) -> str:
    """Kinema's name of a tensor in a folder written by an older or newer library."""
    part, _, inner = name.partition(".")
    if part.startswith("text_encoder") and re.match(r"(embeddings|encoder|final_layer_norm)\.", inner):
        return f"{part}.text_model.{inner}"
    if part == "vae":
        for old, new in _OLD_ATTENTION.items():
            name = name.replace(old, new)
    return name


def _is_motion(name: str) -> bool:
    return name.startswith(f"{MOTION_PART}.") or (name.startswith("unet.") and ".motion_modules." in name)


def _without_part(name: str) -> str:
    return name.partition(".")[2]


def _sized(header: Header, source: Source) -> Config:
    """The image model's sizes, from tensors where possible and otherwise from its configs."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in header:
            raise BadRequest(f"{source.path} lacks {name}")
        return header[name][0]

    xl = "unet.add_embedding.linear_1.weight" in header
    base, unet = SDXL_IMAGE if xl else IMAGE, source.config("unet")
    levels = count(header, "unet.down_blocks.")
    channels = tuple(shape(f"unet.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels))
    vae_levels = count(header, "vae.decoder.up_blocks.")
    middle = "unet.mid_block.attentions.0."
    text = tuple(
        _text(header, source, part, size)
        for part, size in zip(("text_encoder", "text_encoder_2")[: 1 + xl], (ClipTextSize(), BIG_G), strict=False)
    )
    config = replace(
        base,
        in_channels=shape("unet.conv_in.weight")[1],
        channels=channels,
        layers=count(header, "unet.down_blocks.0.resnets."),
        depths=tuple(count(header, f"unet.down_blocks.{i}.attentions.0.transformer_blocks.") for i in range(levels)),
        heads=_per_level(unet.get("num_attention_heads") or unet.get("attention_head_dim", 8), levels),
        context=shape(f"{middle}transformer_blocks.0.attn2.to_k.weight")[1],
        linear=len(shape(f"{middle}proj_in.weight")) == 2,
        text=text,
        vae_channels=tuple(
            shape(f"vae.decoder.up_blocks.{vae_levels - 1 - i}.resnets.0.conv2.weight")[0] for i in range(vae_levels)
        ),
        vae_layers=count(header, "vae.encoder.down_blocks.0.resnets."),
        latent_channels=shape("vae.decoder.conv_in.weight")[1],
        latent_scale=float(source.config("vae").get("scaling_factor", base.latent_scale)),
    )
    if xl:
        vector = shape("unet.add_embedding.linear_1.weight")[1]
        config = replace(config, size_embedding=(vector - (text[-1].projection or 0)) // 6)
    return config


def _text(header: Header, source: Source, part: str, base: ClipTextSize) -> ClipTextSize:
    size = layout.text_size(header, f"{part}.", base)
    if size is None:
        raise BadRequest(f"{source.path} lacks {part}.text_model.embeddings.token_embedding.weight")
    config = source.config(part)
    heads, act = int(config.get("num_attention_heads", size.heads)), config.get("hidden_act", size.activation)
    if act not in ("quick_gelu", "gelu"):
        raise BadRequest(f"{source.path}/{part} has hidden_act {quoted(act)}; expected quick_gelu or gelu")
    return replace(size, heads=heads, activation=act)


def _per_level(value: Any, levels: int) -> tuple[int, ...]:
    values = list(value) if isinstance(value, list | tuple) else [value] * levels
    if not all(type(v) is int and v > 0 for v in values):
        raise BadRequest(f"unet/config.json has attention heads {quoted(value)}; expected positive whole numbers")
    return tuple(values)
