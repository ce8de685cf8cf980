"""Layouts of the transformer's weights: Open-Sora's own, the fused ones of Open-Sora and Flux, and that of diffusers.

They differ in three ways. Queries, keys and values (and, in single blocks, the MLP's first layer) are separate layers
or one fused layer. Rotary embeddings turn features i and i + K/2 of a head ("half") or 2i and 2i + 1 ("adjacent"); the
rows of the query and key projections and the scales of their norms are ordered accordingly. And diffusers has other
names, and keeps scale before shift in the last modulation.

Letters: D width, K width of a head.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from typing import Literal, cast

import torch
from torch import Tensor

from kinema.checkpoints.files import Header
from kinema.checkpoints.keymap import Transform
from kinema.checkpoints.settings import FileFault
from kinema.checkpoints.table import Row, Shape, Table, count, shape_in
from kinema.families.opensora.mmdit import MMDiT, MMDiTConfig
from kinema.nn.meta import on_meta
from kinema.nn.rope import Layout as Rope
from kinema.nn.rope import adjacent_to_half, half_to_adjacent

Kind = Literal["separate", "fused", "diffusers"]
Read = Callable[[str], Tensor]

ROPE_NOTE = "rope"
"""Metadata key of files that we write: the rotary layout, which no tensor tells."""
_ROPES: dict[Kind, Rope] = {"separate": "half", "fused": "adjacent", "diffusers": "adjacent"}
"""Rotary layout of a file without that note: as published, and as the defaults of Open-Sora's code."""

OUTER = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "cond_in": "cond_in",  # diffusers has no such layer
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.q_proj": "attn.to_q",
    "img_attn.k_proj": "attn.to_k",
    "img_attn.v_proj": "attn.to_v",
    "img_attn.proj": "attn.to_out.0",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.q_proj": "attn.add_q_proj",
    "txt_attn.k_proj": "attn.add_k_proj",
    "txt_attn.v_proj": "attn.add_v_proj",
    "txt_attn.proj": "attn.to_add_out",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
SINGLE = {
    "modulation.lin": "norm.linear",
    "q_proj": "attn.to_q",
    "k_proj": "attn.to_k",
    "linear2": "proj_out",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}
V_MLP = ("attn.to_v", "proj_mlp")
"""What diffusers has for ``v_mlp``: values, then the MLP's first layer."""
_ROTATED = re.compile(r"\.([qk]_proj\.(weight|bias)|(query|key)_norm\.scale)$")


@dataclass(frozen=True)
class TransformerFile:
    """A transformer's layout: its sizes, and how its tensors become those of our network and back.

    The network has separate layers, and the rotary layout ``here``: that of the file unless another is asked for.
    """

    config: MMDiTConfig
    kind: Kind
    here: Rope

    @property
    def rope(self) -> Rope:
        """The file's rotary layout."""
        return self.config.rope

    @cached_property
    def native(self) -> dict[str, Shape]:
        """Names and shapes of the network."""
        with on_meta():
            return {name: tuple(tensor.shape) for name, tensor in MMDiT(self.config).state_dict().items()}

    @cached_property
    def table(self) -> Table:
        """Rows from the file to the network; for diffusers, which has the finer split, from the network to the file."""
        return Table({"separate": self._separate, "fused": self._fused, "diffusers": self._diffusers}[self.kind]())

    @property
    def foreign(self) -> dict[str, Shape]:
        """Names and shapes of the file."""
        return self.table.native if self.kind == "diffusers" else self.table.foreign

    def check(self, shapes: Mapping[str, Shape], where: str) -> None:
        """Raises BadRequest naming tensors that are missing, unexpected or of the wrong shape."""
        (self.table.check_native if self.kind == "diffusers" else self.table.check_foreign)(shapes, where)

    def to_ours(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """The file's tensors under the network's names, as views where possible. Raises BadRequest as `check`."""
        return (self.table.backward if self.kind == "diffusers" else self.table.forward)(tensors, where)

    def make_native(self, name: str, read: Read) -> Tensor:
        """One tensor of the network; ``read`` returns those of the file."""
        return (self.table.make_foreign if self.kind == "diffusers" else self.table.make_native)(name, read)

    def make_foreign(self, name: str, read: Read) -> Tensor:
        """One tensor of the file; ``read`` returns those of the network."""
        return (self.table.make_native if self.kind == "diffusers" else self.table.make_foreign)(name, read)

    def ours_header(self, foreign: Header) -> Header:
        """Shapes and dtypes of the network, of a file's header."""
        return {
            name: (shape, _dtype(self._sources(name, to_file=False), foreign)) for name, shape in self.native.items()
        }

    def theirs_header(self, native: Header) -> Header:
        """Shapes and dtypes of the file, of the network's."""
        return {
            name: (shape, _dtype(self._sources(name, to_file=True), native)) for name, shape in self.foreign.items()
        }

    def _sources(self, name: str, *, to_file: bool) -> tuple[str, ...]:
        """The tensors that this one is computed from."""
        if to_file != (self.kind == "diffusers"):
            return self.table.by_foreign[name].native
        return (self.table.by_native[name][0].foreign,)

    # ------------------------------------------------------------------------------------------- rows

    def _separate(self) -> Iterator[Row]:
        for name, shape in self.native.items():
            yield Row(name, shape, (name,), self._turned(name, shape))

    def _fused(self) -> Iterator[Row]:
        for name, shape in self.native.items():
            layer, _, kind = name.rpartition(".")
            block, _, which = layer.rpartition(".")
            if which in ("k_proj", "v_proj", "v_mlp"):
                continue
            if which != "q_proj":
                yield Row(name, shape, (name,), self._turned(name, shape))
                continue
            last, fused = ("v_proj", "qkv") if block.startswith("double_blocks") else ("v_mlp", "linear1")
            parts = tuple(f"{block}.{each}.{kind}" for each in ("q_proj", "k_proj", last))
            sizes = tuple(self.native[part][0] for part in parts)
            how = None if self.rope == self.here else _first(2 * shape[0], self._turning(2 * self.config.heads))
            yield Row(f"{block}.{fused}.{kind}", (sum(sizes), *shape[1:]), parts, how, sizes=sizes)

    def _diffusers(self) -> Iterator[Row]:
        for name, shape in self.native.items():
            turned = self._turned(name, shape)
            how = SWAPPED if name.startswith("final_layer.adaLN") else turned and turned.inverse
            foreign = diffusers_names(name)
            sizes = (self.config.width, shape[0] - self.config.width) if len(foreign) > 1 else ()
            yield Row(name, shape, foreign, how, sizes=sizes)

    def _turned(self, name: str, shape: Shape) -> Transform | None:
        if self.rope == self.here or not _ROTATED.search(name):
            return None
        return self._turning(shape[0] * self.config.heads // self.config.width)

    def _turning(self, heads: int) -> Transform:
        """Rows from the file's rotary layout to the network's."""
        half, adjacent = partial(adjacent_to_half, heads=heads), partial(half_to_adjacent, heads=heads)
        return Transform(half, adjacent) if self.here == "half" else Transform(adjacent, half)


SWAPPED = Transform(lambda x: torch.cat(x.chunk(2)[::-1]), lambda x: torch.cat(x.chunk(2)[::-1]))
"""Two halves of rows, the other way round: shift and scale."""


def _first(rows: int, turning: Transform) -> Transform:
    """The transform of the first rows alone."""

    def applied(how: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.cat([how(x[:rows]), x[rows:]])

    return Transform(applied(turning.forward), applied(turning.backward))


def _dtype(names: tuple[str, ...], header: Header) -> torch.dtype:
    return reduce(torch.promote_types, (header[name][1] for name in names))


def diffusers_names(name: str) -> tuple[str, ...]:
    """What diffusers calls a tensor of the network; two names for values and MLP of a single block."""
    layer, _, kind = name.rpartition(".")
    kind = "weight" if kind == "scale" else kind
    if not layer.startswith(("double_blocks.", "single_blocks.")):
        return (f"{OUTER[layer]}.{kind}",)
    blocks, number, inner = layer.split(".", 2)
    double = blocks == "double_blocks"
    block = f"{'' if double else 'single_'}transformer_blocks.{number}"
    layers = V_MLP if inner == "v_mlp" else ((DOUBLE if double else SINGLE)[inner],)
    return tuple(f"{block}.{each}.{kind}" for each in layers)


# ------------------------------------------------------------------------------------ recognising


def recognise(header: Header, metadata: Mapping[str, str], here: Rope | None = None) -> TransformerFile | None:
    """The layout and sizes of a transformer of Open-Sora 2.0 or Flux; None for any other file.

    Raises `FileFault` for a tensor that must be there to tell a size, and for sizes that do not fit each other.
    """
    kind = kind_of(header)
    if kind is None:
        return None
    rope = metadata.get(ROPE_NOTE, _ROPES[kind])
    if rope not in ("half", "adjacent"):
        raise FileFault(f"has an unknown rotary layout in its metadata ({rope[:20]!r}); expected half or adjacent")
    rope = cast(Rope, rope)
    return TransformerFile(_sized(header, kind, rope), kind, here or rope)


def kind_of(header: Header) -> Kind | None:
    """The layout, by the attention layers of any double block."""
    for name in header:
        if name.startswith("double_blocks.") and ".img_attn.q_proj." in name:
            return "separate"
        if name.startswith("double_blocks.") and ".img_attn.qkv." in name:
            return "fused"
        if name.startswith("transformer_blocks.") and ".attn.add_q_proj." in name and "x_embedder.weight" in header:
            return "diffusers" if any(each.startswith("single_transformer_blocks.") for each in header) else None
    return None


def is_flux(header: Header) -> bool:
    """Whether a transformer generates images: Flux has no conditioning input and no separate layers."""
    return kind_of(header) in ("fused", "diffusers") and "cond_in.weight" not in header


_shape = partial(shape_in, "Open-Sora 2.0")


def _sized(header: Header, kind: Kind, rope: Rope) -> MMDiTConfig:
    named = diffusers_names if kind == "diffusers" else lambda name: (name,)

    def shape(name: str, rank: int = 2) -> Shape:
        return _shape(header, named(name)[0], rank)

    width, features = shape("img_in.weight")
    (head,) = shape("double_blocks.0.img_attn.norm.query_norm.scale", 1)
    if head < 2 or head % 2 or width % head:
        raise FileFault(f"has norms over {head} features in a network of width {width}; expected an even divisor of it")
    conditioned = named("cond_in.weight")[0] in header
    patch = _patch(features, shape("cond_in.weight")[1] if conditioned else None)
    attention = f"{named('double_blocks.0.img_attn.q_proj.x')[0].rpartition('.')[0]}.bias"
    if kind == "fused":
        attention = "double_blocks.0.img_attn.qkv.bias"
    double = "transformer_blocks." if kind == "diffusers" else "double_blocks."
    single = "single_transformer_blocks." if kind == "diffusers" else "single_blocks."
    return MMDiTConfig(
        channels=features // patch**2,
        patch=patch,
        text=shape("txt_in.weight")[1],
        vector=shape("vector_in.in_layer.weight")[1],
        width=width,
        heads=width // head,
        mlp=shape("double_blocks.0.img_mlp.0.weight")[0] / width,
        double_blocks=count(header, double),
        single_blocks=count(header, single),
        axes=axes(head),
        rope=rope,
        qkv_bias=attention in header,
        conditioned=conditioned,
        guided=named("guidance_in.in_layer.weight")[0] in header,
    )


def _patch(features: int, given: int | None) -> int:
    """Latent cells along a side of a token: its conditioning has one more channel, the mask, than its latents."""
    area = given - features if given is not None else 1 if features == 128 else 4
    patch = math.isqrt(max(area, 0))
    if patch < 1 or patch**2 != area or features % area:
        also = f"and {given} for conditioning " if given is not None else ""
        raise FileFault(f"takes {features} latent features {also}per token, which fits no patch size of Open-Sora 2.0")
    return patch


def axes(head: int) -> tuple[int, int, int]:
    """Features of a head that turn with time, row and column: published are 16, 56 and 56 of 128."""
    side = 2 * (7 * head // 32)
    return (head - 2 * side, side, side)
