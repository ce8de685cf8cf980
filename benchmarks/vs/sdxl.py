"""Stable Diffusion XL with a motion module against diffusers' `AnimateDiffSDXLPipeline`, at the published width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.vs.animatediff import REDUCED, SIDE, SMALL_TEXT, AnimateDiffPair
from benchmarks.vs.pairs import Goals
from kinema.conditioning.clip_text import BIG_G
from kinema.families.animatediff.config import SDXL, Config
from kinema.nn.embeddings import sinusoidal

SIZES = (1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0)
"""Original size, crop and size of both sides."""


FULL_SDXL: Config = replace(
    SDXL, frames=4, height=SIDE, width=SIDE, norms="diffusers", vae_channels=REDUCED.vae_channels,
    text=(SMALL_TEXT, replace(BIG_G, layers=1, mlp=1280)),
)  # fmt: skip


class SDXLPair(AnimateDiffPair):
    name = "sdxl"
    configs: Mapping[str, Config] = {
        "full": FULL_SDXL,
        "reduced": replace(
            FULL_SDXL, channels=(64, 128, 256), depths=(0, 2, 4), heads=(1, 2, 4), context=256, size_embedding=64,
            text=(SMALL_TEXT, replace(BIG_G, layers=1, mlp=1280, projection=256)),
        ),
    }  # fmt: skip
    goals: Goals = {}
    full: Goals = {("step", "bf16"): 1.15, ("step", "fp32"): 1.05}

    def networks(self) -> dict[str, nn.Module]:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        size = self.config.text[1]
        second = CLIPTextConfig(
            vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=size.mlp,
            num_hidden_layers=size.layers, num_attention_heads=size.heads, max_position_embeddings=size.length,
            hidden_act=size.activation, projection_dim=size.projection,
        )  # fmt: skip
        return {**super().networks(), "text_encoder_2": CLIPTextModelWithProjection(second)}

    def own_name(self, network: str, key: str) -> str:
        if network == "text_encoder_2" and key.startswith("text_projection"):
            return f"text_encoder_2.{key}"
        if network == "text_encoder_2":
            return f"text_encoder_2.text_model.{key.removeprefix('text_model.')}"
        return super().own_name(network, key)

    def added(self, normal: Callable[..., Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        pooled, sizes = normal(1, self.config.pooled), torch.tensor([SIZES])
        own = torch.cat([pooled, sinusoidal(sizes.flatten(), self.config.size_embedding).flatten()[None]], 1)
        return own, {"text_embeds": pooled, "time_ids": sizes}

    def further_sizes(self) -> dict[str, Any]:
        c = self.config
        return {
            "transformer_layers_per_block": tuple(max(1, depth) for depth in c.depths),
            "use_linear_projection": c.linear,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": c.size_embedding,
            "projection_class_embeddings_input_dim": 6 * c.size_embedding + c.pooled,
        }
