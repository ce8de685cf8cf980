"""Buckets and the order of batches equal runs of Open-Sora's own code (tools/record_opensora_buckets.py)."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kinema.data.buckets import Bucket, Buckets, ClipSize, Order
from kinema.data.buckets.rule import choose
from kinema.families.opensora import sizes
from kinema.families.opensora.family import FAMILY
from kinema.families.opensora.first_line import sizes as first_sizes
from kinema.grid import Lattice, Resolutions
from kinema.schema import BadRequest

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


def test_the_sizes_of_training_are_those_published() -> None:
    found = sizes.trained("256px")
    assert found.area == 256**2
    assert [found.sizes[ratio] for ratio in ("2.39:1", "2:1", "3:2", "1:2.39")] == [
        (160, 400),
        (176, 368),
        (208, 320),
        (400, 160),
    ]
    assert sizes.trained("256px_ar16:9").sizes == {"16:9": (192, 336)}
    assert sizes.trained("256px_max").sizes == {"3:2": (208, 320)}
    assert sizes.trained("360p").area == 230400
    assert sizes.trained("768px", 32).sizes["1:1"] == (768, 768)
    assert first_sizes.trained("144p").sizes["0.56"] == (144, 256)
    assert (first_sizes.trained("2880").area, first_sizes.trained("2048").area) == (8294400, 2048**2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("256", "the resolution is '256'; expected a name of Open-Sora 2.0, such as 256px"),
        ("0px", "the resolution is '0px'"),
        ("99999px", "the resolution is '99999px'"),
        ("256px_ar7:3", "256px_ar7:3 is not a resolution: expected the ratio to be one of 2.39:1, 2:1"),
        ("256px_min", "the resolution is '256px_min'"),
        ("٢px", "the resolution is"),
        ("4px", "frames of 16 pixels are too small for 2.39:1; sides are multiples of 16"),
    ],
)
def test_unknown_resolutions_of_2_are_refused(name: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        sizes.trained(name)


@pytest.mark.parametrize(
    ("preset", "name", "ratio", "size"),
    [
        ("v2", "256px", "16:9", (192, 336)),
        ("v2-dc-ae", "768px", "2:1", (544, 1088)),
        ("v1.1", "240p", "0.56", (240, 424)),
        ("v1.2", "240p", "0.56", (240, 424)),
        ("v1.2", "256", "0.57", (192, 336)),
        ("v1.3", "360p_16d", "0.56", (352, 640)),
    ],
)
def test_every_version_has_its_own_names_and_sizes_of_whole_latent_cells(
    preset: str, name: str, ratio: str, size: tuple[int, int]
) -> None:
    found = FAMILY.sampling.lattice(FAMILY.presets[preset]).resolutions
    assert found is not None
    assert found.find(name).sizes[ratio] == size
    assert found.rule == ("2.0" if preset.startswith("v2") else "1.2")


def test_open_sora_1_0_is_trained_at_one_size() -> None:
    assert FAMILY.sampling.lattice(FAMILY.presets["v1.0"]).resolutions is None


def test_published_configurations_are_read_for_their_models() -> None:
    second, first = CASES[-1]["config"], CASES[-2]["config"]
    assert len(second["256px"]) == 32
    assert Buckets.of(second, FAMILY.sampling.lattice(FAMILY.presets["v2"]), "a file", "v2").largest == 130
    assert Buckets.of(first, FAMILY.sampling.lattice(FAMILY.presets["v1.2"]), "a file", "v1.2").largest == 475


def test_buckets_of_clips_too_short_for_the_shift_of_1_2_are_refused() -> None:
    lattice = FAMILY.sampling.lattice(FAMILY.presets["v1.2"])
    assert Buckets.of({"144p": {17: (1, 1), 1: (1, 1)}}, lattice, "a file", "v1.2").count
    for frames in (2, 16):
        with pytest.raises(BadRequest, match=f"144p × {frames} is too short: v1.2 is .* of at least 17 frames"):
            Buckets.of({"144p": {frames: (1, 1)}}, lattice, "a file", "v1.2")
