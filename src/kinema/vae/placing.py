"""What is given of a clip, on the latent grid: only that is encoded, and put into the cells that it stands for.

Shapes: video B3THW in [-1, 1]; mask B1THW, 1 where the pixel is given; latents BCThw, and their mask B1Thw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.cancel import checkpoint
from kinema.grid import FrameGrid, LatentGrid
from kinema.schema import Shape

Encode = Callable[[Tensor], Tensor]
"""Pixels BCTHW to latents BCThw: a codec's, for any frame count that it can make."""


def placed(encode: Encode, grid: LatentGrid, video_B3THW: Tensor, mask_B1THW: Tensor) -> tuple[Tensor, Tensor]:
    """The latents of what is given, zeros in cells of which nothing is, and their mask: 1 where a cell is given.

    Frames of which nothing is given are never looked at. A cell counts as given where all of its pixels are. It has the
    latent of its own frames, as far as the codec lets them be encoded without those around them: see `_parts`. A frame
    in a cell that has other frames too which are not given is encoded alone and stands for the cell, under codecs that
    encode single frames (`FrameGrid.cells`): a keyframe, or the last frame of a clip.

    Raises ValueError where the codec returns latents that do not fit the grid.
    """
    total, shape = video_B3THW.shape[2], grid.latent(Shape.of(video_B3THW))
    known = (mask_B1THW.amax((0, 1, 3, 4)) > 0).tolist()
    cells, mask = grid.time.cells(total, known), latent_mask(grid, mask_B1THW)
    parts = list(_parts(grid.time, known, cells.whole))
    for cell, frame in cells.lone.items():
        parts.append(_Part([frame], [0], [cell]))
        mask[:, :, cell] = _pooled(grid, mask_B1THW[:, :, frame : frame + 1])[:, :, 0]
    content: Tensor | None = None
    for part in parts:
        checkpoint()
        z = encode(video_B3THW[:, :, part.frames])
        if z.shape[2] != (expected := grid.time.latent(len(part.frames))):
            raise ValueError(f"{len(part.frames)} frames became {z.shape[2]} latent frames; the grid says {expected}")
        content = z.new_zeros(shape.bcthw) if content is None else content
        content[:, :, part.cells] = z[:, :, part.kept]
    content = video_B3THW.new_zeros(shape.bcthw) if content is None else content
    return content, mask.to(content.device)


def latent_mask(grid: LatentGrid, mask_B1THW: Tensor) -> Tensor:
    """The mask on the latent grid, B1Thw: 1 where every pixel of the cell is given."""
    spans = grid.time.spans(mask_B1THW.shape[2])
    cells = torch.stack([mask_B1THW[:, :, span.start : span.stop].amin(2) for span in spans], dim=2)
    return _pooled(grid, cells)


def _pooled(grid: LatentGrid, mask_B1THW: Tensor) -> Tensor:
    return -F.max_pool3d(-mask_B1THW, (1, *grid.stride))


@dataclass(frozen=True)
class _Part:
    """Frames to encode together, which of their latents are kept, and the cells that these belong to."""

    frames: Sequence[int]
    kept: Sequence[int]
    cells: Sequence[int]


def _parts(time: FrameGrid, known: Sequence[bool], whole: Sequence[int]) -> Iterator[_Part]:
    """How the cells that are wholly given are encoded, as cells like those of a whole clip.

    - Cells of one frame: all of them together, and no other frames.
    - Neighbouring cells of a causal codec that begin later than the clip: after the frame before them, or their first
      once more where that is not given. The codec makes of it the latent of a first frame, which is dropped.
    - Of a codec that encodes so many frames at a time: the whole run, where frames that are not given are the nearest
      that are; a first frame that stands by itself, alone.
    """
    if time.stride == 1:
        if whole:
            yield _Part(whole, range(len(whole)), whole)
        return
    spans, first = time.spans(len(known)), 0
    for run in time.runs(len(known)):
        count = time.latent(len(run))
        here = [cell for cell in whole if first <= cell < first + count]
        if here and time.run is not None and [len(spans[cell]) for cell in here] != [1]:
            yield _Part(_nearest(run, known), [cell - first for cell in here], here)
        else:
            for cells in _neighbours(here):
                start, stop = spans[cells[0]].start, spans[cells[-1]].stop
                before = [start - 1 if known[start - 1] else start] if time.causal and cells[0] > first else []
                yield _Part([*before, *range(start, stop)], range(len(before), len(before) + len(cells)), cells)
        first += count


def _nearest(run: range, known: Sequence[bool]) -> list[int]:
    """Each frame of the run, or the nearest known one in its place; the earlier of two as near."""
    given = torch.tensor([frame for frame in run if known[frame]])
    return [int(given[(given - frame).abs().argmin()]) for frame in run]


def _neighbours(cells: Sequence[int]) -> list[list[int]]:
    """Cells in groups that follow each other without a gap."""
    groups: list[list[int]] = []
    for cell in cells:
        if groups and groups[-1][-1] == cell - 1:
            groups[-1].append(cell)
        else:
            groups.append([cell])
    return groups
