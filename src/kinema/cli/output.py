"""Where a clip goes: names that exist are never overwritten unless the user says so."""

from __future__ import annotations

import os
import re
import tempfile
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from kinema.atomic import beside
from kinema.events import Note, OnEvent, ignore
from kinema.schema import MAX_PIXELS, BadRequest, Clip, Shape

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

        path = self.wanted
        for name in (path, *self.targets(path)):  # a batch has longer names than the one that was told
            check_output(name)
        try:
            # Only a try tells for sure: permissions say nothing of a read-only disk or of a full one.
            with tempfile.TemporaryFile(dir=path.parent) as probe:
                probe.write(b"kinema")
        except OSError as error:
            raise BadRequest(
                f"nothing can be created in the folder {path.parent.absolute()} ({error.strerror}); name another folder"
            ) from None
        if self.path is not None and not self.overwrite:
            taken = self._taken(self.path)
            if taken:
                raise BadRequest(f"{taken[0]} exists; choose another name, or pass --overwrite to replace it")

    def check_clip(self, shape: Shape, fps: float, on_event: OnEvent = ignore) -> None:
        """Refuse a clip that could not be written as it is asked for, and say what the format changes of it.

        ``shape`` and ``fps`` are the settled request's: known before media are read and weights loaded.
        """
        from kinema.media.write import check_output

        shape = replace(shape, height=shape.height * self.zoom, width=shape.width * self.zoom)
        pixels = shape.batch * shape.frames * shape.height * shape.width
        if pixels > MAX_PIXELS:
            raise BadRequest(
                f"zoom {self.zoom} makes {shape.frames} frames of {shape.width}×{shape.height}, which is more than "
                f"{MAX_PIXELS:,} pixels; ask for a smaller zoom"
            )
        for change in check_output(self.wanted, shape, fps, contact_sheet=self.contact_sheet):
            on_event(Note(change))

    def save(self, clip: Clip, on_event: OnEvent = ignore) -> list[Path]:
        """Write the clip; a name taken while the model was at work is stepped over, not replaced, and that is said."""
        clip = self._ready(clip, on_event)
        if self.overwrite:
            return clip.save(self.wanted, contact_sheet=self.contact_sheet)
        written = self._save_beside(clip)
        if self.path is not None and written[0] not in self.targets(self.path):
            on_event(Note(f"{self.path} appeared meanwhile and was kept; this clip is {written[0]}"))
        return written

    def save_partial(self, clip: Clip, on_event: OnEvent = ignore) -> list[Path]:
        """Write what there is of a cancelled clip as ``ball.partial.mp4``; nothing is ever replaced."""
        name = self.wanted
        mark = "-" if name.suffix.lower() in ("", ".png") else "."  # the end of a folder's name would read as a format
        return replace(
            self, path=name.with_name(f"{name.stem}{mark}partial{name.suffix}"), overwrite=False
        )._save_beside(self._ready(clip, on_event))

    def _ready(self, clip: Clip, on_event: OnEvent) -> Clip:
        """The clip enlarged as was asked for; says whether its sound is left out."""
        suffix = self.wanted.suffix.lower()
        if clip.sound is not None and suffix != ".mp4":
            what = "a folder of frames" if suffix in ("", ".png") else f"a {suffix[1:]}"
            on_event(Note(f"{what} holds no sound, so that of the clip is left out; name an .mp4 to keep it"))
        if self.zoom == 1:
            return clip
        video = clip.video.repeat_interleave(self.zoom, -1).repeat_interleave(self.zoom, -2)
        return replace(clip, video=video, recipe={**clip.recipe, "zoom": self.zoom})

    def _save_beside(self, clip: Clip) -> list[Path]:
        def save(path: Path) -> list[Path]:
            return clip.save(path, contact_sheet=self.contact_sheet, exclusive=True)

        return beside(self.wanted, save, self._taken)

    @property
    def wanted(self) -> Path:
        """The name that was told, or the one made from the title."""
        return self.path or Path(f"{slug(self.title)}.mp4")

    def _taken(self, path: Path) -> list[Path]:
        return [name for name in self.targets(path) if os.path.lexists(name)]

    def targets(self, path: Path) -> list[Path]:
        """Everything that saving to ``path`` would write, or could: one frame is a png, several a folder."""
        from kinema.media.write import targets

        return targets(path, self.clips, contact_sheet=self.contact_sheet)


def slug(title: str) -> str:
    """A file name from a sentence: "A red ball rolls right!" is ``a-red-ball-rolls-right``."""
    plain = unicodedata.normalize("NFKC", title).lower()
    words = re.sub(r"[^\w]+", "-", plain).strip("-_")
    if len(words) > MAX_SLUG:
        words = words[:MAX_SLUG].rsplit("-", 1)[0]
    # A name's limit is in bytes, and one letter can take four of them.
    return words.encode()[:200].decode(errors="ignore") or "clip"
