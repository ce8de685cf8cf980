"""Video metrics that need no weights, and distribution distances over any feature extractor.

B batch, C channels, T frames, H height, W width, N clips, D features. Videos are B×3×T×H×W float in
[-1, 1]; a clip metric returns one float64 value per clip, [B].

What to trust (tested on ten real and generated clips, each against corrupted versions of itself): flickering and warp
error *reward* blur, compression and frozen frames, and warp error misses camera jitter. So jerk, high-frequency ratio,
interpolation residual and luma second difference are reported together, always with dynamic degree and sharpness, and
compared only on paired content: unpaired, they partly measure the content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kinema.media.flow import Flows
from kinema.schema import BadRequest

FLOW_SIDE = 256
"""Shorter side for optical flow, so that values are comparable across sizes."""
_LUMA = (0.2126, 0.7152, 0.0722)  # BT.709
_OCCLUDED = (0.01, 0.5)
_STILL_POWER = 1e-18
"""More than rounding leaves of a still clip once its mean is removed, about 1e-28."""

Extractor = Callable[[Tensor], Tensor]
"""Maps a video B×3×T×H×W in [-1, 1] to features B×D."""


# ------------------------------------------------------------------------------ temporal metrics


def flickering(video_BCTHW: Tensor) -> Tensor:
    """VBench temporal flickering: 1 − mean |I_t − I_t+1| / 255; 1 is a still clip. Higher is stiller, not better."""
    video = _frames(video_BCTHW, 2)
    return 1 - video.diff(dim=2).abs().mean((1, 2, 3, 4)) / 2


def jerk(video_BCTHW: Tensor) -> Tensor:
    """Mean |I_t+1 − 2 I_t + I_t−1| over mean |I_t+1 − I_t|: the unsteady share of the change; 0 for a still clip."""
    change = _frames(video_BCTHW, 3).diff(dim=2)
    first, second = change.abs().mean((1, 2, 3, 4)), change.diff(dim=2).abs().mean((1, 2, 3, 4))
    return torch.where(first > 0, second / first.clamp_min(1e-12), 0.0)


def high_frequency_ratio(video_BCTHW: Tensor) -> Tensor:
    """Share of temporal power above half the Nyquist frequency, in [0, 1]: 64×64 grey, Hann window, no DC."""
    grey = luma(_frames(video_BCTHW, 4))
    small = functional.interpolate(grey, (64, 64), mode="bilinear", antialias=True)
    frames = small.shape[1]
    # If the mean were not removed first, the window would leak DC into the lowest bin.
    windowed = (small - small.mean(1, keepdim=True)) * torch.hann_window(frames, periodic=False).double()[:, None, None]
    power = torch.fft.rfft(windowed, dim=1).abs().square().sum((2, 3))
    high = torch.fft.rfftfreq(frames) > 0.25
    total = power[:, 1:].sum(1)
    return torch.where(total > _STILL_POWER, power[:, high].sum(1) / total.clamp_min(_STILL_POWER), 0.0)


def luma_second_difference(video_BCTHW: Tensor) -> Tensor:
    """Mean |second difference of the mean luma|, luma in [0, 1]: brightness pumping."""
    brightness = luma(_frames(video_BCTHW, 3)).mean((2, 3))
    return brightness.diff(n=2, dim=1).abs().mean(1)


def sharpness(video_BCTHW: Tensor) -> Tensor:
    """Variance of the Laplacian of the luma in grey levels (0 to 255), mean over frames; drops with blur."""
    grey = luma(_frames(video_BCTHW, 1)) * 255
    kernel = grey.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    edges = functional.conv2d(grey.flatten(0, 1)[:, None], kernel)
    return edges.var(dim=(1, 2, 3), correction=0).unflatten(0, grey.shape[:2]).mean(1)


def luma(video_BCTHW: Tensor) -> Tensor:
    """BT.709 luma of a video in [-1, 1] as B×T×H×W in [0, 1]."""
    weights = video_BCTHW.new_tensor(_LUMA)
    return (torch.einsum("bcthw,c->bthw", video_BCTHW, weights) + 1) / 2


# -------------------------------------------------------------------------- optical-flow metrics


def warp_error(video_BCTHW: Tensor) -> Tensor:
    """Mean |I_t − I_t+1 warped back along the flow| in [0, 1], without occlusions (Lai et al. 2018)."""
    return _each(video_BCTHW, 2, [_warp_error])[0]


def interpolation_residual(video_BCTHW: Tensor) -> Tensor:
    """Mean |I_t − flow midpoint of I_t−1 and I_t+1| in [0, 1]: change that steady motion does not explain."""
    return _each(video_BCTHW, 3, [_interpolation_residual])[0]


def dynamic_degree(video_BCTHW: Tensor, fps: float = 8.0) -> Tensor:
    """Mean flow of the fastest 5 % of pixels between frames 1/8 s apart, in pixels at a shorter side of 256.

    VBench counts a clip as dynamic from 6 on. Flow between adjacent frames is scaled to 1/8 s by ``fps``.
    """
    return _each(video_BCTHW, 2, [_fastest])[0] * fps / 8.0


def _warp_error(flows: Flows) -> float:
    errors = []
    scale, floor = _OCCLUDED
    for t in range(len(flows.grey_THW) - 1):
        forward = flows.between(t, t + 1)
        back = flows.sample(flows.between(t + 1, t), forward)
        inconsistency = np.square(forward + back).sum(-1)
        visible = inconsistency <= scale * (np.square(forward).sum(-1) + np.square(back).sum(-1)) + floor
        if visible.any():
            change = flows.grey_THW[t].astype(np.float32) - flows.sample(flows.grey_THW[t + 1], forward)
            errors.append(np.abs(change)[visible].mean() / 255)
    return float(np.mean(errors)) if errors else float("nan")


def _interpolation_residual(flows: Flows) -> float:
    errors = []
    for t in range(1, len(flows.grey_THW) - 1):
        # With steady motion the flow at the midpoint equals that at the start, so half of it leads back to either end.
        before = flows.sample(flows.grey_THW[t - 1], -flows.between(t - 1, t + 1) / 2)
        after = flows.sample(flows.grey_THW[t + 1], -flows.between(t + 1, t - 1) / 2)
        errors.append(np.abs(flows.grey_THW[t] - (before + after) / 2).mean() / 255)
    return float(np.mean(errors))


def _fastest(flows: Flows) -> float:
    means = []
    for t in range(len(flows.grey_THW) - 1):
        speed = np.sort(np.linalg.norm(flows.between(t, t + 1), axis=-1), axis=None)
        means.append(speed[-max(1, len(speed) // 20) :].mean())
    return float(np.mean(means))


def _each(video_BCTHW: Tensor, least: int, measures: Sequence[Callable[[Flows], float]]) -> list[Tensor]:
    """Flow metrics of every clip, [B] each, on grey frames whose shorter side is `FLOW_SIDE`."""
    grey_BTHW = luma(_frames(video_BCTHW, least).float())
    scale = FLOW_SIDE / min(grey_BTHW.shape[-2:])
    size = [max(1, round(side * scale)) for side in grey_BTHW.shape[-2:]]
    sized = functional.interpolate(grey_BTHW, size, mode="bicubic", antialias=True)
    levels = sized.mul(255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    # One clip at a time: the flows of a clip take far more memory than its frames.
    found = [[measure(flows) for measure in measures] for flows in map(Flows, levels)]
    return list(torch.tensor(found, dtype=torch.float64).unbind(1))


# ------------------------------------------------------------------------------ paired metrics


def psnr(generated_BCTHW: Tensor, real_BCTHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB over each clip (peak to peak 2, for [-1, 1]); infinite if identical."""
    _check_same_shape(generated_BCTHW, real_BCTHW)
    error = (generated_BCTHW.double() - real_BCTHW.double()).square().mean((1, 2, 3, 4))
    return 10 * torch.log10(4 / error)


def ssim(generated_BCTHW: Tensor, real_BCTHW: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) in [-1, 1]: 11×11 Gaussian with σ 1.5, per channel, unpadded."""
    _check_same_shape(generated_BCTHW, real_BCTHW)
    if min(generated_BCTHW.shape[-2:]) < 11:
        raise BadRequest(f"the frames are {_shape(generated_BCTHW.shape[-2:])}; SSIM requires at least 11×11")
    # The luminance term depends on the black level, so SSIM is computed on [0, 1].
    x, y = (((v.double() + 1) / 2).transpose(1, 2).flatten(0, 2)[:, None] for v in (generated_BCTHW, real_BCTHW))
    taps = torch.exp(-((torch.arange(11, dtype=x.dtype, device=x.device) - 5) ** 2) / (2 * 1.5**2))
    taps = taps / taps.sum()

    def mean(v: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(v, taps.view(1, 1, 11, 1)), taps.view(1, 1, 1, 11))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return index.mean((1, 2, 3)).unflatten(0, (generated_BCTHW.shape[0], -1)).mean(1)


# ------------------------------------------------------------------------------- distributions


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a score was computed; scores are comparable only if all of this matches.

    ``resize`` is a description ("shorter side 224 bilinear, centre crop"); ``count`` generated clips against
    ``reference_count`` real ones; ``weights`` is the hash of the extractor's weights.
    """

    extractor: str
    weights: str
    decoder: str
    resize: str
    frames: int
    fps: float
    seed: int
    count: int = 0
    reference_count: int = 0


@dataclass(frozen=True)
class Score:
    """A value with the protocol needed to interpret it; its text always states the sample size."""

    name: str
    value: float
    protocol: Protocol

    def __str__(self) -> str:
        p = self.protocol
        size = f"N = {p.count} against {p.reference_count}"
        return f"{self.name} {self.value:.4g} ({size}; {p.extractor}, {p.frames} frames at {p.fps:g} fps, {p.resize})"

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"name": self.name, "value": self.value, "protocol": asdict(self.protocol)}


def distribution_scores(
    generated: Iterable[Tensor], real: Iterable[Tensor], extract: Extractor, protocol: Protocol
) -> tuple[Score, Score]:
    """(FVD, KVD) of generated against real clips, given as batches B×3×T×H×W, with one extractor.

    Both are returned because the Fréchet distance of equal distributions is far from 0 at small N (92 at N = 256 and 17
    at 2048 in 400 dimensions, where a visible shift adds 19), unlike the kernel distance.
    """
    generated_ND, real_ND = features(generated, extract, protocol), features(real, extract, protocol)
    measured = replace(protocol, count=len(generated_ND), reference_count=len(real_ND))
    return (
        Score("FVD", frechet_distance(generated_ND, real_ND), measured),
        Score("KVD", kernel_distance(generated_ND, real_ND), measured),
    )


def features(batches: Iterable[Tensor], extract: Extractor, protocol: Protocol) -> Tensor:
    """Features N×D (float64, on the CPU) of clips with the protocol's number of frames."""

    def checked() -> Iterator[Tensor]:
        for video_BCTHW in batches:
            frames = _frames(video_BCTHW, 1).shape[2]
            if frames != protocol.frames:
                raise BadRequest(f"a clip has {frames} frames; the protocol requires {protocol.frames}")
            with torch.no_grad():
                yield extract(video_BCTHW).detach().double().cpu().flatten(1)

    found = list(checked())
    if not found:
        raise BadRequest("no clips to extract features from")
    return torch.cat(found)


def frechet_distance(a_ND: Tensor, b_ND: Tensor) -> float:
    """Fréchet distance of Gaussians fitted to features: |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½).

    Covariances use N − 1. With Σ₁ = R₁ᵀR₁ and Σ₂ = R₂ᵀR₂, the trace of the matrix root is the sum of the singular
    values of R₁R₂ᵀ. Finding these never fails, while eigenvalues of Σ₁Σ₂ may not converge if covariances are singular:
    with fewer clips than features, or features that depend on each other.
    """
    a, b = _features(a_ND, b_ND)
    first, second = (torch.linalg.qr(x - x.mean(0), mode="r").R / (len(x) - 1) ** 0.5 for x in (a, b))
    roots = torch.linalg.svdvals(first @ second.T).sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return float(means + first.square().sum() + second.square().sum() - 2 * roots)


def kernel_distance(a_ND: Tensor, b_ND: Tensor) -> float:
    """Unbiased squared MMD with the cubic kernel (x·y / D + 1)³: expectation 0 for equal distributions at any N."""
    a, b = _features(a_ND, b_ND)
    within = sum(_off_diagonal_mean(_cubic(x, x)) for x in (a, b))
    return float(within - 2 * _cubic(a, b).mean())


def _cubic(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    return (a_ND @ b_ND.T / a_ND.shape[1] + 1) ** 3


def _off_diagonal_mean(kernel_NN: Tensor) -> Tensor:
    n = len(kernel_NN)
    return (kernel_NN.sum() - kernel_NN.trace()) / (n * (n - 1))


# --------------------------------------------------------------------------------------- checks


def _frames(video_BCTHW: Tensor, least: int) -> Tensor:
    if video_BCTHW.ndim != 5 or video_BCTHW.shape[1] != 3:
        raise BadRequest(f"the clip has shape {_shape(video_BCTHW.shape)}; expected B×3×T×H×W")
    if video_BCTHW.shape[2] < least:
        raise BadRequest(f"the clip has {video_BCTHW.shape[2]} frames; this metric requires at least {least}")
    return video_BCTHW.detach().double()


def _check_same_shape(a: Tensor, b: Tensor) -> None:
    _frames(a, 1)
    if a.shape != b.shape:
        raise BadRequest(f"the clips have shapes {_shape(a.shape)} and {_shape(b.shape)}; expected equal shapes")


def _features(a_ND: Tensor, b_ND: Tensor) -> tuple[Tensor, Tensor]:
    if a_ND.ndim != 2 or b_ND.ndim != 2 or a_ND.shape[1] != b_ND.shape[1] or min(len(a_ND), len(b_ND)) < 2:
        raise BadRequest(
            f"the features have shapes {_shape(a_ND.shape)} and {_shape(b_ND.shape)}; expected N×D with equal D and "
            "N of at least 2"
        )
    return a_ND.double(), b_ND.double()


def _shape(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))
