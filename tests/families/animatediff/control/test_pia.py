"""PIA: its files in both layouts, the canvas it holds natively, its affinities; parity is in the pipelines' tests."""

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
    """An image model of our own and PIA as its authors save it; and the whole, in memory."""
    folder = tmp_path_factory.mktemp("pia")
    whole = oracle.randomised(AnimateDiff(SIZE))
    state = whole.state_dict()
    image = {k: v for k, v in state.items() if ".motion_modules." not in k and "conv_first" not in k}
    note = json.dumps({"family": "animatediff", "config": to_json(IMAGE)})
    files.write_tensors(folder / "image.safetensors", image, {"kinema": note})
    moving = {k.removeprefix("unet."): v for k, v in state.items() if ".motion_modules." in k}
    # The first columns of its own are those of the image model that it was trained in: not this one's.
    first = {"conv_in.weight": torch.cat([torch.zeros(64, 4, 3, 3), state["unet.conv_first.weight"]], dim=1)}
    first["conv_in.bias"] = torch.zeros(64)
    torch.save(motion_file.export("official", moving | first), folder / "pia.ckpt")
    return folder, whole


def test_its_file_is_a_motion_module_and_the_image_model_keeps_its_own_first_layer(saved):
    folder, whole = saved
    system = open_system(folder / "image.safetensors", add={"motion": folder / "pia.ckpt"})
    assert (system.config.motion, system.config.positions, system.config.betas[0]) == ("pia", 32, "linear")
    made, want = system.model.state_dict(), whole.state_dict()
    assert made.keys() == want.keys()
    assert all(torch.equal(made[name], want[name]) for name in made)


def test_published_size_is_told():
    with torch.device("meta"):
        state = AnimateDiff(PRESETS["pia"]).unet.state_dict()
    moving = {k: torch.zeros(()).expand(v.shape) for k, v in state.items() if ".motion_modules." in k}
    file = motion_file.export("official", moving | {"conv_in.weight": torch.zeros(()).expand(320, 9, 3, 3)})
    assert len(file) == 560 + 1
    told = motion_file.recognise({k: (tuple(v.shape), v.dtype) for k, v in file.items()})
    assert replace(told.into(PRESETS["image"]), fps=PRESETS["pia"].fps) == PRESETS["pia"]


def test_it_goes_to_diffusers_and_back(saved, tmp_path):
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


def test_the_first_frame_is_held_natively_and_reaches_the_others(saved, tmp_path, picture):
    folder, _ = saved
    model = load(folder / "image.safetensors", add={"motion": folder / "pia.ckpt"})
    honours = model.system.family.sampling.honours
    assert honours(model.system.config, "first")[0] == "native"
    assert "native" not in honours(model.system.config, "ends")
    a, b, said = picture(tmp_path / "a.png", 20), picture(tmp_path / "b.png", 230), []

    def made(image, **told):
        request = Request(task="animate", prompt="a cat", image=image, frames=4, steps=2, seed=1, **told)
        return model.run(request, on_event=said.append).video

    one, other = made(a), made(b)
    assert not torch.allclose(one[:, :, 1:], other[:, :, 1:], atol=1e-4)
    large = made(a, extra={"affinity": "large"})
    assert not torch.allclose(one, large, atol=1e-5)
    assert torch.equal(made(a, extra={"affinity": list(AFFINITIES["large"][:4])}), large)
    assert not said or not any("shown none" in str(event) for event in said)
    windows = made(a, window=2, overlap=0, extra={"effect": 0})
    assert not torch.allclose(windows, made(b, window=2, overlap=0, extra={"effect": 0}), atol=1e-4)
    model.run(Request(prompt="a cat", frames=4, steps=1, seed=1), on_event=said.append)
    assert any("is shown none: animate one" in str(event) for event in said)


def test_one_frame_is_still_the_image_models(saved):
    folder, _ = saved
    told = {"prompt": "a cat", "frames": 1, "steps": 2, "seed": 1, "guidance": 2.0}
    alone = load(folder / "image.safetensors").run(Request(**told)).video
    add, betas = {"motion": folder / "pia.ckpt"}, {"betas": IMAGE_BETAS}  # else its steps are at other levels
    with_pia = load(folder / "image.safetensors", add=add, overrides=betas)
    same = with_pia.run(Request(**told)).video
    assert (same - alone).abs().max() <= 1e-5
    with pytest.raises(BadRequest, match="no affinity 'huge'"):
        with_pia.generate("a cat", frames=4, extra={"affinity": "huge"})
    with pytest.raises(BadRequest, match="expected 4 numbers from 0 to 1"):
        with_pia.generate("a cat", frames=4, extra={"affinity": [1, 0.5]})


def test_an_inpainting_model_is_not_taken_for_it(saved, tmp_path):
    folder, _ = saved
    table = layout.ImageFile(replace(IMAGE, in_channels=9), vae=True, text=False).table
    torch.save({name: torch.zeros(shape) for name, shape in table.theirs.items()}, tmp_path / "inpainting.ckpt")
    with pytest.raises(BadRequest, match="an inpainting model"):
        open_system(tmp_path / "inpainting.ckpt")


def test_pia_is_shown_a_first_frame_that_is_given_whole_and_no_other():
    system = load("animatediff", preset="tiny", overrides={"motion": "pia"}).system
    request = with_defaults(system, Request(prompt="a red ball", frames=4, seed=1))
    shape = request.shape.bcthw
    for rows, shown in ((slice(None), True), (slice(1, None), False)):
        mask, said = torch.zeros(1, 1, *shape[2:]), []
        mask[:, :, 0, rows] = 1
        told = system.condition(
            system.encode_prompt(request), request, Canvas.of(torch.zeros(shape), mask), said.append
        )
        assert (told.branches["positive"].first_BCTHW is not None) == shown
        assert any("is shown none" in str(event) for event in said) != shown
