"""`kinema convert` of LoRAs: each layout changes the weights of its own model in the same way."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kinema.checkpoints.convert import convert
from kinema.checkpoints.files import metadata, read_tensors
from kinema.checkpoints.lora_formats import Adapter, write_lora
from kinema.families.opensora.files.transformer_file import TransformerFile
from kinema.schema import BadRequest
from kinema.system import open_system

LAYERS = {
    "double_blocks.0.img_attn.q_proj": (48, 48, 3, 6.0),
    "double_blocks.0.img_attn.k_proj": (48, 48, 2, 2.0),
    "double_blocks.0.txt_attn.v_proj": (48, 48, 3, 3.0),
    "double_blocks.0.img_attn.v_proj": (48, 48, 3, 1.0),
    "double_blocks.0.img_mlp.0": (96, 48, 3, 3.0),
    "single_blocks.1.q_proj": (48, 48, 3, 1.0),
    "single_blocks.1.v_mlp": (144, 48, 4, 2.0),
    "single_blocks.0.v_mlp": (144, 48, 3, 3.0),
    "final_layer.adaLN_modulation.1": (96, 48, 3, 3.0),
    "img_in": (48, 16, 3, 3.0),
}
"""Layers of the tiny transformer: rows, columns, rank and alpha."""
KINDS = {"diffusers": ("diffusers", "adjacent"), "kohya": ("fused", "adjacent"), "open-sora": ("separate", "half")}


def adapters(dtype=torch.float32):
    draw = torch.Generator().manual_seed(5)
    made = {}
    for name, (rows, columns, rank, alpha) in LAYERS.items():
        down, up = (torch.randn(shape, generator=draw).to(dtype) for shape in ((rank, columns), (rows, rank)))
        made[f"transformer.{name}"] = Adapter(down, up, alpha)
    return made


@pytest.fixture
def source(tmp_path, write):
    """A LoRA as PEFT saves that of Open-Sora's transformer."""
    folder = tmp_path / "lora"
    folder.mkdir()
    tensors = {}
    for name, adapter in adapters().items():
        stem = f"base_model.model.{name.removeprefix('transformer.')}"
        tensors |= {f"{stem}.lora_A.weight": adapter.down, f"{stem}.lora_B.weight": adapter.up}
    write(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    alphas = {name: alpha for name, (*_, alpha) in LAYERS.items()}
    ranks = {name: rank for name, (_, _, rank, _) in LAYERS.items()}
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 3.0, "alpha_pattern": alphas, "rank_pattern": ranks}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def changes(path):
    """The change of each weight, by its layer's name in the file, as that layout's own reader computes it."""
    tensors, found = read_tensors(path), {}
    beside = path / "adapter_config.json"
    note = metadata(path).get("lora_adapter_metadata", beside.read_text() if beside.is_file() else "{}")
    settings = {key.removeprefix("transformer."): value for key, value in json.loads(note).items()}
    for key, down in tensors.items():
        stem, end = next(
            (key.removesuffix(e), e) for e in (".lora_A.weight", ".lora_down.weight", "") if key.endswith(e)
        )
        if not end:
            continue
        up = tensors[stem + {".lora_A.weight": ".lora_B.weight", ".lora_down.weight": ".lora_up.weight"}[end]]
        name = stem.removeprefix("base_model.model.").removeprefix("transformer.")
        alpha = settings.get("alpha_pattern", {}).get(name, settings.get("lora_alpha"))
        alpha = float(tensors[f"{stem}.alpha"]) if f"{stem}.alpha" in tensors else alpha
        found[name] = alpha / len(down) * up @ down
    return found


@pytest.mark.parametrize("layout", KINDS)
def test_every_layout_changes_its_own_model_as_the_lora_changes_ours(layout, source, repository, tiny, tmp_path):
    """The merged network, written in the layout's model file, is that model's weights plus the converted LoRA."""
    config, model = tiny
    target = tmp_path / ("there" if layout == "open-sora" else "there.safetensors")
    convert(source, target, layout)
    kind, rope = KINDS[layout]
    file = TransformerFile(replace(config.transformer, rope=rope), kind, "half")
    plain = {n.removeprefix("transformer."): p for n, p in model.state_dict().items() if n.startswith("transformer.")}
    merged = {
        n.removeprefix("transformer."): p
        for n, p in open_system(repository, loras={source: 1.0}).model.state_dict().items()
    }
    expected = {
        name: file.make_foreign(name, merged.__getitem__) - file.make_foreign(name, plain.__getitem__)
        for name in file.foreign
    }
    expected = {name.removesuffix(".weight"): change for name, change in expected.items() if change.any()}
    found = changes(target)
    if layout == "kohya":
        found = {
            f"lora_unet_{name.replace('.', '_')}": found[f"lora_unet_{name.replace('.', '_')}"] for name in expected
        }
        expected = {f"lora_unet_{name.replace('.', '_')}": change for name, change in expected.items()}
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        assert torch.allclose(found[name], change, atol=1e-5), name


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_goes_to_another_layout_and_back_byte_for_byte(layout, dtype, tmp_path, write):
    """Fused layers come apart and together again, with the same ranks; as trainers of Flux write them."""
    draw = torch.Generator().manual_seed(1)
    shapes = {
        "kohya": {
            "double_blocks.0.img_attn.qkv": 144,
            "single_blocks.0.linear1": 240,
            "double_blocks.0.img_attn.proj": 48,
        },
        "diffusers": {
            "transformer.transformer_blocks.0.attn.to_q": 48,
            "transformer.single_transformer_blocks.1.attn.to_v": 48,
        },
    }[layout]
    low = {
        name: Adapter(torch.randn(3, 48, generator=draw).to(dtype), torch.randn(rows, 3, generator=draw).to(dtype), 6.0)
        for name, rows in shapes.items()
    }
    write_lora(tmp_path / "a.safetensors", low, layout)
    first = read_tensors(tmp_path / "a.safetensors")
    path = write(tmp_path / "trained.safetensors", first, {**metadata(tmp_path / "a.safetensors"), "ss_steps": "800"})
    other = "diffusers" if layout == "kohya" else "kohya"
    convert(path, tmp_path / "there", "open-sora")
    convert(tmp_path / "there", tmp_path / "back.safetensors", layout)
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()
    convert(path, tmp_path / "other.safetensors", other)
    convert(tmp_path / "other.safetensors", tmp_path / "again.safetensors", layout)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_folder_that_peft_saved_can_be_used_and_is_written_again(source, repository, tmp_path):
    convert(source, tmp_path / "kohya.safetensors", "kohya")
    convert(tmp_path / "kohya.safetensors", tmp_path / "back", "open-sora")
    one, two = (open_system(repository, loras={each: 0.5}).model.state_dict() for each in (source, tmp_path / "back"))
    assert all(torch.allclose(tensor, two[name], atol=1e-6) for name, tensor in one.items())
    settings = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"
    assert "double_blocks.0.img_attn.q_proj" in settings["target_modules"]
    with pytest.raises(BadRequest, match="already exists"):
        convert(source, tmp_path / "back", "open-sora")
    convert(source, tmp_path / "back", "open-sora", overwrite=True)


@pytest.mark.parametrize("layout", KINDS)
def test_a_written_lora_is_read_back_with_the_alpha_of_each_layer(layout, source, repository, tmp_path):
    target = tmp_path / ("there" if layout == "open-sora" else "there.safetensors")
    convert(source, target, layout)
    one, two = (open_system(repository, loras={each: 0.5}).model.state_dict() for each in (source, target))
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-5), name


def test_what_fits_no_layer_or_has_no_such_layout_is_refused(source, tmp_path, write):
    with pytest.raises(BadRequest, match="LoRAs have no layout flux; expected open-sora, diffusers, kohya"):
        convert(source, tmp_path / "a.safetensors", "flux")
    with pytest.raises(BadRequest, match="not a name for a folder"):
        convert(source, tmp_path / "a.safetensors", "open-sora")
    (source / "adapter_config.json").write_text("[8]")
    with pytest.raises(BadRequest, match="adapter_config.json is not a JSON object"):
        convert(source, tmp_path / "b.safetensors", "diffusers")
    for stem, columns, fault in (
        ("double_blocks.0.nowhere", 48, "fit no layer"),
        ("double_blocks.0.img_attn.proj", 47, "47"),
    ):
        tensors = {f"{stem}.lora_A.weight": torch.zeros(2, columns), f"{stem}.lora_B.weight": torch.zeros(48, 2)}
        path = write(tmp_path / f"{columns}.safetensors", tensors)
        with pytest.raises(BadRequest, match=fault):
            convert(path, tmp_path / "b.safetensors", "diffusers")
