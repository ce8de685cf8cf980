"""Mask strategies of Open-Sora 1.1 and 1.2: which frames of references stand where in a clip, and how firmly.

A strategy is groups joined by ``;``, each of up to six fields joined by ``,``: the loop it is for, the reference, its
first frame, the clip's first frame, the number of frames, the edit ratio. Fields left out at the end are
``0,0,0,0,1,0``. Negative frames and references count from the end. Frames are latent ones in 1.2, and pixel frames in
1.1, whose VAE encodes each alone. A mask value is 0 for a frame that is given, an edit ratio for one that is sampled
from that time on, 1 for one that is generated. Original: opensora/utils/inference_utils.py (1.2),
scripts/inference-long.py (1.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kinema.schema import BadRequest, plain_number
from kinema.values import counted, quoted

DEFAULTS = ("0", "0", "0", "0", "1", "0")
FIELDS = ("loop", "reference", "start in the reference", "start in the clip", "length", "edit ratio")
MOST_GROUPS = 1000


class Group(NamedTuple):
    """``length`` frames of a reference from ``source`` on, placed from frame ``target`` of this loop's clip on."""

    loop: int = 0
    reference: int = 0
    source: int = 0
    target: int = 0
    length: int = 1
    edit: float = 0.0

    def __str__(self) -> str:
        return ",".join([*map(str, self[:5]), plain_number(self.edit)])


class Cell(NamedTuple):
    """A frame of a clip that a strategy fills: with which frame of which reference, and its mask value."""

    reference: int
    frame: int
    mask: float


@dataclass(frozen=True)
class Rules:
    """What differs between the versions.

    align: starts are moved to the nearest multiple of it (1.2's shipped sample.py: 5, the latent frames that are
    encoded together). clamped: a group ends with the clip or the reference, whichever ends first. unit: what messages
    count; 17 pixel frames make 5 latent ones in 1.2, and the first 17 in 1.3.
    """

    align: int | None = None
    clamped: bool = True
    unit: Literal["frame", "latent frame"] = "latent frame"

    def counted(self, total: int) -> str:
        """How long something is, for messages."""
        return counted(total, self.unit) + (" (17 frames make 5)" if self.unit == "latent frame" else "")


V1_1 = Rules(clamped=False, unit="frame")
V1_2 = Rules()
V1_2_ALIGNED = Rules(align=5)


def parse(strategy: str | None) -> tuple[Group, ...]:
    """The groups of a strategy; none for "" and None. Raises BadRequest for a group that is not one."""
    if not strategy:
        return ()
    parts = strategy.split(";")
    if len(parts) > MOST_GROUPS:
        raise BadRequest(f"mask_strategy has {len(parts):,} groups; expected at most {MOST_GROUPS:,}")
    return tuple(_group(part, f"mask_strategy group {number} ({quoted(part)})") for number, part in enumerate(parts, 1))


def _group(text: str, where: str) -> Group:
    fields = text.split(",")
    if len(fields) > len(FIELDS):
        raise BadRequest(f"{where} has {len(fields)} fields; expected at most {len(FIELDS)}: {', '.join(FIELDS)}")
    whole: list[int] = []
    for name, field in zip(FIELDS[:-1], [*fields, *DEFAULTS[len(fields) :]], strict=False):
        try:
            whole.append(int(field))
        except ValueError:
            raise BadRequest(f"{where} has {quoted(field)} for its {name}; expected a whole number") from None
    edit = fields[5] if len(fields) == len(FIELDS) else DEFAULTS[5]
    try:
        ratio = float(edit)
    except ValueError:
        raise BadRequest(f"{where} has {quoted(edit)} for its edit ratio; expected a number from 0 to 1") from None
    if not 0 <= ratio <= 1:
        raise BadRequest(f"{where} has an edit ratio of {plain_number(ratio)}; expected 0 to 1")
    loop, reference, source, target, length = whole
    if loop < 0:
        raise BadRequest(f"{where} is for loop {loop}; expected 0 or more")
    if length < 1:
        raise BadRequest(f"{where} has a length of {length}; expected at least 1")
    return Group(loop, reference, source, target, length, ratio)


def written(groups: Sequence[Group]) -> str:
    """The strategy as a string, every field written out."""
    return ";".join(map(str, groups))


def applied(
    groups: Sequence[Group], loop: int, frames: int, references: Sequence[int], rules: Rules
) -> tuple[Cell | None, ...]:
    """What each of the clip's ``frames`` frames is filled with in this loop; None where it is noise, of mask 1.

    ``references`` are the numbers of frames of the references. Later groups replace what earlier ones placed. Raises
    BadRequest for a group of this loop that points outside of the clip or of its reference.
    """
    cells: list[Cell | None] = [None] * frames
    for number, group in enumerate(groups, 1):
        if group.loop == loop:
            targets, reference, sources = _placed(group, frames, references, rules, number)
            for target, source in zip(targets, sources, strict=True):
                cells[target] = Cell(reference, source, group.edit)
    return tuple(cells)


def mask_values(cells: Sequence[Cell | None]) -> list[float]:
    """The mask value of each frame."""
    return [1.0 if cell is None else cell.mask for cell in cells]


def _placed(
    group: Group, frames: int, references: Sequence[int], rules: Rules, number: int
) -> tuple[range, int, Sequence[int]]:
    """The clip's frames that a group fills, its reference, and that one's frames."""
    where = f"mask_strategy group {number} ({group})"
    if not -len(references) <= group.reference < len(references):
        have = f"{counted(len(references), 'reference')}, counted from 0" if references else "no references"
        raise BadRequest(f"{where} is for reference {group.reference}; the prompt has {have}")
    reference = group.reference % len(references)
    total = references[reference]
    begins = f"{where} starts at {rules.unit}"
    source = _start(group.source, total, rules, f"{begins} {group.source} of its reference")
    target = _start(group.target, frames, rules, f"{begins} {group.target} of the clip")
    if rules.clamped:
        length = min(group.length, frames - target, total - source)
        return range(target, target + length), reference, range(source, source + length)
    targets = range(target, min(target + group.length, frames))
    sources = range(source, min(source + group.length, total))
    if len(sources) == 1:  # an image, as published: repeated in every frame
        return targets, reference, [source] * len(targets)
    if len(sources) != len(targets):
        raise BadRequest(
            f"{where} takes {rules.counted(len(sources))} of its reference for {rules.counted(len(targets))} of "
            "the clip; expected equal numbers, since this model does not cut them to fit"
        )
    return targets, reference, sources


def _start(start: int, total: int, rules: Rules, where: str) -> int:
    """The start from 0, aligned. ``where`` begins the sentence that refuses it."""
    found = start + total if start < 0 else start
    if rules.align is not None:
        found = nearest(found, rules.align, total)
    if not 0 <= found < total:
        raise BadRequest(f"{where}, which has {rules.counted(total)}; expected {-total} to {total - 1}")
    return found


def nearest(value: int, point: int, total: int) -> int:
    """The multiple of ``point`` nearest to a frame, the lower in a tie, and none at or past the end of whole ones."""
    times = value // point
    if value % point > point / 2 and times < total // point - 1:
        times += 1
    return times * point
