"""A folder of the user's own clips as training data.

Preprocessing of a clip:

- order: each pass visits all clips once, in an order that depends on (seed, pass);
- time: resampled to ``fps`` by nearest time stamp (the file's own frames if ``fps`` is None), then
  every ``frameskip``-th frame from a random start that depends on (seed, index);
- short clips repeat their last frame; clips with less than half of the requested frames are skipped,
  since a model trained on stills learns to stand still;
- space: resized (antialiased, aspect ratio kept) to cover height×width, then cropped, in the centre
  or at a random position that depends on (seed, index), the same for all frames;
- mirrored, if enabled, half of the time as a whole, unless its caption names a side;
- captions: one at random if there are several, the empty caption if there is none;
- rate and motion: the frame rate after resampling, and the motion score if `kinema data motion-bucket`
  has written one;
- images are skipped: joint image training (VDM §3.1) uses frames of clips. With buckets of single frames
  (`kinema.data.buckets`) they are clips of one frame.

Everything is a pure function of (seed, index) and the files, so a resumed run continues exactly.
A file that cannot be decoded is reported once and replaced by the next clip.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kinema.data import motion_file
from kinema.data.clip import InOrder, TrainingClip
from kinema.data.frames import LONGEST, frame_sizes, read_frames
from kinema.data.listing import Entry, scan
from kinema.media.fitting import scaled
from kinema.schema import BadRequest

Crop = Literal["centre", "random"]

CACHE_BYTES = 256 * 2**20
_STRIDE = 1_000_003
_SIDED = re.compile(r"\b(left|right|(anti|counter)?-?clockwise|letters?|text|words?|sign)", re.IGNORECASE)


class Cache:
    """LRU cache of decoded clips (uint8 T×3×h×w), by file and requested size, at most ``most`` bytes."""

    def __init__(self, most: int = CACHE_BYTES) -> None:
        self.most, self.bytes = most, 0
        self._clips: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable) -> Tensor | None:
        if key in self._clips:
            self._clips.move_to_end(key)
        return self._clips.get(key)

    def put(self, key: Hashable, clip: Tensor) -> None:
        if clip.nbytes > self.most:
            return
        self._clips[key] = clip
        self.bytes += clip.nbytes
        while self.bytes > self.most:
            self.bytes -= self._clips.popitem(last=False)[1].nbytes


@dataclass(frozen=True, eq=False)
class Folder(InOrder):
    """Captioned clips by index, preprocessed as described above; ``skipped`` collects messages on skipped clips."""

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
    """Frame rates of the clips read so far."""

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
        images: bool = False,
    ) -> Folder:
        """Find the clips of a folder, without decoding them.

        ``follow_links`` and ``images`` as in `kinema.data.listing.scan`.

        Raises BadRequest if there is no clip, a list is unusable, or a value is out of range.
        """
        if min(frames, height, width, frameskip) < 1:
            raise BadRequest(
                f"frames, height, width and frameskip are {frames}, {height}, {width}, {frameskip}; expected 1 or more"
            )
        if crop not in ("centre", "random"):
            raise BadRequest(f"crop is {crop!r}; expected centre or random")
        found = scan(Path(folder), follow_links=follow_links, images=images)
        motions, stale = motion_file.read(Path(folder), found.entries, follow_links=follow_links)
        skipped = [*found.skipped, *stale]
        return Folder(
            found.entries, frames, height, width, fps, frameskip, seed, crop, flip, skipped=skipped, motions=motions
        )

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def fingerprint(self) -> str:
        """A hash of the clips' names, captions and motion, not of their pixels."""
        motions = {name: f"\t{motion}" for name, motion in self.motions.items()}
        rows = "\n".join(f"{e.name}\t{e.captions}{motions.get(e.name, '')}" for e in self.entries)
        return hashlib.sha256(rows.encode(errors="surrogatepass")).hexdigest()[:16]

    def split(self, share: float) -> tuple[Folder, Folder]:
        """Split into (training, held-out) parts, with ``share`` of the clips in the first.

        Clips are assigned by a hash of their names, so adding a clip moves few others. Each part has at least one
        clip; a single clip is in both.
        """
        names = {e.name for e in self.entries}
        if len(names) == 1:
            return self, replace(self, skipped=["there is only one clip: it is used for both training and validation"])
        first = first_part(names, share)
        inside, outside = ([e for e in self.entries if (e.name in first) is chosen] for chosen in (True, False))
        return replace(self, entries=tuple(inside)), replace(self, entries=tuple(outside), skipped=[])

    def clip(self, index: int) -> TrainingClip:
        """Return clip ``index`` >= 0 of an endless sequence: video 3×T×H×W float32 in [-1, 1], caption, rate, motion.

        Raises BadRequest if no clip of the folder is usable.
        """
        count = len(self.entries)
        order = shuffled(count, self.seed, index // count)
        for place in range(index % count, index % count + count):
            clip = self.use(self.entries[order[place % count]], index)
            if clip is not None:
                return clip
        reasons = "; ".join(self.skipped[-3:])
        raise BadRequest(f"0 of {count} clips are usable: {reasons}")

    def use(self, entry: Entry, index: int) -> TrainingClip | None:
        """Return one clip, cut, cropped and mirrored by the draws of ``index``; None if it is unusable."""
        frames_TCHW = self._decoded(entry)
        if frames_TCHW is None:
            return None
        return self._augmented(frames_TCHW, entry, torch.Generator().manual_seed(self.seed * _STRIDE + index))

    def at_size(self, frames: int, height: int, width: int) -> Folder:
        """The same clips at another size; cache and messages are shared."""
        return replace(self, frames=frames, height=height, width=width, bad=set())

    def filmed(self) -> tuple[Folder, list[tuple[int, int, int]]]:
        """The readable clips, and the frames (at ``fps``, before frames are skipped), height and width of each.

        Other clips are reported. Raises BadRequest if no clip is readable.
        """
        entries, sizes = [], []
        for entry in self.entries:
            try:
                sizes.append(frame_sizes(entry.path, self.fps))
            except (ImportError, MemoryError):
                raise
            except Exception as error:  # as in `_decoded`
                self.skipped.append(f"skipped {entry.name}: {_reason(entry, error)}")
            else:
                entries.append(entry)
        if not entries:
            raise BadRequest(f"0 of {len(self.entries)} clips are usable: {'; '.join(self.skipped[-3:])}")
        return replace(self, entries=tuple(entries)), sizes

    def _decoded(self, entry: Entry) -> Tensor | None:
        """The whole clip, downscaled, as uint8 T×3×h×w; None if it is unusable, which is reported once."""
        if entry.path in self.bad:
            return None
        key = (entry.path, self.height, self.width)
        cached = self.cache.get(key)
        if cached is not None:
            return cached
        try:
            frames_TCHW = self._read(entry)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # decoders raise anything on damaged files; one file must not end a long run
            self.skipped.append(f"skipped {entry.name}: {_reason(entry, error)}")
            self.bad.add(entry.path)
            return None
        self.cache.put(key, frames_TCHW)
        return frames_TCHW

    def _read(self, entry: Entry) -> Tensor:
        rates: list[float] = []
        small = [self._cover(frame) for frame in islice(read_frames(entry.path, self.fps, rates), LONGEST + 1)]
        self.rates[entry.path] = rates[0]
        taken, least = -(-len(small) // self.frameskip), -(-self.frames // 2)
        if taken < least:
            rate = f" at {self.fps:g} per second" if self.fps else ""
            raise BadRequest(f"it has {taken} frames{rate}; expected {self.frames}, at least {least}")
        if len(small) > LONGEST:
            self.skipped.append(f"{entry.name} is longer than {LONGEST} frames: the rest is ignored")
        if any(frame.shape != small[0].shape for frame in small):
            raise BadRequest("its frames differ in size")
        return torch.stack(small[:LONGEST])

    def _cover(self, frame_HWC: np.ndarray) -> Tensor:
        """One frame resized to cover height×width, uint8 3×h×w."""
        height, width = frame_HWC.shape[:2]
        scale = max(self.height / height, self.width / width)
        size = (max(self.height, round(height * scale)), max(self.width, round(width * scale)))
        frame_CHW = torch.from_numpy(np.ascontiguousarray(frame_HWC)).permute(2, 0, 1)
        return scaled(frame_CHW, size)

    def windows(self, entry: Entry, stride: int) -> Iterator[tuple[int, TrainingClip]]:
        """Yield (first frame, clip of training length) every ``stride`` frames of a clip, cropped in the centre.

        A clip shorter than one window repeats its last frame, as in training; an unusable one yields nothing.
        """
        frames_TCHW = self._decoded(entry)
        if frames_TCHW is None:
            return
        last = len(frames_TCHW) - (self.frames - 1) * self.frameskip
        for start in range(0, max(last, 1), stride * self.frameskip):
            middle = [
                (source - target) // 2
                for source, target in zip(frames_TCHW.shape[2:], (self.height, self.width), strict=True)
            ]
            yield start, self._clip(self._pixels(frames_TCHW, start, *middle), entry, 0)

    def _augmented(self, frames_TCHW: Tensor, entry: Entry, g: torch.Generator) -> TrainingClip:
        def random_index(count: int) -> int:
            return int(torch.randint(max(1, count), (), generator=g))

        total, _, height, width = frames_TCHW.shape
        start = random_index(total - (self.frames - 1) * self.frameskip)
        place = (random_index(height - self.height + 1), random_index(width - self.width + 1))
        mirrored, which = random_index(2) == 1, random_index(len(entry.captions))
        if self.crop == "centre":
            place = ((height - self.height) // 2, (width - self.width) // 2)
        cropped = self._pixels(frames_TCHW, start, *place)
        if self.flip and mirrored and not any(_SIDED.search(c) for c in entry.captions):
            cropped = cropped.flip(-1)
        return self._clip(cropped, entry, which)

    def _pixels(self, frames_TCHW: Tensor, start: int, top: int, left: int) -> Tensor:
        """Frames from ``start``, cropped; the last frame is repeated if there are too few."""
        times = torch.arange(start, start + self.frames * self.frameskip, self.frameskip)
        times = times.clamp(max=len(frames_TCHW) - 1)
        return frames_TCHW[times, :, top : top + self.height, left : left + self.width]

    def _clip(self, cropped_TCHW: Tensor, entry: Entry, which: int) -> TrainingClip:
        video_CTHW = cropped_TCHW.permute(1, 0, 2, 3).float().div_(127.5).sub_(1).contiguous()
        return TrainingClip(
            video_CTHW,
            entry.captions[which] if entry.captions else "",
            fps=self.rates[entry.path] / self.frameskip,
            motion=self.motions.get(entry.name),
        )


def _reason(entry: Entry, error: Exception) -> str:
    return str(error) if isinstance(error, BadRequest) else f"{entry.name}: {type(error).__name__}: {error}"


def first_part(names: Iterable[str], share: float) -> set[str]:
    """Choose ``share`` of the distinct names by their hashes, with at least one name chosen and one left."""
    ranked = sorted(set(names), key=lambda name: hashlib.sha256(name.encode(errors="surrogatepass")).digest())
    return set(ranked[: min(max(round(len(ranked) * share), 1), len(ranked) - 1)])


@lru_cache(maxsize=4)
def shuffled(count: int, seed: int, epoch: int) -> Sequence[int]:
    """The order of ``count`` clips in one pass."""
    g = torch.Generator().manual_seed(seed * _STRIDE + epoch)
    return np.asarray(torch.randperm(count, generator=g)).tolist()
