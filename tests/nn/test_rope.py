"""Rotary embeddings: turning in place, and between layouts."""

from __future__ import annotations

import pytest
import torch

from kinema.nn.rope import Layout, adjacent_to_half, angles, half_to_adjacent, rotate, rotate_, video_positions


@pytest.mark.parametrize("layout", ["half", "adjacent"])
def test_turning_in_place_gives_the_same_numbers(layout: Layout) -> None:
    turned_LP = angles(video_positions(2, 3, 5, text=4), (4, 6, 6))
    cos, sin = turned_LP.cos()[:, None], turned_LP.sin()[:, None]
    x = torch.randn(2, 34, 3, 16)
    expected = rotate(x, cos, sin, layout)
    assert float((expected - x).abs().max()) > 0.1
    given = x.clone()
    assert rotate_(given, cos, sin, layout) is given
    assert torch.allclose(given, expected, atol=1e-6)


def test_a_view_of_a_larger_tensor_is_turned_alone() -> None:
    joined = torch.randn(1, 5, 3 * 8 + 7)
    before = joined.clone()
    angle = torch.rand(5, 1, 4)
    rotate_(joined[..., :24].unflatten(-1, (3, 8)), angle.cos(), angle.sin())
    assert torch.equal(joined[..., 24:], before[..., 24:])
    expected = rotate(before[..., :24].unflatten(-1, (3, 8)), angle.cos(), angle.sin())
    assert torch.allclose(joined[..., :24].unflatten(-1, (3, 8)), expected, atol=1e-6)


def test_rows_of_a_projection_move_between_layouts() -> None:
    rows = torch.randn(3 * 10, 7)
    moved = adjacent_to_half(rows, 3)
    assert torch.equal(half_to_adjacent(moved, 3), rows)
    x, angle = torch.randn(2, 7), torch.rand(2, 1, 5)
    cos, sin = angle.cos(), angle.sin()
    half = rotate((x @ moved.T).unflatten(-1, (3, 10)), cos, sin)
    adjacent = rotate((x @ rows.T).unflatten(-1, (3, 10)), cos, sin, "adjacent")
    assert torch.allclose(half @ half.transpose(-1, -2), adjacent @ adjacent.transpose(-1, -2), atol=1e-4)
