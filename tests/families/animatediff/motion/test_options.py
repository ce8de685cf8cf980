"""Request options ``effect`` and ``motion_scale``, per frame and region."""

from __future__ import annotations

import pytest
import torch

from kinema.api import load
from kinema.families.animatediff.motion import options
from kinema.families.animatediff.motion.module import MotionControl, MotionModule
from kinema.grid import LatentGrid, Lattice
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip, Request

LATTICE = Lattice(LatentGrid(stride=(8, 8), channels=4))


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def request(frames=4, **extra):
    return Request(prompt="a red ball", frames=frames, height=32, width=64, fps=8.0, seed=1, steps=1, extra=extra)


def effect_of(setting, frames=4):
    return options.motion_control_of(request(frames, effect=setting), LATTICE).effect_T1HW


def half_white(path, frames=1):
    """Write a mask whose left half is white; later frames of a clip are black."""
    video = torch.full((1, 3, frames, 32, 64), -1.0)
    video[:, :, 0, :, :32] = 1
    return str(save_clip(Clip(video, 8.0), path)[0])


# -------------------------------------------------------------------------------------- the module


def test_the_motion_scale_multiplies_the_keys(oracle):
    module = oracle.randomised(MotionModule(32, 2, 16))
    x = normal(8, 32, 4, 4)
    scaled = module(x, 4, MotionControl(scale_T1HW=torch.full((1, 1, 1, 1), 1.7)))
    assert torch.equal(module(x, 4, MotionControl(scale_T1HW=torch.ones(1, 1, 1, 1))), module(x, 4))
    for attention in (module.transformer_blocks[0].attn1, module.transformer_blocks[0].attn2):
        attention.to_k.weight.mul_(1.7)
    assert (scaled - module(x, 4)).abs().max() <= 1e-5


def test_the_motion_scale_applies_per_key_frame_and_position(oracle):
    module = oracle.randomised(MotionModule(32, 2, 16))
    attention, x = module.transformer_blocks[0].attn1, normal(1, 4, 6, 32)
    scale = torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) * 2
    q, k, v = (of(x).unflatten(-1, (2, 16)) for of in (attention.to_q, attention.to_k, attention.to_v))
    k = k * scale[:, :, None, None]
    weight = torch.einsum("btshd,bushd->bshtu", q, k).div(4).softmax(-1)
    expected = attention.to_out[0](torch.einsum("bshtu,bushd->btshd", weight, v).flatten(-2))
    assert (attention.over_time(x, scale) - expected).abs().max() <= 1e-5


def test_regions_with_scale_or_effect_1_do_not_change(oracle):
    module = oracle.randomised(MotionModule(32, 2, 16))
    x, left = normal(8, 32, 4, 4), torch.ones(1, 1, 8, 8)
    left[..., :4] = 0.3
    for motion_control in (MotionControl(effect_T1HW=left), MotionControl(scale_T1HW=left)):
        result = module(x, 4, motion_control)
        assert torch.allclose(result[..., 2:], module(x, 4)[..., 2:], atol=1e-6)
        assert (result[..., :2] - module(x, 4)[..., :2]).abs().max() > 1e-3


# -------------------------------------------------------------------------------------- the options


def test_numbers_frames_boxes_and_masks_become_latent_maps(tmp_path):
    assert effect_of(None) is None
    assert effect_of(0.5).shape == (1, 1, 1, 1)
    assert effect_of([0, 1, 2, 3])[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    box = effect_of({"0,0,0.25,1": 0.0, "elsewhere": 2.0})
    assert box.shape == (1, 1, 4, 8)
    assert box[0, 0, 1].tolist() == [0, 0, 2, 2, 2, 2, 2, 2]
    assert effect_of({"0,0,0.1875,1": 0.0})[0, 0, 0].tolist() == [0, 0.5, 1, 1, 1, 1, 1, 1]
    mask = effect_of({half_white(tmp_path / "mask.png"): 3.0})
    assert mask[0, 0, 2].tolist() == [3, 3, 3, 3, 1, 1, 1, 1]


def test_later_regions_cover_earlier_ones_and_may_differ_per_frame(tmp_path):
    setting = {"0,0,1,0.5": [0, 1, 2, 3], half_white(tmp_path / "mask.png"): 5.0, "elsewhere": 0.5}
    result = effect_of(setting)
    assert result.shape == (4, 1, 4, 8)
    assert result[:, 0, 0, 7].tolist() == [0, 1, 2, 3]
    assert bool((result[:, 0, :, 0] == 5).all())
    assert bool((result[:, 0, 3, 7] == 0.5).all())


def test_a_clip_is_one_mask_per_frame_and_repeats_its_last(tmp_path):
    result = effect_of({half_white(tmp_path / "masks.gif", frames=2): 0.0})
    assert result.shape == (4, 1, 4, 8)
    assert result[:, 0, 0, 0].tolist() == pytest.approx([0, 1, 1, 1], abs=0.02)


def test_maps_are_sliced_by_the_frames_of_a_window():
    motion_control = options.motion_control_of(request(effect=[0, 1, 2, 3], motion_scale=1.5), LATTICE)
    part = motion_control.of([1, 3])
    assert part.effect_T1HW[:, 0, 0, 0].tolist() == [1, 3]
    assert part.scale_T1HW.shape == (1, 1, 1, 1)


# ---------------------------------------------------------------------------------------- requests


@pytest.fixture(scope="module")
def model(oracle):
    result = load("animatediff", preset="tiny")
    oracle.randomised(result.system.model)
    return result


def run(model, **extra):
    return model.run(request(**extra).with_(height=16, width=16), output="latents").video


def test_effect_and_scale_reach_the_network(model, tmp_path):
    plain = run(model)
    assert torch.equal(run(model, effect=1, motion_scale=1), plain)
    assert not torch.equal(run(model, motion_scale=1.5), plain)
    assert not torch.equal(run(model, motion_scale={half_white(tmp_path / "m.png"): 2.0}), plain)
    still = run(model, effect=0)
    left = run(model, effect={"0.5,0,1,1": 0})
    assert not torch.equal(left, plain)
    assert not torch.equal(left, still)


def test_every_file_named_by_options_is_listed_once():
    extra = {
        "control.pose": "pose.mp4",
        "control.depth": "depth/",
        "ip_image.face": {0: "a.png", 3: ["b.png", "a.png"]},
        "scribble": {2: "d.png"},
        "effect": {"0,0,1,1": 1, "sky.png": 0.5, "elsewhere": 0},
        "motion_scale": {"sky.png": 2, "sea.mp4": [1, 1, 1, 1]},
        "control_scale.pose": 0.5,
    }
    files = load("animatediff", preset="tiny").system.family.sampling.files(request(**extra))
    assert files == ("pose.mp4", "depth/", "a.png", "b.png", "d.png", "sky.png", "sea.mp4")
    assert load("animatediff", preset="tiny").system.family.sampling.files(request(effect=0.5)) == ()


def test_the_command_line_takes_a_mapping_of_regions(tmp_path):
    from kinema.cli.main import main

    regions = '{"0,0,0.5,1": 0.2, "elsewhere": [1, 1, 2, 2]}'
    words = "generate ball --model animatediff/tiny --steps 1 --seed 1 --frames 4 --quiet --extra".split()
    assert main([*words, f"effect={regions}", "-o", str(tmp_path / "a.mp4")]) == 0
    assert main([*words, "motion-scale=99", "-o", str(tmp_path / "b.mp4")]) == 2


@pytest.mark.parametrize(
    ("frames", "extra", "message"),
    [
        (4, {"effect": "much"}, "effect is 'much'; expected a number from 0 to 10, or one per frame"),
        (4, {"motion_scale": [1, 2]}, r"motion_scale is \[1, 2\]"),
        (4, {"effect": {"0,0,2,1": 1}}, "effect has the box 0,0,2,1"),
        (4, {"effect": {"no/such.png": 1}}, "effect has the region 'no/such.png'; expected a mask file"),
        (4, {"effect": {"elsewhere": None}}, "effect is None"),
        (4, {"effect": {7: 1.0}}, "effect has the region 7"),
        (1, {"effect": 0.5}, "effect controls motion modules and a single frame uses none"),
        (20, {"effect": [1] * 20}, "per-frame effect does not work block by block; give a --window of up to 16"),
    ],
)
def test_invalid_options_raise_before_weights_are_loaded(frames, extra, message):
    fresh = load("animatediff", preset="tiny")
    invalid = request(frames, **extra).with_(overlap=4 if frames > 16 else None)
    with pytest.raises(BadRequest, match=message):
        fresh.run(invalid)
    assert fresh.system.runtime.model is None
