"""Table rows shared by the single-file layouts of latent diffusion models (Rombach et al. 2022).

Foreign names are those of the original code (ldm, sgm, OpenCLIP), native ones those of diffusers and transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kinema.checkpoints.keymap import linear_from_conv, permuted
from kinema.checkpoints.table import Row

RESNET = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
VAE_RESNET = ("norm1", "conv1", "", "norm2", "conv2", "nin_shortcut")


def prefixed(foreign: str, native: str, rows: Iterable[Row]) -> Iterator[Row]:
    """Prefix the names of rows."""
    return (row.within(foreign, native) for row in rows)


def layer(foreign: str, native: str, *shape: int) -> Iterator[Row]:
    """Yield a weight of this shape and a bias as long as its first axis."""
    yield Row(f"{foreign}.weight", shape, (f"{native}.weight",))
    yield Row(f"{foreign}.bias", shape[:1], (f"{native}.bias",))


def as_linear(foreign: str, native: str, width: int) -> Iterator[Row]:
    """Yield a layer that is a 1×1 convolution in the foreign layout and linear in the native one."""
    yield Row(f"{foreign}.weight", (width, width, 1, 1), (f"{native}.weight",), linear_from_conv(2))
    yield Row(f"{foreign}.bias", (width,), (f"{native}.bias",))


def resnet(names: Sequence[str], into: int, out: int, time: int = 0) -> Iterator[Row]:
    """Yield a residual block; ``time`` is the width of the noise level embedding, 0 without one."""
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
    """Yield the KL image codec, `kinema.vae.kl2d.Autoencoder`: 248 tensors at the published sizes."""
    yield from _encoder(widths, resnets, latent)
    yield from _decoder(widths, resnets, latent)
    yield from layer("quant_conv", "quant_conv", 2 * latent, 2 * latent, 1, 1)
    yield from layer("post_quant_conv", "post_quant_conv", latent, latent, 1, 1)


def _encoder(widths: Sequence[int], resnets: int, latent: int) -> Iterator[Row]:
    yield from layer("encoder.conv_in", "encoder.conv_in", widths[0], 3, 3, 3)
    into = widths[0]
    for level, width in enumerate(widths):
        foreign, native = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for j in range(resnets):
            yield from prefixed(f"{foreign}.block.{j}.", f"{native}.resnets.{j}.", resnet(VAE_RESNET, into, width))
            into = width
        if level < len(widths) - 1:
            yield from layer(f"{foreign}.downsample.conv", f"{native}.downsamplers.0.conv", width, width, 3, 3)
    yield from _middle("encoder", into)
    yield from layer("encoder.norm_out", "encoder.conv_norm_out", into)
    yield from layer("encoder.conv_out", "encoder.conv_out", 2 * latent, into, 3, 3)


def _decoder(widths: Sequence[int], resnets: int, latent: int) -> Iterator[Row]:
    into, last = widths[-1], len(widths) - 1
    yield from layer("decoder.conv_in", "decoder.conv_in", into, latent, 3, 3)
    yield from _middle("decoder", into)
    for level, width in enumerate(reversed(widths)):
        foreign, native = f"decoder.up.{last - level}", f"decoder.up_blocks.{level}"
        for j in range(resnets + 1):
            yield from prefixed(f"{foreign}.block.{j}.", f"{native}.resnets.{j}.", resnet(VAE_RESNET, into, width))
            into = width
        if level < last:
            yield from layer(f"{foreign}.upsample.conv", f"{native}.upsamplers.0.conv", width, width, 3, 3)
    yield from layer("decoder.norm_out", "decoder.conv_norm_out", into)
    yield from layer("decoder.conv_out", "decoder.conv_out", 3, into, 3, 3)


def _middle(coder: str, width: int) -> Iterator[Row]:
    for j in range(2):
        names = (f"{coder}.mid.block_{j + 1}.", f"{coder}.mid_block.resnets.{j}.")
        yield from prefixed(*names, resnet(VAE_RESNET, width, width))
    foreign, native = f"{coder}.mid.attn_1", f"{coder}.mid_block.attentions.0"
    yield from layer(f"{foreign}.norm", f"{native}.group_norm", width)
    for source, target in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        yield from as_linear(f"{foreign}.{source}", f"{native}.{target}", width)


# -------------------------------------------------------------------------------------------- CLIP


def clip_layer(width: int, hidden: int) -> Iterator[Row]:
    """Yield an OpenCLIP layer, which packs queries, keys and values into one tensor."""
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
    """Yield OpenCLIP's text tower."""
    native = "text_model."
    yield Row("token_embedding.weight", (vocabulary, width), (f"{native}embeddings.token_embedding.weight",))
    yield Row("positional_embedding", (length, width), (f"{native}embeddings.position_embedding.weight",))
    for i in range(layers):
        yield from prefixed(f"transformer.resblocks.{i}.", f"{native}encoder.layers.{i}.", clip_layer(width, hidden))
    yield from layer("ln_final", f"{native}final_layer_norm", width)
    yield Row("text_projection", (width, projection), ("text_projection.weight",), permuted(1, 0))
    yield Row("logit_scale", (), group="OpenCLIP's temperature, which is unused")


def hugging_face_text(width: int, hidden: int, layers: int, vocabulary: int, length: int) -> Iterator[Row]:
    """Yield a transformers text tower, whose names are native."""
    embeddings = {"embeddings.token_embedding.weight": vocabulary, "embeddings.position_embedding.weight": length}
    for name, count in embeddings.items():
        yield Row(f"text_model.{name}", (count, width), (f"text_model.{name}",))
    for i in range(layers):
        prefix = f"text_model.encoder.layers.{i}."
        for name in ("layer_norm1", "layer_norm2"):
            yield from layer(prefix + name, prefix + name, width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from layer(f"{prefix}self_attn.{name}", f"{prefix}self_attn.{name}", width, width)
        yield from layer(f"{prefix}mlp.fc1", f"{prefix}mlp.fc1", hidden, width)
        yield from layer(f"{prefix}mlp.fc2", f"{prefix}mlp.fc2", width, hidden)
    yield from layer("text_model.final_layer_norm", "text_model.final_layer_norm", width)
