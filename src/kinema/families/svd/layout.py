"""The two layouts of Stable Video Diffusion's weights, row by row: sgm's single file and the diffusers folder.

An `Outline` holds the sizes that determine the list of tensors; `rows` generates the list.
``sgm`` names are those of the single file (``model.diffusion_model.…``); ``native`` names are those of the folder with
its components as prefixes (``unet.…``, ``vae.…``, ``image_encoder.…``), which are also Kinema's parameter names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from kinema.checkpoints.keymap import linear_from_conv, permuted
from kinema.checkpoints.table import Row, Table

UNET, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."
CLIP = "conditioner.embedders.0.open_clip.model."
VAE_AT = {"svd": 3, "sv3d": 1}
"""Index of the image's VAE among the conditioners; in SV3D no fps and motion bucket precede it."""


@dataclass(frozen=True)
class Outline:
    """The sizes that a file's keys and shapes determine; the defaults are SVD's."""

    kind: Literal["svd", "sv3d"] = "svd"
    in_channels: int = 8
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    resnets: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    depth: int = 1
    context: int = 1024
    vector: int = 768
    """Width of the scalar embedding: 3×256 (fps, motion bucket, noise), SV3D-u 256, SV3D-p 256 + 2×512."""
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)
    vae_resnets: int = 2
    latent: int = 4
    decoder: Literal["temporal", "image"] = "temporal"
    post_quant: bool = False
    """Whether a 1×1 convolution precedes the decoder (the image decoder's)."""
    clip_width: int = 1280
    clip_hidden: int = 5120
    clip_layers: int = 32
    clip_positions: int = 257
    patch: int = 14
    embedding: int = 1024
    text_width: int = 1024
    text_length: int = 77
    vocabulary: int = 49408

    @property
    def clip_side(self) -> int:
        """Side of CLIP's input image in pixels."""
        return round((self.clip_positions - 1) ** 0.5) * self.patch


SVD = Outline()  # 2,446 tensors in the single file, 9,559,279,140 bytes in fp32
SVD_IMAGE_DECODER = replace(SVD, decoder="image", post_quant=True)
SV3D_U = replace(SVD, kind="sv3d", vector=256, decoder="image")
SV3D_P = replace(SV3D_U, vector=1280)


def table(outline: Outline) -> Table:
    """Build the table of every tensor in both layouts."""
    return Table(rows(outline))


def rows(o: Outline) -> Iterator[Row]:
    yield from _inside(UNET, "unet.", _unet(o))
    yield from _inside(CLIP, "image_encoder.", _clip(o))
    yield from (row.within(CLIP) for row in _text(o))
    first, image = FIRST_STAGE, f"conditioner.embedders.{VAE_AT[o.kind]}.encoder."
    encoder = [*_encoder(o), *_conv("quant_conv", "quant_conv", 2 * o.latent, 2 * o.latent, 1, 1)]
    yield from _inside(image, "vae.", encoder)
    decoder = [*_decoder(o, o.decoder == "temporal"), *(_post_quant(o) if o.post_quant else ())]
    yield from _inside(first, "vae.", decoder)
    # Tensors that the folder does not have: duplicates and unused ones. SV3D's first stage only decodes.
    for row in encoder if o.post_quant else _encoder(o):
        yield row.within(first, "vae.").aside("the first stage's encoder", stand_in=o.kind == "svd")
    for row in [*_decoder(o, temporal=False), *_post_quant(o)]:
        yield row.within(image, "vae.").aside("the conditioner's decoder", stand_in=o.post_quant)


def _inside(sgm: str, native: str, these: Iterator[Row] | list[Row]) -> Iterator[Row]:
    return (row.within(sgm, native) for row in these)


# ---------------------------------------------------------------------------------------- layers


def _layer(sgm: str, native: str, *shape: int) -> Iterator[Row]:
    """A weight of this shape and a bias of its first dimension."""
    yield Row(f"{sgm}.weight", shape, (f"{native}.weight",))
    yield Row(f"{sgm}.bias", shape[:1], (f"{native}.bias",))


_conv = _linear = _norm = _layer


def _as_linear(sgm: str, native: str, width: int) -> Iterator[Row]:
    """A 1×1 convolution in sgm, a linear layer in Kinema."""
    yield Row(f"{sgm}.weight", (width, width, 1, 1), (f"{native}.weight",), linear_from_conv(2))
    yield Row(f"{sgm}.bias", (width,), (f"{native}.bias",))


# ------------------------------------------------------------------------------------------ U-Net

_RESNET = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
_VAE_RESNET = ("norm1", "conv1", "", "norm2", "conv2", "nin_shortcut")


def _resnet(
    names: tuple[str, ...], into: int, out: int, time: int = 0, kernel: tuple[int, ...] = (3, 3)
) -> Iterator[Row]:
    norm1, conv1, embedding, norm2, conv2, shortcut = names
    yield from _norm(norm1, "norm1", into)
    yield from _conv(conv1, "conv1", out, into, *kernel)
    if time:
        yield from _linear(embedding, "time_emb_proj", out, time)
    yield from _norm(norm2, "norm2", out)
    yield from _conv(conv2, "conv2", out, out, *kernel)
    if into != out:
        yield from _conv(shortcut, "conv_shortcut", out, into, 1, 1)


def _video_resnet(o: Outline, sgm: str, native: str, into: int, out: int) -> Iterator[Row]:
    time = 4 * o.widths[0]
    yield from _inside(f"{sgm}.", f"{native}.spatial_res_block.", _resnet(_RESNET, into, out, time))
    stack = _resnet(_RESNET, out, out, time, (3, 1, 1))
    yield from _inside(f"{sgm}.time_stack.", f"{native}.temporal_res_block.", stack)
    yield Row(f"{sgm}.time_mixer.mix_factor", (1,), (f"{native}.time_mixer.mix_factor",))


def _attention(name: str, width: int, context: int) -> Iterator[Row]:
    for which, into in (("q", width), ("k", context), ("v", context)):
        yield Row(f"{name}.to_{which}.weight", (width, into), (f"{name}.to_{which}.weight",))
    yield from _linear(f"{name}.to_out.0", f"{name}.to_out.0", width, width)


def _feed_forward(name: str, width: int) -> Iterator[Row]:
    yield from _linear(f"{name}.net.0.proj", f"{name}.net.0.proj", 8 * width, width)
    yield from _linear(f"{name}.net.2", f"{name}.net.2", width, 4 * width)


def _block(width: int, context: int) -> Iterator[Row]:
    for i in (1, 2, 3):
        yield from _norm(f"norm{i}", f"norm{i}", width)
    yield from _attention("attn1", width, width)
    yield from _attention("attn2", width, context)
    yield from _feed_forward("ff", width)


def _transformer(o: Outline, sgm: str, native: str, width: int) -> Iterator[Row]:
    yield from _inside(f"{sgm}.", f"{native}.", _norm("norm", "norm", width))
    for name in ("proj_in", "proj_out"):
        yield from _linear(f"{sgm}.{name}", f"{native}.{name}", width, width)
    yield from _linear(f"{sgm}.time_pos_embed.0", f"{native}.time_pos_embed.linear_1", 4 * width, width)
    yield from _linear(f"{sgm}.time_pos_embed.2", f"{native}.time_pos_embed.linear_2", width, 4 * width)
    yield Row(f"{sgm}.time_mixer.mix_factor", (1,), (f"{native}.time_mixer.mix_factor",))
    for i in range(o.depth):
        spatial = (f"{sgm}.transformer_blocks.{i}.", f"{native}.transformer_blocks.{i}.")
        temporal = (f"{sgm}.time_stack.{i}.", f"{native}.temporal_transformer_blocks.{i}.")
        yield from _inside(*spatial, _block(width, o.context))
        yield from _inside(*temporal, _block(width, o.context))
        yield from _inside(*temporal, _norm("norm_in", "norm_in", width))
        yield from _inside(*temporal, _feed_forward("ff_in", width))


def _unet(o: Outline) -> Iterator[Row]:
    base, time, last = o.widths[0], 4 * o.widths[0], len(o.widths) - 1
    yield from _conv("input_blocks.0.0", "conv_in", base, o.in_channels, 3, 3)
    for sgm, native, into in (("time_embed", "time_embedding", base), ("label_emb.0", "add_embedding", o.vector)):
        yield from _linear(f"{sgm}.0", f"{native}.linear_1", time, into)
        yield from _linear(f"{sgm}.2", f"{native}.linear_2", time, time)
    n, into, skips = 1, base, [base]
    for level, width in enumerate(o.widths):
        native = f"down_blocks.{level}"
        for j in range(o.resnets):
            yield from _video_resnet(o, f"input_blocks.{n}.0", f"{native}.resnets.{j}", into, width)
            if o.attention[level]:
                yield from _transformer(o, f"input_blocks.{n}.1", f"{native}.attentions.{j}", width)
            n, into = n + 1, width
            skips.append(width)
        if level < last:
            yield from _conv(f"input_blocks.{n}.0.op", f"{native}.downsamplers.0.conv", width, width, 3, 3)
            n += 1
            skips.append(width)
    yield from _video_resnet(o, "middle_block.0", "mid_block.resnets.0", into, into)
    yield from _transformer(o, "middle_block.1", "mid_block.attentions.0", into)
    yield from _video_resnet(o, "middle_block.2", "mid_block.resnets.1", into, into)
    yield from _unet_up(o, into, skips)
    yield from _norm("out.0", "conv_norm_out", base)
    yield from _conv("out.2", "conv_out", o.out_channels, base, 3, 3)


def _unet_up(o: Outline, into: int, skips: list[int]) -> Iterator[Row]:
    last = len(o.widths) - 1
    for level, width in enumerate(reversed(o.widths)):
        native, attends = f"up_blocks.{level}", o.attention[last - level]
        for j in range(o.resnets + 1):
            sgm = f"output_blocks.{level * (o.resnets + 1) + j}"
            yield from _video_resnet(o, f"{sgm}.0", f"{native}.resnets.{j}", into + skips.pop(), width)
            into = width
            if attends:
                yield from _transformer(o, f"{sgm}.1", f"{native}.attentions.{j}", width)
            if j == o.resnets and level < last:
                place = f"{sgm}.{2 if attends else 1}.conv"
                yield from _conv(place, f"{native}.upsamplers.0.conv", width, width, 3, 3)


# -------------------------------------------------------------------------------------------- VAE


def _encoder(o: Outline) -> Iterator[Row]:
    yield from _conv("encoder.conv_in", "encoder.conv_in", o.vae_widths[0], 3, 3, 3)
    into = o.vae_widths[0]
    for level, width in enumerate(o.vae_widths):
        sgm, native = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for j in range(o.vae_resnets):
            yield from _inside(f"{sgm}.block.{j}.", f"{native}.resnets.{j}.", _resnet(_VAE_RESNET, into, width))
            into = width
        if level < len(o.vae_widths) - 1:
            yield from _conv(f"{sgm}.downsample.conv", f"{native}.downsamplers.0.conv", width, width, 3, 3)
    for j in range(2):
        resnet = _resnet(_VAE_RESNET, into, into)
        yield from _inside(f"encoder.mid.block_{j + 1}.", f"encoder.mid_block.resnets.{j}.", resnet)
    yield from _vae_attention("encoder", into)
    yield from _norm("encoder.norm_out", "encoder.conv_norm_out", into)
    yield from _conv("encoder.conv_out", "encoder.conv_out", 2 * o.latent, into, 3, 3)


def _decoder(o: Outline, temporal: bool) -> Iterator[Row]:
    into, last = o.vae_widths[-1], len(o.vae_widths) - 1
    resnet = _vae_video_resnet if temporal else _vae_resnet
    yield from _conv("decoder.conv_in", "decoder.conv_in", into, o.latent, 3, 3)
    # The temporal decoder's middle has two blocks in sgm, and a level's number of layers in diffusers; published sizes
    # agree.
    for j in range(o.vae_resnets if temporal else 2):
        yield from resnet(f"decoder.mid.block_{j + 1}", f"decoder.mid_block.resnets.{j}", into, into)
    yield from _vae_attention("decoder", into)
    for level, width in enumerate(reversed(o.vae_widths)):
        sgm, native = f"decoder.up.{last - level}", f"decoder.up_blocks.{level}"
        for j in range(o.vae_resnets + 1):
            yield from resnet(f"{sgm}.block.{j}", f"{native}.resnets.{j}", into, width)
            into = width
        if level < last:
            yield from _conv(f"{sgm}.upsample.conv", f"{native}.upsamplers.0.conv", width, width, 3, 3)
    yield from _norm("decoder.norm_out", "decoder.conv_norm_out", into)
    yield from _conv("decoder.conv_out", "decoder.conv_out", 3, into, 3, 3)
    if temporal:
        yield from _conv("decoder.conv_out.time_mix_conv", "decoder.time_conv_out", 3, 3, 3, 1, 1)


def _vae_resnet(sgm: str, native: str, into: int, out: int) -> Iterator[Row]:
    return _inside(f"{sgm}.", f"{native}.", _resnet(_VAE_RESNET, into, out))


def _vae_video_resnet(sgm: str, native: str, into: int, out: int) -> Iterator[Row]:
    yield from _inside(f"{sgm}.", f"{native}.spatial_res_block.", _resnet(_VAE_RESNET, into, out))
    stack = _resnet(_RESNET, out, out, kernel=(3, 1, 1))
    yield from _inside(f"{sgm}.time_stack.", f"{native}.temporal_res_block.", stack)
    yield Row(f"{sgm}.mix_factor", (1,), (f"{native}.time_mixer.mix_factor",))


def _vae_attention(coder: str, width: int) -> Iterator[Row]:
    sgm, native = f"{coder}.mid.attn_1", f"{coder}.mid_block.attentions.0"
    yield from _norm(f"{sgm}.norm", f"{native}.group_norm", width)
    for sgm_name, native_name in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        yield from _as_linear(f"{sgm}.{sgm_name}", f"{native}.{native_name}", width)


def _post_quant(o: Outline) -> Iterator[Row]:
    return _conv("post_quant_conv", "post_quant_conv", o.latent, o.latent, 1, 1)


# ------------------------------------------------------------------------------------------- CLIP


def _clip(o: Outline) -> Iterator[Row]:
    width, native = o.clip_width, "vision_model."
    yield Row("visual.class_embedding", (width,), (f"{native}embeddings.class_embedding",))
    yield Row("visual.conv1.weight", (width, 3, o.patch, o.patch), (f"{native}embeddings.patch_embedding.weight",))
    positions = f"{native}embeddings.position_embedding.weight"
    yield Row("visual.positional_embedding", (o.clip_positions, width), (positions,))
    # The misspelling is the published name.
    yield from _norm("visual.ln_pre", f"{native}pre_layrnorm", width)
    for i in range(o.clip_layers):
        layer = _clip_layer(width, o.clip_hidden)
        yield from _inside(f"visual.transformer.resblocks.{i}.", f"{native}encoder.layers.{i}.", layer)
    yield from _norm("visual.ln_post", f"{native}post_layernorm", width)
    yield Row("visual.proj", (width, o.embedding), ("visual_projection.weight",), permuted(1, 0))


def _clip_layer(width: int, hidden: int) -> Iterator[Row]:
    yield from _norm("ln_1", "layer_norm1", width)
    for kind, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
        yield Row(f"attn.in_proj_{kind}", shape, tuple(f"self_attn.{x}_proj.{kind}" for x in "qkv"))
    yield from _linear("attn.out_proj", "self_attn.out_proj", width, width)
    yield from _norm("ln_2", "layer_norm2", width)
    yield from _linear("mlp.c_fc", "mlp.fc1", hidden, width)
    yield from _linear("mlp.c_proj", "mlp.fc2", width, hidden)


def _text(o: Outline) -> Iterator[Row]:
    """Unused remnants of CLIP's text encoder, whose transformer was removed."""
    shapes = {
        "positional_embedding": (o.text_length, o.text_width),
        "text_projection": (o.text_width, o.embedding),
        "logit_scale": (),
        "token_embedding.weight": (o.vocabulary, o.text_width),
        "ln_final.weight": (o.text_width,),
        "ln_final.bias": (o.text_width,),
    }
    for name, shape in shapes.items():
        yield Row(name, shape, group="CLIP's text side")
