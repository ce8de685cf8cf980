"""Properties of the rule and of the order for any clips and configuration."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.data.buckets import Bucket, Buckets, ClipSize, Order
from kinema.data.buckets.clips import Weighted
from kinema.data.buckets.rule import AREA, chances, choose
from kinema.grid import Lattice, Resolution, Resolutions
from kinema.schema import BadRequest

RATIOS = {"wide": 0.5, "square": 1.0, "high": 2.0}
AREAS = {"a": 64 * 64, "b": 128 * 128, "c": 256 * 256}


def find(name: str) -> Resolution:
    side = int(AREAS[name] ** 0.5)
    return Resolution(
        AREAS[name], {"wide": (side // 2, side), "square": (side, side), "high": (side, side // 2)}, RATIOS
    )


def buckets(config: Any, rule: Any = "1.2") -> Buckets:
    return Buckets.of(config, Lattice(min_side=1, resolutions=Resolutions(find, rule)), "a file", "a model")


probability = st.sampled_from([0.0, 0.3, 0.5, 1.0])
rows = st.dictionaries(
    st.sampled_from([1, 4, 8, 16]), st.tuples(probability, st.integers(1, 4)), min_size=1
) | st.dictionaries(
    st.sampled_from([4, 8, 16]), st.tuples(st.tuples(probability, probability), st.integers(1, 4)), min_size=1
)
configs = st.dictionaries(st.sampled_from([*AREAS]), rows, min_size=1).filter(
    lambda config: any(
        (row[0][0] if isinstance(row[0], tuple) else row[0]) for r in config.values() for row in r.values()
    )
)
clip = st.builds(ClipSize, st.integers(1, 40), st.integers(20, 400), st.integers(20, 400))
clips = st.lists(clip, min_size=1, max_size=12)
rules = st.sampled_from(["1.2", "2.0"])


@settings(max_examples=40, deadline=None)
@given(configs, rules, clips, st.integers(1, 3), st.integers(0, 2**31 - 1))
def test_a_clip_is_in_one_bucket_at_most_which_it_fills(
    config: Any, rule: str, films: list[ClipSize], interval: int, seed: int
) -> None:
    found = buckets(config, rule)
    order = Order(found, films, seed, interval)
    assigned = order.assigned(1)
    members = Counter(i for each in assigned.values() for i in each)
    assert max(members.values(), default=1) == 1
    assert not set(members) & set(order.dropped)
    for bucket, each in assigned.items():
        for i in each:
            film, taken = films[i], -(-films[i].frames // interval)
            assert film.height * film.width >= AREA * AREAS[bucket.resolution]
            assert taken >= bucket.frames
            assert (bucket.frames == 1) == (film.frames == 1 or (rule == "2.0" and film.frames // interval <= 1))
            away = abs(film.height / film.width - RATIOS[bucket.ratio])
            assert all(away <= abs(film.height / film.width - ratio) for ratio in RATIOS.values())
            assert order.chances[i][bucket[:2]] > 0


@settings(max_examples=40, deadline=None)
@given(configs, rules, clips, st.integers(0, 1000))
def test_a_pass_has_every_kept_clip_in_full_batches(config: Any, rule: str, films: list[ClipSize], seed: int) -> None:
    order = Order(buckets(config, rule), films, seed)
    assigned, batches = order.assigned(2), order.batches(2)
    for bucket, each in assigned.items():
        size = config[bucket.resolution][bucket.frames][1]
        own = [members for name, members in batches if name == bucket]
        assert {len(members) for members in own} == {size}
        assert len(own) == -(-len(each) // size)
        used = Counter(i for members in own for i in members)
        assert set(used) == set(each)
        assert max(used.values()) - min(used.values()) <= 1
    assert len(batches) == sum(-(-len(each) // config[b.resolution][b.frames][1]) for b, each in assigned.items())


@settings(max_examples=30, deadline=None)
@given(configs, rules, clips, st.integers(0, 1000))
def test_the_batch_of_a_step_is_that_of_its_pass(config: Any, rule: str, films: list[ClipSize], seed: int) -> None:
    found = buckets(config, rule)
    passes = [batch for epoch in range(5) for batch in Order(found, films, seed).batches(epoch)]
    late, forwards = Order(found, films, seed), Order(found, films, seed)
    places = range(len(passes))
    assert [forwards.at(step) for step in places] == passes
    assert [late.at(step) for step in reversed(places)] == passes[::-1]


@settings(max_examples=40, deadline=None)
@given(configs, rules, clip, st.integers(1, 2))
def test_chances_are_the_frequencies_of_the_draws(config: Any, rule: str, film: ClipSize, interval: int) -> None:
    found, draws = buckets(config, rule), 200
    drawn = [choose(found, film, seed * 1000, interval) for seed in range(draws)]
    counts = Counter(bucket[:2] for bucket in drawn if bucket)
    expected = chances(found, film, interval)
    assert set(counts) <= set(expected)
    assert sum(expected.values()) <= 1 + 1e-9
    for key, chance in expected.items():  # five standard deviations
        assert abs(counts[key] - draws * chance) <= 5 * (draws * chance * (1 - chance)) ** 0.5 + 1e-6


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_clips_are_sorted_once_a_pass_and_once_to_count_its_batches(keep: float, monkeypatch: Any) -> None:
    order = Order(buckets({"a": {4: (keep, 1)}}), [ClipSize(10, 64, 64)] * 50, seed=1)
    sorted_, assigned = [], Order.assigned
    monkeypatch.setattr(Order, "assigned", lambda self, epoch: sorted_.append(epoch) or assigned(self, epoch))
    first = order.batches(0)
    assert [order.at(step) for step in range(len(first))] == first
    assert sorted_ == [0] * 3


def test_a_pass_of_many_batches_is_ordered_in_time_linear_in_them(monkeypatch: Any) -> None:
    """Buckets are compared as keys of a table, a few times for each batch."""
    order, compared = Order(buckets({"a": {4: (1.0, 1)}}), [ClipSize(10, 64, 64)] * 2000), []
    monkeypatch.setattr(Bucket, "__eq__", lambda one, other: compared.append(1) or tuple(one) == tuple(other))
    assert len(order.batches(0)) == 2000
    assert len(compared) < 20_000


def test_the_versions_differ_in_length_and_in_the_second_probability() -> None:
    config = {"a": {8: ((1.0, 0.25), 1), 4: (1.0, 1)}}
    assert chances(buckets(config, "1.2"), ClipSize(9, 64, 64)) == {("a", 8): 0.25, ("a", 4): 0.75}
    assert chances(buckets(config, "2.0"), ClipSize(9, 64, 64)) == {("a", 8): 0.75, ("a", 4): 0.25}
    assert chances(buckets(config, "1.2"), ClipSize(8, 64, 64)) == {("a", 4): 1.0}
    assert chances(buckets(config, "2.0"), ClipSize(8, 64, 64)) == {("a", 8): 0.75, ("a", 4): 0.25}
    assert chances(buckets(config, "1.2"), ClipSize(16, 64, 64), 2) == {("a", 4): 1.0}
    assert chances(buckets(config, "2.0"), ClipSize(16, 64, 64), 2) == {("a", 8): 0.75, ("a", 4): 0.25}


def test_clips_that_fit_nothing_and_rows_without_clips_are_known() -> None:
    found = buckets({"c": {8: (0.5, 1)}, "b": {8: (0.5, 1), 4: (0.0, None)}, "a": {16: (1.0, 1), 4: (1.0, 1)}})
    order = Order(found, [ClipSize(3, 256, 256), ClipSize(40, 30, 30), ClipSize(10, 128, 128), ClipSize(6, 64, 52)])
    assert order.dropped == [0, 1]
    assert order.empty == [("c", 8), ("a", 16)]


def test_passes_that_keep_no_clip_are_passed_over() -> None:
    found = buckets({"a": {4: (0.02, 1)}})
    order = Order(found, [ClipSize(10, 64, 64)], seed=1)
    kept = [epoch for epoch in range(400) if order.batches(epoch)]
    assert 1 <= len(kept) < 30
    assert order._position(len(kept) - 1) == (kept[-1], 0)
    with pytest.raises(BadRequest, match="the buckets kept none of 1 clips in 1000 passes"):
        Order(found, [ClipSize(3, 64, 64)]).at(0)


def test_rendered_clips_are_in_buckets_by_weight_and_used_once() -> None:
    found = buckets({"a": {4: (1.0, 2), 8: (0.5, 3)}, "b": {4: ((0.5, 0.1), 1), 8: (0, None)}})
    plan = Weighted(found, 3)
    drawn = [plan.at(step) for step in range(2000)]
    assert drawn[17] == Weighted(found, 3).at(17) != Weighted(found, 4).at(17)
    counts = Counter(bucket[:2] for bucket, _ in drawn)
    assert set(counts) == {("a", 4), ("a", 8), ("b", 4)}
    assert all(
        abs(counts[key] - 1000 * weight) < 120 for key, weight in zip(sorted(counts), (1, 0.5, 0.5), strict=True)
    )
    assert all(abs(count - 667) < 120 for count in Counter(bucket.ratio for bucket, _ in drawn).values())
    assert all(len(members) == found.rows[bucket.resolution][bucket.frames].batch for bucket, members in drawn)
    used = [i for _, members in drawn for i in members]
    assert len(set(used)) == len(used)
