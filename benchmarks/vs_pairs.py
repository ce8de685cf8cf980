"""The same network twice, ours and diffusers', with the same random weights: one `Pair` a family.

Sizes are reduced and realistic: every kind of block is there, and a guided step is about 200 GFLOP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from kinema.families.svd import conditioning, recipe
from kinema.families.svd.config import SVD as SVD_FULL
from kinema.families.svd.config import Config
from kinema.families.svd.family import FAMILY
from kinema.generate import Held, guide
from kinema.nn.ldm_unet import channels_last
from kinema.schema import Request
from kinema.system import Conditions, System, Weights, with_model

FRAMES, CELLS = 8, 32
PICTURE = "picture.png"


@dataclass(frozen=True)
class Work:
    """One thing that both do: calls that return the same numbers."""

    theirs: Callable[[], Tensor]
    ours: Callable[[], Tensor]


class Pair(Protocol):
    """What a family brings to the comparison. ``dtype`` is the precision both run in."""

    name: str
    about: str

    def step(self, dtype: torch.dtype, compiled: bool) -> dict[str, Work]:
        """A guided sampling step, each as its own pipeline does it, by the name of the variant."""

    def decode(self, dtype: torch.dtype) -> dict[str, Work]:
        """The decoding of one clip."""

    def folder(self, path: Path) -> None:
        """Write a diffusers folder of about 500 MB for the cold start."""

    def cold(self, side: str, folder: Path) -> str:
        """A Python program that loads the folder and takes one step, from nothing."""


def spread_out(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights with nothing left at its start: norms, biases and blends all count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * (0.1 / max(1, p.ndim)))
    return module.eval().requires_grad_(False)


# --------------------------------------------------------------------------------------------- SVD


class SVDPair:
    name = "svd"
    about = (
        f"U-Net channels 64, 128, 256, 256, context 256, guided step over {FRAMES} frames of {CELLS}×{CELLS} latents; "
        f"temporal VAE channels 64, 128, 256, 256, {FRAMES} frames of {8 * CELLS}×{8 * CELLS} pixels"
    )
    config: Config = replace(
        SVD_FULL,
        frames=FRAMES,
        height=8 * CELLS,
        width=8 * CELLS,
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

    def parts(self, dtype: torch.dtype) -> tuple[System, dict[str, nn.Module]]:
        torch.manual_seed(0)
        theirs = {"unet": self._unet(), "vae": self._vae(), "image_encoder": self._clip()}
        state = {}
        for name, module in theirs.items():
            spread_out(module)
            state |= {f"{name}.{key}": value for key, value in module.state_dict().items() if "position_ids" not in key}
        with torch.device("meta"):
            model = FAMILY.build(self.config)
        model.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
        for module in theirs.values():
            module.to(dtype)
        # Like `kinema.load`: where the processor has no units for the precision, weights are only rounded to it.
        from kinema.system import arithmetic

        computed = arithmetic(dtype, torch.device("cpu"))
        model = model.to(dtype).to(computed).eval().requires_grad_(False)
        channels_last(model)
        system = System("svd", FAMILY, self.config, Weights(), dtype=computed)
        return with_model(system, model), theirs

    def step(self, dtype: torch.dtype, compiled: bool) -> dict[str, Work]:
        system, theirs = self.parts(dtype)
        variants = {"step": (system, theirs["unet"])}
        if system.dtype != dtype:  # also with both computing in the precision asked for
            exact, _ = self.parts(dtype)
            exact = with_model(replace(exact, dtype=dtype), exact.model.to(dtype))
            variants["step, both in bf16 arithmetic"] = (exact, theirs["unet"])
        if compiled:
            eager = theirs["unet"]
            for name, (one, unet) in list(variants.items()):
                fast, _ = self.parts(dtype)
                fast = with_model(replace(fast, dtype=one.dtype), fast.model.to(one.dtype))
                for block in FAMILY.blocks(fast.model):
                    block.compile()
                variants[f"{name}, ours compiled, theirs eager"] = (fast, eager)
                variants[f"{name}, both compiled"] = (fast, torch.compile(unet))
        return {name: self._step(one, unet, dtype) for name, (one, unet) in variants.items()}

    def _step(self, system: System, unet: nn.Module, dtype: torch.dtype) -> Work:
        from diffusers import EulerDiscreteScheduler

        generator = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        steps, at = 20, 8
        request = system.settle(Request(prompt=" ", seed=1, steps=steps))
        context, picture = normal(1, 1, self.config.context), normal(1, 4, 1, CELLS, CELLS)
        told = conditioning.scalars(self.config, request)
        wanted = conditioning.Condition(context.to(system.dtype), picture.to(system.dtype), told)
        scale = conditioning.guidance(self.config, request)
        conditions = Conditions(wanted, wanted.null(), scale)
        denoise = guide(system, conditions, request, scale, Held(None, None, 0.0))
        levels = system.levels(request)
        z = normal(1, 4, FRAMES, CELLS, CELLS) * levels.sigma[at]

        def ours() -> Tensor:
            from kinema.diffusion.samplers import SAMPLERS

            return SAMPLERS["euler"](denoise, z, levels[at : at + 2], noise=system.noise(request))

        # The body of StableVideoDiffusionPipeline's loop, on its scheduler and its network.
        scheduler = EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            sigma_min=recipe.SCHEDULE.sigma_min,
            sigma_max=recipe.SCHEDULE.sigma_max,
            timestep_spacing="leading",
            timestep_type="continuous",
            use_karras_sigmas=True,
        )
        scheduler.set_timesteps(steps)
        latents = z.transpose(1, 2).to(dtype)
        image = torch.cat([torch.zeros_like(picture), picture]).transpose(1, 2).to(dtype).repeat(1, FRAMES, 1, 1, 1)
        hidden = torch.cat([torch.zeros_like(context), context]).to(dtype)
        ids = torch.cat([told[:, 0]] * 2).to(dtype)
        weight = scale.reshape(1, -1, 1, 1, 1).to(dtype)

        def theirs() -> Tensor:
            scheduler._step_index, t = at, scheduler.timesteps[at]
            x = scheduler.scale_model_input(torch.cat([latents] * 2), t)
            out = unet(torch.cat([x, image], dim=2), t, hidden, added_time_ids=ids, return_dict=False)[0]
            null, cond = out.chunk(2)
            return scheduler.step(null + weight * (cond - null), t, latents).prev_sample.transpose(1, 2)

        return Work(theirs, ours)

    def decode(self, dtype: torch.dtype) -> dict[str, Work]:
        system, theirs = self.parts(dtype)
        z = torch.randn(1, 4, FRAMES, CELLS, CELLS, generator=torch.Generator().manual_seed(1))
        folded = (z / self.config.latent_scale).transpose(1, 2).flatten(0, 1).to(dtype)
        vae = theirs["vae"]

        def of_theirs() -> Tensor:
            return vae.decode(folded, num_frames=FRAMES).sample.unflatten(0, (1, FRAMES)).transpose(1, 2)

        works = {"decode": Work(of_theirs, lambda: system.codec.decode(z.to(system.dtype)))}
        if system.dtype != dtype:
            exact = with_model(replace(system, dtype=dtype), self.parts(dtype)[0].model.to(dtype))
            works["decode, both in bf16 arithmetic"] = Work(of_theirs, lambda: exact.codec.decode(z.to(dtype)))
        return works

    # --------------------------------------------------------------------------------- cold start

    def folder(self, path: Path) -> None:
        from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
        from transformers import CLIPImageProcessor

        _, theirs = self.parts(torch.float32)
        scheduler = EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            sigma_min=recipe.SCHEDULE.sigma_min,
            sigma_max=recipe.SCHEDULE.sigma_max,
            timestep_spacing="leading",
            timestep_type="continuous",
            use_karras_sigmas=True,
        )
        StableVideoDiffusionPipeline(
            theirs["vae"], theirs["image_encoder"], theirs["unet"], scheduler, CLIPImageProcessor()
        ).save_pretrained(path)
        side = 8 * CELLS
        Image.effect_noise((side, side), 64).convert("RGB").save(path / PICTURE)

    def cold(self, side: str, folder: Path) -> str:
        size = 8 * CELLS
        if side == "theirs":
            return f"""
from diffusers import StableVideoDiffusionPipeline
from diffusers.utils import load_image
pipe = StableVideoDiffusionPipeline.from_pretrained({str(folder)!r})
pipe.set_progress_bar_config(disable=True)
pipe(load_image({str(folder / PICTURE)!r}), height={size}, width={size}, num_frames={FRAMES}, num_inference_steps=1,
     output_type="latent")
"""
        return f"""
import kinema
model = kinema.load({str(folder)!r}, overrides=dict(frames={FRAMES}, height={size}, width={size}))
request = kinema.Request(task="animate", image={str(folder / PICTURE)!r}, steps=1, seed=0)
model.run(request, output="latents")
"""

    # -------------------------------------------------------------------------- diffusers' networks

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
            num_frames=FRAMES,
            sample_size=CELLS,
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


PAIRS: dict[str, Any] = {"svd": SVDPair}
"""Family to its pair. A second family is one class with the six members of `Pair`."""
