"""Files of Open-Sora 2.0 as people have them: recognised by headers alone, at full size without the bytes (sparse)."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from kinema import registry
from kinema.checkpoints.source import Source
from kinema.events import Note
from kinema.families.opensora.config import PRESETS, V2, V2_DC_AE, HunyuanConfig
from kinema.families.opensora.dc_ae import VideoDCAE
from kinema.families.opensora.files.slots import SLOTS
from kinema.families.opensora.files.transformer_file import TransformerFile
from kinema.families.opensora.files.vae_file import VaeFile
from kinema.families.opensora.mmdit import MMDiT, MMDiTConfig
from kinema.generate import generate
from kinema.memory.placing import from_disk
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest, Request
from kinema.settle import with_defaults
from kinema.system import open_system


def shapes_of(build) -> dict[str, tuple[int, ...]]:
    with on_meta():
        return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}


FLUX = MMDiTConfig(conditioned=False, guided=True, rope="adjacent")
PUBLISHED = {
    "Open_Sora_v2.safetensors": lambda: shapes_of(lambda: MMDiT(V2.transformer)),
    "hunyuan_vae.safetensors": lambda: shapes_of(VaeFile("hunyuan").build),
    "Open_Sora_v2_Video_DC_AE.safetensors": lambda: shapes_of(lambda: MMDiT(V2_DC_AE.transformer)),
    "F32T4C128_AE.safetensors": lambda: shapes_of(VideoDCAE),
    "flux1-dev.safetensors": lambda: TransformerFile(FLUX, "fused", "half").foreign,
}


def same(system, model: nn.Module) -> bool:
    native, filled = model.state_dict(), system.filled().state_dict()
    return native.keys() == filled.keys() and all(torch.equal(native[name], filled[name]) for name in native)


# -------------------------------------------------------------------------------- published sizes


@pytest.fixture(scope="module")
def published(tmp_path_factory, sparse):
    folder = tmp_path_factory.mktemp("Open-Sora-v2")
    return {name: sparse(folder / name, shapes()) for name, shapes in PUBLISHED.items()}


def test_the_published_files_open_by_their_headers_with_the_vae_beside(published):
    system = open_system(published["Open_Sora_v2.safetensors"])
    assert published["Open_Sora_v2.safetensors"].stat().st_size > 23.7e9
    assert (system.family.name, system.config) == ("opensora", V2)
    assert [(each.slot, each.source.path) for each in system.weights.added] == [
        ("vae", published["hunyuan_vae.safetensors"])
    ]
    other = open_system(published["Open_Sora_v2_Video_DC_AE.safetensors"])
    assert other.config == V2_DC_AE
    assert [each.source.path.name for each in other.weights.added] == ["F32T4C128_AE.safetensors"]
    assert system.runtime.model is other.runtime.model is None


def test_the_published_model_that_the_user_names_sets_its_clips(published):
    system = open_system(published["Open_Sora_v2.safetensors"], variant="v2-768px")
    assert (system.config.height, system.config.width) == (576, 1024)
    with pytest.raises(BadRequest, match="cannot be v2-dc-ae: a token is 16 channels of 2×2 latent cells"):
        open_system(published["Open_Sora_v2.safetensors"], variant="v2-dc-ae")


def test_flux_is_named_and_how_to_convert_it_is_said(published):
    with pytest.raises(BadRequest, match="it is a Flux transformer, which generates images .*--layout open-sora"):
        open_system(published["flux1-dev.safetensors"])


def test_the_wrong_vae_is_named(published):
    with pytest.raises(BadRequest, match=r"is the Video DC-AE \(128 channels\); this model needs the VAE of Hunyuan"):
        open_system(published["Open_Sora_v2.safetensors"], add={"vae": published["F32T4C128_AE.safetensors"]})
    with pytest.raises(BadRequest, match=r"is the VAE of HunyuanVideo \(16 channels\); this model needs the Video DC"):
        open_system(
            published["Open_Sora_v2_Video_DC_AE.safetensors"], add={"vae": published["hunyuan_vae.safetensors"]}
        )
    with pytest.raises(BadRequest, match=r"it is the VAE of HunyuanVideo \(--add vae=FILE\)"):
        open_system(published["hunyuan_vae.safetensors"])
    with pytest.raises(BadRequest, match=r"it is the Video DC-AE of Open-Sora 2.0"):
        open_system(published["F32T4C128_AE.safetensors"])


@pytest.mark.parametrize("ldm", [True, False])
def test_a_vae_of_images_is_refused_by_name(ldm, published, tmp_path, sparse):
    layer = "down.0.block.0" if ldm else "down_blocks.0.resnets.0"
    shapes = {"decoder.conv_in.weight": (512, 4, 3, 3), f"encoder.{layer}.conv1.weight": (128, 128, 3, 3)}
    sd = sparse(tmp_path / "vae-ft-mse.safetensors", shapes)
    with pytest.raises(BadRequest, match=r"it is a VAE of images \(4 channels\); expected the VAE of HunyuanVideo"):
        open_system(published["Open_Sora_v2.safetensors"], add={"vae": sd})


def test_the_catalogue_has_the_published_counts(catalogued):
    parts = {name: catalogued[f"opensora/{name}"]["parts"] for name in ("v2", "v2-dc-ae")}
    assert parts["v2"]["transformer"] == {"parameters": 11_891_390_528, "tensors": 1082}
    assert parts["v2"]["vae"] == {"parameters": 246_478_803, "tensors": 248}
    assert parts["v2-dc-ae"]["transformer"] == {"parameters": 11_891_971_200, "tensors": 1082}
    assert parts["v2-dc-ae"]["vae"] == {"parameters": 459_462_147, "tensors": 339}
    assert "hunyuan_vae.safetensors" in catalogued["open-sora-2"]["kind"]


# ------------------------------------------------------------------------------------ tiny models


@pytest.mark.parametrize(("kind", "rope"), [("separate", "half"), ("fused", "half"), ("fused", "adjacent")])
def test_a_file_of_each_layout_gives_the_same_clip(kind, rope, tiny, repository, write, laid_out):
    config, model = tiny
    path = write(repository.parent / "other.safetensors", laid_out(model, config, kind, rope), {"rope": rope})
    system, published = open_system(path), open_system(repository)
    assert system.config == replace(published.config, transformer=replace(published.config.transformer, rope=rope))
    z, text, pooled = torch.randn(1, 4, 3, 4, 6), torch.randn(1, 12, 32), torch.randn(1, 32)
    time, given = torch.tensor([0.6]), torch.randn(1, 5, 3, 4, 6)
    with torch.no_grad():
        a, b = (each.filled().transformer(z, time, text, pooled, given) for each in (system, published))
    assert torch.allclose(a, b, atol=1e-5 * float(b.abs().max()))
    assert not system.notes


def test_a_fused_file_without_a_note_is_taken_for_fluxs_rotary_layout(tiny, repository, write, laid_out):
    config, model = tiny
    path = write(repository.parent / "other.safetensors", laid_out(model, config, "fused", "adjacent"))
    system = open_system(path)
    assert system.config.transformer.rope == "adjacent"
    assert "rotary layout" in system.notes[0]


def test_the_tensors_are_those_of_the_files(tiny, repository):
    _, model = tiny
    system = open_system(repository)
    assert same(system, model)
    read = from_disk(system)
    assert all(torch.equal(read(name), tensor) for name, tensor in model.state_dict().items())


def test_the_dc_ae_is_found_and_filled(tiny_dc_ae, tmp_path, write, of_part):
    config, model = tiny_dc_ae
    path = write(tmp_path / "model.safetensors", of_part(model, "transformer"))
    write(tmp_path / "F32T4C128_AE.safetensors", of_part(model, "vae"))
    system = open_system(path)
    assert (system.config.dc_ae, system.config.transformer) == (config.dc_ae, config.transformer)
    assert same(system, model)


def test_a_missing_vae_is_named_before_weights_are_read(repository):
    (repository.parent / "hunyuan_vae.safetensors").unlink()
    system = open_system(repository)
    with pytest.raises(
        BadRequest, match="no VAE, as hunyuan_vae.safetensors is not next to .* vae=hpcai-tech/Open-Sora"
    ):
        with_defaults(system, Request(prompt="a red ball"))


@pytest.mark.parametrize("harm", ["missing", "left over", "another shape"])
@pytest.mark.parametrize("file", ["Open_Sora_v2.safetensors", "hunyuan_vae.safetensors"])
def test_a_key_that_does_not_fit_is_named(harm, file, tiny, repository, write, of_part):
    _, model = tiny
    part = "transformer" if file.startswith("Open") else "vae"
    tensors = of_part(model, part)
    name = {"transformer": "single_blocks.1.linear2.bias", "vae": "decoder.mid_block.resnets.1.conv2.conv.bias"}[part]
    if harm == "missing":
        del tensors[name]
    elif harm == "left over":
        tensors |= {f"{name}.more": torch.zeros(2)}
    else:
        tensors[name] = torch.zeros(5)
    write(repository.parent / file, tensors)
    with pytest.raises(BadRequest, match=name):
        open_system(repository)


def test_a_model_that_takes_guidance_as_an_input_is_refused(tiny, tmp_path, write):
    config, _ = tiny
    model = MMDiT(replace(config.transformer, guided=True))
    with pytest.raises(BadRequest, match="takes the guidance scale as an input"):
        open_system(write(tmp_path / "distilled.safetensors", model.state_dict()))


def test_sizes_that_fit_no_patch_are_refused(tiny, tmp_path, write, of_part):
    _, model = tiny
    tensors = of_part(model, "transformer") | {"cond_in.weight": torch.zeros(48, 22)}
    with pytest.raises(BadRequest, match="fits no patch size"):
        open_system(write(tmp_path / "odd.safetensors", tensors))


@pytest.mark.parametrize("part", ["transformer", "vae", "dc-ae"])
def test_damaged_shapes_are_refused_in_a_sentence(part, tiny, tiny_dc_ae, tmp_path, sparse, write, of_part):
    _, model = tiny_dc_ae if part == "dc-ae" else tiny
    whole = {
        name: tuple(x.shape) for name, x in of_part(model, "transformer" if part == "transformer" else "vae").items()
    }
    base = write(tmp_path / "model.safetensors", of_part(model, "transformer"))
    draw = random.Random(5)
    refused = []
    for _ in range(40):
        shapes = dict(whole)
        name = draw.choice(list(shapes))
        harm = draw.randrange(4)
        if harm == 0:
            del shapes[name]
        elif harm == 1:
            shapes[name] = tuple(draw.choice([0, 1, 3, 7, 2**12]) for _ in range(draw.randrange(6)))
        elif harm == 2:
            shapes[name.replace("0", "255")] = shapes.pop(name)
        else:
            shapes = {n: draw.choice([s[::-1], s, s[:1]]) for n, s in shapes.items()}
        path = sparse(tmp_path / "damaged.safetensors", shapes)
        try:
            open_system(path) if part == "transformer" else open_system(base, add={"vae": path})
        except BadRequest as error:
            refused.append(str(error))
    assert len(refused) > 25
    assert max(map(len, refused)) < 1000


# ---------------------------------------------------------------------------------- text encoders

T5_SHAPES = {
    "shared.weight": (32128, 4096),
    "encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096),
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": (10240, 400_000),
}
"""Enough of T5-XXL to know it, and as large."""
CLIP_SHAPES = {
    "text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768),
    "text_model.final_layer_norm.weight": (768,),
}


def test_text_encoders_are_named_in_the_recipe_and_no_part_of_the_network(published, tmp_path, sparse):
    t5 = sparse(tmp_path / "t5xxl_fp16.safetensors", T5_SHAPES, "F16")
    clip = tmp_path / "clip-vit-large-patch14"
    clip.mkdir()
    sparse(clip / "model.safetensors", CLIP_SHAPES)
    assert t5.stat().st_size > 8e9
    system = open_system(published["Open_Sora_v2.safetensors"], add={"t5": t5, "clip": clip})
    assert system.weights.outside == {"t5": t5, "clip": clip}
    began = time.monotonic()
    told = [each.to_recipe() for each in system.weights.added]
    assert time.monotonic() - began < 5  # not all of 8 GB is read
    assert [(each["slot"], each["file"]) for each in told] == [
        ("vae", "hunyuan_vae.safetensors"),
        ("t5", "t5xxl_fp16.safetensors"),
        ("clip", "clip-vit-large-patch14"),
    ]


def test_no_tensor_of_a_text_encoder_is_read_into_the_network(repository, tiny, tmp_path, write):
    config, model = tiny
    width = config.transformer.text
    marker = "encoder.block.0.layer.0.SelfAttention.q.weight"
    t5 = write(tmp_path / "t5.safetensors", {"shared.weight": torch.ones(8, width), marker: torch.ones(2, 2)})
    system = open_system(repository, add={"t5": t5})
    assert same(system, model)
    with pytest.raises(BadRequest, match="text encoder with 32 features; the model needs 4096"):
        SLOTS.open(V2, "t5", Source(t5))


def test_the_prompt_is_read_by_the_encoders_that_were_added(repository, tiny, tmp_path, write, monkeypatch):
    config, _ = tiny
    marker = "encoder.block.0.layer.0.SelfAttention.q.weight"
    t5 = write(
        tmp_path / "t5.safetensors", {"shared.weight": torch.ones(8, config.transformer.text), marker: torch.ones(2, 2)}
    )
    seen = []

    def encode(prompts, length, widths, place, _on_event):
        seen.append(place.named)
        return torch.zeros(len(prompts), length, widths[0]), torch.zeros(len(prompts), widths[1])

    monkeypatch.setattr("kinema.conditioning.t5.encode", encode)
    monkeypatch.setattr("kinema.conditioning.t5.find", lambda *_: None)  # its tokenizer is not there
    clip = generate(
        open_system(repository, add={"t5": t5}),
        Request(prompt="a red ball", frames=5, height=32, width=48, steps=1, seed=0),
    )
    assert seen[0] == {"t5": t5}
    assert [each["slot"] for each in clip.recipe["stages"][0]["added"]] == ["vae", "t5"]
    assert json.dumps(clip.recipe).count(str(tmp_path)) == 0


def test_what_is_no_text_encoder_is_named(published, tmp_path, sparse):
    model, vae = published["Open_Sora_v2.safetensors"], published["hunyuan_vae.safetensors"]
    clip = sparse(tmp_path / "clip.safetensors", CLIP_SHAPES)
    t5 = sparse(tmp_path / "t5.safetensors", {**T5_SHAPES, "shared.weight": (32128, 1024)})
    with pytest.raises(BadRequest, match="is not T5-XXL: it is the VAE of HunyuanVideo"):
        open_system(model, add={"t5": vae})
    with pytest.raises(BadRequest, match="is not T5-XXL: it is a CLIP text encoder"):
        open_system(model, add={"t5": clip})
    with pytest.raises(BadRequest, match="is not CLIP-L: it is a T5 text encoder"):
        open_system(model, add={"clip": t5})
    with pytest.raises(BadRequest, match="text encoder with 1024 features; the model needs 4096"):
        open_system(model, add={"t5": t5})
    with pytest.raises(BadRequest, match="has its own text embeddings, so t5 has no effect"):
        open_system("opensora/tiny", add={"t5": t5})
    with pytest.raises(BadRequest, match="there is one vae, which takes no name"):
        open_system(model, add={"vae.other": vae})


# ------------------------------------------------------------------------------------- the aliases


@pytest.mark.parametrize(
    ("alias", "files"),
    [
        ("open-sora-2", ["Open-Sora-v2/Open_Sora_v2.safetensors", "Open-Sora-v2/hunyuan_vae.safetensors"]),
        (
            "open-sora-2-dc-ae",
            [
                "Open-Sora-v2-Video-DC-AE/Open_Sora_v2_Video_DC_AE.safetensors",
                "Open-Sora-v2-Video-DC-AE/F32T4C128_AE.safetensors",
            ],
        ),
    ],
)
def test_licence_terms_are_said_before_the_first_download(alias, files, published, monkeypatch):
    events, cached = [], set()

    def fetch(repository, offline=None, patterns=None):
        if repository not in cached:
            raise BadRequest("not in the cache")

    def fetch_model(name, offline=None, variant=None):
        events.append(name)
        cached.add("/".join(name.split("/")[:2]))
        return published[name.rpartition("/")[2]]

    monkeypatch.setattr("kinema.system.opening.hub.fetch", fetch)
    monkeypatch.setattr("kinema.system.opening.hub.fetch_model", fetch_model)
    system = open_system(alias, on_event=events.append)
    assert isinstance(events[0], Note)
    assert all(word in events[0].message for word in ("South Korea", "European Union", "FLUX.1-dev", "Apache-2.0"))
    assert events[1:] == [f"hpcai-tech/{file}" for file in files]  # the terms are said once
    assert [each.to_recipe()["file"] for each in system.weights.added] == [f"hpcai-tech/{files[1]}"]
    events.clear()
    open_system(alias, on_event=events.append)
    assert not any(isinstance(event, Note) for event in events)


def test_a_vae_beside_a_file_of_the_hub_has_its_name_there_in_the_recipe(published, monkeypatch):
    monkeypatch.setattr(
        "kinema.system.opening.hub.fetch_model", lambda name, **_told: published[name.rpartition("/")[2]]
    )
    system = open_system("someone/mirror/Open_Sora_v2.safetensors")
    assert [each.to_recipe()["file"] for each in system.weights.added] == ["someone/mirror/hunyuan_vae.safetensors"]


def test_every_repository_with_terms_is_that_of_an_alias_or_of_a_default_add_on():
    defaults = registry.DEFAULT_ADD_ONS
    names = [*registry.ALIASES.values(), *defaults, *(file for each in defaults.values() for file in each.values())]
    assert registry.TERMS.keys() <= {"/".join(name.split("/")[:2]) for name in names}


def test_presets_keep_the_published_codec():
    assert PRESETS["v2"].hunyuan == HunyuanConfig()
