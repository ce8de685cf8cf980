"""LoRAs in the names of peft, diffusers and kohya: each changes the weights by exactly what it says."""

from __future__ import annotations

import json

import pytest
import torch

from kinema.families.opensora.files.transformer_file import TransformerFile
from kinema.families.opensora.mmdit import MMDiTConfig
from kinema.nn.rope import adjacent_to_half, half_to_adjacent
from kinema.schema import BadRequest
from kinema.system import open_system

RANK, HEADS = 3, 3


def pair(rows, columns, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(RANK, columns, generator=draw), torch.randn(rows, RANK, generator=draw)


def change(repository, path, name):
    """The change of one weight of the network by a LoRA of weight 0.5."""
    before = open_system(repository).model.get_parameter(name).clone()
    with_lora = open_system(repository, loras={path: 0.5}).model
    return with_lora.get_parameter(name) - before


@pytest.fixture
def adjacent(repository, tiny, write, laid_out):
    """The same transformer in a file with Flux's rotary layout."""
    config, model = tiny
    return write(
        repository.parent / "f.safetensors", laid_out(model, config, "fused", "adjacent"), {"rope": "adjacent"}
    )


def moved(rows):
    return adjacent_to_half(rows, HEADS)


def test_names_of_peft_are_open_soras_own(repository, tmp_path, write):
    down, up = pair(48, 48, 1)
    stem = "base_model.model.double_blocks.0.img_attn.q_proj"
    path = write(tmp_path / "a.safetensors", {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up})
    found = change(repository, path, "transformer.double_blocks.0.img_attn.q_proj.weight")
    assert torch.allclose(found, 0.5 * up @ down, atol=1e-5)


def test_alphas_that_peft_saved_beside_its_file_count(repository, tmp_path, write):
    down, up = pair(48, 48, 1)
    stem = "base_model.model.double_blocks.0.img_attn.q_proj"
    path = write(tmp_path / "adapter_model.safetensors", {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 12, "r": RANK}))
    found = change(repository, path, "transformer.double_blocks.0.img_attn.q_proj.weight")
    assert torch.allclose(found, 0.5 * 12 / RANK * up @ down, atol=1e-4)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 12, "use_dora": True}))
    with pytest.raises(BadRequest, match="state a DoRA, but .*img_attn.q_proj has no magnitudes"):
        open_system(repository, loras={path: 0.5})


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_names_of_diffusers_have_fluxs_rotary_layout(prefix, repository, tmp_path, write):
    tensors, ups = {}, {}
    layers = {"attn.to_q": "img_attn.q_proj", "attn.add_k_proj": "txt_attn.k_proj", "attn.to_v": "img_attn.v_proj"}
    for seed, foreign in enumerate(layers):
        down, up = pair(48, 48, seed)
        stem = f"{prefix}transformer_blocks.0.{foreign}"
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
        ups[foreign] = up @ down
    path = write(tmp_path / "a.safetensors", tensors)
    for foreign, native in layers.items():
        expected = ups[foreign] if foreign == "attn.to_v" else moved(ups[foreign])
        found = change(repository, path, f"transformer.double_blocks.0.{native}.weight")
        assert torch.allclose(found, 0.5 * expected, atol=1e-5)


def test_values_and_mlp_of_diffusers_join_in_one_layer(repository, tmp_path, write):
    down, up = pair(48, 48, 1)
    down_mlp, up_mlp = pair(96, 48, 2)
    tensors = {
        "lora_unet_single_transformer_blocks_1_attn_to_v.lora_down.weight": down,
        "lora_unet_single_transformer_blocks_1_attn_to_v.lora_up.weight": up,
        "lora_unet_single_transformer_blocks_1_attn_to_v.alpha": torch.tensor(6.0),
        "lora_unet_single_transformer_blocks_1_proj_mlp.lora_down.weight": down_mlp,
        "lora_unet_single_transformer_blocks_1_proj_mlp.lora_up.weight": up_mlp,
    }
    path = write(tmp_path / "a.safetensors", tensors)
    found = change(repository, path, "transformer.single_blocks.1.v_mlp.weight")
    assert torch.allclose(found, 0.5 * torch.cat([2 * up @ down, up_mlp @ down_mlp]), atol=1e-4)


def test_the_last_modulation_of_diffusers_has_scale_before_shift(repository, tmp_path, write):
    down, up = pair(96, 48, 4)
    stem = "transformer.norm_out.linear"
    path = write(tmp_path / "a.safetensors", {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up})
    found = change(repository, path, "transformer.final_layer.adaLN_modulation.1.weight")
    whole = up @ down
    assert torch.allclose(found, 0.5 * torch.cat([whole[48:], whole[:48]]), atol=1e-5)


@pytest.mark.parametrize("kohya", [True, False])
def test_fused_layers_are_split(kohya, repository, tmp_path, write):
    down, up = pair(3 * 48, 48, 1)
    single_down, single_up = pair(3 * 48 + 96, 48, 2)
    tensors = {}
    for name, (a, b) in {
        "double_blocks.0.img_attn.qkv": (down, up),
        "single_blocks.1.linear1": (single_down, single_up),
    }.items():
        if kohya:
            stem = f"lora_unet_{name.replace('.', '_')}"
            tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(6.0)}
        else:
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": 2 * b}
    path = write(tmp_path / "a.safetensors", tensors)
    whole, single = 2 * up @ down, 2 * single_up @ single_down
    expected = {
        "double_blocks.0.img_attn.q_proj": moved(whole[:48]),
        "double_blocks.0.img_attn.k_proj": moved(whole[48:96]),
        "double_blocks.0.img_attn.v_proj": whole[96:],
        "single_blocks.1.q_proj": moved(single[:48]),
        "single_blocks.1.k_proj": moved(single[48:96]),
        "single_blocks.1.v_mlp": single[96:],
    }
    for name, value in expected.items():
        found = change(repository, path, f"transformer.{name}.weight")
        assert torch.allclose(found, 0.5 * value, atol=1e-4)


def test_a_lora_gives_the_same_outputs_over_a_file_of_either_rotary_layout(repository, adjacent, tmp_path, write):
    down, up = pair(3 * 48, 48, 1)
    own_down, own_up = pair(48, 48, 2)
    path = write(
        tmp_path / "a.safetensors",
        {
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": down,
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": up,
            "base_model.model.single_blocks.0.k_proj.lora_A.weight": own_down,
            "base_model.model.single_blocks.0.k_proj.lora_B.weight": own_up,
        },
    )
    z, text, pooled = torch.randn(1, 4, 3, 4, 6), torch.randn(1, 12, 32), torch.randn(1, 32)
    time, given = torch.tensor([0.6]), torch.randn(1, 5, 3, 4, 6)
    with torch.no_grad():
        a, b, plain = (
            open_system(file, loras=loras).model.transformer(z, time, text, pooled, given)
            for file, loras in ((repository, {path: 1.0}), (adjacent, {path: 1.0}), (repository, None))
        )
    assert torch.allclose(a, b, atol=1e-4 * float(a.abs().max()))
    assert not torch.allclose(a, plain, atol=1e-2 * float(a.abs().max()))


LAYERS = {
    "open-sora": ("double_blocks.0.img_attn.q_proj", "double_blocks.0.img_attn.v_proj"),
    "diffusers": ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_v"),
    "fused": ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear1"),
}
"""Two layers in each layout; the first has rows that the rotary layouts order differently."""
ROWS = {"double_blocks.0.img_attn.qkv": 3 * 48, "single_blocks.1.linear1": 3 * 48 + 96}


@pytest.mark.parametrize("rope", ["half", "adjacent"])
@pytest.mark.parametrize("names", ["peft", "kohya", "note"])
@pytest.mark.parametrize("layout", LAYERS)
def test_each_layer_has_its_own_alpha_in_every_layout(layout, names, rope, repository, adjacent, tmp_path, write):
    """Alphas as tensors, in PEFT's folder and in diffusers' note change a network by up @ down · alpha / rank."""
    tensors, expected, patterns = {}, {}, {}
    for name, alpha in zip(LAYERS[layout], (1.0, 2.0), strict=True):
        down, up = pair(ROWS.get(name, 48), 48, len(name))
        stem = {"peft": f"base_model.model.{name}", "kohya": f"lora_unet_{name.replace('.', '_')}", "note": name}[names]
        ends = ("lora_down", "lora_up") if names == "kohya" else ("lora_A", "lora_B")
        tensors |= {f"{stem}.{ends[0]}.weight": down, f"{stem}.{ends[1]}.weight": up}
        if names == "kohya":
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
        expected[name] = alpha / RANK * up @ down
        patterns[name] = alpha
    note = {"lora_alpha": 8, "alpha_pattern": patterns}
    text = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in note.items()})}
    path = write(tmp_path / "adapter_model.safetensors", tensors, text if names == "note" else None)
    if names == "peft":
        (tmp_path / "adapter_config.json").write_text(json.dumps(note))
    first, second = expected.values()
    turned = first if layout == "open-sora" else moved(first[:48])
    native = {
        "double_blocks.0.img_attn.q_proj": turned if rope == "half" else half_to_adjacent(turned, HEADS),
        "single_blocks.1.v_mlp" if layout == "fused" else "double_blocks.0.img_attn.v_proj": second[-144:],
    }
    before, after = (
        open_system(repository if rope == "half" else adjacent, loras=loras).model for loras in (None, {path: 1.0})
    )
    for name, value in native.items():
        full = f"transformer.{name}.weight"
        assert torch.allclose(after.get_parameter(full) - before.get_parameter(full), value, atol=1e-4), name


def test_what_fits_no_layer_is_named(repository, tmp_path, write):
    down, up = pair(48, 48, 1)
    stem = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    path = write(tmp_path / "a.safetensors", {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up})
    with pytest.raises(BadRequest, match="2 of its tensors fit no layer of this model"):
        open_system(repository, loras={path: 1.0})
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    path = write(tmp_path / "b.safetensors", {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up[:47]})
    with pytest.raises(BadRequest, match="47 rows at double_blocks.0.img_attn.qkv, which do not fit this model"):
        open_system(repository, loras={path: 1.0})


def test_every_layer_of_the_published_model_has_its_names(repository):
    from kinema.families.opensora.config import V2
    from kinema.families.opensora.files.lora import aliases

    found = aliases(V2)
    for kind in ("separate", "fused", "diffusers"):
        file = TransformerFile(MMDiTConfig(), kind, "half")
        layers = {n.removesuffix(".weight") for n, s in file.foreign.items() if n.endswith(".weight") and len(s) > 1}
        assert layers <= found.keys()
