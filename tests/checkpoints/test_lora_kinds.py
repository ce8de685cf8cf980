"""Every kind of LoRA, merged as LyCORIS 4.1.3 and PEFT 0.21.2 compute it (tools/record_lora_kinds.py) and removed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from kinema.checkpoints.lora_formats import Merged, read_lora
from kinema.checkpoints.lora_use import Loras, read_loras

RECORDED = Path(__file__).parent / "recorded" / "lora_kinds.safetensors"


@cache
def recorded() -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, str]]:
    with safe_open(str(RECORDED), "pt") as file:
        cases: dict[str, dict[str, torch.Tensor]] = {}
        for key in file.keys():  # noqa: SIM118 (not a dictionary)
            case, _, name = key.partition("/")
            cases.setdefault(case, {})[name] = file.get_tensor(key)
        return cases, file.metadata()


def names() -> list[str]:
    with safe_open(str(RECORDED), "pt") as file:
        return sorted({key.partition("/")[0] for key in file.keys()})  # noqa: SIM118


class Network(nn.Module):
    """One layer with the recorded weights, as Kinema's networks name it."""

    def __init__(self, weights: dict[str, torch.Tensor], case: str = "") -> None:
        super().__init__()
        rows, *rest = weights["weight"].shape
        layers = {
            0: lambda: nn.GroupNorm(2, rows) if case == "norm-group" else nn.LayerNorm(rows),
            1: lambda: nn.Linear(rest[0], rows),
            3: lambda: nn.Conv2d(rest[0], rows, rest[1], padding=rest[1] // 2),
        }
        self.unet = nn.ModuleDict({"layer": layers[len(rest)]()})
        self.unet["layer"].load_state_dict(weights)


def part(case: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in case.items() if k.startswith(prefix)}


def saved(folder: Path, name: str) -> Path:
    cases, settings = recorded()
    path = folder / "adapter_model.safetensors"
    save_file(part(cases[name], "file."), path)
    if (config := json.loads(settings[name])) != {}:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("name", names())
def test_a_layer_computes_what_the_tool_computes_and_is_restored_bit_for_bit(tmp_path, name):
    case = recorded()[0][name]
    model = Network(part(case, "base."), name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    (file,) = read_loras({saved(tmp_path, name): 1.0}, {n: p.shape for n, p in before.items()}, {}, "a model")
    assert not file.notes
    layer, merged = model.unet["layer"], Merged(model)
    plain = layer(case["x"])
    merged.set([(file.lora, 1.0)])
    changed = layer(case["x"])
    assert (changed - plain).abs().max() > 5e-3  # the LoRA has an effect that the next line can miss
    assert (changed - case["y"]).abs().max() <= 1e-6 * case["y"].abs().max().clamp_min(1)
    merged.clear()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", names())
def test_the_weight_scales_the_change_and_two_loras_add_up(tmp_path, name):
    case = recorded()[0][name]
    model = Network(part(case, "base."), name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    lora, merged = read_lora(saved(tmp_path, name), ["unet.layer"]), Merged(model)
    merged.set([(lora, 1.0)])
    once = {n: p.detach().clone() for n, p in model.named_parameters()}
    merged.set([(lora, 0.7), (lora, -0.2)])
    for n, p in model.named_parameters():
        torch.testing.assert_close(p, before[n] + 0.5 * (once[n] - before[n]), atol=2e-6, rtol=0)
    loras = Loras()
    loras.files = read_loras({saved(tmp_path, name): 0.5}, {n: p.shape for n, p in before.items()}, {}, "a model")
    merged.set([(lora, 0.5)])
    for n, p in model.named_parameters():  # networks that are never completely in memory get the same values
        merge = loras.merging(n)
        assert torch.equal(p, before[n] if merge is None else merge(before[n]))
    merged.clear()


def test_a_glora_of_the_first_layout_is_w_a2_a1_and_b2_b1(tmp_path):
    """AUTOMATIC1111 reads this layout, in which each second tensor is the outer one; the ranks tell it apart."""
    base, alpha = torch.randn(8, 6), 3.0
    a1, a2, b1, b2 = torch.randn(2, 6), torch.randn(6, 2), torch.randn(2, 6), torch.randn(8, 2)
    model = Network({"weight": base.clone(), "bias": torch.zeros(8)})
    tensors = {"a1": a1, "a2": a2, "b1": b1, "b2": b2}
    named = {f"lora_unet_layer.{name}.weight": each for name, each in tensors.items()}
    save_file(named | {"lora_unet_layer.alpha": torch.tensor(alpha)}, tmp_path / "a.safetensors")
    Merged(model).set([(read_lora(tmp_path / "a.safetensors", ["unet.layer"]), 1.0)])
    expected = base + alpha / 2 * (base @ a2 @ a1 + b2 @ b1)
    torch.testing.assert_close(model.get_parameter("unet.layer.weight"), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_is_restored_bit_for_bit(tmp_path, dtype):
    for name in ("dora-rows", "oft-linear", "lokr-both", "glora-linear", "full-conv"):
        model = Network(part(recorded()[0][name], "base.")).to(dtype)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        (tmp_path / name).mkdir()
        merged, lora = Merged(model), read_lora(saved(tmp_path / name, name), ["unet.layer"])
        merged.set([(lora, 0.7)])
        assert not torch.equal(model.get_parameter("unet.layer.weight"), before["unet.layer.weight"])
        merged.set([(lora, 0.1), (lora, -1.0)])
        merged.clear()
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("alpha", [0.0, 0.003, 5.0])
def test_the_alpha_of_an_oft_bounds_the_rotation_as_its_trainer_bounds_it(tmp_path, alpha):
    """Norms of Q of at most alpha × rows; zero is a bound of sd-scripts' files (oft_unet_) and none of LyCORIS's."""
    model = Network({"weight": torch.randn(8, 6), "bias": torch.randn(8)})
    base, blocks = model.get_parameter("unet.layer.weight").detach().double(), torch.randn(2, 4, 4)
    for prefix in ("oft_unet_", "lora_unet_"):
        path = tmp_path / f"{prefix}{alpha}.safetensors"
        save_file({f"{prefix}layer.oft_blocks": blocks, f"{prefix}layer.alpha": torch.tensor(alpha)}, path)
        skew = (blocks - blocks.mT).double()
        if alpha or prefix == "oft_unet_":
            skew = skew * min(1.0, alpha * 8 / float(skew.norm()))
        turn = (torch.eye(4) + skew) @ torch.linalg.inv(torch.eye(4) - skew)
        expected = torch.einsum("knm,knj->kmj", turn, base.unflatten(0, (2, 4))).flatten(0, 1) - base
        found = read_lora(path, ["unet.layer"])["unet.layer"].delta("weight", base.float())
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
