"""Long clips of Open-Sora 1.1 to 1.3: clips that each begin with the end of the one before.

In 1.1 and 1.2 a loop is a group of the mask strategy, whose reference is the clip before, decoded and encoded again as
a whole; the frames it begins with are cut off before the clips are joined. In 1.3 clips are joined as latents, and
decoded at once. Original: append_generated, dframe_to_frame and prep_ref_and_mask (opensora/utils/inference_utils.py),
scripts/inference-long.py of 1.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from kinema.families.opensora.first_line.masks import Cell, Group
from kinema.schema import BadRequest

CHUNK = 5, 17
"""1.2's VAE: 5 latent frames are 17 pixel frames, encoded without regard to the others."""


@dataclass(frozen=True)
class Loops:
    """``count`` clips, of which each but the first begins with the last ``length`` frames of the one before.

    length: their condition_frame_length, 1.1: pixel frames, by default 4; 1.2: latent frames, by default 5. edit: their
    condition_frame_edit, the edit ratio of these frames; 1.1 has none.
    """

    version: Literal["1.1", "1.2"]
    count: int
    length: int
    edit: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise BadRequest(f"the number of loops is {self.count}; expected at least 1")
        if self.length < 1:
            raise BadRequest(f"condition_frame_length is {self.length}; expected at least 1")
        if self.version == "1.2" and self.length % CHUNK[0]:
            raise BadRequest(
                f"condition_frame_length is {self.length} latent frames; expected a multiple of {CHUNK[0]}, which are "
                f"encoded together, from {CHUNK[1]} frames"
            )
        if not 0 <= self.edit <= 1:
            raise BadRequest(f"condition_frame_edit is {self.edit:g}; expected 0 to 1")
        if self.version == "1.1" and self.edit:
            raise BadRequest("condition_frame_edit is for Open-Sora 1.2 and later: leave it out")

    def groups(self, strategy: Sequence[Group], references: int) -> tuple[Group, ...]:
        """The strategy with the groups that continue each clip; the clip of loop i becomes reference references + i."""
        more = (
            Group(loop, references + loop - 1, -self.length, 0, self.length, self.edit) for loop in range(1, self.count)
        )
        return (*strategy, *more)

    @property
    def dropped(self) -> int:
        """The pixel frames that every clip but the first loses at its beginning."""
        return self.length if self.version == "1.1" else self.length // CHUNK[0] * CHUNK[1]

    def kept(self, frames: int) -> tuple[range, ...]:
        """Which pixel frames of each clip of ``frames`` the joined clip is made of."""
        if self.count > 1 and frames <= self.dropped:
            raise BadRequest(
                f"each loop begins with {self.dropped} frames of the one before, which leaves none of its {frames}; "
                "ask for more frames, or a smaller condition_frame_length"
            )
        return (range(frames), *[range(self.dropped, frames)] * (self.count - 1))

    def total(self, frames: int) -> int:
        """The pixel frames of the joined clip."""
        return sum(map(len, self.kept(frames)))


# --------------------------------------------------------------------------------------------- 1.3

Kind = Literal["i2v_head", "i2v_tail", "i2v_loop", "v2v_head"]


def given_v1_3(  # noqa: PLR0917
    kind: Kind, loop: int, loops: int, frames: int, length: int, references: Sequence[int]
) -> tuple[Cell | None, ...]:
    """The latent frames that 1.3 is given in a loop, with mask 0, and None elsewhere.

    ``references`` are the latent frames of the references; reference number ``len(references)`` is the clip of the
    loop before, of ``frames`` latent frames. As published, a tail is given to a single clip alone, and one reference
    may be both ends of a loop: its first frame and its last. Clips without given frames are not continued at all.
    """
    if kind not in get_args(Kind):
        raise BadRequest(f"cond_type is {kind!r}; expected one of {', '.join(get_args(Kind))}")
    if not references:
        raise BadRequest(f"{kind} has no reference; expected at least one")
    cells: list[Cell | None] = [None] * frames
    if loop:
        for i in range(min(length, frames)):
            cells[i] = Cell(len(references), frames - length + i, 0.0)
    elif kind == "v2v_head":
        for i in range(min(length, references[0], frames)):
            cells[i] = Cell(0, i, 0.0)
    elif kind != "i2v_tail":
        cells[0] = Cell(0, 0, 0.0)
    if kind == "i2v_tail" and loops == 1:
        cells[-1] = Cell(0, references[0] - 1, 0.0)
    if kind == "i2v_loop" and (loop or loops == 1):
        cells[-1] = Cell(1, 0, 0.0) if len(references) > 1 else Cell(0, references[0] - 1, 0.0)
    return tuple(cells)


def latents_v1_3(frames: int, loops: int, length: int) -> int:
    """The latent frames of the joined clip, cut to a multiple of five: 1.2's rule, which 1.3 kept."""
    return (frames + (loops - 1) * (frames - length)) // 5 * 5
