"""Where a clip goes: names that exist are never overwritten unless the user says so."""

from __future__ import annotations

import itertools
import re
import tempfile
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from kinema.atomic import check_folder
from kinema.schema import BadRequest, Clip

MAX_SLUG = 60
MAX_ZOOM = 64


@dataclass(frozen=True)
class Output:
    """``path`` as told by the user, or None for a name made from ``title``; ``clips`` files in all.

    ``zoom`` enlarges every pixel to a square of that side when saving; the recipe says so.
    """

    path: Path | None
    title: str
    clips: int = 1
    overwrite: bool = False
    contact_sheet: bool = False
    zoom: int = 1

    def __post_init__(self) -> None:
        if type(self.zoom) is not int or not 1 <= self.zoom <= MAX_ZOOM:
            raise BadRequest(f"zoom is {self.zoom!r}; expected a whole number from 1 to {MAX_ZOOM}")

    def check(self) -> None:
        """Refuse, before any work, an output that could not be written at the end."""
        from kinema.media.write import check_output

        path = self.path or Path(f"{slug(self.title)}.mp4")
        check_output(path)
        for name in self.targets(path):  # a batch has longer names than the one that was told
            check_folder(name)
        try:
            # Only a try tells for sure: permissions say nothing of a read-only disk or of a full one.
            with tempfile.TemporaryFile(dir=path.parent) as probe:
                probe.write(b"kinema")
        except OSError as error:
            raise BadRequest(f"cannot write to the folder {path.parent}: {error.strerror}") from None
        if self.path is not None and not self.overwrite:
            taken = self._taken(self.path)
            if taken:
                raise BadRequest(f"{taken[0]} exists; choose another name, or pass --overwrite to replace it")

    def save(self, clip: Clip) -> list[Path]:
        """Write the clip; a name taken while the model was at work is stepped over, not replaced."""
        if self.zoom > 1:
            video = clip.video.repeat_interleave(self.zoom, -1).repeat_interleave(self.zoom, -2)
            clip = replace(clip, video=video, recipe={**clip.recipe, "zoom": self.zoom})
        path = self.path or Path(f"{slug(self.title)}.mp4")
        if not self.overwrite:
            path = self.free(path)
        return clip.save(path, contact_sheet=self.contact_sheet)

    def free(self, path: Path) -> Path:
        """``path``, or the first of ``name-2``, ``name-3``… of which nothing exists."""
        for count in itertools.count(2):
            if not self._taken(path):
                return path
            wanted = self.path or Path(f"{slug(self.title)}.mp4")
            path = wanted.with_name(f"{wanted.stem}-{count}{wanted.suffix}")
        raise AssertionError("unreachable")

    def _taken(self, path: Path) -> list[Path]:
        return [name for name in self.targets(path) if name.exists()]

    def targets(self, path: Path) -> list[Path]:
        """Everything that saving to ``path`` would write, or could: one frame is a png, several a folder."""
        names = (
            [path] if self.clips == 1 else [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(self.clips)]
        )
        if path.suffix.lower() == ".png":
            names += [name.with_suffix("") for name in names]
        if self.contact_sheet:
            names.append(path.with_name(f"{path.stem}.sheet.png"))
        return names


def slug(title: str) -> str:
    """A file name from a sentence: "A red ball rolls right!" is ``a-red-ball-rolls-right``."""
    plain = unicodedata.normalize("NFKC", title).lower()
    words = re.sub(r"[^\w]+", "-", plain).strip("-_")
    if len(words) > MAX_SLUG:
        words = words[:MAX_SLUG].rsplit("-", 1)[0]
    # A name's limit is in bytes, and one letter can take four of them.
    return words.encode()[:200].decode(errors="ignore") or "clip"
