"""Files of IP-Adapters and of CLIP's image encoder: what one holds, and an adapter's tensors under our names and back.

Two layouts: that of the authors (``image_proj.proj.weight``, ``ip_adapter.1.to_k_ip.weight``; in PyTorch's files two
tables of that name), whose adapters number the attentions of the U-Net, and that of diffusers' U-Net, which is ours.
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
from kinema.checkpoints.ldm import inside, layer
from kinema.checkpoints.table import Row, Table, count, shapes_of
from kinema.families.animatediff.config import IMAGE as IMAGE_MODEL
from kinema.families.animatediff.config import SDXL_IMAGE, AdapterSize, Config, VisionSize
from kinema.schema import BadRequest

AdapterLayout = Literal["official", "diffusers"]
IMAGE, ATTENTION = "image_proj.", "ip_adapter."
BASES = (IMAGE_MODEL, SDXL_IMAGE)
OURS = "encoder_hid_proj.image_projection_layers."

OTHERS = (
    (r"^image_proj\.perceiver_resampler\.", "an IP-Adapter of faces (FaceID plus)"),
    (r"^image_proj\.proj\.3\.", "an IP-Adapter of whole faces (full-face)"),
    (r"^image_proj\.proj\.0\.", "an IP-Adapter of faces (FaceID)"),
)
"""Adapters of other kinds, which read what CLIP does not make."""


@dataclass(frozen=True)
class AdapterFile:
    """What a file of an IP-Adapter holds."""

    layout: AdapterLayout
    size: AdapterSize
    context: int
    attentions: int
    """Cross-attentions that it has keys and values for."""
    header: Header

    def into(self, config: Config, name: str) -> Config:
        """The config of an image model with this in it."""
        expected = len(list(cross_attentions(config)))
        if (self.context, self.attentions) != (config.context, expected):
            kind = {768: "Stable Diffusion 1.5", 2048: "Stable Diffusion XL"}.get(self.context, "another model")
            raise BadRequest(
                f"this IP-Adapter is for {kind} ({self.attentions} attentions to prompts {self.context} wide), and the "
                f"image model has {expected} to prompts {config.context} wide"
            )
        if any(name == each.name for each in config.adapters):
            raise BadRequest(f"there is an IP-Adapter {name} already; add another as ip-adapter.NAME=FILE")
        table, shapes = Table(rows(config, self.size, 0)), shapes_of(self.header)
        if self.layout == "official":
            table.check_theirs(shapes, "this IP-Adapter")
        else:
            table.check_ours(shapes, "this IP-Adapter")
        config = replace(config, adapters=(*config.adapters, replace(self.size, name=name)))
        check_fit(config)
        return config


def check_fit(config: Config) -> None:
    """Refuse an image encoder that makes other widths than an adapter reads."""
    if config.vision is None:
        return
    for size in config.adapters:
        made = config.vision.projection if size.kind == "plain" else config.vision.width
        if made != size.embedding:
            what = "embeddings" if size.kind == "plain" else "patches"
            which = {1024: "ViT-H/14", 1280: "ViT-bigG/14" if size.kind == "plain" else "ViT-H/14", 1664: "ViT-bigG/14"}
            told = f" ({which[size.embedding]})" if size.embedding in which else ""
            raise BadRequest(
                f"the IP-Adapter {size.name} reads {what} {size.embedding} wide{told}, and the image encoder makes "
                f"{made}: add the one it was trained with (image-encoder=FOLDER)"
            )


# ------------------------------------------------------------------------------------ recognising


def is_adapter(header: Header) -> bool:
    """Whether a file is one, of any kind, whole or not."""
    return any(name.startswith((IMAGE, ATTENTION, OURS)) for name in header)


def recognise(header: Header) -> AdapterFile | None:
    """What IP-Adapter a file holds; None for any other file. Raises `BadRequest` for one of a kind we have not."""
    if not is_adapter(header):
        return None
    for pattern, what in OTHERS:
        if any(re.search(pattern, name) for name in header):
            raise BadRequest(f"this is {what}, which reads more than CLIP's view of a picture; expected plain or plus")
    official = not any(name.startswith(OURS) for name in header)
    keys = re.compile(r"ip_adapter\.\d+\.to_k_ip\.weight" if official else r".*\.attn2\.processor\.to_k_ip\.0\.weight")
    found = [shape for name, (shape, _) in header.items() if keys.fullmatch(name)]
    if not found:
        raise BadRequest("this IP-Adapter has no keys and values for attentions (ip_adapter.1.to_k_ip.weight)")
    begin = IMAGE if official else f"{OURS}0."
    inner = {name.removeprefix(begin): shape for name, (shape, _) in header.items() if name.startswith(begin)}
    size = _size(inner)
    return AdapterFile("official" if official else "diffusers", size, found[0][1], len(found), header)


def _size(shapes: Mapping[str, tuple[int, ...]]) -> AdapterSize:
    """The sizes by the tensors that turn pictures to tokens, in either layout."""

    def shape(*names: str) -> tuple[int, ...]:
        for name in names:
            if name in shapes:
                return shapes[name]
        raise BadRequest(f"this IP-Adapter lacks {IMAGE}{names[0]}")

    if "latents" not in shapes:
        out, embedding = shape("proj.weight", "image_embeds.weight")
        return AdapterSize(kind="plain", embedding=embedding, tokens=out // shape("norm.weight")[0])
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

    def of(place: str, width: int, depth: int) -> Iterator[tuple[str, int]]:
        return ((f"{place}.transformer_blocks.{i}.attn2", width) for i in range(depth))

    last = len(c.channels) - 1
    for level, (width, depth) in enumerate(zip(c.channels, c.depths, strict=True)):
        for j in range(c.layers):
            yield from of(f"down_blocks.{level}.attentions.{j}", width, depth)
    for level in range(last + 1):
        for j in range(c.layers + 1):
            yield from of(f"up_blocks.{level}.attentions.{j}", c.channels[last - level], c.depths[last - level])
    deepest = next((depth for depth in reversed(c.depths) if depth), 0)
    yield from of("mid_block.attentions.0", c.channels[-1], deepest)


def rows(c: Config, size: AdapterSize, index: int) -> Iterator[Row]:
    """Every tensor of the authors' layout; ours is that of adapter ``index`` of the U-Net."""
    image = _plain(c, size) if size.kind == "plain" else _plus(c, size)
    yield from inside(IMAGE, f"{OURS}{index}.", image)
    for n, (name, width) in enumerate(cross_attentions(c)):
        for which in ("to_k_ip", "to_v_ip"):
            # Attentions are counted with those of the image to itself, which come before and have nothing here.
            theirs, ours = f"{ATTENTION}{2 * n + 1}.{which}.weight", f"{name}.processor.{which}.{index}.weight"
            yield Row(theirs, (width, c.context), (ours,))


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
        theirs, ours = f"layers.{i}.0", f"layers.{i}"
        yield from layer(f"{theirs}.norm1", f"{ours}.ln0", width)
        yield from layer(f"{theirs}.norm2", f"{ours}.ln1", width)
        yield Row(f"{theirs}.to_q.weight", (wide, width), (f"{ours}.attn.to_q.weight",))
        parts = (f"{ours}.attn.to_k.weight", f"{ours}.attn.to_v.weight")
        yield Row(f"{theirs}.to_kv.weight", (2 * wide, width), parts)
        yield Row(f"{theirs}.to_out.weight", (width, wide), (f"{ours}.attn.to_out.0.weight",))
        yield from layer(f"layers.{i}.1.0", f"{ours}.ff.0", width)
        yield Row(f"layers.{i}.1.1.weight", (4 * width, width), (f"{ours}.ff.1.net.0.proj.weight",))
        yield Row(f"layers.{i}.1.3.weight", (width, 4 * width), (f"{ours}.ff.1.net.2.weight",))


def base_of(told: AdapterFile) -> Config:
    """The published image model that an adapter's attentions are of, by their widths: a file has them without names."""
    keys = re.compile(r"(.*)\.to_k_ip(\.0)?\.weight")
    widths = sorted(shape[0] for name, (shape, _) in told.header.items() if keys.fullmatch(name))
    for config in BASES:
        if (told.context, widths) == (config.context, sorted(width for _, width in cross_attentions(config))):
            return config
    raise BadRequest(f"this IP-Adapter is for no image model known here ({told.attentions} attentions)")


def convert(told: AdapterFile, config: Config, index: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under the names of adapter ``index`` of our U-Net."""
    first, ours = Table(rows(config, told.size, 0)), Table(rows(config, told.size, index))
    official = tensors if told.layout == "official" else first.backward(tensors, "this IP-Adapter")
    return ours.forward(official, "this IP-Adapter")


def export(
    layout: AdapterLayout, config: Config, size: AdapterSize, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors of adapter 0 of our U-Net as a file of this layout holds them."""
    return dict(tensors) if layout == "diffusers" else Table(rows(config, size, 0)).backward(tensors, "this IP-Adapter")


# ---------------------------------------------------------------------------------- image encoder


def vision(header: Header, told: Mapping[str, Any]) -> VisionSize | None:
    """The sizes of CLIP's image encoder under transformers' names, by shapes; ``told`` is the config beside it."""
    tower = "vision_model."
    if f"{tower}embeddings.patch_embedding.weight" not in header:
        return None

    def shape(name: str) -> tuple[int, ...]:
        if name not in header:
            raise BadRequest(f"this image encoder lacks {name}")
        return header[name][0]

    width, _, patch, _ = shape(f"{tower}embeddings.patch_embedding.weight")
    places = shape(f"{tower}embeddings.position_embedding.weight")[0] - 1
    activation = told.get("hidden_act", "quick_gelu" if width == 1024 else "gelu")  # OpenAI's ViT-L, and OpenCLIP's
    if activation not in ("gelu", "quick_gelu"):
        raise BadRequest(f"this image encoder has hidden_act {quoted(activation)}; expected gelu or quick_gelu")
    return VisionSize(
        width=width,
        layers=count(header, f"{tower}encoder.layers."),
        heads=int(told.get("num_attention_heads", gcd(16, width))),
        mlp=shape(f"{tower}encoder.layers.0.mlp.fc1.weight")[0],
        patch=patch,
        side=round(places**0.5) * patch,
        projection=shape("visual_projection.weight")[0],
        activation=activation,
    )
