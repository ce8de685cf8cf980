"""`kinema convert` between Open-Sora's, Flux's and diffusers' layouts, and back byte for byte."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, FluxTransformer2DModel

from kinema.checkpoints.convert import convert
from kinema.checkpoints.files import header, metadata, read_tensors
from kinema.events import Note
from kinema.families.opensora.config import TINY, to_json
from kinema.families.opensora.mmdit import MMDiT
from kinema.schema import BadRequest
from kinema.system import open_system


def equal(path, tensors):
    found = read_tensors(path)
    return found.keys() == tensors.keys() and all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["fused", "diffusers"])
def test_a_published_file_goes_to_a_layout_and_back_byte_for_byte(layout, dtype, tiny, tmp_path, write, of_part):
    _, model = tiny
    tensors = {name: tensor.to(dtype) for name, tensor in of_part(model, "transformer").items()}
    path = write(tmp_path / "Open_Sora_v2.safetensors", tensors, {"step": "7"})
    there = tmp_path / ("there.safetensors" if layout == "fused" else "there")
    convert(path, there, layout)
    convert(there, tmp_path / "back.safetensors", "open-sora")
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()
    convert(tmp_path / "back.safetensors", tmp_path / f"again{there.suffix}", layout)
    files = [there] if layout == "fused" else sorted(there.rglob("*.safetensors"))
    for file in files:
        again = tmp_path / f"again{there.suffix}" / file.relative_to(there) if layout != "fused" else None
        assert (again or tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


def test_a_fused_file_has_the_originals_names(tiny, repository, tmp_path, laid_out):
    config, model = tiny
    convert(repository, tmp_path / "fused.safetensors", "fused")
    assert equal(tmp_path / "fused.safetensors", laid_out(model, config, "fused", "half"))
    assert metadata(tmp_path / "fused.safetensors")["rope"] == "half"


def test_a_flux_file_becomes_an_open_sora_model_without_conditioning_and_goes_back(tiny, tmp_path, write, laid_out):
    config, _ = tiny
    config = replace(config, transformer=replace(config.transformer, conditioned=False))
    model = torch.nn.ModuleDict({"transformer": MMDiT(config.transformer)})
    flux = laid_out(model, config, "fused", "adjacent")
    path = write(tmp_path / "flux1-schnell.safetensors", flux, {"format": "pt"})
    events = []
    convert(path, tmp_path / "native.safetensors", "open-sora", on_event=events.append)
    assert any("cond_in (2 tensors)" in event.message for event in events if isinstance(event, Note))
    found = read_tensors(tmp_path / "native.safetensors")
    assert not found["cond_in.weight"].any()
    assert not found["cond_in.bias"].any()
    assert found["cond_in.weight"].shape == (48, 20)
    for name, tensor in model["transformer"].state_dict().items():
        assert torch.equal(found[name], tensor)
    system = open_system(tmp_path / "native.safetensors")
    assert system.config.transformer == replace(config.transformer, conditioned=True)
    convert(tmp_path / "native.safetensors", tmp_path / "back.safetensors", "flux")
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()
    with pytest.raises(BadRequest, match="convert it to open-sora first"):
        convert(path, tmp_path / "folder", "diffusers")


def test_the_guidance_input_of_flux_dev_is_left_out_and_named(tiny, tmp_path, write, laid_out):
    config, _ = tiny
    config = replace(config, transformer=replace(config.transformer, conditioned=False, guided=True))
    model = torch.nn.ModuleDict({"transformer": MMDiT(config.transformer)})
    path = write(tmp_path / "flux1-dev.safetensors", laid_out(model, config, "fused", "adjacent"))
    done = convert(path, tmp_path / "native.safetensors", "open-sora")
    assert any(note.startswith("guidance_in (4 tensors)") for note in done.notes)
    assert not any(name.startswith("guidance_in") for name in header(tmp_path / "native.safetensors"))
    back = convert(tmp_path / "native.safetensors", tmp_path / "back.safetensors", "flux")
    assert any(note.startswith("cond_in (2 tensors)") for note in back.notes)
    lost = {name for name in header(path) if name.startswith("guidance_in")}
    assert header(path).keys() - header(tmp_path / "back.safetensors").keys() == lost


def test_the_folder_opens_in_diffusers_and_here(tiny, repository, tmp_path):
    _, model = tiny
    convert(repository, tmp_path / "folder", "diffusers")
    vae = AutoencoderKLHunyuanVideo.from_pretrained(tmp_path / "folder", subfolder="vae")
    assert all(torch.equal(vae.state_dict()[name], tensor) for name, tensor in model.vae.state_dict().items())
    assert vae.config.scaling_factor == 0.476986
    told = json.loads((tmp_path / "folder" / "transformer" / "config.json").read_text())
    flux = FluxTransformer2DModel.from_config(told).state_dict()
    written = read_tensors(tmp_path / "folder" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {n for n in written if not n.startswith("cond_in.")} == flux.keys()
    system = open_system(tmp_path / "folder")
    assert (system.config.transformer.rope, system.config.absent) == ("adjacent", ())
    z, text, pooled = torch.randn(1, 4, 3, 4, 6), torch.randn(1, 12, 32), torch.randn(1, 32)
    time, given = torch.tensor([0.6]), torch.randn(1, 5, 3, 4, 6)
    with torch.no_grad():
        native = system.filled().transformer(z, time, text, pooled, given)
        assert torch.allclose(native, model.transformer(z, time, text, pooled, given), atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(system.filled().vae.parameters(), model.vae.parameters(), strict=True))


def test_the_folder_of_the_dc_ae_model_goes_back_byte_for_byte(tiny_dc_ae, tmp_path, write, of_part):
    _, model = tiny_dc_ae
    path = write(tmp_path / "model.safetensors", of_part(model, "transformer"))
    vae = write(tmp_path / "F32T4C128_AE.safetensors", of_part(model, "vae"))
    done = convert(path, tmp_path / "folder", "diffusers")
    assert any("no class for the Video DC-AE" in note for note in done.notes)
    assert open_system(tmp_path / "folder").config.vae == "dc-ae"
    convert(tmp_path / "folder", tmp_path / "back.safetensors", "open-sora")
    convert(tmp_path / "folder" / "vae", tmp_path / "vae.safetensors", "open-sora")
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()
    assert (tmp_path / "vae.safetensors").read_bytes() == vae.read_bytes()


@pytest.mark.parametrize("rope", ["half", "adjacent"])
def test_a_file_that_training_wrote_leaves_in_every_layout(rope, tiny, tmp_path, write, laid_out, of_part):
    config, model = tiny
    config = replace(config, transformer=replace(config.transformer, rope=rope))
    tensors = {f"transformer.{n}": x for n, x in laid_out(model, config, "separate", rope).items()}
    tensors |= {f"vae.{n}": x for n, x in of_part(model, "vae").items()}
    path = write(tmp_path / "own.safetensors", tensors, {"kinema": note(config)})
    assert open_system(path).config == config
    convert(path, tmp_path / "folder", "diffusers")
    convert(path, tmp_path / "native.safetensors", "open-sora")
    assert equal(tmp_path / "native.safetensors", of_part(model, "transformer"))
    assert open_system(tmp_path / "folder").config.hunyuan == config.hunyuan
    words = replace(TINY, words=("a", "ball"))
    path = write(tmp_path / "words.safetensors", tensors, {"kinema": note(words)})
    with pytest.raises(BadRequest, match="has its own text embeddings"):
        convert(path, tmp_path / "x.safetensors", "open-sora")


def note(config):
    return json.dumps({"family": "opensora", "config": to_json(config)})


def test_a_vae_alone_goes_to_a_folder_of_diffusers_and_back(tiny, repository, tmp_path):
    vae = repository.parent / "hunyuan_vae.safetensors"
    convert(vae, tmp_path / "folder", "diffusers")
    AutoencoderKLHunyuanVideo.from_pretrained(tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "back.safetensors", "open-sora")
    assert (tmp_path / "back.safetensors").read_bytes() == vae.read_bytes()
    with pytest.raises(BadRequest, match="a VAE has no layout flux"):
        convert(vae, tmp_path / "x.safetensors", "flux")


def test_half_precision_is_cast_and_named(repository, tmp_path):
    convert(repository, tmp_path / "folder", "diffusers", dtype="fp16")
    files = sorted((tmp_path / "folder").rglob("*.safetensors"))
    assert [file.name for file in files] == ["diffusion_pytorch_model.fp16.safetensors"] * 2
    assert all(dtype == torch.float16 for file in files for _, dtype in header(file).values())
    assert open_system(tmp_path / "folder", variant="fp16").config.vae == "hunyuan"


def test_a_file_without_its_vae_gives_a_folder_without_one_and_says_so(repository, tmp_path):
    (repository.parent / "hunyuan_vae.safetensors").unlink()
    done = convert(repository, tmp_path / "folder", "diffusers")
    assert any("no VAE was found" in note for note in done.notes)
    assert open_system(tmp_path / "folder").config.absent == ("vae",)


@pytest.mark.parametrize("harm", ["no config", "another transformer", "another vae"])
def test_a_damaged_folder_is_refused_by_name(harm, repository, tmp_path, write):
    folder = tmp_path / "folder"
    convert(repository, folder, "diffusers")
    if harm == "no config":
        (folder / "vae" / "config.json").unlink()
        match = r"lacks vae/config.json"
    elif harm == "another transformer":
        path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
        tensors = {n: t for n, t in read_tensors(path).items() if not n.startswith("cond_in")}
        write(path, {name: tensor.clone() for name, tensor in tensors.items()})
        match = "is not a transformer of Open-Sora 2.0"
    else:
        write(folder / "vae" / "diffusion_pytorch_model.safetensors", {"encoder.conv_in.weight": torch.zeros(2, 2)})
        match = "vae is not the VAE of HunyuanVideo"
    with pytest.raises(BadRequest, match=match):
        open_system(folder)


@pytest.mark.parametrize(
    ("setting", "value", "fault"),
    [
        ("scaling_factor", 0, "has the scaling_factor 0 in its config; expected a positive number"),
        ("scaling_factor", -1.5, "expected a positive number"),
        ("temporal_compression_ratio", 16, "has the temporal_compression_ratio 16 in its config; expected 2, 4"),
        ("temporal_compression_ratio", 1, "expected 2, 4"),
    ],
)
def test_a_vae_s_config_that_its_levels_cannot_have_is_refused(setting, value, fault, repository, tmp_path):
    convert(repository, tmp_path / "folder", "diffusers")
    path = tmp_path / "folder" / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    with pytest.raises(BadRequest, match=fault):
        open_system(tmp_path / "folder")
