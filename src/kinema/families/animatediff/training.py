"""What AnimateDiff offers to training beyond its recipe: stages, fresh parts in a model that lacks them, LoRAs, and the
files that people exchange.

Stages: ``motion`` (a module over time, put into an image model where it has none), ``image`` (the image layers, on
single frames), ``style`` (what of them makes a style), ``sparsectrl`` and ``scribble`` (control by frames
or by drawings). A LoRA is of the layers that its stage trains: of ``image`` a domain adapter, of ``motion`` a
MotionLoRA.
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
from kinema.families.animatediff.config import Config, Stage
from kinema.families.animatediff.control import sparse
from kinema.families.animatediff.files import lora, motion_file
from kinema.families.animatediff.kinds import kind_of
from kinema.families.animatediff.model import AnimateDiff
from kinema.schema import BadRequest

STAGES = ("image", "style", "motion", "sparsectrl", "scribble")


class AnimateDiffTraining:
    """See `kinema.system.Tuning`."""

    parts: Mapping[str, str] = {}
    adapted = r"unet\..*\.attn[12]\.to_(q|k|v|out\.0)"

    def staged(self, config: Config, name: str) -> Config:
        """The config in a stage, with the part in it that the stage trains."""
        if name not in STAGES:
            raise BadRequest(f"there is no training stage {name!r} of animatediff; expected one of {', '.join(STAGES)}")
        if name == "motion":
            config = with_motion(config)
        if name not in ("sparsectrl", "scribble"):
            return replace(config, stage=cast(Stage, name))
        kind = "rgb" if name == "sparsectrl" else "scribble"
        if config.sparse not in (None, kind):
            raise BadRequest(
                f"this model has SparseCtrl of {config.sparse} already; expected one without, or of {kind}"
            )
        if config.motion == "none":
            raise BadRequest("SparseCtrl steers a motion module, and this image model has none: add motion=FILE first")
        if kind == "scribble" and config.stride != 8:
            told = f"to maps an eighth as large, and this model's are a {config.stride}th"
            raise BadRequest(f"SparseCtrl takes drawings {told}")
        return replace(config, sparse="rgb" if kind == "rgb" else "scribble", stage="sparsectrl")

    def grown(self, model: nn.Module, config: Config, seed: int) -> nn.Module:
        """A network of this config with all the weights that there are, what it lacks freshly made.

        A fresh SparseCtrl begins as the way down of the U-Net (Guo et al. 2023b, §3.2).
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = AnimateDiff(config)
        held = model.state_dict()
        lacks = set(made.load_state_dict(held, strict=False).missing_keys)
        if made.sparse is not None and any(name.startswith("sparse.") for name in lacks):
            ours = made.sparse.state_dict()
            like = {
                name: w for name, w in made.unet.state_dict().items() if name in ours and w.shape == ours[name].shape
            }
            made.sparse.load_state_dict(like, strict=False)
        return made

    def files(
        self, config: Config, tensors: Mapping[str, Tensor], low: Lora | None
    ) -> Mapping[str, Mapping[str, Tensor]]:
        """What was trained as the authors' files hold it."""
        if low is not None:
            return {"motion-lora" if config.trains == "motion" else "adapter": lora.official(low)}
        if config.trains == "motion":
            return {"motion": motion_file.export("official", _inside(tensors, "unet.", ".motion_modules."))}
        if config.trains == "sparsectrl":
            return {"sparsectrl": sparse.export("official", _inside(tensors, "sparse."))}
        return kind_of(config).files(config.trains, tensors)

    def frozen(self, model: nn.Module) -> dict[str, Tensor]:
        """The encoder of the codec. Raises BadRequest where training needs the pixels of every frame."""
        network = cast(AnimateDiff, model)
        if network.unet.config.codec != "vae":
            raise BadRequest("this model works on pixels, so there is nothing to encode beforehand")
        learns = network.sparse is not None and any(p.requires_grad for p in network.sparse.parameters())
        if learns and network.unet.config.sparse == "scribble":
            raise BadRequest(
                "SparseCtrl learns drawings from the pixels of every frame, which clips encoded beforehand have not: "
                "train the stage scribble on the folder of the clips themselves"
            )
        return {f"vae.{k}": w for k, w in network.vae.state_dict().items() if not k.startswith(("decoder.", "post_"))}

    def encode(self, model: nn.Module, video_BCTHW: Tensor) -> dict[str, Tensor]:
        network = cast(AnimateDiff, model)
        return {"latents": recipe.encode(network, network.unet.config, video_BCTHW)}


def with_motion(config: Config) -> Config:
    """The config of an image model with a fresh motion module in it (v3's shape, or XL's), or as it is with one."""
    if config.motion != "none":
        return config
    like = kind_of(config).motion_preset("sdxl" if config.size_embedding else "v3")
    names = ("motion", "motion_mid", "positions", "frames", "fps", "steps", "sampler", "spacing", "guidance", "betas")
    told = {name: getattr(like, name) for name in names}
    return replace(config, motion_heads=gcd(like.motion_heads, *config.channels), **told)


def _inside(tensors: Mapping[str, Tensor], prefix: str, part: str = "") -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and part in name
    }


TRAINING = AnimateDiffTraining()
