"""AnimateDiff's training stages, fresh add-ons, LoRAs and exported files.

Training stages: ``motion`` (a motion module, added to an image model that has none), ``image`` (the image layers, on
single frames), ``style`` (the finest image layers), ``sparsectrl`` and ``scribble`` (control by frames or scribbles). A
LoRA covers the layers that its stage trains: a domain adapter for ``image``, a MotionLoRA for ``motion``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import gcd
from typing import cast

import torch
from torch import Tensor, nn

from kinema.checkpoints.lora_formats import Lora
from kinema.families.animatediff import recipe
from kinema.families.animatediff.config import CLIP_NOISE, Config, Stage
from kinema.families.animatediff.control import sparse
from kinema.families.animatediff.files import lora, motion_file
from kinema.families.animatediff.kinds import kind_of
from kinema.families.animatediff.model import AnimateDiff
from kinema.schema import BadRequest
from kinema.system import Tuning

STAGES = ("image", "style", "motion", "sparsectrl", "scribble")


class AnimateDiffTraining(Tuning):
    """See `kinema.system.Tuning`."""

    parts: Mapping[str, str] = {}
    adapted = r"unet\..*\.attn[12]\.to_(q|k|v|out\.0)"
    opens_alone = False

    def staged(self, config: Config, name: str) -> Config:
        """The config of a training stage, with the part that it trains."""
        if name not in STAGES:
            raise BadRequest(f"animatediff has no training stage {name!r}; expected one of {', '.join(STAGES)}")
        if name == "motion":
            config = with_motion(config)
        if name not in ("sparsectrl", "scribble"):
            return replace(config, stage=cast(Stage, name))
        kind = "rgb" if name == "sparsectrl" else "scribble"
        if config.sparse not in (None, kind):
            raise BadRequest(f"this model already has SparseCtrl of kind {config.sparse}; expected none or {kind}")
        if config.motion == "none":
            raise BadRequest(
                "SparseCtrl needs a motion module and this image model has none; give --add motion=FILE first"
            )
        if kind == "scribble" and config.stride != 8:
            raise BadRequest(sparse.wrong_stride(config))
        return replace(config, sparse="rgb" if kind == "rgb" else "scribble", stage="sparsectrl")

    def stage(self, config: Config) -> str:
        return config.trains

    def grown(self, model: nn.Module, config: Config, seed: int) -> nn.Module:
        """A network of this config with the model's weights; missing parts are initialised.

        A fresh SparseCtrl starts as a copy of the U-Net's encoder (Guo et al. 2023b, §3.2).
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = AnimateDiff(config)
        state = model.state_dict()
        missing = set(network.load_state_dict(state, strict=False).missing_keys)
        if network.sparse is not None and any(name.startswith("sparse.") for name in missing):
            fresh, unet = network.sparse.state_dict(), network.unet.state_dict()
            encoder = {name: w for name, w in unet.items() if name in fresh and w.shape == fresh[name].shape}
            network.sparse.load_state_dict(encoder, strict=False)
        return network

    def files(
        self, config: Config, tensors: Mapping[str, Tensor], low: Lora | None
    ) -> Mapping[str, Mapping[str, Tensor]]:
        """The trained weights in the authors' file layouts."""
        if low is not None:
            return {"motion-lora" if config.trains == "motion" else "adapter": lora.official(low)}
        if config.trains == "motion":
            return {"motion": motion_file.export("official", _select(tensors, "unet.", ".motion_modules."))}
        if config.trains == "sparsectrl":
            return {"sparsectrl": sparse.export("official", _select(tensors, "sparse."))}
        return kind_of(config).files(config.trains, tensors)

    def frozen(self, model: nn.Module) -> dict[str, Tensor]:
        """The codec's encoder weights; raises `BadRequest` if training needs the pixels of every frame."""
        network = cast(AnimateDiff, model)
        if network.unet.config.codec != "vae":
            raise BadRequest("this model works on pixels; there is nothing to pre-encode")
        trains_sparse = network.sparse is not None and any(p.requires_grad for p in network.sparse.parameters())
        if trains_sparse and network.unet.config.sparse == "scribble":
            raise BadRequest(
                "SparseCtrl for scribbles needs the pixels of every frame, which pre-encoded clips lack: "
                "train the stage scribble on the folder of clips"
            )
        return {f"vae.{k}": w for k, w in network.vae.state_dict().items() if not k.startswith(("decoder.", "post_"))}

    def encode(self, model: nn.Module, video_BCTHW: Tensor) -> dict[str, Tensor]:
        network = cast(AnimateDiff, model)
        return {"latents": recipe.encode(network, network.unet.config, video_BCTHW)}


def with_motion(config: Config) -> Config:
    """Add a fresh motion module to an image model's config (v3's shape or SDXL's); others are returned unchanged."""
    if config.motion != "none":
        return config
    preset = kind_of(config).motion_preset("sdxl" if config.size_embedding else "v3")
    names = ("motion", "motion_mid", "positions", "frames", "fps", "steps", "sampler", "spacing", "guidance")
    values = {name: getattr(preset, name) for name in (*names, *CLIP_NOISE)}
    return replace(config, motion_heads=gcd(preset.motion_heads, *config.channels), **values)


def _select(tensors: Mapping[str, Tensor], prefix: str, part: str = "") -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and part in name
    }


TRAINING = AnimateDiffTraining()
