"""The sprite: one upright image of the object, composited into every frame at its pose, so its outline cannot change.

Represents a clip as moving layers that are one image each, as in "Layered Neural Atlases for Consistent Video Editing"
(Kasten et al. 2021). There the image is fitted to one clip; here it is the mean of the per-frame estimates in object
coordinates, refined by a small network conditioned on the prompt. See docs/notes/0002, entry 10.

Letters as in `model`; N is the sprite's side, P places along its packed side, E the code's width. Geometry is in
float32 or better, also under autocast: a bfloat16 pose is off by a quarter of a pixel.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.families.zoetrope.anchoring import anchor_to_given, colours_from_given
from kinema.families.zoetrope.config import Config
from kinema.families.zoetrope.layers import PlaceBlock, exact, over_space
from kinema.families.zoetrope.rotation import CHANNELS, RADII, STEPS, correlate, decode_angles, sample_polar
from kinema.families.zoetrope.smoothing import fill_gaps, least_absolute_line, smooth
from kinema.families.zoetrope.warp import Pose, pixel_centres, to_frames, to_sprite
from kinema.nn.linear import Linear

_PACK = 2
"""Texels along each side of one place of the refining network."""
MAX_JITTER, MAX_SWAY = 0.25, 0.04
"""Jitter that smoothing removes from poses: pixels, radians. It changes true bounces, swings and orbits of the playroom
by at most 0.3 pixels (checked by a test)."""
MIN_DICE, FULL_DICE = 0.4, 0.6
"""Dice agreement of the posed sprite with the per-frame coverage: the sprite is not used below the first, and fully
used above the second."""
_MIN_RADIUS = 2.0
"""Smallest radius of an object, in pixels."""
_SAME_SIZE, _CHANGED_SIZE = math.log(1.2), math.log(1.4)
"""Log ratios of the sizes at both ends of a clip: up to the first the size is constant. Growing and shrinking in the
playroom is by a factor of at least 2.08; bounds of 1.3 and 1.7 cancelled the motion of a letter that shrank to 2/3."""
_LOST_CONFIDENCE, _FULL_CONFIDENCE = 0.2, 0.4
"""A frame with less than the first fraction of the usual coverage counts as lost, one above the second as certain.
Higher bounds flatten bounces, because fast objects are fainter than the rest while noise is strong."""


class FrameEstimate(NamedTuple):
    """The network's estimate without the sprite.

    ``clip`` B×3×T×H×W, with given pixels where ``mask`` B×1×T×H×W is 1; ``backdrop`` B×3×T×H×W and its share ``ground``
    B×1×T×H×W, 0 to 1.
    """

    clip_BCTHW: Tensor
    backdrop_BCTHW: Tensor
    ground_B1THW: Tensor
    mask_B1THW: Tensor


class SpriteEstimate(NamedTuple):
    """The estimate of a clip's single object.

    ``composite`` B×3×T×H×W is the sprite over the backdrop; ``backdrop`` B×3×T×H×W is anchored to given pixels;
    ``sprite`` B×4×N×N holds colours and signed distance in radii; ``pose`` is smoothed. Logits: ``angle`` B×T×A over
    steps of the circle, ``visible`` B×T, ``cover_logits`` B×1×T×H×W of per-frame coverage, ``single`` B of the clip
    showing a single rigid object. ``share`` B is the share of ``composite`` in the clip.
    """

    composite_BCTHW: Tensor
    backdrop_BCTHW: Tensor
    sprite_BCNN: Tensor
    pose: Pose
    angle_BTA: Tensor
    visible_BT: Tensor
    cover_logits_B1THW: Tensor
    single_B: Tensor
    share_B: Tensor


class Sprite(nn.Module):
    """``forward(fine, sketch, tokens, read, cond, frames) -> SpriteEstimate``."""

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__()
        self.cell, self.merge, self.side = config.cell, config.merge, config.sprite
        code, hidden, channels = config.fine, config.fine, config.fine + config.fine // 4
        self.cover = Linear(config.fine + 4, config.cell**2)
        self.code = Linear(config.width + classes + config.modulation, code)
        self.frame = Linear(code, 4)
        self.template = Linear(code, CHANNELS * len(RADII) * STEPS)
        self.visible_in = Linear(config.fine, hidden)
        self.visible_code = Linear(code, hidden, bias=False)
        self.visible_time = nn.Conv1d(hidden, hidden, 5, padding=2)
        self.visible = Linear(hidden, 1)
        places = config.sprite // _PACK
        self.enter = Linear(4 * _PACK**2 + config.fine, channels)
        self.where = nn.Parameter(torch.empty(places, places, channels))
        self.mend = nn.ModuleList(PlaceBlock(channels, 4 * channels, code) for _ in range(2))
        self.across = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, 4 * _PACK**2, 3, padding=1)
        nn.init.normal_(self.where, std=0.3)
        for layer in (self.frame, self.template, self.visible, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.frame.bias[2:].copy_(torch.tensor([0.15, -2.2]))  # radius below that of the equal-area disc; share 0.1
            self.visible.bias.fill_(3.0)

    def forward(
        self,
        fine_BTHWC: Tensor,
        sketch_BTHW4: Tensor,
        tokens_BSD: Tensor,
        read_BSK: Tensor,
        cond_BM: Tensor,
        frames: FrameEstimate,
    ) -> SpriteEstimate:
        with _without_autocast(fine_BTHWC.device):
            kind = self.cover.weight.dtype
            fine, cond = fine_BTHWC.to(kind), cond_BM.to(kind)
            cover = self.cover(torch.cat([fine, sketch_BTHW4.to(kind)], -1))
            cover_logits_B1THW = exact(rearrange(cover, "b t h w (p q) -> b 1 t (h p) (w q)", p=self.cell, q=self.cell))
            cover_B1THW = cover_logits_B1THW.sigmoid()
            code_BE = self._code(tokens_BSD.to(kind), read_BSK.to(kind), cond, cover_B1THW)
            offset, log_size, single_B = self.frame(code_BE).split((2, 1, 1), -1)
            visible_BT = exact(self._visibility_logits(fine, code_BE, cover_B1THW))
            opaque_BT = least_absolute_line(visible_BT.sigmoid(), torch.ones_like(visible_BT)).clamp(0, 1)
            centre_BT2, area_radius_BT = locate(cover_B1THW)
            radius_BT, confidence_BT = fit_size(cover_B1THW, area_radius_BT, opaque_BT)
            radius_BT = (radius_BT * exact(log_size).exp()).clamp(min=_MIN_RADIUS)
            clip_BCTHW, backdrop_BCTHW, ground_B1THW, mask_B1THW = (exact(part) for part in frames)
            single_B = exact(single_B[:, 0])
            ground_given_B1THW = ground_B1THW * (1 - cover_B1THW) * mask_B1THW
            anchored_BCHW = anchor_to_given(backdrop_BCTHW[:, :, 0], ground_given_B1THW, clip_BCTHW)
            backdrop_BCTHW = anchored_BCHW[:, :, None].expand_as(backdrop_BCTHW)
            angle_BTA = self._angle_logits(code_BE, clip_BCTHW, cover_B1THW, centre_BT2, radius_BT)
            raw_pose = Pose(centre_BT2, radius_BT, decode_angles(angle_BTA), opaque_BT)
            pose = smooth_pose(raw_pose, confidence_BT, exact(offset))
            sprite_BCNN = self._sprite_image(fine, code_BE, clip_BCTHW, backdrop_BCTHW, cover_B1THW, mask_B1THW, pose)
            colour_BCTHW, full_cover_B1THW = to_frames(sprite_BCNN, pose, *clip_BCTHW.shape[-2:])
            trust_B = ((dice(full_cover_B1THW, cover_B1THW) - MIN_DICE) / (FULL_DICE - MIN_DICE)).clamp(0, 1)
            alpha_B1THW = full_cover_B1THW * pose.visible_BT[:, None, :, None, None]
            composite_BCTHW = torch.lerp(backdrop_BCTHW, colour_BCTHW, alpha_B1THW)
            share_B = (single_B.sigmoid() * trust_B).detach()  # trained by the scene graph only
            return SpriteEstimate(
                composite_BCTHW,
                backdrop_BCTHW,
                sprite_BCNN,
                pose,
                angle_BTA,
                visible_BT,
                cover_logits_B1THW,
                single_B,
                share_B,
            )

    def _code(self, tokens_BSD: Tensor, read_BSK: Tensor, cond_BM: Tensor, cover_B1THW: Tensor) -> Tensor:
        """Encode the object, B×E: the mean over its tokens of their features and their predicted classes."""
        place = 2 * self.cell
        weight_BS = F.avg_pool3d(cover_B1THW.detach(), (self.merge, place, place)).flatten(1) + 1e-3
        weight_BS = (weight_BS / weight_BS.sum(1, keepdim=True)).to(tokens_BSD)
        features_BSD = torch.cat([tokens_BSD, read_BSK.detach().sigmoid()], -1)
        return F.silu(self.code(torch.cat([torch.einsum("bs,bsd->bd", weight_BS, features_BSD), cond_BM], -1)))

    def _angle_logits(
        self, code_BE: Tensor, clip_BCTHW: Tensor, cover_B1THW: Tensor, centre_BT2: Tensor, radius_BT: Tensor
    ) -> Tensor:
        """Logits of the object's angle in every frame, B×T×A."""
        zero_BT = torch.zeros_like(radius_BT)
        upright = Pose(centre_BT2.detach(), radius_BT.detach(), zero_BT, zero_BT + 1)
        template = exact(self.template(code_BE)).unflatten(1, (CHANNELS, len(RADII), STEPS))
        return correlate(sample_polar(clip_BCTHW, cover_B1THW, upright), template)

    def _visibility_logits(self, fine_BTHWC: Tensor, code_BE: Tensor, cover_B1THW: Tensor) -> Tensor:
        """Logits of the object's visibility in every frame, B×T, from the features that it covers."""
        weight_BTHW = F.avg_pool3d(cover_B1THW.detach(), (1, self.cell, self.cell))[:, 0] + 1e-3
        weight_BTHW = (weight_BTHW / weight_BTHW.sum((2, 3), keepdim=True)).to(fine_BTHWC)
        h_BTC = torch.einsum("bthw,bthwc->btc", weight_BTHW, fine_BTHWC)
        h_BTC = F.silu(self.visible_in(h_BTC) + self.visible_code(code_BE)[:, None])
        h_BTC = h_BTC + F.silu(self.visible_time(h_BTC.mT).mT)
        return self.visible(h_BTC)[..., 0]

    def _sprite_image(
        self,
        fine_BTHWC: Tensor,
        code_BE: Tensor,
        clip_BCTHW: Tensor,
        backdrop_BCTHW: Tensor,
        cover_B1THW: Tensor,
        mask_B1THW: Tensor,
        pose: Pose,
    ) -> Tensor:
        """Refine the mean of the object over frames to colours and signed distance, B×4×N×N.

        Colours are taken from given frames, if there are any.
        """
        pose = Pose(*(part.detach() for part in pose))
        mean_BCNN, cover_B1NN = average_object(clip_BCTHW, backdrop_BCTHW, cover_B1THW, pose, self.side)
        start_BCNN = torch.cat([mean_BCNN, (1 - 2 * cover_B1NN) / pose.radius_BT.mean(1)[:, None, None, None]], 1)
        features = rearrange(exact(fine_BTHWC), "b t h w c -> b c t h w")
        warped_BCTPP = to_sprite(features, _to_cells(pose, self.cell), self.side // _PACK)
        features_BCPP = (warped_BCTPP * _frame_weights(pose)[:, None, :, None, None]).sum(2)
        mean_BCPP = rearrange(
            torch.cat([mean_BCNN, cover_B1NN], 1), "b c (h p) (w q) -> b (c p q) h w", p=_PACK, q=_PACK
        )
        input_BPPC = rearrange(torch.cat([mean_BCPP, features_BCPP], 1), "b c h w -> b 1 h w c")
        x = self.enter(input_BPPC.to(code_BE)) + self.where
        x = self.mend[0](x, code_BE, 1)
        x = x + F.silu(over_space(self.across, F.layer_norm(x, x.shape[-1:])))
        x = self.mend[1](x, code_BE, 1)
        refined = over_space(self.out, F.layer_norm(x, x.shape[-1:]))
        result_BCNN = start_BCNN + exact(rearrange(refined, "b 1 h w (c p q) -> b c (h p) (w q)", p=_PACK, q=_PACK))
        colour_BCNN = colours_from_given(
            result_BCNN[:, :-1], clip_BCTHW, backdrop_BCTHW, cover_B1THW.detach(), mask_B1THW, pose
        )
        return torch.cat([colour_BCNN, result_BCNN[:, -1:]], 1)


def locate(cover_B1THW: Tensor) -> tuple[Tensor, Tensor]:
    """Locate the object in every frame: centre B×T×2 and radius B×T of the disc of equal area, in pixels.

    Two passes: the second ignores coverage far from the first estimate.
    """
    cover_BTHW = cover_B1THW[:, 0]
    at_HW2 = pixel_centres(cover_BTHW.shape[-2], cover_BTHW.shape[-1], cover_BTHW)
    near_BTHW = torch.ones_like(cover_BTHW)
    for _ in range(2):
        weight = cover_BTHW.square() * near_BTHW + 1e-6  # squared: a faint background would pull towards the middle
        centre_BT2 = torch.einsum("bthw,hwc->btc", weight, at_HW2) / weight.sum((-1, -2))[..., None]
        radius_BT = ((cover_BTHW * near_BTHW).sum((-1, -2)) / torch.pi).clamp(min=_MIN_RADIUS**2).sqrt()
        off_BTHW = (at_HW2 - centre_BT2[:, :, None, None]).square().sum(-1)
        near_BTHW = (6 - 2 * off_BTHW.clamp(min=1e-6).sqrt() / radius_BT[..., None, None]).sigmoid().detach()
    return centre_BT2, radius_BT


def fit_size(cover_B1THW: Tensor, area_radius_BT: Tensor, opaque_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return radii B×T that are constant or linear over the clip, and each frame's confidence, 0 to 1.

    A frame is confident if its covered area matches the fitted disc and its coverage is as opaque as in the most opaque
    frame. Opacity matters because two half-covered places have the area of one object, centred between them.
    """
    radius_BT = snap_size(least_absolute_line(area_radius_BT, opaque_BT.detach()).clamp(min=_MIN_RADIUS))
    area_BT, fitted_area_BT = (radius.square() - _MIN_RADIUS**2 for radius in (area_radius_BT, radius_BT))
    area_BT = torch.minimum(area_BT, fitted_area_BT) / torch.maximum(area_BT, fitted_area_BT).clamp(min=1e-3)
    firm_BT = cover_B1THW.square().sum((1, 3, 4)) / cover_B1THW.sum((1, 3, 4)).clamp(min=1e-3)
    firm_BT = firm_BT / firm_BT.amax(1, keepdim=True).clamp(min=1e-3)
    confidence_BT = (area_BT * firm_BT - _LOST_CONFIDENCE) / (_FULL_CONFIDENCE - _LOST_CONFIDENCE)
    return radius_BT, confidence_BT.clamp(0, 1).detach()


def snap_size(line_BT: Tensor) -> Tensor:
    """Remove changes of size that are too small to be intended from linear sizes B×T."""
    change_B1 = (line_BT[:, -1:] / line_BT[:, :1]).log().abs().detach()
    share_B1 = ((change_B1 - _SAME_SIZE) / (_CHANGED_SIZE - _SAME_SIZE)).clamp(0, 1)
    return torch.lerp(line_BT.mean(1, keepdim=True), line_BT, share_B1)


def smooth_pose(raw: Pose, confidence_BT: Tensor, offset_B2: Tensor) -> Pose:
    """Smooth the pose and move its centre by ``offset``, in radii, which rotates with the object."""
    opaque_BT = raw.visible_BT.detach()
    x_BT, y_BT = (smooth(fill_gaps(part, confidence_BT), opaque_BT, MAX_JITTER) for part in raw.centre_BT2.unbind(-1))
    angle_BT = smooth(fill_gaps(raw.angle_BT, confidence_BT), opaque_BT, MAX_SWAY)
    cos, sin, (right, down) = angle_BT.cos(), angle_BT.sin(), offset_B2[:, :, None].unbind(1)
    x_BT = x_BT + raw.radius_BT * (cos * right - sin * down)
    y_BT = y_BT + raw.radius_BT * (sin * right + cos * down)
    return raw._replace(centre_BT2=torch.stack([x_BT, y_BT], -1), angle_BT=angle_BT)


def average_object(
    clip_BCTHW: Tensor, backdrop_BCTHW: Tensor, cover_B1THW: Tensor, pose: Pose, side: int
) -> tuple[Tensor, Tensor]:
    """Average the object over frames in object coordinates: colours B×3×N×N and coverage B×1×N×N.

    An object of visibility v over the background g appears as ``d = v c + (1 - v) g``; the result is the least-squares
    c. Texels are weighted by the cube of their coverage, because edges mix with the background. Uncovered texels take
    the object's mean colour.
    """
    visible_B1T11 = pose.visible_BT[:, None, :, None, None].clamp(min=0.05)
    object_BCTHW = clip_BCTHW - (1 - visible_B1T11) * backdrop_BCTHW
    warped = to_sprite(torch.cat([object_BCTHW, cover_B1THW], 1), pose, side)
    colour, cover = warped[:, :-1], warped[:, -1:]
    weight = cover.pow(3) * visible_B1T11
    weighted, total_weight = (colour * weight).sum(2), (weight * visible_B1T11).sum(2)
    mean_BC11 = weighted.mean((2, 3), keepdim=True) / total_weight.mean((2, 3), keepdim=True).clamp(min=1e-4)
    colour = (weighted + 0.01 * mean_BC11) / (total_weight + 0.01)
    return colour, (cover * _frame_weights(pose)[:, None, :, None, None]).sum(2)


def dice(full_cover_B1THW: Tensor, cover_B1THW: Tensor) -> Tensor:
    """Dice coefficient of two coverages over a clip, 0 to 1, B."""
    both = (full_cover_B1THW * cover_B1THW).flatten(1).sum(1)
    return 2 * both / (full_cover_B1THW.square() + cover_B1THW.square()).flatten(1).sum(1).clamp(min=1e-3)


def _frame_weights(pose: Pose) -> Tensor:
    """Weight of each frame in the mean, B×T, summing to 1 over frames."""
    weight = pose.visible_BT + 1e-3
    return weight / weight.sum(1, keepdim=True)


def _to_cells(pose: Pose, cell: int) -> Pose:
    """Convert the pose from pixels to cells of the fine grid."""
    return pose._replace(centre_BT2=pose.centre_BT2 / cell, radius_BT=pose.radius_BT / cell)


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Disable autocast on devices that support it (the meta device does not)."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
