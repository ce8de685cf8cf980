"""Opening published files and folders: recognition, and that every tensor is loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kinema import registry
from kinema.api import load
from kinema.checkpoints import files, stable_diffusion
from kinema.families.animatediff.config import IMAGE, MOTION_BETAS, PRESETS, SDXL_IMAGE, TINY
from kinema.families.animatediff.control import sparse
from kinema.families.animatediff.files import layout, motion_file
from kinema.families.animatediff.model import AnimateDiff
from kinema.schema import BadRequest, Request
from kinema.settle import with_defaults
from kinema.system import open_system

SIZE = replace(TINY, heads=(8, 8), motion_heads=8, positions=32, absent=())
"""Sizes with the published head counts, which weights do not determine."""


PAN = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor"
"""Key prefix of a MotionLoRA."""


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model = AnimateDiff(SIZE)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


def single_file(model, *, vae=True, text=True, more=True):
    """The image model in a single file as on CivitAI, with training leftovers."""
    native = {k: v for k, v in model.state_dict().items() if ".motion_modules." not in k}
    if not vae:
        native = {k: v for k, v in native.items() if not k.startswith("vae.")}
    if not text:
        native = {k: v for k, v in native.items() if not k.startswith("text_encoder.")}
    tensors = layout.ImageFile(SIZE, vae, text).table.backward(native, "the test")
    if more:
        tensors |= {
            "model_ema.decay": torch.zeros(()),
            "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(3),
            "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(20)[None],
            **{name: torch.zeros(1000) for name in ("betas", "alphas_cumprod", "sqrt_recipm1_alphas_cumprod")},
        }
    return tensors


def motion_of(model):
    return {k.removeprefix("unet."): v for k, v in model.state_dict().items() if ".motion_modules." in k}


def same(system, model, without=()):
    """Whether a system's network has exactly the weights of a model."""
    result, expected = system.model.state_dict(), model.state_dict()
    return all(torch.equal(result[k], expected[k]) for k in result) and set(result) == {
        k for k in expected if not any(part in k for part in without)
    }


def written(path, tensors):
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors, "epoch": 3}, path)
    else:
        files.write_tensors(path, tensors)
    return path


def test_the_alias_opens_image_model_and_motion_module(tiny, tmp_path, monkeypatch):
    image = written(tmp_path / "image.safetensors", single_file(tiny))
    moving = {name: x for name, x in motion_of(tiny).items() if not name.startswith("mid_block")}
    other = written(tmp_path / "mm.ckpt", motion_file.export("official", moving))
    hub = {"stable-diffusion-v1-5/stable-diffusion-v1-5": image, "guoyww/animatediff/v3_sd15_mm.ckpt": other}
    fetched = []
    monkeypatch.setattr("kinema.system.opening.hub.fetch_model", lambda name, **_: fetched.append(name) or hub[name])
    system = open_system("animatediff-v3")
    assert fetched == list(hub)
    assert system.config.motion != "none"
    assert [(each.slot, each.source.path) for each in system.weights.added] == [("motion", other)]
    fetched.clear()
    mine = open_system("animatediff-v3", add={"motion": other})
    assert fetched == list(hub)[:1]
    assert [each.slot for each in mine.weights.added] == ["motion"]


@pytest.mark.parametrize("name", ["dream.safetensors", "dream.ckpt"])
def test_a_single_file_opens_alone_and_with_a_motion_module(tiny, tmp_path, name):
    image = written(tmp_path / name, single_file(tiny))
    alone = open_system(image)
    assert (alone.family.name, alone.config.motion) == ("animatediff", "none")
    assert same(alone, tiny, without=(".motion_modules.",))
    mm = written(tmp_path / "mm.ckpt", motion_file.export("official", motion_of(tiny)))
    moving = open_system(image, add={"motion": mm})
    assert (moving.config.motion, moving.config.positions, moving.config.betas) == ("v2", 32, MOTION_BETAS)
    assert same(moving, tiny)
    assert moving.weights.hash != alone.weights.hash
    fast = written(tmp_path / "lightning_8step.ckpt", motion_file.export("official", motion_of(tiny)))
    quick = open_system(image, add={"motion": fast})
    assert quick.config.steps == 8
    assert quick.notes == ("lightning_8step was distilled for 8 steps according to its name",)


def test_a_file_without_a_vae_accepts_one_of_either_layout(tiny, tmp_path):
    image = written(tmp_path / "pruned.safetensors", single_file(tiny, vae=False, more=False))
    with pytest.raises(BadRequest, match=r"file has no VAE; give --add vae=FILE"):
        load(image).generate("a cat")
    native = {k.removeprefix("vae."): v for k, v in tiny.state_dict().items() if k.startswith("vae.")}
    ldm = {
        k.removeprefix(stable_diffusion.VAE): v
        for k, v in single_file(tiny, more=False).items()
        if k.startswith(stable_diffusion.VAE)
    }
    for n, tensors in enumerate((native, ldm, {stable_diffusion.VAE + k: v for k, v in ldm.items()})):
        vae = written(tmp_path / f"vae{n}.safetensors", tensors)
        system = open_system(image, add={"vae": vae})
        assert system.config.absent == ()
        assert same(system, tiny, without=(".motion_modules.",))


def test_a_file_without_a_text_encoder_raises_before_loading(tiny, tmp_path):
    image = written(tmp_path / "unet.safetensors", single_file(tiny, text=False))
    with pytest.raises(BadRequest, match="has no text encoder"):
        load(image).generate("a cat")


def test_text_encoders_without_their_usual_prefix_load(tiny, tmp_path):
    tensors = {k.replace(".transformer.text_model.", ".transformer."): v for k, v in single_file(tiny).items()}
    assert same(open_system(written(tmp_path / "old.safetensors", tensors)), tiny, without=(".motion_modules.",))


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_a_wrong_key_raises_on_opening(tiny, tmp_path, damage):
    tensors = single_file(tiny)
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "unknown":
        name = "model.diffusion_model.control.weight"
        tensors[name] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(4, 4)
    with pytest.raises(BadRequest, match=name.replace(".", r"\.")):
        open_system(written(tmp_path / "bad.safetensors", tensors))


def test_single_files_have_the_published_tensors():
    whole = layout.ImageFile(IMAGE, vae=True, text=True).table.foreign
    assert [
        sum(k.startswith(p) for k in whole)
        for p in (stable_diffusion.UNET, stable_diffusion.VAE, stable_diffusion.TEXT)
    ] == [686, 248, 196]
    assert whole["model.diffusion_model.input_blocks.1.1.proj_in.weight"] == (320, 320, 1, 1)
    recognised = layout.recognise({k: (s, torch.float16) for k, s in whole.items()})
    assert recognised == layout.ImageFile(IMAGE, vae=True, text=True)
    xl = layout.ImageFile(SDXL_IMAGE, vae=True, text=True).table
    assert sum(k.startswith(stable_diffusion.UNET) for k in xl.foreign) == 1680
    assert layout.recognise({k: (s, torch.float16) for k, s in xl.foreign.items()}).config == SDXL_IMAGE
    with torch.device("meta"):
        assert xl.native == {k: tuple(v.shape) for k, v in AnimateDiff(SDXL_IMAGE).state_dict().items()}


# ----------------------------------------------------------------------------------- wrong slots


def test_a_file_in_the_wrong_slot_is_named(tiny, tmp_path):
    image = written(tmp_path / "dream.safetensors", single_file(tiny))
    mm = written(tmp_path / "mm.safetensors", motion_file.export("official", motion_of(tiny)))
    lora = written(tmp_path / "l.safetensors", {"lora_unet_x_attn2_to_k.lora_down.weight": torch.zeros(4, 2048)})
    with pytest.raises(BadRequest, match="it is an AnimateDiff motion module"):
        open_system(mm)
    with pytest.raises(BadRequest, match="is an image model of Stable Diffusion; expected a motion module"):
        open_system(image, add={"motion": image})
    with pytest.raises(BadRequest, match="is a LoRA of Stable Diffusion XL.*; expected a motion module"):
        open_system(image, add={"motion": lora})
    pan = written(tmp_path / "pan.ckpt", {f"{PAN}.to_q_lora.{x}.weight": torch.zeros(4, 4) for x in ("down", "up")})
    with pytest.raises(BadRequest, match=r"is a LoRA of an Anim.* \(--lora FILE\); expected a motion"):
        open_system(image, add={"motion": pan})
    with pytest.raises(BadRequest, match="a LoRA of an AnimateDiff motion module; name a model and pass this"):
        open_system(pan)
    with pytest.raises(BadRequest, match="is an AnimateDiff motion module.*; expected a VAE"):
        open_system(image, add={"vae": mm})
    with pytest.raises(BadRequest, match="animatediff has no slot 'moton'; did you mean motion"):
        open_system(image, add={"moton": mm})
    with pytest.raises(BadRequest, match=r"there is no file .*nothing.ckpt to add as motion"):
        open_system(image, add={"motion": tmp_path / "nothing.ckpt"})
    with pytest.raises(BadRequest, match="svd does not support add-ons"):
        open_system("svd/tiny", add={"motion": mm})


def test_other_models_of_stable_diffusion_raise_by_name():
    header = {k: (s, torch.float16) for k, s in layout.ImageFile(IMAGE, vae=True, text=True).table.foreign.items()}
    inpainting = header | {"model.diffusion_model.input_blocks.0.0.weight": ((320, 9, 3, 3), torch.float16)}
    with pytest.raises(BadRequest, match="an inpainting model"):
        layout.recognise(inpainting)
    two = {k.replace("cond_stage_model.transformer.", "cond_stage_model.model."): v for k, v in header.items()}
    with pytest.raises(BadRequest, match="this is Stable Diffusion 2"):
        layout.recognise(two)


def test_an_image_model_generates_one_frame_and_needs_a_motion_module_for_more(tiny):
    family = registry.family("animatediff")
    system = replace(open_system("animatediff/tiny"), config=replace(family.presets["tiny"], motion="none", frames=1))
    with pytest.raises(BadRequest, match=r"generates 1: add a motion module \(motion=FILE\)"):
        with_defaults(system, Request(prompt="a red ball", frames=8))
    assert with_defaults(system, Request(prompt="a red ball")).frames == 1


# ------------------------------------------------------------------------------ at published sizes


def sparse_file(path, shapes, dtype="F16"):
    """Write a sparse file with these tensors that takes no disk space."""
    import json
    import math
    import struct

    table, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + at)
    return path


def test_files_of_published_size_open_by_their_headers(tmp_path):
    image = sparse_file(tmp_path / "sd15.safetensors", layout.ImageFile(IMAGE, vae=True, text=True).table.foreign)
    with torch.device("meta"):
        state = AnimateDiff(PRESETS["v3-rgb"]).state_dict()
    motion = {
        k[5:]: torch.zeros(()).expand(v.shape) for k, v in state.items() if k.startswith("unet.") and ".motion_" in k
    }
    control = {k[7:]: torch.zeros(()).expand(v.shape) for k, v in state.items() if k.startswith("sparse.")}
    mm = sparse_file(tmp_path / "v3_sd15_mm.safetensors", _shapes(motion_file.export("official", motion)))
    rgb = sparse_file(tmp_path / "v3_sd15_sparsectrl_rgb.safetensors", _shapes(sparse.export("official", control)))
    assert image.stat().st_size > 2e9
    assert mm.stat().st_size > 0.8e9
    system = open_system(image, add={"motion": mm, "sparsectrl": rgb})
    assert system.config == PRESETS["v3-rgb"]
    assert system.runtime.model is None


def _shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
