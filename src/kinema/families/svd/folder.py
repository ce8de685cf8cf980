"""The JSON files of a diffusers folder: written so that diffusers opens it, read to tell the sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import gcd
from pathlib import Path
from typing import Any

from kinema.families.svd.layout import Outline
from kinema.schema import BadRequest

PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "image_encoder": "model",
}
"""Folder of each network to the stem of its weight file."""

Configs = dict[str, dict[str, Any]]

_HEAD = 64
"""Channels of an attention head in the U-Net; weights do not tell it."""
_CLIP_HEAD = 80
_SCALING = 0.18215

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


# ---------------------------------------------------------------------------------------- writing


def configs(o: Outline, frames: int) -> Configs:
    """Every JSON file of the folder, by its path."""
    vae_class = "AutoencoderKLTemporalDecoder" if o.decoder == "temporal" else "AutoencoderKL"
    side = 8 * 96 if o.widths[0] >= 320 else 64
    return {
        "model_index.json": {
            "_class_name": "StableVideoDiffusionPipeline",
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
            "scheduler": ["diffusers", "EulerDiscreteScheduler"],
            "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
            "vae": ["diffusers", vae_class],
        },
        "unet/config.json": _unet(o, frames, side // 8),
        "vae/config.json": _vae(o, vae_class, side),
        "image_encoder/config.json": _image_encoder(o),
        "scheduler/scheduler_config.json": dict(SCHEDULER),
        "feature_extractor/preprocessor_config.json": _preprocessor(o),
    }


def _unet(o: Outline, frames: int, side: int) -> dict[str, Any]:
    down = ["CrossAttnDownBlockSpatioTemporal" if a else "DownBlockSpatioTemporal" for a in o.attention]
    up = ["CrossAttnUpBlockSpatioTemporal" if a else "UpBlockSpatioTemporal" for a in reversed(o.attention)]
    scalars = {"svd": 3}.get(o.kind, 5 if o.vector % 5 == 0 else 1)
    return {
        "_class_name": "UNetSpatioTemporalConditionModel",
        "addition_time_embed_dim": o.vector // scalars,
        "block_out_channels": list(o.widths),
        "cross_attention_dim": o.context,
        "down_block_types": down,
        "in_channels": o.in_channels,
        "layers_per_block": o.resnets,
        "num_attention_heads": [width // gcd(_HEAD, *o.widths) for width in o.widths],
        "num_frames": frames,
        "out_channels": o.out_channels,
        "projection_class_embeddings_input_dim": o.vector,
        "sample_size": side,
        "transformer_layers_per_block": o.depth,
        "up_block_types": up,
    }


def _vae(o: Outline, name: str, side: int) -> dict[str, Any]:
    levels = len(o.vae_widths)
    told = {
        "_class_name": name,
        "block_out_channels": list(o.vae_widths),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": o.latent,
        "layers_per_block": o.vae_resnets,
        "out_channels": 3,
        "sample_size": side,
        "scaling_factor": _SCALING,
    }
    if o.decoder == "image":
        told |= {"up_block_types": ["UpDecoderBlock2D"] * levels, "use_post_quant_conv": o.post_quant}
    return told


def _image_encoder(o: Outline) -> dict[str, Any]:
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "hidden_act": "gelu",
        "hidden_size": o.clip_width,
        "image_size": o.clip_side,
        "intermediate_size": o.clip_hidden,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": o.clip_width // gcd(_CLIP_HEAD, o.clip_width),
        "num_channels": 3,
        "num_hidden_layers": o.clip_layers,
        "patch_size": o.patch,
        "projection_dim": o.embedding,
    }


def _preprocessor(o: Outline) -> dict[str, Any]:
    side = o.clip_side
    return {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": _CLIP_MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": _CLIP_STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    }


# ---------------------------------------------------------------------------------------- reading


def read_configs(path: Path) -> Configs | None:
    """The configs of the three networks; None where the folder is not one of Stable Video Diffusion."""
    index = path / "model_index.json"
    if not index.is_file() or _read(index).get("_class_name") != "StableVideoDiffusionPipeline":
        return None
    absent = [part for part in PARTS if not (path / part / "config.json").is_file()]
    if absent:
        raise BadRequest(f"the folder {path} lacks {absent[0]}/config.json")
    return {part: _read(path / part / "config.json") for part in PARTS}


def outline(told: Configs) -> Outline:
    """The sizes that the configs tell. Raises `BadRequest` for a value that these networks cannot have."""
    unet, vae, clip = told["unet"], told["vae"], told["image_encoder"]
    temporal = vae.get("_class_name", "AutoencoderKLTemporalDecoder") == "AutoencoderKLTemporalDecoder"
    try:
        vector = int(unet.get("projection_class_embeddings_input_dim", 768))
        side = int(clip.get("image_size", 224)) // int(clip.get("patch_size", 14))
        return Outline(
            kind="svd" if vector == 3 * int(unet.get("addition_time_embed_dim", 256)) else "sv3d",
            in_channels=int(unet.get("in_channels", 8)),
            out_channels=int(unet.get("out_channels", 4)),
            widths=tuple(map(int, unet.get("block_out_channels", (320, 640, 1280, 1280)))),
            resnets=_one(unet, "layers_per_block", 2),
            attention=tuple("CrossAttn" in name for name in unet.get("down_block_types", _DOWN)),
            depth=_one(unet, "transformer_layers_per_block", 1),
            context=_one(unet, "cross_attention_dim", 1024),
            vector=vector,
            vae_widths=tuple(map(int, vae.get("block_out_channels", (64,)))),
            vae_resnets=int(vae.get("layers_per_block", 1)),
            latent=int(vae.get("latent_channels", 4)),
            decoder="temporal" if temporal else "image",
            post_quant=not temporal and bool(vae.get("use_post_quant_conv", True)),
            clip_width=int(clip.get("hidden_size", 768)),
            clip_hidden=int(clip.get("intermediate_size", 3072)),
            clip_layers=int(clip.get("num_hidden_layers", 12)),
            clip_positions=side**2 + 1,
            patch=int(clip.get("patch_size", 32)),
            embedding=int(clip.get("projection_dim", 512)),
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise BadRequest(f"a config of this folder holds a value that cannot be: {error}") from error


_DOWN = ("CrossAttn", "CrossAttn", "CrossAttn", "")


def frames(told: Configs) -> int:
    return int(told["unet"].get("num_frames", 25))


def _one(config: Mapping[str, Any], name: str, default: int) -> int:
    """A number that diffusers also takes as a list; here one for all levels."""
    value = config.get(name, default)
    values = value if isinstance(value, list) else [value]
    if not values or any(v != values[0] for v in values):
        raise BadRequest(f"{name} is {value}; expected one number for all levels")
    return int(values[0])


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path} cannot be read as JSON: it is damaged or not there") from error
    if not isinstance(told, dict):
        raise BadRequest(f"{path} holds no table of names and values")
    return told
