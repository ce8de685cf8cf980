"""Training of 2.0: noise, text drops, given frames encoded alone, captions, and precomputed latents."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinema.families.opensora import recipe
from kinema.families.opensora.codec import codec_of
from kinema.families.opensora.family import FAMILY
from kinema.families.opensora.training import captions, given, text
from kinema.schema import BadRequest
from kinema.system import Batch


class Constant(nn.Module):
    """In the place of the transformer; keeps what it is called with."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.img_in = transformer.img_in

    def forward(self, z: Tensor, time: Tensor, states: Tensor, pooled: Tensor, shown: Tensor) -> Tensor:
        self.seen = {"z": z, "time": time, "states": states, "pooled": pooled, "given": shown}
        return torch.zeros_like(z)


def masked(batch: Batch, *frames: int) -> Batch:
    mask = batch.mask.clone()
    mask[:, :, list(frames)] = 1
    return replace(batch, mask=mask)


def test_the_noise_leaves_a_hundred_thousandth_at_time_0(network: Any, batch: Any) -> None:
    """``z = (1 - t) x0 + (1 - (1 - 1e-5)(1 - t)) eps``, in float64 so that this is not lost in rounding."""
    config, model = network("tiny")
    model.transformer = Constant(model.transformer).double()
    asked = batch(config, time=0.25)
    x0 = torch.randn(3, 4, 3, 2, 3, dtype=torch.float64)
    asked = replace(asked, encoded={name: x0 / config.scale for name in ("latents", "first", "last")})
    found = recipe.loss(model, config, asked, torch.Generator().manual_seed(7))
    g = torch.Generator().manual_seed(7)
    torch.randn(3, generator=g)
    eps = torch.randn(3, 4, 3, 2, 3, generator=g).double()
    expected = 0.75 * x0 + (1 - (1 - 1e-5) * 0.75) * eps
    assert torch.allclose(model.transformer.seen["z"], expected, atol=1e-7)
    assert not torch.allclose(model.transformer.seen["z"], 0.75 * x0 + 0.25 * eps, atol=1e-6)
    assert torch.allclose(model.transformer.seen["time"].double(), torch.full((3,), 0.25).double())
    target = (1 - 1e-5) * eps - x0
    assert torch.allclose(found.double(), target.square().mean((1, 2, 3, 4)), rtol=1e-5)


def test_states_and_pooled_are_each_dropped_in_0_316_and_both_in_a_tenth(network: Any) -> None:
    config, model = network("tiny")
    encoded = {"states": torch.ones(20_000, 1, 2), "pooled": torch.ones(20_000, 2)}
    encoded |= {f"empty_{name}": torch.zeros_like(value) for name, value in encoded.items()}
    asked = Batch(torch.zeros(1), ["a ball"] * 20_000, torch.zeros(1), encoded=encoded)
    states, pooled = text.of_second(model, config, asked, torch.Generator().manual_seed(1))
    gone = states[:, 0, 0] == 0, pooled[:, 0] == 0
    assert [float(each.float().mean()) for each in gone] == pytest.approx([0.3162, 0.3162], abs=0.01)
    assert float((gone[0] & gone[1]).float().mean()) == pytest.approx(0.1, abs=0.01)
    kept = text.of_second(model, config, replace(asked, drops=False), torch.Generator().manual_seed(1))
    assert bool((kept[0] == 1).all())
    assert bool((kept[1] == 1).all())


def test_a_dropped_caption_of_a_small_model_is_its_empty_one(network: Any, batch: Any) -> None:
    config, model = network("tiny")
    asked = batch(config, 40)
    with torch.no_grad():
        states, pooled = text.of_second(model, config, asked, torch.Generator().manual_seed(1))
        full = text.of_second(model, config, replace(asked, drops=False), torch.Generator())
        empty = text.of_second(model, config, replace(asked, captions=[""] * 40, drops=False), torch.Generator())
    for found, whole, none in zip((states, pooled), full, empty, strict=True):
        same = [(torch.allclose(f, w), torch.allclose(f, n)) for f, w, n in zip(found, whole, none, strict=True)]
        assert {*same} == {(True, False), (False, True)}


@pytest.mark.parametrize("preset", ["tiny", "tiny-dc-ae"])
def test_given_frames_are_encoded_alone_whatever_the_other_clips_of_the_batch_give(
    preset: str, network: Any, batch: Any
) -> None:
    """Head, tail, loop and nothing in one batch; the last latent frame stands for the last image alone."""
    config, model = network(preset)
    asked = batch(config, 4)
    mask = asked.mask.clone()
    mask[0, :, 0] = mask[1, :, -1] = mask[2, :, [0, -1]] = 1
    x0, shown = given.latents(model, config, replace(asked, mask=mask))
    encode = codec_of(config, model).encode
    with torch.no_grad():
        first, last = encode(asked.video[:, :, :1]), encode(asked.video[:, :, -1:])
        assert torch.allclose(x0, encode(asked.video), atol=1e-4)
    expected = torch.zeros_like(shown)
    for clip, place, frame in ((0, 0, first), (1, -1, last), (2, 0, first), (2, -1, last)):
        expected[clip, 0, place] = 1
        expected[clip, 1:, place] = frame[clip, :, 0]
    assert torch.allclose(shown, expected, atol=1e-4 * float(expected.abs().max()))


def test_the_rest_of_a_partly_given_frame_is_not_seen(network: Any, batch: Any) -> None:
    config, model = network("tiny")
    asked = batch(config)
    mask = asked.mask.clone()
    mask[..., :16] = 1
    other = torch.where(mask > 0, asked.video, asked.video.flip(1) + 1)
    shown = [given.latents(model, config, replace(asked, video=each, mask=mask))[1] for each in (asked.video, other)]
    assert bool(shown[0].any())
    assert torch.equal(*shown)


def test_an_image_is_given_nothing(network: Any, batch: Any) -> None:
    config, model = network("tiny")
    image = replace(batch(config), video=batch(config).video[:, :, :1], mask=torch.ones(3, 1, 1, 16, 24))
    x0, shown = given.latents(model, config, image)
    assert x0.shape[2] == 1
    assert not bool(shown.any())


@pytest.mark.parametrize("preset", ["tiny", "tiny-dc-ae"])
@pytest.mark.parametrize("frames", [(), (0,), (-1,), (0, -1)])
def test_precomputed_latents_give_the_same_loss(preset: str, frames: tuple[int, ...], network: Any, batch: Any) -> None:
    config, model = network(preset)
    whole = masked(batch(config), *frames)
    stored = replace(whole, video=whole.video[:, :, :1], encoded=FAMILY.training.tuning.encode(model, whole.video))
    losses = [
        FAMILY.training.loss(model, config, each, torch.Generator().manual_seed(3)).detach() for each in (whole, stored)
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


def test_precomputed_latents_refuse_other_canvases(network: Any, batch: Any) -> None:
    config, model = network("tiny")
    asked = batch(config)
    encoded = FAMILY.training.tuning.encode(model, asked.video)
    region = asked.mask.clone()
    region[:, :, :, :8] = 1
    for mask, said in (
        (masked(asked, 0, 1, 2).mask, "of the first and last frame"),
        (region, "whole frames, not regions"),
    ):
        with pytest.raises(BadRequest, match=said):
            given.latents(model, config, replace(asked, mask=mask, encoded=encoded))


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2", "1.3"])
def test_precomputed_latents_of_1_x_give_the_same_loss(version: str, network: Any, batch: Any) -> None:
    """The noisy kind of 1.3 aside, which a stage without it shows."""
    config, model = network(f"tiny-{version}")
    config = replace(config, stage="stage1-hq") if version == "1.3" else config
    whole = batch(config, 4, fps=torch.tensor([8.0, 24.0, math.nan, 12.0]))
    stored = replace(whole, video=whole.video[:, :, :1], encoded=FAMILY.training.tuning.encode(model, whole.video))
    for seed in range(3):
        losses = [
            FAMILY.training.loss(model, config, each, torch.Generator().manual_seed(seed)).detach()
            for each in (whole, stored)
        ]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_losses_at_fixed_times_differ_and_are_repeatable(network: Any, batch: Any) -> None:
    for preset in ("tiny", "tiny-1.1", "tiny-1.2", "tiny-1.3"):
        config, model = network(preset)
        with torch.no_grad():
            at = [
                FAMILY.training.loss(model, config, batch(config, time=time), torch.Generator().manual_seed(1)).mean()
                for time in (*FAMILY.training.times(config), FAMILY.training.times(config)[0])
            ]
        assert len({*map(float, at)}) == 10
        assert at[0] == at[-1]
    assert FAMILY.training.times(FAMILY.presets["tiny"]) == pytest.approx([k / 11 for k in range(1, 11)])


# ------------------------------------------------------------------------------------------ captions


@pytest.mark.parametrize(
    ("caption", "fps", "motion", "expected"),
    [
        ("a dog.", 24.0, 0.1, "a dog. 24 FPS, 4 motion score."),
        ("a dog", 12.5, 0.04, "a dog 12.5 FPS, 2 motion score."),
        ("a dog.", 24.0, None, "a dog. 24 FPS."),
        ("a dog.", 24.0, math.nan, "a dog. 24 FPS."),
        ("a dog.", None, 0.16, "a dog. 6 motion score."),
        ("a dog.", None, None, "a dog."),
        ("  ", 24.0, 0.1, ""),
        ("a dog. 24 FPS. 4 motion score.", 8.0, 0.1, "a dog. 24 FPS. 4 motion score."),
        ("a dog. 6 motion score.", 24.0, 0.1, "a dog. 6 motion score. 24 FPS."),
    ],
)
def test_captions_of_2_0_end_with_rate_and_score(
    caption: str, fps: float | None, motion: float | None, expected: str
) -> None:
    assert captions.completed_v2(caption, fps, motion) == expected


def test_images_have_neither_rate_nor_score() -> None:
    """As in the original, whose images have none; a rendered image has the rate and the motion of its clip, 0."""
    known = torch.tensor([8.0, math.nan])
    assert captions.values(known, 2, 9) == [8.0, None]
    assert captions.values(known, 2, 1) == captions.values(None, 2, 9) == [None, None]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.0", "a dog."),
        ("1.1", "a dog."),
        ("1.2", "a dog. motion score: 4.0."),
        ("1.3", "a dog. the motion strength is fair."),
    ],
)
def test_captions_of_1_x_end_with_the_versions_own_score(version: Any, expected: str) -> None:
    assert captions.completed_v1(version, "A dog.", 0.1) == expected
    assert captions.completed_v1(version, "A dog.", None) == "a dog."
    assert captions.completed_v1(version, "", 0.1) == ""
