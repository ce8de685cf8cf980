"""Parity with Open-Sora's own code (recorded by tools/record_opensora.py) and diffusers' Flux and HunyuanVideo VAE.

Tolerances are relative to the largest value. Weights have a deviation of 0.15: smaller ones hide a wrong rotary layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.diffusion.noise import Noise
from kinema.diffusion.samplers import SAMPLERS
from kinema.families.opensora import mmdit as module
from kinema.families.opensora.conditioning import Condition
from kinema.families.opensora.config import Config
from kinema.families.opensora.dc_ae import DCAEConfig, VideoDCAE
from kinema.families.opensora.family import FAMILY
from kinema.families.opensora.mmdit import MMDiT, MMDiTConfig
from kinema.guide import guide
from kinema.schema import Request
from kinema.system import Conditions, System, Weights, with_model
from kinema.vae.causal3d import CausalAutoencoder

Fill = Callable[..., nn.Module]
Recorded = Callable[[str], dict[str, Tensor]]


def relative(native: Tensor, foreign: Tensor) -> float:
    return float((native.detach() - foreign.detach()).abs().max() / foreign.abs().max())


# ----------------------------------------------------------------------------------- transformer


def output(config: MMDiTConfig, fill: Fill, recorded: Recorded) -> tuple[Tensor, Tensor]:
    """Ours and the original's, with conditioning."""
    told = recorded("mmdit")
    given = torch.cat([told["mask"], told["given"]], dim=1)
    with torch.no_grad():
        native = fill(MMDiT(config), 7)(told["z"], told["time"], told["text"], told["pooled"], given)
    return native, told["out.unfused"]


def test_the_transformer_equals_the_original(mmdit: MMDiTConfig, fill: Fill, recorded: Recorded) -> None:
    assert relative(*output(mmdit, fill, recorded)) < 1e-5


def test_another_rotary_layout_does_not(mmdit: MMDiTConfig, fill: Fill, recorded: Recorded) -> None:
    assert relative(*output(replace(mmdit, rope="adjacent"), fill, recorded)) > 1e-3


def test_another_norm_does_not(mmdit: MMDiTConfig, fill: Fill, recorded: Recorded) -> None:
    with patch.object(module.RMSNorm, "forward", lambda norm, x: F.layer_norm(x, norm.scale.shape, norm.scale)):
        assert relative(*output(mmdit, fill, recorded)) > 1e-3


def test_another_order_of_modulation_does_not(mmdit: MMDiTConfig, fill: Fill, recorded: Recorded) -> None:
    swapped = module.modulated
    with patch.object(module, "modulated", lambda x, shift, scale: swapped(x, scale, shift)):
        assert relative(*output(mmdit, fill, recorded)) > 1e-3


def test_the_transformer_without_conditioning_equals_flux_of_diffusers(fill: Fill) -> None:
    config = MMDiTConfig(
        channels=5, text=24, vector=12, width=48, heads=3, mlp=4.0, double_blocks=2, single_blocks=3, axes=(4, 6, 6),
        rope="adjacent", conditioned=False, guided=True,
    )  # fmt: skip
    native = fill(MMDiT(config), 3)
    flux = FluxTransformer2DModel(
        patch_size=1, in_channels=20, num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=24, pooled_projection_dim=12, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    ).eval()  # fmt: skip
    flux.load_state_dict(as_flux(dict(native.state_dict())))
    z, text, pooled = torch.randn(2, 5, 3, 4, 6), torch.randn(2, 7, 24), torch.randn(2, 12)
    time, guidance = torch.tensor([0.9, 0.2]), torch.tensor([3.5, 1.0])
    ids = torch.cartesian_prod(*(torch.arange(n).float() for n in (3, 2, 3)))
    with torch.no_grad():
        foreign = flux(
            hidden_states=module.patched(z, 2), encoder_hidden_states=text, pooled_projections=pooled, timestep=time,
            guidance=guidance, img_ids=ids, txt_ids=torch.zeros(7, 3),
        ).sample  # fmt: skip
        assert relative(module.patched(native(z, time, text, pooled, None, guidance), 2), foreign) < 1e-5


def test_times_are_rounded_before_they_are_embedded_in_bf16(mmdit: MMDiTConfig, fill: Fill) -> None:
    """As in the original, whose times have the model's precision before they are multiplied by 1000."""
    model, seen = fill(MMDiT(mmdit), 1).bfloat16(), []
    model.time_in.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    z, text, pooled = torch.randn(1, 5, 1, 4, 4), torch.randn(1, 3, 24), torch.randn(1, 12)
    with torch.no_grad():
        model(z.bfloat16(), torch.tensor([0.95583]), text.bfloat16(), pooled.bfloat16())
    rates = torch.exp(-np.log(10_000) * torch.arange(128) / 128)
    expected = torch.cat([(956 * rates).cos(), (956 * rates).sin()])
    assert torch.allclose(seen[0][0].float(), expected.float(), atol=2**-8)


def as_flux(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of diffusers' class for native, written down apart from the converter in the package."""
    pairs = {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    }
    double = {
        "img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear",
        "img_attn.q_proj": "attn.to_q", "img_attn.k_proj": "attn.to_k", "img_attn.v_proj": "attn.to_v",
        "img_attn.proj": "attn.to_out.0", "img_attn.norm.query_norm": "attn.norm_q",
        "img_attn.norm.key_norm": "attn.norm_k", "txt_attn.q_proj": "attn.add_q_proj",
        "txt_attn.k_proj": "attn.add_k_proj", "txt_attn.v_proj": "attn.add_v_proj",
        "txt_attn.proj": "attn.to_add_out", "txt_attn.norm.query_norm": "attn.norm_added_q",
        "txt_attn.norm.key_norm": "attn.norm_added_k", "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2",
        "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
    }  # fmt: skip
    single = {
        "modulation.lin": "norm.linear", "q_proj": "attn.to_q", "k_proj": "attn.to_k", "linear2": "proj_out",
        "norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k",
    }  # fmt: skip
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        kind = "weight" if kind == "scale" else kind
        if layer == "final_layer.adaLN_modulation.1":  # diffusers keeps scale before shift
            tensor = torch.cat(tensor.chunk(2)[::-1])
        if layer.startswith(("double_blocks", "single_blocks")):
            blocks, number, inner = layer.split(".", 2)
            prefix = "transformer_blocks" if blocks == "double_blocks" else "single_transformer_blocks"
            if inner == "v_mlp":
                width = tensor.shape[0] // 5
                found[f"{prefix}.{number}.attn.to_v.{kind}"] = tensor[:width]
                found[f"{prefix}.{number}.proj_mlp.{kind}"] = tensor[width:]
                continue
            table = double if blocks == "double_blocks" else single
            found[f"{prefix}.{number}.{table[inner]}.{kind}"] = tensor
        else:
            found[f"{pairs[layer]}.{kind}"] = tensor
    return found


# --------------------------------------------------------------------------------------- sampling

KINDS = ("t2v", "i2v_head", "i2v_tail", "i2v_loop", "v2v_head", "v2v_tail")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("published", [False, True], ids=["plain", "oscillating"])
def test_sampling_under_each_kind_of_conditioning_equals_the_original(
    kind: str, published: bool, config: Config, fill: Fill, recorded: Recorded
) -> None:
    told = recorded("sampling")
    model = FAMILY.build(replace(config, words=()))
    fill(model.transformer, 7)
    system = with_model(System("opensora", FAMILY, config, Weights(seed=0)), model)
    shown = torch.cat([told[f"{kind}.mask"], told[f"{kind}.given"]], dim=1)
    shown = None if kind == "t2v" else shown
    positive = Condition(told["text"], told["pooled"], shown)
    negative = Condition(told["negative"], told["negative_pooled"], shown)
    blank = negative if shown is None else replace(negative, given_BCThw=None)
    clips, _, frames, height, width = told["z"].shape
    request = Request(
        task="animate" if kind.startswith("i2v") else "extend",
        clips=clips,
        frames=4 * (frames - 1) + 1,
        height=4 * height,
        width=4 * width,
        steps=13,
        seed=0,
        guidance=7.5,
        extra=dict.fromkeys(("oscillate", "oscillate_image", "dynamic_image"), published),
    )
    levels = system.levels(request)
    assert torch.allclose(levels.sigma, told["timesteps"], atol=1e-6)
    conditions = Conditions({"positive": positive, "negative": negative, "blank": blank})
    with torch.no_grad():
        denoise = guide(system, conditions, request, system.guidance(request), levels)
        native = SAMPLERS["euler"](denoise, told["z"], levels, noise=Noise([0, 1]))
    assert relative(native, told[f"{kind}.{'all' if published else 'plain'}"]) < 1e-4


# ----------------------------------------------------------------------------------------- codecs


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_the_causal_codec_equals_the_one_of_diffusers(frames: int, fill: Fill) -> None:
    native = fill(CausalAutoencoder((32, 64, 96, 96), 1, 4), 5, std=0.08)
    foreign = AutoencoderKLHunyuanVideo(latent_channels=4, block_out_channels=(32, 64, 96, 96), layers_per_block=1)
    foreign.load_state_dict(native.state_dict())
    foreign.eval().use_framewise_encoding = foreign.use_framewise_decoding = False
    video = torch.randn(2, 3, frames, 24, 40)
    with torch.no_grad():
        latents = foreign.encode(video).latent_dist.mode()
        assert relative(native.encode(video), latents) < 1e-4
        assert relative(native.decode(latents), foreign.decode(latents).sample) < 1e-4


@pytest.mark.parametrize("frames", [1, 8])
def test_the_video_dc_ae_equals_the_original(frames: int, fill: Fill, recorded: Recorded) -> None:
    told = recorded("dc_ae")
    config = DCAEConfig(16, (32, 32, 64, 64, 128, 128), (1, 1, 1, 1, 1, 2), (1, 1, 1, 1, 2, 1))
    model = fill(VideoDCAE(config), 9, std=0.1)
    video = torch.from_numpy(np.random.RandomState(40 + frames).standard_normal((1, 3, frames, 32, 64))).float()
    with torch.no_grad():
        latents = model.encode(video)
        assert relative(latents, told[f"latents.{frames}"]) < 1e-4
        assert relative(model.decode(latents), told[f"decoded.{frames}"]) < 1e-4
