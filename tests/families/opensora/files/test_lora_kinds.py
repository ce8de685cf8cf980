"""LoHa, LoKr, DoRA and OFT of layers that files fuse or split: each changes the rows that it says."""

from __future__ import annotations

import pytest
import torch

from kinema.nn.rope import adjacent_to_half, half_to_adjacent
from kinema.schema import BadRequest
from kinema.system import open_system

HEADS, WIDTH = 3, 48
FUSED, SPLIT = "lora_unet_double_blocks_0_img_attn_qkv", "transformer.double_blocks.0.img_attn.{}.weight"


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed)) * 0.3


def loha(rows, columns=WIDTH):
    shapes = {"w1_a": (rows, 2), "w1_b": (2, columns), "w2_a": (rows, 2), "w2_b": (2, columns)}
    parts = {f"hada_{name}": normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    a, b, c, d = parts.values()
    return parts, (a @ b) * (c @ d)


def named(stem, parts):
    return {f"{stem}.{name}": tensor for name, tensor in parts.items()}


def weights(repository, loras=None):
    return {n: p.detach().clone() for n, p in open_system(repository, loras=loras).model.named_parameters()}


def arranged(layer, rows):
    return rows if layer == "v_proj" else adjacent_to_half(rows, HEADS)


LAYERS = ("q_proj", "k_proj", "v_proj")


def test_a_loha_of_a_fused_layer_is_split(repository, tmp_path, write):
    parts, whole = loha(3 * WIDTH)
    path = write(tmp_path / "a.safetensors", named(FUSED, parts))
    before, after = weights(repository), weights(repository, {path: 0.5})
    for layer, rows in zip(LAYERS, whole.chunk(3), strict=True):
        name = SPLIT.format(layer)
        torch.testing.assert_close(after[name], before[name] + 0.5 * arranged(layer, rows), atol=1e-6, rtol=0)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {SPLIT.format(layer) for layer in LAYERS}


def test_a_dora_of_a_fused_layer_is_split_by_rows(repository, tmp_path, write):
    down, up, norms = normal(2, WIDTH), normal(3 * WIDTH, 2), normal(3 * WIDTH, 1).abs() + 0.2
    parts = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": norms}
    path = write(tmp_path / "a.safetensors", named(FUSED, parts))
    before, after = weights(repository), weights(repository, {path: 1.0})
    rows = [before[SPLIT.format(layer)] for layer in LAYERS]
    fused = torch.cat([half_to_adjacent(rows[0], HEADS), half_to_adjacent(rows[1], HEADS), rows[2]]) + up @ down
    whole = norms * fused / fused.norm(dim=1, keepdim=True)
    for layer, expected in zip(LAYERS, whole.chunk(3), strict=True):
        torch.testing.assert_close(after[SPLIT.format(layer)], arranged(layer, expected), atol=1e-6, rtol=0)


def test_a_bias_of_a_fused_layer_is_split(repository, tmp_path, write):
    parts, whole = loha(3 * WIDTH)
    bias = normal(3 * WIDTH)
    path = write(tmp_path / "a.safetensors", named(FUSED, {**parts, "diff_b": bias}))
    before = weights(repository)
    if SPLIT.format("q_proj").replace("weight", "bias") not in before:
        with pytest.raises(BadRequest, match="changes the bias of transformer.double_blocks.0.img_attn.q_proj"):
            weights(repository, {path: 1.0})
        return
    after = weights(repository, {path: 1.0})
    for layer, rows, offset in zip(LAYERS, whole.chunk(3), bias.chunk(3), strict=True):
        name = SPLIT.format(layer)
        torch.testing.assert_close(after[name], before[name] + arranged(layer, rows), atol=1e-6, rtol=0)
        moved = arranged(layer, offset[:, None])[:, 0]
        name = name.replace("weight", "bias")
        torch.testing.assert_close(after[name], before[name] + moved, atol=1e-6, rtol=0)


def test_layers_that_the_model_fuses_are_joined_whatever_their_kinds(repository, tmp_path, write):
    parts, whole = loha(WIDTH)
    blocks = normal(24, 4, 4)  # an OFT of the 96 rows of the MLP
    stem = "transformer.single_transformer_blocks.1"
    tensors = named(f"{stem}.attn.to_v", parts) | {f"{stem}.proj_mlp.oft_blocks": blocks}
    path = write(tmp_path / "a.safetensors", tensors)
    before, after = weights(repository), weights(repository, {path: 1.0})
    name = "transformer.single_blocks.1.v_mlp.weight"
    skew = blocks - blocks.mT
    turn = (torch.eye(4) + skew) @ torch.linalg.inv(torch.eye(4) - skew)
    mlp = torch.einsum("knm,knj->kmj", turn, before[name][WIDTH:].unflatten(0, (24, 4))).flatten(0, 1)
    expected = torch.cat([before[name][:WIDTH] + whole, mlp])
    torch.testing.assert_close(after[name], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("parts", ["oft", "columns"])
def test_a_kind_whose_rows_depend_on_each_other_is_refused_for_a_fused_layer(repository, tmp_path, write, parts):
    tensors = {
        "oft": {"oft_blocks": normal(36, 4, 4)},
        "columns": {
            "lora_down.weight": normal(2, WIDTH), "lora_up.weight": normal(3 * WIDTH, 2), "dora_scale": normal(1, WIDTH)
        },
    }[parts]  # fmt: skip
    path = write(tmp_path / "a.safetensors", named(FUSED, tensors))
    kind = {"oft": "an OFT", "columns": "a DoRA over a LoRA"}[parts]
    with pytest.raises(
        BadRequest, match=rf"a.safetensors has {kind} at double_blocks.0.img_attn.qkv; expected one whose"
    ):
        weights(repository, {path: 1.0})
