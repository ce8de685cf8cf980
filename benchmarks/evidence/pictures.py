"""Pictures of the page: frames with slices over time, and the plot of all measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.evidence import protocol
from kinema.atomic import replacing
from kinema.data import playroom
from kinema.evaluation.plots import forest
from kinema.evaluation.results import Median
from kinema.media.colour import to_uint8

SHOWN, EVERY = 4, 3
"""Prompts that are shown, and which of their frames."""
_ZOOM, _GAP, _LABEL, _HEAD = 2, 4, 208, 22
_Frames = NDArray[np.uint8]


def shown() -> list[int]:
    """The first prompts that name a direction."""
    meanings = [playroom.parse(prompt) for prompt in protocol.prompts()]
    return [i for i, meaning in enumerate(meanings) if meaning and meaning.direction][:SHOWN]


def keep(folder: Path, arm: str, index: int, video_CTHW: Tensor) -> None:
    """Store a clip that will be shown as a strip of its frames, from left to right."""
    if index not in shown() or arm not in (protocol.REAL, *protocol.ARMS):
        return
    frames_THWC = to_uint8(video_CTHW[None])[0]
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(_strip(folder, arm, index)) as part:
        Image.fromarray(np.concatenate(list(frames_THWC), axis=1)).save(part, format="PNG", optimize=True)


def frames(folder: Path, indices: Sequence[int], path: Path) -> None:
    """Frames of every arm for some prompts, and beside them one line of pixels over time."""
    arms = {protocol.REAL: "a real clip"} | {name: arm.title for name, arm in protocol.ARMS.items()}
    side = _ZOOM * protocol.SIDE
    columns = len(range(0, protocol.FRAMES, EVERY))
    width = _LABEL + columns * (side + _GAP) + 2 * _GAP + 2 * side
    height = len(indices) * (_HEAD + len(arms) * (side + _GAP))
    image = Image.new("RGB", (width, height), "white")
    pen, small, large = ImageDraw.Draw(image), ImageFont.load_default(12), ImageFont.load_default(14)
    top = 0
    for index in indices:
        prompt = protocol.prompts()[index]
        across = (meaning := playroom.parse(prompt)) is not None and meaning.direction in ("left", "right")
        line = "one row" if across else "one column"
        pen.text((2, top + 3), f"“{prompt}”", fill="black", font=large)
        pen.text((width - 2, top + 5), f"{line} of pixels, time runs down", fill="#374151", font=small, anchor="ra")
        top += _HEAD
        for arm, title in arms.items():
            for i, text in enumerate(_wrapped(title)):
                pen.text((2, top + side // 2 - 14 + 15 * i), text, fill="#374151", font=small)
            clip_THWC = _read(_strip(folder, arm, index))
            for column, t in enumerate(range(0, protocol.FRAMES, EVERY)):
                frame = Image.fromarray(clip_THWC[t]).resize((side, side), Image.Resampling.NEAREST)
                image.paste(frame, (_LABEL + column * (side + _GAP), top))
            over_time = Image.fromarray(slice_over_time(clip_THWC, across=across))
            image.paste(over_time.resize((2 * side, side), Image.Resampling.NEAREST), (width - 2 * side, top))
            top += side + _GAP
    with replacing(path) as part:
        image.quantize(256).save(part, format="PNG", optimize=True)


def slice_over_time(clip_THWC: _Frames, *, across: bool) -> _Frames:
    """One row (or column) of pixels over time, T×W×3: that with most contrast, over both its length and time."""
    lines_TLWC = (clip_THWC if across else clip_THWC.swapaxes(1, 2)).astype(np.float64)
    contrast_L = lines_TLWC.var(axis=(0, 2)).sum(axis=1)
    return np.ascontiguousarray(lines_TLWC[:, int(contrast_L.argmax())].astype(np.uint8))


def plot(ratios: Mapping[str, Mapping[str, Median]], path: Path) -> None:
    """Every measure as a multiple of real clips: medians of paired ratios. A still clip has no place on its axis."""
    count = next(iter(next(iter(ratios.values())).values())).count
    forest(
        ratios,
        path,
        title=f"Each way to make a clip, against real clips ({count} prompts; values of 0 are not drawn)",
        axis="multiple of the real clip of the same prompt (log scale; median of pairs with 95 % bootstrap interval)",
    )


def _wrapped(title: str) -> list[str]:
    head, comma, rest = title.partition(", ")
    return [f"{head}{comma}", rest] if comma else [head]


def _strip(folder: Path, arm: str, index: int) -> Path:
    return folder / f"{index:02d}-{arm}.png"


def _read(path: Path) -> _Frames:
    with Image.open(path) as strip:
        row = np.asarray(strip.convert("RGB"))
    return np.stack(np.split(row, protocol.FRAMES, axis=1))
