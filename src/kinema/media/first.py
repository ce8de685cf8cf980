"""Read the first frame of an image, clip or folder."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
from torch import Tensor

from kinema.media.colour import to_float
from kinema.media.containers import readable_path, sniff
from kinema.media.fitting import fit, fit_frame, fit_note
from kinema.media.images import animated_first, is_image, read_image
from kinema.media.read import check_stream, decode_limits, timed_frames
from kinema.media.streams import stream_frames
from kinema.media.structure import cut_after_first_frame
from kinema.media.timing import Part
from kinema.schema import BadRequest, Fit


def read_first(path: str | Path, size: tuple[int, int, Fit]) -> tuple[Tensor, list[str]]:
    """Read the image, or first frame of the clip or folder, at ``path``, resized to ``size`` as by `read_video`.

    Later frames of a clip are neither counted nor decoded, so it may be too long, too large or cut short.
    Returns 1×3×1×H×W in [-1, 1] and notes for the user, each to follow the file name. Raises `BadRequest`.
    """
    path = readable_path(Path(path))
    kind = None if path.is_dir() else sniff(path)
    if not path.is_dir() and (kind is None or _is_still(path, kind)):
        video, note = fit(read_image(path), *size)
        return video, [note] if note else []
    frame_HWC, notes = _first(path, kind)
    note = fit_note(size[0], size[1], frame_HWC.shape[0], frame_HWC.shape[1], size[2])
    return to_float(fit_frame(frame_HWC, *size)[None]), [*notes, *([note] if note else [])]


def _is_still(path: Path, kind: str) -> bool:
    try:
        return is_image(path)
    except BadRequest:
        if kind in ("gif", "apng") and cut_after_first_frame(path, kind):
            return False
        raise


def _first(path: Path, kind: str | None) -> tuple[np.ndarray, list[str]]:
    """Return the first frame of a clip, uint8 H×W×3, and notes."""
    limits, part = decode_limits(), Part(frames=1)
    if kind is None:
        return next(timed_frames(path, limits, part)[1]).pixels(), []
    cut = cut_after_first_frame(path, kind) if kind in ("gif", "apng") else ""
    if kind in ("webp", "apng"):
        frame_HWC, note = animated_first(path, limits), ""
    else:
        try:
            check_stream(path, kind)
        except BadRequest as error:
            cut = cut or str(error)
            if kind != "gif" and not _first_is_whole(path, kind):
                raise
        frame = next(stream_frames(path, kind, limits, part), None)
        if frame is None:
            raise BadRequest(f"{path.name} contains no video frames")
        frame_HWC, note = frame.pixels(), frame.note
    cut = cut.removeprefix(f"{path.name} ").removesuffix("; get the whole file")
    return frame_HWC, [*([note] if note else []), *([f"{cut}; its first frame is used"] if cut else [])]


def _first_is_whole(path: Path, kind: str) -> bool:
    """Whether the first frame of a truncated video is whole, i.e. followed by another."""
    try:
        return len(list(islice(stream_frames(path, kind, decode_limits(), Part(frames=2)), 2))) > 1
    except BadRequest:
        return False
