"""What a service sends: previews, and the frames and the recipe of a clip. Nothing is unpickled.

Sizes are bounded before anything is allocated: previews by limits of their own, clips by the figures that the job was
settled with. Shapes: N clips, T frames, H height, W width.
"""

from __future__ import annotations

import base64
import binascii
import io
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kinema.bounds import from_json
from kinema.client.http import Http
from kinema.schema import MAX_FRAMES, MAX_PIXELS, MAX_SIDE, BadRequest, Clip
from kinema.values import matches

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MAX_PREVIEW = 2**22
"""Pixels of a preview, all frames together."""
MAX_SOUND = 2**28
MAX_RECIPE = 2**20
AROUND = 2**16
"""Bytes of an npz file besides its arrays."""
MAX_HEADER = 1024
PIECE = 2**20


@dataclass(frozen=True)
class Figures:
    """The size of a job's clip, as the service settled it."""

    clips: int
    frames: int
    height: int
    width: int
    fps: float

    @staticmethod
    def of(data: Any, url: str) -> Figures:
        """Raises BadRequest for figures that are missing or beyond what a request may ask for."""
        limits = {"clips": 64, "frames": MAX_FRAMES, "height": MAX_SIDE, "width": MAX_SIDE}
        if not matches(data, Figures) or not all(1 <= data[name] <= most for name, most in limits.items()):
            raise BadRequest(f"{url} does not say how large the clip is; update kinema there or here")
        figures = Figures(**{name: data[name] for name in limits}, fps=float(data["fps"]))
        if not 0.1 <= figures.fps <= 240:
            raise BadRequest(f"{url} announces {figures.fps:g} frames per second; expected 0.1 to 240")
        if figures.pixels > MAX_PIXELS:
            raise BadRequest(f"{url} announces a clip of {figures.pixels:,} pixels; at most {MAX_PIXELS:,} are read")
        return figures

    @property
    def pixels(self) -> int:
        return self.clips * self.frames * self.height * self.width

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """N×T×H×W×3."""
        return self.clips, self.frames, self.height, self.width, 3

    def within(self, others: Figures) -> bool:
        """Whether no side is larger than that of ``others``: a partial clip is at most the whole one."""
        return all(side <= most for side, most in zip(self.shape, others.shape, strict=True))


def clip_of(http: Http, path: str, figures: Figures) -> Clip:
    """Download a clip: its frames, exactly as the service generated them, its sound and its recipe."""
    with tempfile.TemporaryFile() as file:
        http.download(path, file, figures.pixels * 3 + MAX_SOUND + AROUND, params={"variant": "frames"})
        file.seek(0)
        video, sound = _read_npz(file, figures, http.url)
    text = io.BytesIO()
    http.download(path, text, MAX_RECIPE, params={"variant": "recipe"})
    recipe = from_json(text.getvalue(), "the recipe that the service sent", infinite=True)
    if not isinstance(recipe, dict):
        raise BadRequest("the recipe that the service sent is not a JSON object")
    from kinema.recipes import checked

    return Clip(video, figures.fps, dict(checked(recipe, Path("the clip"))), sound)


def _read_npz(file: IO[bytes], figures: Figures, url: str) -> tuple[Tensor, bytes | None]:
    import torch

    from kinema.media.colour import to_float

    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            if "frames.npy" not in names:
                raise BadRequest(f"{url} sent a clip without frames")
            frames_NTHWC = _array(archive, "frames.npy", figures.shape, url)
            sound = _array(archive, "sound.npy", None, url).tobytes() if "sound.npy" in names else None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError) as error:
        if isinstance(error, BadRequest):
            raise
        raise BadRequest(f"the clip that {url} sent is damaged or cut short") from error
    return torch.cat([to_float(frames_THWC) for frames_THWC in frames_NTHWC]), sound


def _array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...] | None, url: str) -> np.ndarray:
    """An array of bytes of this shape, or of one dimension and any length up to `MAX_SOUND`."""
    import numpy as np

    with archive.open(name) as entry:
        version = np.lib.format.read_magic(entry)
        if version != (1, 0):
            raise ValueError(f"version {version}")
        found, fortran, kind = np.lib.format.read_array_header_1_0(entry, max_header_size=MAX_HEADER)
        expected = found == shape if shape else len(found) == 1 and found[0] <= MAX_SOUND
        if kind != np.uint8 or fortran or not expected:
            raise BadRequest(f"{url} sent {name} as {kind} {found}; expected uint8 {shape or 'bytes'}")
        array = np.empty(found, np.uint8)
        flat, read = array.reshape(-1), 0
        while read < len(flat):
            piece = entry.read(PIECE)
            if not piece or read + len(piece) > len(flat):
                raise EOFError(name)
            flat[read : read + len(piece)] = np.frombuffer(piece, np.uint8)
            read += len(piece)
        return array


def preview_of(data: Mapping[str, Any]) -> Tensor | None:
    """The frames of a preview event, T×H×W×3 uint8; None if they cannot be read, since a clip does not depend on it."""
    frames, text = data.get("frames"), data.get("data")
    if type(frames) is not int or not 1 <= frames <= MAX_FRAMES or not isinstance(text, str):
        return None
    import numpy as np
    import torch
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PREVIEW or image.width % frames:
                return None
            side_by_side = np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, binascii.Error, Image.DecompressionBombError):
        return None
    height, width = side_by_side.shape[:2]
    frames_THWC = side_by_side.reshape(height, frames, width // frames, 3).swapaxes(0, 1)
    return torch.from_numpy(np.ascontiguousarray(frames_THWC))
