"""Precomputed latents of clips: safetensors shards with an index, written once and read by every run.

A window is one clip of training length. A shard holds the tensors of its windows (``3.moments``, ``3.context``,
``3.picture``), those of their captions where a family encodes text (``3.caption-0.states``; ``empty.states`` of none),
and describes the windows in its metadata; ``index.json`` holds the encoding settings and lists the
shards. A shard holds whole clips and is written atomically, so interrupted work resumes after the last complete shard.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from kinema import bounds
from kinema.atomic import refuse_foreign, replacing
from kinema.checkpoints import files
from kinema.data.clip import InOrder, TrainingClip
from kinema.data.containment import Inside
from kinema.data.folder import shuffled
from kinema.schema import BadRequest
from kinema.values import mismatch

INDEX = "index.json"
KIND = "kinema-latents"
MAX_INDEX = 2**26
"""Limit on the bytes of an index: about 500,000 clips."""
_NOTE = "kinema-windows"
EMPTY = "empty"
_SHARD = re.compile(r"shard-(\d{5,9})\.safetensors")


@dataclass(frozen=True)
class EncodingSettings:
    """What encoded clips depend on besides their pixels; all shards of a folder share one."""

    family: str
    networks: str
    """Hash of the frozen networks' tensors."""
    frames: int
    height: int
    width: int
    fps: float | None
    frameskip: int
    stride: int
    """Frames from the start of one window to the next."""
    dtype: str
    text: str = ""
    """Hash of what the empty caption is encoded to; "" if captions are not encoded."""


@dataclass(frozen=True)
class Window:
    """One window: its clip (with the hash of the file), its first frame, captions, frame rate and motion score."""

    clip: str
    hash: str
    start: int
    captions: tuple[str, ...]
    fps: float
    motion: float | None


def is_latents(folder: Path, *, follow_links: bool = False) -> bool:
    """Whether a folder holds an index of encoded clips."""
    if Inside(folder, follow_links=follow_links).file(folder / INDEX):
        return False
    try:
        return _index(folder).get("kind") == KIND
    except BadRequest:
        return False


def check_new(folder: Path) -> None:
    """Raise BadRequest if a folder holds other files than encoded clips, which shards would mix with or overwrite."""
    if not is_latents(folder):
        expected = "a new folder, an empty one, or one of `kinema data latents`"
        refuse_foreign(folder, lambda name: name.startswith(".") or _SHARD.fullmatch(name), "encoded clips", expected)


def _index(folder: Path) -> Mapping[str, Any]:
    where = bounds.printable(str(folder / INDEX), 200)
    data = bounds.from_json(bounds.decoded(bounds.read_bytes(folder / INDEX, MAX_INDEX), where), where)
    return data if isinstance(data, dict) else {}


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of named tensors in fp32, independent of the file they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().float().contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------- writing


def write_shard(
    folder: Path,
    number: int,
    settings: EncodingSettings,
    windows: Sequence[tuple[Window, Mapping[str, Tensor]]],
    empty: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write one shard atomically; ``empty`` are the tensors of the empty caption."""
    path = folder / f"shard-{number:05d}.safetensors"
    tensors = {f"{i}.{name}": value for i, (_, parts) in enumerate(windows) for name, value in parts.items()}
    tensors |= {f"{EMPTY}.{name}": value for name, value in (empty or {}).items()}
    description = {"made": asdict(settings), "windows": [asdict(window) for window, _ in windows]}
    files.write_tensors(path, tensors, {_NOTE: json.dumps(description)})
    return path


def read_shards(
    folder: Path, settings: EncodingSettings | None = None, *, follow_links: bool = False
) -> list[tuple[Path, list[Window]]]:
    """The complete shards of a folder and their windows.

    Raises BadRequest for a shard with other settings, a damaged one, or a link out of the folder.
    """
    found = []
    inside = Inside(folder, follow_links=follow_links)
    for path in sorted(folder.glob("shard-*.safetensors")):
        where = bounds.printable(str(path), 200)
        if fault := inside.file(path):
            raise BadRequest(f"{where} is {fault}; expected a shard that `kinema data latents` wrote")
        text = files.metadata(path).get(_NOTE)
        if text is None:
            raise BadRequest(f"{where} is not a shard of encoded clips; expected one that `kinema data latents` wrote")
        description = bounds.from_json(text, where)
        if not isinstance(description, dict) or not isinstance(description.get("windows"), list):
            raise BadRequest(f"{where} is damaged: it has no list of windows")
        if settings is not None:
            check_equal(path, _typed(EncodingSettings, description.get("made"), where), settings)
        windows = [_typed(Window, row, where) for row in description["windows"]]
        _check_images(path, where, len(windows))
        found.append((path, windows))
    return found


def next_number(folder: Path) -> int:
    """The number of the next shard: one above the highest in the folder."""
    numbers = (_SHARD.fullmatch(path.name) for path in folder.glob("shard-*"))
    return max((int(found[1]) for found in numbers if found), default=-1) + 1


def _check_images(path: Path, where: str, windows: int) -> None:
    """Raise BadRequest if a shard lacks the first frame of a window."""
    header = files.header(path)
    for i in range(windows):
        shape, dtype = header.get(f"{i}.picture", ((), None))
        if len(shape) != 3 or shape[0] != 3 or dtype != torch.uint8:
            raise BadRequest(f"{where} is damaged: window {i} has no first frame")


def _typed(kind: Any, data: Any, where: str) -> Any:
    """Build an `EncodingSettings` or `Window` from JSON; raises BadRequest for missing, unknown or mistyped fields."""
    known = {f.name: f.default is MISSING for f in fields(kind)}
    if not isinstance(data, dict) or not {n for n, needed in known.items() if needed} <= set(data) <= set(known):
        what = "window" if kind is Window else "encoding settings"
        raise BadRequest(f"{where} is damaged: the fields of its {what} are incomplete or unknown")
    if wrong := mismatch(kind, data):
        raise BadRequest(f"{where} is damaged: {wrong}")
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in data.items()})


def check_equal(where: Path, stored: EncodingSettings, current: EncodingSettings) -> None:
    """Raise BadRequest with the first setting that differs."""
    for name, value in asdict(current).items():
        was = getattr(stored, name)
        if was != value and name == "networks":
            raise BadRequest(f"the clips in {where} were encoded by another model; encode them with this one")
        if was != value:
            raise BadRequest(f"the clips in {where} were encoded with {name} {was}, not {value}")


def write_index(folder: Path, settings: EncodingSettings, skipped: Sequence[str]) -> int:
    """Write the index of the shards; returns their number of windows."""
    found = read_shards(folder, settings)
    index = {
        "kind": KIND,
        "version": 1,
        "made": asdict(settings),
        "shards": {path.name: len(windows) for path, windows in found},
        "clips": {window.clip: window.hash for _, windows in found for window in windows},
        "left_out": list(skipped),
    }
    with replacing(folder / INDEX) as part:
        part.write_text(json.dumps(index, indent=1), encoding="utf-8")
    return sum(len(windows) for _, windows in found)


# --------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class Latents(InOrder):
    """Encoded clips by index, each pass in a random order of (seed, pass); see `kinema.data.clip.Clips`."""

    settings: EncodingSettings
    windows: tuple[tuple[Path, int, Window], ...]
    """Shard, position in the shard, and description."""
    seed: int = 0
    skipped: list[str] = field(default_factory=list)

    @staticmethod
    def open(folder: Path, seed: int = 0, *, follow_links: bool = False) -> Latents:
        """Open a folder of encoded clips; raises BadRequest if it has no index, or its shards do not match the index.

        Index and shards must be regular files inside the folder; ``follow_links`` allows links.
        """
        where = bounds.printable(str(folder), 200)
        if not is_latents(folder, follow_links=follow_links):
            raise BadRequest(f"{where} holds no encoded clips; expected a finished folder of `kinema data latents`")
        index = _index(folder)
        settings = _typed(EncodingSettings, index.get("made"), f"the index of {where}")
        found = read_shards(folder, settings, follow_links=follow_links)
        if {path.name: len(windows) for path, windows in found} != index.get("shards"):
            raise BadRequest(f"the shards in {where} do not match its index; run `kinema data latents` again")
        windows = tuple((path, i, window) for path, rows in found for i, window in enumerate(rows))
        if not windows:
            raise BadRequest(f"{where} holds no encoded clips; encode some with `kinema data latents`")
        listed = index.get("left_out")
        skipped = [bounds.printable(s, 400) for s in listed if isinstance(s, str)] if isinstance(listed, list) else []
        return Latents(settings, windows, seed, skipped)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def fingerprint(self) -> str:
        """A hash of the windows' descriptions."""
        rows = "\n".join(json.dumps(asdict(window)) for _, _, window in self.windows)
        return hashlib.sha256(rows.encode()).hexdigest()[:16]

    @property
    def clips(self) -> list[str]:
        """The names of the windows' clips."""
        return list(dict.fromkeys(window.clip for _, _, window in self.windows))

    def of(self, names: set[str]) -> Latents:
        """The windows of these clips."""
        return replace(self, windows=tuple(row for row in self.windows if row[2].clip in names), skipped=[])

    def clip(self, index: int) -> TrainingClip:
        """Return window ``index`` >= 0 of an endless sequence: its first frame 3×1×H×W and the encoded tensors."""
        count = len(self.windows)
        path, place, window = self.windows[shuffled(count, self.seed, index // count)[index % count]]
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        which = int(torch.randint(max(1, len(window.captions)), (), generator=g))
        parts = _read(path, place, which)
        image = parts.pop("picture")[:, None].float().div_(127.5).sub_(1)
        caption = window.captions[which] if window.captions else ""
        encoded: dict[str, Any] = {name: value.float() for name, value in parts.items()}
        return TrainingClip(
            image, caption, fps=window.fps, motion=window.motion, encoded=encoded, frames=self.settings.frames
        )


def _read(path: Path, place: int, caption: int) -> dict[str, Tensor]:
    """The tensors of a window by name, those of one of its captions, and, after ``empty_``, of no caption."""
    found = {}
    with safe_open(str(path), framework="pt") as opened:
        for key in opened.keys():  # noqa: SIM118 (not a mapping)
            owner, _, name = key.partition(".")
            of_caption, _, inner = name.rpartition(".")
            if owner == EMPTY:
                found[f"{EMPTY}_{name}"] = opened.get_tensor(key)
            elif owner == str(place) and of_caption in ("", f"caption-{caption}"):
                found[inner] = opened.get_tensor(key)
    return found
