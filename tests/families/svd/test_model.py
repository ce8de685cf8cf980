"""The video U-Net: equality with diffusers on the same random weights, and its invariants."""

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


def run_diffusers(unet: nn.Module, z, c_noise, context, scalars):
    out = unet(z.transpose(1, 2), c_noise, context, scalars[:, 0], return_dict=False)[0]
    return out.transpose(1, 2)


def patch_to_official(unet: nn.Module) -> None:
    """Set the eps of sgm's residual blocks in diffusers' model."""
    for name, module in unet.named_modules():
        if isinstance(module, nn.GroupNorm) and "res_block" in name:
            module.eps = 1e-5


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(("length", "strip"), [(1, layers.STRIP), (3, layers.STRIP), (1, 500)])
def test_the_unet_equals_diffusers_with_its_eps(pair, dtype, most, length, strip, monkeypatch):
    """Also with strips in temporal layers, as for large maps."""
    monkeypatch.setattr(layers, "STRIP", strip)
    two = pair(replace(THREE, norm_eps="diffusers"), dtype)
    channels_last(two.native)
    given = inputs(two.config, dtype, length=length)
    with torch.no_grad():
        result, expected = two.native.unet(*given), run_diffusers(two.unet, *given)
    assert expected.std() > 0.1
    assert (result - expected).abs().max() <= most


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_official_eps_equals_patched_diffusers_only(pair, dtype, most):
    two = pair(THREE, dtype)
    given = inputs(two.config, dtype)
    with torch.no_grad():
        result, unpatched = two.native.unet(*given), run_diffusers(two.unet, *given)
        patch_to_official(two.unet)
        patched = run_diffusers(two.unet, *given)
    assert (result - patched).abs().max() <= most
    if dtype == torch.float64:
        assert (result - unpatched).abs().max() > 1e-8


def test_sizes_that_do_not_halve_evenly_equal_diffusers(pair):
    two = pair(replace(THREE, norm_eps="diffusers"), torch.float64)
    given = inputs(two.config, torch.float64, side=7)
    with torch.no_grad():
        assert (two.native.unet(*given) - run_diffusers(two.unet, *given)).abs().max() <= 1e-10


def test_gradients_equal_those_of_diffusers(pair):
    two = pair(replace(THREE, norm_eps="diffusers"), torch.float64)
    given = inputs(two.config, torch.float64)
    two.native.unet.requires_grad_(True)
    two.unet.requires_grad_(True)
    two.native.unet(*given).square().sum().backward()
    run_diffusers(two.unet, *given).square().sum().backward()
    expected = {name: p.grad for name, p in two.unet.named_parameters()}
    two.native.unet.requires_grad_(False)
    two.unet.requires_grad_(False)
    for name, p in two.native.unet.named_parameters():
        if p.grad is None:  # no gradient with a context of one token
            assert ".attn2." in name or ".norm2." in name, name
            assert expected[name] is None or expected[name].abs().max() <= 1e-12, name
        else:
            scale = max(1.0, float(expected[name].abs().max()))
            assert (p.grad - expected[name]).abs().max() <= 1e-9 * scale, name


def test_image_only_frames_equal_single_images(pair):
    """The indicator disables temporal layers: T images in one pass equal T single images."""
    native = pair(THREE).native.unet
    z, c_noise, context, scalars = inputs(THREE, torch.float32)
    marked = torch.ones(2, 5, dtype=torch.bool)
    with torch.no_grad():
        together = native(z, c_noise, context, scalars, marked)
        apart = [native(z[:, :, i : i + 1], c_noise, context, scalars, marked[:, :1]) for i in range(5)]
        video = native(z, c_noise, context, scalars)
    assert (together - torch.cat(apart, dim=2)).abs().max() <= 1e-5
    assert (together - video).abs().max() > 1e-2


def test_a_large_mix_factor_gives_the_image_network(pair):
    native = pair(THREE).native.unet
    given = inputs(THREE, torch.float32)
    with torch.no_grad():
        expected = native(*given, torch.ones(2, 5, dtype=torch.bool))
        for name, p in native.named_parameters():
            if name.endswith("mix_factor"):
                p.fill_(1e4)
        assert (native(*given) - expected).abs().max() <= 1e-5


def test_clips_of_a_batch_are_independent(pair):
    native = pair(THREE).native.unet
    given = inputs(THREE, torch.float32)
    with torch.no_grad():
        both = native(*given)
        for i in range(2):
            single = native(*(x[i : i + 1] for x in given))
            assert (both[i : i + 1] - single).abs().max() <= 1e-5


def test_the_network_depends_on_the_order_of_frames(pair):
    native = pair(THREE).native.unet
    z, *rest = inputs(THREE, torch.float32)
    with torch.no_grad():
        assert (native(z.flip(2), *rest).flip(2) - native(z, *rest)).abs().max() > 1e-2


def test_chunked_feed_forward_layers_give_the_same_result(pair, monkeypatch):
    native = pair(THREE).native.unet
    given = inputs(THREE, torch.float32)
    with torch.no_grad():
        whole = native(*given)
        chunk_feed_forward(native, 7)
        assert (native(*given) - whole).abs().max() <= 1e-5
        chunk_feed_forward(native, None)
        monkeypatch.setattr(ldm_unet, "rows_at_once", lambda *_: 9)  # the CPU's own choice
        assert (native(*given) - whole).abs().max() <= 1e-5
        sizes = []
        layer = next(m for m in native.modules() if isinstance(m, ldm_unet.FeedForward))
        layer.net[2].register_forward_hook(lambda _m, args, _out: sizes.append(args[0].shape))
        native(*given)
    assert len(sizes) > 1
    assert {len(shape) for shape in sizes} == {2}
    assert max(shape[0] for shape in sizes) == 9


def test_recording_gradients_gives_the_same_result_as_in_place(pair):
    native = pair(THREE).native.unet
    z, *rest = inputs(THREE, torch.float32)
    with torch.no_grad():
        quick = native(z, *rest)
    kept = z.clone()
    slow = native(z.requires_grad_(True), *rest)
    assert torch.equal(z.detach(), kept)
    assert (quick - slow).abs().max() <= 1e-5


def test_a_scalar_per_frame_reaches_its_frame(pair):
    """SV3D's camera angles vary over the frames."""
    native = pair(THREE).native.unet
    z, c_noise, context, scalars = inputs(THREE, torch.float32)
    per_frame = scalars.expand(-1, 5, -1).clone()
    with torch.no_grad():
        same = native(z, c_noise, context, per_frame)
        assert (same - native(z, c_noise, context, scalars)).abs().max() <= 1e-5
        per_frame[:, 3, 1] += 40
        moved = (native(z, c_noise, context, per_frame) - same).abs().amax((0, 1, 3, 4))
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
        result = SVD(PRESETS[preset])

    def count(module):
        return sum(p.numel() for p in module.parameters()), len(module.state_dict())

    assert count(result.unet) == (unet, 1428)
    assert count(result.vae) == (vae, tensors)
    assert count(result.image_encoder) == (632_076_800, 520)


def test_the_image_decoder_of_svd_has_the_published_counts():
    with torch.device("meta"):
        vae = SVD(replace(PRESETS["svd"], decoder="image")).vae
    assert (sum(p.numel() for p in vae.parameters()), len(vae.state_dict())) == (83_653_863, 248)


def test_temporal_layers_have_the_published_parameter_count():
    with torch.device("meta"):
        unet = SVD(PRESETS["svd"]).unet
    over_time = ("temporal_", "time_pos_embed", "time_mixer")
    assert sum(p.numel() for n, p in unet.named_parameters() if any(part in n for part in over_time)) == 656_076_838
    assert sum(isinstance(m, VideoResBlock) for m in unet.modules()) == 22


def test_state_dicts_are_contiguous_for_any_memory_format():
    result = SVD(TINY)
    before = result.state_dict()
    channels_last(result)
    assert not result.unet.conv_in.weight.is_contiguous()
    after = result.state_dict()
    assert all(x.is_contiguous() for x in after.values())
    assert all(torch.equal(before[name], x) for name, x in after.items())


def test_parameters_without_gradient_are_frozen():
    result = SVD(TINY)
    assert not any(p.requires_grad for p in (*result.vae.parameters(), *result.image_encoder.parameters()))
    idle = {n for n, p in result.unet.named_parameters() if not p.requires_grad}
    assert idle
    assert all(".attn2.to_q." in n or ".attn2.to_k." in n or ".norm2." in n for n in idle)
    assert not any("res_block" in n for n in idle)
