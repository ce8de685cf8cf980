"""A folder of the user's own clips as training data.

How a clip is served, so that nothing has to be guessed:

- order: each pass goes through all clips once, in an order drawn from (seed, pass);
- time: the clip is brought to ``fps`` by nearest time stamp (the file's own frames when ``fps`` is
  None), then every ``frameskip``-th frame is taken from a start drawn from (seed, index);
- short clips hold their last frame; with less than half of the frames wanted they are left out,
  since a model trained on stills learns to stand still;
- space: scaled (antialiased, aspect kept) until it covers height×width, then cut there, in the centre
  or at a place drawn from (seed, index); all frames alike;
- mirrored, where asked for, half of the time, the whole clip, and never one whose caption names a side;
- several captions: one is drawn. None: the empty caption.
- rate and motion: each clip comes with the rate it is served at, and with its motion where
  `kinema data motion-bucket` has written it beside the clips.
- pictures are left out: for joint training on pictures (VDM §3.1) frames of clips serve.

Everything is a pure function of (seed, index) and the files, so that a resumed run goes on exactly.
A file that cannot be decoded is reported once and its place is taken by the next.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kinema.data import moved
from kinema.data.clip import TrainingClip
from kinema.data.frames import LONGEST, read_frames
from kinema.data.listing import Entry, scan
from kinema.media.fitting import scaled
from kinema.schema import BadRequest

Crop = Literal["centre", "random"]

CACHE_BYTES = 256 * 2**20
_STRIDE = 1_000_003
_SIDED = re.compile(r"\b(left|right|(anti|counter)?-?clockwise|letters?|text|words?|sign)", re.IGNORECASE)


class Cache:
    """Decoded clips (uint8 T×3×h×w), the longest unused first to go when ``most`` bytes are reached."""

    def __init__(self, most: int = CACHE_BYTES) -> None:
        self.most, self.held = most, 0
        self._clips: OrderedDict[Path, Tensor] = OrderedDict()

    def get(self, path: Path) -> Tensor | None:
        if path in self._clips:
            self._clips.move_to_end(path)
        return self._clips.get(path)

    def put(self, path: Path, clip: Tensor) -> None:
        if clip.nbytes > self.most:
            return
        self._clips[path] = clip
        self.held += clip.nbytes
        while self.held > self.most:
            self.held -= self._clips.popitem(last=False)[1].nbytes


@dataclass(frozen=True, eq=False)
class Folder:
    """Captioned clips by index, see the top of this file. ``skipped`` gathers sentences on what was left out."""

    entries: tuple[Entry, ...]
    frames: int
    height: int
    width: int
    fps: float | None = None
    frameskip: int = 1
    seed: int = 0
    crop: Crop = "centre"
    flip: bool = False
    skipped: list[str] = field(default_factory=list)
    cache: Cache = field(default_factory=Cache)
    bad: set[Path] = field(default_factory=set)
    motions: Mapping[str, float] = field(default_factory=dict)
    rates: dict[Path, float] = field(default_factory=dict)
    """Frames a second of the clips that were read."""

    @staticmethod
    def scan(
        folder: str | Path,
        *,
        frames: int,
        height: int,
        width: int,
        fps: float | None = None,
        frameskip: int = 1,
        seed: int = 0,
        crop: Crop = "centre",
        flip: bool = False,
        follow_links: bool = False,
    ) -> Folder:
        """The clips of a folder at one size; nothing is decoded yet. ``follow_links`` as in `kinema.data.listing.scan`.

        Raises BadRequest where there is no clip, a list cannot be used, or a figure is out of range.
        """
        if min(frames, height, width, frameskip) < 1:
            raise BadRequest(
                f"frames, height, width and frameskip are {frames}, {height}, {width}, {frameskip}; expected 1 or more"
            )
        if crop not in ("centre", "random"):
            raise BadRequest(f"crop is {crop!r}; expected centre or random")
        found = scan(Path(folder), follow_links=follow_links)
        motions, stale = moved.read(Path(folder), found.entries, follow_links=follow_links)
        skipped = [*found.left_out, *stale]
        return Folder(
            found.entries, frames, height, width, fps, frameskip, seed, crop, flip, skipped=skipped, motions=motions
        )

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def fingerprint(self) -> str:
        """A name for exactly this set of clips and captions (not for their pixels)."""
        moves = {name: f"\t{motion}" for name, motion in self.motions.items()}
        told = "\n".join(f"{e.name}\t{e.captions}{moves.get(e.name, '')}" for e in self.entries)
        return hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()[:16]

    def split(self, share: float) -> tuple[Folder, Folder]:
        """(training, held-out) parts, ``share`` of the clips in the first.

        Which clip goes where is decided by its name, so a clip that is added moves few of the others.
        Both parts have at least one clip; a single clip is in both.
        """
        names = {e.name for e in self.entries}
        if len(names) == 1:
            return self, replace(self, skipped=["there is one clip only: it is trained on and held out at once"])
        first = first_part(names, share)
        inside, outside = ([e for e in self.entries if (e.name in first) is told] for told in (True, False))
        return replace(self, entries=tuple(inside)), replace(self, entries=tuple(outside), skipped=[])

    def clip(self, index: int) -> TrainingClip:
        """Clip ``index`` >= 0 of an endless sequence: video 3×T×H×W float32 in [-1, 1], caption, rate and motion.

        Raises BadRequest when no clip of the folder can be used.
        """
        count = len(self.entries)
        order = shuffled(count, self.seed, index // count)
        for place in range(index % count, index % count + count):
            entry = self.entries[order[place % count]]
            frames_TCHW = self._decoded(entry)
            if frames_TCHW is not None:
                return self._cut(frames_TCHW, entry, torch.Generator().manual_seed(self.seed * _STRIDE + index))
        reasons = "; ".join(self.skipped[-3:])
        raise BadRequest(f"none of the {count} clips can be used: {reasons}")

    def _decoded(self, entry: Entry) -> Tensor | None:
        """The whole clip, small, as uint8 T×3×h×w; None where it cannot be used, which is reported once."""
        if entry.path in self.bad:
            return None
        held = self.cache.get(entry.path)
        if held is not None:
            return held
        try:
            frames_TCHW = self._read(entry)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # decoders meet whatever bytes people have; one file must not end a long run
            said = str(error) if isinstance(error, BadRequest) else f"{entry.name}: {type(error).__name__}: {error}"
            self.skipped.append(f"{entry.name} is left out: {said}")
            self.bad.add(entry.path)
            return None
        self.cache.put(entry.path, frames_TCHW)
        return frames_TCHW

    def _read(self, entry: Entry) -> Tensor:
        rates: list[float] = []
        small = [self._cover(frame) for frame in islice(read_frames(entry.path, self.fps, rates), LONGEST + 1)]
        self.rates[entry.path] = rates[0]
        taken, least = -(-len(small) // self.frameskip), -(-self.frames // 2)
        if taken < least:
            rate = f" at {self.fps:g} per second" if self.fps else ""
            raise BadRequest(f"it has {taken} of the {self.frames} frames wanted{rate}, and {least} are the least")
        if len(small) > LONGEST:
            self.skipped.append(f"{entry.name} is longer than {LONGEST} frames: what comes after them is left out")
        if any(frame.shape != small[0].shape for frame in small):
            raise BadRequest("its frames change their size")
        return torch.stack(small[:LONGEST])

    def _cover(self, frame_HWC: np.ndarray) -> Tensor:
        """One frame scaled to cover height×width, uint8 3×h×w: small before it is kept."""
        height, width = frame_HWC.shape[:2]
        scale = max(self.height / height, self.width / width)
        size = (max(self.height, round(height * scale)), max(self.width, round(width * scale)))
        frame_CHW = torch.from_numpy(np.ascontiguousarray(frame_HWC)).permute(2, 0, 1)
        return scaled(frame_CHW, size)

    def windows(self, entry: Entry, stride: int) -> Iterator[tuple[int, TrainingClip]]:
        """A clip from end to end: (first frame, clip of training length) every ``stride`` frames, cut in the centre.

        A clip shorter than one window holds its last frame, as in training; none where it cannot be used.
        """
        frames_TCHW = self._decoded(entry)
        if frames_TCHW is None:
            return
        last = len(frames_TCHW) - (self.frames - 1) * self.frameskip
        for start in range(0, max(last, 1), stride * self.frameskip):
            middle = [
                (have - want) // 2 for have, want in zip(frames_TCHW.shape[2:], (self.height, self.width), strict=True)
            ]
            yield start, self._clip(self._pixels(frames_TCHW, start, *middle), entry, 0)

    def _cut(self, frames_TCHW: Tensor, entry: Entry, g: torch.Generator) -> TrainingClip:
        def draw(count: int) -> int:
            return int(torch.randint(max(1, count), (), generator=g))

        total, _, height, width = frames_TCHW.shape
        start = draw(total - (self.frames - 1) * self.frameskip)
        place = (draw(height - self.height + 1), draw(width - self.width + 1))
        mirrored, which = draw(2) == 1, draw(len(entry.captions))
        if self.crop == "centre":
            place = ((height - self.height) // 2, (width - self.width) // 2)
        cut = self._pixels(frames_TCHW, start, *place)
        if self.flip and mirrored and not any(_SIDED.search(c) for c in entry.captions):
            cut = cut.flip(-1)
        return self._clip(cut, entry, which)

    def _pixels(self, frames_TCHW: Tensor, start: int, top: int, left: int) -> Tensor:
        """The frames of one clip from ``start``, cut to size; the last one is held where there are too few."""
        times = torch.arange(start, start + self.frames * self.frameskip, self.frameskip)
        times = times.clamp(max=len(frames_TCHW) - 1)
        return frames_TCHW[times, :, top : top + self.height, left : left + self.width]

    def _clip(self, cut_TCHW: Tensor, entry: Entry, which: int) -> TrainingClip:
        video_CTHW = cut_TCHW.permute(1, 0, 2, 3).float().div_(127.5).sub_(1).contiguous()
        return TrainingClip(
            video_CTHW,
            entry.captions[which] if entry.captions else "",
            fps=self.rates[entry.path] / self.frameskip,
            motion=self.motions.get(entry.name),
        )


def first_part(names: Iterable[str], share: float) -> set[str]:
    """``share`` of the names, decided by each alone, but for at least one on either side; a name counts once."""
    ranked = sorted(set(names), key=lambda name: hashlib.sha256(name.encode(errors="surrogatepass")).digest())
    return set(ranked[: min(max(round(len(ranked) * share), 1), len(ranked) - 1)])


@lru_cache(maxsize=4)
def shuffled(count: int, seed: int, epoch: int) -> Sequence[int]:
    """The order of one pass over ``count`` clips."""
    g = torch.Generator().manual_seed(seed * _STRIDE + epoch)
    return np.asarray(torch.randperm(count, generator=g)).tolist()
