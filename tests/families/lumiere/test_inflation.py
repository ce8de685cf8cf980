"""At initialisation an inflated network is the image model, on the frames that temporal downsampling keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kinema import registry
from kinema.families.lumiere.config import Config, presets
from kinema.families.lumiere.model import Lumiere, is_new
from kinema.families.lumiere.space_time import TemporalConv, TemporalDownsample, TemporalUpsample
from kinema.families.lumiere.unet import SpaceTimeUNet
from kinema.nn.ldm_unet import channels_last
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest
from kinema.system import open_system

ODD = Config(
    frames=8, longest=24, height=16, width=24, channels=(32, 64, 96, 96), layers=2, depths=(1, 0, 1, 0),
    heads=(2, 4, 4, 3), context=24, vae_channels=(32, 64), vae_layers=1, latent_channels=5,
)  # fmt: skip
"""Four levels, so every eighth frame is kept."""
POCKETS = {"odd": ODD, "pocket": replace(presets()["pocket"], channels=(32, 64), context=32, heads=(2, 4))}


@pytest.fixture(params=list(POCKETS))
def config(request):
    return POCKETS[request.param]


def network(config: Config, dtype=torch.float64) -> SpaceTimeUNet:
    """An inflated network: image layers random, temporal layers as initialised."""
    torch.manual_seed(2)
    unet = SpaceTimeUNet(config).eval().to(dtype).requires_grad_(False)
    for name, p in unet.named_parameters():
        if not is_new(name):
            p.normal_(std=0.1)
    channels_last(unet)  # as in sampling and training
    return unet


def inputs(config: Config, frames: int, dtype=torch.float64, batch=2):
    draw = torch.Generator().manual_seed(4)
    z = torch.randn(batch, config.latent_channels, frames, 8, 16, generator=draw).to(dtype)
    return z, torch.tensor([3.0, 700.0])[:batch], torch.randn(batch, 7, config.context, generator=draw).to(dtype)


def image_model(unet: SpaceTimeUNet, z, step, context):
    """The image model on each frame: its layers alone, without those over time and without resampling."""
    from kinema.nn.embeddings import sinusoidal
    from kinema.nn.ldm_unet import silu_
    from kinema.nn.sd_unet import BlockInputs, clips, images, run_down, run_mid, run_up

    emb = silu_(unet.time_embedding(sinusoidal(step, unet.config.channels[0]).to(z)))
    told = BlockInputs(emb, context)
    x, skips = run_down(unet.down_blocks, unet.conv_in(images(z)), told)
    x = run_up(unet.up_blocks, run_mid(unet.mid_block, x, told), skips, told)
    return clips(unet.conv_out(silu_(unet.conv_norm_out(x))), z.shape[2])


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_kept_frames_equal_the_image_model_and_a_static_clip_everywhere(config, dtype, most):
    unet = network(config, dtype)
    z, step, context = inputs(config, 3 * config.factor, dtype)
    inflated, image = unet(z, step, context), image_model(unet, z, step, context)
    scale = float(image.abs().max())
    kept = slice(None, None, config.factor)
    assert (inflated[:, :, kept] - image[:, :, kept]).abs().max() <= most * scale
    assert (inflated - image).abs().amax((0, 1, 3, 4))[1] > 1e-3 * scale  # frame 1 has neighbours' coarse features
    static = z[:, :, :1].expand_as(z)
    inflated, image = unet(static, step, context), image_model(unet, static, step, context)
    assert (inflated - image).abs().max() <= most * scale


@pytest.mark.parametrize(("frames", "resamples"), [(5, False), (1, True)])
def test_at_equal_batch_shapes_the_image_model_s_bits_are_kept(config, frames, resamples):
    """Without resampling, or for one frame, every product has as many rows as in the image model."""
    unet = network(replace(config, resamples=resamples), torch.float32)
    told = inputs(config, frames, torch.float32)
    assert torch.equal(unet(*told), image_model(unet, *told))


@pytest.mark.parametrize("frames", [8, 5, 1])
def test_the_coarsest_level_holds_a_frame_for_each_factor(frames):
    unet, seen = network(ODD), []
    unet.temporal.mid.blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[1]))
    out = unet(*inputs(ODD, frames))
    assert out.shape[2] == frames
    assert seen == [-(-frames // 8)]
    unet = network(replace(ODD, resamples=False))
    unet.temporal.mid.blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[1]))
    unet(*inputs(ODD, frames))
    assert seen[-1] == frames


def test_convolutions_only_at_finer_levels_and_attention_only_at_the_coarsest():
    kinds = {
        name: {type(block).__name__ for block in level.blocks}
        for name, level in network(ODD).temporal.named_modules()
        if type(level).__name__ == "TemporalLevel"
    }
    coarsest = {"down.3", "mid", "up.0"}
    assert {name for name, kind in kinds.items() if kind == {"TemporalAttention"}} == coarsest
    assert all(kind == {"SpaceTimeConv"} for name, kind in kinds.items() if name not in coarsest)


def test_a_temporal_convolution_is_that_over_three_frames():
    torch.manual_seed(0)
    conv = TemporalConv(5).double()
    for p in conv.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(2 * 7, 5, 3, 4, dtype=torch.float64)
    kernel = conv.weight.permute(1, 2, 0)[..., None, None]
    clip = x.unflatten(0, (2, 7)).transpose(1, 2)
    for stride in (1, 2):
        expected = torch.nn.functional.conv3d(clip, kernel, conv.bias, stride=(stride, 1, 1), padding=(1, 0, 0))
        assert torch.allclose(conv(x, 7, stride), expected.transpose(1, 2).flatten(0, 1), atol=1e-12)


def test_resampling_starts_as_every_second_frame_and_as_each_frame_twice():
    x = torch.randn(2 * 5, 8, 3, 4)
    frames = x.unflatten(0, (2, 5))
    assert torch.equal(TemporalDownsample(8)(x, 5).unflatten(0, (2, 3)), frames[:, ::2])
    assert torch.equal(TemporalUpsample(8)(x, 5, 9).unflatten(0, (2, 9)), frames[:, [0, 0, 1, 1, 2, 2, 3, 3, 4]])


def test_the_input_of_given_pixels_starts_without_effect(config):
    unet = network(config)
    told = inputs(config, config.factor)
    given = torch.randn(2, config.given_channels, config.factor, 8, 16, dtype=torch.float64)
    assert torch.equal(unet(*told, given), unet(*told))
    unet.conv_given.weight.normal_()
    assert not torch.allclose(unet(*told, given), unet(*told), atol=1e-3)


def test_the_first_convolution_is_one_of_seven_channels():
    """The two convolutions are one over J, C and M: its columns for J are the image model's."""
    config = replace(presets()["pocket"], channels=(32, 64), patch=1, latent_channels=3, context=32, heads=(2, 4))
    unet = network(config)
    unet.conv_given.weight.normal_()
    assert config.latent_channels + config.given_channels == 7
    wide = torch.cat([unet.conv_in.weight, unet.conv_given.weight], dim=1)
    j, cm = torch.randn(1, 3, 8, 8, dtype=torch.float64), torch.randn(1, 4, 8, 8, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(torch.cat([j, cm], 1), wide, unet.conv_in.bias, padding=1)
    assert torch.allclose(unet.conv_in(j) + unet.conv_given(cm), expected, atol=1e-12)


def test_a_super_resolution_model_starts_as_the_small_clip():
    config = replace(presets()["tiny-sr"], context=32)
    unet = network(config)
    for layer in (unet.conv_detail, unet.conv_small):
        torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(unet.conv_detail.bias)
    told, small = inputs(config, 8), torch.randn(2, config.latent_channels, 8, 8, 16, dtype=torch.float64)
    assert torch.equal(unet(*told, small_BCTHW=small), small)
    unet.conv_detail.weight.data.normal_()
    before = unet(*told, small_BCTHW=small)
    assert not torch.allclose(before, small, atol=1e-3)
    unet.conv_small.weight.data.normal_()
    assert not torch.allclose(unet(*told, small_BCTHW=small), before, atol=1e-3)
    fresh = SpaceTimeUNet(config)
    assert not fresh.conv_detail.weight.any()
    assert not fresh.conv_small.weight.any()


def test_a_super_resolution_model_that_predicts_noise_is_refused():
    with pytest.raises(BadRequest, match="predicts x0, not noise"):
        replace(presets()["tiny-sr"], predicts="eps")


@pytest.mark.parametrize(
    ("preset", "whole", "new"),
    [
        ("pocket", 4_103_600, 1_428_448),
        ("pocket-keyframes", 3_468_304, 793_152),
        ("pocket-between", 3_468_304, 793_152),
        ("sd15", 1_538_407_787, 472_172_480),
        ("base-128px", 938_913_283, 269_657_344),
    ],
)
def test_parameter_counts(preset, whole, new):
    with on_meta():
        parameters = list(Lumiere(presets()[preset]).parameters())
    assert sum(p.numel() for p in parameters) == whole
    assert sum(p.numel() for p in parameters if p.requires_grad) == new


def test_all_new_layers_learn_and_nothing_else():
    torch.manual_seed(0)
    model = Lumiere(presets()["tiny"])
    family = registry.family("lumiere")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"unet.{name}" for name, _ in model.unet.named_parameters() if is_new(name)}
    assert set(family.blocks(model)) <= set(model.unet.modules())


# ------------------------------------------------------------------------------ a user's image model


def test_an_image_model_of_the_user_is_inflated_with_its_sizes_and_weights(tmp_path, image_file):
    path, image = image_file(tmp_path)
    system = open_system("lumiere/tiny", add={"image": path})
    assert (system.config.channels, system.config.context, system.config.patch) == ((32, 64), 32, 4)
    assert system.config.frames % system.config.factor == 0
    ours, theirs = system.model.state_dict(), image.state_dict()
    shared = {name for name in ours if not is_new(name.removeprefix("unet."))}
    assert shared == {name for name in theirs if not name.startswith("reader.")}
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)


def test_the_embedded_image_model_is_that_of_the_pocket_preset():
    system = open_system("lumiere/pocket")
    assert system.weights.added[0].slot == "image"
    default = replace(presets()["pocket"], frames=system.config.frames, inflated=True)
    assert system.config == default
