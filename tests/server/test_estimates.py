"""Estimates of time from finished jobs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kinema.server.estimates import estimate, record
from kinema.server.jobs import Settled
from kinema.server.store import Store


def settled(frames: int = 4, steps: int = 10, device: str = "cpu") -> Settled:
    stages = [{"stage": "base", "size": [1, 3, frames, 16, 16], "steps": steps}]
    forecast = {"device": device, "dtype": "float32", "stages": stages}
    return Settled(
        frames=frames, fps=8.0, height=16, width=16, clips=1, steps=steps, seed=1, task="generate", forecast=forecast
    )  # fmt: skip


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path)
    yield opened
    opened.close()


def test_nothing_is_estimated_before_a_job_has_finished(store):
    assert estimate(store, "m", settled().forecast) == (None, "")


def test_a_job_of_the_same_size_takes_the_median_of_the_last_five(store):
    for seconds in (100.0, 1.0, 2.0, 3.0, 4.0, 50.0):
        record(store, "m", settled(), seconds)
    assert estimate(store, "m", settled().forecast) == (3.0, "the median of 5 finished jobs of this size")


def test_another_size_is_scaled_by_its_work_from_the_nearest(store):
    record(store, "m", settled(steps=10), 10.0)
    record(store, "m", settled(steps=30), 40.0)
    seconds, measured = estimate(store, "m", settled(steps=18).forecast)
    assert seconds == pytest.approx(18.0)
    assert measured == "scaled from a finished job of another size"


def test_a_job_of_far_more_work_has_no_estimate(store):
    record(store, "m", settled(steps=10), 10.0)
    assert estimate(store, "m", settled(steps=41).forecast) == (None, "")


def test_models_devices_and_precisions_do_not_mix(store):
    record(store, "m", settled(device="cuda:0"), 10.0)
    assert estimate(store, "m", settled(device="cuda:1").forecast)[0] == 10.0
    assert estimate(store, "other", settled(device="cuda:0").forecast)[0] is None
    assert estimate(store, "m", settled().forecast)[0] is None
    other = replace(settled(), forecast={**settled(device="cuda").forecast, "dtype": "bfloat16"})
    assert estimate(store, "m", other.forecast)[0] is None
