"""How long a job will take, from the times of finished jobs; nothing is run to find out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from statistics import median
from typing import Any

from kinema.server.jobs import Settled
from kinema.server.store import Store

SCALED = 4.0
"""Most that the work of another size may differ, as a factor, for its time to be scaled."""
RECENT = 5
"""Number of finished jobs of the same size whose median is taken."""


def key_of(forecast: Mapping[str, Any]) -> str:
    """Return what the time of a job depends on besides model, device and precision: size and steps of each stage."""
    return json.dumps([[each["stage"], each["size"], each["steps"]] for each in forecast["stages"]])


def record(store: Store, model: str, settled: Settled, seconds: float) -> None:
    """Store the time of a finished job."""
    store.add_time(**_where(model, settled.forecast), stages=key_of(settled.forecast), seconds=seconds)


def estimate(store: Store, model: str, forecast: Mapping[str, Any]) -> tuple[float | None, str]:
    """Return seconds, and what they were measured on as a phrase; (None, "") if nothing comparable has finished."""
    times, own = store.times(**_where(model, forecast)), key_of(forecast)
    same = [seconds for key, seconds in times if key == own][:RECENT]
    if same:
        return median(same), f"the median of {len(same)} finished job{'s' if len(same) > 1 else ''} of this size"
    work = _work(json.loads(own))
    others = [(_work(json.loads(key)), seconds) for key, seconds in times]
    near = [each for each in others if work / SCALED <= each[0] <= work * SCALED]
    if not near:
        return None, ""
    other, seconds = min(near, key=lambda each: abs(each[0] - work))
    return seconds * work / other, "scaled from a finished job of another size"


def _where(model: str, forecast: Mapping[str, Any]) -> dict[str, str]:
    return {"model": model, "device": str(forecast["device"]).partition(":")[0], "dtype": str(forecast["dtype"])}


def _work(stages: Sequence[Sequence[Any]]) -> float:
    """Sampled values times steps, over all stages."""
    return float(sum(prod(size) * max(steps, 1) for _, size, steps in stages)) or 1.0
