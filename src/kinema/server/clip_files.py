"""The files of a finished clip: written into a folder that is renamed at the end, so there is all or nothing.

Imports without torch; the functions that write import it.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.atomic import FULL, sync
from kinema.values import strict

if TYPE_CHECKING:
    import numpy as np

    from kinema.schema import Clip

THUMBNAIL, SHEET, FRAMES, RECIPE = "thumbnail.webp", "spritesheet.jpg", "frames.npz", "recipe.json"
RESULT = "result.json"
EACH = frozenset({"video", "thumbnail", "spritesheet"})
"""Variants of which every clip of a batch has its own file; the others hold all clips."""
VARIANTS = {"thumbnail": THUMBNAIL, "spritesheet": SHEET, "frames": FRAMES, "recipe": RECIPE}
SHEET_COLUMNS, SHEET_ROWS, SHEET_SIDE, THUMBNAIL_SIDE = 5, 5, 256, 512
"""Largest number of frames in a spritesheet, and longest sides in pixels."""


class DiskFull(Exception):
    """The disk is full; nothing was left behind."""


def file_of(folder: Path, video_id: str, variant: str, clip: int = 0) -> Path:
    """Return the file of a variant in ``folder``, of one clip of a batch if each has its own."""
    return numbered(folder / VARIANTS.get(variant, f"{video_id}.mp4"), clip if variant in EACH else 0)


def numbered(path: Path, clip: int) -> Path:
    """Return the path for a clip of a batch; the first has the plain name."""
    return path.with_stem(f"{path.stem}-{clip}") if clip else path


def result_of(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished folder; None if there is no finished one."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def save(clip: Clip, folder: Path, video_id: str, *, sign: Any = None, partial: bool = False) -> dict[str, Any]:
    """Write a clip's files into the folder ``VIDEO_ID`` next to ``folder`` and return its result.

    ``sign`` is called with the mp4. Files are written into ``folder``, which is then renamed; it is removed on failure.
    Raises `DiskFull`.
    """
    final = folder.with_name(video_id)
    try:
        folder.mkdir()
        result = _write(clip, folder, video_id, sign, partial=partial)
        for file in folder.iterdir():
            sync(file)
        sync(folder)
        folder.rename(final)
        sync(final.parent)
        return result
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if is_full(error):
            raise DiskFull from error
        raise


def is_full(error: BaseException | None) -> bool:
    """Whether an exception, or what caused it, reports a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False


def _write(clip: Clip, folder: Path, video_id: str, sign: Any, *, partial: bool) -> dict[str, Any]:
    from kinema.media.colour import to_uint8

    mp4 = folder / f"{video_id}.mp4"
    files = clip.save(mp4)
    if len(files) > 1:  # a batch is written as ID-0.mp4…; the first is the video
        files[0].rename(mp4)
        files = [mp4, *files[1:]]
    if sign is not None:
        for file in files:
            sign(file)
    frames_NTHWC = to_uint8(clip.video)
    _write_frames(folder / FRAMES, frames_NTHWC, clip.sound)
    for number, frames_THWC in enumerate(frames_NTHWC):
        _write_images(folder, frames_THWC, number)
    recipe = json.dumps(strict(clip.recipe), ensure_ascii=False, indent=2, allow_nan=False)
    (folder / RECIPE).write_text(recipe + "\n", encoding="utf-8")
    clips, frames, height, width, _ = frames_NTHWC.shape
    result = {
        "clips": clips, "frames": frames, "fps": clip.fps, "height": height, "width": width, "seed": _seed(clip.recipe),
        "bytes": sum(file.stat().st_size for file in folder.iterdir()), "partial": partial,
        "variants": ["video", *VARIANTS], "sound": clip.sound is not None, "files": [file.name for file in files],
    }  # fmt: skip
    (folder / RESULT).write_text(json.dumps(result) + "\n", encoding="utf-8")  # the last: the folder is complete
    return result


def _seed(recipe: Mapping[str, Any]) -> int | None:
    stages = recipe.get("stages") or [{}]
    return stages[0].get("request", {}).get("seed")


def _write_frames(path: Path, frames_NTHWC: np.ndarray, sound: bytes | None) -> None:
    """Write an npz, compressed at zlib's fastest level: NumPy's own takes several times as long."""
    import numpy as np

    arrays = {"frames": frames_NTHWC}
    if sound is not None:
        arrays["sound"] = np.frombuffer(sound, np.uint8)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def _write_images(folder: Path, frames_THWC: np.ndarray, clip: int) -> None:
    from PIL import Image

    count, height, width, _ = frames_THWC.shape
    middle = Image.fromarray(frames_THWC[count // 2])
    middle.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    middle.save(numbered(folder / THUMBNAIL, clip), quality=80)
    shown = min(count, SHEET_COLUMNS * SHEET_ROWS)
    columns = min(shown, SHEET_COLUMNS)
    scale = min(1.0, SHEET_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    sheet = Image.new("RGB", (size[0] * columns, size[1] * -(-shown // columns)))
    for number in range(shown):
        index = round(number * (count - 1) / max(shown - 1, 1))
        tile = Image.fromarray(frames_THWC[index]).resize(size, Image.Resampling.BILINEAR)
        sheet.paste(tile, (number % columns * size[0], number // columns * size[1]))
    sheet.save(numbered(folder / SHEET, clip), quality=85)


def tidy(folder: Path, known: Collection[str]) -> None:
    """Remove unfinished folders, and those of jobs or uploads that the store does not know."""
    for entry in folder.iterdir():
        if entry.name not in known:
            remove(entry)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        aside = path.with_name(f"{path.name}.gone")
        try:
            path.rename(aside)  # from now on nobody finds a part of it
        except OSError:
            aside = path
        shutil.rmtree(aside, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
