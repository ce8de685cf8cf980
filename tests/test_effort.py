"""The share of a job's work in each stage."""

from __future__ import annotations

import pytest

from kinema import Request, load
from kinema.effort import over_stages, shares
from kinema.events import Event, Phase, Step
from kinema.job import build_job
from kinema.memory.plan import weight_bytes


def steps_of(**asked: object) -> list[Step]:
    heard: list[Event] = []
    load("lumiere", preset="tiny").run(Request(prompt="a red ball", seed=1, **asked), on_event=heard.append)
    return [event for event in heard if isinstance(event, Step)]


def test_the_share_rises_over_both_stages_to_one() -> None:
    steps = steps_of(steps=2, frames=8, super_resolution="lumiere/tiny-sr")
    found = [step.share or 0.0 for step in steps]
    assert [(step.index, step.total) for step in steps] == [(1, 2), (2, 2)] * 2
    assert found == sorted(found)
    assert found[-1] == pytest.approx(1)
    assert found[0] == pytest.approx(found[1] / 2)


def test_one_stage_is_the_whole_job() -> None:
    assert [step.share for step in steps_of(steps=3)] == [1 / 3, 2 / 3, 1]


def test_a_stage_counts_by_its_steps_branches_windows_and_size() -> None:
    model = load("lumiere", preset="tiny")
    asked = Request(prompt="a red ball", seed=1, frames=14, steps=5, guidance=2.0, super_resolution="lumiere/tiny-sr")
    works = build_job(model.system, asked)
    # 14 frames are 16 on the grid of 8×8 cells, then 3 windows of 8 on 16×16, all with two branches
    base = weight_bytes(works[0].system) * 2 * 16 * 64
    large = weight_bytes(works[1].system) * 2 * 24 * 256
    assert shares(works) == pytest.approx([base / (base + large), large / (base + large)])


def test_only_steps_are_changed() -> None:
    heard: list[Event] = []
    hear = over_stages(heard.append, 0.25, 0.75)
    hear(Phase("load"))
    hear(Step(2, 3, 0.0))
    assert heard == [Phase("load"), Step(2, 3, 0.0, share=0.75)]
