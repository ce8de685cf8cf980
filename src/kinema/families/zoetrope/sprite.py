"""The object drawn once, in its own upright frame, and laid over every frame at its pose: its outline cannot change.

A clip as layers that each are one picture, moved: "Layered Neural Atlases for Consistent Video Editing" (Kasten et al.
2021). There the picture is fitted to one clip; here it is the mean over frames of what was drawn frame by frame, seen
from the object's frame, and mended by a small network that knows the words. See docs/decisions/0002, point 10.

Letters as in `model`; N the picture's side, P places along its packed side, E the code's width. Geometry is in float32
at least, also under autocast: a pose in bf16 is off by a quarter of a pixel.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.families.zoetrope.config import Config
from kinema.families.zoetrope.given import anchored, as_given
from kinema.families.zoetrope.layers import PlaceBlock, exact, over_space
from kinema.families.zoetrope.steady import filled, least_absolute_line, steadied
from kinema.families.zoetrope.turning import CHANNELS, RADII, STEPS, around, matched, told
from kinema.families.zoetrope.warp import Pose, laid, lifted, pixels

_PACK = 2
"""Texels a place of the mending network has along each side."""
TREMBLE, SWAY = 0.25, 0.04
"""What poses may tremble by and are steadied: pixels, radians. True bounces, swings and orbits of the playroom
are bent by 0.3 pixels at most (a test holds it)."""
DOUBT, TRUST = 0.4, 0.6
"""Below the first agreement (Dice) of the sprite at its poses with what every frame shows it is not believed, above
the second wholly."""
_LEAST = 2.0
"""Pixels: no object's radius is less."""
_SAME, _GROWN = math.log(1.2), math.log(1.4)
"""Sizes at the ends of a clip that differ by the first or less are one size. What grows or shrinks in the playroom does
by a factor of 2.08 at least; with bounds of 1.3 and 1.7 a letter that had shrunk to two thirds did not."""
_LOST, _SHOWN = 0.2, 0.4
"""A frame that shows less than the first of what the others do is lost, with the second it is sure. Filled in sooner,
bounces lose their height: what is fast is fainter than the rest while noise is strong."""


class Drawn(NamedTuple):
    """What the network drew before: ``clip`` B×3×T×H×W, where ``mask`` B×1×T×H×W is 1 what is given instead; ``still``
    B×3×T×H×W the backdrop and ``ground`` B×1×T×H×W its share, 0 to 1."""

    clip_BCTHW: Tensor
    still_BCTHW: Tensor
    ground_B1THW: Tensor
    mask_B1THW: Tensor


class Seen(NamedTuple):
    """What is told of the one object of a clip.

    ``laid`` B×3×T×H×W the sprite over the backdrop; ``picture`` B×4×N×N its colours and signed distance in radii;
    ``pose`` steadied. Logits are ``turn`` B×T×A of the steps of the circle, ``visible`` B×T, ``cover`` B×1×T×H×W of the
    pixels it covers, frame by frame, and ``alone`` B of that it is one rigid object. ``share`` B is that of ``laid``
    in the clip, and ``still`` B×3×T×H×W the backdrop as given.
    """

    laid_BCTHW: Tensor
    still_BCTHW: Tensor
    picture_BCNN: Tensor
    pose: Pose
    turn_BTA: Tensor
    visible_BT: Tensor
    cover_B1THW: Tensor
    alone_B: Tensor
    share_B: Tensor


class Sprite(nn.Module):
    """``forward(fine, sketch, tokens, read, cond, drawn) -> Seen``."""

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__()
        self.cell, self.merge, self.side = config.cell, config.merge, config.sprite
        code, hidden, channels = config.fine, config.fine, config.fine + config.fine // 4
        self.cover = nn.Linear(config.fine + 4, config.cell**2)
        self.code = nn.Linear(config.width + classes + config.modulation, code)
        self.frame = nn.Linear(code, 4)
        self.template = nn.Linear(code, CHANNELS * len(RADII) * STEPS)
        self.visible_in = nn.Linear(config.fine, hidden)
        self.visible_code = nn.Linear(code, hidden, bias=False)
        self.visible_time = nn.Conv1d(hidden, hidden, 5, padding=2)
        self.visible = nn.Linear(hidden, 1)
        places = config.sprite // _PACK
        self.enter = nn.Linear(4 * _PACK**2 + config.fine, channels)
        self.where = nn.Parameter(torch.empty(places, places, channels))
        self.mend = nn.ModuleList(PlaceBlock(channels, 4 * channels, code) for _ in range(2))
        self.across = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, 4 * _PACK**2, 3, padding=1)
        nn.init.normal_(self.where, std=0.3)
        for layer in (self.frame, self.template, self.visible, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.frame.bias[2:].copy_(torch.tensor([0.15, -2.2]))  # outlines within a disc of their area; share 0.1
            self.visible.bias.fill_(3.0)

    def forward(
        self,
        fine_BTHWC: Tensor,
        sketch_BTHW4: Tensor,
        tokens_BSD: Tensor,
        read_BSK: Tensor,
        cond_BM: Tensor,
        drawn: Drawn,
    ) -> Seen:
        with _as_stored(fine_BTHWC.device):
            kind = self.cover.weight.dtype
            fine, cond = fine_BTHWC.to(kind), cond_BM.to(kind)
            cover = self.cover(torch.cat([fine, sketch_BTHW4.to(kind)], -1))
            cover_B1THW = exact(rearrange(cover, "b t h w (p q) -> b 1 t (h p) (w q)", p=self.cell, q=self.cell))
            shown_B1THW = cover_B1THW.sigmoid()
            code_BE = self._code(tokens_BSD.to(kind), read_BSK.to(kind), cond, shown_B1THW)
            offset, log_size, alone_B = self.frame(code_BE).split((2, 1, 1), -1)
            visible_BT = exact(self._visible(fine, code_BE, shown_B1THW))
            opaque_BT = least_absolute_line(visible_BT.sigmoid(), torch.ones_like(visible_BT)).clamp(0, 1)
            centre_BT2, found_BT = found(shown_B1THW)
            disc_BT, sure_BT = sure_of(shown_B1THW, found_BT, opaque_BT)
            radius_BT = (disc_BT * exact(log_size).exp()).clamp(min=_LEAST)
            drawn_BCTHW, still_BCTHW, ground_B1THW, mask_B1THW = (exact(part) for part in drawn)
            alone_B = exact(alone_B[:, 0])
            own_B1THW = ground_B1THW * (1 - shown_B1THW) * mask_B1THW
            held_BCHW = anchored(still_BCTHW[:, :, 0], own_B1THW, drawn_BCTHW)
            still_BCTHW = held_BCHW[:, :, None].expand_as(still_BCTHW)
            turn_BTA = self._turns(code_BE, drawn_BCTHW, shown_B1THW, centre_BT2, radius_BT)
            seen = Pose(centre_BT2, radius_BT, told(turn_BTA), opaque_BT)
            pose = composed(seen, sure_BT, exact(offset))
            picture_BCNN = self._picture(fine, code_BE, drawn_BCTHW, still_BCTHW, shown_B1THW, mask_B1THW, pose)
            colour_BCTHW, under_B1THW = laid(picture_BCNN, pose, *drawn_BCTHW.shape[-2:])
            trust_B = ((agreement(under_B1THW, shown_B1THW) - DOUBT) / (TRUST - DOUBT)).clamp(0, 1)
            over_B1THW = under_B1THW * pose.visible_BT[:, None, :, None, None]
            laid_BCTHW = torch.lerp(still_BCTHW, colour_BCTHW, over_B1THW)
            share_B = (alone_B.sigmoid() * trust_B).detach()  # taught by the scene graph, not by what it saves here
            return Seen(
                laid_BCTHW, still_BCTHW, picture_BCNN, pose, turn_BTA, visible_BT, cover_B1THW, alone_B, share_B
            )

    def _code(self, tokens_BSD: Tensor, read_BSK: Tensor, cond_BM: Tensor, shown_B1THW: Tensor) -> Tensor:
        """What the tokens on the object know of it, and what stands there by their reading, B×E."""
        place = 2 * self.cell
        weight_BS = F.avg_pool3d(shown_B1THW.detach(), (self.merge, place, place)).flatten(1) + 1e-3
        weight_BS = (weight_BS / weight_BS.sum(1, keepdim=True)).to(tokens_BSD)
        known_BSD = torch.cat([tokens_BSD, read_BSK.detach().sigmoid()], -1)
        return F.silu(self.code(torch.cat([torch.einsum("bs,bsd->bd", weight_BS, known_BSD), cond_BM], -1)))

    def _turns(
        self, code_BE: Tensor, drawn_BCTHW: Tensor, shown_B1THW: Tensor, centre_BT2: Tensor, radius_BT: Tensor
    ) -> Tensor:
        """Logits of every turn of every frame, B×T×A."""
        zero_BT = torch.zeros_like(radius_BT)
        unturned = Pose(centre_BT2.detach(), radius_BT.detach(), zero_BT, zero_BT + 1)
        template = exact(self.template(code_BE)).unflatten(1, (CHANNELS, len(RADII), STEPS))
        return matched(around(drawn_BCTHW, shown_B1THW, unturned), template)

    def _visible(self, fine_BTHWC: Tensor, code_BE: Tensor, shown_B1THW: Tensor) -> Tensor:
        """Logits of how visible the object is in every frame, from its features where it covers, B×T."""
        weight_BTHW = F.avg_pool3d(shown_B1THW.detach(), (1, self.cell, self.cell))[:, 0] + 1e-3
        weight_BTHW = (weight_BTHW / weight_BTHW.sum((2, 3), keepdim=True)).to(fine_BTHWC)
        h_BTC = torch.einsum("bthw,bthwc->btc", weight_BTHW, fine_BTHWC)
        h_BTC = F.silu(self.visible_in(h_BTC) + self.visible_code(code_BE)[:, None])
        h_BTC = h_BTC + F.silu(self.visible_time(h_BTC.mT).mT)
        return self.visible(h_BTC)[..., 0]

    def _picture(
        self,
        fine_BTHWC: Tensor,
        code_BE: Tensor,
        drawn_BCTHW: Tensor,
        still_BCTHW: Tensor,
        shown_B1THW: Tensor,
        mask_B1THW: Tensor,
        pose: Pose,
    ) -> Tensor:
        """The mean of what the frames show of the object, mended: colours and signed distance, B×4×N×N.

        Its colours are those of given frames, where there are any.
        """
        pose = Pose(*(part.detach() for part in pose))
        mean_BCNN, cover_B1NN = averaged(drawn_BCTHW, still_BCTHW, shown_B1THW, pose, self.side)
        start_BCNN = torch.cat([mean_BCNN, (1 - 2 * cover_B1NN) / pose.radius_BT.mean(1)[:, None, None, None]], 1)
        features = rearrange(exact(fine_BTHWC), "b t h w c -> b c t h w")
        seen_BCTPP = lifted(features, _on_cells(pose, self.cell), self.side // _PACK)
        seen_BCPP = (seen_BCTPP * _sure(pose)[:, None, :, None, None]).sum(2)
        mean_BCPP = rearrange(
            torch.cat([mean_BCNN, cover_B1NN], 1), "b c (h p) (w q) -> b (c p q) h w", p=_PACK, q=_PACK
        )
        told_BPPC = rearrange(torch.cat([mean_BCPP, seen_BCPP], 1), "b c h w -> b 1 h w c")
        x = self.enter(told_BPPC.to(code_BE)) + self.where
        x = self.mend[0](x, code_BE, 1)
        x = x + F.silu(over_space(self.across, F.layer_norm(x, x.shape[-1:])))
        x = self.mend[1](x, code_BE, 1)
        mended = over_space(self.out, F.layer_norm(x, x.shape[-1:]))
        made_BCNN = start_BCNN + exact(rearrange(mended, "b 1 h w (c p q) -> b c (h p) (w q)", p=_PACK, q=_PACK))
        colour_BCNN = as_given(made_BCNN[:, :-1], drawn_BCTHW, still_BCTHW, shown_B1THW.detach(), mask_B1THW, pose)
        return torch.cat([colour_BCNN, made_BCNN[:, -1:]], 1)


def found(shown_B1THW: Tensor) -> tuple[Tensor, Tensor]:
    """Centre B×T×2 and the radius of a disc of its area B×T, in pixels, of what covers every frame.

    Twice: the second time what lies far from where it was found the first time does not count.
    """
    shown_BTHW = shown_B1THW[:, 0]
    at_HW2 = pixels(shown_BTHW.shape[-2], shown_BTHW.shape[-1], shown_BTHW)
    near_BTHW = torch.ones_like(shown_BTHW)
    for _ in range(2):
        weight = shown_BTHW.square() * near_BTHW + 1e-6  # squared: what is faint everywhere pulls towards the middle
        centre_BT2 = torch.einsum("bthw,hwc->btc", weight, at_HW2) / weight.sum((-1, -2))[..., None]
        radius_BT = ((shown_BTHW * near_BTHW).sum((-1, -2)) / torch.pi).clamp(min=_LEAST**2).sqrt()
        off_BTHW = (at_HW2 - centre_BT2[:, :, None, None]).square().sum(-1)
        near_BTHW = (6 - 2 * off_BTHW.clamp(min=1e-6).sqrt() / radius_BT[..., None, None]).sigmoid().detach()
    return centre_BT2, radius_BT


def sure_of(shown_B1THW: Tensor, found_BT: Tensor, opaque_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Radii B×T that change evenly over the clip or not at all, and how sure each frame is, 0 to 1.

    It is as far as it covers the area of such a disc, no less and no more, and as firmly as the firmest frame: two
    places drawn by halves have the area of one, and their middle is neither.
    """
    disc_BT = levelled(least_absolute_line(found_BT, opaque_BT.detach()).clamp(min=_LEAST))
    area_BT, whole_BT = (radius.square() - _LEAST**2 for radius in (found_BT, disc_BT))
    area_BT = torch.minimum(area_BT, whole_BT) / torch.maximum(area_BT, whole_BT).clamp(min=1e-3)
    firm_BT = shown_B1THW.square().sum((1, 3, 4)) / shown_B1THW.sum((1, 3, 4)).clamp(min=1e-3)
    firm_BT = firm_BT / firm_BT.amax(1, keepdim=True).clamp(min=1e-3)
    return disc_BT, ((area_BT * firm_BT - _LOST) / (_SHOWN - _LOST)).clamp(0, 1).detach()


def levelled(line_BT: Tensor) -> Tensor:
    """Sizes B×T that change evenly, without a change that is too small to be meant."""
    change_B1 = (line_BT[:, -1:] / line_BT[:, :1]).log().abs().detach()
    meant_B1 = ((change_B1 - _SAME) / (_GROWN - _SAME)).clamp(0, 1)
    return torch.lerp(line_BT.mean(1, keepdim=True), line_BT, meant_B1)


def composed(seen: Pose, sure_BT: Tensor, offset_B2: Tensor) -> Pose:
    """The steadied pose: the object's frame lies ``offset`` radii off the middle of what it covers, turned with it."""
    opaque_BT = seen.visible_BT.detach()
    x_BT, y_BT = (steadied(filled(part, sure_BT), opaque_BT, TREMBLE) for part in seen.centre_BT2.unbind(-1))
    turn_BT = steadied(filled(seen.turn_BT, sure_BT), opaque_BT, SWAY)
    cos, sin, (right, down) = turn_BT.cos(), turn_BT.sin(), offset_B2[:, :, None].unbind(1)
    x_BT = x_BT + seen.radius_BT * (cos * right - sin * down)
    y_BT = y_BT + seen.radius_BT * (sin * right + cos * down)
    return seen._replace(centre_BT2=torch.stack([x_BT, y_BT], -1), turn_BT=turn_BT)


def averaged(
    drawn_BCTHW: Tensor, still_BCTHW: Tensor, shown_B1THW: Tensor, pose: Pose, side: int
) -> tuple[Tensor, Tensor]:
    """The object's colours B×3×N×N and cover B×1×N×N in its own frame: means of the frames that show it.

    Where the object is visible by v over the ground g, frames show ``d = v c + (1 - v) g``: the colour is the c of
    least squares. Texels count by the cube of the cover: at an edge the ground is mixed in. Where nothing is covered
    the colours are the object's mean.
    """
    visible_B1T11 = pose.visible_BT[:, None, :, None, None].clamp(min=0.05)
    own_BCTHW = drawn_BCTHW - (1 - visible_B1T11) * still_BCTHW
    seen = lifted(torch.cat([own_BCTHW, shown_B1THW], 1), pose, side)
    own, cover = seen[:, :-1], seen[:, -1:]
    weight = cover.pow(3) * visible_B1T11
    made, whole = (own * weight).sum(2), (weight * visible_B1T11).sum(2)
    mean_BC11 = made.mean((2, 3), keepdim=True) / whole.mean((2, 3), keepdim=True).clamp(min=1e-4)
    colour = (made + 0.01 * mean_BC11) / (whole + 0.01)
    return colour, (cover * _sure(pose)[:, None, :, None, None]).sum(2)


def agreement(under_B1THW: Tensor, shown_B1THW: Tensor) -> Tensor:
    """Dice of two covers over a clip, 0 to 1, B."""
    both = (under_B1THW * shown_B1THW).flatten(1).sum(1)
    return 2 * both / (under_B1THW.square() + shown_B1THW.square()).flatten(1).sum(1).clamp(min=1e-3)


def _sure(pose: Pose) -> Tensor:
    """How much each frame counts in the mean, B×T, together 1."""
    seen = pose.visible_BT + 1e-3
    return seen / seen.sum(1, keepdim=True)


def _on_cells(pose: Pose, cell: int) -> Pose:
    """The pose in cells of the fine grid instead of pixels."""
    return pose._replace(centre_BT2=pose.centre_BT2 / cell, radius_BT=pose.radius_BT / cell)


def _as_stored(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast, where a device has one (the meta device has none)."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
