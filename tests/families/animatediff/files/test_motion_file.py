"""Motion modules of every published layout: what they are told to be, and their tensors both ways."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from kinema.families.animatediff.config import IMAGE, PRESETS, SDXL_IMAGE, TINY
from kinema.families.animatediff.files import motion_file
from kinema.families.animatediff.unet import UNet
from kinema.schema import BadRequest

PUBLISHED = {  # file: preset, layout, tensors (facts, §2)
    "mm_sd_v15.ckpt": ("v1", "official", 560),
    "mm_sd_v15_v2.ckpt": ("v2", "official", 588),
    "v3_sd15_mm.ckpt": ("v3", "official", 560),
    "mm_sdxl_v10_beta.ckpt": ("sdxl", "official", 420),
    "AnimateLCM_sd15_t2v.ckpt": ("lcm", "official", 546),
    "animatediff_lightning_4step_comfyui.safetensors": ("lightning", "official", 588),
    "animatediff_lightning_4step_diffusers.safetensors": ("lightning", "diffusers", 567),
    "hsxl_temporal_layers.safetensors": ("hotshot", "hotshot", 420),
    "animatediff-motion-adapter-v1-5-2": ("v2", "diffusers", 567),
    "animatediff-motion-adapter-v1-5-3": ("v3", "diffusers", 540),
    "animatediff-motion-adapter-sdxl-beta": ("sdxl", "diffusers", 405),
}


@cache
def modules_of(config, real=False):
    """Our motion modules: tiny ones with numbers, or any size without memory (one number seen everywhere)."""
    if real:
        torch.manual_seed(0)
        network = UNet(config)
    else:
        with torch.device("meta"):
            network = UNet(config)
    state = {k: v for k, v in network.state_dict().items() if ".motion_modules." in k}
    return state if real else {k: torch.zeros(()).expand(v.shape) for k, v in state.items()}


def published(file):
    preset, layout, _ = PUBLISHED[file]
    config = PRESETS[preset]
    if preset == "hotshot":
        config = replace(config, positions=24)
    return motion_file.export(layout, modules_of(config), positions="LCM" not in file)


def header(tensors):
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


@pytest.mark.parametrize("file", PUBLISHED)
def test_each_published_file_is_told_by_its_keys_and_shapes(file):
    preset, layout, count = PUBLISHED[file]
    tensors = published(file)
    assert len(tensors) == count
    told = motion_file.recognise(header(tensors), file)
    assert (told.motion, told.layout) == (preset, layout)
    base = SDXL_IMAGE if preset in ("sdxl", "hotshot") else IMAGE
    config = told.into(base)
    assert config == replace(PRESETS[preset], positions=24) if preset == "hotshot" else config == PRESETS[preset]
    made = motion_file.convert(told, tensors)
    assert header(made) == header(modules_of(config))


@pytest.mark.parametrize(
    ("name", "steps", "said"),
    [
        ("animatediff_lightning_8step_comfyui", 8, "was distilled for 8 steps, as its name tells"),
        ("animatediff_lightning_1step_diffusers", 1, "was distilled for 1 step, as its name tells"),
        ("AnimateDiff-Lightning-2-Step", 2, "was distilled for 2 steps"),
        ("lightning_at_18steps", 4, "does not say for how many steps it was distilled: 4 are made"),
    ],
)
def test_lightning_is_sampled_in_the_steps_its_name_tells(name, steps, said):
    told = motion_file.recognise(header(published("animatediff_lightning_4step_comfyui.safetensors")), name)
    assert told.into(IMAGE) == replace(PRESETS["lightning"], steps=steps)
    assert [said in note for note in told.notes(name)] == [True]


@pytest.mark.parametrize("layout", ["official", "diffusers", "hotshot"])
def test_layouts_go_both_ways(layout):
    config = replace(TINY, motion_heads=8)
    ours = modules_of(config, real=True)
    theirs = motion_file.export(layout, ours)
    back = motion_file.convert(motion_file.recognise(header(theirs)), theirs)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[k], ours[k]) for k in ours)
    again = motion_file.export(layout, back)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[k], theirs[k]) for k in theirs)


def test_positions_that_a_file_lacks_are_the_sinusoids():
    ours = modules_of(replace(TINY, positions=32), real=True)
    theirs = motion_file.export("official", ours, positions=False)
    told = motion_file.recognise(header(theirs))
    assert (told.motion, told.positions) == ("lcm", None)
    back = motion_file.convert(told, theirs)
    assert all(torch.equal(back[k], ours[k]) for k in ours)


@pytest.mark.parametrize("harm", ["unknown", "unequal positions", "positions of half"])
def test_a_damaged_module_is_refused_and_the_key_named(harm):
    theirs = motion_file.export("official", modules_of(TINY, real=True))
    told = motion_file.recognise(header(theirs))
    block = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    if harm == "unknown":
        theirs[f"{block}.gate.weight"] = torch.zeros(1)
        match = "gate"
    elif harm == "unequal positions":
        theirs[f"{block}.attention_blocks.0.pos_encoder.pe"] = torch.ones(1, 16, 32)
        match = "two different tables of positions at down_blocks.0"
    else:
        for n in (0, 1):
            del theirs[f"{block}.attention_blocks.{n}.pos_encoder.pe"]
        match = "lacks the positions of down_blocks.0"
    with pytest.raises(BadRequest, match=match):
        motion_file.convert(told, theirs)


def test_an_image_model_is_no_motion_module_and_sizes_must_agree():
    with torch.device("meta"):
        assert motion_file.recognise(header(UNet(PRESETS["v2"]).state_dict())) is None
    told = motion_file.recognise(header(published("mm_sdxl_v10_beta.ckpt")))
    with pytest.raises(BadRequest, match=r"for Stable Diffusion XL .*, and the image model has 320/640/1280/1280"):
        told.into(IMAGE)
