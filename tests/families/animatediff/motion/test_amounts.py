"""How much motion modules move, per frame and per region: effect and motion scale."""

from __future__ import annotations

import pytest
import torch

from kinema.api import load
from kinema.families.animatediff.motion import amounts
from kinema.families.animatediff.motion.module import MotionModule, Moving
from kinema.grid import LatentGrid, Lattice
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip, Request

LATTICE = Lattice(LatentGrid(stride=(8, 8), channels=4))


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def asked(frames=4, **extra):
    return Request(prompt="a red ball", frames=frames, height=32, width=64, fps=8.0, seed=1, steps=1, extra=extra)


def effect_of(told, frames=4):
    return amounts.moving_of(asked(frames, effect=told), LATTICE).effect_T1HW


def half_white(path, frames=1):
    """Pictures whose left half is white; later frames of a clip are black."""
    video = torch.full((1, 3, frames, 32, 64), -1.0)
    video[:, :, 0, :, :32] = 1
    return str(save_clip(Clip(video, 8.0), path)[0])


# -------------------------------------------------------------------------------------- the module


def test_the_motion_scale_multiplies_the_keys(oracle):
    module = oracle.randomised(MotionModule(32, 2, 16))
    x = normal(8, 32, 4, 4)
    scaled = module(x, 4, Moving(scale_T1HW=torch.full((1, 1, 1, 1), 1.7)))
    assert torch.equal(module(x, 4, Moving(scale_T1HW=torch.ones(1, 1, 1, 1))), module(x, 4))
    for attention in (module.transformer_blocks[0].attn1, module.transformer_blocks[0].attn2):
        attention.to_k.weight.mul_(1.7)
    assert (scaled - module(x, 4)).abs().max() <= 1e-5


def test_the_motion_scale_of_a_frame_is_that_of_its_key_and_of_a_place_its_own(oracle):
    module = oracle.randomised(MotionModule(32, 2, 16))
    attention, x = module.transformer_blocks[0].attn1, normal(1, 4, 6, 32)
    scale = torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) * 2
    q, k, v = (of(x).unflatten(-1, (2, 16)) for of in (attention.to_q, attention.to_k, attention.to_v))
    k = k * scale[:, :, None, None]
    weight = torch.einsum("btshd,bushd->bshtu", q, k).div(4).softmax(-1)
    expected = attention.to_out[0](torch.einsum("bshtu,bushd->btshd", weight, v).flatten(-2))
    assert (attention.over_time(x, scale) - expected).abs().max() <= 1e-5


def test_where_the_scale_is_1_and_the_effect_all_nothing_changes_there(oracle):
    module = oracle.randomised(MotionModule(32, 2, 16))
    x, left = normal(8, 32, 4, 4), torch.ones(1, 1, 8, 8)
    left[..., :4] = 0.3
    for moving in (Moving(effect_T1HW=left), Moving(scale_T1HW=left)):
        made = module(x, 4, moving)
        assert torch.allclose(made[..., 2:], module(x, 4)[..., 2:], atol=1e-6)
        assert (made[..., :2] - module(x, 4)[..., :2]).abs().max() > 1e-3


# ------------------------------------------------------------------------------------- what is told


def test_numbers_frames_boxes_and_masks_become_maps_of_the_latent_grid(tmp_path):
    assert effect_of(None) is None
    assert effect_of(0.5).shape == (1, 1, 1, 1)
    assert effect_of([0, 1, 2, 3])[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    box = effect_of({"0,0,0.25,1": 0.0, "elsewhere": 2.0})
    assert box.shape == (1, 1, 4, 8)
    assert box[0, 0, 1].tolist() == [0, 0, 2, 2, 2, 2, 2, 2]
    assert effect_of({"0,0,0.1875,1": 0.0})[0, 0, 0].tolist() == [0, 0.5, 1, 1, 1, 1, 1, 1]
    mask = effect_of({half_white(tmp_path / "mask.png"): 3.0})
    assert mask[0, 0, 2].tolist() == [3, 3, 3, 3, 1, 1, 1, 1]


def test_regions_lie_over_each_other_and_may_differ_by_frame(tmp_path):
    told = {"0,0,1,0.5": [0, 1, 2, 3], half_white(tmp_path / "mask.png"): 5.0, "elsewhere": 0.5}
    made = effect_of(told)
    assert made.shape == (4, 1, 4, 8)
    assert made[:, 0, 0, 7].tolist() == [0, 1, 2, 3]
    assert bool((made[:, 0, :, 0] == 5).all())
    assert bool((made[:, 0, 3, 7] == 0.5).all())


def test_a_clip_is_one_mask_a_frame_and_holds_its_last(tmp_path):
    made = effect_of({half_white(tmp_path / "masks.gif", frames=2): 0.0})
    assert made.shape == (4, 1, 4, 8)
    assert made[:, 0, 0, 0].tolist() == pytest.approx([0, 1, 1, 1], abs=0.02)


def test_amounts_are_cut_with_the_frames_of_a_window():
    moving = amounts.moving_of(asked(effect=[0, 1, 2, 3], motion_scale=1.5), LATTICE)
    part = moving.of([1, 3])
    assert part.effect_T1HW[:, 0, 0, 0].tolist() == [1, 3]
    assert part.scale_T1HW.shape == (1, 1, 1, 1)


# ---------------------------------------------------------------------------------------- requests


@pytest.fixture(scope="module")
def model(oracle):
    made = load("animatediff", preset="tiny")
    oracle.randomised(made.system.model)
    return made


def run(model, **told):
    return model.run(asked(**told).with_(height=16, width=16), output="latents").video


def test_effect_and_scale_reach_the_network(model, tmp_path):
    plain = run(model)
    assert torch.equal(run(model, effect=1, motion_scale=1), plain)
    assert not torch.equal(run(model, motion_scale=1.5), plain)
    assert not torch.equal(run(model, motion_scale={half_white(tmp_path / "m.png"): 2.0}), plain)
    still = run(model, effect=0)
    left = run(model, effect={"0.5,0,1,1": 0})
    assert not torch.equal(left, plain)
    assert not torch.equal(left, still)


def test_every_file_that_options_name_is_told_once():
    extra = {
        "control.pose": "pose.mp4",
        "control.depth": "depth/",
        "ip_image.face": {0: "a.png", 3: ["b.png", "a.png"]},
        "scribble": {2: "d.png"},
        "effect": {"0,0,1,1": 1, "sky.png": 0.5, "elsewhere": 0},
        "motion_scale": {"sky.png": 2, "sea.mp4": [1, 1, 1, 1]},
        "control_scale.pose": 0.5,
    }
    told = load("animatediff", preset="tiny").system.family.sampling.files(asked(**extra))
    assert told == ("pose.mp4", "depth/", "a.png", "b.png", "d.png", "sky.png", "sea.mp4")
    assert load("animatediff", preset="tiny").system.family.sampling.files(asked(effect=0.5)) == ()


def test_the_command_line_takes_a_mapping_of_regions(tmp_path):
    from kinema.cli.main import main

    told = '{"0,0,0.5,1": 0.2, "elsewhere": [1, 1, 2, 2]}'
    words = "generate ball --model animatediff/tiny --steps 1 --seed 1 --frames 4 --quiet --extra".split()
    assert main([*words, f"effect={told}", "-o", str(tmp_path / "a.mp4")]) == 0
    assert main([*words, "motion-scale=99", "-o", str(tmp_path / "b.mp4")]) == 2


@pytest.mark.parametrize(
    ("frames", "extra", "says"),
    [
        (4, {"effect": "much"}, "effect is 'much'; expected a number from 0 to 10, or 4 of them"),
        (4, {"motion_scale": [1, 2]}, r"motion_scale is \[1, 2\]"),
        (4, {"effect": {"0,0,2,1": 1}}, "effect has the region 0,0,2,1"),
        (4, {"effect": {"no/such.png": 1}}, "effect names the region 'no/such.png'; expected a mask's file"),
        (4, {"effect": {"elsewhere": None}}, "effect is None"),
        (4, {"effect": {7: 1.0}}, "effect names the region 7"),
        (1, {"effect": 0.5}, "effect is of motion modules, and a single frame"),
        (20, {"effect": [1] * 20}, "effect of single frames is for a clip made at once: give a window of 16"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name_before_weights_are_read(frames, extra, says):
    fresh = load("animatediff", preset="tiny")
    request = asked(frames, **extra).with_(overlap=4 if frames > 16 else None)
    with pytest.raises(BadRequest, match=says):
        fresh.run(request)
    assert fresh.system.runtime.model is None
