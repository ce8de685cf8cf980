"""SVD from a request to latents against diffusers' pipeline, and how it treats requests and canvases."""

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
from kinema.schema import BadRequest, Request, Shape
from kinema.settle import settle, with_defaults
from kinema.system import System, Weights, with_model

SIDE = 32
CONFIG = replace(
    TINY, frames=5, height=SIDE, width=SIDE, norm_eps="diffusers", vae_channels=(32, 32, 32, 64), guidance=(1.0, 3.0)
)


def system_of(config, model=None) -> System:
    made = System("svd", FAMILY, config, Weights())
    return with_model(made, model) if model is not None else made


def first_frame(picture, frames):
    video = picture[:, :, None].expand(-1, -1, frames, -1, -1) * torch.eye(frames)[0][:, None, None]
    mask = torch.zeros(len(picture), 1, *video.shape[2:])
    mask[:, :, 0] = 1
    return Canvas.of(video, mask)


def ask(**options):
    """The verb ``generate`` wants words, which this family notes and leaves."""
    return Request(**{"prompt": "anything", **options})


@pytest.fixture
def given(monkeypatch):
    """Has ``generate`` find this canvas, whatever the request."""
    from kinema import tasks

    def give(canvas):
        monkeypatch.setitem(tasks.TASKS, "generate", tasks.Task(lambda r: r, lambda _r, _e: canvas))

    return give


@pytest.mark.parametrize("ends", [(1.0, 3.0), (3.0, 1.5)])
def test_latents_equal_the_pipeline_of_diffusers_from_the_same_noise(pair, given, monkeypatch, ends):
    from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
    from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as theirs
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
    monkeypatch.setattr(
        theirs, "_resize_with_antialiasing", lambda x, size, f=theirs._resize_with_antialiasing: f(x, (32, 32))
    )

    picture = (torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)) * 255).round() / 255
    request = ask(
        seed=7, steps=4, guidance=ends[0], guidance_end=ends[1], fps=7, extra={"motion_bucket": 60, "augmentation": 0.1}
    )
    system = system_of(CONFIG, two.ours)
    settled = settle(system, request)
    noise = system.noise(settled).normal(system.latent_shape(settled).bcthw[1:])
    picture_noise = conditioning.picture_noise(settled, SIDE, SIDE)
    monkeypatch.setattr(theirs, "randn_tensor", lambda *_args, **_more: picture_noise)
    from PIL import Image

    image = Image.fromarray((picture[0].permute(1, 2, 0).numpy() * 255).round().astype("uint8"))
    expected = pipe(
        image,
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
    given(first_frame(picture * 2 - 1, 5))
    made = generate(system, request, noise=noise, output="latents").video
    assert expected.std() > 0.1
    assert (made - expected).abs().max() <= 1e-4


def test_levels_are_the_official_ones():
    """Karras levels from 700 to 0.002, then 0; the network is told a quarter of their logarithm."""
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


def test_guidance_reaches_each_frame_as_its_shape_says():
    system = system_of(TINY)
    for extra, expected in (({}, torch.linspace(1, 2.5, 8)), ({"guidance_shape": "triangle"}, None)):
        request = settle(system, ask(seed=1, extra=extra))
        told = system.condition(None, request, Canvas(Shape(1, 3, 8, 16, 16)))
        expected = conditioning.frame_scales("triangle", 1, 2.5, 8) if expected is None else expected
        denoise = guide(system, told, request, system.guidance(request), system.levels(request))
        (difference,) = cast(Guided, denoise).guidance.differences
        assert torch.allclose(cast(torch.Tensor, difference.scale), expected)


def test_one_guidance_scale_holds_for_every_frame():
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
def test_a_request_without_wishes_gets_the_official_sampling(preset, frames, size, ends):
    request = settle(system_of(PRESETS[preset]), ask(seed=1))
    assert (request.frames, request.height, request.width) == (frames, *size)
    assert (request.guidance, request.guidance_end) == ends


def test_any_multiple_of_64_is_made_and_other_sizes_are_snapped_and_said():
    said: list[Note] = []
    system = system_of(PRESETS["svd"])
    assert with_defaults(system, Request(height=320, width=448), said.append).shape.bcthw == (1, 3, 14, 320, 448)
    assert not said
    assert with_defaults(system, Request(height=333, width=448), said.append).height == 320
    assert len(said) == 1


# ------------------------------------------------------------------------------------ conditioning


def test_the_network_is_told_fps_less_one_the_motion_bucket_and_the_noise():
    request = settle(system_of(TINY), ask(seed=1, fps=7, clips=2, extra={"motion_bucket": 40, "augmentation": 0.3}))
    assert torch.allclose(conditioning.scalars(TINY, request), torch.tensor([[[6.0, 40.0, 0.3]]]).expand(2, 1, 3))
    request = request.with_(extra={"fps_id": 12})
    assert torch.allclose(conditioning.scalars(TINY, request)[0, 0], torch.tensor([12.0, 127.0, 0.02]))


def test_clip_sees_the_clean_picture_and_the_codec_the_noised_one():
    model = load("svd", preset="tiny").system.model
    picture, noise = torch.rand(1, 3, 16, 16) * 2 - 1, torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        told = conditioning.encode(model, picture, noise, torch.zeros(1, 1, 3), torch.tensor([0.5]))
        assert torch.equal(told.context_B1C[:, 0], model.image_encoder.embed(picture))
        assert torch.allclose(told.picture_BCTHW[:, :, 0], model.vae.encode(picture + 0.5 * noise), atol=1e-6)
    null = told.null()
    assert not null.context_B1C.any()
    assert not null.picture_BCTHW.any()
    assert null.scalars_BTV is told.scalars_BTV


def test_the_noise_of_a_picture_is_not_that_of_the_latents_and_belongs_to_its_clip():
    request = settle(system_of(TINY), ask(seed=4, clips=2))
    noise = conditioning.picture_noise(request, 16, 16)
    assert torch.equal(noise[1:], conditioning.picture_noise(request.with_(seed=5, clips=1), 16, 16))
    assert not torch.equal(noise, system_of(TINY).noise(request).normal((3, 16, 16)))


def test_the_picture_is_the_first_whole_frame_or_what_is_given_of_the_first():
    video = torch.rand(1, 3, 4, 8, 8)
    mask = torch.zeros(1, 1, 4, 8, 8)
    assert conditioning.picture_of(Canvas.of(video, mask)) is None
    assert torch.equal(
        conditioning.picture_of(Canvas.of(video, mask, Piece(video, mask + 1, Release("strength", 0.5)))),
        video[:, :, 0],
    )
    mask[..., :4] = 1
    assert torch.equal(conditioning.picture_of(Canvas.of(video, mask)), video[:, :, 0] * mask[:, :, 0])
    mask[:, :, 2:] = 1
    assert torch.equal(conditioning.picture_of(Canvas.of(video, mask)), video[:, :, 2])


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
        ({"motion": 3}, "motion_bucket"),
        ({"elevation": 10}, "no option of this svd model"),
    ],
)
def test_options_it_has_not_and_values_out_of_range_are_refused_by_name(extra, names):
    with pytest.raises(BadRequest, match=names):
        with_defaults(system_of(TINY), Request(extra=extra))


def test_decoding_in_chunks_is_asked_for_by_the_request():
    model = load("svd", preset="tiny")
    z = torch.randn(1, 4, 8, 8, 8)
    request = settle(model.system, ask(seed=1, extra={"decode_chunk": 3}))
    with torch.no_grad():
        made = model.system.decode(z, request)
        expected = torch.cat([model.system.decode(part) for part in z.split(3, dim=2)], dim=2)
    assert torch.equal(made, expected)


def test_decoded_chunks_share_as_many_frames_as_are_asked_for():
    """Chunks begin at 0, 2 and 4; of two shared frames a third and two thirds are the later chunk's."""
    model = load("svd", preset="tiny")
    z = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    request = settle(model.system, ask(seed=1, extra={"decode_chunk": 4, "decode_overlap": 2}))
    with torch.no_grad():
        made = model.system.decode(z, request)
        first, second, third = (model.system.codec.decode(z[:, :, at : at + 4]).clone() for at in (0, 2, 4))
    share = torch.tensor([1, 2])[:, None, None] / 3
    joints = [torch.lerp(a[:, :, 2:], b[:, :, :2], share) for a, b in ((first, second), (second, third))]
    expected = torch.cat([first[:, :, :2], *joints, third[:, :, 2:]], dim=2).clamp(-1, 1)
    assert (made - expected).abs().max() <= 1e-5


def test_a_window_is_told_the_numbers_of_its_own_frames():
    told = torch.arange(18.0).reshape(1, 6, 3)
    condition = conditioning.Condition(torch.zeros(1, 1, 32), torch.zeros(1, 4, 1, 8, 8), told)
    assert torch.equal(condition.of([4, 5, 0]).scalars_BTV, told[:, [4, 5, 0]])
    shared = replace(condition, scalars_BTV=told[:, :1])
    assert shared.of([4, 5, 0]) is shared


# -------------------------------------------------------------------------------------------- SV3D


def test_an_orbit_starts_at_the_given_view_and_the_network_sees_it_last():
    config = replace(TINY, orbit=True, scalars=(("augmentation", 32), ("polar", 32), ("azimuth", 32)), decoder="image")
    system = system_of(config)
    request = settle(system, ask(seed=1, extra={"elevation": 30}))
    told = conditioning.scalars(config, request)
    assert told.shape == (1, 8, 3)
    assert torch.allclose(told[0, :, 1], torch.full((8,), math.radians(60)))
    assert torch.allclose(told[0, :, 2], torch.arange(8) * math.pi / 4)
    seen = {}

    def unet(x, _c_noise, _context, scalars, *_):
        seen["azimuth"] = scalars[0, :, 2]
        return x[:, :4].clone()

    condition = conditioning.Condition(torch.zeros(1, 1, 32), torch.zeros(1, 4, 1, 8, 8), told)
    system.model.unet.forward = unet
    z = torch.randn(1, 4, 8, 8, 8)
    level = NoiseLevel(torch.ones(1), torch.ones(1))
    x0 = FAMILY.sampling.denoiser(system, condition, None)(z, level)
    assert seen["azimuth"][-1] == 0
    assert torch.all(seen["azimuth"][:-1].diff() > 0)
    assert torch.allclose(x0, z / 2 - z / 2, atol=1e-6)  # c_skip z + c_out c_in z: frames come back in their places


@pytest.mark.parametrize("shape", ["triangle", "linear", "trapezoid"])
def test_guidance_of_an_orbit_goes_with_the_views_as_the_network_sees_them(shape):
    """The network's first view has the first scale and the given view, its last, the last one; our clip begins there.

    The network predicts 1 where it is shown a picture and 0 where it is not, so that guided frames are as many times
    the frames without guidance as their scales say.
    """
    config = replace(TINY, orbit=True, scalars=(("augmentation", 32), ("polar", 32), ("azimuth", 32)), decoder="image")
    system = system_of(config)
    request = settle(system, ask(seed=1, guidance=1.5, guidance_end=4.0, extra={"guidance_shape": shape}))
    seen = []

    def unet(x, _c_noise, context, scalars, *_):
        seen.append(scalars[0, :, 2])
        return torch.full_like(x[:, :4], float(context.any()))

    system.model.unet.forward = unet
    told = system.condition(None, request, first_frame(torch.full((1, 3, 16, 16), 0.5), 8))
    z, level = torch.zeros(1, 4, 8, 8, 8), NoiseLevel(torch.ones(1), torch.ones(1))
    guided = guide(system, told, request, system.guidance(request), system.levels(request))(z, level)
    scales = (guided / FAMILY.sampling.denoiser(system, told.branches["positive"], None)(z, level))[0, 0, :, 0, 0]
    published = {
        "triangle": 4 - 2.5 * (2 * torch.arange(8) / 7 - 1).abs(),
        "linear": 1.5 + 2.5 * torch.arange(8) / 7,
        "trapezoid": torch.full((8,), 4.0),  # a tenth of eight views is none: no slope
    }[shape]
    views = seen[0].argsort()  # by azimuth: the given view, at 0, is last in the network
    assert views.tolist() == [7, 0, 1, 2, 3, 4, 5, 6]
    assert torch.allclose(scales, published[views], atol=1e-5)


def test_orbits_in_windows_or_longer_than_the_model_are_refused():
    system = system_of(PRESETS["sv3d-p"])
    with pytest.raises(BadRequest, match="window"):
        with_defaults(system, Request(window=8))
    with pytest.raises(BadRequest, match="up to 21 views"):
        with_defaults(system, Request(frames=30))


def test_it_is_registered():
    assert registry.family("svd") is FAMILY
