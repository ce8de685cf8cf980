"""Events that a run reports to its listener: progress, notes, memory and previews. Imports without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Phase:
    """A phase of the run starts: "load", "condition", "sample", "decode" or "write".

    Runs on a service also have "upload", "queue" and "download".
    """

    name: str
    detail: str = ""


@dataclass(frozen=True)
class Step:
    """Sampling step ``index`` of ``total`` (1-based) is done; ``x0`` is the estimate of the clean latents.

    ``share`` is the estimated share of the sampling of all stages that is done, 0 to 1; None outside of jobs.
    """

    index: int
    total: int
    log_snr: float
    x0: Tensor | None = None
    share: float | None = None


@dataclass(frozen=True)
class Note:
    """A choice made for the user, such as a snapped size, a cropped image or an ignored unknown word."""

    message: str


@dataclass(frozen=True)
class Memory:
    """Peak memory of the run in bytes: resident on the CPU, allocated on a GPU."""

    peak_bytes: int


@dataclass(frozen=True)
class TrainStep:
    """Optimiser step ``index`` of ``total`` is done; ``loss`` is the batch mean, ``rate`` clips per second.

    ``bucket`` names the resolution, ratio and length of the batch, for a run with buckets.
    """

    index: int
    total: int
    loss: float
    learning_rate: float
    grad_norm: float
    rate: float
    validation: float | None = None
    validation_at: Mapping[float, float] | None = None
    """Held-out loss by time in [0, 1], of families that report it."""
    bucket: str | None = None


@dataclass(frozen=True)
class Preview:
    """Downscaled frames of x0 after `Step` ``index`` of ``total`` of a stage ("base" or "super-resolution").

    ``picture`` is T×H×W×3 uint8 on the CPU, from the first clip of the batch.
    """

    index: int
    total: int
    picture: Tensor
    stage: str = "base"


Event = Phase | Step | Preview | Note | Memory | TrainStep
OnEvent = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Ignore the event: the default listener."""
