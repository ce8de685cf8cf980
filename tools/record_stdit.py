"""Record tensors of the transformers of Open-Sora 1.0 to 1.3, for the parity tests: python tools/record_stdit.py CLONE

CLONE is a git directory of github.com/hpcaitech/Open-Sora with the commits of `VERSIONS`, whose code runs on a CPU:
packages that only make it faster on GPUs are replaced by plain PyTorch, and base classes of transformers and timm by
the little of them that it uses. Needs rotary-embedding-torch 0.5.3 and beartype besides the test extra.
The tensors go to tests/families/opensora/recorded; weights are drawn by `weights` and not kept.
"""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import tarfile
import types
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parents[1] / "tests" / "families" / "opensora" / "recorded"
VERSIONS = {"1.0": "d7518da", "1.1": "c37e6d6", "1.2": "bde3c42", "1.3": "2ca632a"}
SIZES = {"hidden_size": 72, "num_heads": 3, "depth": 2, "mlp_ratio": 2.5, "in_channels": 5, "caption_channels": 20}
"""Heads of 24 features: three axes of eight in 1.3. Nothing here is a power of two times anything published."""
TOKENS = 11
"""Of a prompt at most."""
SHAPE = (2, 5, 4, 7, 9)
"""Latents whose sides are odd; 4×5 tokens, which are not whole windows of 3×2."""
TABLE = (10, 14, 0.47, 12)
"""Rows, columns, scale and base of a table of positions."""
WINDOW = (3, 2, -1)
UNEVEN = (427.0, 713.0)
"""Height and width that bfloat16 rounds."""
KEPT = ("rope.freqs", "pos_embed", "pos_embed_temporal")
"""Constants among the tensors, which are not drawn."""


def weights(model: nn.Module, seed: int, std: float = 0.12) -> None:
    """Fill a model, in the order of its tensors' names, from NumPy's frozen generator; scales of norms around 1."""
    draw = np.random.RandomState(seed)
    for name, tensor in sorted(model.state_dict().items()):
        if name not in KEPT:
            values = draw.standard_normal(tuple(tensor.shape)) * std + ("_norm." in name)
            tensor.copy_(torch.from_numpy(values))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


# ----------------------------------------------------------------------------- upstream's surroundings


def package(name: str, path: Path | None = None, **members: Any) -> None:
    module = types.ModuleType(name)
    module.__path__ = [] if path is None else [str(path)]
    module.__dict__.update(members)
    sys.modules[name] = module


class _Registry:
    def register_module(self, *_: Any, **__: Any) -> Callable[[Any], Any]:
        return lambda thing: thing


class _Config:
    def __init__(self, **settings: Any) -> None:
        self.__dict__.update(settings)


class _Pretrained(nn.Module):
    def __init__(self, config: _Config) -> None:
        super().__init__()
        self.config = config


class _Mlp(nn.Module):
    """timm's, without dropout."""

    def __init__(
        self, in_features: int, hidden_features: int, act_layer: Any, out_features: int | None = None, drop: float = 0
    ) -> None:
        super().__init__()
        assert drop == 0
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_features, out_features or in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _Lengths(list):
    """xformers' block-diagonal mask: pairs of numbers of queries and keys, one a clip."""

    @classmethod
    def from_seqlens(cls, queries: list[int], keys: list[int]) -> _Lengths:
        return cls(zip(queries, keys, strict=True))


def _packed(q: Tensor, k: Tensor, v: Tensor, p: float, attn_bias: _Lengths) -> Tensor:
    queries, keys = zip(*attn_bias, strict=True)
    clips = zip(q.split(queries, 1), k.split(keys, 1), v.split(keys, 1), strict=True)
    attended = (F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in clip), dropout_p=p) for clip in clips)
    return torch.cat([x.transpose(1, 2) for x in attended], dim=1)


def surround(upstream: Path) -> None:
    """Let one version's modules be imported one by one, without what they need only on GPUs."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "opensora"]:
        del sys.modules[name]
    root = upstream / "opensora"
    for folder in ("", "models", "models/layers", "models/stdit", "utils", "acceleration"):
        package(".".join(["opensora", *Path(folder).parts]), root / folder)
    package("opensora.registry", MODELS=_Registry())
    package("opensora.utils.ckpt_utils", load_checkpoint=None)
    package("opensora.acceleration.checkpoint", auto_grad_checkpoint=lambda module, *a, **k: module(*a, **k))
    communications = ("all_to_all", "split_forward_gather_backward", "gather_forward_split_backward")
    package("opensora.acceleration.communications", **dict.fromkeys(communications))
    package("opensora.acceleration.parallel_states", get_sequence_parallel_group=None)
    package("xformers")
    package("xformers.ops", memory_efficient_attention=_packed, fmha=types.SimpleNamespace(BlockDiagonalMask=_Lengths))
    sys.modules["xformers"].__dict__["ops"] = sys.modules["xformers.ops"]
    package("timm")
    package("timm.models")
    package("timm.models.layers", DropPath=nn.Identity)
    package("timm.models.vision_transformer", Mlp=_Mlp)
    package("transformers", PretrainedConfig=_Config, PreTrainedModel=_Pretrained)


def network(version: str) -> nn.Module:
    common = {**SIZES, "model_max_length": TOKENS}
    if version == "1.0":
        from opensora.models.stdit.stdit import STDiT

        model = STDiT(input_size=(4, 8, 10), space_scale=0.5, time_scale=2 / 3, **common)
    elif version == "1.1":
        from opensora.models.stdit.stdit2 import STDiT2, STDiT2Config

        model = STDiT2(STDiT2Config(input_sq_size=512, qk_norm=True, **common))
    else:
        from opensora.models.stdit.stdit3 import STDiT3, STDiT3Config

        windows = {"kernel_size": WINDOW, "use_spatial_rope": True} if version == "1.3" else {}
        model = STDiT3(STDiT3Config(qk_norm=True, **windows, **common))
    weights(model.eval(), seed=21)
    return model


# ----------------------------------------------------------------------------------------- recording


def inputs() -> dict[str, Tensor]:
    _, channels, frames, height, width = SHAPE
    return {
        "z": normal(1, *SHAPE),
        "even": normal(2, 2, channels, frames, height + 1, width + 1),
        "text": normal(3, 2, TOKENS, SIZES["caption_channels"]),
        "text_mask": (torch.arange(TOKENS) < torch.tensor([[4], [TOKENS - 2]])).long(),
        "time": torch.tensor([831.25, 310.5]),
        "fps": torch.tensor([24.0, 7.5]),
        "size": torch.tensor([56.0, 72.0]),
        "generated": torch.tensor([[False, True, True, True], [True, False, True, False]]),
        "given": normal(4, *SHAPE),
        "frames": torch.tensor([0, 2]),
    }


def record(version: str) -> dict[str, Tensor]:
    told = inputs()
    model = network(version)
    y, mask = told["text"][:, None], told["text_mask"]
    if version == "1.0":
        outputs = {
            "out.text": model(told["even"], told["time"], y, mask),
            "out.full": model(told["even"], told["time"], y),
        }
        return {name: told[name] for name in ("even", "time", "text", "text_mask")} | outputs
    height, width = told["size"].repeat(2, 1).T
    about: dict[str, Any] = {"fps": told["fps"], "height": height, "width": width}
    if version == "1.1":
        about |= {"num_frames": torch.full((2,), float(SHAPE[2])), "ar": height / width}

    def run(**more: Any) -> Tensor:
        return model(told["z"], told["time"], y, **{"mask": mask, **about, **more})

    image = {**about, "fps": torch.full((2,), 120.0), **({"num_frames": torch.ones(2)} if version == "1.1" else {})}
    outputs = {
        "out.text": run(),
        "out.full": run(mask=None),
        "out.held": run(x_mask=told["generated"]),
        "out.image": model(told["z"][:, :, :1], told["time"], y, mask, **image),
    }
    if version == "1.2":
        rounded = copy.deepcopy(model).bfloat16()
        outputs["table.bf16"] = rounded.pos_embed(told["z"].bfloat16(), *TABLE)[0]
        outputs["angles.bf16"] = rounded.rope(torch.arange(50).bfloat16(), seq_len=50)[:, ::2]
    names = ["z", "text", "text_mask", "time", "fps", "size", "generated"]
    if version == "1.3":
        index = told["frames"].tolist()
        shown = torch.zeros(SHAPE)
        shown[:, :, index] = 1
        null = model.y_embedder.y_embedding.expand(2, 1, -1, -1)
        given = {"cond": told["given"] * shown, "cond_mask": shown, "mask_index": index, "y_null": null}
        outputs["out.given"] = run(**given)
        outputs["out.given_held"] = run(**given, x_mask=told["generated"])
        outputs["out.none_given"] = run(cond=torch.zeros(SHAPE), cond_mask=torch.zeros(SHAPE), mask_index=[])
        names += ["given", "frames"]
    half: dict[str, Any] = {name: x.bfloat16() for name, x in about.items()}
    half |= {"height": torch.full((2,), UNEVEN[0]).bfloat16(), "width": torch.full((2,), UNEVEN[1]).bfloat16()}
    half |= {"ar": torch.full((2,), UNEVEN[0] / UNEVEN[1]).bfloat16()} if version == "1.1" else {}
    outputs["out.bf16"] = model.bfloat16()(told["z"], told["time"], y, mask, **half)
    return {name: told[name] for name in names} | outputs


def main() -> None:
    HERE.mkdir(parents=True, exist_ok=True)
    for version, commit in VERSIONS.items():
        with TemporaryDirectory() as folder:
            archive = ["git", "-C", sys.argv[1], "archive", commit, "opensora"]
            packed = subprocess.run(archive, check=True, capture_output=True).stdout
            with tarfile.open(fileobj=io.BytesIO(packed)) as files:
                files.extractall(folder, filter="data")
            surround(Path(folder))
            tensors = record(version)
        note = {"upstream": f"hpcaitech/Open-Sora@{commit}", "script": "tools/record_stdit.py"}
        save_file({k: x.contiguous() for k, x in tensors.items()}, HERE / f"stdit-{version}.safetensors", metadata=note)


if __name__ == "__main__":
    with torch.no_grad():
        main()
