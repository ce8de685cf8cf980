"""The single-file layout of Stable Diffusion 1.5 and XL (CivitAI's): names, sizes and table rows.

Foreign names are those of ldm and sgm (``model.diffusion_model.…``); native ones are those of a diffusers folder,
prefixed with the component.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from math import gcd
from typing import Any, Protocol

from kinema.checkpoints import ldm
from kinema.checkpoints.declared import MARKS
from kinema.checkpoints.files import Header
from kinema.checkpoints.ldm import layer, prefixed
from kinema.checkpoints.table import Row, count, shape_in

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = "cond_stage_model.transformer."
XL_TEXT = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
HEADS, HEAD = 8, 64
"""Heads at every level of 1.5, channels per head in XL and CLIP; the weights determine neither."""

UNUSED = (
    re.compile(r"model_ema\..*"),
    re.compile(r"(.*\.)?position_ids"),
    re.compile(r"(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|(log_)?betas|logvar|scale_factor"),
    re.compile(r"posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|denoiser\.(log_)?sigmas"),
    re.compile("|".join(map(re.escape, MARKS))),
    re.compile(r"cond_stage_model\.(logit_scale|text_projection)|first_stage_model\.(loss|model_ema)\..*"),
)
"""Unused tensors left over from training: averaged weights, schedules, counters."""


class TextSizes(Protocol):
    """The sizes of a text encoder that rows need."""

    @property
    def width(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def mlp(self) -> int: ...
    @property
    def projection(self) -> int | None: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def length(self) -> int: ...


class ImageSizes(Protocol):
    """The sizes that rows need from the config of a model that contains this image model."""

    @property
    def channels(self) -> tuple[int, ...]: ...
    @property
    def layers(self) -> int: ...
    @property
    def depths(self) -> tuple[int, ...]: ...
    @property
    def context(self) -> int: ...
    @property
    def linear(self) -> bool: ...
    @property
    def size_embedding(self) -> int: ...
    @property
    def pooled(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def vae_channels(self) -> tuple[int, ...]: ...
    @property
    def vae_layers(self) -> int: ...
    @property
    def text(self) -> Sequence[TextSizes]: ...


def is_unused(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in UNUSED)


def usual_name(name: str) -> str:
    """Return a tensor's usual name: some files omit ``text_model.`` in the text encoder."""
    if name.startswith(f"{TEXT}embeddings.") or name.startswith((f"{TEXT}encoder.", f"{TEXT}final_layer_norm.")):
        return f"{TEXT}text_model.{name.removeprefix(TEXT)}"
    return name


def is_image_model(header: Header) -> bool:
    return f"{UNET}input_blocks.0.0.weight" in header and not any(".time_stack." in name for name in header)


def without_unused(header: Header) -> Header:
    """Return a header without unused tensors, under the usual names."""
    return {usual_name(name): entry for name, entry in header.items() if not is_unused(name)}


# ------------------------------------------------------------------------------------------ sizes

_shape = partial(shape_in, "Stable Diffusion")


def unet_sizes(header: Header, xl: bool) -> dict[str, Any]:
    """Infer the sizes of the image U-Net from names and shapes."""
    channels: list[int] = []
    depths: list[int] = []
    layers = run = 0
    for n in range(1, count(header, f"{UNET}input_blocks.")):
        block = f"{UNET}input_blocks.{n}."
        if any(name.startswith(f"{block}0.op.") for name in header):
            layers, run = run, 0
            continue
        if run == 0:
            channels.append(_shape(header, f"{block}0.out_layers.3.weight", 4)[0])
            depths.append(count(header, f"{block}1.transformer_blocks."))
        run += 1
    middle = f"{UNET}middle_block.1."
    context = _shape(header, f"{middle}transformer_blocks.0.attn2.to_k.weight", 2)[1]
    sizes: dict[str, Any] = {
        "in_channels": _shape(header, f"{UNET}input_blocks.0.0.weight", 4)[1],
        "channels": tuple(channels),
        "layers": layers or run,
        "depths": tuple(depths),
        "context": context,
        "linear": len(header[f"{middle}proj_in.weight"][0]) == 2 if f"{middle}proj_in.weight" in header else xl,
    }
    sizes["heads"] = heads_of(sizes["channels"], xl)
    if xl:
        vector = _shape(header, f"{UNET}label_emb.0.0.weight", 2)[1]
        pooled = next((s[1] for name, (s, _) in header.items() if name == f"{XL_TEXT[1]}text_projection"), 1280)
        sizes["size_embedding"] = (vector - pooled) // 6
    return sizes


def heads_of(channels: tuple[int, ...], xl: bool) -> tuple[int, ...]:
    """Return the published numbers of attention heads, or ones that divide the widths of a smaller network."""
    if xl:
        head = gcd(HEAD, *channels)
        return tuple(width // head for width in channels)
    return (gcd(HEADS, *channels),) * len(channels)


def vae_sizes(header: Header) -> dict[str, Any]:
    """Infer the sizes of a KL codec from ldm's names, without a prefix."""
    levels = count(header, "decoder.up.")
    return {
        "vae_channels": tuple(_shape(header, f"decoder.up.{i}.block.0.conv2.weight", 4)[0] for i in range(levels)),
        "vae_layers": count(header, "decoder.up.0.block.") - 1,
        "latent_channels": _shape(header, "decoder.conv_in.weight", 4)[1],
    }


def text_sizes(header: Header, prefix: str) -> dict[str, Any] | None:
    """Infer the sizes of a text encoder from transformers' names after a prefix; None if there is none."""
    tower = f"{prefix}text_model."
    if f"{tower}embeddings.token_embedding.weight" not in header:
        return None
    vocabulary, width = _shape(header, f"{tower}embeddings.token_embedding.weight", 2)
    projection = header.get(f"{prefix}text_projection.weight")
    return {
        "width": width,
        "layers": count(header, f"{tower}encoder.layers."),
        "heads": text_heads(width),
        "mlp": _shape(header, f"{tower}encoder.layers.0.mlp.fc1.weight", 2)[0],
        "projection": projection[0][0] if projection else None,
        "vocabulary": vocabulary,
        "length": _shape(header, f"{tower}embeddings.position_embedding.weight", 2)[0],
    }


def open_clip_sizes(header: Header, prefix: str) -> dict[str, Any] | None:
    """Infer the sizes of a text encoder from OpenCLIP's names after a prefix; None if there is none."""
    if f"{prefix}token_embedding.weight" not in header:
        return None
    vocabulary, width = _shape(header, f"{prefix}token_embedding.weight", 2)
    return {
        "width": width,
        "layers": count(header, f"{prefix}transformer.resblocks."),
        "heads": text_heads(width),
        "mlp": _shape(header, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "projection": _shape(header, f"{prefix}text_projection", 2)[1],
        "vocabulary": vocabulary,
        "length": _shape(header, f"{prefix}positional_embedding", 2)[0],
    }


def text_heads(width: int) -> int:
    """Return the published number of heads of CLIP's text encoders, or one that divides a smaller encoder."""
    return width // gcd(HEAD, width) if width >= HEAD else 2


# ------------------------------------------------------------------------------------------- rows


def rows(c: ImageSizes, *, vae: bool = True, text: bool = True) -> Iterator[Row]:
    """Yield every tensor of a single file with these components."""
    yield from prefixed(UNET, "unet.", unet_rows(c))
    if vae:
        yield from prefixed(VAE, "vae.", vae_rows(c))
    if text:
        yield from text_rows(c)


def vae_rows(c: ImageSizes) -> Iterator[Row]:
    return ldm.autoencoder(c.vae_channels, c.vae_layers, c.latent_channels)


def text_rows(c: ImageSizes) -> Iterator[Row]:
    for n, size in enumerate(c.text):
        sizes = (size.width, size.mlp, size.layers, size.vocabulary, size.length)
        if n == 1:
            yield from prefixed(
                XL_TEXT[1], "text_encoder_2.", ldm.open_clip_text(*sizes, size.projection or size.width)
            )
        else:
            prefix = TEXT if len(c.text) == 1 else XL_TEXT[0]
            yield from prefixed(prefix, "text_encoder.", ldm.hugging_face_text(*sizes))


def unet_rows(c: ImageSizes) -> Iterator[Row]:
    """Yield the image U-Net, without motion modules."""
    deepest = next((depth for depth in reversed(c.depths) if depth), None)
    yield from encoder_rows(c, [depth or None for depth in c.depths], deepest)
    yield from _up(c)
    yield from layer("out.0", "conv_norm_out", c.channels[0])
    yield from layer("out.2", "conv_out", c.latent_channels, c.channels[0], 3, 3)


def encoder_rows(c: ImageSizes, depths: Sequence[int | None], middle: int | None) -> Iterator[Row]:
    """Yield what a ControlNet copies: the input layer, the embeddings, the down blocks and the middle block.

    ``depths`` and ``middle`` are numbers of transformer blocks, None without a transformer.
    """
    base, time, last = c.channels[0], 4 * c.channels[0], len(c.channels) - 1
    yield from layer("input_blocks.0.0", "conv_in", base, c.in_channels, 3, 3)
    embeddings = [("time_embed", "time_embedding", base)]
    if c.size_embedding:
        embeddings.append(("label_emb.0", "add_embedding", 6 * c.size_embedding + c.pooled))
    for foreign, native, into in embeddings:
        yield from layer(f"{foreign}.0", f"{native}.linear_1", time, into)
        yield from layer(f"{foreign}.2", f"{native}.linear_2", time, time)
    n, into = 1, base
    for level, width in enumerate(c.channels):
        native = f"down_blocks.{level}"
        for j in range(c.layers):
            yield from _resnet(f"input_blocks.{n}.0", f"{native}.resnets.{j}", into, width, time)
            yield from _transformer(c, f"input_blocks.{n}.1", f"{native}.attentions.{j}", width, depths[level])
            n, into = n + 1, width
        if level < last:
            yield from layer(f"input_blocks.{n}.0.op", f"{native}.downsamplers.0.conv", width, width, 3, 3)
            n += 1
    yield from _resnet("middle_block.0", "mid_block.resnets.0", into, into, time)
    yield from _transformer(c, "middle_block.1", "mid_block.attentions.0", into, middle)
    yield from _resnet("middle_block.2", "mid_block.resnets.1", into, into, time)


def _up(c: ImageSizes) -> Iterator[Row]:
    into, last, time = c.channels[-1], len(c.channels) - 1, 4 * c.channels[0]
    for level, width in enumerate(reversed(c.channels)):
        native, depth = f"up_blocks.{level}", c.depths[last - level] or None
        skips = [width] * c.layers + [c.channels[max(last - level - 1, 0)]]
        for j, skip in enumerate(skips):
            foreign = f"output_blocks.{level * (c.layers + 1) + j}"
            yield from _resnet(f"{foreign}.0", f"{native}.resnets.{j}", into + skip, width, time)
            into = width
            yield from _transformer(c, f"{foreign}.1", f"{native}.attentions.{j}", width, depth)
            if j == c.layers and level < last:
                place = f"{foreign}.{2 if depth else 1}.conv"
                yield from layer(place, f"{native}.upsamplers.0.conv", width, width, 3, 3)


def _resnet(foreign: str, native: str, into: int, out: int, time: int) -> Iterator[Row]:
    return prefixed(f"{foreign}.", f"{native}.", ldm.resnet(ldm.RESNET, into, out, time))


def _transformer(c: ImageSizes, foreign: str, native: str, width: int, depth: int | None) -> Iterator[Row]:
    if depth is None:
        return
    yield from prefixed(f"{foreign}.", f"{native}.", layer("norm", "norm", width))
    for name in ("proj_in", "proj_out"):
        shape = (width, width) if c.linear else (width, width, 1, 1)
        yield from layer(f"{foreign}.{name}", f"{native}.{name}", *shape)
    for i in range(depth):
        names = (f"{foreign}.transformer_blocks.{i}.", f"{native}.transformer_blocks.{i}.")
        yield from prefixed(*names, ldm.transformer_block(width, c.context))
