"""Tiny random networks, and the same weights in diffusers' classes as the reference."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from kinema.conditioning.clip_text import ClipTextSize
from kinema.families.animatediff.config import MOTION_BETAS, SDXL, TINY, AdapterSize, Betas, Config
from kinema.families.animatediff.files import ip_adapter_file
from kinema.families.animatediff.model import AnimateDiff

MIDDLE = replace(TINY, channels=(32, 64, 64), depths=(1, 1, 0), heads=(2, 2, 2))
"""Three resolution levels, to cover every kind of block: with and without attention, up, down, shortcut."""
LETTERS = replace(MIDDLE, text=(replace(TINY.text[0], vocabulary=64),), norms="diffusers")
"""Config for whole pipelines, with the letters of `tokenizer` as vocabulary."""
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
    """Perturb all weights, so that norms, biases and zero-initialised layers differ from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * (0.1 / max(1, p.ndim)))
    return module.eval().requires_grad_(False)


def image_sizes(config: Config) -> dict:
    """Constructor arguments shared by diffusers' image and motion U-Nets."""
    arguments = {
        "in_channels": config.in_channels,
        "out_channels": config.latent_channels,
        "block_out_channels": config.channels,
        "layers_per_block": config.layers,
        "cross_attention_dim": config.context,
        "transformer_layers_per_block": tuple(max(d, 1) for d in config.depths),
        "use_linear_projection": config.linear,
    }
    if config.size_embedding:
        arguments |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": config.size_embedding,
            "projection_class_embeddings_input_dim": 6 * config.size_embedding + config.pooled,
        }
    return arguments


def diffusers_image_unet(config: Config) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        down_block_types=tuple("CrossAttnDownBlock2D" if d else "DownBlock2D" for d in config.depths),
        up_block_types=tuple("CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(config.depths)),
        attention_head_dim=config.heads,  # diffusers' name for the number of heads
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


def same_weights(reference: nn.Module, network: nn.Module) -> nn.Module:
    """Load a network's weights into the reference; names and shapes must match."""
    state = network.state_dict()
    if not any(name.startswith("text_model.") for name in reference.state_dict()):
        state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    reference.load_state_dict(state, strict=True)
    return reference.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------- pipelines


def tokenizer(folder: Path) -> object:
    """CLIP's tokenizer with a vocabulary of letters, written to a folder: 53 is start, 54 is end."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=TINY.text[0].length)


def scheduler(betas: Betas = MOTION_BETAS) -> object:
    from diffusers import DDIMScheduler

    kind, start, end = betas
    return DDIMScheduler(
        beta_schedule=kind,
        beta_start=start,
        beta_end=end,
        clip_sample=False,
        timestep_spacing="leading",
        steps_offset=1,
    )


def motion_adapter(config: Config) -> nn.Module:
    """The adapter that diffusers' pipelines need in addition to a U-Net with motion modules."""
    from diffusers import MotionAdapter

    return MotionAdapter(
        block_out_channels=config.channels,
        motion_layers_per_block=config.layers,
        motion_num_attention_heads=config.motion_heads,
        motion_max_seq_length=config.positions,
        use_motion_mid_block=config.motion_mid,
    )


def components(config: Config, folder: Path) -> tuple[AnimateDiff, dict[str, object]]:
    """A random model, and its networks and tokenizer as components of diffusers' pipelines."""
    model = randomised(AnimateDiff(config))
    text = clip_text(config.text[0])
    text.config.bos_token_id, text.config.eos_token_id = 53, 54
    return model, {
        "vae": same_weights(diffusers_vae(config), model.vae),
        "text_encoder": same_weights(text, model.text_encoder),
        "tokenizer": tokenizer(folder),
        "unet": same_weights(diffusers_motion_unet(config), model.unet),
    }


@pytest.fixture(scope="session")
def oracle() -> SimpleNamespace:
    """The builders above, as a fixture because a conftest cannot be imported."""
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
        letters=LETTERS,
        tokenizer=tokenizer,
        scheduler=scheduler,
        motion_adapter=motion_adapter,
        components=components,
    )


# ----------------------------------------------------------------------------------------- files


@pytest.fixture(scope="session")
def image_file() -> Callable[[Path, int], str]:
    """``image_file(path, shade)`` writes an image of one colour."""
    from PIL import Image

    def write(path: Path, shade: int) -> str:
        Image.new("RGB", (64, 64), (shade, 255 - shade, 40)).save(path)
        return str(path)

    return write


@pytest.fixture(scope="session")
def adapter_of() -> Callable[..., dict[str, Tensor]]:
    """``adapter_of(size, config, seed=0)``: a random IP-Adapter in the authors' layout."""

    def make(size: AdapterSize, config: Config, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        rows = ip_adapter_file.rows(config, size, 0)
        return {row.foreign: torch.randn(row.shape, generator=generator) * 0.3 for row in rows}

    return make


@pytest.fixture(scope="session")
def nested() -> Callable[[Mapping[str, Tensor]], dict[str, dict[str, Tensor]]]:
    """``nested(adapter)``: the same in two tables, as in `torch.save` files."""

    def make(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        tables: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in flat.items():
            table, _, inner = name.partition(".")
            tables[table][inner] = tensor
        return tables

    return make
