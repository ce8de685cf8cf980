"""Motion modules of every published layout: recognition, and conversion both ways."""

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
    """Motion modules of a network: random weights (``real``), or one expanded zero that needs no memory."""
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
def test_published_files_are_recognised_by_keys_and_shapes(file):
    preset, layout, count = PUBLISHED[file]
    tensors = published(file)
    assert len(tensors) == count
    module = motion_file.recognise(header(tensors), file)
    assert (module.motion, module.layout) == (preset, layout)
    base = SDXL_IMAGE if preset in ("sdxl", "hotshot") else IMAGE
    config = module.into(base)
    assert config == replace(PRESETS[preset], positions=24) if preset == "hotshot" else config == PRESETS[preset]
    converted = motion_file.convert(module, tensors)
    assert header(converted) == header(modules_of(config))


@pytest.mark.parametrize(
    ("name", "steps", "note"),
    [
        ("animatediff_lightning_8step_comfyui", 8, "was distilled for 8 steps according to its name"),
        ("animatediff_lightning_1step_diffusers", 1, "was distilled for 1 step according to its name"),
        ("AnimateDiff-Lightning-2-Step", 2, "was distilled for 2 steps"),
        ("lightning_at_18steps", 4, "does not state the number of steps it was distilled for; steps defaults to 4"),
    ],
)
def test_lightning_takes_its_steps_from_the_file_name(name, steps, note):
    module = motion_file.recognise(header(published("animatediff_lightning_4step_comfyui.safetensors")), name)
    assert module.into(IMAGE) == replace(PRESETS["lightning"], steps=steps)
    assert [note in each for each in module.notes(name)] == [True]


@pytest.mark.parametrize("layout", ["official", "diffusers", "hotshot"])
def test_layouts_convert_both_ways(layout):
    config = replace(TINY, motion_heads=8)
    native = modules_of(config, real=True)
    foreign = motion_file.export(layout, native)
    back = motion_file.convert(motion_file.recognise(header(foreign)), foreign)
    assert back.keys() == native.keys()
    assert all(torch.equal(back[k], native[k]) for k in native)
    again = motion_file.export(layout, back)
    assert again.keys() == foreign.keys()
    assert all(torch.equal(again[k], foreign[k]) for k in foreign)


def test_missing_positions_are_sinusoids():
    native = modules_of(replace(TINY, positions=32), real=True)
    foreign = motion_file.export("official", native, positions=False)
    module = motion_file.recognise(header(foreign))
    assert (module.motion, module.positions) == ("lcm", None)
    back = motion_file.convert(module, foreign)
    assert all(torch.equal(back[k], native[k]) for k in native)


@pytest.mark.parametrize("damage", ["unknown", "unequal positions", "missing positions"])
def test_a_damaged_module_raises_with_the_key(damage):
    foreign = motion_file.export("official", modules_of(TINY, real=True))
    module = motion_file.recognise(header(foreign))
    block = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    if damage == "unknown":
        foreign[f"{block}.gate.weight"] = torch.zeros(1)
        match = "gate"
    elif damage == "unequal positions":
        foreign[f"{block}.attention_blocks.0.pos_encoder.pe"] = torch.ones(1, 16, 32)
        match = "two different position tables at down_blocks.0"
    else:
        for n in (0, 1):
            del foreign[f"{block}.attention_blocks.{n}.pos_encoder.pe"]
        match = "lacks the positions of down_blocks.0"
    with pytest.raises(BadRequest, match=match):
        motion_file.convert(module, foreign)


def test_other_files_and_other_sizes_are_rejected():
    with torch.device("meta"):
        assert motion_file.recognise(header(UNet(PRESETS["v2"]).state_dict())) is None
    module = motion_file.recognise(header(published("mm_sdxl_v10_beta.ckpt")))
    with pytest.raises(BadRequest, match=r"for Stable Diffusion XL .*; the image model has 320/640/1280/1280"):
        module.into(IMAGE)
