"""AnimateDiff against diffusers' `AnimateDiffPipeline`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.vs.pairs import AT, CELLS, FRAMES, FULL, STEPS, Goals, Pair, Work, normals
from kinema.conditioning.clip_text import ClipTextSize
from kinema.diffusion.samplers import SAMPLERS
from kinema.families.animatediff import conditioning
from kinema.families.animatediff.config import V2, V3, Config
from kinema.families.animatediff.family import FAMILY
from kinema.guide import guide
from kinema.schema import Request
from kinema.settle import with_defaults
from kinema.system import Conditions, System

PROMPT = "a cat on a mat"


SIDE = 8 * CELLS
REDUCED: Config = replace(
    V3,
    frames=FRAMES,
    height=SIDE,
    width=SIDE,
    channels=(64, 128, 256, 256),
    context=256,
    text=(ClipTextSize(width=256, layers=12, heads=8, mlp=1024),),
    vae_channels=(64, 128, 256, 256),
    motion="v2",
    motion_mid=True,
    norms="diffusers",
)
SMALL_TEXT = ClipTextSize(width=768, layers=1, heads=12, mlp=768)


class AnimateDiffPair(Pair):
    name = "animatediff"
    family = FAMILY
    configs: Mapping[str, Config] = {
        "reduced": REDUCED,
        "full": replace(
            V2, frames=FRAMES, height=SIDE, width=SIDE, norms="diffusers", text=(SMALL_TEXT,),
            vae_channels=REDUCED.vae_channels,
        ),
        "full decode": replace(REDUCED, frames=4, vae_channels=V2.vae_channels),
    }  # fmt: skip
    goals: Goals = {
        ("step", "fp32"): 1.3,
        ("step", "bf16"): 1.5,
        ("cold", ""): 1 / 0.5,
    }
    full = FULL

    @property
    def about(self) -> str:
        c, decoded = self.config, type(self)(self.width, self.frames, "decode").config
        text = (
            f"U-Net channels {', '.join(map(str, c.channels))}, heads {', '.join(map(str, c.heads))}, context "
            f"{c.context} of {c.text[0].length} tokens, "
            f"motion modules {'with' if c.motion_mid else 'without'} a middle "
            f"and {c.positions} positions, guided step over {c.frames} frames of {self.cells}×{self.cells} latents"
        )
        if ("decode", "fp32") not in self.measured:
            return text
        channels = ", ".join(map(str, decoded.vae_channels))
        return f"{text}; KL codec of channels {channels}, {decoded.frames} frames of {decoded.height}×{decoded.width}"

    def networks(self) -> dict[str, nn.Module]:
        return {"unet": self._unet(), "vae": self._vae(), "text_encoder": self._text()}

    def own_name(self, network: str, key: str) -> str:
        """The text encoder's weights have a prefix in some versions of transformers and none in others."""
        part = "text_encoder.text_model" if network == "text_encoder" else network
        return f"{part}.{key.removeprefix('text_model.')}"

    def one_step(self, system: System, unet: nn.Module, dtype: torch.dtype) -> Work:
        normal, frames, size = normals(1), self.config.frames, self.config.text[0]
        request = with_defaults(system, Request(prompt=PROMPT, seed=1, steps=STEPS))
        contexts = [normal(1, size.length, self.config.context) for _ in range(2)]
        own, added = self.added(normal)
        positive, negative = (conditioning.Condition(context[None].to(system.dtype), own) for context in contexts)
        conditions = Conditions({"positive": positive, "negative": negative})
        levels = system.levels(request)
        denoise = guide(system, conditions, request, system.guidance(request), levels)
        z = normal(1, 4, frames, self.cells, self.cells)

        def kinema_step() -> Tensor:
            return SAMPLERS["ddim"](denoise, z, levels[AT : AT + 2], noise=system.noise(request))

        # The loop body of AnimateDiffPipeline, with its scheduler and network.
        scheduler = self._scheduler()
        scheduler.set_timesteps(STEPS)
        latents = z.to(dtype)
        hidden = torch.cat(contexts[::-1]).to(dtype).repeat_interleave(frames, dim=0)
        added = {name: torch.cat([value] * 2).to(dtype) for name, value in added.items()}

        def diffusers_step() -> Tensor:
            t = scheduler.timesteps[AT]
            x = scheduler.scale_model_input(torch.cat([latents] * 2), t)
            null, cond = unet(x, t, encoder_hidden_states=hidden, added_cond_kwargs=added or None).sample.chunk(2)
            return scheduler.step(null + self.config.guidance * (cond - null), t, latents).prev_sample

        return Work(diffusers_step, kinema_step, weights=(unet, system.model))

    def added(self, normal: Callable[..., Tensor]) -> tuple[Tensor | None, dict[str, Tensor]]:  # noqa: ARG002 (SDXL)
        """Further conditions of both branches: Kinema's vector, and diffusers' names and tensors."""
        return None, {}

    def decoded(self, vae: nn.Module, z_NCHW: Tensor) -> Tensor:
        chunk = 16  # frames that the pipeline decodes at a time
        return torch.cat([vae.decode(part).sample for part in z_NCHW.split(chunk)])

    # --------------------------------------------------------------------------------- cold start

    def folder(self, path: Path) -> None:
        from diffusers import AnimateDiffPipeline, MotionAdapter
        from transformers import CLIPTokenizer

        _, networks = self.parts(torch.float32)
        adapter = MotionAdapter(
            block_out_channels=self.config.channels,
            motion_layers_per_block=self.config.layers,
            motion_num_attention_heads=self.config.motion_heads,
            motion_max_seq_length=self.config.positions,
            use_motion_mid_block=self.config.motion_mid,
        )
        size = write_vocabulary(path / "tokenizer")
        text = networks["text_encoder"]
        text.config.bos_token_id, text.config.eos_token_id = size - 2, size - 1
        tokenizer = CLIPTokenizer.from_pretrained(str(path / "tokenizer"), model_max_length=self.config.text[0].length)
        AnimateDiffPipeline(
            vae=networks["vae"],
            text_encoder=text,
            tokenizer=tokenizer,
            unet=networks["unet"],
            motion_adapter=adapter,
            scheduler=self._scheduler(),
        ).save_pretrained(path)

    def cold(self, side: str, folder: Path) -> str:
        size, frames = self.config.height, self.config.frames
        if side == "theirs":
            return f"""
from diffusers import AnimateDiffPipeline
pipe = AnimateDiffPipeline.from_pretrained({str(folder)!r})
pipe.set_progress_bar_config(disable=True)
pipe({PROMPT!r}, height={size}, width={size}, num_frames={frames}, num_inference_steps=1, output_type="latent")
"""
        return f"""
import kinema
model = kinema.load({str(folder)!r}, overrides=dict(norms="diffusers"))
request = kinema.Request(prompt={PROMPT!r}, height={size}, width={size}, frames={frames}, steps=1, seed=0)
model.run(request, output="latents")
"""

    # -------------------------------------------------------------------------- diffusers' networks

    def _scheduler(self) -> Any:
        from diffusers import DDIMScheduler

        kind, start, end = self.config.betas
        return DDIMScheduler(
            beta_schedule=kind,
            beta_start=start,
            beta_end=end,
            clip_sample=False,
            timestep_spacing="leading",
            steps_offset=1,
        )

    def _unet(self) -> nn.Module:
        from diffusers import UNetMotionModel

        c = self.config
        attends = ["CrossAttnDownBlockMotion" if depth else "DownBlockMotion" for depth in c.depths]
        return UNetMotionModel(
            in_channels=c.in_channels,
            out_channels=c.latent_channels,
            down_block_types=tuple(attends),
            up_block_types=tuple(name.replace("Down", "Up") for name in reversed(attends)),
            block_out_channels=c.channels,
            layers_per_block=c.layers,
            cross_attention_dim=c.context,
            num_attention_heads=c.heads,
            motion_max_seq_length=c.positions,
            motion_num_attention_heads=c.motion_heads,
            use_motion_mid_block=c.motion_mid,
            **self.further_sizes(),
        )

    def further_sizes(self) -> dict[str, Any]:
        """Further sizes of diffusers' U-Net."""
        return {}

    def _vae(self) -> nn.Module:
        from diffusers import AutoencoderKL

        levels = len(self.config.vae_channels)
        return AutoencoderKL(
            block_out_channels=self.config.vae_channels,
            layers_per_block=self.config.vae_layers,
            latent_channels=self.config.latent_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            scaling_factor=self.config.latent_scale,
        )

    def _text(self) -> nn.Module:
        from transformers import CLIPTextConfig, CLIPTextModel

        size = self.config.text[0]
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=size.vocabulary,
                hidden_size=size.width,
                intermediate_size=size.mlp,
                num_hidden_layers=size.layers,
                num_attention_heads=size.heads,
                max_position_embeddings=size.length,
                hidden_act=size.activation,
            )
        )


def write_vocabulary(folder: Path) -> int:
    """Write about as many byte pairs as CLIP: all runs of two and three letters, inside and at the end of words."""
    letters, ends = list(ascii_lowercase), [f"{letter}</w>" for letter in ascii_lowercase]
    merges = [(a, b) for a, b in product(letters, letters + ends)]
    merges += [(a + b, c) for a, b, c in product(letters, letters, letters + ends)]
    tokens = [*letters, *ends, *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(tokens)
