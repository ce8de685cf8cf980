"""JSON configs of a diffusers folder: written so that diffusers can open it, read to determine the sizes."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import Any

from kinema.bounds import MAX_QUOTED, printable, quoted
from kinema.checkpoints.settings import validated
from kinema.checkpoints.source import INDEX, Source
from kinema.families.svd.layout import Outline
from kinema.schema import BadRequest

PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "image_encoder": "model",
}
"""Stem of the weight file in each network's folder."""

PIPELINE = "StableVideoDiffusionPipeline"

Configs = dict[str, dict[str, Any]]

_HEAD = 64
"""Channels of an attention head in the U-Net, which the weights do not determine."""
_CLIP_HEAD = 80
_SCALING = 0.18215
_V = "v_prediction"

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": _V,
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
HARMLESS: dict[str, Any] = {
    "clip_sample": False,
    "final_sigmas_type": "zero",
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
}
"""Settings that other folders have, with the values that change nothing in SVD's scheduler."""
_WITHOUT_EFFECT = (
    *("_diffusers_version", "_use_default_values"),
    *("beta_start", "beta_end", "beta_schedule", "timestep_spacing", "steps_offset"),
)
"""Settings that Karras's sigmas between two given ends do not depend on."""
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


# ---------------------------------------------------------------------------------------- writing


def configs(o: Outline, frames: int) -> Configs:
    """Build every JSON file of the folder, by path."""
    vae_class = "AutoencoderKLTemporalDecoder" if o.decoder == "temporal" else "AutoencoderKL"
    side = 8 * 96 if o.widths[0] >= 320 else 64
    return {
        INDEX: {
            "_class_name": PIPELINE,
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
    config = {
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
        config |= {"up_block_types": ["UpDecoderBlock2D"] * levels, "use_post_quant_conv": o.post_quant}
    return config


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


def read_configs(source: Source) -> Configs | None:
    """Read the configs of the three networks; None if the source is not a Stable Video Diffusion folder."""
    if source.pipeline != PIPELINE:
        return None
    source.need(tuple(PARTS))
    return {part: source.config(part) for part in PARTS}


def check(source: Source) -> None:
    """Raise BadRequest for config values that these networks do not support and that weights do not show."""
    clip = ("image_encoder", "config.json")
    scheduler, processor = ("scheduler", "scheduler_config.json"), ("feature_extractor", "preprocessor_config.json")
    for place, key, default, expected in (
        (clip, "hidden_act", "quick_gelu", "gelu"),
        (clip, "layer_norm_eps", 1e-5, 1e-5),
        (scheduler, "prediction_type", _V, _V),
        (processor, "image_mean", _CLIP_MEAN, _CLIP_MEAN),
        (processor, "image_std", _CLIP_STD, _CLIP_STD),
    ):
        found = source.config(*place, infinite=True).get(key, default)
        if found != expected:
            raise BadRequest(
                f"{'/'.join(place)} of {source.path} has {key} {printable(str(found), MAX_QUOTED)}; expected {expected}"
            )


def scheduler_note(source: Source) -> str | None:
    """Return a note on settings of the folder's scheduler that differ from the official ones, which are always used.

    `SCHEDULER` has the official ones; settings that it lacks are compared with those that change nothing.
    """
    config = source.config("scheduler", "scheduler_config.json", infinite=True)
    official = {**HARMLESS, **SCHEDULER}
    differing = [
        f"{printable(name, MAX_QUOTED)} {quoted(value)}"
        for name, value in config.items()
        if name not in _WITHOUT_EFFECT and value != official.get(name)
    ]
    if not differing:
        return None
    return f"the folder's scheduler has {', '.join(differing)}; Kinema samples with SVD's official noise levels"


def outline(configs: Configs) -> Outline:
    """Read the sizes from the configs. Raises `BadRequest` for an invalid value."""
    unet, vae, clip = configs["unet"], configs["vae"], configs["image_encoder"]
    temporal = vae.get("_class_name", "AutoencoderKLTemporalDecoder") == "AutoencoderKLTemporalDecoder"
    try:
        vector = int(unet.get("projection_class_embeddings_input_dim", 768))
        patch = int(clip.get("patch_size", 32))
        side = int(clip.get("image_size", 224)) // patch
        sizes = Outline(
            kind="svd" if vector == 3 * int(unet.get("addition_time_embed_dim", 256)) else "sv3d",
            in_channels=int(unet.get("in_channels", 8)),
            out_channels=int(unet.get("out_channels", 4)),
            widths=tuple(map(int, unet.get("block_out_channels", (320, 640, 1280, 1280)))),
            resnets=_shared(unet, "layers_per_block", 2),
            attention=tuple("CrossAttn" in name for name in unet.get("down_block_types", _DOWN)),
            depth=_shared(unet, "transformer_layers_per_block", 1),
            context=_shared(unet, "cross_attention_dim", 1024),
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
            patch=patch,
            embedding=int(clip.get("projection_dim", 512)),
        )
    except BadRequest:  # a ValueError that needs no wrapping
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        reason = quoted(str(error), MAX_QUOTED)
        raise BadRequest(f"a config of this folder contains an invalid value: {reason}") from error
    return validated(sizes, "the configs of this folder")


_DOWN = ("CrossAttn", "CrossAttn", "CrossAttn", "")


def frames(configs: Configs) -> int:
    """Number of frames that the U-Net was trained on."""
    return _positive_integer(configs, "unet", "num_frames", 25)


def heads(configs: Configs, o: Outline) -> tuple[tuple[int, ...], int]:
    """Attention heads of each U-Net level, and of the image encoder."""
    value = configs["unet"].get("num_attention_heads", (5, 10, 20, 20))
    levels = value if isinstance(value, list | tuple) else [value] * len(o.widths)
    integers = all(type(n) is int and n > 0 for n in levels)
    fits = integers and len(levels) == len(o.widths)
    if not fits or any(width % n for width, n in zip(o.widths, levels, strict=True)):
        widths = ", ".join(map(str, o.widths))
        raise BadRequest(f"num_attention_heads of the unet is {quoted(value)}; expected a divisor of each of {widths}")
    clip = _positive_integer(configs, "image_encoder", "num_attention_heads", 12)
    if o.clip_width % clip:
        raise BadRequest(f"num_attention_heads of the image_encoder is {clip}; expected a divisor of {o.clip_width}")
    return tuple(levels), clip


def scaling(configs: Configs) -> float:
    """Factor that latents are multiplied by after encoding."""
    value = configs["vae"].get("scaling_factor", _SCALING)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise BadRequest(f"scaling_factor of the vae is {quoted(value)}; expected a number above 0")
    return float(value)


def _positive_integer(configs: Configs, part: str, name: str, default: int) -> int:
    value = configs[part].get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadRequest(f"{name} of the {part} is {quoted(value)}; expected a whole number of at least 1")
    return value


def _shared(config: Mapping[str, Any], name: str, default: int) -> int:
    """Read a number that diffusers also allows per level; here all levels share it."""
    value = config.get(name, default)
    values = value if isinstance(value, list) else [value]
    if not values or any(v != values[0] for v in values):
        raise BadRequest(f"{name} is {quoted(value)}; expected the same number for all levels")
    return int(values[0])
