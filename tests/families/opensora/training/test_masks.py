"""Masks of training: the published probabilities, and the frames of each kind as the original draws them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from kinema.families.opensora import recipe
from kinema.families.opensora.config import TINY, TINY_DC_AE
from kinema.families.opensora.training import masks
from kinema.families.opensora.training.stages import STAGES
from kinema.training.stream import draw_mask

DRAWS = 100_000
DEVIATIONS = 4.5
"""Bounds of a frequency, in its binomial deviations: one of the tests below fails by chance once in a thousand runs of
different seeds; these seeds are fixed."""
PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "1.0": {"base": {}},
    "1.1": {
        stage: {
            "nothing": 0.75, "quarter_random": 0.025, "quarter_head": 0.025, "quarter_tail": 0.025,
            "quarter_head_tail": 0.05, "image_random": 0.025, "image_head": 0.025, "image_tail": 0.025,
            "image_head_tail": 0.05,
        }
        for stage in ("stage1", "stage2", "stage3")
    },
    "1.2": {
        "adapt": {
            "nothing": 0.5, "random": 0.2, "interpolate": 0.01, "quarter_random": 0.01, "quarter_head": 0.01,
            "quarter_tail": 0.01, "quarter_head_tail": 0.01, "image_random": 0.05, "image_head": 0.1,
            "image_tail": 0.05, "image_head_tail": 0.05,
        },
        **{
            stage: {
                "nothing": 0.8, "random": 0.05, "interpolate": 0.005, "quarter_random": 0.005, "quarter_head": 0.005,
                "quarter_tail": 0.005, "quarter_head_tail": 0.005, "image_random": 0.025, "image_head": 0.05,
                "image_tail": 0.025, "image_head_tail": 0.025,
            }
            for stage in ("stage1", "stage2")
        },
        "stage3": {
            "nothing": 0.75, "random": 0.01, "interpolate": 0.002, "quarter_random": 0.002, "quarter_head": 0.002,
            "quarter_tail": 0.002, "quarter_head_tail": 0.002, "image_random": 0.0, "image_head": 0.22,
            "image_tail": 0.005, "image_head_tail": 0.005,
        },
    },
    "1.3": {
        "stage1": {}, "stage2": {},
        "stage1-hq": {
            "nothing": 8 / 17, "i2v_head": 2 / 17, "i2v_tail": 2 / 17, "i2v_loop": 2 / 17, "v2v_head": 1 / 17,
            "v2v_tail": 1 / 17, "other": 1 / 17,
        },
        "adapt-i2v": {
            "i2v_head": 5 / 16, "i2v_tail": 2 / 16, "i2v_loop": 2 / 16, "v2v_head": 1 / 16, "v2v_head_noisy": 2 / 16,
            "v2v_tail": 1 / 16, "other": 1 / 16, "nothing": 2 / 16,
        },
    },
}  # fmt: skip
"""Written from the original's configs."""
ALL = [(version, stage) for version, stages in PUBLISHED.items() for stage in stages]


def within(counts: Mapping[str, int], expected: Mapping[str, float], draws: int = DRAWS) -> bool:
    return set(counts) <= {kind for kind, p in expected.items() if p} and all(
        abs(counts.get(kind, 0) - draws * p) <= DEVIATIONS * math.sqrt(draws * p * (1 - p))
        for kind, p in expected.items()
    )


def test_every_published_stage_is_here() -> None:
    assert {version: {*stages} for version, stages in STAGES.items()} == {v: {*s} for v, s in PUBLISHED.items()}


@pytest.mark.parametrize(("version", "stage"), ALL)
def test_kinds_are_drawn_with_their_published_probabilities(version: str, stage: str) -> None:
    mix, expected = STAGES[version][stage].masks, PUBLISHED[version][stage] or {"nothing": 1.0}  # type: ignore[index]
    drawn = masks.kinds(mix, DRAWS, torch.Generator().manual_seed(1))
    assert within(Counter(drawn), expected)
    assert masks.KINDS.keys() >= {kind.removesuffix(masks.NOISY) for kind in expected}


def test_given_frames_of_1_3_are_dropped_with_their_published_probabilities() -> None:
    for stage in ("stage1-hq", "adapt-i2v"):
        drawn = masks.kinds(STAGES["1.3"][stage].drops, DRAWS, torch.Generator().manual_seed(2))
        assert within(Counter(drawn), {"cond": 0.05, "text": 0.05, "null": 0.05, "keep": 0.85})


def test_a_frequency_outside_the_bounds_is_noticed() -> None:
    drawn = masks.kinds({"nothing": 0.76, "random": 0.24}, DRAWS, torch.Generator().manual_seed(1))
    assert not within(Counter(drawn), {"nothing": 0.75, "random": 0.25})


@pytest.mark.parametrize(
    ("config", "weights"),
    [(TINY, {"nothing": 1, "first": 5, "ends": 1, "last": 1}), (TINY_DC_AE, {"nothing": 1, "first": 7})],
)
def test_canvases_of_2_0_are_drawn_with_their_published_weights(config: object, weights: dict[str, int]) -> None:
    mix, g = recipe.settings(config).canvas_mix, torch.Generator().manual_seed(3)  # type: ignore[arg-type]
    of = {(0, 0): "nothing", (1, 0): "first", (0, 1): "last", (1, 1): "ends"}
    counts: Counter[str] = Counter()
    for _ in range(DRAWS):
        mask = draw_mask(mix, (5, 1, 1), g).flatten().int().tolist()
        assert not any(mask[1:-1])
        counts[of[mask[0], mask[-1]]] += 1
    assert within(counts, {kind: weight / 8 for kind, weight in weights.items()})


def drawn_rows(kind: str, frames: int, draws: int = 4000) -> set[tuple[int, ...]]:
    g = torch.Generator().manual_seed(4)
    return {tuple(masks.frames_of(kind, frames, g).int().tolist()) for _ in range(draws)}


def test_the_frames_of_each_kind_are_those_of_the_original(recorded: Callable[[str], dict[str, Tensor]]) -> None:
    """Recorded are all masks that come up in 3,000 draws of the original."""
    compared = 0
    for name, rows in recorded("training").items():
        if name.startswith("masks."):
            _, _, _, kind, frames = name.split(".")
            kind = {"intepolate": "interpolate"}.get(kind, kind)
            assert drawn_rows(kind, int(frames)) == {tuple(row) for row in rows.tolist()}, name
            compared += 1
    assert compared == 87


def test_sizes_and_places_are_uniform() -> None:
    """Of a quarter of 16 frames: 1 to 4 frames, at each place where they fit; ``other``: each end, 1 to 14 frames."""
    g, draws = torch.Generator().manual_seed(5), 20_000
    sizes: Counter[str] = Counter()
    places: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for _ in range(draws):
        mask = masks.frames_of("quarter_random", 16, g)
        sizes[str(int(mask.sum()))] += 1
        if mask.sum() == 4:
            places[str(int(mask.int().argmax()))] += 1
        other = masks.frames_of("other", 16, g)
        others[f"{int(other[0])} {int(other.sum() if other[0] else 16 - other.sum())}"] += 1
    assert within(sizes, {str(size): 1 / 4 for size in (1, 2, 3, 4)}, draws)
    assert within(places, {str(place): 1 / 13 for place in range(13)}, places.total())
    assert within(others, {f"{end} {at}": 1 / 28 for end in (0, 1) for at in range(1, 15)}, draws)


def test_random_gives_between_a_tenth_and_nine_tenths_and_never_all() -> None:
    """The share is uniform in 0.1 to 0.9: its mean over clips is 0.5, its variance that of the shares, 0.8² / 12."""
    g = torch.Generator().manual_seed(6)
    shares = torch.stack([masks.frames_of("random", 400, g).float().mean() for _ in range(4000)])
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(shares.std()) == pytest.approx(0.8 / math.sqrt(12), abs=0.02)
    assert (shares.min() >= 0.03, shares.max() <= 0.97) == (True, True)
    assert all(not all(row) for row in drawn_rows("random", 2))


def test_an_image_is_never_given_and_an_unknown_kind_is_named() -> None:
    for kind in masks.KINDS:
        assert drawn_rows(kind, 1, 20) == {(0,)}
    with pytest.raises(ValueError, match="no kind of mask 'middle'; expected one of nothing"):
        masks.frames_of("middle", 5, torch.Generator())


def test_noisy_kinds_are_marked_where_their_first_frame_is_given() -> None:
    drawn = masks.drawn({"v2v_head_noisy": 1, "v2v_head": 1}, 200, 6, torch.Generator().manual_seed(7))
    assert bool(drawn.given_BT[:, :3].all())
    assert not bool(drawn.given_BT[:, 3:].any())
    assert 0 < int(drawn.noisy_B.sum()) < 200
    assert not bool(masks.drawn({"v2v_head_noisy": 1}, 5, 1, torch.Generator()).noisy_B.any())
