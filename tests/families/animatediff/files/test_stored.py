"""Image models and motion modules as people have them: GGUF, scaled float8, training checkpoints, v-prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kinema.api import load
from kinema.checkpoints import convert, files
from kinema.checkpoints.stable_diffusion import UNET
from kinema.diffusion.schedules import NoiseLevel
from kinema.families.animatediff import recipe
from kinema.families.animatediff.config import TINY, Config
from kinema.families.animatediff.files import layout, motion_file
from kinema.families.animatediff.model import AnimateDiff
from kinema.schema import BadRequest, Request
from kinema.settle import settle
from kinema.system import open_system

Tensors = dict[str, Tensor]
SIZE = replace(TINY, heads=(8, 8), motion_heads=8, positions=32, absent=())


@pytest.fixture(scope="module")
def model() -> AnimateDiff:
    torch.manual_seed(0)
    network = AnimateDiff(SIZE)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return network


@pytest.fixture(scope="module")
def image(model: AnimateDiff) -> Tensors:
    """The image model as a single file."""
    native = {name: x for name, x in model.state_dict().items() if ".motion_modules." not in name}
    return layout.ImageFile(SIZE, vae=True, text=True).table.backward(native, "the test")


@pytest.fixture(scope="module")
def motion(model: AnimateDiff) -> Tensors:
    """The motion module in the authors' layout."""
    own = {k.removeprefix("unet."): x for k, x in model.state_dict().items() if ".motion_modules." in k}
    return motion_file.export("official", own)


@pytest.fixture(scope="module")
def write_gguf() -> Callable[..., Path]:
    """Write a GGUF file, its wide tensors as Q8_0, flattened as ComfyUI-GGUF does where they have short rows."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.Q8_0

    def write(path: Path, tensors: Tensors, arch: str = "sd1") -> Path:
        writer = gguf.GGUFWriter(str(path), arch)
        for name, tensor in tensors.items():
            data = tensor.contiguous().numpy()
            if data.ndim < 2 or data.size % 256:
                writer.add_tensor(name, data)
                continue
            if data.shape[-1] % 32:
                writer.add_array(f"comfy.gguf.orig_shape.{name}", list(data.shape))
                data = data.reshape(-1, 256)
            writer.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def networks_differ(found: AnimateDiff, expected: AnimateDiff) -> float:
    state = expected.state_dict()
    return max(float((x - state[name]).abs().max()) for name, x in found.state_dict().items())


# --------------------------------------------------------------------------------------------- GGUF


def test_a_gguf_checkpoint_opens_and_generates(
    tmp_path: Path, image: Tensors, model: AnimateDiff, write_gguf: Callable[..., Path]
) -> None:
    system = open_system(write_gguf(tmp_path / "sd.gguf", image))
    assert (system.family.name, system.config.absent) == ("animatediff", ())
    assert 0 < networks_differ(system.filled(), model) < 0.02


def test_a_gguf_unet_takes_a_vae_and_a_text_encoder(
    tmp_path: Path, image: Tensors, model: AnimateDiff, write_gguf: Callable[..., Path]
) -> None:
    """city96's layout: the U-Net alone, without its prefix."""
    unet = {name.removeprefix(UNET): x for name, x in image.items() if name.startswith(UNET)}
    path = write_gguf(tmp_path / "unet.gguf", unet)
    files.write_tensors(tmp_path / "whole.safetensors", image)
    alone = open_system(path)
    assert alone.config.absent == ("vae", "text")
    with pytest.raises(BadRequest, match="has no VAE; give --add vae=FILE"):
        load(path).generate("a cat")
    whole = tmp_path / "whole.safetensors"
    vae = {name: x for name, x in image.items() if name.startswith("first_stage_model.")}
    files.write_tensors(tmp_path / "vae.safetensors", vae)
    with pytest.raises(BadRequest, match="has no text encoder; give --add text=FILE"):
        load(path, add={"vae": tmp_path / "vae.safetensors"}).generate("a cat")
    system = open_system(path, add={"vae": tmp_path / "vae.safetensors", "text": whole})
    assert system.config.absent == ()
    assert system.config.text == SIZE.text
    assert networks_differ(system.filled(), model) < 0.02


def test_a_text_encoder_alone_fits_the_text_slot(tmp_path: Path, image: Tensors, model: AnimateDiff) -> None:
    files.write_tensors(tmp_path / "a.safetensors", {k: x for k, x in image.items() if not k.startswith("cond")})
    own = {k.removeprefix("text_encoder."): x for k, x in model.state_dict().items() if k.startswith("text_encoder.")}
    files.write_tensors(tmp_path / "clip.safetensors", own)
    system = open_system(tmp_path / "a.safetensors", add={"text": tmp_path / "clip.safetensors"})
    assert networks_differ(system.filled(), model) == 0


def test_other_files_in_the_text_slot_are_named(tmp_path: Path, image: Tensors, motion: Tensors) -> None:
    files.write_tensors(tmp_path / "a.safetensors", image)
    files.write_tensors(tmp_path / "mm.safetensors", motion)
    with pytest.raises(BadRequest, match="is an AnimateDiff motion module.*; expected the text encoder of this model"):
        open_system(tmp_path / "a.safetensors", add={"text": tmp_path / "mm.safetensors"})


def test_a_gguf_of_another_model_is_named(tmp_path: Path, write_gguf: Callable[..., Path]) -> None:
    path = write_gguf(tmp_path / "flux.gguf", {"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 256)}, "flux")
    with pytest.raises(BadRequest, match="is not a supported model: it is a Flux transformer"):
        open_system(path)


def test_a_gguf_converts_to_safetensors(tmp_path: Path, image: Tensors, write_gguf: Callable[..., Path]) -> None:
    path = write_gguf(tmp_path / "sd.gguf", image)
    convert.convert(path, tmp_path / "sd.safetensors", "official", dtype="fp16")
    found, expected = files.read_tensors(tmp_path / "sd.safetensors"), files.read_tensors(path)
    assert found.keys() == image.keys()
    assert all(torch.equal(x, expected[name].half()) for name, x in found.items())


# ------------------------------------------------------------------------------------ scaled float8


def test_scaled_float8_opens_with_its_scales(tmp_path: Path, image: Tensors, model: AnimateDiff) -> None:
    stored: Tensors = {}
    for name, x in image.items():
        if x.ndim < 2 or not name.startswith(UNET):
            stored[name] = x
            continue
        scale = x.abs().max() / 448
        stored[name] = (x / scale).to(torch.float8_e4m3fn)
        stored[f"{name.removesuffix('.weight')}.scale_weight"] = scale
    files.write_tensors(tmp_path / "a.safetensors", stored | {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)})
    system = open_system(tmp_path / "a.safetensors")
    assert "as float8 with scales, which are applied" in system.notes[0]
    weight = system.filled().unet.conv_in.weight
    first = f"{UNET}input_blocks.0.0"
    expected = stored[f"{first}.weight"].float() * stored[f"{first}.scale_weight"]
    assert torch.equal(weight, expected)
    assert float((weight - model.unet.conv_in.weight).abs().max() / weight.abs().max()) < 0.04


# -------------------------------------------------------------------------------- training checkpoints


@pytest.mark.parametrize("prefix", ["module.", "", "model."])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_whole_unet_in_the_motion_slot_gives_its_modules(
    tmp_path: Path, image: Tensors, motion: Tensors, model: AnimateDiff, suffix: str, prefix: str
) -> None:
    files.write_tensors(tmp_path / "a.safetensors", image)
    rest = {k.removeprefix("unet."): x for k, x in model.state_dict().items() if k.startswith("unet.")}
    unet = {prefix + k: x for k, x in {**motion, **{k: x for k, x in rest.items() if "motion" not in k}}.items()}
    path = tmp_path / f"run{suffix}"
    if suffix == ".ckpt":
        torch.save({"epoch": 0, "global_step": 5, "state_dict": unet, "optimizer_states": [{"lr": 1.0}]}, path)
    else:
        files.write_tensors(path, unet)
    system = open_system(tmp_path / "a.safetensors", add={"motion": path})
    assert len(system.notes) == 1
    assert f"run is a whole U-Net: its motion modules ({len(motion)} tensors) are used, not" in system.notes[0]
    assert networks_differ(system.filled(), model) == 0
    written = convert.convert(path, tmp_path / "mm.safetensors", "official")
    assert files.read_tensors(tmp_path / "mm.safetensors").keys() == motion.keys()
    assert written.notes == system.notes


def test_a_whole_checkpoint_behind_a_wrapper_opens(tmp_path: Path, image: Tensors, model: AnimateDiff) -> None:
    torch.save({"state_dict": {f"module.{name}": x for name, x in image.items()}, "epoch": 1}, tmp_path / "a.ckpt")
    assert networks_differ(open_system(tmp_path / "a.ckpt").filled(), model) == 0


# ------------------------------------------------------------------------------------ v-prediction


def marked_file(path: Path, image: Tensors, way: str) -> Path:
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)} if way == "key" else {}
    metadata = {"metadata": {"modelspec.prediction_type": "v"}, "kohya": {"ss_v_parameterization": "True"}}.get(way)
    files.write_tensors(path, image | marks, metadata)
    if way == "yaml":
        path.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: v\n")
    return path


@pytest.mark.parametrize("way", ["key", "metadata", "kohya", "yaml"])
def test_v_prediction_is_honoured_and_said(tmp_path: Path, image: Tensors, way: str) -> None:
    system = open_system(marked_file(tmp_path / "a.safetensors", image, way))
    config: Config = system.config
    assert (config.predicts, config.zero_snr) == ("v", way == "key")
    assert system.notes[0].startswith("a.safetensors predicts v")
    level = NoiseLevel(torch.tensor([0.6]), torch.tensor([0.8]))
    z, v = torch.randn(2, 1, 4, 1, 8, 8)
    x0 = recipe.parameterisation_of(config).x0(v, z, level)
    torch.testing.assert_close(x0, 0.6 * z - 0.8 * v)


def test_a_motion_module_keeps_v_prediction_and_pure_noise(tmp_path: Path, image: Tensors, motion: Tensors) -> None:
    files.write_tensors(tmp_path / "mm.safetensors", motion)
    path = marked_file(tmp_path / "a.safetensors", image, "key")
    system = open_system(path, add={"motion": tmp_path / "mm.safetensors"})
    levels = system.levels(Request(prompt="a", steps=4))
    assert system.config.predicts == "v"
    assert (float(levels.alpha[0]), float(levels.sigma[0])) == (0, 1)


@pytest.mark.parametrize("way", ["key", "metadata", "yaml"])
def test_conversion_keeps_v_prediction(tmp_path: Path, image: Tensors, way: str) -> None:
    path = marked_file(tmp_path / "a.safetensors", image, way)
    convert.convert(path, tmp_path / "folder", "diffusers")
    folder = open_system(tmp_path / "folder").config
    assert (folder.predicts, folder.zero_snr) == ("v", way == "key")
    convert.convert(tmp_path / "folder", tmp_path / "b.safetensors", "official", dtype="fp16")
    back = open_system(tmp_path / "b.safetensors").config
    assert (back.predicts, back.zero_snr) == ("v", way == "key")


def test_spacing_and_karras_of_a_request_are_used(tmp_path: Path, image: Tensors) -> None:
    files.write_tensors(tmp_path / "a.safetensors", image)
    system = open_system(tmp_path / "a.safetensors")
    base = Request(prompt="a", steps=6, height=16, width=16, frames=1)
    levels = {
        (spacing, karras): tuple(system.levels(settle(system, base.with_(spacing=spacing, karras=karras))).alpha)
        for spacing in (None, "trailing", "linspace", "open-leading")
        for karras in (False, True)
    }
    assert len(set(levels.values())) == len(levels)
    assert levels[None, False] == tuple(system.levels(base.with_(spacing="leading")).alpha)
    with pytest.raises(BadRequest, match="steps is 1001; expected at most 1000"):
        settle(system, base.with_(spacing="trailing", steps=1001))


def test_a_spacing_of_timesteps_is_refused_for_continuous_noise() -> None:
    system = open_system("svd/tiny")
    request = Request(task="animate", image="a.png", spacing="trailing")
    with pytest.raises(BadRequest, match="spacing trailing needs discrete timesteps"):
        system.levels(request)
