"""JSON files of an image model's diffusers folder."""

from __future__ import annotations

from typing import Any

from kinema.checkpoints.source import INDEX
from kinema.conditioning.clip_text import ClipTextSize
from kinema.families.animatediff.config import Config

PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
"""Folder of each network to the stem of its weight file; the last is for SDXL."""


def parts(config: Config) -> tuple[str, ...]:
    """Folders of a model's networks."""
    return tuple(PARTS)[: 2 + len(config.text)]


def configs(config: Config) -> dict[str, dict[str, Any]]:
    """Contents of the folder's JSON files by path."""
    texts = list(zip(("text_encoder", "text_encoder_2"), config.text, strict=False))
    return {
        INDEX: _index(config),
        "unet/config.json": _unet(config),
        "vae/config.json": _vae(config),
        "scheduler/scheduler_config.json": _scheduler(config),
        **{f"{part}/config.json": _text(size) for part, size in texts},
    }


def _index(c: Config) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if c.size_embedding else "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", _scheduler(c)["_class_name"]],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    if c.size_embedding:
        return index | {
            "force_zeros_for_empty_prompt": True,
            "image_encoder": [None, None],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }
    return index | {"requires_safety_checker": False, "safety_checker": [None, None]}


def _unet(c: Config) -> dict[str, Any]:
    deepest = next((depth for depth in reversed(c.depths) if depth), 1)
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": list(c.heads),  # diffusers' name for the number of heads
        "block_out_channels": list(c.channels),
        "cross_attention_dim": c.context,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in c.depths],
        "in_channels": c.in_channels,
        "layers_per_block": c.layers,
        "out_channels": c.latent_channels,
        "sample_size": c.height // c.stride,
        # The middle block has the last level's depth, even if that level has no transformers.
        "transformer_layers_per_block": [*(depth or 1 for depth in c.depths[:-1]), c.depths[-1] or deepest],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(c.depths)],
        "use_linear_projection": c.linear,
    }
    if c.size_embedding:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": c.size_embedding,
            "projection_class_embeddings_input_dim": 6 * c.size_embedding + c.pooled,
        }
    return config


def _vae(c: Config) -> dict[str, Any]:
    levels = len(c.vae_channels)
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": list(c.vae_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": bool(c.size_embedding),
        "in_channels": 3,
        "latent_channels": c.latent_channels,
        "layers_per_block": c.vae_layers,
        "out_channels": 3,
        "sample_size": c.height,
        "scaling_factor": c.latent_scale,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _text(size: ClipTextSize) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModelWithProjection" if size.projection else "CLIPTextModel"],
        "bos_token_id": 0,
        "eos_token_id": 2,  # as published; makes transformers find the end by the largest token
        "hidden_act": size.activation,
        "hidden_size": size.width,
        "intermediate_size": size.mlp,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": size.length,
        "model_type": "clip_text_model",
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "pad_token_id": 1,
        "projection_dim": size.projection or size.width,
        "vocab_size": size.vocabulary,
    }


def _scheduler(c: Config) -> dict[str, Any]:
    """Scheduler config of the published folders."""
    kind, start, end = c.image_betas
    config: dict[str, Any] = {
        "beta_end": end,
        "beta_schedule": kind,
        "beta_start": start,
        "num_train_timesteps": c.timesteps,
        "prediction_type": {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[c.predicts],
        "steps_offset": c.steps_offset,
        "timestep_spacing": "trailing" if c.zero_snr else "leading",
    }
    if c.image_trained_betas:
        config["trained_betas"] = list(c.image_trained_betas)
    if c.zero_snr:
        config["rescale_betas_zero_snr"] = True
    if c.size_embedding:
        return config | {"_class_name": "EulerDiscreteScheduler"}
    if c.zero_snr or c.predicts != "eps":  # PNDM cannot start at pure noise
        return config | {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}
    return config | {"_class_name": "PNDMScheduler", "set_alpha_to_one": False, "skip_prk_steps": True}
