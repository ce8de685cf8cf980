"""Reading objects off the transformer's video tokens: an auxiliary loss from the scene graphs of rendered clips.

It makes the network learn words early (docs/decisions/0002). The reader is a linear layer, so the tokens themselves
must say what is where; it is not used in sampling.

Letters: B clips, N video tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.data.reading import OFFSET_CLASSES, READING_CLASSES, location_loss, object_mask, reading_loss
from kinema.families.opensora.mmdit import MMDiT
from kinema.nn.linear import Linear

if TYPE_CHECKING:
    from kinema.data.playroom.scene import Scene

_ARRAYS = ("position_T2", "size_T", "angle_T", "visible_T", "opacity_T")


class Reader(nn.Module):
    """Class logits of the object at every token, and of the offset to the clip's first object, from one block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = Linear(width, sum(READING_CLASSES) + sum(OFFSET_CLASSES))

    @contextmanager
    def watching(self, transformer: MMDiT) -> Iterator[list[Tensor]]:
        """Record the tokens after the middle single block in each forward pass in this context."""
        recorded: list[Tensor] = []
        block = transformer.single_blocks[(len(transformer.single_blocks) - 1) // 2]
        handle = block.register_forward_hook(lambda _m, _a, out: recorded.append(out))
        try:
            yield recorded
        finally:
            handle.remove()

    def loss(self, tokens_BLD: Tensor, scenes: Sequence[Scene | None], grid: tuple[int, int, int]) -> Tensor:
        """Reading and location loss, [B]; 0 without scene graphs, but every parameter gets a gradient.

        The first latent frame, which stands for one frame and not four, is not read.
        """
        frames, rows, columns = grid
        later_BND = tokens_BLD[:, -(frames - 1) * rows * columns :]
        logits = self.head(F.layer_norm(later_BND, later_BND.shape[-1:])).float()
        if frames == 1 or not any(scenes):
            return 0 * logits.flatten(1).sum(1)
        after = [None if scene is None else without_first_frame(scene) for scene in scenes]
        what, where = logits.split((sum(READING_CLASSES), sum(OFFSET_CLASSES)), dim=-1)
        read = (frames - 1, rows, columns)
        return reading_loss(what, after, read) + location_loss(where, after, read)


def without_first_frame(scene: Scene) -> Scene:
    """The scene graph from the second frame on."""
    tracks = [replace(track, **{name: getattr(track, name)[1:] for name in _ARRAYS}) for track in scene.objects]
    return replace(scene, objects=tuple(tracks))


def object_cells(scenes: Sequence[Scene | None], video_BCTHW: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """1 in the latent cells with a pixel on or just around an object, B×1×t×h×w, for a causal codec of this stride."""
    mask = object_mask(scenes, video_BCTHW)
    mask = torch.cat([mask[:, :, :1].expand(-1, -1, stride[0] - 1, -1, -1), mask], dim=2)
    return F.max_pool3d(mask, stride)
