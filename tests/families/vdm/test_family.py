from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from kinema.canvas import Canvas
from kinema.conditioning import bert
from kinema.diffusion.guidance import Measurement, Reconstruction
from kinema.diffusion.samplers import SAMPLERS, options
from kinema.diffusion.schedules import NoiseLevel
from kinema.events import Note, OnEvent, ignore
from kinema.families.vdm.condition import Condition
from kinema.families.vdm.config import Config, presets
from kinema.families.vdm.family import FAMILY
from kinema.families.vdm.model import UNetLevel, VideoUNet
from kinema.guide import guide
from kinema.schema import BadRequest, Request, Shape
from kinema.settle import with_defaults
from kinema.system import Conditions, System, WeightPolicy, Weights, open_system

SHAPE = (1, 3, 8, 16, 16)


def system(config: Config) -> System:
    return System("vdm/tiny", FAMILY, config, Weights(seed=3))


def conditioned(model: System, request: Request, on_event: OnEvent = ignore) -> Conditions:
    return model.condition(model.encode_prompt(request, on_event), request, Canvas(Shape(*SHAPE)), on_event)


def level(model: System, t: float = 0.5) -> NoiseLevel:
    return model.process(with_defaults(model, Request())).schedule.level(torch.tensor([t], dtype=torch.float64))


def noisy(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_every_preset_has_a_sampler_and_valid_options() -> None:
    for config in presets().values():
        own = FAMILY.sampling.defaults(config)
        assert own.sampler in SAMPLERS
        assert set(own.options) <= set(options(own.sampler))


def test_the_papers_samplers_are_the_defaults() -> None:
    ucf, bair = FAMILY.sampling.defaults(presets()["ucf101"]), FAMILY.sampling.defaults(presets()["bair"])
    assert (ucf.sampler, dict(ucf.options), ucf.steps) == ("vdm-ancestral", {"gamma": 0.1}, 256)
    assert (bair.sampler, dict(bair.options), bair.steps) == ("vdm-langevin", {"gamma": 0.0, "delta": 0.1}, 256)


def test_an_empty_prompt_is_the_trained_null(tiny: Config) -> None:
    model = system(tiny)
    conditions = conditioned(model, Request(prompt="a red ball", seed=0), ignore)
    null = conditioned(model, Request(prompt="  ", seed=0), ignore)
    assert conditions.branches["negative"].vector is None
    assert null.branches["positive"].vector is None
    assert conditions.branches["positive"].vector.shape == (1, 4 * tiny.channels)


@pytest.mark.parametrize("offline", [True, False])
def test_offline_reaches_the_text_encoder(tiny: Config, monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    passed: list[bool] = []

    def load(*, device: str, offline: bool) -> None:
        passed.append(offline)
        raise BadRequest(f"no BERT on {device}")

    monkeypatch.setattr(bert, "load", load)
    model = open_system("vdm", preset="tiny", offline=offline, overrides={"text": "bert"})
    with pytest.raises(BadRequest, match="no BERT"):
        conditioned(model, Request(prompt="a red ball", seed=0), ignore)
    assert passed == [offline]


def test_unknown_words_are_reported(tiny: Config) -> None:
    events: list[object] = []
    conditioned(system(tiny), Request(prompt="a red zeppelin", seed=0), events.append)
    assert [note.message for note in events if isinstance(note, Note)] == ["unknown words for vdm/tiny: zeppelin"]


def test_per_frame_denoises_each_frame_independently(tiny: Config, lively: Callable[..., VideoUNet]) -> None:
    model = replace(system(tiny), policy=WeightPolicy(torch.float64, torch.float64))
    model.__dict__["model"] = lively()
    z, other = noisy().double(), noisy().double()
    other[:, :, 3] += 1
    for per_frame in (True, False):
        denoise = FAMILY.sampling.denoiser(model, Condition(None, per_frame), None)
        with torch.no_grad():
            moved = (denoise(other, level(model)) - denoise(z, level(model))).abs().amax(dim=(0, 1, 3, 4))
        elsewhere = torch.cat([moved[:3], moved[4:]])
        assert bool((elsewhere == 0).all()) is per_frame
        assert moved[3] > 0


def test_per_frame_of_a_request_reaches_the_condition(tiny: Config) -> None:
    conditions = conditioned(system(tiny), Request(extra={"per_frame": True}, seed=0), ignore)
    assert conditions.branches["positive"].per_frame
    assert conditions.branches["negative"].per_frame


def test_a_guided_eps_estimate_stays_in_range(tiny: Config) -> None:
    """The estimate is clipped after guidance, which would leave the range: eps estimates divide by a tiny alpha."""
    scale = Request(prompt="a red ball", guidance=5.0, seed=0)
    for target, bounded in (("eps", True), ("v", False)):
        model = system(replace(tiny, target=target))
        conditions = conditioned(model, scale, ignore)
        request = with_defaults(model, scale)
        denoise = guide(model, conditions, request, model.guidance(request), model.levels(request))
        with torch.no_grad():
            assert (denoise(3 * noisy(), level(model, 0.2)).abs().max() <= 1).item() is bounded


def test_reconstruction_guidance_runs_through_the_network(tiny: Config) -> None:
    """The gradient reaches unknown frames through temporal attention."""
    model = system(tiny)
    denoise = FAMILY.sampling.denoiser(model, Condition(), None)
    given, mask = torch.zeros(SHAPE), torch.zeros(1, 1, *SHAPE[2:])
    mask[:, :, :2] = 1
    guided = Reconstruction(denoise, [Measurement.of_piece(given, mask, 100.0)], mask)
    with torch.no_grad():
        a, b = guided(noisy(), level(model)), denoise(noisy(), level(model))
    assert (a - b)[:, :, 2:].abs().amax(dim=(0, 1, 3, 4)).min() > 0
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_reconstruction_guidance_has_no_effect_on_other_frames_with_per_frame(tiny: Config) -> None:
    model = system(tiny)
    denoise = FAMILY.sampling.denoiser(model, Condition(per_frame=True), None)
    given, mask = torch.zeros(SHAPE), torch.zeros(1, 1, *SHAPE[2:])
    mask[:, :, :2] = 1
    with torch.no_grad():
        assert torch.equal(
            Reconstruction(denoise, [Measurement.of_piece(given, mask, 100.0)], mask)(noisy(), level(model))[:, :, 2:],
            denoise(noisy(), level(model))[:, :, 2:],
        )


@pytest.mark.parametrize("kind", ["first", "ends", "prefix", "suffix", "frames", "region", "all"])
def test_given_pixels_are_held_by_guidance(tiny: Config, kind: str) -> None:
    assert FAMILY.sampling.honours(tiny, kind) == ("reconstruction", "replacement")


def test_a_class_conditional_model_accepts_class_names_as_prompts(tiny: Config) -> None:
    config = replace(tiny, text="none", words=(), classes=("juggling", "archery"))
    model = system(config)
    FAMILY.sampling.check(config, Request(prompt="Archery"))
    got = conditioned(model, Request(prompt="Archery", seed=0), ignore)
    assert torch.equal(got.branches["positive"].vector[0], model.model.classes.weight[1])
    with pytest.raises(BadRequest, match="archery"):
        FAMILY.sampling.check(config, Request(prompt="archer"))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(prompt="a ball"), "without text"),
        (Request(negative_prompt="blur"), "without text"),
        (Request(guidance=3.0), "supports no guidance"),
        (Request(extra={"motion_bucket": 3}), "motion_bucket"),
        (Request(extra={"per_frame": "yes"}), "true or false"),
    ],
)
def test_unsupported_options_of_an_unconditional_model_are_rejected(
    tiny: Config, request_: Request, message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        FAMILY.sampling.check(replace(tiny, text="none", words=()), request_)


def test_blocks_are_the_resolution_levels_and_hold_most_of_the_weights(tiny: Config) -> None:
    model = FAMILY.build(tiny)
    blocks = FAMILY.blocks(model)
    assert all(isinstance(block, UNetLevel) for block in blocks)
    held = sum(p.numel() for block in blocks for p in block.parameters())
    assert held > 0.5 * sum(p.numel() for p in model.parameters())


def test_tiny_samples_a_finite_clip_with_its_defaults(tiny: Config) -> None:
    model = system(tiny)
    request = with_defaults(model, Request(seed=1))
    denoise = model.denoiser(conditioned(model, request).branches["positive"])
    noise = model.noise(request)
    z = SAMPLERS[request.sampler](
        denoise, model.prior(request, noise.normal(SHAPE[1:])), model.levels(request), noise=noise
    )
    assert z.shape == SHAPE
    assert bool(z.isfinite().all())
