"""The video U-Net against diffusers' on the same random weights, and its own promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kinema.families.svd import layers
from kinema.families.svd.config import PRESETS, TINY, Config
from kinema.families.svd.layers import VideoResBlock
from kinema.families.svd.model import SVD
from kinema.nn import ldm_unet
from kinema.nn.ldm_unet import channels_last, chunk_feed_forward

THREE = replace(TINY, channels=(32, 64, 64), heads=(1, 2, 4), vae_channels=(32, 32, 64))


def inputs(config: Config, dtype: torch.dtype, batch: int = 2, frames: int = 5, side: int = 8, length: int = 1):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    scalars = torch.tensor([[[6.0, 127.0, 0.02]], [[11.0, 30.0, 0.3]]])[:batch]
    c_noise = torch.tensor([1.2, -0.7])[:batch]
    return normal(batch, 8, frames, side, side), c_noise, normal(batch, length, config.context), scalars


def theirs(unet: nn.Module, z, c_noise, context, scalars):
    out = unet(z.transpose(1, 2), c_noise, context, scalars[:, 0], return_dict=False)[0]
    return out.transpose(1, 2)


def patch_to_official(unet: nn.Module) -> None:
    """The eps that sgm's residual blocks have, put into diffusers' model."""
    for name, module in unet.named_modules():
        if isinstance(module, nn.GroupNorm) and "res_block" in name:
            module.eps = 1e-5


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(("length", "strip"), [(1, layers.STRIP), (3, layers.STRIP), (1, 500)])
def test_it_equals_diffusers_with_the_eps_of_diffusers(pair, dtype, most, length, strip, monkeypatch):
    """Also where maps are so large that layers over time take them in strips."""
    monkeypatch.setattr(layers, "STRIP", strip)
    two = pair(replace(THREE, norm_eps="diffusers"), dtype)
    channels_last(two.ours)
    given = inputs(two.config, dtype, length=length)
    with torch.no_grad():
        made, expected = two.ours.unet(*given), theirs(two.unet, *given)
    assert expected.std() > 0.1
    assert (made - expected).abs().max() <= most


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_with_official_eps_it_equals_diffusers_patched_to_official_and_not_unpatched(pair, dtype, most):
    two = pair(THREE, dtype)
    given = inputs(two.config, dtype)
    with torch.no_grad():
        made, unpatched = two.ours.unet(*given), theirs(two.unet, *given)
        patch_to_official(two.unet)
        patched = theirs(two.unet, *given)
    assert (made - patched).abs().max() <= most
    if dtype == torch.float64:
        assert (made - unpatched).abs().max() > 1e-8


def test_sizes_that_do_not_halve_evenly_equal_diffusers(pair):
    two = pair(replace(THREE, norm_eps="diffusers"), torch.float64)
    given = inputs(two.config, torch.float64, side=7)
    with torch.no_grad():
        assert (two.ours.unet(*given) - theirs(two.unet, *given)).abs().max() <= 1e-10


def test_gradients_equal_those_of_diffusers(pair):
    two = pair(replace(THREE, norm_eps="diffusers"), torch.float64)
    given = inputs(two.config, torch.float64)
    two.ours.unet.requires_grad_(True)
    two.unet.requires_grad_(True)
    two.ours.unet(*given).square().sum().backward()
    theirs(two.unet, *given).square().sum().backward()
    expected = {name: p.grad for name, p in two.unet.named_parameters()}
    two.ours.unet.requires_grad_(False)
    two.unet.requires_grad_(False)
    for name, p in two.ours.unet.named_parameters():
        if p.grad is None:  # what a context of one token never reaches
            assert ".attn2." in name or ".norm2." in name, name
            assert expected[name] is None or expected[name].abs().max() <= 1e-12, name
        else:
            scale = max(1.0, float(expected[name].abs().max()))
            assert (p.grad - expected[name]).abs().max() <= 1e-9 * scale, name


def test_frames_marked_as_images_equal_the_clip_made_frame_by_frame(pair):
    """The indicator leaves out what layers over time add: T images at once are T single images."""
    ours = pair(THREE).ours.unet
    z, c_noise, context, scalars = inputs(THREE, torch.float32)
    marked = torch.ones(2, 5, dtype=torch.bool)
    with torch.no_grad():
        together = ours(z, c_noise, context, scalars, marked)
        apart = [ours(z[:, :, i : i + 1], c_noise, context, scalars, marked[:, :1]) for i in range(5)]
        video = ours(z, c_noise, context, scalars)
    assert (together - torch.cat(apart, dim=2)).abs().max() <= 1e-5
    assert (together - video).abs().max() > 1e-2


def test_a_mix_factor_far_above_zero_is_the_image_network(pair):
    ours = pair(THREE).ours.unet
    given = inputs(THREE, torch.float32)
    with torch.no_grad():
        expected = ours(*given, torch.ones(2, 5, dtype=torch.bool))
        for name, p in ours.named_parameters():
            if name.endswith("mix_factor"):
                p.fill_(1e4)
        assert (ours(*given) - expected).abs().max() <= 1e-5


def test_clips_of_a_batch_are_independent(pair):
    ours = pair(THREE).ours.unet
    given = inputs(THREE, torch.float32)
    with torch.no_grad():
        both = ours(*given)
        for i in range(2):
            single = ours(*(x[i : i + 1] for x in given))
            assert (both[i : i + 1] - single).abs().max() <= 1e-5


def test_frames_in_reverse_do_not_give_the_clip_in_reverse(pair):
    ours = pair(THREE).ours.unet
    z, *rest = inputs(THREE, torch.float32)
    with torch.no_grad():
        assert (ours(z.flip(2), *rest).flip(2) - ours(z, *rest)).abs().max() > 1e-2


def test_feed_forward_layers_in_chunks_give_the_same_numbers(pair, monkeypatch):
    ours = pair(THREE).ours.unet
    given = inputs(THREE, torch.float32)
    with torch.no_grad():
        whole = ours(*given)
        chunk_feed_forward(ours, 7)
        assert (ours(*given) - whole).abs().max() <= 1e-5
        chunk_feed_forward(ours, None)
        monkeypatch.setattr(ldm_unet, "CACHED", 2000)  # so that a CPU takes parts of its own accord, a few tokens each
        assert (ours(*given) - whole).abs().max() <= 1e-5
        sizes = []
        layer = next(m for m in ours.modules() if isinstance(m, ldm_unet.FeedForward))
        layer.net[2].register_forward_hook(lambda _m, args, _out: sizes.append(args[0].shape))
        ours(*given)
    assert len(sizes) > 1
    assert all(shape[0] * 2 * shape[1] <= 2000 for shape in sizes)  # GEGLU's map before its gate is twice as wide


def test_recording_gradients_gives_the_same_numbers_as_overwriting(pair):
    ours = pair(THREE).ours.unet
    z, *rest = inputs(THREE, torch.float32)
    with torch.no_grad():
        quick = ours(z, *rest)
    kept = z.clone()
    slow = ours(z.requires_grad_(True), *rest)
    assert torch.equal(z.detach(), kept)
    assert (quick - slow).abs().max() <= 1e-5


def test_a_scalar_per_frame_reaches_its_frame(pair):
    """SV3D: camera angles change over the frames."""
    ours = pair(THREE).ours.unet
    z, c_noise, context, scalars = inputs(THREE, torch.float32)
    per_frame = scalars.expand(-1, 5, -1).clone()
    with torch.no_grad():
        same = ours(z, c_noise, context, per_frame)
        assert (same - ours(z, c_noise, context, scalars)).abs().max() <= 1e-5
        per_frame[:, 3, 1] += 40
        moved = (ours(z, c_noise, context, per_frame) - same).abs().amax((0, 1, 3, 4))
    assert moved.argmax() == 3


@pytest.mark.parametrize(
    ("preset", "unet", "vae", "tensors"),
    [
        ("svd", 1_524_623_082, 97_742_847, 374),
        ("svd-xt", 1_524_623_082, 97_742_847, 374),
        ("sv3d-u", 1_523_967_722, 83_653_843, 246),
        ("sv3d-p", 1_525_278_442, 83_653_843, 246),
    ],
)
def test_parameter_and_tensor_counts_are_the_published_ones(preset, unet, vae, tensors):
    with torch.device("meta"):
        made = SVD(PRESETS[preset])

    def count(module):
        return sum(p.numel() for p in module.parameters()), len(module.state_dict())

    assert count(made.unet) == (unet, 1428)
    assert count(made.vae) == (vae, tensors)
    assert count(made.image_encoder) == (632_076_800, 520)


def test_the_image_decoder_of_svd_has_the_published_counts():
    with torch.device("meta"):
        vae = SVD(replace(PRESETS["svd"], decoder="image")).vae
    assert (sum(p.numel() for p in vae.parameters()), len(vae.state_dict())) == (83_653_863, 248)


def test_the_temporal_layers_have_the_parameters_the_paper_counts():
    with torch.device("meta"):
        unet = SVD(PRESETS["svd"]).unet
    over_time = ("temporal_", "time_pos_embed", "time_mixer")
    assert sum(p.numel() for n, p in unet.named_parameters() if any(part in n for part in over_time)) == 656_076_838
    assert sum(isinstance(m, VideoResBlock) for m in unet.modules()) == 22


def test_weights_leave_in_the_order_of_files_whatever_their_order_in_memory():
    made = SVD(TINY)
    before = made.state_dict()
    channels_last(made)
    assert not made.unet.conv_in.weight.is_contiguous()
    after = made.state_dict()
    assert all(x.is_contiguous() for x in after.values())
    assert all(torch.equal(before[name], x) for name, x in after.items())


def test_only_what_can_learn_is_trained():
    made = SVD(TINY)
    assert not any(p.requires_grad for p in (*made.vae.parameters(), *made.image_encoder.parameters()))
    idle = {n for n, p in made.unet.named_parameters() if not p.requires_grad}
    assert idle
    assert all(".attn2.to_q." in n or ".attn2.to_k." in n or ".norm2." in n for n in idle)
    assert not any("res_block" in n for n in idle)
