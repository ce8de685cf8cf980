"""Record tensors of Open-Sora 2.0's own code, for the parity tests: python tools/record_opensora.py UPSTREAM

UPSTREAM is a checkout of github.com/hpcaitech/Open-Sora at `COMMIT`, which runs aside, on a CPU: the packages that it
imports and that only make it faster on GPUs are replaced by plain PyTorch. Needs omegaconf besides the test extra.
The tensors go to tests/families/opensora/recorded; weights are drawn by `weights` and not kept.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

COMMIT = "7ad6a96"
HERE = Path(__file__).resolve().parents[1] / "tests" / "families" / "opensora" / "recorded"
MMDIT = {
    "hidden_size": 48,
    "num_heads": 3,
    "axes_dim": [4, 6, 6],
    "mlp_ratio": 3.0,
    "depth": 2,
    "depth_single_blocks": 3,
    "in_channels": 20,
    "context_in_dim": 24,
    "vec_in_dim": 12,
}
"""Five latent channels, 2×2 patches; nothing here is a power of two times anything published."""
DC_AE = {"width_list": [32, 32, 64, 64, 128, 128], "encoder": [1, 1, 1, 1, 1, 2], "decoder": [1, 1, 1, 1, 2, 1]}
SHAPE = (2, 5, 9, 6, 8)
"""Latents of the denoising runs; nine frames, so that v2v conditioning fits."""


def weights(model: nn.Module, seed: int, std: float = 0.15) -> None:
    """Fill a model, in the order of its parameters' names, from NumPy's frozen generator."""
    draw = np.random.RandomState(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.from_numpy(draw.standard_normal(tuple(parameter.shape)) * std))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


# ----------------------------------------------------------------------------- upstream's surroundings


def package(name: str, path: Path | None = None, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__path__ = [] if path is None else [str(path)]
    module.__dict__.update(members)
    sys.modules[name] = module
    return module


class _Registry:
    def register_module(self, *_: Any, **__: Any) -> Callable[[Any], Any]:
        return lambda thing: thing


class _Norm:
    """Liger's RMSNorm in its "llama" mode: the mean in float32, the product in the weights' precision."""

    @staticmethod
    def apply(x: Tensor, weight: Tensor, eps: float, *_: Any) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


class _Rope:
    """Liger's rotary embedding: features i and i + D/2 turn together, and keep their precision."""

    @staticmethod
    def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        def turned(x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            return (x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]).to(x.dtype)

        return turned(q), turned(k)


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def _uncompiled(*args: Any, **_: Any) -> Any:
    return args[0] if args and callable(args[0]) else lambda function: function


def surround(upstream: Path) -> None:
    """Let upstream's modules be imported one by one, without what they need only on GPUs."""
    torch.compile = _uncompiled  # type: ignore[assignment]
    root = upstream / "opensora"
    folders = ("", "models", "models/mmdit", "models/vae", "models/dc_ae", "models/dc_ae/models", "utils", "datasets")
    for folder in (*folders, "models/dc_ae/models/nn", "models/text", "acceleration"):
        package(".".join(["opensora", *Path(folder).parts]), root / folder)
    package("opensora.registry", MODELS=_Registry(), build_module=None)
    package("opensora.acceleration.checkpoint", auto_grad_checkpoint=lambda module, *a, **k: module(*a, **k))
    package("opensora.utils.ckpt", load_checkpoint=None)
    package("opensora.utils.logger", log_message=print)
    package("opensora.utils.prompt_refine", refine_prompts=None)
    package("opensora.models.text.conditioner", HFEmbedder=nn.Module)
    package("opensora.datasets.utils", read_from_path=None, rescale_image_by_path=None)
    sys.modules["opensora.datasets"].__dict__["save_sample"] = None
    package("opensora.models.vae.utils", ChannelChunkConv3d=nn.Conv3d)
    package("mmengine")
    package("mmengine.config", Config=dict)
    package("liger_kernel")
    package("liger_kernel.ops")
    package("liger_kernel.ops.rms_norm", LigerRMSNormFunction=_Norm)
    package("liger_kernel.ops.rope", LigerRopeFunction=_Rope)
    package("flash_attn", flash_attn_func=_flash)
    if "peft" not in sys.modules:
        package("peft", PeftModel=None)


# ----------------------------------------------------------------------------------------- recording


def mmdit(*, fused: bool, half: bool, cond: bool, guided: bool = False) -> nn.Module:
    from opensora.models.mmdit.model import MMDiTConfig, MMDiTModel

    config = MMDiTConfig(
        from_pretrained="",
        cache_dir="",
        theta=10_000,
        qkv_bias=True,
        guidance_embed=guided,
        cond_embed=cond,
        fused_qkv=fused,
        use_liger_rope=half,
        **MMDIT,
    )
    model = MMDiTModel(config).eval()
    weights(model, seed=7)
    return model


def forward_inputs() -> dict[str, Tensor]:
    return {
        "z": normal(1, 2, 5, 3, 4, 6),
        "text": normal(2, 2, 11, 24),
        "pooled": normal(3, 2, 12),
        "time": torch.tensor([0.83, 0.31]),
        "mask": (normal(4, 2, 1, 3, 4, 6) > 0).float(),
        "given": normal(5, 2, 5, 3, 4, 6),
        "guidance": torch.tensor([3.5, 1.25]),
    }


def record_forward(model: nn.Module, inputs: dict[str, Tensor], *, cond: bool, guided: bool) -> Tensor:
    from opensora.utils.sampling import pack, prepare_ids, unpack

    z = inputs["z"]
    prepared = prepare_ids(z, inputs["text"], inputs["pooled"])
    img = prepared.pop("img")
    out = model(
        img=img,
        img_ids=prepared["img_ids"],
        txt=inputs["text"],
        txt_ids=prepared["txt_ids"],
        timesteps=inputs["time"],
        y_vec=inputs["pooled"],
        cond=pack(torch.cat([inputs["mask"], inputs["given"]], 1)) if cond else None,
        guidance=inputs["guidance"] if guided else None,
    )
    height, width = z.shape[3] * 8, z.shape[4] * 8  # upstream counts pixels, 16 to a patch
    return unpack(out, height, width, z.shape[2])


KINDS = ("t2v", "i2v_head", "i2v_tail", "i2v_loop", "v2v_head", "v2v_tail")


def record_sampling(model: nn.Module) -> dict[str, Tensor]:
    """Upstream's three-branch sampler from one noise under each kind of conditioning; two clips, each with its own."""
    from opensora.utils.inference import prepare_inference_condition
    from opensora.utils.sampling import I2VDenoiser, get_schedule, pack, prepare_ids, unpack

    clips, _, frames, height, width = SHAPE
    frames_of = {"v2v_head": 9, "v2v_tail": 9}
    z = normal(11, *SHAPE[:2], frames if frames > 9 else 11, height, width)
    text, pooled = normal(12, clips, 7, 24), normal(13, clips, 12)
    negative, negative_pooled = normal(14, clips, 7, 24), normal(15, clips, 12)
    found = {"z": z, "text": text, "pooled": pooled, "negative": negative, "negative_pooled": negative_pooled}
    steps = 13
    timesteps = get_schedule(steps, height * width // 4, z.shape[2])
    found["timesteps"] = torch.tensor(timesteps, dtype=torch.float64)
    for kind in KINDS:
        count = frames_of.get(kind, 1)
        refs = [
            [normal(20 + i, 5, count, height, width), normal(30 + i, 5, count, height, width)] for i in range(clips)
        ]
        masks, given = prepare_inference_condition(z, kind, refs, causal=True)
        found[f"{kind}.mask"], found[f"{kind}.given"] = masks, given
        prepared = prepare_ids(
            z.repeat(3, 1, 1, 1, 1),
            torch.cat([text, negative, negative]),
            torch.cat([pooled, negative_pooled, negative_pooled]),
        )
        for name, flags in {"plain": (False, False, False), "all": (True, True, True)}.items():
            x = I2VDenoiser().denoise(
                model,
                **prepared,
                timesteps=timesteps,
                guidance=7.5,
                guidance_img=3.0,
                masks=masks,
                masked_ref=given,
                sigma_min=1e-5,
                text_osci=flags[0],
                image_osci=flags[1],
                scale_temporal_osci=flags[2] and "i2v" in kind,
                patch_size=2,
            )
            found[f"{kind}.{name}"] = unpack(x, height * 8, width * 8, z.shape[2])
    assert pack(z).shape[0] == clips
    return found


def record_dc_ae() -> dict[str, Tensor]:
    from opensora.models.dc_ae.models.dc_ae import DCAE, dc_ae_f32

    config = dc_ae_f32("dc-ae-f32t4c128", None)
    config.encoder.width_list = config.decoder.width_list = DC_AE["width_list"]
    config.encoder.depth_list, config.decoder.depth_list = DC_AE["encoder"], DC_AE["decoder"]
    config.latent_channels = config.encoder.latent_channels = config.decoder.latent_channels = 16
    model = DCAE(config).eval()
    model.decoder.disc_off_grad_ckpt = False
    weights(model, seed=9, std=0.1)
    found = {}
    for frames in (1, 8):
        found[f"latents.{frames}"] = model.encode(normal(40 + frames, 1, 3, frames, 32, 64))
        found[f"decoded.{frames}"] = model.decode(found[f"latents.{frames}"])
    return found


def main() -> None:
    surround(Path(sys.argv[1]))
    HERE.mkdir(parents=True, exist_ok=True)
    inputs = forward_inputs()
    outputs = {}
    for name, (fused, half, cond, guided) in {
        "unfused": (False, True, True, False),
        "fused": (True, True, True, False),
        "flux": (True, False, False, True),
    }.items():
        model = mmdit(fused=fused, half=half, cond=cond, guided=guided)
        outputs[f"out.{name}"] = record_forward(model, inputs, cond=cond, guided=guided)
    sampled = record_sampling(mmdit(fused=False, half=True, cond=True))
    recordings = {"mmdit": {**inputs, **outputs}, "sampling": sampled, "dc_ae": record_dc_ae()}
    for name, tensors in recordings.items():
        note = {"upstream": f"hpcaitech/Open-Sora@{COMMIT}", "script": "tools/record_opensora.py"}
        save_file({key: x.contiguous() for key, x in tensors.items()}, HERE / f"{name}.safetensors", metadata=note)


if __name__ == "__main__":
    with torch.no_grad():
        main()
