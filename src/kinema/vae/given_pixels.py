"""Encode the given pixels of a clip to the latent grid, without reading unknown ones.

Shapes: video B3THW in [-1, 1]; mask B1THW, 1 at given pixels; latents BCThw and their mask B1Thw.
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
"""A codec's map from pixels BCTHW to latents BCThw, for any frame count that it supports."""


def encode_given(encode: Encode, grid: LatentGrid, video_B3THW: Tensor, mask_B1THW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the latents of the given pixels, zero in unknown cells, and their mask, 1 in known cells.

    Frames without given pixels are never read. A cell is known if all of its pixels are given; its latent is that of
    its own frames, as far as the codec can encode them without their neighbours: see `_parts`. With codecs that encode
    single frames, one given frame of a partly known cell (a keyframe, the last frame of a clip) is encoded alone and
    represents the cell (`FrameGrid.cells`).

    Raises ValueError if the codec returns latents that do not fit the grid.
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
            raise ValueError(
                f"{len(part.frames)} frames were encoded to {z.shape[2]} latent frames; expected {expected}"
            )
        content = z.new_zeros(shape.bcthw) if content is None else content
        content[:, :, part.cells] = z[:, :, part.kept]
    content = video_B3THW.new_zeros(shape.bcthw) if content is None else content
    return content, mask.to(content.device)


def latent_mask(grid: LatentGrid, mask_B1THW: Tensor) -> Tensor:
    """Return the mask on the latent grid, B1Thw: 1 where every pixel of the cell is given."""
    spans = grid.time.spans(mask_B1THW.shape[2])
    cells = torch.stack([mask_B1THW[:, :, span.start : span.stop].amin(2) for span in spans], dim=2)
    return _pooled(grid, cells)


def _pooled(grid: LatentGrid, mask_B1THW: Tensor) -> Tensor:
    return -F.max_pool3d(-mask_B1THW, (1, *grid.stride))


@dataclass(frozen=True)
class _Part:
    """Frames to encode together, the indices of the latents to keep, and the cells of these latents."""

    frames: Sequence[int]
    kept: Sequence[int]
    cells: Sequence[int]


def _parts(time: FrameGrid, known: Sequence[bool], whole: Sequence[int]) -> Iterator[_Part]:
    """Yield how to encode the completely given cells, to match their latents in a complete clip.

    - Cells of one frame are encoded together, without other frames.
    - Adjacent cells of a causal codec after the start of the clip are preceded by the frame before them, or by a copy
      of their own first frame if that is unknown. The codec encodes it as a first frame, whose latent is dropped.
    - With a codec that encodes runs of frames, the whole run is encoded, each unknown frame replaced by the nearest
      given one. A given first frame without other given cells is encoded alone.
    """
    if time.stride == 1:
        if whole:
            yield _Part(whole, range(len(whole)), whole)
        return
    spans, first = time.spans(len(known)), 0
    for run in time.runs(len(known)):
        count = time.latent(len(run))
        inside = [cell for cell in whole if first <= cell < first + count]
        if inside and time.run is not None and [len(spans[cell]) for cell in inside] != [1]:
            yield _Part(_nearest(run, known), [cell - first for cell in inside], inside)
        else:
            for cells in _neighbours(inside):
                start, stop = spans[cells[0]].start, spans[cells[-1]].stop
                before = [start - 1 if known[start - 1] else start] if time.causal and cells[0] > first else []
                yield _Part([*before, *range(start, stop)], range(len(before), len(before) + len(cells)), cells)
        first += count


def _nearest(run: range, known: Sequence[bool]) -> list[int]:
    """Return the run with unknown frames replaced by the nearest known ones; of two equally near, the earlier."""
    given = torch.tensor([frame for frame in run if known[frame]])
    return [int(given[(given - frame).abs().argmin()]) for frame in run]


def _neighbours(cells: Sequence[int]) -> list[list[int]]:
    """Group adjacent cells."""
    groups: list[list[int]] = []
    for cell in cells:
        if groups and groups[-1][-1] == cell - 1:
            groups[-1].append(cell)
        else:
            groups.append([cell])
    return groups
