"""Where a clip is written: existing files are never overwritten unless the user passes --overwrite."""

from __future__ import annotations

import os
import re
import tempfile
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from kinema.atomic import write_numbered
from kinema.events import Note, OnEvent, ignore
from kinema.schema import MAX_PIXELS, BadRequest, Clip, Shape

MAX_SLUG = 60
MAX_ZOOM = 64


@dataclass(frozen=True)
class Output:
    """The output ``path``, or None for a name derived from ``title``; a batch of ``clips`` writes that many files.

    ``zoom`` enlarges every pixel to a square of that side when saving, and is recorded in the recipe.
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
        """Refuse, before any work, an output that could not be written. Raises BadRequest."""
        from kinema.media.write import check_output

        path = self.target
        for name in (path, *self.targets(path)):  # the names of a batch are longer than the given one
            check_output(name)
        try:
            # Only a trial write is certain: permissions do not reveal a read-only or full disk.
            with tempfile.TemporaryFile(dir=path.parent) as probe:
                probe.write(b"kinema")
        except OSError as error:
            raise BadRequest(
                f"cannot create files in {path.parent.absolute()} ({error.strerror}); choose another folder"
            ) from None
        if self.path is not None and not self.overwrite:
            taken = self._taken(self.path)
            if taken:
                raise BadRequest(f"{taken[0]} exists; choose another name, or pass --overwrite to replace it")

    def check_clip(self, shape: Shape, fps: float, on_event: OnEvent = ignore) -> None:
        """Refuse a clip that the format cannot hold, and report what the format changes. Raises BadRequest.

        ``shape`` and ``fps`` are those of the settled request, known before media are read and weights loaded.
        """
        from kinema.media.write import check_output

        shape = replace(shape, height=shape.height * self.zoom, width=shape.width * self.zoom)
        pixels = shape.batch * shape.frames * shape.height * shape.width
        if pixels > MAX_PIXELS:
            raise BadRequest(
                f"zoom {self.zoom} gives {shape.frames} frames of {shape.width}×{shape.height}, more than "
                f"{MAX_PIXELS:,} pixels; choose a smaller zoom"
            )
        for change in check_output(self.target, shape, fps, contact_sheet=self.contact_sheet):
            on_event(Note(change))

    def save(self, clip: Clip, on_event: OnEvent = ignore) -> list[Path]:
        """Write the clip and return the paths; if the name was taken meanwhile, use the next free one and report it."""
        clip = self._ready(clip, on_event)
        if self.overwrite:
            return clip.save(self.target, contact_sheet=self.contact_sheet)
        written = self._save_beside(clip)
        if self.path is not None and written[0] not in self.targets(self.path):
            on_event(Note(f"{self.path} was created meanwhile and is kept; this clip is {written[0]}"))
        return written

    def save_kept(self, clip: Clip, mark: str, on_event: OnEvent = ignore) -> list[Path]:
        """Write what a cancelled run leaves, as ``ball.partial.mp4`` for ``mark`` "partial"; never replaces a file."""
        name = self.target
        point = (
            "-" if name.suffix.lower() in ("", ".png") else "."
        )  # a folder named x.partial would be read as a format
        return replace(
            self, path=name.with_name(f"{name.stem}{point}{mark}{name.suffix}"), overwrite=False
        )._save_beside(self._ready(clip, on_event))

    def _ready(self, clip: Clip, on_event: OnEvent) -> Clip:
        """The clip with zoom applied; reports when its sound is dropped."""
        suffix = self.target.suffix.lower()
        if clip.sound is not None and suffix != ".mp4":
            what = "a folder of frames" if suffix in ("", ".png") else f"a {suffix[1:]}"
            on_event(Note(f"{what} holds no sound, so the clip's sound is dropped; write an .mp4 to keep it"))
        if self.zoom == 1:
            return clip
        video = clip.video.repeat_interleave(self.zoom, -1).repeat_interleave(self.zoom, -2)
        return replace(clip, video=video, recipe={**clip.recipe, "zoom": self.zoom})

    def _save_beside(self, clip: Clip) -> list[Path]:
        def save(path: Path) -> list[Path]:
            return clip.save(path, contact_sheet=self.contact_sheet, exclusive=True)

        return write_numbered(self.target, save, self._taken)

    @property
    def target(self) -> Path:
        """The given path, or the one derived from the title."""
        return self.path or Path(f"{slug(self.title)}.mp4")

    def _taken(self, path: Path) -> list[Path]:
        return [name for name in self.targets(path) if os.path.lexists(name)]

    def targets(self, path: Path) -> list[Path]:
        """Every path that saving to ``path`` may write: one frame is a png file, several are a folder."""
        from kinema.media.write import targets

        return targets(path, self.clips, contact_sheet=self.contact_sheet)


def slug(title: str) -> str:
    """A file name from a prompt: "A red ball rolls right!" gives ``a-red-ball-rolls-right``."""
    plain = unicodedata.normalize("NFKC", title).lower()
    words = re.sub(r"[^\w]+", "-", plain).strip("-_")
    if len(words) > MAX_SLUG:
        words = words[:MAX_SLUG].rsplit("-", 1)[0]
    # File systems limit names in bytes, and one character can take four.
    return words.encode()[:200].decode(errors="ignore") or "clip"
