"""The JSON files of a folder, written so that diffusers' classes open its networks."""

from __future__ import annotations

from typing import Any

from kinema.families.opensora.files.opening import CODEC, PIPELINE, TRANSFORMER
from kinema.families.opensora.files.vae_file import VaeFile
from kinema.families.opensora.mmdit import MMDiTConfig

STEM = "diffusion_pytorch_model"
CLASSES = {"hunyuan": ("diffusers", "AutoencoderKLHunyuanVideo"), "dc-ae": ("kinema", "VideoDCAE")}


def index(codec: VaeFile | None) -> dict[str, Any]:
    """``model_index.json``; text encoders are not in the folder."""
    index: dict[str, Any] = {"_class_name": PIPELINE, TRANSFORMER: ["diffusers", "FluxTransformer2DModel"]}
    return index | ({CODEC: list(CLASSES[codec.kind])} if codec else {})


def transformer(config: MMDiTConfig) -> dict[str, Any]:
    """For FluxTransformer2DModel, which takes tokens that are patched already and has no ``cond_in``."""
    return {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": config.width // config.heads,
        "axes_dims_rope": list(config.axes),
        "guidance_embeds": config.guided,
        "in_channels": config.features,
        "joint_attention_dim": config.text,
        "num_attention_heads": config.heads,
        "num_layers": config.double_blocks,
        "num_single_layers": config.single_blocks,
        "patch_size": 1,
        "pooled_projection_dim": config.vector,
    }


def vae(codec: VaeFile) -> dict[str, Any]:
    if codec.kind == "dc-ae":
        return {"_class_name": "VideoDCAE", "latent_channels": codec.dc_ae.latent}
    sizes = codec.hunyuan
    levels = len(sizes.channels)
    return {
        "_class_name": "AutoencoderKLHunyuanVideo",
        "block_out_channels": list(sizes.channels),
        "down_block_types": ["HunyuanVideoDownBlock3D"] * levels,
        "latent_channels": sizes.latent,
        "layers_per_block": sizes.layers,
        "mid_block_add_attention": True,
        "norm_num_groups": 32,
        "scaling_factor": sizes.scale,
        "spatial_compression_ratio": sizes.stride[1],
        "temporal_compression_ratio": sizes.stride[0],
        "up_block_types": ["HunyuanVideoUpBlock3D"] * levels,
    }
