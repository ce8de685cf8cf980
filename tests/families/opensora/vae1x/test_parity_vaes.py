"""Parity of the codecs with the original code of Open-Sora 1.2 (bde3c42) and 1.3 (2ca632a) on tiny random weights.

The reference is recorded by tools/record_opensora_vaes.py. Weights have a deviation of 0.15. The tolerance, 1e-5, is
relative to the largest value: float32 rounding through forty layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from kinema.families.opensora.vae12 import VideoVAE12
from kinema.families.opensora.vae13 import Sizes13, VideoVAE13

Recorded = Callable[[str], dict[str, Tensor]]
TOLERANCE = 1e-5
SIZES_12 = {1: (12, 20), 17: (12, 8), 18: (4, 6), 33: (8, 6), 51: (6, 8)}
SIZES_13 = {1: (24, 40), 17: (16, 24), 33: (8, 24), 51: (16, 8)}
"""Pixels (rows, columns) of the recorded clips by their frames."""
GRADIENTS = pytest.mark.parametrize("gradients", [False, True], ids=["inference", "gradients"])
"""Layers run over a few frames at a time only where no gradient is recorded."""


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


def relative(native: Tensor, foreign: Tensor) -> float:
    assert native.shape == foreign.shape
    return float((native.detach() - foreign).abs().max() / foreign.abs().max())


@contextmanager
def recording(gradients: bool) -> Iterator[None]:
    with torch.set_grad_enabled(gradients):
        yield


@GRADIENTS
@pytest.mark.parametrize("frames", SIZES_12)
def test_1_2_encodes_and_decodes_as_the_original(
    frames: int, gradients: bool, vae12: VideoVAE12, recorded: Recorded
) -> None:
    told, (height, width) = recorded("vae-1.2"), SIZES_12[frames]
    latents = told[f"latents.{frames}"]
    with recording(gradients):
        assert relative(vae12.encode(normal(50 + frames, 2, 3, frames, height, width)), latents) < TOLERANCE
        z = normal(100 + frames, 1, 3, latents.shape[2], height // 2, width // 2)
        assert relative(vae12.decode(z, frames), told[f"decoded.{frames}"]) < TOLERANCE


@GRADIENTS
@pytest.mark.parametrize("frames", SIZES_13)
def test_1_3_encodes_and_decodes_as_the_original(
    frames: int, gradients: bool, vae13: VideoVAE13, recorded: Recorded
) -> None:
    """51 frames are three whole windows and one of three frames, whose only latent frame adds none when decoded."""
    told, (height, width) = recorded("vae-1.3"), SIZES_13[frames]
    latents = told[f"latents.{frames}"]
    with recording(gradients):
        assert relative(vae13.encode(normal(50 + frames, 2, 3, frames, height, width)), latents) < TOLERANCE
        z = normal(100 + frames, 1, 3, latents.shape[2], height // 8, width // 8)
        assert relative(vae13.decode(z), told[f"decoded.{frames}"]) < TOLERANCE


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


def test_the_means_and_deviations_of_1_3_are_the_published_ones(recorded: Recorded) -> None:
    told = recorded("vae-1.3")
    assert torch.equal(torch.tensor(Sizes13().mean), told["mean"])
    assert torch.equal(torch.tensor(Sizes13().std), told["std"])
