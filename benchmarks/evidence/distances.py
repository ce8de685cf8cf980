"""KVD and the Fréchet distance of generated from real clips: with intervals over clips, sizes, and a control.

The intervals are jackknife intervals: groups of clips are left out, those of each sample in turn. A bootstrap would not
do, since it repeats clips: the kernel distance then counts the likeness of a clip to its copy, and the Fréchet distance
sees fewer different clips, so that both move away from what they estimate. Near 0 the kernel distance varies by less
than its jackknife says (Efron and Stein 1981), so that its interval is wider than necessary there.

The Fréchet distance of equal distributions is not 0 but depends on N, and its interval is about its expectation at this
N. So every distance comes with that of real clips from other real clips at the same N.

N clips, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kinema.evaluation.metrics import frechet_distance, kernel_distance
from kinema.evaluation.oracle import Figure
from kinema.schema import BadRequest

GROUPS = 32
"""Groups of clips that are left out, per sample; fewer if there are fewer clips."""
_STUDENT = 2.04
"""The 97.5 % quantile of Student's t distribution with `GROUPS` − 1 degrees of freedom."""


@dataclass(frozen=True)
class Distances:
    """Distances of generated from real clips, and of the control's real clips from the same real clips.

    ``size`` is N of the generated clips and of the control, ``reference`` that of the real clips.
    """

    kvd: Figure
    frechet: Figure
    real_kvd: Figure
    real_frechet: Figure
    size: int
    reference: int

    def rows(self) -> tuple[tuple[str, Figure, Figure], ...]:
        """Name, distance and the same distance of real from real clips."""
        return ("KVD", self.kvd, self.real_kvd), ("Fréchet distance", self.frechet, self.real_frechet)


def distances(generated_ND: Tensor, real_ND: Tensor, control_ND: Tensor) -> Distances:
    """KVD and the Fréchet distance of generated from real clips, with 95 % intervals.

    ``control`` are features of as many other real clips as there are generated ones. Raises BadRequest if they are
    fewer or more, or if there are fewer than four clips of a kind.
    """
    if len(control_ND) != len(generated_ND):
        raise BadRequest(
            f"the control has {len(control_ND)} clips and {len(generated_ND)} were generated; expected equal numbers, "
            "since the Fréchet distance depends on them"
        )
    return Distances(
        kvd=jackknife(kernel_distance, generated_ND, real_ND),
        frechet=jackknife(frechet_distance, generated_ND, real_ND),
        real_kvd=jackknife(kernel_distance, control_ND, real_ND),
        real_frechet=jackknife(frechet_distance, control_ND, real_ND),
        size=len(generated_ND),
        reference=len(real_ND),
    )


def differences(first_ND: Tensor, second_ND: Tensor, real_ND: Tensor) -> tuple[Figure, Figure]:
    """How much farther from real clips the first arm is than the second: by KVD, and by the Fréchet distance.

    Clip i of both arms has the same prompt and seed; they are left out together.
    """
    if first_ND.shape != second_ND.shape:
        raise BadRequest(f"the arms have {len(first_ND)} and {len(second_ND)} clips; expected pairs")
    pairs_ND2 = torch.stack([first_ND, second_ND], dim=-1)

    def farther(distance: Callable[[Tensor, Tensor], float]) -> Figure:
        return jackknife(
            lambda pairs, real: distance(pairs[..., 0], real) - distance(pairs[..., 1], real), pairs_ND2, real_ND
        )

    return farther(kernel_distance), farther(frechet_distance)


def cell(figure: Figure) -> str:
    """A distance and its interval, for tables."""
    return f"{figure.mean:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def jackknife(statistic: Callable[[Tensor, Tensor], float], first: Tensor, second: Tensor) -> Figure:
    """A statistic of two samples of clips with its 95 % interval; ``count`` is the first's N.

    Up to `GROUPS` groups are left out of both samples at once (Arvesen 1969): clips i, i + G, … of either. So the
    samples may share prompts, in the same order.
    """
    if min(len(first), len(second)) < 4:
        raise BadRequest(f"there are {len(first)} and {len(second)} clips; expected at least 4 of each")
    value, groups = statistic(first, second), min(GROUPS, len(first), len(second))
    left_out = zip(_left_out(first, groups), _left_out(second, groups), strict=True)
    half = _STUDENT * math.sqrt(_variance([statistic(a, b) for a, b in left_out]))
    return Figure(value, value - half, value + half, len(first))


def _variance(values: list[float]) -> float:
    groups = len(values)
    middle = sum(values) / groups
    return (groups - 1) / groups * sum((value - middle) ** 2 for value in values)


def _left_out(sample: Tensor, groups: int) -> Iterator[Tensor]:
    index = torch.arange(len(sample)) % groups
    return (sample[index != group] for group in range(groups))
