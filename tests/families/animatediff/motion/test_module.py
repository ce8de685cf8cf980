"""Motion modules: against diffusers, against the formula, and the paper's claims."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kinema.families.animatediff.config import PRESETS, TINY
from kinema.families.animatediff.motion.module import MotionControl, MotionModule, norm_over_clip, sinusoids
from kinema.families.animatediff.unet import UNet
from kinema.schema import BadRequest


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(config, frames=5, side=8):
    return normal(2, 4, frames, side, side), torch.tensor([981.0, 20.0]), normal(2, 7, config.context)


# ------------------------------------------------------------------------------------- diffusers


@pytest.mark.parametrize("mid", [False, True], ids=["v3", "v2"])
def test_diffusers_mode_equals_unet_motion_model(oracle, mid):
    config = replace(oracle.middle, motion="v2", norms="diffusers", motion_mid=mid)
    network = oracle.randomised(UNet(config))
    reference = oracle.same_weights(oracle.motion_unet(config), network)
    z, step, context = inputs(config)
    expected = reference(z, step, context.repeat_interleave(z.shape[2], dim=0)).sample
    assert (network(z, step, context) - expected).abs().max() <= 1e-5
    official = UNet(replace(config, norms="official")).eval()
    official.load_state_dict(network.state_dict())
    assert (official(z, step, context) - expected).abs().max() > 1e-3  # the two modes differ


def test_sdxl_with_motion_equals_unet_motion_model(oracle):
    config = oracle.tiny_xl  # SDXL's beta was trained with norms over the clip, as in diffusers
    network = oracle.randomised(UNet(config))
    reference = oracle.same_weights(oracle.motion_unet(config), network)
    z, step, context = inputs(config, frames=4)
    pooled, ids = normal(2, 24), torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    from kinema.nn.embeddings import sinusoidal

    added = torch.cat([pooled, sinusoidal(ids, config.size_embedding).flatten(1)], dim=1)
    conditions = {"text_embeds": pooled, "time_ids": ids}
    expected = reference(z, step, context.repeat_interleave(4, dim=0), added_cond_kwargs=conditions).sample
    assert (network(z, step, context, added) - expected).abs().max() <= 1e-5


# ----------------------------------------------------------------------------------- the formula


def by_formula(module: MotionModule, x_BCTHW: torch.Tensor, heads: int) -> torch.Tensor:
    """The official motion module written out on BCTHW, with per-frame norms."""
    w = {name: tensor for name, tensor in module.state_dict().items()}
    b, c, t, rows, columns = x_BCTHW.shape
    normed = torch.stack(
        [F.group_norm(x_BCTHW[:, :, i], 32, w["norm.weight"], w["norm.bias"], 1e-6) for i in range(t)], dim=2
    )
    h = normed.permute(0, 3, 4, 2, 1).reshape(b * rows * columns, t, c)
    h = h @ w["proj_in.weight"].T + w["proj_in.bias"]
    position = torch.zeros(t, c)
    for frame in range(t):
        for i in range(0, c, 2):
            angle = frame * math.exp(-math.log(10000.0) * i / c)
            position[frame, i], position[frame, i + 1] = math.sin(angle), math.cos(angle)
    block = "transformer_blocks.0."
    for n in (1, 2):
        normed = F.layer_norm(h, (c,), w[f"{block}norm{n}.weight"], w[f"{block}norm{n}.bias"]) + position
        q, k, v = (
            (normed @ w[f"{block}attn{n}.to_{x}.weight"].T).reshape(-1, t, heads, c // heads).transpose(1, 2)
            for x in "qkv"
        )
        weight = (q @ k.transpose(-1, -2) / math.sqrt(c // heads)).softmax(-1)
        mixed = (weight @ v).transpose(1, 2).reshape(-1, t, c)
        h = h + mixed @ w[f"{block}attn{n}.to_out.0.weight"].T + w[f"{block}attn{n}.to_out.0.bias"]
    normed = F.layer_norm(h, (c,), w[f"{block}norm3.weight"], w[f"{block}norm3.bias"])
    value, gate = (normed @ w[f"{block}ff.net.0.proj.weight"].T + w[f"{block}ff.net.0.proj.bias"]).chunk(2, dim=-1)
    h = h + (value * F.gelu(gate)) @ w[f"{block}ff.net.2.weight"].T + w[f"{block}ff.net.2.bias"]
    h = h @ w["proj_out.weight"].T + w["proj_out.bias"]
    return x_BCTHW + h.reshape(b, rows, columns, t, c).permute(0, 4, 3, 1, 2)


def folded(x_BCTHW):
    return x_BCTHW.transpose(1, 2).flatten(0, 1)


def test_official_motion_module_equals_the_formula(oracle):
    module = oracle.randomised(MotionModule(64, 4, 16))
    x = normal(2, 64, 6, 3, 5) * torch.linspace(0.2, 3, 6)[:, None, None]  # per-frame scales show the norm
    result = module(folded(x), frames=6)
    assert (result - folded(by_formula(module, x, heads=4))).abs().max() <= 1e-5
    over_clip = MotionModule(64, 4, 16, over_clip=True)
    over_clip.load_state_dict(module.state_dict())
    assert (over_clip.eval()(folded(x), frames=6) - result).abs().max() > 1e-2


def test_v1_normalises_image_blocks_over_all_frames(oracle):
    """v1's residual block written out on BCTHW, where group norms cover the clip."""
    config = replace(oracle.middle, motion="v1", motion_mid=False)
    network = oracle.randomised(UNet(config))
    block = network.down_blocks[1].resnets[0]
    x, emb = normal(2, 32, 3, 4, 5) * torch.linspace(0.2, 3, 3)[:, None, None], normal(2, 128)
    w = block.state_dict()

    def conv(x_BCTHW, name):
        return F.conv3d(x_BCTHW, w[f"{name}.weight"][:, :, None], w[f"{name}.bias"], padding=(0, 1, 1))

    h = conv(F.silu(F.group_norm(x, 32, w["norm1.weight"], w["norm1.bias"], 1e-5)), "conv1")
    h = h + (emb @ w["time_emb_proj.weight"].T + w["time_emb_proj.bias"])[:, :, None, None, None]
    h = conv(F.silu(F.group_norm(h, 32, w["norm2.weight"], w["norm2.bias"], 1e-5)), "conv2")
    h = h + F.conv3d(x, w["conv_shortcut.weight"][:, :, None], w["conv_shortcut.bias"])
    assert (block(folded(x), emb, 3) - folded(h)).abs().max() <= 1e-5
    # and the whole network uses it
    z, step, context = inputs(config, frames=3)
    z = z * torch.tensor([0.3, 1, 2])[:, None, None]
    per_frame = UNet(replace(config, motion="v3")).eval()
    per_frame.load_state_dict(network.state_dict())
    assert (per_frame(z, step, context) - network(z, step, context)).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------ claims


@pytest.mark.parametrize("motion", ["v2", "v3", "sdxl"])
def test_with_zeroed_projections_every_frame_equals_the_image_model(oracle, motion):
    config = replace(oracle.middle, motion=motion, motion_mid=motion == "v2")
    inflated = oracle.randomised(UNet(config))
    image = UNet(replace(config, motion="none", motion_mid=False)).eval()
    image.load_state_dict({k: v for k, v in inflated.state_dict().items() if ".motion_modules." not in k})
    for name, p in inflated.named_parameters():
        if ".motion_modules." in name and ".proj_out." in name:
            p.zero_()
    # In float64: in float32 a batch of frames rounds differently from a single frame (2e-6 here).
    inflated, image = inflated.double(), image.double().requires_grad_(False)
    z, step, context = (x.double() for x in inputs(config))
    result = inflated(z, step, context)
    for i in range(z.shape[2]):
        assert (result[:, :, i : i + 1] - image(z[:, :, i : i + 1], step, context)).abs().max() <= 1e-6
    assert torch.equal(inflated(z, step, context, motion=False), result)


def test_a_fresh_motion_module_changes_nothing():
    x = normal(6, 32, 4, 4)
    assert torch.equal(MotionModule(32, 2, 16)(x.clone(), frames=6), x)


def test_without_positions_the_order_of_frames_does_not_matter(oracle):
    module = oracle.randomised(MotionModule(32, 2, 16))
    x, order = normal(6, 32, 4, 4), torch.tensor([3, 0, 5, 1, 4, 2])
    with_positions = (module(x[order], 6) - module(x, 6)[order]).abs().max()
    module.transformer_blocks[0].pos_embed.pe.zero_()
    assert (module(x[order], 6) - module(x, 6)[order]).abs().max() <= 1e-6
    assert with_positions > 1e-3


def test_effect_scales_the_module_per_frame_and_position(oracle):
    module = oracle.randomised(MotionModule(32, 2, 16))
    x = normal(8, 32, 4, 4)
    whole = module(x, 4)
    assert torch.equal(module(x, 4, MotionControl(torch.zeros(1, 1, 1, 1))), x)
    assert torch.equal(module(x, 4, MotionControl(torch.ones(1, 1, 1, 1))), whole)
    by_frame = module(x, 4, MotionControl(torch.tensor([0.0, 1, 0, 1])[:, None, None, None]))
    assert torch.equal(by_frame[[0, 2, 4, 6]], x[[0, 2, 4, 6]])
    assert torch.equal(by_frame[[1, 3, 5, 7]], whole[[1, 3, 5, 7]])
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 1
    by_position = module(x, 4, MotionControl(left))
    assert torch.allclose(by_position[..., :1], whole[..., :1])
    assert torch.allclose(by_position[..., 3:], x[..., 3:])


def test_more_frames_than_positions_raise_unless_stretched(oracle):
    with pytest.raises(BadRequest, match="handles 16 frames and got 20"):
        MotionModule(32, 2, 16)(normal(20, 32, 2, 2), 20)
    plain, stretched = MotionModule(32, 2, 16), MotionModule(32, 2, 16, stretch=31)
    table = plain.transformer_blocks[0].pos_embed(16)
    longer = stretched.transformer_blocks[0].pos_embed(31)
    assert torch.allclose(longer[::2], table, atol=1e-6)
    assert torch.allclose(longer[1::2], (table[1:] + table[:-1]) / 2, atol=1e-6)
    assert stretched(normal(20, 32, 2, 2), 20).shape == (20, 32, 2, 2)
    assert torch.equal(MotionModule(32, 2, 16, stretch=16).transformer_blocks[0].pos_embed(9), table[:9])


def test_sinusoids_interleave_sine_and_cosine():
    table = sinusoids(5, 6)
    assert table.shape == (1, 5, 6)
    assert torch.allclose(table[0, 3, :2], torch.tensor([math.sin(3), math.cos(3)]))


# ----------------------------------------------------------------------------------------- counts

WHOLE = {"v1": 1_276_658_564, "v2": 1_312_730_244, "v3": 1_276_658_564, "sdxl": 2_804_242_884}
MOTION = {"v1": 417_137_600, "v2": 453_209_280, "v3": 417_137_600, "sdxl": 236_779_200}
TENSORS = {"v1": 1226, "v2": 1253, "v3": 1226, "sdxl": 2085}


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_networks_have_the_published_counts(name):
    with torch.device("meta"):
        network = UNet(PRESETS[name])
    motion = [p.numel() for n, p in network.named_parameters() if ".motion_modules." in n]
    assert sum(p.numel() for p in network.parameters()) == WHOLE[name]
    assert sum(motion) == MOTION[name]
    assert len(network.state_dict()) == TENSORS[name]


# ------------------------------------------------------------------------------------------ norms


@pytest.mark.parametrize("norms", ["official", "diffusers"])
@pytest.mark.parametrize(
    ("motion", "together"),
    [("v1", True), ("pia", True), ("hotshot", True)]
    + [(name, False) for name in ("v2", "v3", "sdxl", "lcm", "lightning")],
)
def test_image_norms_cover_the_clip_for_modules_trained_that_way(oracle, motion, together, norms):
    """With effect 0, only norms can make frames depend on each other; in diffusers none do."""
    network = oracle.randomised(UNet(replace(TINY, motion=motion, norms=norms)))
    z, still = normal(1, 4, 4, 8, 8), MotionControl(effect_T1HW=torch.zeros(1, 1, 1, 1))
    other = z.clone()
    other[:, :, 2] = 3 * other[:, :, 2] + 1
    conditions = (torch.tensor([500.0]), normal(1, 7, TINY.context))
    result, changed = (network(x, *conditions, motion_control=still) for x in (z, other))
    apart = (result - changed)[:, :, [0, 1, 3]].abs().max()
    assert (apart > 1e-3) == (together and norms == "official")
    alone, without = (network(x, *conditions, motion_control=still, motion=False) for x in (z, other))
    assert torch.equal(alone[:, :, [0, 1, 3]], without[:, :, [0, 1, 3]])


def test_norms_over_the_clip_equal_those_of_frames_side_by_side(oracle):
    """Group norm ignores positions, so frames side by side are normalised as one image."""
    norm, x = oracle.randomised(torch.nn.GroupNorm(8, 32)), normal(4, 32, 8, 8)
    row = x.permute(1, 2, 0, 3).flatten(2)[None]
    expected = norm(row)[0].unflatten(-1, (4, 8)).permute(2, 0, 1, 3)
    assert (norm_over_clip(norm, x, 4) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("motion", ["v1", "v2", "v3", "sdxl", "pia", "hotshot", "lcm", "lightning"])
def test_motion_norms_cover_the_clip_for_sdxl_and_in_diffusers(motion):
    over_clip = {}
    for norms in ("official", "diffusers"):
        network = UNet(replace(TINY, motion=motion, norms=norms))
        over_clip[norms] = {m.over_clip for m in network.modules() if isinstance(m, MotionModule)}
    assert over_clip == {"official": {motion == "sdxl"}, "diffusers": {True}}
