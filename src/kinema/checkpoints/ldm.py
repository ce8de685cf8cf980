"""Rows of the single-file layouts of latent diffusion (Rombach et al. 2022) that several models share.

Theirs is the authors' code (ldm, sgm, OpenCLIP); ours has the names of diffusers and transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kinema.checkpoints.keymap import linear_from_conv, permuted
from kinema.checkpoints.table import Row

RESNET = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
VAE_RESNET = ("norm1", "conv1", "", "norm2", "conv2", "nin_shortcut")


def inside(theirs: str, ours: str, these: Iterable[Row]) -> Iterator[Row]:
    return (row.within(theirs, ours) for row in these)


def layer(theirs: str, ours: str, *shape: int) -> Iterator[Row]:
    """A weight of this shape and a bias as long as its first axis."""
    yield Row(f"{theirs}.weight", shape, (f"{ours}.weight",))
    yield Row(f"{theirs}.bias", shape[:1], (f"{ours}.bias",))


def as_linear(theirs: str, ours: str, width: int) -> Iterator[Row]:
    """A 1×1 convolution there, a linear layer here."""
    yield Row(f"{theirs}.weight", (width, width, 1, 1), (f"{ours}.weight",), linear_from_conv(2))
    yield Row(f"{theirs}.bias", (width,), (f"{ours}.bias",))


def resnet(names: Sequence[str], into: int, out: int, time: int = 0) -> Iterator[Row]:
    """A residual block; ``time`` is the width of the embedded noise level, 0 without."""
    norm1, conv1, embedding, norm2, conv2, shortcut = names
    yield from layer(norm1, "norm1", into)
    yield from layer(conv1, "conv1", out, into, 3, 3)
    if time:
        yield from layer(embedding, "time_emb_proj", out, time)
    yield from layer(norm2, "norm2", out)
    yield from layer(conv2, "conv2", out, out, 3, 3)
    if into != out:
        yield from layer(shortcut, "conv_shortcut", out, into, 1, 1)


def transformer_block(width: int, context: int) -> Iterator[Row]:
    for i in (1, 2, 3):
        yield from layer(f"norm{i}", f"norm{i}", width)
    for name, source in (("attn1", width), ("attn2", context)):
        for which, into in (("q", width), ("k", source), ("v", source)):
            yield Row(f"{name}.to_{which}.weight", (width, into), (f"{name}.to_{which}.weight",))
        yield from layer(f"{name}.to_out.0", f"{name}.to_out.0", width, width)
    yield from layer("ff.net.0.proj", "ff.net.0.proj", 8 * width, width)
    yield from layer("ff.net.2", "ff.net.2", width, 4 * width)


# --------------------------------------------------------------------------------------------- VAE


def autoencoder(widths: Sequence[int], resnets: int, latent: int) -> Iterator[Row]:
    """The KL codec of images, `kinema.vae.kl2d.Autoencoder`: 248 tensors as published."""
    yield from _encoder(widths, resnets, latent)
    yield from _decoder(widths, resnets, latent)
    yield from layer("quant_conv", "quant_conv", 2 * latent, 2 * latent, 1, 1)
    yield from layer("post_quant_conv", "post_quant_conv", latent, latent, 1, 1)


def _encoder(widths: Sequence[int], resnets: int, latent: int) -> Iterator[Row]:
    yield from layer("encoder.conv_in", "encoder.conv_in", widths[0], 3, 3, 3)
    into = widths[0]
    for level, width in enumerate(widths):
        theirs, ours = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for j in range(resnets):
            yield from inside(f"{theirs}.block.{j}.", f"{ours}.resnets.{j}.", resnet(VAE_RESNET, into, width))
            into = width
        if level < len(widths) - 1:
            yield from layer(f"{theirs}.downsample.conv", f"{ours}.downsamplers.0.conv", width, width, 3, 3)
    yield from _middle("encoder", into)
    yield from layer("encoder.norm_out", "encoder.conv_norm_out", into)
    yield from layer("encoder.conv_out", "encoder.conv_out", 2 * latent, into, 3, 3)


def _decoder(widths: Sequence[int], resnets: int, latent: int) -> Iterator[Row]:
    into, last = widths[-1], len(widths) - 1
    yield from layer("decoder.conv_in", "decoder.conv_in", into, latent, 3, 3)
    yield from _middle("decoder", into)
    for level, width in enumerate(reversed(widths)):
        theirs, ours = f"decoder.up.{last - level}", f"decoder.up_blocks.{level}"
        for j in range(resnets + 1):
            yield from inside(f"{theirs}.block.{j}.", f"{ours}.resnets.{j}.", resnet(VAE_RESNET, into, width))
            into = width
        if level < last:
            yield from layer(f"{theirs}.upsample.conv", f"{ours}.upsamplers.0.conv", width, width, 3, 3)
    yield from layer("decoder.norm_out", "decoder.conv_norm_out", into)
    yield from layer("decoder.conv_out", "decoder.conv_out", 3, into, 3, 3)


def _middle(coder: str, width: int) -> Iterator[Row]:
    for j in range(2):
        names = (f"{coder}.mid.block_{j + 1}.", f"{coder}.mid_block.resnets.{j}.")
        yield from inside(*names, resnet(VAE_RESNET, width, width))
    theirs, ours = f"{coder}.mid.attn_1", f"{coder}.mid_block.attentions.0"
    yield from layer(f"{theirs}.norm", f"{ours}.group_norm", width)
    for there, here in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        yield from as_linear(f"{theirs}.{there}", f"{ours}.{here}", width)


# -------------------------------------------------------------------------------------------- CLIP


def clip_layer(width: int, hidden: int) -> Iterator[Row]:
    """A layer of OpenCLIP, which packs queries, keys and values."""
    yield from layer("ln_1", "layer_norm1", width)
    for kind, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
        yield Row(f"attn.in_proj_{kind}", shape, tuple(f"self_attn.{x}_proj.{kind}" for x in "qkv"))
    yield from layer("attn.out_proj", "self_attn.out_proj", width, width)
    yield from layer("ln_2", "layer_norm2", width)
    yield from layer("mlp.c_fc", "mlp.fc1", hidden, width)
    yield from layer("mlp.c_proj", "mlp.fc2", width, hidden)


def open_clip_text(
    width: int, hidden: int, layers: int, vocabulary: int, length: int, projection: int
) -> Iterator[Row]:  # noqa: PLR0917
    """OpenCLIP's text tower."""
    ours = "text_model."
    yield Row("token_embedding.weight", (vocabulary, width), (f"{ours}embeddings.token_embedding.weight",))
    yield Row("positional_embedding", (length, width), (f"{ours}embeddings.position_embedding.weight",))
    for i in range(layers):
        yield from inside(f"transformer.resblocks.{i}.", f"{ours}encoder.layers.{i}.", clip_layer(width, hidden))
    yield from layer("ln_final", f"{ours}final_layer_norm", width)
    yield Row("text_projection", (width, projection), ("text_projection.weight",), permuted(1, 0))
    yield Row("logit_scale", (), group="OpenCLIP's temperature, which nothing reads")


def hugging_face_text(width: int, hidden: int, layers: int, vocabulary: int, length: int) -> Iterator[Row]:
    """A text tower of transformers, under its own names."""
    told = {"embeddings.token_embedding.weight": vocabulary, "embeddings.position_embedding.weight": length}
    for name, count in told.items():
        yield Row(f"text_model.{name}", (count, width), (f"text_model.{name}",))
    for i in range(layers):
        at = f"text_model.encoder.layers.{i}."
        for name in ("layer_norm1", "layer_norm2"):
            yield from layer(at + name, at + name, width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from layer(f"{at}self_attn.{name}", f"{at}self_attn.{name}", width, width)
        yield from layer(f"{at}mlp.fc1", f"{at}mlp.fc1", hidden, width)
        yield from layer(f"{at}mlp.fc2", f"{at}mlp.fc2", width, hidden)
    yield from layer("text_model.final_layer_norm", "text_model.final_layer_norm", width)
