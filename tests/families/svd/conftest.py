"""Tiny random SVD models, with diffusers models of the same weights as reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kinema.families.svd.config import TINY, Config
from kinema.families.svd.model import SVD

MIDDLE = replace(TINY, channels=(32, 64, 64), heads=(1, 2, 4), vae_channels=(32, 32, 64))
"""Three resolution levels, which cover every kind of block: with and without attention, up, down, shortcut."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Randomise all weights, so that norms, biases and blends differ from their initial 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.add_(torch.randn(p.shape, generator=generator) * (0.7 if "mix_factor" in name else 0.1 / max(1, p.ndim)))
    return module.eval().requires_grad_(False)


def diffusers_unet(config: Config) -> nn.Module:
    from diffusers import UNetSpatioTemporalConditionModel

    plain = len(config.channels) - 1
    return UNetSpatioTemporalConditionModel(
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * plain + ("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * plain,
        block_out_channels=config.channels,
        addition_time_embed_dim=config.scalars[0][1],
        projection_class_embeddings_input_dim=sum(width for _, width in config.scalars),
        layers_per_block=config.layers,
        cross_attention_dim=config.context,
        num_attention_heads=config.heads,
        num_frames=config.frames,
    )


def diffusers_vae(config: Config) -> nn.Module:
    from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

    sizes = {"block_out_channels": config.vae_channels, "layers_per_block": config.vae_layers, "latent_channels": 4}
    down = ("DownEncoderBlock2D",) * len(config.vae_channels)
    if config.decoder == "temporal":
        return AutoencoderKLTemporalDecoder(down_block_types=down, **sizes)
    up = ("UpDecoderBlock2D",) * len(config.vae_channels)
    return AutoencoderKL(down_block_types=down, up_block_types=up, **sizes)


def clip_vision(config: Config) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=config.clip_width,
            intermediate_size=config.clip_mlp,
            projection_dim=config.context,
            num_hidden_layers=config.clip_layers,
            num_attention_heads=config.clip_heads,
            image_size=config.clip_side,
            patch_size=config.clip_patch,
            hidden_act="gelu",
        )
    )


@pytest.fixture(scope="session")
def pair() -> Callable[..., SimpleNamespace]:
    """``pair(config, dtype) -> native, unet, vae, image_encoder`` with the same weights."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")

    def make(config: Config = MIDDLE, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
        native = randomised(SVD(config)).to(dtype)
        reference = {"unet": diffusers_unet(config), "vae": diffusers_vae(config), "image_encoder": clip_vision(config)}
        for name, module in reference.items():
            module.load_state_dict(getattr(native, name).state_dict())
            module.to(dtype).eval().requires_grad_(False)
        return SimpleNamespace(native=native, config=config, **reference)

    return make


# A codec of stride 8, which diffusers' pipeline assumes, and CLIP at the side that it resizes to.
PIPELINE = replace(TINY, frames=5, height=32, width=32, vae_channels=(32, 32, 32, 64), clip_side=224, clip_patch=56)


@pytest.fixture(scope="session")
def saved(pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder saved by diffusers, with random weights of a tiny config."""
    from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
    from transformers import CLIPImageProcessor

    two = pair(PIPELINE)
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    folder = tmp_path_factory.mktemp("saved") / "tiny-video"
    StableVideoDiffusionPipeline(two.vae, two.image_encoder, two.unet, scheduler, CLIPImageProcessor()).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def image_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smooth 32×32 colour gradient."""
    import numpy as np
    from PIL import Image

    across, down = np.meshgrid(np.linspace(0, 255, 32), np.linspace(0, 255, 32))
    path = tmp_path_factory.mktemp("media") / "image.png"
    Image.fromarray(np.stack([across, down, 255 - across / 2], axis=-1).round().astype("uint8")).save(path)
    return path
