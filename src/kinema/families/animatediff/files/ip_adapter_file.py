"""Recognise and convert files of IP-Adapters and CLIP's image encoder.

Two layouts: the authors' (``image_proj.proj.weight``, ``ip_adapter.1.to_k_ip.weight``; two tables of that name in
PyTorch files), which numbers the U-Net's attentions, and that of diffusers' U-Net, which Kinema uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, Literal

from torch import Tensor

from kinema.bounds import quoted
from kinema.checkpoints.files import Header
from kinema.checkpoints.ldm import layer, prefixed
from kinema.checkpoints.table import Row, Table, count, shapes_of
from kinema.families.animatediff.config import IMAGE as IMAGE_MODEL
from kinema.families.animatediff.config import SDXL_IMAGE, AdapterSize, Config, VisionSize
from kinema.schema import BadRequest

AdapterLayout = Literal["official", "diffusers"]
IMAGE, ATTENTION = "image_proj.", "ip_adapter."
BASES = (IMAGE_MODEL, SDXL_IMAGE)
NATIVE = "encoder_hid_proj.image_projection_layers."

OTHERS = (
    (r"^image_proj\.perceiver_resampler\.", "an IP-Adapter of faces (FaceID plus)"),
    (r"^image_proj\.proj\.3\.", "an IP-Adapter of whole faces (full-face)"),
    (r"^image_proj\.proj\.0\.", "an IP-Adapter of faces (FaceID)"),
)
"""Unsupported kinds of adapters, whose input is not CLIP's image embedding."""


@dataclass(frozen=True)
class AdapterFile:
    """A recognised IP-Adapter file."""

    layout: AdapterLayout
    size: AdapterSize
    context: int
    attentions: int
    """Number of cross-attentions with keys and values."""
    header: Header

    def into(self, config: Config, name: str) -> Config:
        """Add this IP-Adapter to the config of a model."""
        expected = len(list(cross_attentions(config)))
        if (self.context, self.attentions) != (config.context, expected):
            kind = {768: "Stable Diffusion 1.5", 2048: "Stable Diffusion XL"}.get(self.context, "another model")
            raise BadRequest(
                f"this IP-Adapter is for {kind} ({self.attentions} cross-attentions, prompt width {self.context}); the "
                f"image model has {expected} cross-attentions and prompt width {config.context}"
            )
        if any(name == each.name for each in config.adapters):
            raise BadRequest(f"the model already has an IP-Adapter {name}; add another as ip-adapter.NAME=FILE")
        table, shapes = Table(rows(config, self.size, 0)), shapes_of(self.header)
        if self.layout == "official":
            table.check_foreign(shapes, "this IP-Adapter")
        else:
            table.check_native(shapes, "this IP-Adapter")
        config = replace(config, adapters=(*config.adapters, replace(self.size, name=name)))
        check_fit(config)
        return config


def check_fit(config: Config) -> None:
    """Raise `BadRequest` if the image encoder's width differs from an adapter's."""
    if config.vision is None:
        return
    for size in config.adapters:
        width = config.vision.projection if size.kind == "plain" else config.vision.width
        if width != size.embedding:
            what = "embeddings" if size.kind == "plain" else "patches"
            which = {1024: "ViT-H/14", 1280: "ViT-bigG/14" if size.kind == "plain" else "ViT-H/14", 1664: "ViT-bigG/14"}
            encoder = f" ({which[size.embedding]})" if size.embedding in which else ""
            raise BadRequest(
                f"IP-Adapter {size.name} needs {what} of width {size.embedding}{encoder} and the image encoder has "
                f"{width}; add the encoder of the IP-Adapter (--add image-encoder=FOLDER)"
            )


# ------------------------------------------------------------------------------------ recognising


def is_adapter(header: Header) -> bool:
    """Whether a file is an IP-Adapter of any kind, complete or not."""
    return any(name.startswith((IMAGE, ATTENTION, NATIVE)) for name in header)


def recognise(header: Header) -> AdapterFile | None:
    """Recognise an IP-Adapter; None for any other file, `BadRequest` for an unsupported kind."""
    if not is_adapter(header):
        return None
    for pattern, what in OTHERS:
        if any(re.search(pattern, name) for name in header):
            raise BadRequest(f"this is {what}, which is not supported; expected plain or plus")
    official = not any(name.startswith(NATIVE) for name in header)
    keys = re.compile(r"ip_adapter\.\d+\.to_k_ip\.weight" if official else r".*\.attn2\.processor\.to_k_ip\.0\.weight")
    found = [shape for name, (shape, _) in header.items() if keys.fullmatch(name)]
    if not found:
        raise BadRequest("this IP-Adapter has no keys and values (ip_adapter.1.to_k_ip.weight)")
    begin = IMAGE if official else f"{NATIVE}0."
    inner = {name.removeprefix(begin): shape for name, (shape, _) in header.items() if name.startswith(begin)}
    size = _size(inner)
    return AdapterFile("official" if official else "diffusers", size, found[0][1], len(found), header)


def _size(shapes: Mapping[str, tuple[int, ...]]) -> AdapterSize:
    """Infer sizes from the image projection's tensors, in either layout."""

    def shape(*names: str) -> tuple[int, ...]:
        for name in names:
            if name in shapes:
                return shapes[name]
        raise BadRequest(f"this IP-Adapter lacks {IMAGE}{names[0]}")

    if "latents" not in shapes:
        outputs, embedding = shape("proj.weight", "image_embeds.weight")
        return AdapterSize(kind="plain", embedding=embedding, tokens=outputs // shape("norm.weight")[0])
    _, tokens, width = shape("latents")
    return AdapterSize(
        kind="plus",
        embedding=shape("proj_in.weight")[1],
        tokens=tokens,
        width=width,
        inner=shape("layers.0.0.to_q.weight", "layers.0.attn.to_q.weight")[0],
        layers=len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
    )


# ------------------------------------------------------------------------------------- converting


def cross_attentions(c: Config) -> Iterator[tuple[str, int]]:
    """Name and width of every cross-attention, in the order of diffusers' U-Nets: down, up, middle."""

    def blocks(prefix: str, width: int, depth: int) -> Iterator[tuple[str, int]]:
        return ((f"{prefix}.transformer_blocks.{i}.attn2", width) for i in range(depth))

    last = len(c.channels) - 1
    for level, (width, depth) in enumerate(zip(c.channels, c.depths, strict=True)):
        for j in range(c.layers):
            yield from blocks(f"down_blocks.{level}.attentions.{j}", width, depth)
    for level in range(last + 1):
        for j in range(c.layers + 1):
            yield from blocks(f"up_blocks.{level}.attentions.{j}", c.channels[last - level], c.depths[last - level])
    deepest = next((depth for depth in reversed(c.depths) if depth), 0)
    yield from blocks("mid_block.attentions.0", c.channels[-1], deepest)


def rows(c: Config, size: AdapterSize, index: int) -> Iterator[Row]:
    """Tensors of the authors' layout and their names in adapter ``index`` of the U-Net."""
    image = _plain(c, size) if size.kind == "plain" else _plus(c, size)
    yield from prefixed(IMAGE, f"{NATIVE}{index}.", image)
    for n, (name, width) in enumerate(cross_attentions(c)):
        for which in ("to_k_ip", "to_v_ip"):
            # Self-attentions are numbered too but have no tensors; each precedes its cross-attention.
            foreign, native = f"{ATTENTION}{2 * n + 1}.{which}.weight", f"{name}.processor.{which}.{index}.weight"
            yield Row(foreign, (width, c.context), (native,))


def _plain(c: Config, size: AdapterSize) -> Iterator[Row]:
    yield from layer("proj", "image_embeds", size.tokens * c.context, size.embedding)
    yield from layer("norm", "norm", c.context)


def _plus(c: Config, size: AdapterSize) -> Iterator[Row]:
    width, wide = size.width, size.inner
    yield Row("latents", (1, size.tokens, width), ("latents",))
    yield from layer("proj_in", "proj_in", width, size.embedding)
    yield from layer("proj_out", "proj_out", c.context, width)
    yield from layer("norm_out", "norm_out", c.context)
    for i in range(size.layers):
        foreign, native = f"layers.{i}.0", f"layers.{i}"
        yield from layer(f"{foreign}.norm1", f"{native}.ln0", width)
        yield from layer(f"{foreign}.norm2", f"{native}.ln1", width)
        yield Row(f"{foreign}.to_q.weight", (wide, width), (f"{native}.attn.to_q.weight",))
        parts = (f"{native}.attn.to_k.weight", f"{native}.attn.to_v.weight")
        yield Row(f"{foreign}.to_kv.weight", (2 * wide, width), parts)
        yield Row(f"{foreign}.to_out.weight", (width, wide), (f"{native}.attn.to_out.0.weight",))
        yield from layer(f"layers.{i}.1.0", f"{native}.ff.0", width)
        yield Row(f"layers.{i}.1.1.weight", (4 * width, width), (f"{native}.ff.1.net.0.proj.weight",))
        yield Row(f"layers.{i}.1.3.weight", (width, 4 * width), (f"{native}.ff.1.net.2.weight",))


def base_of(file: AdapterFile) -> Config:
    """Infer the published image model of an adapter from its attention widths, as files have no layer names."""
    keys = re.compile(r"(.*)\.to_k_ip(\.0)?\.weight")
    widths = sorted(shape[0] for name, (shape, _) in file.header.items() if keys.fullmatch(name))
    for config in BASES:
        if (file.context, widths) == (config.context, sorted(width for _, width in cross_attentions(config))):
            return config
    raise BadRequest(f"this IP-Adapter is for an unknown image model ({file.attentions} cross-attentions)")


def convert(file: AdapterFile, config: Config, index: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a file's tensors to the names of adapter ``index`` of the U-Net."""
    first, table = Table(rows(config, file.size, 0)), Table(rows(config, file.size, index))
    official = tensors if file.layout == "official" else first.backward(tensors, "this IP-Adapter")
    return table.forward(official, "this IP-Adapter")


def export(
    layout: AdapterLayout, config: Config, size: AdapterSize, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Convert tensors of adapter 0 of the U-Net to a file layout."""
    return dict(tensors) if layout == "diffusers" else Table(rows(config, size, 0)).backward(tensors, "this IP-Adapter")


# ---------------------------------------------------------------------------------- image encoder


def vision(header: Header, config: Mapping[str, Any]) -> VisionSize | None:
    """Sizes of CLIP's image encoder in transformers' layout, from shapes and config.json; None for other files."""
    tower = "vision_model."
    if f"{tower}embeddings.patch_embedding.weight" not in header:
        return None

    def shape(name: str) -> tuple[int, ...]:
        if name not in header:
            raise BadRequest(f"this image encoder lacks {name}")
        return header[name][0]

    width, _, patch, _ = shape(f"{tower}embeddings.patch_embedding.weight")
    patches = shape(f"{tower}embeddings.position_embedding.weight")[0] - 1
    activation = config.get("hidden_act", "quick_gelu" if width == 1024 else "gelu")  # OpenAI's ViT-L, and OpenCLIP's
    if activation not in ("gelu", "quick_gelu"):
        raise BadRequest(f"this image encoder has hidden_act {quoted(activation)}; expected gelu or quick_gelu")
    return VisionSize(
        width=width,
        layers=count(header, f"{tower}encoder.layers."),
        heads=int(config.get("num_attention_heads", gcd(16, width))),
        mlp=shape(f"{tower}encoder.layers.0.mlp.fc1.weight")[0],
        patch=patch,
        side=round(patches**0.5) * patch,
        projection=shape("visual_projection.weight")[0],
        activation=activation,
    )
