"""What a network in training knows of a rendered clip, asked beside its drawing: see docs/decisions/0002, 5 and 6.

Letters: B clips, T frames, H W rows and columns, S places (frames × rows × columns of a grid), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.data.playroom import CAMERAS, labels

if TYPE_CHECKING:
    from kinema.data.playroom.scene import Scene

VIEWS = ("still", *CAMERAS)
READ = (*labels.CLASSES, len(VIEWS))
"""Classes of glyph, colour and motion of what stands at a place (0: nothing), and of the camera, everywhere's own."""
FAR = 6
"""Cells: an object further off than this is called so far off."""
AWAY = (2 * FAR + 1, 2 * FAR + 1)
"""Classes of how many cells to the right and downwards the first object's centre is, everywhere's own too."""
EMPTY = 0.1
"""Weight of a place where nothing stands: nine of ten are empty."""


def reading_loss(
    read_BSK: Tensor, scenes: Sequence[Scene | None], grid: tuple[int, int, int], *, camera: bool = True
) -> Tensor:
    """Cross-entropy of all that `READ` says at every place against the scene graphs, [B]; 0 for a clip without one.

    ``camera`` False: of what stands there alone, and K is without the camera's classes.
    """
    nothing = torch.zeros(3, *grid, dtype=torch.long)
    classes = torch.stack([nothing if s is None else torch.from_numpy(labels.on_grid(s, grid)) for s in scenes])
    wanted_BNS = classes.flatten(2)
    if camera:
        view_B = torch.tensor([0 if s is None else VIEWS.index(s.camera) for s in scenes])
        wanted_BNS = torch.cat([wanted_BNS, view_B[:, None, None].expand(-1, 1, wanted_BNS.shape[2])], 1)
    wanted_BNS = wanted_BNS.to(read_BSK.device)
    weight_BS = torch.where(wanted_BNS[:, 0] > 0, 1.0, EMPTY)
    known_B = torch.tensor([s is not None for s in scenes], device=read_BSK.device)
    apart = read_BSK.split(READ if camera else labels.CLASSES, dim=-1)
    wrong = [F.cross_entropy(k.mT, wanted_BNS[:, i], reduction="none") for i, k in enumerate(apart)]
    return known_B * (torch.stack(wrong).sum(0) * weight_BS).sum(1) / weight_BS.sum(1)


def location_loss(read_BSK: Tensor, scenes: Sequence[Scene | None], grid: tuple[int, int, int]) -> Tensor:
    """Cross-entropy of `AWAY` at every place against where the object is, [B]; 0 for a clip without a scene graph.

    An object between two cells belongs to both, the more to the nearer; a frame counts as much as of it is seen.
    """
    t, h, w = grid
    off_B2S, seen_BT = read_BSK.new_zeros(len(scenes), 2, t * h * w), read_BSK.new_zeros(len(scenes), t)
    for i, scene in enumerate(scenes):
        if scene is not None:
            off, seen = labels.away(scene, grid)
            off_B2S[i], seen_BT[i] = torch.from_numpy(off).flatten(1), torch.from_numpy(seen)
    at_B2S = off_B2S.clamp(-FAR, FAR) + FAR
    low_B2S = at_B2S.floor().clamp(max=2 * FAR - 1)
    share_B2S = at_B2S - low_B2S
    known_B2SK = read_BSK.unflatten(-1, (2, -1)).transpose(1, 2).log_softmax(-1)
    nearer = [known_B2SK.gather(-1, (low_B2S + i).long()[..., None])[..., 0] for i in (0, 1)]
    wrong_BS = -((1 - share_B2S) * nearer[0] + share_B2S * nearer[1]).sum(1)
    return (wrong_BS.unflatten(1, (t, -1)).mean(2) * seen_BT).mean(1)


def about(scenes: Sequence[Scene | None], like_BCTHW: Tensor) -> Tensor:
    """1 on and just around the objects of each scene graph, B×1×T×H×W; 0 elsewhere and where there is none."""
    on = like_BCTHW.new_zeros(len(scenes), 1, *like_BCTHW.shape[2:])
    for own, scene in zip(on, scenes, strict=True):
        if scene is not None:
            own[0] = torch.from_numpy(labels.around(scene, *like_BCTHW.shape[-2:]))
    return on
