"""Parity of the codecs with the original code of Open-Sora 1.2 (bde3c42) and 1.3 (2ca632a) on tiny random weights.

The reference is recorded by tools/record_opensora_vaes.py. Weights have a deviation of 0.15. The tolerance, 1e-5, is
relative to the largest value: float32 rounding through forty layers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from kinema.families.opensora.vae1x.vae12 import VideoVAE12
from kinema.families.opensora.vae1x.vae13 import Sizes13, VideoVAE13
from kinema.families.opensora.vae1x.zero_causal import posterior
from kinema.nn.meta import on_meta
from kinema.vae import by_frames, tiling

Recorded = Callable[[str], dict[str, Tensor]]
RECORDED = Path(__file__).parents[1] / "recorded"
TOLERANCE = 1e-5
SIZES_12 = {1: (12, 20), 17: (12, 8), 18: (4, 6), 33: (8, 6), 51: (6, 8)}
SIZES_13 = {1: (24, 40), 17: (16, 24), 33: (8, 24), 51: (16, 8)}
"""Pixels (rows, columns) of the recorded clips by their frames."""
WAYS = pytest.mark.parametrize("way", ["whole", "frame by frame", "with gradients"])
"""Without gradients, layers run over as many frames at a time as fit a bound; clips this small fit it whole."""


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


def relative(native: Tensor, foreign: Tensor) -> float:
    assert native.shape == foreign.shape
    return float((native.detach() - foreign).abs().max() / foreign.abs().max())


@contextmanager
def going(way: str) -> Iterator[None]:
    few = 1 if way == "frame by frame" else 2**30
    with patch.object(by_frames, "PART", few), patch.object(tiling, "MAX_ELEMENTS", few):
        with torch.set_grad_enabled(way == "with gradients"):
            yield


@WAYS
@pytest.mark.parametrize("frames", SIZES_12)
def test_1_2_encodes_and_decodes_as_the_original(frames: int, way: str, vae12: VideoVAE12, recorded: Recorded) -> None:
    told, (height, width) = recorded("vae-1.2"), SIZES_12[frames]
    latents = told[f"latents.{frames}"]
    with going(way):
        assert relative(vae12.encode(normal(50 + frames, 2, 3, frames, height, width)), latents) < TOLERANCE
        z = normal(100 + frames, 1, 3, latents.shape[2], height // 2, width // 2)
        assert relative(vae12.decode(z, frames), told[f"decoded.{frames}"]) < TOLERANCE


@WAYS
@pytest.mark.parametrize("frames", SIZES_13)
def test_1_3_encodes_and_decodes_as_the_original(frames: int, way: str, vae13: VideoVAE13, recorded: Recorded) -> None:
    """51 frames are three whole windows and one of three frames, whose only latent frame adds none when decoded."""
    told, (height, width) = recorded("vae-1.3"), SIZES_13[frames]
    latents = told[f"latents.{frames}"]
    with going(way):
        assert relative(vae13.encode(normal(50 + frames, 2, 3, frames, height, width)), latents) < TOLERANCE
        z = normal(100 + frames, 1, 3, latents.shape[2], height // 8, width // 8)
        assert relative(vae13.decode(z), told[f"decoded.{frames}"]) < TOLERANCE


@pytest.mark.parametrize(("version", "build"), [("1.2", VideoVAE12), ("1.3", VideoVAE13)])
def test_names_shapes_and_norms_are_those_of_the_published_sizes(version: str, build: Callable[[], nn.Module]) -> None:
    """517 tensors and 393,341,007 parameters, 256 and 259,163,811: counted in the original code, which is hashed."""
    with on_meta():
        model = build()
    state = {name: list(tensor.shape) for name, tensor in sorted(model.state_dict().items())}
    with safe_open(RECORDED / f"vae-{version}.safetensors", "pt") as file:
        told = file.metadata()
    assert len(state) == int(told["tensors"]) == {"1.2": 517, "1.3": 256}[version]
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == int(told["parameters"]) == {"1.2": 393_341_007, "1.3": 259_163_811}[version]
    assert hashlib.sha256(json.dumps(state).encode()).hexdigest() == told["layout"]
    norms = {name: [m.num_groups, m.eps] for name, m in sorted(model.named_modules()) if isinstance(m, nn.GroupNorm)}
    assert hashlib.sha256(json.dumps(norms).encode()).hexdigest() == told["norms"]


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_sampled_latents_are_those_of_the_original_for_the_same_noise(
    version: str, vae12: VideoVAE12, vae13: VideoVAE13, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.2 draws for the image latents first, then for each run of frames."""
    draw, told = np.random.RandomState(7), recorded(f"vae-{version}")
    vae, size = (vae12, SIZES_12[33]) if version == "1.2" else (vae13, SIZES_13[33])
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.from_numpy(draw.standard_normal(tuple(shape))).float())
    with torch.no_grad():
        sampled = vae.encode(normal(83, 2, 3, 33, *size), torch.Generator())
    assert relative(sampled, told["sampled.33"]) < TOLERANCE
    assert relative(sampled, told["latents.33"]) > 0.1


def test_the_spread_of_samples_is_bounded() -> None:
    """Log-variances are held within -30 and 20, as in the original code."""
    generator = torch.Generator()
    for log_variance, spread in ((-50.0, -30.0), (-29.0, -29.0), (19.0, 19.0), (50.0, 20.0)):
        noise = torch.randn(1, 1, 2, 2, 2, generator=generator.manual_seed(0))
        moments = torch.cat([torch.zeros_like(noise), torch.full_like(noise, log_variance)], dim=1)
        sampled = posterior(moments, generator.manual_seed(0))
        assert torch.allclose(sampled, math.exp(spread / 2) * noise, rtol=1e-5, atol=0)


def test_the_means_and_deviations_of_1_3_are_the_published_ones(recorded: Recorded) -> None:
    told = recorded("vae-1.3")
    assert torch.equal(torch.tensor(Sizes13().mean), told["mean"])
    assert torch.equal(torch.tensor(Sizes13().std), told["std"])
