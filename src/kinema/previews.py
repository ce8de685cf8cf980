"""Previews: small RGB images of the sampler's x0 estimate during sampling.

`Previewed` wraps the caller's listener: it reads x0 from each `Step` and adds a `Preview` when one is due. It changes
nothing, so clips are bit-identical with and without previews.

Latents are converted to RGB by a linear map. Pixel-space models show x0 itself. Stable Diffusion 1.x, SDXL and SVD have
published factors (`kinema.vae.latent_rgb`). For other codecs, such as the pocket models', the map is `fitted` at first
use and cached in the runtime. A block-wise clip shows the current block; a clip in windows is shown whole.

Shapes: B clips, C latent channels, T frames, h w latent height and width, H W pixel height and width.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from kinema.atomic import check_folder, replacing
from kinema.events import Event, OnEvent, Phase, Preview, Step
from kinema.media import formats, metadata
from kinema.schema import MAX_FRAMES, MAX_SIDE, BadRequest, Shape
from kinema.system import System
from kinema.vae.latent_rgb import LatentRGB, Row
from kinema.values import quoted

FITTED_SIDE = 64
"""Side in pixels of the images that a map is fitted to, snapped to the codec's lattice."""
FITTED_ON = 8
"""Number of images that a map is fitted to."""
PACE = Fraction(4)
"""Frame rate of animated previews, per second."""
RIDGE = 1e-3
"""Ridge regularisation, for latents of about unit variance: suppresses channels with little variance."""
_FAR = 1e6


@dataclass(frozen=True)
class Previews:
    """Preview options: at most ``rate`` previews per second and one for the last step, images with sides up to ``side``
    pixels, and ``frames`` evenly spaced frames from the first to the last (1 shows the middle frame).
    """

    rate: float = 4.0
    side: int = 128
    frames: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.rate, int | float) or not 0 < self.rate < math.inf:
            raise BadRequest(f"preview rate is {quoted(self.rate)}; expected a number of previews per second over 0")
        for name, most in (("side", MAX_SIDE), ("frames", MAX_FRAMES)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise BadRequest(f"preview {name} is {quoted(value)}; expected a whole number from 1 to {most}")

    @staticmethod
    def asked(preview: Any) -> Previews | None:
        """Parse a ``preview`` argument: ``True`` selects the defaults, ``False`` none. Raises BadRequest."""
        if isinstance(preview, Previews):
            return preview
        if not isinstance(preview, bool):
            raise BadRequest(f"preview is {quoted(preview)}; expected true, false or Previews(rate=4.0)")
        return Previews() if preview else None


FILES = (".png", ".webp")


@dataclass
class PreviewFile:
    """An image file that shows the last preview: frames side by side (.png) or animated (.webp).

    Each preview replaces the file atomically, so viewers always find a complete image. An existing file is refused
    unless ``overwrite``; the last preview stays after the run.
    """

    path: Path
    overwrite: bool = False
    written: int = 0

    @property
    def asked(self) -> Previews:
        """The preview options for this file: more frames if animated."""
        return Previews(frames=8 if self.path.suffix.lower() == ".webp" else 3)

    def check(self) -> None:
        """Raise BadRequest if the file cannot be written, or exists."""
        if self.path.suffix.lower() not in FILES:
            raise BadRequest(f"cannot write previews to {self.path.name}: expected a name ending in .png or .webp")
        check_folder(self.path)
        if self.path.is_dir():
            raise BadRequest(f"cannot write previews to {self.path}: it is a folder; expected a file name")
        if os.path.lexists(self.path) and not self.overwrite:
            raise BadRequest(f"{self.path} exists; choose another name for previews, or pass --overwrite to replace it")

    def write(self, preview: Preview) -> None:
        """Replace the file. Raises BadRequest or OSError on failure, such as a full disk."""
        frames_THWC = preview.picture.numpy()
        tags = metadata.tags({"preview": {"step": preview.index, "of": preview.total, "stage": preview.stage}})
        with replacing(self.path, exclusive=not (self.overwrite or self.written), flush=False) as part:
            if self.path.suffix.lower() == ".png":
                formats.write_png(rearrange(frames_THWC, "t h w c -> h (t w) c"), part, tags)
            else:
                formats.write_webp(frames_THWC, PACE, part, tags, method=0)
        self.written += 1


class Previewed:
    """A listener of one stage that passes events on and adds previews."""

    def __init__(self, on_event: OnEvent, system: System, stage: str, shape: Shape, asked: Previews) -> None:
        self.on_event, self.system, self.stage, self.asked = on_event, system, stage, asked
        shrink = min(1.0, asked.side / max(shape.height, shape.width))
        self.size = max(1, round(shape.height * shrink)), max(1, round(shape.width * shrink))
        self.due = -math.inf

    def __call__(self, event: Event) -> None:
        self.on_event(event)
        if isinstance(event, Phase) and event.name == "sample":
            latent_rgb(self.system)  # before the first step, so that offloaded weights are not moved during sampling
        if isinstance(event, Step) and event.x0 is not None:
            if time.monotonic() >= self.due or event.index == event.total:
                frames = preview_frames(event.x0, latent_rgb(self.system), self.size, self.asked.frames)
                self.on_event(Preview(event.index, event.total, frames, self.stage))
                self.due = time.monotonic() + 1 / self.asked.rate


@torch.no_grad()
def preview_frames(x0_BCTHW: Tensor, rgb: LatentRGB, size: tuple[int, int], frames: int) -> Tensor:
    """Convert frames of the first clip's x0 to RGB: T×H×W×3 uint8 on the CPU, of size (H, W)."""
    total = x0_BCTHW.shape[2]
    at = [round(i * (total - 1) / (frames - 1)) for i in range(frames)] if 1 < frames < total else list(range(total))
    at = [total // 2] if frames == 1 else at
    z_CTHW = x0_BCTHW[0, :, at].float().nan_to_num(0.0, _FAR, -_FAR)  # show diverged runs too
    colours_TCHW = rearrange(rgb(z_CTHW), "c t h w -> t c h w")
    if colours_TCHW.shape[2:] != size:
        colours_TCHW = F.interpolate(colours_TCHW, size, mode="bilinear", antialias=True)
    levels = colours_TCHW.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(levels, "t c h w -> t h w c").contiguous().cpu()


def latent_rgb(system: System) -> LatentRGB:
    """Return the model's latent-to-RGB map: published, or fitted at first use and cached in the runtime."""
    runtime = system.runtime
    with runtime.lock:
        if runtime.rgb is None:
            runtime.rgb = system.codec.rgb(system.lattice.grid.channels) or fitted(system)
        return runtime.rgb


@torch.no_grad()
def fitted(system: System) -> LatentRGB:
    """Fit the linear map by ridge regression from latents of rendered playroom images to the mean decoded colour of
    each cell. Deterministic for a codec; takes a fraction of a second for small ones.
    """
    from kinema.data import playroom

    lattice, grid = system.lattice, system.lattice.grid
    frames, side = grid.time.ceil(1), lattice.snap_side(FITTED_SIDE)
    rendered = [playroom.sample(seed, frames=frames, height=side, width=side) for seed in range(FITTED_ON)]
    z_BCTHW = system.encode(torch.stack([torch.from_numpy(each.video_CTHW) for each in rendered]))
    pixels = system.decode(z_BCTHW)
    p, q = grid.stride
    each = [pixels[:, :, span.start : span.stop] for span in grid.time.spans(frames)]
    cells = [reduce(part, "b c t (h p) (w q) -> b c h w", "mean", p=p, q=q) for part in each]
    colours_N3 = rearrange(torch.stack(cells, 2), "b c t h w -> (b t h w) c").double()
    z_NC = rearrange(z_BCTHW, "b c t h w -> (b t h w) c").double().cpu()
    mean_C, mean_3 = z_NC.mean(0), colours_N3.mean(0)
    z_NC, colours_N3 = z_NC - mean_C, colours_N3 - mean_3
    square_CC = z_NC.T @ z_NC
    square_CC += RIDGE * len(z_NC) * torch.eye(len(square_CC), dtype=torch.float64)
    factors_C3 = torch.linalg.solve(square_CC, z_NC.T @ colours_N3)
    rows, bias = factors_C3.tolist(), (mean_3 - mean_C @ factors_C3).tolist()
    return LatentRGB(tuple(cast(Row, tuple(row)) for row in rows), cast(Row, tuple(bias)))
