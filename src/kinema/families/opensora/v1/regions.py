"""What Open-Sora 1.1 to 1.3 hold in the sampler's state: given frames, references of a mask strategy, edits.

Letters: B clips, C latent channels, T h w latent frames, rows and columns, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kinema.canvas import Canvas
from kinema.diffusion.overwrite import KnownRegion, RegionNoise
from kinema.events import Note, OnEvent
from kinema.families.opensora.first_line import masks, process
from kinema.families.opensora.first_line.masks import Cell
from kinema.families.opensora.v1 import strategy
from kinema.families.opensora.v1.config import Config
from kinema.media import read
from kinema.media.images import is_image
from kinema.schema import Request
from kinema.system import OpenedModel
from kinema.vae.given_pixels import encode_given


def given(system: OpenedModel, canvas: Canvas) -> tuple[Tensor, Tensor] | None:
    """Latents B×C×T×h×w of the frames that a canvas gives, zero elsewhere, and which these are, bool B×T; or None."""
    if canvas.empty:
        return None
    config: Config = system.config
    content, mask = encode_given(system.encode, config.grid, canvas.video, canvas.mask)
    known_BT = mask.amin((1, 3, 4)).cpu() > 0 if not mask.is_meta else torch.ones(len(mask), mask.shape[2]).bool()
    return content.float(), known_BT


def shown(system: OpenedModel, request: Request, canvas: Canvas, on_event: OnEvent) -> tuple[Tensor, Tensor] | None:
    """What 1.3 is given as an input, as `given`: frames of the canvas, over those that ``cond_type`` takes of
    references."""
    found, config, frames = given(system, canvas), system.config, request.shape.frames
    if "cond_type" not in request.extra:
        return found
    loop = strategy.loop_of(config, request, canvas.block.start, frames)
    cells = strategy.shown(config, request.extra, loop, frames)
    content, known_BT = _placed(system, request, cells, on_event)
    if found is None:
        return content, known_BT
    here = found[1][:, None, :, None, None].to(content.device)
    return torch.where(here, found[0].to(content), content), known_BT | found[1]


def of_canvas(system: OpenedModel, request: Request, canvas: Canvas, on_event: OnEvent) -> tuple[KnownRegion, ...]:
    """The regions of one block, later ones over earlier ones."""
    content, mask_BT, placed_BT = _from_strategy(system, request, canvas, on_event)
    shown = given(system, canvas)
    if shown is not None:
        here = shown[1][:, None, :, None, None].to(content.device)
        content = torch.where(here, shown[0].to(content), content)
        edit = float(request.extra.get("condition_frame_edit", 0.0)) if canvas.block.start else 0.0
        mask_BT, placed_BT = torch.where(shown[1], edit, mask_BT), placed_BT & ~shown[1]
    return (*_edited(system, canvas), *_bare(content, placed_BT), *_masked(system, request, content, mask_BT))


def _masked(system: OpenedModel, request: Request, content: Tensor, mask_BT: Tensor) -> Sequence[KnownRegion]:
    config, levels = system.config, system.levels(request)
    if config.is_flow:
        return process.flow_regions(content, mask_BT, levels)
    keep = bool(request.extra.get("keep_given", False))
    return process.iddpm_regions(content, mask_BT, levels, keep_given=keep)


def _bare(content: Tensor, placed_BT: Tensor) -> Sequence[KnownRegion]:
    """References with the edit ratio 1, in the place of the initial noise."""
    if not bool(placed_BT.any()):
        return ()
    return (KnownRegion(content, placed_BT.float()[:, None, :, None, None], 0, "none"),)


def _edited(system: OpenedModel, canvas: Canvas) -> list[KnownRegion]:
    """Pieces that are released: whole frames are clean until then, as theirs are; regions have the clip's noise."""
    found = []
    config: Config = system.config
    for piece, release in zip(canvas.held, canvas.block.releases, strict=True):
        content, mask = encode_given(system.encode, config.grid, piece.video, piece.mask)
        whole = bool((piece.mask.amin((1, 3, 4)) == piece.mask.amax((1, 3, 4))).all())
        noise: RegionNoise = "fixed" if not whole else "clean" if config.is_flow else "lagging"
        found.append(KnownRegion(content.float(), mask, release, noise))
    return found


def _from_strategy(
    system: OpenedModel, request: Request, canvas: Canvas, on_event: OnEvent
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of the references where the strategy of this block's loop puts them, B×C×T×h×w, the mask values B×T, and
    which frames are placed with the value 1, bool B×T."""
    config, frames = system.config, request.shape.frames
    cells: Sequence[Cell | None] = [None] * config.grid.latent(request.shape).frames
    if strategy.groups(request.extra):
        loop = strategy.loop_of(config, request, canvas.block.start, frames)
        cells = strategy.applied(config, request.extra, loop, frames)
    content, known_BT = _placed(system, request, cells, on_event)
    mask_BT = torch.tensor(masks.mask_values(cells)).expand(len(content), -1)
    return content, mask_BT, known_BT & (mask_BT == 1)


def _placed(
    system: OpenedModel, request: Request, cells: Sequence[Cell | None], on_event: OnEvent
) -> tuple[Tensor, Tensor]:
    """Latents B×C×T×h×w of the references where the cells put them, zero elsewhere, and where that is, bool B×T."""
    shape = system.config.grid.latent(request.shape).bcthw
    paths = strategy.references(request.extra) if any(cells) else ()
    used = sorted({cell.reference for cell in cells if cell is not None})
    latents = {i: _encoded(system, request, paths[i], on_event) for i in used}
    content, known_BT = torch.zeros(shape), torch.zeros(shape[0], shape[2], dtype=torch.bool)
    for number, cell in enumerate(cells):
        if cell is not None:
            content = content.to(latents[cell.reference].device)
            content[:, :, number] = latents[cell.reference][:, :, cell.frame]
            known_BT[:, number] = True
    return content, known_BT


def _encoded(system: OpenedModel, request: Request, path: str, on_event: OnEvent) -> Tensor:
    """Latents 1×C×t×h×w of a whole reference, at the size of the clip, at its own frame rate."""
    height, width = request.shape.height, request.shape.width
    if Path(path).is_file() and is_image(Path(path)):
        video, note = read.fit(read.read_image(path), height, width, request.fit)
    else:
        count, probe = strategy.reference_frames(system.config, path), read.probe(path)
        video = read.read_video(path, frames=count, size=(height, width, request.fit)).video
        note = read.fit_note(height, width, probe.height, probe.width, request.fit)
        if probe.frames > count:
            on_event(Note(f"{path} has {probe.frames} frames, of which the first {count} are encoded"))
    if note:
        on_event(Note(f"{path} {note}"))
    return system.encode(video).float()
