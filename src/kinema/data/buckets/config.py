"""Bucket files: Open-Sora's ``bucket_config`` as data.

For each resolution and number of frames, a keep probability and the number of clips of a batch::

    {"256px": {1: (1.0, 130), 33: ((1.0, 0.5), 14)}, "768px": {33: (0.5, 6)}}

Files are JSON, YAML, or Python, of which only literals are read (`literal`). In JSON, keys are texts and pairs lists.
Published: configs/diffusion/train of the original's main branch, configs/opensora-v1-2/train of its 1.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinema import bounds
from kinema.bounds import printable, quoted
from kinema.data.buckets.literal import from_python
from kinema.grid import Lattice, Resolution
from kinema.schema import MAX_FRAMES, BadRequest

MAX_BATCH = 10**6
MAX_ROWS = 4096
"""Limit on the resolutions times lengths of a file; the largest published one has 99."""
NAME = "bucket_config"
_EXPECTED = 'expected resolutions such as "256px", each with {frames: (keep probability, clips per batch)}'
_WHOLE = re.compile(r"[0-9]{1,6}")
_IGNORED = "_delete_"
"""A key of the configs' own inheritance: the file replaces what its base says."""


@dataclass(frozen=True)
class Row:
    """What happens to the clips of one resolution and length.

    ``keep`` is the probability that a clip is used here; otherwise it is tried at the next smaller resolution.
    ``pair`` is the second probability, if there is one: in 1.2 that a clip stays at this length, in 2.0 that it is
    tried at the next shorter one. ``batch`` is 0 where ``keep`` is.
    """

    keep: float
    pair: float | None
    batch: int

    def __str__(self) -> str:
        keep = f"{self.keep:g}" if self.pair is None else f"({self.keep:g}, {self.pair:g})"
        return f"{keep} × {self.batch}"


@dataclass(frozen=True)
class Buckets:
    """Rows by resolution and number of frames, both from large to small, and the resolutions they name."""

    rows: Mapping[str, Mapping[int, Row]]
    resolutions: Mapping[str, Resolution]
    rule: str

    @staticmethod
    def of(data: Any, lattice: Lattice, where: str, model: str) -> Buckets:
        """Check parsed data for a model of this lattice.

        Raises BadRequest, which names ``where`` the data came from and the ``model``, for data that is no bucket
        configuration, an unknown resolution, a size that the model does not support, or a model without resolutions.
        """
        if lattice.resolutions is None:
            raise BadRequest(f"{model} is trained at one size, so buckets do not apply; leave out buckets")
        if isinstance(data, Mapping) and NAME in data:
            data = data[NAME]
        if not isinstance(data, Mapping):
            raise BadRequest(f"{where} holds {quoted(data)}; {_EXPECTED}")
        found = {str(name): _resolution(where, name, lattice) for name in data if name != _IGNORED}
        given = {str(name): _lengths(where, str(name), rows) for name, rows in data.items() if name != _IGNORED}
        if not any(row.keep for rows in given.values() for row in rows.values()):
            raise BadRequest(f"{where} keeps no clip; {_EXPECTED}")
        if sum(map(len, given.values())) > MAX_ROWS:
            raise BadRequest(f"{where} has more than {MAX_ROWS:,} resolutions and lengths")
        for name, lengths in given.items():
            for frames in lengths:
                _check_size(f"{where}: {name} × {frames}", found[name], frames, lattice, model)
        large_first = sorted(given, key=lambda name: found[name].area, reverse=True)
        rows = {name: dict(sorted(given[name].items(), reverse=True)) for name in large_first}
        return Buckets(rows, {name: found[name] for name in large_first}, lattice.resolutions.rule)

    @staticmethod
    def read(path: Path, lattice: Lattice, model: str) -> Buckets:
        """Read a bucket file, ``.json``, ``.yaml`` or ``.py``, for a model of this lattice. Raises BadRequest."""
        return Buckets.of(_parsed(path), lattice, printable(str(path), 120), model)

    @property
    def count(self) -> int:
        """Number of buckets: resolutions × lengths × ratios."""
        return sum(len(rows) * len(self.resolutions[name].sizes) for name, rows in self.rows.items())

    @property
    def has_images(self) -> bool:
        """Whether a row has single frames, which images can be in."""
        return any(rows[1].keep > 0 for rows in self.rows.values() if 1 in rows)

    @property
    def largest(self) -> int:
        """The most clips of a batch."""
        return max(row.batch for rows in self.rows.values() for row in rows.values())

    @property
    def text(self) -> str:
        """The rows in one line, which a resumed run must match."""
        return "; ".join(
            f"{name} " + ", ".join(f"{frames}: {row}" for frames, row in rows.items())
            for name, rows in self.rows.items()
        )

    def check_parts(self, parts: int) -> None:
        """Raise BadRequest unless every batch can be split into ``parts`` equal parts (``accumulate``)."""
        for name, rows in self.rows.items():
            for frames, row in rows.items():
                if row.batch % parts:
                    raise BadRequest(
                        f"accumulate is {parts}; expected a divisor of the batch of every bucket, and that of {name} × "
                        f"{frames} is {row.batch}"
                    )


def _parsed(path: Path) -> Any:
    where, kind = printable(str(path), 120), path.suffix.lower()
    readers = {".json": bounds.from_json, ".yaml": bounds.from_yaml, ".yml": bounds.from_yaml}
    if kind != ".py" and kind not in readers:
        raise BadRequest(f"{where} is not a bucket file; expected a name ending in .json, .yaml or .py")
    text = bounds.decoded(bounds.read_bytes(path, bounds.MAX_CONFIG, "a bucket file"), where)
    return from_python(text, where, NAME) if kind == ".py" else readers[kind](text, where)


def _lengths(where: str, name: str, rows: Any) -> dict[int, Row]:
    if not isinstance(rows, Mapping) or not rows:
        raise BadRequest(f"{where}: {name} is {quoted(rows)}; {_EXPECTED}")
    found: dict[int, Row] = {}
    for key, row in rows.items():
        length = int(key) if isinstance(key, str) and _WHOLE.fullmatch(key) else key
        if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= MAX_FRAMES:
            raise BadRequest(f"{where}: a number of frames of {name} is {quoted(key)}; expected 1 to {MAX_FRAMES}")
        if length in found:
            raise BadRequest(f"{where}: {name} has {length} frames twice; expected each number once")
        found[length] = _row(f"{where}: {name} × {length}", length, row)
    return found


def _row(where: str, frames: int, row: Any) -> Row:
    if not isinstance(row, list | tuple) or len(row) != 2:
        raise BadRequest(f"{where} is {quoted(row)}; expected (keep probability, clips per batch)")
    chances = row[0] if isinstance(row[0], list | tuple) else (row[0],)
    if not 1 <= len(chances) <= 2 or not all(_is_probability(chance) for chance in chances):
        raise BadRequest(f"{where} has the probability {quoted(row[0])}; expected a number from 0 to 1, or two of them")
    if len(chances) == 2 and frames == 1:
        raise BadRequest(f"{where} has two probabilities; expected one, since an image has no shorter length")
    keep, pair = float(chances[0]), (float(chances[1]) if len(chances) == 2 else None)
    if keep == 0 and row[1] is None:  # as in the published configs
        return Row(keep, pair, 0)
    if not isinstance(row[1], int) or isinstance(row[1], bool) or not 1 <= row[1] <= MAX_BATCH:
        raise BadRequest(
            f"{where} has batches of {quoted(row[1])} clips; expected a whole number from 1 to {MAX_BATCH:,}"
        )
    return Row(keep, pair, row[1] if keep else 0)


def _is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _resolution(where: str, name: object, lattice: Lattice) -> Resolution:
    assert lattice.resolutions is not None
    try:
        return lattice.resolutions.find(str(name))
    except BadRequest as error:
        raise BadRequest(f"{where}: {error}") from error


def _check_size(where: str, resolution: Resolution, frames: int, lattice: Lattice, model: str) -> None:
    """Raise BadRequest for a size that the model does not support."""
    longest, next_ = lattice.max_frames, lattice.grid.time.ceil(frames)
    if longest is not None and frames > longest:
        raise BadRequest(f"{where} is longer than the {longest} frames of {model}")
    fewest = 1 if lattice.resolutions is None else lattice.resolutions.fewest
    if 1 < frames < fewest:
        raise BadRequest(f"{where} is too short: {model} is trained on images and on clips of at least {fewest} frames")
    if next_ != frames:
        raise BadRequest(f"{where} does not fit {model}, which encodes whole latent frames; the next length is {next_}")
    for height, width in resolution.sizes.values():
        if (lattice.snap_side(height), lattice.snap_side(width)) != (height, width):
            raise BadRequest(
                f"{where} has the size {height}×{width}; {model} has sides of {lattice.min_side} to {lattice.max_side} "
                f"pixels, multiples of {lattice.side_multiple}"
            )
