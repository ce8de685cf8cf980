"""Record layers with LoRAs of every kind, computed by LyCORIS and PEFT, for tests/checkpoints/test_lora_kinds.py.

    python tools/record_lora_kinds.py tests/checkpoints/recorded

Needs lycoris-lora 4.1.3, peft 0.21.2 and diffusers, of which Kinema depends on none; install them elsewhere. In
``lora_kinds.safetensors``, each case has the weights of a layer (``base.…``), the tensors that the tool writes
(``file.…``), an input and the output of the tool's own forward pass; the metadata has PEFT's settings. ``peft-unet`` is
a folder that PEFT saved for a U-Net of `UNET`, with what it adds to each weight in ``peft-unet.safetensors``.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import peft
import torch
from diffusers import UNet2DConditionModel
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from safetensors.torch import save_file
from torch import nn

LYCORIS = {
    "locon-linear": (LoConModule, "linear", {"alpha": 2}),
    "locon-conv": (LoConModule, "conv", {"alpha": 2}),
    "locon-conv-1x1": (LoConModule, "point", {"alpha": 2}),
    "locon-tucker": (LoConModule, "conv", {"alpha": 2, "use_tucker": True}),
    "locon-rslora": (LoConModule, "linear", {"alpha": 2, "rs_lora": True}),
    "loha-linear": (LohaModule, "linear", {"alpha": 2}),
    "loha-conv": (LohaModule, "conv", {"alpha": 2}),
    "loha-tucker": (LohaModule, "conv", {"alpha": 2, "use_tucker": True}),
    "lokr-full": (LokrModule, "linear", {"alpha": 2, "full_matrix": True}),
    "lokr-second": (LokrModule, "linear", {"alpha": 2, "lora_dim": 2, "factor": 2}),
    "lokr-both": (LokrModule, "wide", {"alpha": 2, "lora_dim": 1, "decompose_both": True}),
    "lokr-conv": (LokrModule, "conv", {"alpha": 2, "lora_dim": 1, "factor": 4}),
    "lokr-tucker": (LokrModule, "conv", {"alpha": 2, "lora_dim": 1, "factor": 4, "use_tucker": True}),
    "dora-rows": (LoConModule, "linear", {"alpha": 2, "weight_decompose": True, "wd_on_out": True}),
    "dora-columns": (LoConModule, "linear", {"alpha": 2, "weight_decompose": True, "wd_on_out": False}),
    "dora-square-columns": (LoConModule, "square", {"alpha": 2, "weight_decompose": True, "wd_on_out": False}),
    "dora-conv-rows": (LoConModule, "conv", {"alpha": 2, "weight_decompose": True, "wd_on_out": True}),
    "dora-conv-columns": (LoConModule, "conv", {"alpha": 2, "weight_decompose": True, "wd_on_out": False}),
    "dora-loha": (LohaModule, "linear", {"alpha": 2, "weight_decompose": True, "wd_on_out": True}),
    "dora-lokr": (LokrModule, "linear", {"alpha": 2, "lora_dim": 2, "factor": 2, "weight_decompose": True}),
    "oft-linear": (DiagOFTModule, "linear", {}),
    "oft-conv-rescaled": (DiagOFTModule, "conv", {"rescaled": True}),
    "oft-constraint": (DiagOFTModule, "linear", {"constraint": 0.01}),
    "boft-linear": (ButterflyOFTModule, "wide", {"lora_dim": 4}),
    "boft-conv-rescaled": (ButterflyOFTModule, "square-conv", {"lora_dim": 4, "rescaled": True}),
    "glora-linear": (GLoRAModule, "linear", {"alpha": 2}),
    "ia3-output": (IA3Module, "linear", {}),
    "ia3-input": (IA3Module, "linear", {"train_on_input": True}),
    "ia3-conv-input": (IA3Module, "conv", {"train_on_input": True}),
    "full-linear": (FullModule, "linear", {}),
    "full-conv": (FullModule, "conv", {}),
    "norm-group": (NormModule, "norm", {}),
    "norm-layer": (NormModule, "layernorm", {}),
}
PEFT = {
    "peft-lora": ("linear", peft.LoraConfig(r=4, lora_alpha=6)),
    "peft-rslora": ("linear", peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True)),
    "peft-patterns": (
        "linear",
        peft.LoraConfig(
            r=4, lora_alpha=6, rank_pattern={"layer": 2}, alpha_pattern={"absent": 1, "lay.*": 5, "layer": 9}
        ),
    ),
    "peft-conv": ("conv", peft.LoraConfig(r=4, lora_alpha=6)),
    "peft-dora": ("linear", peft.LoraConfig(r=4, lora_alpha=6, use_dora=True)),
    "peft-dora-conv": ("conv", peft.LoraConfig(r=4, lora_alpha=6, use_dora=True)),
    "peft-bias": ("linear", peft.LoraConfig(r=4, lora_alpha=6, lora_bias=True)),
    "peft-loha": ("linear", peft.LoHaConfig(r=4, alpha=6)),
    "peft-loha-conv": ("conv", peft.LoHaConfig(r=4, alpha=6, use_effective_conv2d=True)),
    "peft-lokr": ("linear", peft.LoKrConfig(r=2, alpha=6, decompose_factor=2)),
    "peft-lokr-full": ("linear", peft.LoKrConfig(r=4, alpha=6, decompose_factor=2)),
    "peft-lokr-conv": ("conv", peft.LoKrConfig(r=1, alpha=6, use_effective_conv2d=True)),
}


def layer(kind: str) -> tuple[nn.Module, torch.Tensor]:
    """A layer and an input for it."""
    image = torch.randn(2, 8, 5, 5)
    return {
        "linear": lambda: (nn.Linear(8, 12), torch.randn(5, 8)),
        "square": lambda: (nn.Linear(8, 8), torch.randn(5, 8)),
        "wide": lambda: (nn.Linear(16, 32), torch.randn(5, 16)),
        "conv": lambda: (nn.Conv2d(8, 12, 3, padding=1), image),
        "point": lambda: (nn.Conv2d(8, 12, 1), image),
        "square-conv": lambda: (nn.Conv2d(8, 16, 3, padding=1), image),
        "norm": lambda: (nn.GroupNorm(2, 8), image),
        "layernorm": lambda: (nn.LayerNorm(8), torch.randn(5, 8)),
    }[kind]()


def fill(module: nn.Module) -> None:
    """Random values for every parameter of an adapter, so that none has no effect."""
    for name, parameter in module.named_parameters():
        scale = "dora_scale" in name or "magnitude" in name or "rescale" in name
        noise = torch.randn_like(parameter) * 0.2
        parameter.data.copy_(parameter.data.abs() + 0.3 + noise.abs() if scale else noise)


def by_lycoris(kind: type, what: str, options: dict) -> tuple[dict, dict]:
    base, x = layer(what)
    state = {f"base.{k}": v.detach().clone() for k, v in base.state_dict().items()}
    module = kind("layer", base, 1.0, **{"lora_dim": 4, **options})
    fill(module)
    if kind is FullModule:  # it writes the difference only once it has replaced the layer's own weights
        module.apply_to()
    written = module.custom_state_dict() if hasattr(module, "custom_state_dict") else None
    tensors = {f"file.lora_unet_layer.{k}": v.detach().clone() for k, v in (written or module.state_dict()).items()}
    with torch.no_grad():
        if kind is not FullModule:
            module.org_forward = base.forward
        return state | tensors | {"x": x, "y": module(x)}, {}


class Network(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.layer = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def by_peft(what: str, config: peft.PeftConfig) -> tuple[dict, dict]:
    base, x = layer(what)
    state = {f"base.{k}": v.detach().clone() for k, v in base.state_dict().items()}
    config.target_modules = ["layer"]
    model = peft.get_peft_model(Network(base), config)
    fill(_Adapters(model))
    model.eval()
    with torch.no_grad():
        y = model(x)
    written = {f"file.{k}": v.detach().clone() for k, v in peft.get_peft_model_state_dict(model).items()}
    settings = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    return state | written | {"x": x, "y": y}, json.loads(json.dumps(settings, default=str))


class _Adapters:
    """The parameters that PEFT added."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def named_parameters(self) -> list:
        return [(n, p) for n, p in self.model.named_parameters() if "base_layer" not in n]


UNET = {
    "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16,
    "attention_head_dim": 8, "norm_num_groups": 8, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


TARGETS = ["to_q", "to_out.0", "proj_in", "conv_in", "down_blocks.0.resnets.0.conv1"]


def unet(folder: Path) -> None:
    """A folder of PEFT: rank-stabilised, with patterns that overlap, for linear layers and convolutions."""
    config = peft.LoraConfig(
        r=2, lora_alpha=5, use_rslora=True, target_modules=TARGETS,
        rank_pattern={"attn2.to_q": 3, "conv_in": 1}, alpha_pattern={"down_blocks.*.to_q": 7, "to_q": 2, "^conv_in": 4},
    )  # fmt: skip
    model = peft.get_peft_model(UNet2DConditionModel(**UNET), config)
    fill(_Adapters(model))
    model.save_pretrained(folder)
    layers = {n: m for n, m in model.base_model.model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    added = {name: each.get_delta_weight("default").detach().contiguous() for name, each in layers.items()}
    save_file(added, folder.with_suffix(".safetensors"))
    (folder / "README.md").unlink()


def main() -> None:
    torch.manual_seed(0)
    folder = Path(sys.argv[1])
    unet(folder / "peft-unet")
    tensors, notes = {}, {}
    cases = {name: by_lycoris(*case) for name, case in LYCORIS.items()}
    cases |= {name: by_peft(*case) for name, case in PEFT.items()}
    for name, (found, settings) in cases.items():
        tensors |= {f"{name}/{key}": value.contiguous() for key, value in found.items()}
        notes[name] = json.dumps(settings)
    tools = {"lycoris-lora": version("lycoris-lora"), "peft": version("peft"), "torch": torch.__version__}
    save_file(tensors, folder / "lora_kinds.safetensors", {**notes, "tools": json.dumps(tools)})


if __name__ == "__main__":
    main()
