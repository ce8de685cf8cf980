"""Parts and LoRAs: what is trained, the files that a run writes, and that other packages compute the same with them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kinema.checkpoints import files
from kinema.checkpoints.lora_formats import Adapter, Merged, read_lora, write_lora
from kinema.families.opensora import mmdit as module
from kinema.families.opensora.family import FAMILY
from kinema.families.opensora.files.transformer_file import TransformerFile
from kinema.families.opensora.mmdit import MMDiT, MMDiTConfig
from kinema.families.opensora.training import adapters
from kinema.families.opensora.training.tuning import TUNING
from kinema.nn.meta import on_meta

PRESETS = ("tiny", "tiny-dc-ae", "tiny-1.0", "tiny-1.1", "tiny-1.2", "tiny-1.3")


def names(preset: str) -> list[str]:
    with on_meta():
        return [name for name, _ in FAMILY.build(FAMILY.presets[preset]).named_parameters()]


def modules(preset: str) -> list[str]:
    with on_meta():
        return [name for name, _ in FAMILY.build(FAMILY.presets[preset]).named_modules()]


def low_rank(preset: str, rank: int = 2, alpha: float = 6.0) -> dict[str, Adapter]:
    """A LoRA of every adapted layer."""
    g = torch.Generator().manual_seed(5)
    shapes = {n: p.shape for n, p in FAMILY.build(FAMILY.presets[preset]).named_parameters()}
    found = {}
    for name in modules(preset):
        if re.fullmatch(TUNING.adapted, name):
            rows, columns = shapes[f"{name}.weight"]
            pair = torch.randn(rank, columns, generator=g), torch.randn(rows, rank, generator=g)
            found[name] = Adapter(*(0.1 * each for each in pair), alpha)
    return found


@pytest.mark.parametrize(
    ("preset", "part", "expected"),
    [
        ("tiny-1.0", "temporal", r"transformer\.blocks\.\d\.attn_temp\."),
        ("tiny-1.1", "temporal", r"transformer\.blocks\.\d\.attn_temp\."),
        ("tiny-1.2", "temporal", r"transformer\.temporal_blocks\."),
        ("tiny-1.3", "temporal", r"transformer\.temporal_blocks\."),
        ("tiny-1.3", "given", r"transformer\.x_embedder_cond"),
        ("tiny", "given", r"transformer\.cond_in\."),
        ("tiny-1.2", "all-but-text", r"transformer\.(?!y_embedder)"),
        ("tiny-1.0", "given", None),
        ("tiny", "temporal", None),
    ],
)
def test_parts_are_these_parameters(preset: str, part: str, expected: str | None) -> None:
    found = {name for name in names(preset) if re.search(TUNING.parts[part], name)}
    assert found == ({name for name in names(preset) if re.match(expected, name)} if expected else set())
    assert bool(found) == bool(expected)


@pytest.mark.parametrize(
    ("preset", "layers"),
    [("tiny", 8 + 2 * 4), ("tiny-dc-ae", 8 + 2 * 4), ("tiny-1.0", 2 * 7), ("tiny-1.1", 2 * 7), ("tiny-1.2", 4 * 5),
     ("tiny-1.3", 4 * 5)],
)  # fmt: skip
def test_a_lora_adapts_the_layers_of_attention(preset: str, layers: int) -> None:
    assert sum(re.fullmatch(TUNING.adapted, name) is not None for name in modules(preset)) == layers


@pytest.mark.parametrize("preset", PRESETS)
def test_every_file_of_a_lora_changes_the_weights_as_the_run_did(preset: str, tmp_path: Any) -> None:
    """Read by the loader: the run's own file, and those for other packages."""
    config, low = FAMILY.presets[preset], low_rank(preset)
    expected = {name: each.scale * each.up @ each.down for name, each in low.items()}
    write_lora(tmp_path / "lora.safetensors", low, "diffusers")
    made = TUNING.files(config, {}, low)
    second = "stdit" not in FAMILY.to_json(config)
    assert set(made) == ({"lora-peft", "lora-diffusers", "lora-kohya"} if second else {"lora-peft"})
    for name, tensors in made.items():
        files.write_tensors(tmp_path / f"{name}.safetensors", tensors, {"format": "pt"})
    for name in ("lora", *made):
        aliases = FAMILY.checkpoints.lora_aliases(config)
        lora = read_lora(tmp_path / f"{name}.safetensors", modules(preset), aliases)
        torch.manual_seed(0)
        model = FAMILY.build(config)
        before = {n: p.clone() for n, p in model.state_dict().items()}
        Merged(model).set([(lora, 1.0)])
        changed = {n: p - before[n] for n, p in model.state_dict().items() if not torch.equal(p, before[n])}
        assert changed.keys() == {f"{layer}.weight" for layer in expected}, name
        for layer, delta in expected.items():
            assert torch.allclose(changed[f"{layer}.weight"], delta, atol=1e-6), (name, layer)


@pytest.mark.parametrize("preset", PRESETS)
def test_files_have_the_names_of_other_packages(preset: str) -> None:
    made = TUNING.files(FAMILY.presets[preset], {}, low_rank(preset))
    assert all(key.startswith("base_model.model.") for key in made["lora-peft"])
    if preset == "tiny":
        assert "transformer.transformer_blocks.0.attn.to_q.lora_A.weight" in made["lora-diffusers"]
        assert "transformer.single_transformer_blocks.1.proj_mlp.lora_B.weight" in made["lora-diffusers"]
        assert "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight" in made["lora-kohya"]
    assert TUNING.files(FAMILY.presets[preset], {}, None) == {}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("rope", ["half", "adjacent"])
def test_flux_of_diffusers_with_the_lora_by_peft_computes_what_we_do(rope: Any, fill: Any) -> None:
    """The change of the output by the LoRA, within 1e-3 of its norm (files are in fp16): a LoRA of every adapted layer,
    queries and keys among them, whose rows the two rotary layouts order differently."""
    pytest.importorskip("peft")
    from diffusers import FluxTransformer2DModel

    config = MMDiTConfig(
        channels=5, text=24, vector=12, width=48, heads=3, mlp=4.0, double_blocks=2, single_blocks=3, axes=(4, 6, 6),
        conditioned=False, rope=rope,
    )  # fmt: skip
    native = fill(MMDiT(config), 3)
    file = TransformerFile(replace(config, rope="adjacent"), "diffusers", rope)
    tensors = {name: file.make_foreign(name, native.state_dict().__getitem__) for name in file.foreign}
    flux = FluxTransformer2DModel(
        patch_size=1, in_channels=20, num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=24, pooled_projection_dim=12, guidance_embeds=False, axes_dims_rope=(4, 6, 6),
    ).eval()  # fmt: skip
    flux.load_state_dict(tensors)
    torch.manual_seed(1)
    z, text, pooled, time = torch.randn(1, 5, 2, 4, 6), torch.randn(1, 7, 24), torch.randn(1, 12), torch.tensor([0.7])
    ids = torch.cartesian_prod(*(torch.arange(n).float() for n in (2, 2, 3)))

    def foreign() -> Tensor:
        inputs = {"img_ids": ids, "txt_ids": torch.zeros(7, 3), "timestep": time}
        states = {"hidden_states": module.patched(z, 2), "encoder_hidden_states": text, "pooled_projections": pooled}
        with torch.no_grad():
            return flux(**states, **inputs).sample

    def ours() -> Tensor:
        with torch.no_grad():
            return module.patched(native(z, time, text, pooled), 2)

    low = {}
    for name, layer in native.named_modules():
        if re.fullmatch(TUNING.adapted, f"transformer.{name}"):
            low[f"transformer.{name}"] = Adapter(
                0.1 * torch.randn(2, layer.in_features), 0.1 * torch.randn(layer.out_features, 2), 3.0
            )
    made = adapters.files(replace(FAMILY.presets["tiny"], transformer=config), low)["lora-diffusers"]
    before = foreign(), ours()
    flux.load_lora_adapter({key: x.half() for key, x in made.items()}, prefix="transformer")
    Merged(native).set([({name.removeprefix("transformer."): each for name, each in low.items()}, 1.0)])
    after = foreign(), ours()
    assert relative(before[1], before[0]) < 1e-5
    assert relative(after[1], before[1]) > 0.01  # it does something
    assert relative(after[1] - before[1], after[0] - before[0]) < 1e-3


def test_the_frozen_weights_are_the_encoders() -> None:
    for preset in PRESETS:
        model = FAMILY.build(FAMILY.presets[preset])
        frozen = TUNING.frozen(model)
        assert frozen
        assert all(name.startswith("vae.") and "decoder." not in name for name in frozen)
