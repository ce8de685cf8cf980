"""The diffusion processes of Open-Sora 1.0 to 1.3, in terms of `kinema.diffusion`.

1.0 and 1.1 are IDDPM: a thousand linear betas, the network predicts eps and the variance, sampled in a hundred respaced
steps (`SPACING`) with `samplers.iddpm`. 1.2 and 1.3 are rectified flows, shifted by the frame's area and the number of
frames, whose network predicts ``x0 - eps``. In all but 1.0 a frame may be held clean, and be released where its edit
ratio says; the network then gets which frames are generated, [B, T].

Letters: B clips, C latent channels, T H W latent frames, rows and columns. Original: opensora/schedulers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kinema.diffusion.guidance import Difference, Guidance, Scale
from kinema.diffusion.overwrite import KnownRegion
from kinema.diffusion.parameterise import EPS, Denoiser, Parameterisation, Scalings
from kinema.diffusion.schedules import DiscreteBetas, NoiseLevel, RectifiedFlow, Spacing
from kinema.families.opensora import process
from kinema.schema import BadRequest

BETAS = DiscreteBetas("linear", 1e-4, 0.02)
SPACING: Spacing = "respaced"
"""Timesteps 0, 10, 20, 30, 40, 50, 61, … 989, 999 for 100 steps."""
TIMESTEPS = 1000
"""The network of a flow is given its time in [0, 1000]."""
BASE_AREA = 512 * 512
FLAW_FIX = 0.7
"""How far 1.3 pulls the deviation of the guided velocity back to that of the prompt's."""

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``network(z_BCTHW, time_B, generated_BT) -> output``; generated is None where every frame is, else bool: False marks
the frames shown clean, at time 0."""


@dataclass(frozen=True)
class TowardsData(Parameterisation):
    """The network predicts ``x0 - eps``, the reverse of `parameterise.FLOW`."""

    def scalings(self, level: NoiseLevel) -> Scalings:
        total = level.alpha + level.sigma
        return 1 / total, level.sigma / total, 1 / total

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:  # noqa: ARG002
        return x0 - eps


TOWARDS_DATA = TowardsData()


# ------------------------------------------------------------------------------------ schedules


def flow_v1_2(height: int, width: int, frames: int) -> RectifiedFlow:
    """1.2's schedule for clips of ``frames`` pixel frames, of which 17 become 5 latent ones; an image counts as one."""
    return RectifiedFlow(_shift(height, width, 1 if frames == 1 else frames // 17 * 5, "17"))


def flow_v1_3(height: int, width: int, frames: int, scale: float = 1.0, *, by_frames: bool = True) -> RectifiedFlow:
    """1.3's schedule, with (frames - 1) // 4 frames.

    ``scale`` (their transform_scale) multiplies the shift of videos. Without ``by_frames`` (their scale_temporal) the
    number of frames does not count, and neither does the scale.
    """
    if frames == 1 or not by_frames:
        return RectifiedFlow(_shift(height, width, 1, "1"))
    return RectifiedFlow(scale * _shift(height, width, (frames - 1) // 4, "5"))


def _shift(height: int, width: int, frames: int, fewest: str) -> float:
    if frames < 1:
        raise BadRequest(
            f"the clip is too short for this model's noise levels; expected 1 frame, at least {fewest}, or a flow_shift"
        )
    return math.sqrt(height * width / BASE_AREA) * math.sqrt(frames)


# ------------------------------------------------------------------------------------- networks


def flow_denoiser(network: Network) -> Denoiser:
    """The denoiser of a flow's network, which may return further channels (1.2's unused variance): they are dropped."""

    def denoise(z: Tensor, level: NoiseLevel) -> Tensor:
        state, generated = _seen(level)
        output = network(z, TIMESTEPS * state.sigma / (state.alpha + state.sigma), generated)
        return TOWARDS_DATA.x0(output[:, : z.shape[1]], z, state)

    return denoise


def iddpm_denoiser(network: Network, *, variance: bool) -> Denoiser:
    """The denoiser of a network that returns eps and the variance, 2C channels.

    ``variance``: hand the variance on after x0, for `samplers.iddpm`; other samplers take x0 alone.
    """

    def denoise(z: Tensor, level: NoiseLevel) -> Tensor:
        state, generated = _seen(level)
        c_in = EPS.scalings(state)[2]
        output = network(NoiseLevel(c_in, c_in).like(z)[0] * z, BETAS.timestep(state.log_snr), generated)
        eps, v = output.chunk(2, 1)
        x0 = EPS.x0(eps, z, state)
        return torch.cat([x0, v], 1) if variance else x0

    return denoise


def _seen(level: NoiseLevel) -> tuple[NoiseLevel, Tensor | None]:
    """The level of z, [B], and which frames are generated, for the network, [B, T].

    x0 is computed at z's level in every frame, so that guidance sees predictions; `CleanFrames` then puts in its own.
    """
    if level.state is None:
        return level, None
    return level.state, level.sigma > 0


# ------------------------------------------------------------------------------------- guidance


def guided_channels(scale: Scale, channels: int) -> Guidance:
    """1.0's and 1.1's guidance of the first ``channels``: 1.0 three of four, 1.1 three, or all by its cfg_channel None.

    The other channels of eps, and the variance, are the prompt's own.
    """
    differences = (Difference("positive", "negative", scale),)
    return Guidance("negative", differences, reference="positive", channels=channels)


def guidance_v1_3(text: Scale, image: Scale, *, flaw_fix: bool) -> Guidance:
    """``blank + image (negative - blank) + text (positive - negative)``; for clips without given frames two branches.

    ``blank`` is the negative branch with the given latents zeroed, and their mask kept. ``flaw_fix`` was published for
    two branches only.
    """
    differences = (Difference("negative", "blank", image), Difference("positive", "negative", text))
    return Guidance("blank", differences, FLAW_FIX if flaw_fix else 0.0, "positive", rescaled="flow")


def image_scale_v1_3(scale: float, frames: int, steps: int, *, oscillate: bool, dynamic: bool) -> Scale:
    """Image guidance by step and latent frame as in 2.0, but its limit is 1 in the last of the ``steps``, not after."""
    return process.image_scale(scale, frames, steps - 1, oscillate=oscillate, dynamic=dynamic)


# ---------------------------------------------------------------------------------- held frames


def flow_release(edit: float, levels: NoiseLevel) -> int:
    """The state in which a frame of this edit ratio is noised and joins: the first with ``1000 edit >= time``.

    ``time`` is the shifted one. It is the last state, in which the frame stays as given, if no step comes so late.
    """
    times = TIMESTEPS * (levels.sigma / (levels.alpha + levels.sigma)).float()  # compared in float32, as published
    joined = (TIMESTEPS * torch.tensor(edit, dtype=torch.float32) >= times).nonzero()
    return int(joined[0])


def iddpm_release(edit: float, steps: int) -> int:
    """The same for 1.1: index ``int(steps edit)`` from the end, which is the last step for a ratio of 0."""
    return steps - 1 - int(steps * torch.tensor(edit, dtype=torch.float32))


def flow_regions(content_BCTHW: Tensor, mask_BT: Tensor, levels: NoiseLevel) -> list[KnownRegion]:
    """The regions of 1.2's masks (`masks.Cell.mask`): 0 is given for good, an edit ratio until its release.

    Frames of mask 1 are not held; content that stands there belongs into the initial noise (`started`).
    """
    return [KnownRegion(content_BCTHW, mask, flow_release(edit, levels), "clean") for edit, mask in _by_edit(mask_BT)]


def iddpm_regions(
    content_BCTHW: Tensor, mask_BT: Tensor, levels: NoiseLevel, *, keep_given: bool = False
) -> list[KnownRegion]:
    """The regions of 1.1's masks.

    As published, frames of mask 0 are noised and predicted again in the last step; ``keep_given`` leaves them as given.
    """
    steps = len(levels) - 1
    return [
        KnownRegion(content_BCTHW, mask, None, "clean")
        if keep_given and edit == 0
        else KnownRegion(content_BCTHW, mask, iddpm_release(edit, steps), "lagging")
        for edit, mask in _by_edit(mask_BT)
    ]


def sdedit_region(content_BCTHW: Tensor, mask_BT: Tensor, levels: NoiseLevel) -> KnownRegion:
    """1.3's use_sdedit: given frames (mask 1) are noised anew for every step, and free after the last."""
    return KnownRegion(content_BCTHW, _frames(mask_BT > 0), len(levels) - 2, "fresh")


def started(noise_BCTHW: Tensor, content_BCTHW: Tensor, placed_BT: Tensor) -> Tensor:
    """The initial noise, with the references of edit ratio 1 in its place: they are sampled as if they were noise."""
    return torch.where(_frames(placed_BT > 0).to(noise_BCTHW) > 0, content_BCTHW.to(noise_BCTHW), noise_BCTHW)


def _by_edit(mask_BT: Tensor) -> list[tuple[float, Tensor]]:
    """The distinct edit ratios below 1, largest first, with their frames: in the order in which they are released."""
    found = sorted({edit for row in mask_BT.tolist() for edit in row if edit < 1}, reverse=True)
    return [(edit, _frames(mask_BT == edit)) for edit in found]


def _frames(chosen_BT: Tensor) -> Tensor:
    """B×1×T×1×1, 1 in the chosen frames."""
    return chosen_BT.float()[:, None, :, None, None]
