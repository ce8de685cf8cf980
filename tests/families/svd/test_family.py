"""SVD from a request to latents, compared with diffusers' pipeline; requests and canvases."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import pytest
import torch

from kinema import registry
from kinema.api import load
from kinema.canvas import Canvas, Piece, Release
from kinema.diffusion.guidance import Guided
from kinema.diffusion.schedules import NoiseLevel, spaced
from kinema.events import Note
from kinema.families.svd import conditioning, recipe
from kinema.families.svd.config import PRESETS, TINY
from kinema.families.svd.family import FAMILY
from kinema.generate import generate
from kinema.guide import guide
from kinema.schema import BadRequest, Request
from kinema.settle import settle, with_defaults
from kinema.system import System, Weights, with_model

SIDE = 32
CONFIG = replace(
    TINY, frames=5, height=SIDE, width=SIDE, norm_eps="diffusers", vae_channels=(32, 32, 32, 64), guidance=(1.0, 3.0)
)


def system_of(config, model=None) -> System:
    result = System("svd", FAMILY, config, Weights())
    return with_model(result, model) if model is not None else result


def first_frame(image, frames):
    video = image[:, :, None].expand(-1, -1, frames, -1, -1) * torch.eye(frames)[0][:, None, None]
    mask = torch.zeros(len(image), 1, *video.shape[2:])
    mask[:, :, 0] = 1
    return Canvas.of(video, mask)


def ask(**options):
    """Build a ``generate`` request, which needs a prompt; this family ignores it."""
    return Request(**{"prompt": "anything", **options})


@pytest.fixture
def given(monkeypatch):
    """Makes ``generate`` use a given canvas for any request."""
    from kinema import tasks

    def give(canvas):
        monkeypatch.setitem(tasks.TASKS, "generate", tasks.Task(lambda r: r, lambda _r, _e: canvas))

    return give


@pytest.mark.parametrize("ends", [(1.0, 3.0), (3.0, 1.5)])
def test_latents_equal_diffusers_for_the_same_noise(pair, given, monkeypatch, ends):
    from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
    from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as svd_pipeline
    from transformers import CLIPImageProcessor

    two = pair(CONFIG)
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipe = StableVideoDiffusionPipeline(two.vae, two.image_encoder, two.unet, scheduler, processor)
    pipe.set_progress_bar_config(disable=True)
    resize = svd_pipeline._resize_with_antialiasing
    monkeypatch.setattr(svd_pipeline, "_resize_with_antialiasing", lambda x, _size: resize(x, (32, 32)))

    image = (torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)) * 255).round() / 255
    request = ask(
        seed=7, steps=4, guidance=ends[0], guidance_end=ends[1], fps=7, extra={"motion_bucket": 60, "augmentation": 0.1}
    )
    system = system_of(CONFIG, two.native)
    settled = settle(system, request)
    noise = system.noise(settled).normal(system.latent_shape(settled).bcthw[1:])
    image_noise = conditioning.image_noise(settled, SIDE, SIDE)
    monkeypatch.setattr(svd_pipeline, "randn_tensor", lambda *_args, **_more: image_noise)
    from PIL import Image

    pil_image = Image.fromarray((image[0].permute(1, 2, 0).numpy() * 255).round().astype("uint8"))
    expected = pipe(
        pil_image,
        height=SIDE,
        width=SIDE,
        num_frames=5,
        num_inference_steps=4,
        min_guidance_scale=ends[0],
        max_guidance_scale=ends[1],
        fps=7,
        motion_bucket_id=60,
        noise_aug_strength=0.1,
        latents=noise.transpose(1, 2),
        output_type="latent",
    ).frames.transpose(1, 2)
    given(first_frame(image * 2 - 1, 5))
    result = generate(system, request, noise=noise, output="latents").video
    assert expected.std() > 0.1
    assert (result - expected).abs().max() <= 1e-4


def test_noise_levels_are_the_official_ones():
    """Karras levels from 700 to 0.002, then 0; the network's input is ln(sigma) / 4."""
    for steps in (1, 2, 25):
        levels = spaced(recipe.SCHEDULE, steps, "karras")
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        sigmas = (700 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 700 ** (1 / 7))) ** 7
        assert torch.allclose(levels.sigma[:-1], sigmas, rtol=1e-6)
        assert levels.sigma[-1] == 0
        assert torch.allclose(recipe.c_noise(levels[:steps]), sigmas.log() / 4, atol=1e-6)
    assert recipe.SCHEDULE.prior_std == pytest.approx(math.sqrt(1 + 700**2))


def test_guidance_shapes_are_the_published_ones():
    scales = conditioning.frame_scales
    assert torch.allclose(scales("linear", 1.0, 2.5, 14), torch.linspace(1, 2.5, 14))
    assert torch.allclose(scales("linear", 3.0, 1.0, 5), torch.tensor([3.0, 2.5, 2.0, 1.5, 1.0]))
    triangle = scales("triangle", 1.0, 2.5, 21)
    assert triangle[0] == triangle[-1] == 1.0
    assert triangle[10] == 2.5
    assert torch.allclose(triangle, triangle.flip(0))
    trapezoid = scales("trapezoid", 1.0, 3.0, 25)
    assert trapezoid.tolist() == [1.0, 3.0] + [3.0] * 21 + [3.0, 1.0]
    assert scales("trapezoid-sgm", 1.0, 3.0, 25).tolist() == [1.0, 3.0] + [1.0] * 21 + [3.0, 1.0]


def test_guidance_scales_follow_the_shape():
    system, first = system_of(TINY), torch.zeros(1, 1, 8, 16, 16)
    first[:, :, 0] = 1  # without an image both branches are one
    for extra, expected in (({}, torch.linspace(1, 2.5, 8)), ({"guidance_shape": "triangle"}, None)):
        request = settle(system, ask(seed=1, extra=extra))
        conditions = system.condition(None, request, Canvas.of(torch.zeros(1, 3, 8, 16, 16), first))
        expected = conditioning.frame_scales("triangle", 1, 2.5, 8) if expected is None else expected
        denoise = guide(system, conditions, request, system.guidance(request), system.levels(request))
        (difference,) = cast(Guided, denoise).guidance.differences
        assert torch.allclose(cast(torch.Tensor, difference.scale), expected)


def test_a_single_guidance_scale_applies_to_every_frame():
    system = system_of(TINY)
    request = settle(system, ask(seed=1, guidance=2.0))
    assert conditioning.guidance(TINY, request).tolist() == [2.0] * 8


@pytest.mark.parametrize(
    ("preset", "frames", "size", "ends"),
    [
        ("svd", 14, (576, 1024), (1.0, 2.5)),
        ("svd-xt", 25, (576, 1024), (1.5, 3.0)),
        ("svd-xt-1.1", 25, (576, 1024), (1.5, 3.0)),
        ("sv3d-u", 21, (576, 576), (1.0, 2.5)),
        ("sv3d-p", 21, (576, 576), (1.0, 2.5)),
    ],
)
def test_defaults_are_the_official_sampling(preset, frames, size, ends):
    request = settle(system_of(PRESETS[preset]), ask(seed=1))
    assert (request.frames, request.height, request.width) == (frames, *size)
    assert (request.guidance, request.guidance_end) == ends


def test_sizes_are_snapped_to_multiples_of_64_with_a_note():
    notes: list[Note] = []
    system = system_of(PRESETS["svd"])
    assert with_defaults(system, Request(height=320, width=448), notes.append).shape.bcthw == (1, 3, 14, 320, 448)
    assert not notes
    assert with_defaults(system, Request(height=333, width=448), notes.append).height == 320
    assert len(notes) == 1


# ------------------------------------------------------------------------------------ conditioning


def test_scalars_are_fps_minus_one_motion_bucket_and_augmentation():
    request = settle(system_of(TINY), ask(seed=1, fps=7, clips=2, extra={"motion_bucket": 40, "augmentation": 0.3}))
    assert torch.allclose(conditioning.scalars(TINY, request), torch.tensor([[[6.0, 40.0, 0.3]]]).expand(2, 1, 3))
    request = request.with_(extra={"fps_id": 12})
    assert torch.allclose(conditioning.scalars(TINY, request)[0, 0], torch.tensor([12.0, 127.0, 0.02]))


def test_clip_gets_the_clean_image_and_the_codec_the_noised_one():
    model = load("svd", preset="tiny").system.model
    image, noise = torch.rand(1, 3, 16, 16) * 2 - 1, torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        condition = conditioning.encode(model, image, noise, torch.zeros(1, 1, 3), torch.tensor([0.5]))
        assert torch.equal(condition.context_B1C[:, 0], model.image_encoder.embed(image))
        assert torch.allclose(condition.image_BCTHW[:, :, 0], model.vae.encode(image + 0.5 * noise), atol=1e-6)
    null = condition.null()
    assert not null.context_B1C.any()
    assert not null.image_BCTHW.any()
    assert null.scalars_BTV is condition.scalars_BTV


def test_image_noise_depends_on_the_clip_and_differs_from_latent_noise():
    request = settle(system_of(TINY), ask(seed=4, clips=2))
    noise = conditioning.image_noise(request, 16, 16)
    assert torch.equal(noise[1:], conditioning.image_noise(request.with_(seed=5, clips=1), 16, 16))
    assert not torch.equal(noise, system_of(TINY).noise(request).normal((3, 16, 16)))


def test_the_conditioning_image_is_the_first_whole_frame_or_frame_0():
    video = torch.rand(1, 3, 4, 8, 8)
    mask = torch.zeros(1, 1, 4, 8, 8)
    assert conditioning.image_of(Canvas.of(video, mask)) is None
    assert torch.equal(
        conditioning.image_of(Canvas.of(video, mask, Piece(video, mask + 1, Release("strength", 0.5)))),
        video[:, :, 0],
    )
    mask[..., :4] = 1
    assert torch.equal(conditioning.image_of(Canvas.of(video, mask)), video[:, :, 0] * mask[:, :, 0])
    mask[:, :, 2:] = 1
    assert torch.equal(conditioning.image_of(Canvas.of(video, mask)), video[:, :, 2])


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ({"motion_bucket": 10**6}, "motion_bucket is 1000000; expected a number from 0 to 255"),
        ({"motion_bucket": "fast"}, "motion_bucket is 'fast'"),
        ({"augmentation": -1}, "augmentation is -1"),
        ({"decode_chunk": 0}, "decode_chunk is 0"),
        ({"decode_chunk": 1.5}, "whole number"),
        ({"decode_chunk": 4.0}, "decode_chunk is 4.0; expected a whole number"),
        ({"decode_tile": 16.0}, "decode_tile is 16.0; expected a whole number"),
        ({"guidance_shape": "square"}, "triangle"),
        ({"guidance_shape": ["triangle"]}, "guidance_shape is \\['triangle'\\]; expected one of linear, "),
        ({"guidance_shape": {"triangle": 1}}, "guidance_shape is {'triangle': 1}; expected one of linear, "),
        ({"motion": 3}, "motion_bucket"),
        ({"elevation": 10}, "this svd model has no option"),
    ],
)
def test_unknown_options_and_invalid_values_are_rejected_by_name(extra, names):
    with pytest.raises(BadRequest, match=names):
        with_defaults(system_of(TINY), Request(extra=extra))


def test_decode_chunk_splits_decoding():
    model = load("svd", preset="tiny")
    z = torch.randn(1, 4, 8, 8, 8)
    request = settle(model.system, ask(seed=1, extra={"decode_chunk": 3}))
    with torch.no_grad():
        result = model.system.decode(z, request)
        expected = torch.cat([model.system.decode(part) for part in z.split(3, dim=2)], dim=2)
    assert torch.equal(result, expected)


def test_decode_overlap_cross_fades_chunks():
    """Chunks begin at 0, 2 and 4; in two shared frames the later chunk has weights 1/3 and 2/3."""
    model = load("svd", preset="tiny")
    z = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    request = settle(model.system, ask(seed=1, extra={"decode_chunk": 4, "decode_overlap": 2}))
    with torch.no_grad():
        result = model.system.decode(z, request)
        first, second, third = (model.system.codec.decode(z[:, :, at : at + 4]).clone() for at in (0, 2, 4))
    share = torch.tensor([1, 2])[:, None, None] / 3
    joints = [torch.lerp(a[:, :, 2:], b[:, :, :2], share) for a, b in ((first, second), (second, third))]
    expected = torch.cat([first[:, :, :2], *joints, third[:, :, 2:]], dim=2).clamp(-1, 1)
    assert (result - expected).abs().max() <= 1e-5


def test_a_window_gets_the_scalars_of_its_frames():
    scalars = torch.arange(18.0).reshape(1, 6, 3)
    condition = conditioning.Condition(torch.zeros(1, 1, 32), torch.zeros(1, 4, 1, 8, 8), scalars)
    assert torch.equal(condition.of([4, 5, 0]).scalars_BTV, scalars[:, [4, 5, 0]])
    shared = replace(condition, scalars_BTV=scalars[:, :1])
    assert shared.of([4, 5, 0]) is shared


# -------------------------------------------------------------------------------------------- SV3D


def test_an_orbit_starts_at_the_given_view_which_is_last_for_the_network():
    config = replace(TINY, orbit=True, scalars=(("augmentation", 32), ("polar", 32), ("azimuth", 32)), decoder="image")
    system = system_of(config)
    request = settle(system, ask(seed=1, extra={"elevation": 30}))
    expected = conditioning.scalars(config, request)
    assert expected.shape == (1, 8, 3)
    assert torch.allclose(expected[0, :, 1], torch.full((8,), math.radians(60)))
    assert torch.allclose(expected[0, :, 2], torch.arange(8) * math.pi / 4)
    calls = {}

    def unet(x, _c_noise, _context, scalars, *_):
        calls["azimuth"] = scalars[0, :, 2]
        return x[:, :4].clone()

    condition = conditioning.Condition(torch.zeros(1, 1, 32), torch.zeros(1, 4, 1, 8, 8), expected)
    system.model.unet.forward = unet
    z = torch.randn(1, 4, 8, 8, 8)
    level = NoiseLevel(torch.ones(1), torch.ones(1))
    x0 = FAMILY.sampling.denoiser(system, condition, None)(z, level)
    assert calls["azimuth"][-1] == 0
    assert torch.all(calls["azimuth"][:-1].diff() > 0)
    assert torch.allclose(x0, z / 2 - z / 2, atol=1e-6)  # c_skip z + c_out c_in z, with frames in their original order


@pytest.mark.parametrize("shape", ["triangle", "linear", "trapezoid"])
def test_guidance_of_an_orbit_follows_the_networks_order_of_views(shape):
    """The network's first view has the first scale; its last, the given view, has the last, and is Kinema's frame 0.

    The network predicts 1 with the image and 0 without it, so guided frames are the unguided ones times their scales.
    """
    config = replace(TINY, orbit=True, scalars=(("augmentation", 32), ("polar", 32), ("azimuth", 32)), decoder="image")
    system = system_of(config)
    request = settle(system, ask(seed=1, guidance=1.5, guidance_end=4.0, extra={"guidance_shape": shape}))
    calls = []

    def unet(x, _c_noise, context, scalars, *_):
        calls.append(scalars[0, :, 2])
        return torch.full_like(x[:, :4], float(context.any()))

    system.model.unet.forward = unet
    conditions = system.condition(None, request, first_frame(torch.full((1, 3, 16, 16), 0.5), 8))
    z, level = torch.zeros(1, 4, 8, 8, 8), NoiseLevel(torch.ones(1), torch.ones(1))
    guided = guide(system, conditions, request, system.guidance(request), system.levels(request))(z, level)
    scales = (guided / FAMILY.sampling.denoiser(system, conditions.branches["positive"], None)(z, level))[0, 0, :, 0, 0]
    published = {
        "triangle": 4 - 2.5 * (2 * torch.arange(8) / 7 - 1).abs(),
        "linear": 1.5 + 2.5 * torch.arange(8) / 7,
        "trapezoid": torch.full((8,), 4.0),  # a tenth of eight views rounds to 0: no slope
    }[shape]
    views = calls[0].argsort()  # by azimuth: the given view, at 0, is last for the network
    assert views.tolist() == [7, 0, 1, 2, 3, 4, 5, 6]
    assert torch.allclose(scales, published[views], atol=1e-5)


def test_windows_and_long_orbits_are_rejected():
    system = system_of(PRESETS["sv3d-p"])
    with pytest.raises(BadRequest, match="window"):
        with_defaults(system, Request(window=8))
    with pytest.raises(BadRequest, match="at most 21 views"):
        with_defaults(system, Request(frames=30))


def test_the_family_is_registered():
    assert registry.family("svd") is FAMILY
