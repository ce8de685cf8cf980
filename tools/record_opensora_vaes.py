"""Record tensors of the codecs of Open-Sora 1.2 and 1.3: python tools/record_opensora_vaes.py UPSTREAM_1_2 UPSTREAM_1_3

Each is a checkout of github.com/hpcaitech/Open-Sora, at the commits in `COMMITS`, whose codecs run aside, on a CPU; of
what they import, only packages that this recording does not use are replaced. Needs the test extra (diffusers). The
tensors go to tests/families/opensora/recorded; weights and inputs are drawn by `record_opensora` and not kept.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from record_opensora import HERE, normal, package, weights
from safetensors.torch import save_file
from torch import Tensor, nn

COMMITS = {"1.2": "bde3c42", "1.3": "2ca632a"}
IMAGE = {"block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 3}
TEMPORAL = {"filters": 32, "num_res_blocks": 1, "channel_multipliers": (1, 2, 1, 3)}
NORMALISED = {"shift": (-0.3, 0.4, 0.9), "scale": (3.5, 2.25, 0.75)}
V13 = {"ch": 32, "ch_mult": (1, 2, 1, 3), "num_res_blocks": 1, "z_channels": 3, "in_channels": 3, "out_ch": 3}
"""Nothing here is a power of two times anything published."""
SIZES_12 = {1: (12, 20), 17: (12, 8), 18: (4, 6), 33: (8, 6), 51: (6, 8)}
"""Frames, (rows, columns) of the pixels; two to a side of a latent cell."""
SIZES_13 = {1: (24, 40), 17: (16, 24), 33: (8, 24), 51: (16, 8)}
"""Eight to a side of a latent cell."""


class Registry:
    """Stands in for mmengine's: classes by name."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def register_module(self, name: str | None = None) -> Callable[[Any], Any]:
        def keep(thing: Any) -> Any:
            self.known[name or thing.__name__] = thing
            return thing

        return keep


def built(settings: dict[str, Any], registry: Registry) -> Any:
    settings = dict(settings)
    return registry.known[settings.pop("type")](**settings)


def surround(upstream: Path) -> None:
    """Let upstream's modules be imported one by one, in place of those of another version."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "opensora"]:
        del sys.modules[name]
    for folder in ("", "models", "models/vae", "models/vae_v1_3", "models/layers", "utils"):
        package(".".join(["opensora", *Path(folder).parts]), upstream / "opensora" / folder)
    package("opensora.registry", MODELS=Registry(), build_module=built)
    package("opensora.utils.ckpt_utils", load_checkpoint=None)


def model_12() -> nn.Module:
    from diffusers import AutoencoderKL
    from opensora.models.vae import vae  # type: ignore[import-not-found]

    levels, latent = len(IMAGE["block_out_channels"]), IMAGE["latent_channels"]
    image = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, **IMAGE
    )
    sizes = dict.fromkeys(("in_out_channels", "latent_embed_dim", "embed_dim"), latent)
    importlib.import_module("opensora.models.vae.vae_temporal")  # registers itself
    config = vae.VideoAutoencoderPipelineConfig(
        vae_2d={"type": "VideoAutoencoderKL"},
        vae_temporal={"type": "VAE_Temporal", "temporal_downsample": (False, True, True), **sizes, **TEMPORAL},
        micro_frame_size=17,
        **NORMALISED,
    )
    with patch.object(AutoencoderKL, "from_pretrained", lambda *_, **__: image):
        model = vae.VideoAutoencoderPipeline(config).eval()
    weights(model, seed=21)
    return model


def model_13() -> nn.Module:
    from opensora.models.vae_v1_3 import constants, vae  # type: ignore[import-not-found]

    for part in ("encoder", "decoder"):
        importlib.import_module(f"opensora.models.vae_v1_3.{part}")  # registers itself
    config = vae.OpenSoraVAE_V1_3_PiplineConfig(
        encoder={"type": "VideoEncoder", "double_z": True, "down_sampling_layer": [1, 2], **V13},
        decoder={"type": "VideoDecoder", "temporal_up_layers": [2, 3], **V13},
    )
    model = vae.OpenSoraVAE_V1_3_Pipline(
        config, micro_batch_size=1, micro_frame_size=17, temporal_overlap=True, normalization="video"
    ).eval()
    shift, scale = (torch.tensor(NORMALISED[name]) for name in ("shift", "scale"))
    constants.VAE_STAT_DICT["video"] = {"mean": shift, "std": scale}
    weights(model, seed=22)
    return model


class Draws:
    """Stands in for `torch.randn`: NumPy's frozen generator, draw after draw."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.RandomState(seed)

    def __call__(self, shape: Any, *_: Any, **__: Any) -> Tensor:
        return torch.from_numpy(self.draw.standard_normal(tuple(shape))).float()


def drawing(draws: Callable[..., Tensor]) -> Any:
    return patch.multiple("torch", randn=draws), patch("diffusers.models.autoencoders.vae.randn_tensor", draws)


def encoded(model: nn.Module, video: Tensor, draws: Callable[..., Tensor]) -> Tensor:
    """Latents, with the noise of both posteriors from ``draws``."""
    first, second = drawing(draws)
    with first, second:
        return model.encode(video)


def record(model: nn.Module, sizes: dict[int, tuple[int, int]], side: int, *, counted: bool) -> dict[str, Tensor]:
    """Latents of clips, pixels of latents (as many as such clips have), and latents sampled from the posteriors."""
    found = {}
    for frames, (height, width) in sizes.items():
        video = normal(50 + frames, 2, 3, frames, height, width)
        found[f"latents.{frames}"] = z = encoded(model, video, lambda shape, *_, **__: torch.zeros(tuple(shape)))
        noise = normal(100 + frames, 1, z.shape[1], z.shape[2], height // side, width // side)
        found[f"decoded.{frames}"] = model.decode(noise, num_frames=frames) if counted else model.decode(noise)
    found["sampled.33"] = encoded(model, normal(83, 2, 3, 33, *sizes[33]), Draws(7))
    return found


def layout(model: nn.Module) -> dict[str, str]:
    """Of a whole model: its numbers of tensors and parameters, and hashes of names with shapes, and of norms."""
    state = {name: list(tensor.shape) for name, tensor in sorted(model.state_dict().items())}
    norms = {name: [m.num_groups, m.eps] for name, m in sorted(model.named_modules()) if isinstance(m, nn.GroupNorm)}
    layout, epsilons = (hashlib.sha256(json.dumps(each).encode()).hexdigest() for each in (state, norms))
    parameters = sum(p.numel() for p in model.parameters())
    return {"tensors": str(len(state)), "parameters": str(parameters), "layout": layout, "norms": epsilons}


def published_12() -> nn.Module:
    """The whole codec of 1.2 on the meta device; its image codec has SDXL's sizes."""
    from diffusers import AutoencoderKL
    from opensora.models.vae import vae  # type: ignore[import-not-found]

    levels = 4
    with torch.device("meta"):
        image = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
        with patch.object(AutoencoderKL, "from_pretrained", lambda *_, **__: image):
            return vae.OpenSoraVAE_V1_2()


def published_13() -> nn.Module:
    from opensora.models.vae_v1_3 import vae  # type: ignore[import-not-found]

    with torch.device("meta"):
        return vae.OpenSoraVAE_V1_3()


def main() -> None:
    upstream_12, upstream_13 = map(Path, sys.argv[1:])
    surround(upstream_12)
    recordings = {"1.2": record(model_12(), SIZES_12, 2, counted=True)}
    layouts = {"1.2": layout(published_12())}
    surround(upstream_13)
    from opensora.models.vae_v1_3.constants import VAE_STAT_DICT  # type: ignore[import-not-found]

    published = {name: values.clone() for name, values in VAE_STAT_DICT["video"].items()}
    recordings["1.3"] = {**record(model_13(), SIZES_13, 8, counted=False), **published}
    layouts["1.3"] = layout(published_13())
    for version, tensors in recordings.items():
        note = {
            "upstream": f"hpcaitech/Open-Sora@{COMMITS[version]}",
            "script": "tools/record_opensora_vaes.py",
            **layouts[version],
        }
        named = {key: x.contiguous() for key, x in tensors.items()}
        save_file(named, HERE / f"vae-{version}.safetensors", metadata=note)


if __name__ == "__main__":
    with torch.no_grad():
        main()
