"""How an object is turned in every frame: what is seen around its middle, matched against its upright template.

A layer that is shown a view must learn every glyph at every turn. Here both lie in polar coordinates, where a turn is a
shift: the template is slid around the circle, as polar images are registered (Reddy & Chatterji 1996), and the scores
of all shifts are the logits of the turn. A star has five turns that fit alike; the path through all frames that scores
best and turns least is taken (Viterbi 1967), and between two steps of the circle the scores' mean.

Letters: B clips, C channels, T frames, R radii, A steps of the circle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kinema.families.zoetrope.warp import Pose, seen_at

STEPS = 48
RADII = (0.25, 0.45, 0.65, 0.85, 1.0, 1.15)
CHANNELS = 4
"""The object's colour as it differs from its mean, and its cover."""
_FIRST, _NEXT = math.radians(35), math.radians(30)
"""Deviations of the turn of the first frame from upright, and of a frame from the one before it."""
_ABOUT = 2
"""Steps on either side of the best one that the mean is taken over."""


def around(drawn_BCTHW: Tensor, shown_B1THW: Tensor, unturned: Pose) -> Tensor:
    """What is seen about the object's middle, B×T×C×R×A."""
    weight = shown_B1THW / shown_B1THW.sum((2, 3, 4), keepdim=True).clamp(min=1e-3)
    mean_BC111 = (drawn_BCTHW * weight).sum((2, 3, 4), keepdim=True)
    seen = torch.cat([(drawn_BCTHW - mean_BC111) * shown_B1THW, shown_B1THW - 0.5], 1)
    angle = torch.arange(STEPS, dtype=seen.dtype, device=seen.device) * (2 * math.pi / STEPS)
    radius = torch.tensor(RADII, dtype=seen.dtype, device=seen.device)[:, None]
    return seen_at(seen, torch.stack([radius * angle.cos(), radius * angle.sin()], -1), unturned).transpose(1, 2)


def matched(seen_BTCRA: Tensor, template_BCRA: Tensor) -> Tensor:
    """How well the template fits what is seen at every turn, B×T×A: a correlation around the circle."""
    fits = torch.fft.rfft(seen_BTCRA) * torch.fft.rfft(template_BCRA)[:, None].conj()
    return torch.fft.irfft(fits.sum((2, 3)), n=seen_BTCRA.shape[-1])


def told(logits_BTA: Tensor) -> Tensor:
    """The turn of every frame in radians, B×T, continuous over time."""
    steps = logits_BTA.shape[-1]
    best_BT = path(logits_BTA.detach())
    off = torch.arange(-_ABOUT, _ABOUT + 1, device=logits_BTA.device)
    near_BTK = logits_BTA.gather(-1, (best_BT[..., None] + off) % steps)
    between_BT = (near_BTK.softmax(-1) * off).sum(-1)
    change_BT = (best_BT.diff(dim=1, prepend=best_BT.new_zeros(len(best_BT), 1)) + steps // 2) % steps - steps // 2
    return (change_BT.cumsum(1) + between_BT) * (2 * math.pi / steps)


def path(logits_BTA: Tensor) -> Tensor:
    """The steps of the circle, B×T, that score best together: each frame's own score, and little turning."""
    frames, steps = logits_BTA.shape[1:]
    apart = torch.arange(steps, device=logits_BTA.device)
    apart = torch.minimum(apart, steps - apart) * (2 * math.pi / steps)
    first_A, turned = -0.5 * (apart / _FIRST).square(), -0.5 * (apart / _NEXT).square()
    index = torch.arange(steps, device=logits_BTA.device)
    turned_AA = turned[(index[:, None] - index) % steps]  # to, from
    score_BTA = logits_BTA.log_softmax(-1)
    total_BA, came = score_BTA[:, 0] + first_A, []
    for t in range(1, frames):
        best = (total_BA[:, None] + turned_AA).max(-1)
        came.append(best.indices)
        total_BA = best.values + score_BTA[:, t]
    steps_taken = [total_BA.argmax(-1)]
    for origin_BA in reversed(came):
        steps_taken.append(origin_BA.gather(1, steps_taken[-1][:, None])[:, 0])
    return torch.stack(steps_taken[::-1], 1)


def misturned(logits_BTA: Tensor, turn_BT: Tensor, turns_B: Tensor, whole: float) -> Tensor:
    """Cross-entropy of the turn, B×T: any of the ``turns`` at which an outline falls on itself is right.

    The turn itself is worth ``whole`` more, for marks turn too; for an outline without a turn of its own that is all.
    """
    steps = logits_BTA.shape[-1]
    apart = torch.arange(steps, device=logits_BTA.device, dtype=turn_BT.dtype) * (2 * math.pi / steps)
    off_BTA = apart - turn_BT[..., None]

    def near(count: Tensor) -> Tensor:  # between two steps of the circle both are right, by their share
        wrapped = torch.remainder(off_BTA * count + math.pi, 2 * math.pi) - math.pi
        hit = (1 - wrapped.abs() / count * (steps / (2 * math.pi))).clamp(min=0)
        return hit / hit.sum(-1, keepdim=True)

    log_BTA = logits_BTA.log_softmax(-1)
    outline = -(near(turns_B.clamp(min=1)[:, None, None]) * log_BTA).sum(-1)
    itself = -(near(torch.ones_like(turns_B)[:, None, None]) * log_BTA).sum(-1)
    return outline * (turns_B > 0)[:, None] + whole * itself
