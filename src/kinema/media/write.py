"""Write clips atomically as mp4, gif, webp or png frames, with the recipe inside."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kinema.atomic import check_folder, refuse_foreign, replacing
from kinema.media import formats, metadata
from kinema.media.colour import to_uint8
from kinema.schema import BadRequest, Clip, Shape

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".mp4", ".gif", ".webp", ".png")
FILES = (".mp4", ".gif", ".webp")
_FRAMES = re.compile(rf"frame-.*\.png|{re.escape(metadata.FOLDER_RECIPE)}", re.DOTALL)


def check_output(
    path: str | Path, shape: Shape | None = None, fps: float = 8.0, *, contact_sheet: bool = False
) -> list[str]:
    """Reject, before sampling, an output that `save_clip` would reject.

    Raises `BadRequest` for an unknown suffix, a missing or read-only folder, a folder in place of a file or the
    reverse, or a name that is too long and, given the clip's ``shape`` and ``fps``, a size or rate that the format does
    not support. Returns notes on what the format changes in the clip.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise BadRequest(f"cannot write {path}: it is an existing folder; expected a file name or a new folder")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES and (path.suffix or path.name.startswith(".")):
        raise BadRequest(
            f"cannot write {path.name}: expected a name ending in .mp4, .gif, .webp or .png, "
            "or a name without an ending for a folder of png frames"
        )
    clips, frames = (1, None) if shape is None else (shape.batch, shape.frames)
    for target in (path, *targets(path, clips, frames, contact_sheet=contact_sheet)):
        check_folder(target)
        if target.suffix.lower() in FILES or target.name.endswith(SHEET):
            if target.is_dir():
                raise BadRequest(f"cannot write {target}: it is a folder; expected a file name")
        elif not target.suffix and (suffix != ".png" or frames is not None):
            if target.is_file():
                raise BadRequest(f"cannot write {target}: it is a file; png frames need a folder of that name")
            _refuse_foreign(target)
    return [] if shape is None else formats.check(suffix, shape, fps)


SHEET = ".sheet.png"


def targets(path: Path, clips: int = 1, frames: int | None = None, *, contact_sheet: bool = False) -> list[Path]:
    """Paths that `save_clip` writes for a batch of ``clips``, contact sheet last.

    One frame as ``.png`` is an image and several are a folder; without ``frames``, both are listed.
    """
    names = [path] if clips == 1 else [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(clips)]
    if path.suffix.lower() == ".png" and frames != 1:
        folders = [name.with_suffix("") for name in names]
        names = names + folders if frames is None else folders
    return [*names, path.with_name(f"{path.stem}{SHEET}")] if contact_sheet else names


def save_clip(
    clip: Clip,
    path: str | Path,
    *,
    contact_sheet: bool = False,
    crf: float | None = None,
    generated: bool = True,
    exclusive: bool = False,
) -> list[Path]:
    """Write a clip by its suffix and return the paths written, contact sheets last.

    ``.mp4`` is h264 yuv420p BT.709 with the index first, and the clip's sound; ``.gif`` and ``.webp`` loop; ``.png`` is
    an image for one frame, otherwise a folder of that name without the suffix, as is a name without one. A batch is
    written as ``name-0``, ``name-1``…. ``crf`` is x264's quality (mp4 only; 0 best, 51 worst). An mp4 repeats a row or
    column to make an odd side even, and a gif or webp drops frames above its frame rate limit (50 and 90 per second);
    the recipe's ``notes`` report that. ``generated=False`` omits the AI-generated marker.

    Existing files are replaced by a rename at the end, so no partial file remains. With ``exclusive`` nothing is
    replaced and a batch is written completely or not at all: `Taken` is raised if one of the names exists, even if it
    appeared meanwhile. Otherwise, if the disk fills up, clips of the batch that are already written stay, since the
    files they replaced are gone. Raises `BadRequest` for an unknown suffix, a missing or read-only folder, a full disk,
    a size or rate that the format does not support, or pixels that are not finite.
    """
    path, shape = Path(path), clip.shape
    suffix = path.suffix.lower()
    if clip.video.numel() == 0:
        raise BadRequest(f"cannot write {path.name}: the clip is empty ({'×'.join(map(str, clip.video.shape))})")
    changed = check_output(path, shape, clip.fps, contact_sheet=contact_sheet)
    if crf is not None and (suffix != ".mp4" or not 0 <= crf <= 51):
        raise BadRequest(f"crf is {crf:g} for {path.name}; expected 0 to 51 and an .mp4 file")
    names = targets(path, shape.batch, shape.frames)
    save = _Saver(clip, crf, generated, exclusive)
    try:
        for index, (target, frames_THWC) in enumerate(zip(names, to_uint8(clip.video), strict=True)):
            recipe = dict(clip.recipe) if shape.batch == 1 else {**clip.recipe, "clip": index}
            recipe |= {"notes": [*recipe.get("notes", ()), *changed]} if changed else {}
            save.one(frames_THWC, target, recipe)
        if contact_sheet:
            save.sheet(targets(path, contact_sheet=True)[-1])
    except BaseException:
        if exclusive:
            save.undo()
        raise
    return [target for target, _ in save.written]


def contact_sheet(clip: Clip, columns: int = 8) -> Image:
    """Tile all frames of a clip into one image, ``columns`` per row; each batch item starts a new row."""
    from PIL import Image

    if columns < 1:
        raise BadRequest(f"columns is {columns}; expected at least 1")
    frames_BTHWC = to_uint8(clip.video)
    batch, count, height, width, _ = frames_BTHWC.shape
    columns = min(columns, count)
    rows, gap = -(-count // columns), max(1, min(height, width) // 32)
    sheet = np.full((batch * rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for b, frames_THWC in enumerate(frames_BTHWC):
        for t, frame_HWC in enumerate(frames_THWC):
            top, left = (b * rows + t // columns) * (height + gap), t % columns * (width + gap)
            sheet[top : top + height, left : left + width] = frame_HWC
    return Image.fromarray(sheet)


# -------------------------------------------------------------------------------------- one target


class _Saver:
    """Writes the outputs of one clip; `undo` removes them again."""

    def __init__(self, clip: Clip, crf: float | None, generated: bool, exclusive: bool) -> None:
        self.clip, self.crf, self.generated, self.exclusive = clip, crf, generated, exclusive
        self.rate = formats.rate_of(clip.fps)
        self.written: list[tuple[Path, int]] = []

    def one(self, frames_THWC: np.ndarray, path: Path, recipe: dict[str, object]) -> None:
        tags = metadata.tags(recipe, generated=self.generated)
        suffix = path.suffix.lower()
        if not suffix:
            _refuse_foreign(path)
        with replacing(path, folder=not suffix, exclusive=self.exclusive) as part:
            if suffix == ".mp4":
                formats.write_mp4(_even(frames_THWC), self.rate, part, tags, self.crf, self.clip.sound)
            elif suffix == ".gif":
                formats.write_gif(frames_THWC, self.rate, part, tags)
            elif suffix == ".webp":
                formats.write_webp(frames_THWC, self.rate, part, tags)
            elif suffix == ".png":
                formats.write_png(frames_THWC[0], part, tags)
            else:
                _fill_folder(frames_THWC, self.clip.fps, part, tags)
        self._note(path)

    def sheet(self, path: Path) -> None:
        sheet = np.asarray(contact_sheet(self.clip))
        with replacing(path, exclusive=self.exclusive) as part:
            formats.write_png(sheet, part, metadata.tags(self.clip.recipe, generated=self.generated))
        self._note(path)

    def undo(self) -> None:
        for path, inode in self.written:
            if path.exists() and path.lstat().st_ino == inode:  # skip files that another process has replaced since
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _note(self, path: Path) -> None:
        self.written.append((path, path.lstat().st_ino))


def _fill_folder(frames_THWC: np.ndarray, fps: float, folder: Path, tags: formats.Tags) -> None:
    """Write ``frame-0000.png``… and ``recipe.json``."""
    recipe = {**tags, metadata.KEY: json.loads(tags[metadata.KEY]), "fps": fps}
    for index, frame_HWC in enumerate(frames_THWC):
        formats.write_png(frame_HWC, folder / f"frame-{index:04d}.png", tags)
    (folder / metadata.FOLDER_RECIPE).write_text(json.dumps(recipe, indent=2) + "\n")


def _even(frames_THWC: np.ndarray) -> np.ndarray:
    height, width = frames_THWC.shape[1:3]
    if height % 2 == 0 and width % 2 == 0:
        return frames_THWC
    return np.pad(frames_THWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _refuse_foreign(folder: Path) -> None:
    """Raise unless a folder contains only frames and the recipe; hidden files count, since they would be lost."""
    refuse_foreign(folder, _FRAMES.fullmatch, "a clip of png frames", "a new name for the png frames")
