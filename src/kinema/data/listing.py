"""Find the captioned clips of a folder, in the common layouts and list formats.

- ``a.mp4`` with ``a.txt`` next to it; a folder of numbered images with ``name.txt`` next to it;
- ``metadata.jsonl``, ``.csv`` or ``.json`` (Hugging Face VideoFolder: ``file_name`` and ``text`` or
  ``caption``; musubi: ``video_path``, ``caption``; DiffSynth: ``video``, ``prompt``; Open-Sora:
  ``path``, ``text``), or one such list of any other name;
- ``videos2caption.json`` (FastVideo: ``path``, ``cap``); ``videos.txt`` and ``prompt.txt``, line by line.

Paths in a list are relative to it and must stay inside its folder: an untrusted data set must not reach the rest of
the disk, not through links either. A clip listed several times is one clip with all its captions. Skipped files are
reported.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from kinema.bounds import first_names, printable, quoted
from kinema.data import lists
from kinema.data.containment import ABSENT, MAX_DEPTH, ODD, OUTSIDE, Inside, identity, is_folder
from kinema.schema import BadRequest

CLIPS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".webp"})
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
_IMAGE, _TWICE, _DEEP, _CLOSED, _BROKEN = "image", "twice", "deep", "closed", "broken"


@dataclass(frozen=True)
class Entry:
    """One clip: a file or a folder of frames, its name in the data set, and its captions (zero or more)."""

    path: Path
    name: str
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """The clips found, each once and in a fixed order, and messages on skipped files."""

    entries: tuple[Entry, ...]
    skipped: tuple[str, ...]


def scan(folder: Path, *, follow_links: bool = False, images: bool = False) -> Listing:
    """Find every clip under ``folder``; raises BadRequest if there is none, or a list is unusable.

    Only regular files inside the folder are read; with ``follow_links`` also files that its links lead to. With
    ``images``, images count as clips of one frame.
    """
    if not folder.is_dir():
        raise BadRequest(f"there is no folder {printable(str(folder), 200)}; expected clips with captions")
    walk = _Walk(Inside(folder, follow_links=follow_links), CLIPS | IMAGES if images else CLIPS)
    entries = walk.entries()
    skipped = walk.messages()
    if not entries:
        reasons = printable(f": {'; '.join(skipped)}", 180) if skipped else ""
        raise BadRequest(
            f"there are no clips in {printable(str(folder), 80)}{reasons}; expected a.mp4 with a.txt next to it, "
            "or a metadata.jsonl, .csv or .json"
        )
    uncaptioned = sum(not e.captions for e in entries)
    if uncaptioned:
        skipped.append(f"{uncaptioned} of {len(entries)} clips have no caption: they are trained with empty text")
    return Listing(entries, tuple(skipped))


class _Walk:
    """One walk over a folder: the clips by file identity, and the names of skipped files by reason."""

    def __init__(self, inside: Inside, kinds: frozenset[str] = CLIPS) -> None:
        self.inside, self.kinds = inside, kinds
        self._clips: dict[Hashable, Entry] = {}
        self._captions: dict[Hashable, dict[str, None]] = {}
        self._seen: set[Hashable] = set()
        self._names: dict[str, list[str]] = {}
        self._unfit: list[tuple[str, str]] = []
        self._lists: list[str] = []
        self._links: list[tuple[Path, int]] = []

    def entries(self) -> tuple[Entry, ...]:
        """Walk the folder; call once."""
        self._folder(self.inside.root, 0)
        for path, depth in self._links:  # grows while linked folders hold further links
            self._one(path, depth)
        return tuple(replace(e, captions=tuple(self._captions[key])) for key, e in self._clips.items())

    def _skip(self, why: str, path: Path | str) -> None:
        self._names.setdefault(why, []).append(self._name(path) if isinstance(path, Path) else path)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.inside.root).as_posix()

    def _add(self, path: Path, captions: tuple[str, ...]) -> None:
        key = identity(path)
        if key in self._clips:
            self._skip(_TWICE, path)
        else:
            self._clips[key] = Entry(path, self._name(path))
        self._captions.setdefault(key, {}).update(dict.fromkeys(captions))

    def _folder(self, folder: Path, depth: int) -> None:
        """Add the clips of a folder's list if it has one, else of its files and then its subfolders."""
        if depth > MAX_DEPTH:
            self._skip(_DEEP, folder)
            return
        if identity(folder) in self._seen:
            return  # a link to a visited folder would loop
        self._seen.add(identity(folder))
        try:
            names = self.inside.names(folder)
        except OSError as error:
            if folder == self.inside.root:
                raise BadRequest(f"{printable(str(folder), 200)} cannot be read: {error.strerror}") from error
            self._skip(_CLOSED, folder)
            return
        try:
            found = self._rows(folder, names)
        except lists.UnusableCaptions as error:
            where = "" if folder == self.inside.root else f" of {printable(self._name(folder), 60)}"
            self._lists.append(
                f"the clips{where} are skipped because their list is unusable: {printable(str(error), 160)}"
            )
            return
        if found is not None:
            self._listed(folder, lists.counted(found, folder))
            return
        for path in names:
            if path.is_symlink():  # a file reached both ways keeps its own name
                self._links.append((path, depth))
            else:
                self._one(path, depth)

    def _one(self, path: Path, depth: int) -> None:
        kind = path.suffix.lower()
        fault = self.inside.fault(path)
        if fault is not None:
            self._skip(_BROKEN if fault == ABSENT else fault, path)
        elif is_folder(path):
            if not self._frames(path):
                self._folder(path, depth + 1)
        elif kind in self.kinds:
            self._captioned(path, path.with_name(f"{path.stem}.txt"))
        elif kind in IMAGES:
            self._skip(_IMAGE, path)

    def _frames(self, folder: Path) -> bool:
        """Add a folder of frames as one clip: two or more numbered images, and no clips or captions."""
        try:
            files = self.inside.names(folder)
        except OSError:
            return False
        images = [p for p in files if p.suffix.lower() in IMAGES]
        others = any(p.suffix.lower() in CLIPS | {".txt", ".csv", ".jsonl"} or is_folder(p) for p in files)
        if len(images) < 2 or others or not all(any(c.isdigit() for c in p.stem) for p in images):
            return False
        if self._whole(folder):
            # A dot in the name of a folder does not start a suffix.
            self._captioned(folder, folder.with_name(f"{folder.name}.txt"))
        return True

    def _whole(self, folder: Path) -> bool:
        """Whether every file of a folder of frames may be read; records the first that may not."""
        try:
            faults = ((self.inside.fault(p), p) for p in self.inside.names(folder))
            fault, path = next(((why, p) for why, p in faults if why), (None, folder))
        except OSError:
            fault, path = _CLOSED, folder
        if fault:
            self._skip(_BROKEN if fault == ABSENT else fault, path)
        return fault is None

    def _captioned(self, clip: Path, caption: Path) -> None:
        """Add a clip with its caption file; skip the clip if the file exists but is unusable."""
        fault = self.inside.file(caption)
        if fault == ABSENT and not caption.is_symlink():
            self._add(clip, ())
        elif fault:
            self._unfit.append((self._name(clip), f"{printable(caption.name, 80)} is {fault}"))
        else:
            try:
                self._add(clip, lists.caption_file(caption))
            except lists.UnusableCaptions as error:
                self._unfit.append((self._name(clip), str(error)))

    # ----------------------------------------------------------------------------------- lists

    def _rows(self, folder: Path, names: list[Path]) -> Iterator[lists.Row] | None:
        """The rows of a folder's list, None if it has none.

        Raises UnusableCaptions if the list is not text or may not be read: its clips were meant to have captions.
        """
        files = [p for p in names if not is_folder(p)]
        named = [p for p in files if p.name in lists.NAMED] or [p for p in files if p.suffix in (".jsonl", ".csv")]
        if len(named) > 1:
            raise BadRequest(
                f"{printable(str(folder), 200)} holds {len(named)} lists of clips "
                f"({first_names([p.name for p in named], 60)}); expected one"
            )
        if named:
            self._readable(named[0])
            return lists.rows(named[0])
        by_name = {p.name: p for p in files}
        videos, prompts = by_name.get("videos.txt"), by_name.get("prompt.txt", by_name.get("prompts.txt"))
        if videos is None or prompts is None:
            return None
        self._readable(videos)
        self._readable(prompts)
        return lists.pairs(videos, prompts)

    def _readable(self, path: Path) -> None:
        if fault := self.inside.file(path):
            raise lists.UnusableCaptions(f"{printable(path.name, 80)} is {fault}")

    def _listed(self, folder: Path, rows: Iterator[lists.Row]) -> None:
        listed = printable(str(folder), 100)
        for where, row in rows:
            path = self._resolved(folder, where, lists.clip(f"{listed}/{where}", row))
            if path is None:
                continue
            if path.suffix.lower() in IMAGES - self.kinds:
                self._skip(_IMAGE, path)
                continue
            try:
                self._add(path, lists.captions(where, row))
            except lists.UnusableCaptions as error:
                self._unfit.append((self._name(path), str(error)))

    def _resolved(self, folder: Path, where: str, name: str) -> Path | None:
        """The clip that a list names, None if it is skipped; raises BadRequest for a path outside the folder."""
        parts = PurePosixPath(name.replace("\\", "/"))
        if Path(name).is_absolute() and Path(name).is_relative_to(folder.resolve()):
            parts = PurePosixPath(Path(name).relative_to(folder.resolve()).as_posix())
        if not parts.parts or parts.is_absolute() or ".." in parts.parts or re.match("[A-Za-z]:", name):
            raise BadRequest(
                f"{printable(str(folder), 120)}/{where} names {quoted(name)}, which is outside the folder; "
                "expected a path inside it"
            )
        # FastVideo keeps the list next to a folder of its videos.
        for path in (folder / parts, folder / "videos" / parts):
            fault = self.inside.fault(path)
            if fault is None:
                return path if not is_folder(path) or self._whole(path) else None
            if fault != ABSENT:
                self._skip(fault, path)
                return None
        self._skip(ABSENT, name)
        return None

    # --------------------------------------------------------------------------------- messages

    def messages(self) -> list[str]:
        """One message for each reason to skip files, with the first few names."""
        texts = {
            _IMAGE: ("image", "skipped: an image has no motion", ""),
            ABSENT: ("listed clip", "missing", ""),
            OUTSIDE: (
                "file",
                "skipped: outside the folder (--follow-links reads it)",
                "skipped: outside the folder (--follow-links reads them)",
            ),
            ODD: ("file", "skipped: not a regular file", "skipped: not regular files"),
            _BROKEN: ("broken link", "skipped", ""),
            _DEEP: ("folder", f"skipped: nested more than {MAX_DEPTH} levels deep", ""),
            _CLOSED: ("folder", "skipped: permission denied", ""),
            _TWICE: (
                "clip",
                "listed more than once and used once, with all its captions",
                "listed more than once and used once each, with all their captions",
            ),
        }
        messages = self._lists[:3]
        for key, (what, why, several) in texts.items():
            if names := list(dict.fromkeys(self._names.get(key, ()))):
                why = several if len(names) > 1 and several else why  # noqa: PLW2901
                messages.append(f"{_count(names, what)} {why} ({first_names(names, 60)})")
        if self._unfit:
            names = list(dict.fromkeys(name for name, _ in self._unfit))
            why = printable(self._unfit[0][1], 160)
            messages.append(f"{_count(names, 'clip')} skipped for unusable captions ({first_names(names, 60)}): {why}")
        return messages


def _count(names: list[str], what: str) -> str:
    return f"1 {what} is" if len(names) == 1 else f"{len(names)} {what}s are"
