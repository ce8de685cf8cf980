"""Buckets and the order of batches equal runs of Open-Sora's own code (tools/record_opensora_buckets.py)."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kinema.data.buckets import Bucket, Buckets, ClipSize, Order
from kinema.data.buckets.rule import choose
from kinema.families.opensora import sizes
from kinema.families.opensora.first_line import sizes as first_sizes
from kinema.grid import Lattice, Resolutions

CASES = json.loads((Path(__file__).parent / "recorded" / "buckets.json").read_text())["cases"]


def lattice(version: str) -> Lattice:
    """Of a codec that takes any size, so that the published ones stay as they are."""
    if version == "2.0":
        return Lattice(min_side=1, resolutions=Resolutions(sizes.trained, "2.0"))
    return Lattice(min_side=1, resolutions=Resolutions(partial(first_sizes.trained, version=version), "1.2"))


def recorded(case: Any) -> tuple[Buckets, list[ClipSize]]:
    return Buckets.of(case["config"], lattice(case["version"]), "a file", "a model"), [
        ClipSize(*c) for c in case["clips"]
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['version']}-{len(case['config'])}")
def test_every_clip_is_in_the_bucket_of_the_original(case: Any) -> None:
    buckets, clips = recorded(case)
    for each in case["passes"]:
        first = case["seed"] + each["epoch"]
        found = [choose(buckets, clip, first + i * buckets.count) for i, clip in enumerate(clips)]
        assert found == [bucket and Bucket(*bucket) for bucket in each["buckets"]]
    assert len({bucket for bucket in found if bucket}) >= 8


@pytest.mark.parametrize("case", [case for case in CASES if case["passes"][0]["batches"]], ids=lambda c: c["version"])
def test_batches_have_the_clips_sizes_and_order_of_the_original(case: Any) -> None:
    buckets, clips = recorded(case)
    order = Order(buckets, clips, case["seed"])
    for each in case["passes"]:
        batches = [
            [[i, bucket.frames, *buckets.resolutions[bucket.resolution].sizes[bucket.ratio]] for i in members]
            for bucket, members in order.batches(each["epoch"])
        ]
        assert batches == each["batches"]
        assert len(batches) > 20
