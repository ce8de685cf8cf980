"""Open-Sora 2.0's transformer beside the original modules and beside diffusers' Flux, which is the same network.

One block of each kind at the published width, and a small whole model. The original (``--upstream CHECKOUT``) runs with
plain PyTorch in place of Liger's and flash-attention's GPU kernels, as for the parity tests (tools/record_opensora.py).
Weights are random; the rotary layout is the published one, so diffusers gets queries and keys with their rows moved.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.vs.pairs import Comparison, Goals, Work, normals, randomise
from kinema.families.opensora.mmdit import DoubleBlock, MMDiT, MMDiTConfig, Rotation, SingleBlock, patched
from kinema.nn.rope import half_to_adjacent

TEXT = 512
GRIDS = {1024: (2, 16, 16), 4096: (7, 16, 32)}
"""Video tokens beside 512 text tokens."""
BLOCK = MMDiTConfig(double_blocks=1, single_blocks=1, conditioned=False)
WHOLE = MMDiTConfig(text=256, vector=64, width=768, heads=6, double_blocks=2, single_blocks=4, conditioned=False)
PARTS = ("double_1024", "single_1024", "double_4096", "single_4096", "whole_1024")
LEAST = {("1024", "fp32"): 1.0, ("4096", "fp32"): 1.0, ("1024", "bf16"): 1.05, ("4096", "bf16"): 1.2}
RECORDER = Path(__file__).resolve().parents[2] / "tools" / "record_opensora.py"


class OpenSoraBlocks(Comparison):
    name = "opensora"
    about = (
        "MMDiT blocks of width 3072 with 24 heads over 512 text and other video tokens, 1,024 and 4,096; whole: "
        f"{WHOLE.double_blocks} double and {WHOLE.single_blocks} single blocks of width {WHOLE.width}, 1,024 tokens"
    )
    parts = PARTS
    goals: Goals = {(part, dtype): LEAST[part[-4:], dtype] for dtype in ("fp32", "bf16") for part in PARTS}

    full: Goals = {
        (part, dtype): LEAST[part[-4:], dtype] for dtype in ("bf16", "fp32") for part in PARTS if "whole" not in part
    }

    def gaps(self) -> list[str]:
        return [] if self.upstream else ["the original modules: no checkout was given with --upstream"]

    def double_1024(self, dtype: torch.dtype) -> dict[str, Work]:
        return self._double(1024, dtype)

    def double_4096(self, dtype: torch.dtype) -> dict[str, Work]:
        return self._double(4096, dtype)

    def single_1024(self, dtype: torch.dtype) -> dict[str, Work]:
        return self._single(1024, dtype)

    def single_4096(self, dtype: torch.dtype) -> dict[str, Work]:
        return self._single(4096, dtype)

    def whole_1024(self, dtype: torch.dtype) -> dict[str, Work]:
        config = WHOLE
        ours = randomise(MMDiT(config)).to(dtype)
        flux = flux_of(ours).to(dtype).requires_grad_(False)
        z, text, pooled, time = whole_inputs(config, 1, dtype)

        def run() -> Tensor:
            return patched(ours(z, time, text, pooled), 2)

        def theirs() -> Tensor:
            return run_flux(flux, z, time, text, pooled)

        found = {"whole model, 1,024 tokens, beside diffusers' Flux": Work(theirs, run, weights=(flux, ours))}
        if self.upstream:
            found["whole model, 1,024 tokens, beside the original"] = self._original_whole(ours, z, time, text, pooled)
        return found

    def _original_whole(self, ours: MMDiT, z: Tensor, time: Tensor, text: Tensor, pooled: Tensor) -> Work:
        assert self.upstream is not None
        original(self.upstream)
        upstream = importlib.import_module("opensora.models.mmdit.model")

        c = ours.config
        network = upstream.MMDiTModel(
            upstream.MMDiTConfig(
                from_pretrained="", cache_dir="", theta=10_000, qkv_bias=True, guidance_embed=False, cond_embed=False,
                fused_qkv=False, use_liger_rope=True, in_channels=c.features, vec_in_dim=c.vector,
                context_in_dim=c.text, hidden_size=c.width, mlp_ratio=c.mlp, num_heads=c.heads, depth=c.double_blocks,
                depth_single_blocks=c.single_blocks, axes_dim=list(c.axes),
            )
        ).eval()  # fmt: skip
        network.load_state_dict(ours.state_dict())
        network.to(z.dtype).requires_grad_(False)
        grid = (z.shape[2], z.shape[3] // 2, z.shape[4] // 2)
        ids = torch.cartesian_prod(*(torch.arange(n).float() for n in grid))[None]
        told = {
            "txt": text,
            "txt_ids": torch.zeros(1, TEXT, 3),
            "img_ids": ids,
            "timesteps": time.to(z),
            "y_vec": pooled,
        }
        return Work(lambda: network(img=patched(z, 2), **told), lambda: patched(ours(z, time, text, pooled), 2))

    def _double(self, tokens: int, dtype: torch.dtype) -> dict[str, Work]:
        from diffusers.models.transformers.transformer_flux import FluxTransformerBlock

        ours = randomise(DoubleBlock(BLOCK)).to(dtype)
        flux = FluxTransformerBlock(BLOCK.width, BLOCK.heads, BLOCK.width // BLOCK.heads).eval()
        flux.load_state_dict(as_flux(ours.state_dict(), BLOCK.heads, "double_blocks.0."))
        flux.to(dtype).requires_grad_(False)
        (text, video, vector), rotation = inputs(tokens, dtype)
        turned = flux_rotation(tokens)

        def theirs() -> Tensor:
            told, shown = flux(video, encoder_hidden_states=text, temb=vector, image_rotary_emb=turned)
            return torch.cat([told, shown], 1)

        def run() -> Tensor:
            shown, told = ours(video, text, vector, rotation)
            return torch.cat([told, shown], 1)

        name = f"double block, {tokens:,} tokens"
        found = {f"{name}, beside diffusers' Flux": Work(theirs, run, weights=(flux, ours))}
        if self.upstream:
            block = original(self.upstream).DoubleStreamBlock(BLOCK.width, BLOCK.heads, BLOCK.mlp, True, False).eval()
            block.load_state_dict(ours.state_dict())
            block.to(dtype).requires_grad_(False)
            pe = original_rotation(rotation)
            found[f"{name}, beside the original"] = Work(
                lambda: torch.cat(block(video, text, vector, pe)[::-1], 1), run
            )
        rows = {"img_": tokens - TEXT, "txt_": TEXT}
        if self.width == "full":  # whose rows have a share of the attainable instead
            return found
        found[f"{name}, products and attention alone"] = Work(alone(ours, tokens, rows, dtype), run, same=False)
        return found

    def _single(self, tokens: int, dtype: torch.dtype) -> dict[str, Work]:
        from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock

        ours = randomise(SingleBlock(BLOCK)).to(dtype)
        flux = FluxSingleTransformerBlock(BLOCK.width, BLOCK.heads, BLOCK.width // BLOCK.heads).eval()
        flux.load_state_dict(as_flux(ours.state_dict(), BLOCK.heads, "single_blocks.0."))
        flux.to(dtype).requires_grad_(False)
        (text, video, vector), rotation = inputs(tokens, dtype)
        joined, turned = torch.cat([text, video], 1), flux_rotation(tokens)

        def theirs() -> Tensor:
            return torch.cat(flux(video, encoder_hidden_states=text, temb=vector, image_rotary_emb=turned), 1)

        def run() -> Tensor:
            return ours(joined, vector, rotation)

        name = f"single block, {tokens:,} tokens"
        found = {f"{name}, beside diffusers' Flux": Work(theirs, run, weights=(flux, ours))}
        if self.upstream:
            kind = original(self.upstream).SingleStreamBlock
            block = kind(BLOCK.width, BLOCK.heads, BLOCK.mlp, fused_qkv=False).eval()
            block.load_state_dict(ours.state_dict())
            block.to(dtype).requires_grad_(False)
            pe = original_rotation(rotation)
            found[f"{name}, beside the original"] = Work(lambda: block(joined, vector, pe), run)
        if self.width == "full":
            return found
        both = alone(ours, tokens, {"": tokens}, dtype)
        found[f"{name}, products and attention alone"] = Work(both, run, same=False)
        return found


def flux_of(ours: MMDiT) -> nn.Module:
    """Diffusers' Flux of the same sizes and weights."""
    from diffusers import FluxTransformer2DModel

    config = ours.config
    flux = FluxTransformer2DModel(
        patch_size=1, in_channels=config.features, num_layers=config.double_blocks,
        num_single_layers=config.single_blocks, attention_head_dim=config.width // config.heads,
        num_attention_heads=config.heads, joint_attention_dim=config.text, pooled_projection_dim=config.vector,
        guidance_embeds=False, axes_dims_rope=config.axes,
    ).eval()  # fmt: skip
    flux.load_state_dict(as_flux(ours.state_dict(), config.heads))
    return flux


def whole_inputs(config: MMDiTConfig, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, text, pooled text and time of a whole network over 1,024 tokens."""
    normal, (frames, rows, columns) = normals(seed), GRIDS[1024]
    z, text = normal(1, 16, frames, 2 * rows, 2 * columns).to(dtype), normal(1, TEXT, config.text).to(dtype)
    return z, text, normal(1, config.vector).to(dtype), torch.tensor([0.7])


def run_flux(flux: nn.Module, z: Tensor, time: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
    ids = torch.cartesian_prod(*(torch.arange(n).float() for n in GRIDS[1024]))
    return flux(
        hidden_states=patched(z, 2), encoder_hidden_states=text, pooled_projections=pooled, timestep=time,
        img_ids=ids, txt_ids=torch.zeros(TEXT, 3), return_dict=False,
    )[0]  # fmt: skip


def inputs(tokens: int, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Rotation]:
    """Text, video and vector, and the angles of their tokens."""
    normal = normals(2)
    shapes = ((1, TEXT, BLOCK.width), (1, tokens - TEXT, BLOCK.width), (1, BLOCK.width))
    network = MMDiT(MMDiTConfig(double_blocks=0, single_blocks=0, conditioned=False))
    rotation = network.rotation(TEXT, GRIDS[tokens], dtype, torch.device("cpu"))
    return tuple(normal(*shape).to(dtype) for shape in shapes), rotation


def alone(block: nn.Module, tokens: int, rows: Mapping[str, int], dtype: torch.dtype) -> Callable[[], Tensor]:
    """The block's matrix products over so many rows, by the start of a layer's name, and its attention; nothing else."""  # noqa: E501
    normal = normals(3)
    layers = [
        (layer, normal(1, 1 if "mod" in name else next(n for start, n in rows.items() if name.startswith(start)),
                       layer.in_features).to(dtype))
        for name, layer in block.named_modules() if isinstance(layer, nn.Linear)
    ]  # fmt: skip
    qkv = [normal(1, BLOCK.heads, tokens, BLOCK.width // BLOCK.heads).to(dtype) for _ in range(3)]

    def run() -> Tensor:
        for layer, x in layers:
            layer(x)
        return F.scaled_dot_product_attention(*qkv)

    return run


# ------------------------------------------------------------------------------------- the others' forms


@cache
def original(upstream: Path) -> Any:
    """The original's module of blocks."""
    spec = importlib.util.spec_from_file_location("record_opensora", RECORDER)
    assert spec is not None
    assert spec.loader is not None
    recorder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recorder)
    recorder.surround(upstream)
    return importlib.import_module("opensora.models.mmdit.layers")


def original_rotation(rotation: Rotation) -> tuple[Tensor, Tensor]:
    cos, sin = (x[None].repeat(1, 1, 2) for x in (rotation.cos_LP, rotation.sin_LP))
    return cos, sin


def flux_rotation(tokens: int) -> tuple[Tensor, Tensor]:
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    video = torch.cartesian_prod(*(torch.arange(n).float() for n in GRIDS[tokens]))
    assert math.prod(GRIDS[tokens]) + TEXT == tokens
    return FluxPosEmbed(10_000, list(BLOCK.axes))(torch.cat([torch.zeros(TEXT, 3), video]))


OUTER = {
    "img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}  # fmt: skip
DOUBLE = {
    "img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear", "img_attn.q_proj": "attn.to_q",
    "img_attn.k_proj": "attn.to_k", "img_attn.v_proj": "attn.to_v", "img_attn.proj": "attn.to_out.0",
    "img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.q_proj": "attn.add_q_proj", "txt_attn.k_proj": "attn.add_k_proj", "txt_attn.v_proj": "attn.add_v_proj",
    "txt_attn.proj": "attn.to_add_out", "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k", "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
}  # fmt: skip
SINGLE = {
    "modulation.lin": "norm.linear", "q_proj": "attn.to_q", "k_proj": "attn.to_k", "linear2": "proj_out",
    "norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k",
}  # fmt: skip


def as_flux(tensors: Mapping[str, Tensor], heads: int, prefix: str = "") -> dict[str, Tensor]:
    """Weights under diffusers' names, with its rotary layout; ``prefix`` says which block these are of, if one."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        layer, _, kind = (prefix + key).rpartition(".")
        kind = "weight" if kind == "scale" else kind
        blocks, *place = layer.split(".", 2)
        if blocks not in ("double_blocks", "single_blocks"):
            parts = tensor.chunk(2)[::-1] if layer == "final_layer.adaLN_modulation.1" else (tensor,)
            found[f"{OUTER[layer]}.{kind}"] = torch.cat(parts)  # diffusers has the scale before the shift
            continue
        number, inner = place
        start = f"{'transformer_blocks' if blocks == 'double_blocks' else 'single_transformer_blocks'}.{number}."
        start = "" if prefix else start
        if inner == "v_mlp":
            width = tensor.shape[0] // 5
            found[f"{start}attn.to_v.{kind}"], found[f"{start}proj_mlp.{kind}"] = tensor[:width], tensor[width:]
            continue
        if inner.endswith(("q_proj", "k_proj", "query_norm", "key_norm")):
            tensor = half_to_adjacent(tensor, 1 if "norm" in inner else heads)  # noqa: PLW2901
        found[f"{start}{(DOUBLE if blocks == 'double_blocks' else SINGLE)[inner]}.{kind}"] = tensor
    return found
