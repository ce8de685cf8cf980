"""Clips encoded beforehand: safetensors shards with an index, made once and read by every run.

A window is one clip of training length. A shard holds the tensors of some windows (``3.moments``, ``3.context``,
``3.picture``) and in its metadata what they are; ``index.json`` says what made them all and lists the shards. A shard
holds whole clips, is written beside its name and renamed, so that work that was stopped goes on after the last
whole shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from kinema.atomic import replacing
from kinema.checkpoints import files
from kinema.data.clip import Clip
from kinema.data.folder import shuffled
from kinema.schema import BadRequest

INDEX = "index.json"
KIND = "kinema-latents"
_NOTE = "kinema-windows"


@dataclass(frozen=True)
class Made:
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


def is_latents(folder: Path) -> bool:
    """Whether a folder holds an index of encoded clips."""
    try:
        return json.loads((folder / INDEX).read_bytes()).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        return False


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """A name for exactly these tensors, in fp32, whatever file and layout they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().float().contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------- writing


def write_shard(folder: Path, number: int, made: Made, windows: Sequence[tuple[Window, Mapping[str, Tensor]]]) -> Path:
    """One shard, whole or not at all."""
    path = folder / f"shard-{number:05d}.safetensors"
    tensors = {f"{i}.{name}": value for i, (_, parts) in enumerate(windows) for name, value in parts.items()}
    told = {"made": asdict(made), "windows": [asdict(window) for window, _ in windows]}
    files.write_tensors(path, tensors, {_NOTE: json.dumps(told)})
    return path


def shards(folder: Path, made: Made | None = None) -> list[tuple[Path, list[Window]]]:
    """The whole shards of a folder and their windows. Raises BadRequest for one that was made otherwise."""
    found = []
    for path in sorted(folder.glob("shard-*.safetensors")):
        told = files.metadata(path).get(_NOTE)
        if told is None:
            raise BadRequest(f"{path} is no shard of encoded clips; expected one that `kinema data latents` wrote")
        note = json.loads(told)
        if made is not None:
            agree(path, Made(**note["made"]), made)
        found.append((path, [Window(**{**row, "captions": tuple(row["captions"])}) for row in note["windows"]]))
    return found


def agree(where: Path, then: Made, now: Made) -> None:
    """Refuse clips that were encoded otherwise, and say in what."""
    for name, value in asdict(now).items():
        was = getattr(then, name)
        if was != value and name == "networks":
            raise BadRequest(
                f"the clips of {where} were encoded by the networks of another model; encode them with this one"
            )
        if was != value:
            raise BadRequest(f"the clips of {where} were encoded with {name} {was}, not {value}")


def write_index(folder: Path, made: Made, left_out: Sequence[str]) -> int:
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

    made: Made
    windows: tuple[tuple[Path, int, Window], ...]
    """Shard, place in it, and what it is."""
    seed: int = 0
    skipped: list[str] = field(default_factory=list)

    @staticmethod
    def open(folder: Path, seed: int = 0) -> Latents:
        """Raises BadRequest for a folder without an index, or whose shards are not those that it lists."""
        if not is_latents(folder):
            raise BadRequest(
                f"{folder} holds no encoded clips; expected a folder that `kinema data latents` has finished"
            )
        told = json.loads((folder / INDEX).read_bytes())
        made = Made(**told["made"])
        found = shards(folder, made)
        if {path.name: len(windows) for path, windows in found} != told["shards"]:
            raise BadRequest(f"the shards in {folder} are not those of its index; run `kinema data latents` again")
        windows = tuple((path, i, window) for path, rows in found for i, window in enumerate(rows))
        return Latents(made, windows, seed, list(told["left_out"]))

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

    def clip(self, index: int) -> Clip:
        """Window ``index`` >= 0 of an endless sequence: its first frame 3×1×H×W, and what was encoded."""
        count = len(self.windows)
        path, place, window = self.windows[shuffled(count, self.seed, index // count)[index % count]]
        parts = _read(path, place)
        picture = parts.pop("picture")[:, None].float().div_(127.5).sub_(1)
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        which = int(torch.randint(max(1, len(window.captions)), (), generator=g))
        caption = window.captions[which] if window.captions else ""
        encoded: dict[str, Any] = {name: value.float() for name, value in parts.items()}
        return Clip(picture, caption, fps=window.fps, motion=window.motion, encoded=encoded)


def _read(path: Path, place: int) -> dict[str, Tensor]:
    with safe_open(str(path), framework="pt") as opened:
        names = [name for name in opened.keys() if name.startswith(f"{place}.")]  # noqa: SIM118 (no mapping)
        return {name.partition(".")[2]: opened.get_tensor(name) for name in names}
