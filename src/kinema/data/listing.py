"""What a folder of captioned clips holds: every list and layout that people keep their clips in.

- ``a.mp4`` with ``a.txt`` beside it; a folder of numbered pictures with ``name.txt`` beside it;
- ``metadata.jsonl``, ``.csv`` or ``.json`` (Hugging Face VideoFolder: ``file_name`` and ``text`` or
  ``caption``; musubi: ``video_path``, ``caption``; DiffSynth: ``video``, ``prompt``; Open-Sora:
  ``path``, ``text``), or one such list of any other name;
- ``videos2caption.json`` (FastVideo: ``path``, ``cap``); ``videos.txt`` and ``prompt.txt``, line by line.

Paths in a list are relative to it and stay inside its folder: a data set that somebody else made must
not reach the rest of the disk, through links neither. A clip that is listed several times is one clip with all of
its captions. What is left out is named.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from kinema.bounds import few, printable, quoted
from kinema.data import lists
from kinema.data.inside import ABSENT, MAX_DEPTH, ODD, OUTSIDE, Inside, identity, is_folder
from kinema.schema import BadRequest

CLIPS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".webp"})
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
_PICTURE, _TWICE, _DEEP, _CLOSED, _BROKEN = "picture", "twice", "deep", "closed", "broken"


@dataclass(frozen=True)
class Entry:
    """One clip: a file or a folder of frames, its name in the data set, and its captions (none, one or several)."""

    path: Path
    name: str
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """The clips found, each once and in a fixed order, and sentences about what was left out."""

    entries: tuple[Entry, ...]
    left_out: tuple[str, ...]


def scan(folder: Path, *, follow_links: bool = False) -> Listing:
    """Every clip under ``folder``; raises BadRequest where there is none, or a list cannot be used.

    Only regular files inside the folder are read; with ``follow_links`` also those that its links lead to.
    """
    if not folder.is_dir():
        raise BadRequest(f"there is no folder {printable(str(folder), 200)}; expected clips with captions")
    walk = _Walk(Inside(folder, follow_links=follow_links))
    entries = walk.entries()
    left_out = walk.sentences()
    if not entries:
        told = printable(f": {'; '.join(left_out)}", 180) if left_out else ""
        raise BadRequest(
            f"there are no clips in {printable(str(folder), 80)}{told}; expected a.mp4 with a.txt beside it, "
            "or a metadata.jsonl, .csv or .json"
        )
    mute = sum(not e.captions for e in entries)
    if mute:
        left_out.append(f"{mute} of {len(entries)} clips without a caption: the model learns them without text")
    return Listing(entries, tuple(left_out))


class _Walk:
    """One pass over a folder: the clips by what they are on the disk, and the names of what is left out, by reason."""

    def __init__(self, inside: Inside) -> None:
        self.inside = inside
        self._clips: dict[Hashable, Entry] = {}
        self._captions: dict[Hashable, dict[str, None]] = {}
        self._seen: set[Hashable] = set()
        self._names: dict[str, list[str]] = {}
        self._unfit: list[tuple[str, str]] = []
        self._lists: list[str] = []
        self._links: list[tuple[Path, int]] = []

    def entries(self) -> tuple[Entry, ...]:
        """Walk, once."""
        self._folder(self.inside.root, 0)
        for path, depth in self._links:  # grows while links lead to folders with further ones
            self._one(path, depth)
        return tuple(replace(e, captions=tuple(self._captions[key])) for key, e in self._clips.items())

    def _leave(self, why: str, path: Path | str) -> None:
        self._names.setdefault(why, []).append(self._name(path) if isinstance(path, Path) else path)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.inside.root).as_posix()

    def _add(self, path: Path, captions: tuple[str, ...]) -> None:
        key = identity(path)
        if key in self._clips:
            self._leave(_TWICE, path)
        else:
            self._clips[key] = Entry(path, self._name(path))
        self._captions.setdefault(key, {}).update(dict.fromkeys(captions))

    def _folder(self, folder: Path, depth: int) -> None:
        """A folder's list where it has one, else its own files and then its subfolders."""
        if depth > MAX_DEPTH:
            self._leave(_DEEP, folder)
            return
        if identity(folder) in self._seen:
            return  # a link to where we were would lead round for ever
        self._seen.add(identity(folder))
        try:
            names = self.inside.names(folder)
        except OSError as error:
            if folder == self.inside.root:
                raise BadRequest(f"{printable(str(folder), 200)} cannot be read: {error.strerror}") from error
            self._leave(_CLOSED, folder)
            return
        try:
            found = self._rows(folder, names)
        except lists.UnusableCaptions as error:
            where = "" if folder == self.inside.root else f" of {printable(self._name(folder), 60)}"
            self._lists.append(f"the clips{where} are left out for their list: {printable(str(error), 160)}")
            return
        if found is not None:
            self._listed(folder, lists.counted(found, folder))
            return
        for path in names:
            if path.is_symlink():  # what has a name of its own in the data set keeps that
                self._links.append((path, depth))
            else:
                self._one(path, depth)

    def _one(self, path: Path, depth: int) -> None:
        kind = path.suffix.lower()
        fault = self.inside.fault(path)
        if fault is not None:
            self._leave(_BROKEN if fault == ABSENT else fault, path)
        elif is_folder(path):
            if not self._frames(path):
                self._folder(path, depth + 1)
        elif kind in CLIPS:
            self._captioned(path, path.with_name(f"{path.stem}.txt"))
        elif kind in PICTURES:
            self._leave(_PICTURE, path)

    def _frames(self, folder: Path) -> bool:
        """Take a folder for one clip where it is: two numbered pictures or more, neither clips nor captions there."""
        try:
            files = self.inside.names(folder)
        except OSError:
            return False
        pictures = [p for p in files if p.suffix.lower() in PICTURES]
        others = any(p.suffix.lower() in CLIPS | {".txt", ".csv", ".jsonl"} or is_folder(p) for p in files)
        if len(pictures) < 2 or others or not all(any(c.isdigit() for c in p.stem) for p in pictures):
            return False
        if self._whole(folder):
            # A folder of frames may have a dot in its name, which is no suffix.
            self._captioned(folder, folder.with_name(f"{folder.name}.txt"))
        return True

    def _whole(self, folder: Path) -> bool:
        """Whether every file of a folder of frames may be read; the first that may not is named."""
        try:
            faults = ((self.inside.fault(p), p) for p in self.inside.names(folder))
            fault, path = next(((why, p) for why, p in faults if why), (None, folder))
        except OSError:
            fault, path = _CLOSED, folder
        if fault:
            self._leave(_BROKEN if fault == ABSENT else fault, path)
        return fault is None

    def _captioned(self, clip: Path, beside: Path) -> None:
        """A clip with the text beside it; without the clip where there is such a file that cannot be read."""
        fault = self.inside.file(beside)
        if fault == ABSENT and not beside.is_symlink():
            self._add(clip, ())
        elif fault:
            self._unfit.append((self._name(clip), f"{printable(beside.name, 80)} is {fault}"))
        else:
            try:
                self._add(clip, lists.beside(beside))
            except lists.UnusableCaptions as error:
                self._unfit.append((self._name(clip), str(error)))

    # ----------------------------------------------------------------------------------- lists

    def _rows(self, folder: Path, names: list[Path]) -> Iterator[lists.Row] | None:
        """The rows of a folder's list, None where it has none.

        Raises Unfit for a list that is no text or may not be read: its clips were meant to have words.
        """
        files = [p for p in names if not is_folder(p)]
        named = [p for p in files if p.name in lists.NAMED] or [p for p in files if p.suffix in (".jsonl", ".csv")]
        if len(named) > 1:
            raise BadRequest(
                f"{printable(str(folder), 200)} holds {len(named)} lists of clips "
                f"({few([p.name for p in named], 60)}); expected one"
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
            told = lists.clip(f"{listed}/{where}", row)
            path = self._named(folder, where, told)
            if path is None:
                continue
            if path.suffix.lower() in PICTURES:
                self._leave(_PICTURE, path)
                continue
            try:
                self._add(path, lists.captions(where, row))
            except lists.UnusableCaptions as error:
                self._unfit.append((self._name(path), str(error)))

    def _named(self, folder: Path, where: str, told: str) -> Path | None:
        """The clip that a list names, or None where it is not read; a way out of the folder is refused."""
        parts = PurePosixPath(told.replace("\\", "/"))
        if Path(told).is_absolute() and Path(told).is_relative_to(folder.resolve()):
            parts = PurePosixPath(Path(told).relative_to(folder.resolve()).as_posix())
        if not parts.parts or parts.is_absolute() or ".." in parts.parts or re.match("[A-Za-z]:", told):
            raise BadRequest(
                f"{printable(str(folder), 120)}/{where} names {quoted(told)}, which is outside the folder; "
                "expected a path inside it"
            )
        # FastVideo's list stands beside a folder of the videos that it names.
        for path in (folder / parts, folder / "videos" / parts):
            fault = self.inside.fault(path)
            if fault is None:
                return path if not is_folder(path) or self._whole(path) else None
            if fault != ABSENT:
                self._leave(fault, path)
                return None
        self._leave(ABSENT, told)
        return None

    # ----------------------------------------------------------------------------------- saying

    def sentences(self) -> list[str]:
        """What was left out and why, a sentence a reason, with the first few names of each."""
        one = {
            _PICTURE: ("picture", "left out, since a picture shows no motion", ""),
            ABSENT: ("listed clip", "not there", ""),
            OUTSIDE: (
                "file",
                "left out, since it lies outside the folder (--follow-links reads it)",
                "left out, since they lie outside the folder (--follow-links reads them)",
            ),
            ODD: ("file", "left out, since only regular files are read", ""),
            _BROKEN: ("link", "left out, since it leads nowhere", "left out, since they lead nowhere"),
            _DEEP: (
                "folder",
                f"left out, since it is more than {MAX_DEPTH} folders deep",
                f"left out, since they are more than {MAX_DEPTH} folders deep",
            ),
            _CLOSED: (
                "folder",
                "left out, since this user may not read it",
                "left out, since this user may not read them",
            ),
            _TWICE: (
                "clip",
                "listed more than once; it is used once, with all its captions",
                "listed more than once; each is used once, with all its captions",
            ),
        }
        told = self._lists[:3]
        for key, (what, why, several) in one.items():
            if names := list(dict.fromkeys(self._names.get(key, ()))):
                why = several if len(names) > 1 and several else why  # noqa: PLW2901
                told.append(f"{_count(names, what)} {why} ({few(names, 60)})")
        if self._unfit:
            names = list(dict.fromkeys(name for name, _ in self._unfit))
            why = printable(self._unfit[0][1], 160)
            told.append(f"{_count(names, 'clip')} left out for the captions ({few(names, 60)}): {why}")
        return told


def _count(names: list[str], what: str) -> str:
    return f"1 {what} is" if len(names) == 1 else f"{len(names)} {what}s are"
