"""Clips encoded beforehand: safetensors shards with an index, made once and read by every run.

A window is one clip of training length. A shard holds the tensors of some windows (``3.moments``, ``3.context``,
``3.picture``) and in its metadata what they are; ``index.json`` says what made them all and lists the shards. A shard
holds whole clips, is written beside its name and renamed, so that work that was stopped goes on after the last
whole shard.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from kinema import bounds
from kinema.atomic import refuse_foreign, replacing
from kinema.checkpoints import files
from kinema.data.clip import TrainingClip
from kinema.data.folder import shuffled
from kinema.data.inside import Inside
from kinema.schema import BadRequest
from kinema.values import misfit

INDEX = "index.json"
KIND = "kinema-latents"
MAX_INDEX = 2**26
"""Bytes of an index: those of half a million clips."""
_NOTE = "kinema-windows"
_SHARD = re.compile(r"shard-(\d{5,9})\.safetensors")


@dataclass(frozen=True)
class EncodingSettings:
    """What encoded clips depend on besides their pixels: others do not go together."""

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


@dataclass(frozen=True)
class Window:
    """One window: its clip (and the hash of that file), its first frame, and what training is told of it."""

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
    """Refuse a folder that holds files and no encoded clips: shards and index would lie among them, or over them."""
    if not is_latents(folder):
        expected = "a new folder, an empty one, or one of `kinema data latents`"
        refuse_foreign(folder, lambda name: name.startswith(".") or _SHARD.fullmatch(name), "encoded clips", expected)


def _index(folder: Path) -> Mapping[str, Any]:
    where = bounds.printable(str(folder / INDEX), 200)
    told = bounds.from_json(bounds.decoded(bounds.read_bytes(folder / INDEX, MAX_INDEX), where), where)
    return told if isinstance(told, dict) else {}


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """A name for exactly these tensors, in fp32, whatever file and layout they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().float().contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------- writing


def write_shard(
    folder: Path, number: int, made: EncodingSettings, windows: Sequence[tuple[Window, Mapping[str, Tensor]]]
) -> Path:
    """One shard, whole or not at all."""
    path = folder / f"shard-{number:05d}.safetensors"
    tensors = {f"{i}.{name}": value for i, (_, parts) in enumerate(windows) for name, value in parts.items()}
    told = {"made": asdict(made), "windows": [asdict(window) for window, _ in windows]}
    files.write_tensors(path, tensors, {_NOTE: json.dumps(told)})
    return path


def shards(
    folder: Path, made: EncodingSettings | None = None, *, follow_links: bool = False
) -> list[tuple[Path, list[Window]]]:
    """The whole shards of a folder and their windows.

    Raises BadRequest for one that was made otherwise, is damaged, or is a link out of the folder.
    """
    found = []
    inside = Inside(folder, follow_links=follow_links)
    for path in sorted(folder.glob("shard-*.safetensors")):
        where = bounds.printable(str(path), 200)
        if fault := inside.file(path):
            raise BadRequest(f"{where} is {fault}; expected a shard that `kinema data latents` wrote")
        told = files.metadata(path).get(_NOTE)
        if told is None:
            raise BadRequest(f"{where} is no shard of encoded clips; expected one that `kinema data latents` wrote")
        note = bounds.from_json(told, where)
        if not isinstance(note, dict) or not isinstance(note.get("windows"), list):
            raise BadRequest(f"{where} is damaged: it does not tell its windows")
        if made is not None:
            agree(path, _typed(EncodingSettings, note.get("made"), where), made)
        windows = [_typed(Window, row, where) for row in note["windows"]]
        _check_pictures(path, where, len(windows))
        found.append((path, windows))
    return found


def next_number(folder: Path) -> int:
    """The number of the next shard: no shard that exists has it, nor a higher one."""
    numbers = (_SHARD.fullmatch(path.name) for path in folder.glob("shard-*"))
    return max((int(found[1]) for found in numbers if found), default=-1) + 1


def _check_pictures(path: Path, where: str, windows: int) -> None:
    """Refuse a shard without the first frame of each window: the least that training reads of it."""
    held = files.header(path)
    for i in range(windows):
        shape, dtype = held.get(f"{i}.picture", ((), None))
        if len(shape) != 3 or shape[0] != 3 or dtype != torch.uint8:
            raise BadRequest(f"{where} is damaged: window {i} has no picture")


def _typed(kind: Any, told: Any, where: str) -> Any:
    """A `EncodingSettings` or a `Window` of what a file tells; raises BadRequest where a field is missing or of another type."""
    if not isinstance(told, dict) or set(told) != {f.name for f in fields(kind)}:
        raise BadRequest(f"{where} is damaged: it tells other fields of a {kind.__name__.lower()} than expected")
    if wrong := misfit(kind, told):
        raise BadRequest(f"{where} is damaged: {wrong}")
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in told.items()})


def agree(where: Path, then: EncodingSettings, now: EncodingSettings) -> None:
    """Refuse clips that were encoded otherwise, and say in what."""
    for name, value in asdict(now).items():
        was = getattr(then, name)
        if was != value and name == "networks":
            raise BadRequest(
                f"the clips of {where} were encoded by the networks of another model; encode them with this one"
            )
        if was != value:
            raise BadRequest(f"the clips of {where} were encoded with {name} {was}, not {value}")


def write_index(folder: Path, made: EncodingSettings, left_out: Sequence[str]) -> int:
    """List the shards; returns how many windows they hold."""
    found = shards(folder, made)
    told = {
        "kind": KIND,
        "version": 1,
        "made": asdict(made),
        "shards": {path.name: len(windows) for path, windows in found},
        "clips": {window.clip: window.hash for _, windows in found for window in windows},
        "left_out": list(left_out),
    }
    with replacing(folder / INDEX) as part:
        part.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return sum(len(windows) for _, windows in found)


# --------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class Latents:
    """Encoded clips by index, each pass in an order drawn from (seed, pass); see `kinema.training.stream.Clips`."""

    made: EncodingSettings
    windows: tuple[tuple[Path, int, Window], ...]
    """Shard, place in it, and what it is."""
    seed: int = 0
    skipped: list[str] = field(default_factory=list)

    @staticmethod
    def open(folder: Path, seed: int = 0, *, follow_links: bool = False) -> Latents:
        """Raises BadRequest for a folder without an index, or whose shards are not those that it lists.

        Index and shards are regular files inside the folder; ``follow_links`` reads those that links lead to.
        """
        where = bounds.printable(str(folder), 200)
        if not is_latents(folder, follow_links=follow_links):
            raise BadRequest(
                f"{where} holds no encoded clips; expected a folder that `kinema data latents` has finished"
            )
        told = _index(folder)
        made = _typed(EncodingSettings, told.get("made"), f"the index of {where}")
        found = shards(folder, made, follow_links=follow_links)
        if {path.name: len(windows) for path, windows in found} != told.get("shards"):
            raise BadRequest(f"the shards in {where} are not those of its index; run `kinema data latents` again")
        windows = tuple((path, i, window) for path, rows in found for i, window in enumerate(rows))
        if not windows:
            raise BadRequest(f"{where} holds no encoded clips; encode some with `kinema data latents`")
        left_out = told.get("left_out")
        said = [bounds.printable(s, 400) for s in left_out if isinstance(s, str)] if isinstance(left_out, list) else []
        return Latents(made, windows, seed, said)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def fingerprint(self) -> str:
        """A name for exactly these windows."""
        told = "\n".join(json.dumps(asdict(window)) for _, _, window in self.windows)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def clips(self) -> list[str]:
        """Names of the clips that the windows are of."""
        return list(dict.fromkeys(window.clip for _, _, window in self.windows))

    def of(self, names: set[str]) -> Latents:
        """The windows of these clips."""
        return replace(self, windows=tuple(row for row in self.windows if row[2].clip in names), skipped=[])

    def clip(self, index: int) -> TrainingClip:
        """Window ``index`` >= 0 of an endless sequence: its first frame 3×1×H×W, and what was encoded."""
        count = len(self.windows)
        path, place, window = self.windows[shuffled(count, self.seed, index // count)[index % count]]
        parts = _read(path, place)
        picture = parts.pop("picture")[:, None].float().div_(127.5).sub_(1)
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        which = int(torch.randint(max(1, len(window.captions)), (), generator=g))
        caption = window.captions[which] if window.captions else ""
        encoded: dict[str, Any] = {name: value.float() for name, value in parts.items()}
        return TrainingClip(picture, caption, fps=window.fps, motion=window.motion, encoded=encoded)


def _read(path: Path, place: int) -> dict[str, Tensor]:
    with safe_open(str(path), framework="pt") as opened:
        names = [name for name in opened.keys() if name.startswith(f"{place}.")]  # noqa: SIM118 (no mapping)
        return {name.partition(".")[2]: opened.get_tensor(name) for name in names}
