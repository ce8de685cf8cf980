"""Tiny random networks of ours, and the same weights in diffusers' classes: the oracle of these tests."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kinema.conditioning.clip_text import ClipTextSize
from kinema.families.animatediff.config import SDXL, TINY, Config

MIDDLE = replace(TINY, channels=(32, 64, 64), depths=(1, 1, 0), heads=(2, 2, 2))
"""Three levels, so that every kind of block is there: attention, none, up, down, shortcut."""
TINY_XL = replace(
    SDXL,
    frames=4,
    height=16,
    width=16,
    channels=(32, 64, 64),
    layers=1,
    depths=(0, 1, 2),
    heads=(1, 2, 2),
    context=64,
    size_embedding=8,
    text=(
        ClipTextSize(width=32, layers=3, heads=2, mlp=64, length=20),
        ClipTextSize(width=32, layers=3, heads=2, mlp=64, length=20, activation="gelu", projection=24),
    ),
    vae_channels=(32, 64),
    vae_layers=1,
    positions=16,
    motion_heads=2,
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights with nothing left at its start: norms, biases and zero layers are all different from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * (0.1 / max(1, p.ndim)))
    return module.eval().requires_grad_(False)


def image_sizes(config: Config) -> dict:
    """Arguments that diffusers' image and motion U-Nets share."""
    told = {
        "in_channels": config.in_channels,
        "out_channels": config.latent_channels,
        "block_out_channels": config.channels,
        "layers_per_block": config.layers,
        "cross_attention_dim": config.context,
        "transformer_layers_per_block": tuple(max(d, 1) for d in config.depths),
        "use_linear_projection": config.linear,
    }
    if config.size_embedding:
        told |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": config.size_embedding,
            "projection_class_embeddings_input_dim": 6 * config.size_embedding + config.pooled,
        }
    return told


def diffusers_image_unet(config: Config) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        down_block_types=tuple("CrossAttnDownBlock2D" if d else "DownBlock2D" for d in config.depths),
        up_block_types=tuple("CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(config.depths)),
        attention_head_dim=config.heads,  # diffusers' own name for the number of heads
        **image_sizes(config),
    )


def diffusers_motion_unet(config: Config) -> nn.Module:
    from diffusers import UNetMotionModel

    return UNetMotionModel(
        down_block_types=tuple("CrossAttnDownBlockMotion" if d else "DownBlockMotion" for d in config.depths),
        up_block_types=tuple("CrossAttnUpBlockMotion" if d else "UpBlockMotion" for d in reversed(config.depths)),
        num_attention_heads=config.heads,
        motion_max_seq_length=config.positions,
        motion_num_attention_heads=config.motion_heads,
        use_motion_mid_block=config.motion_mid,
        **image_sizes(config),
    )


def diffusers_sparse(config: Config) -> nn.Module:
    from diffusers.models import SparseControlNetModel

    return SparseControlNetModel(
        in_channels=config.latent_channels,
        conditioning_channels=config.latent_channels if config.sparse == "rgb" else 3,
        down_block_types=tuple("CrossAttnDownBlockMotion" if d else "DownBlockMotion" for d in config.depths),
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        cross_attention_dim=config.context,
        num_attention_heads=config.heads,
        motion_max_seq_length=config.sparse_positions,
        motion_num_attention_heads=config.motion_heads,
        use_simplified_condition_embedding=config.sparse == "rgb",
    )


def diffusers_vae(config: Config) -> nn.Module:
    from diffusers import AutoencoderKL

    levels = len(config.vae_channels)
    return AutoencoderKL(
        block_out_channels=config.vae_channels,
        layers_per_block=config.vae_layers,
        latent_channels=config.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=config.latent_scale,
    )


def clip_text(size: ClipTextSize) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if size.projection else CLIPTextModel
    return kind(
        CLIPTextConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            intermediate_size=size.mlp,
            projection_dim=size.projection or 512,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            max_position_embeddings=size.length,
            hidden_act=size.activation,
        )
    )


def same_weights(theirs: nn.Module, ours: nn.Module) -> nn.Module:
    """Theirs with our weights: names and shapes must be the same."""
    state = ours.state_dict()
    if not any(name.startswith("text_model.") for name in theirs.state_dict()):
        state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    theirs.load_state_dict(state, strict=True)
    return theirs.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def oracle() -> SimpleNamespace:
    """The builders above: a conftest cannot be imported."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    return SimpleNamespace(
        middle=MIDDLE,
        tiny_xl=TINY_XL,
        randomised=randomised,
        image_unet=diffusers_image_unet,
        motion_unet=diffusers_motion_unet,
        vae=diffusers_vae,
        clip_text=clip_text,
        sparse=diffusers_sparse,
        same_weights=same_weights,
    )
