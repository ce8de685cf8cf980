"""Stable Video Diffusion against diffusers' `StableVideoDiffusionPipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.vs.pairs import AT, CELLS, FRAMES, FULL, STEPS, Goals, Pair, Work, normals
from kinema.diffusion.samplers import SAMPLERS
from kinema.families.svd import conditioning, recipe
from kinema.families.svd.config import SVD as SVD_FULL
from kinema.families.svd.config import Config
from kinema.families.svd.family import FAMILY
from kinema.guide import guide
from kinema.schema import Request
from kinema.settle import with_defaults
from kinema.system import Conditions, System

IMAGE = "image.png"


SIDE = 8 * CELLS
SMALL_CLIP = {"clip_width": 64, "clip_layers": 1, "clip_heads": 1, "clip_mlp": 64}
REDUCED: Config = replace(
    SVD_FULL,
    frames=FRAMES,
    height=SIDE,
    width=SIDE,
    guidance=(1.0, 3.0),
    channels=(64, 128, 256, 256),
    heads=(1, 2, 4, 4),
    context=256,
    scalars=(("fps", 64), ("motion_bucket", 64), ("augmentation", 64)),
    norm_eps="diffusers",
    vae_channels=(64, 128, 256, 256),
    clip_width=640,
    clip_layers=8,
    clip_heads=8,
    clip_mlp=2560,
    clip_patch=32,
)


class SVDPair(Pair):
    name = "svd"
    family = FAMILY
    configs: Mapping[str, Config] = {
        "reduced": REDUCED,
        "full": replace(
            SVD_FULL, frames=FRAMES, height=SIDE, width=SIDE, guidance=(1.0, 3.0), norm_eps="diffusers",
            vae_channels=REDUCED.vae_channels, **SMALL_CLIP,
        ),
        "full decode": replace(REDUCED, frames=4, vae_channels=SVD_FULL.vae_channels, **SMALL_CLIP),
    }  # fmt: skip
    goals: Goals = {
        ("step", "fp32"): 1.3,
        ("step", "bf16"): 1.35,
        ("decode", "fp32"): 1 / 0.6,
        ("decode", "bf16"): 1 / 0.7,
        ("memory", "fp32"): 1 / 0.6,
        ("memory", "bf16"): 1 / 0.6,
        ("cold", ""): 1 / 0.5,
        ("compiled", "bf16"): 1.6,
    }
    full = FULL

    @property
    def about(self) -> str:
        return f"{about(self.config)}; {about(type(self)(self.width, self.frames, 'decode').config, 'decode')}"

    def networks(self) -> dict[str, nn.Module]:
        return {"unet": self._unet(), "vae": self._vae(), "image_encoder": self._clip()}

    def one_step(self, system: System, unet: nn.Module, dtype: torch.dtype) -> Work:
        normal, frames, cells = normals(1), self.config.frames, self.cells
        request = with_defaults(system, Request(prompt=" ", seed=1, steps=STEPS))
        context, image_latents = normal(1, 1, self.config.context), normal(1, 4, 1, cells, cells)
        scalars = conditioning.scalars(self.config, request)
        positive = conditioning.Condition(context.to(system.dtype), image_latents.to(system.dtype), scalars)
        conditions = Conditions({"positive": positive, "negative": positive.null()})
        levels = system.levels(request)
        denoise = guide(system, conditions, request, system.guidance(request), levels)
        z = normal(1, 4, frames, cells, cells) * levels.sigma[AT]

        def kinema_step() -> Tensor:
            return SAMPLERS["euler"](denoise, z, levels[AT : AT + 2], noise=system.noise(request))

        # The loop body of StableVideoDiffusionPipeline, with its scheduler and network.
        scheduler = self._scheduler()
        scheduler.set_timesteps(STEPS)
        latents = z.transpose(1, 2).to(dtype)
        image = (
            torch.cat([torch.zeros_like(image_latents), image_latents])
            .transpose(1, 2)
            .to(dtype)
            .repeat(1, frames, 1, 1, 1)
        )
        hidden = torch.cat([torch.zeros_like(context), context]).to(dtype)
        ids = torch.cat([scalars[:, 0]] * 2).to(dtype)
        weight = conditioning.guidance(self.config, request).reshape(1, -1, 1, 1, 1).to(dtype)

        def diffusers_step() -> Tensor:
            scheduler._step_index, t = AT, scheduler.timesteps[AT]
            x = scheduler.scale_model_input(torch.cat([latents] * 2), t)
            out = unet(torch.cat([x, image], dim=2), t, hidden, added_time_ids=ids, return_dict=False)[0]
            null, cond = out.chunk(2)
            return scheduler.step(null + weight * (cond - null), t, latents).prev_sample.transpose(1, 2)

        return Work(diffusers_step, kinema_step, weights=(unet, system.model))

    def decoded(self, vae: nn.Module, z_NCHW: Tensor) -> Tensor:
        return vae.decode(z_NCHW, num_frames=self.config.frames).sample

    # --------------------------------------------------------------------------------- cold start

    def folder(self, path: Path, dtype: torch.dtype = torch.float32) -> None:
        from diffusers import StableVideoDiffusionPipeline
        from transformers import CLIPImageProcessor

        _, networks = self.parts(dtype)
        StableVideoDiffusionPipeline(
            networks["vae"], networks["image_encoder"], networks["unet"], self._scheduler(), CLIPImageProcessor()
        ).save_pretrained(path)
        side = self.config.height
        Image.effect_noise((side, side), 64).convert("RGB").save(path / IMAGE)

    def cold(self, side: str, folder: Path) -> str:
        size, frames = self.config.height, self.config.frames
        if side == "theirs":
            return f"""
from diffusers import StableVideoDiffusionPipeline
from diffusers.utils import load_image
pipe = StableVideoDiffusionPipeline.from_pretrained({str(folder)!r})
pipe.set_progress_bar_config(disable=True)
pipe(load_image({str(folder / IMAGE)!r}), height={size}, width={size}, num_frames={frames}, num_inference_steps=1,
     output_type="latent")
"""
        return f"""
import kinema
model = kinema.load({str(folder)!r}, overrides=dict(frames={frames}, height={size}, width={size}))
request = kinema.Request(task="animate", image={str(folder / IMAGE)!r}, steps=1, seed=0)
model.run(request, output="latents")
"""

    # -------------------------------------------------------------------------- diffusers' networks

    def _scheduler(self) -> Any:
        from diffusers import EulerDiscreteScheduler

        return EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            sigma_min=recipe.SCHEDULE.sigma_min,
            sigma_max=recipe.SCHEDULE.sigma_max,
            timestep_spacing="leading",
            timestep_type="continuous",
            use_karras_sigmas=True,
        )

    def _unet(self) -> nn.Module:
        from diffusers import UNetSpatioTemporalConditionModel

        plain = len(self.config.channels) - 1
        return UNetSpatioTemporalConditionModel(
            in_channels=8,
            out_channels=4,
            down_block_types=("CrossAttnDownBlockSpatioTemporal",) * plain + ("DownBlockSpatioTemporal",),
            up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * plain,
            block_out_channels=self.config.channels,
            addition_time_embed_dim=self.config.scalars[0][1],
            projection_class_embeddings_input_dim=sum(width for _, width in self.config.scalars),
            layers_per_block=self.config.layers,
            cross_attention_dim=self.config.context,
            num_attention_heads=self.config.heads,
            num_frames=self.config.frames,
            sample_size=self.cells,
        )

    def _vae(self) -> nn.Module:
        from diffusers import AutoencoderKLTemporalDecoder

        return AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * len(self.config.vae_channels),
            block_out_channels=self.config.vae_channels,
            layers_per_block=self.config.vae_layers,
            latent_channels=self.config.latent_channels,
        )

    def _clip(self) -> nn.Module:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        c = self.config
        return CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=c.clip_width,
                intermediate_size=c.clip_mlp,
                projection_dim=c.context,
                num_hidden_layers=c.clip_layers,
                num_attention_heads=c.clip_heads,
                image_size=c.clip_side,
                patch_size=c.clip_patch,
                hidden_act="gelu",
            )
        )


def about(config: Config, what: str = "step") -> str:
    """What is measured, in words."""
    cells, channels = config.height // config.stride, ", ".join(map(str, config.vae_channels))
    if what == "decode":
        return f"temporal VAE channels {channels}, {config.frames} frames of {config.height}×{config.width} pixels"
    channels = ", ".join(map(str, config.channels))
    return (
        f"U-Net channels {channels}, context {config.context}, guided step over {config.frames} frames of "
        f"{cells}×{cells} latents"
    )
