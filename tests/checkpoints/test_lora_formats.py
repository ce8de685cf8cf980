"""LoRA files in every layout, merged by the formula and removed bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kinema.checkpoints.convert import convert
from kinema.checkpoints.lora_formats import Adapter, Merged, read_lora, write_lora
from kinema.checkpoints.peft import PEFT_NOTE
from kinema.families.svd.layout import SVD
from kinema.families.svd.lora import modules
from kinema.families.svd.lora import read as read_svd
from kinema.schema import BadRequest

LINEAR, CONV = "unet.block.attn1.to_q", "unet.block.attn1.to_out.0"
ALIASES = {"input_blocks.1.1.attn1.to_q": LINEAR}
QUERY = "down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q"


class Network(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        attention = nn.ModuleDict({"to_q": nn.Linear(6, 8), "to_out": nn.ModuleList([nn.Conv2d(4, 5, 3)])})
        self.unet = nn.ModuleDict({"block": nn.ModuleDict({"attn1": attention})})
        self.to(dtype)


def adapters(alpha=None):
    random = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=random)

    return {
        LINEAR: Adapter(normal(2, 6), normal(8, 2), alpha),
        CONV: Adapter(normal(3, 4, 3, 3), normal(5, 3, 1, 1), alpha),
    }


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k].down, b[k].down) and torch.equal(a[k].up, b[k].up) and a[k].scale == b[k].scale for k in a
    )


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("alpha", [None, 1.0, 7.5])
def test_every_layout_is_read_back_with_its_alphas(tmp_path, layout, alpha):
    write_lora(tmp_path / "a.safetensors", adapters(alpha), layout)
    assert same(read_lora(tmp_path / "a.safetensors", [LINEAR, CONV]), adapters(alpha))


@pytest.mark.parametrize(
    "pattern",
    [
        ("lora_unet_block_attn1_to_q.lora_down.weight", "lora_unet_block_attn1_to_q.lora_up.weight"),
        (
            "lora_unet_input_blocks_1_1_attn1_to_q.lora_down.weight",
            "lora_unet_input_blocks_1_1_attn1_to_q.lora_up.weight",
        ),
        ("unet.block.attn1.to_q.lora_A.weight", "unet.block.attn1.to_q.lora_B.weight"),
        ("block.attn1.to_q.lora_A.default.weight", "block.attn1.to_q.lora_B.default.weight"),
        ("base_model.model.block.attn1.to_q.lora_A.weight", "base_model.model.block.attn1.to_q.lora_B.weight"),
        ("unet.block.attn1.to_q.lora.down.weight", "unet.block.attn1.to_q.lora.up.weight"),
        ("unet.block.attn1.processor.to_q_lora.down.weight", "unet.block.attn1.processor.to_q_lora.up.weight"),
    ],
)
def test_a_layer_is_found_under_every_common_name(tmp_path, pattern):
    down, up = adapters()[LINEAR].down, adapters()[LINEAR].up
    save_file({pattern[0]: down, pattern[1]: up}, tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors", [LINEAR, CONV], ALIASES)
    assert same(found, {LINEAR: Adapter(down, up)})


def test_alphas_in_peft_settings_are_used(tmp_path):
    tensors = {
        "unet.block.attn1.to_q.lora_A.weight": torch.ones(2, 6),
        "unet.block.attn1.to_q.lora_B.weight": torch.ones(8, 2),
    }
    note = {"unet.lora_alpha": 4, "unet.alpha_pattern": {"to_q": 6}}
    save_file(tensors, tmp_path / "a.safetensors", {PEFT_NOTE: json.dumps(note)})
    assert read_lora(tmp_path / "a.safetensors", [LINEAR])[LINEAR].scale == 3.0


def test_merging_adds_the_weighted_product_to_linear_and_conv_layers():
    model, lora = Network(), adapters(alpha=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, image = torch.randn(3, 6), torch.randn(1, 4, 5, 5)
    Merged(model).set([(lora, 0.5)])
    layer, kernel = lora[LINEAR], lora[CONV]
    linear = x @ before[f"{LINEAR}.weight"].T + before[f"{LINEAR}.bias"] + 0.5 / 2 * (x @ layer.down.T) @ layer.up.T
    low = nn.functional.conv2d(nn.functional.conv2d(image, kernel.down), kernel.up)
    conv = nn.functional.conv2d(image, before[f"{CONV}.weight"], before[f"{CONV}.bias"]) + 0.5 / 3 * low
    attention = model.unet["block"]["attn1"]
    torch.testing.assert_close(attention["to_q"](x), linear)
    torch.testing.assert_close(attention["to_out"][0](image), conv)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_removing_adapters_restores_every_bit(dtype):
    model = Network(dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    merged = Merged(model)
    merged.set([(adapters(), 0.7), (adapters(2.0), -1.3)])
    assert not torch.equal(model.get_parameter(f"{LINEAR}.weight"), before[f"{LINEAR}.weight"])
    merged.set([(adapters(), 0.1)])
    merged.clear()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_setting_again_replaces_the_merged_adapters():
    once, twice = Network(), Network()
    Merged(once).set([(adapters(), 0.4)])
    merged = Merged(twice)
    merged.set([(adapters(3.0), 2.0)])
    merged.set([(adapters(), 0.4)])
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))


def test_an_adapter_of_the_wrong_shape_is_refused_before_any_weight_changes():
    model = Network()
    before = [p.detach().clone() for p in model.parameters()]
    wrong = {**adapters(), LINEAR: Adapter(torch.ones(2, 7), torch.ones(8, 2))}
    with pytest.raises(BadRequest, match=f"it is 8×7 at {LINEAR}; expected 8×6"):
        Merged(model).set([(wrong, 1.0)])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_unet_elsewhere.lora_down.weight": torch.ones(2, 6)}, r"fit no layer of this model \(lora_unet_else"),
        (
            {"unet.block.attn1.to_q.oft_R.weight": torch.ones(8)},
            "1 tensor of it is an OFT .*to_q.oft_R.*not supp",
        ),
        (
            {"unet.block.attn1.to_q.lora_A.weight": torch.ones(2, 6)},
            "an incomplete LoRA at .*: its up matrix is missing",
        ),
        (
            {
                "unet.block.attn1.to_q.lora_A.weight": torch.ones(2, 6),
                "unet.block.attn1.to_q.lora_B.weight": torch.ones(8, 3),
            },
            r"mismatched ranks at .*: down is 2×6, up is 8×3",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(BadRequest, match=message):
        read_lora(tmp_path / "a.safetensors", [LINEAR, CONV])


def test_kohya_to_diffusers_and_back_is_byte_identical(tmp_path):
    lora = {f"unet.{QUERY}": Adapter(torch.randn(4, 320), torch.randn(320, 4), 2.0)}
    write_lora(tmp_path / "a.safetensors", lora, "kohya")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers")
    assert f"unet.{QUERY}.lora_A.weight" in load_file(tmp_path / "b.safetensors")
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "kohya")
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(BadRequest, match="a LoRA has no layout sgm"):
        convert(tmp_path / "b.safetensors", tmp_path / "d.safetensors", "sgm")


def test_kohya_names_of_sgm_layers_map_to_native_ones(tmp_path):
    stem = "lora_unet_input_blocks_1_1_time_stack_0_attn1_to_q"
    tensors = {f"{stem}.lora_down.weight": torch.ones(4, 320), f"{stem}.lora_up.weight": torch.ones(320, 4)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert set(read_svd(tmp_path / "a.safetensors")) == {f"unet.{QUERY}"}


def test_no_two_layers_of_svd_share_a_name_with_underscores():
    known = modules(SVD)
    names = {*known, *(name.removeprefix("unet.") for name in known.values())}
    assert len({name.replace(".", "_") for name in names}) == len(names)


def saved(tmp_path, alpha, rank=2):
    stem = "lora_unet_block_attn1_to_q"
    tensors = {f"{stem}.lora_down.weight": torch.ones(rank, 6), f"{stem}.lora_up.weight": torch.ones(8, rank)}
    path = tmp_path / "a.safetensors"
    save_file(tensors if alpha is None else {**tensors, f"{stem}.alpha": torch.tensor(alpha)}, path)
    return path


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -float("inf")])
def test_an_alpha_that_is_not_finite_is_refused(tmp_path, alpha):
    with pytest.raises(BadRequest, match=rf"has an alpha of {alpha} at {LINEAR}; expected a finite number"):
        read_lora(saved(tmp_path, alpha), [LINEAR])


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_rank_zero_is_refused(tmp_path, alpha):
    with pytest.raises(BadRequest, match=f"has a LoRA of rank 0 at {LINEAR}; expected a rank of at least 1"):
        read_lora(saved(tmp_path, alpha, rank=0), [LINEAR])
