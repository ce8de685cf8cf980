"""PIA: files in both layouts, its native canvas, and affinities; the pipeline tests compare with diffusers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kinema.api import load
from kinema.canvas import Canvas
from kinema.checkpoints import files
from kinema.checkpoints.convert import convert
from kinema.families.animatediff.config import IMAGE_BETAS, PRESETS, TINY, to_json
from kinema.families.animatediff.control.pia import AFFINITIES
from kinema.families.animatediff.files import layout, motion_file
from kinema.families.animatediff.model import AnimateDiff
from kinema.schema import BadRequest, Request
from kinema.settle import with_defaults
from kinema.system import open_system

IMAGE = replace(
    TINY,
    channels=(64, 128),
    heads=(8, 8),
    motion="none",
    betas=IMAGE_BETAS,
    words=("a", "cat"),
    text=(replace(TINY.text[0], vocabulary=6),),
)
SIZE = replace(IMAGE, motion="pia", positions=32, motion_heads=8)


@pytest.fixture(scope="module")
def saved(oracle, tmp_path_factory):
    """A Kinema image model, PIA in the authors' layout, and the whole model in memory."""
    folder = tmp_path_factory.mktemp("pia")
    whole = oracle.randomised(AnimateDiff(SIZE))
    state = whole.state_dict()
    image = {k: v for k, v in state.items() if ".motion_modules." not in k and "conv_first" not in k}
    note = json.dumps({"family": "animatediff", "config": to_json(IMAGE)})
    files.write_tensors(folder / "image.safetensors", image, {"kinema": note})
    motion = {k.removeprefix("unet."): v for k, v in state.items() if ".motion_modules." in k}
    # The first input channels belong to the image model that PIA was trained in, not to this one.
    first = {"conv_in.weight": torch.cat([torch.zeros(64, 4, 3, 3), state["unet.conv_first.weight"]], dim=1)}
    first["conv_in.bias"] = torch.zeros(64)
    torch.save(motion_file.export("official", motion | first), folder / "pia.ckpt")
    return folder, whole


def test_pia_adds_its_first_layer_to_that_of_the_image_model(saved):
    folder, whole = saved
    system = open_system(folder / "image.safetensors", add={"motion": folder / "pia.ckpt"})
    assert (system.config.motion, system.config.positions, system.config.betas[0]) == ("pia", 32, "linear")
    result, expected = system.model.state_dict(), whole.state_dict()
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[name], expected[name]) for name in result)


def test_the_published_size_is_recognised():
    with torch.device("meta"):
        state = AnimateDiff(PRESETS["pia"]).unet.state_dict()
    motion = {k: torch.zeros(()).expand(v.shape) for k, v in state.items() if ".motion_modules." in k}
    file = motion_file.export("official", motion | {"conv_in.weight": torch.zeros(()).expand(320, 9, 3, 3)})
    assert len(file) == 560 + 1
    module = motion_file.recognise({k: (tuple(v.shape), v.dtype) for k, v in file.items()})
    assert replace(module.into(PRESETS["image"]), fps=PRESETS["pia"].fps) == PRESETS["pia"]


def test_pia_converts_to_diffusers_and_back(saved, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    source = saved[0] / "pia.ckpt"
    convert(source, tmp_path / "folder", "diffusers")
    convert(tmp_path / "folder", tmp_path / "again.safetensors", "official")
    before, after = files.read_tensors(source), files.read_tensors(tmp_path / "again.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    adapter = diffusers.MotionAdapter.from_pretrained(tmp_path / "folder")
    assert adapter.config.conv_in_channels == 9
    assert torch.equal(adapter.conv_in.weight, before["conv_in.weight"])
    system = open_system(saved[0] / "image.safetensors", add={"motion": tmp_path / "folder"})
    assert system.config.motion == "pia"


def test_the_first_frame_is_known_natively_and_affects_the_others(saved, tmp_path, image_file):
    folder, _ = saved
    model = load(folder / "image.safetensors", add={"motion": folder / "pia.ckpt"})
    honours = model.system.family.sampling.honours
    assert honours(model.system.config, "first")[0] == "native"
    assert "native" not in honours(model.system.config, "ends")
    a, b, events = image_file(tmp_path / "a.png", 20), image_file(tmp_path / "b.png", 230), []

    def generate(image, **fields):
        request = Request(task="animate", prompt="a cat", image=image, frames=4, steps=2, seed=1, **fields)
        return model.run(request, on_event=events.append).video

    one, other = generate(a), generate(b)
    assert not torch.allclose(one[:, :, 1:], other[:, :, 1:], atol=1e-4)
    large = generate(a, extra={"affinity": "large"})
    assert not torch.allclose(one, large, atol=1e-5)
    assert torch.equal(generate(a, extra={"affinity": list(AFFINITIES["large"][:4])}), large)
    assert not events or not any("got none" in str(event) for event in events)
    windows = generate(a, window=2, overlap=0, extra={"effect": 0})
    assert not torch.allclose(windows, generate(b, window=2, overlap=0, extra={"effect": 0}), atol=1e-4)
    model.run(Request(prompt="a cat", frames=4, steps=1, seed=1), on_event=events.append)
    assert any("got none; use animate with an image" in str(event) for event in events)


def test_a_single_frame_equals_the_image_model(saved):
    folder, _ = saved
    fields = {"prompt": "a cat", "frames": 1, "steps": 2, "seed": 1, "guidance": 2.0}
    expected = load(folder / "image.safetensors").run(Request(**fields)).video
    add, betas = {"motion": folder / "pia.ckpt"}, {"betas": IMAGE_BETAS}  # for the same noise levels
    with_pia = load(folder / "image.safetensors", add=add, overrides=betas)
    result = with_pia.run(Request(**fields)).video
    assert (result - expected).abs().max() <= 1e-5
    with pytest.raises(BadRequest, match="no affinity 'huge'"):
        with_pia.generate("a cat", frames=4, extra={"affinity": "huge"})
    with pytest.raises(BadRequest, match="expected 4 numbers from 0 to 1"):
        with_pia.generate("a cat", frames=4, extra={"affinity": [1, 0.5]})


def test_an_inpainting_model_is_not_recognised_as_pia(saved, tmp_path):
    folder, _ = saved
    table = layout.ImageFile(replace(IMAGE, in_channels=9), vae=True, text=False).table
    torch.save({name: torch.zeros(shape) for name, shape in table.foreign.items()}, tmp_path / "inpainting.ckpt")
    with pytest.raises(BadRequest, match="an inpainting model"):
        open_system(tmp_path / "inpainting.ckpt")


def test_pia_needs_the_whole_first_frame():
    system = load("animatediff", preset="tiny", overrides={"motion": "pia"}).system
    request = with_defaults(system, Request(prompt="a red ball", frames=4, seed=1))
    shape = request.shape.bcthw
    for rows, used in ((slice(None), True), (slice(1, None), False)):
        mask, events = torch.zeros(1, 1, *shape[2:]), []
        mask[:, :, 0, rows] = 1
        conditions = system.condition(
            system.encode_prompt(request), request, Canvas.of(torch.zeros(shape), mask), events.append
        )
        assert (conditions.branches["positive"].first_BCTHW is not None) == used
        assert any("got none" in str(event) for event in events) != used
