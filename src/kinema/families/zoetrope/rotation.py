"""Estimate an object's rotation in every frame by matching its surroundings against an upright template.

A layer that takes the view itself would have to learn every glyph at every angle. In polar coordinates a rotation is a
shift: the template is correlated around the circle, as in polar image registration (Reddy & Chatterji 1996), and the
scores of all shifts are the logits of the angle. A star matches at five angles; of all paths through the frames the one
with the best score and the least rotation is chosen (Viterbi 1967), then refined between steps of the circle.

Letters: B clips, C channels, T frames, R radii, A steps of the circle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kinema.families.zoetrope.warp import Pose, sample_frames

STEPS = 48
RADII = (0.25, 0.45, 0.65, 0.85, 1.0, 1.15)
CHANNELS = 4
"""The object's colour relative to its mean, and its coverage."""
_FIRST, _NEXT = math.radians(35), math.radians(30)
"""Standard deviations of the first frame's angle, and of the change of angle between frames."""
_HALF_WINDOW = 2
"""Steps on either side of the best one over which the angle is averaged."""


def sample_polar(clip_BCTHW: Tensor, cover_B1THW: Tensor, upright: Pose) -> Tensor:
    """Sample the frames in polar coordinates around the object's centre, B×T×C×R×A."""
    weight = cover_B1THW / cover_B1THW.sum((2, 3, 4), keepdim=True).clamp(min=1e-3)
    mean_BC111 = (clip_BCTHW * weight).sum((2, 3, 4), keepdim=True)
    polar = torch.cat([(clip_BCTHW - mean_BC111) * cover_B1THW, cover_B1THW - 0.5], 1)
    angle = torch.arange(STEPS, dtype=polar.dtype, device=polar.device) * (2 * math.pi / STEPS)
    radius = torch.tensor(RADII, dtype=polar.dtype, device=polar.device)[:, None]
    return sample_frames(polar, torch.stack([radius * angle.cos(), radius * angle.sin()], -1), upright).transpose(1, 2)


def correlate(polar_BTCRA: Tensor, template_BCRA: Tensor) -> Tensor:
    """Correlate the template with the polar samples around the circle: scores of every angle, B×T×A."""
    product = torch.fft.rfft(polar_BTCRA) * torch.fft.rfft(template_BCRA)[:, None].conj()
    return torch.fft.irfft(product.sum((2, 3)), n=polar_BTCRA.shape[-1])


def decode_angles(logits_BTA: Tensor) -> Tensor:
    """Decode the angle of every frame in radians, B×T, continuous over time."""
    steps = logits_BTA.shape[-1]
    best_BT = viterbi_path(logits_BTA.detach())
    offset = torch.arange(-_HALF_WINDOW, _HALF_WINDOW + 1, device=logits_BTA.device)
    window_BTK = logits_BTA.gather(-1, (best_BT[..., None] + offset) % steps)
    fraction_BT = (window_BTK.softmax(-1) * offset).sum(-1)
    change_BT = (best_BT.diff(dim=1, prepend=best_BT.new_zeros(len(best_BT), 1)) + steps // 2) % steps - steps // 2
    return (change_BT.cumsum(1) + fraction_BT) * (2 * math.pi / steps)


def viterbi_path(logits_BTA: Tensor) -> Tensor:
    """Return the most likely sequence of steps of the circle, B×T, under a prior of slow rotation."""
    frames, steps = logits_BTA.shape[1:]
    distance = torch.arange(steps, device=logits_BTA.device)
    distance = torch.minimum(distance, steps - distance) * (2 * math.pi / steps)
    first_log_prior_A, log_prior = -0.5 * (distance / _FIRST).square(), -0.5 * (distance / _NEXT).square()
    index = torch.arange(steps, device=logits_BTA.device)
    log_prior_AA = log_prior[(index[:, None] - index) % steps]  # to, from
    score_BTA = logits_BTA.log_softmax(-1)
    total_BA, origins = score_BTA[:, 0] + first_log_prior_A, []
    for t in range(1, frames):
        best = (total_BA[:, None] + log_prior_AA).max(-1)
        origins.append(best.indices)
        total_BA = best.values + score_BTA[:, t]
    steps_taken = [total_BA.argmax(-1)]
    for origin_BA in reversed(origins):
        steps_taken.append(origin_BA.gather(1, steps_taken[-1][:, None])[:, 0])
    return torch.stack(steps_taken[::-1], 1)


def rotation_loss(logits_BTA: Tensor, angle_BT: Tensor, symmetry_B: Tensor, angle_weight: float) -> Tensor:
    """Cross-entropy of the angle, B×T; every angle at which the outline maps onto itself (``symmetry``) is correct.

    The exact angle adds a term of weight ``angle_weight``, because marks rotate too; for a fully symmetric outline
    (symmetry 0) it is the only term.
    """
    steps = logits_BTA.shape[-1]
    distance = torch.arange(steps, device=logits_BTA.device, dtype=angle_BT.dtype) * (2 * math.pi / steps)
    offset_BTA = distance - angle_BT[..., None]

    def targets(fold: Tensor) -> Tensor:  # an angle between two steps splits its weight between them
        wrapped = torch.remainder(offset_BTA * fold + math.pi, 2 * math.pi) - math.pi
        weight = (1 - wrapped.abs() / fold * (steps / (2 * math.pi))).clamp(min=0)
        return weight / weight.sum(-1, keepdim=True)

    log_BTA = logits_BTA.log_softmax(-1)
    outline = -(targets(symmetry_B.clamp(min=1)[:, None, None]) * log_BTA).sum(-1)
    exact = -(targets(torch.ones_like(symmetry_B)[:, None, None]) * log_BTA).sum(-1)
    return outline * (symmetry_B > 0)[:, None] + angle_weight * exact
