"""One pass of the sampler: the prompt of each window, and the order and noise of the known regions."""

from __future__ import annotations

import pytest
import torch

from kinema.api import load
from kinema.canvas import Block, Canvas, Piece, Release
from kinema.grid import FrameGrid, LatentGrid, Lattice
from kinema.guide import WindowConditions, known_regions
from kinema.schema import Request, Shape
from kinema.system import Conditions, System


@pytest.fixture(scope="module")
def system() -> System:
    torch.set_num_threads(1)
    return load("zoetrope", preset="tiny").system


def test_with_temporal_compression_the_middle_pixel_frame_of_the_middle_cell_selects_the_prompt(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cells of 9 frames are 0, 1 to 4 and 5 to 8; their middles are 0, 3 and 7."""
    lattice = Lattice(LatentGrid(FrameGrid(4, causal=True)), side_multiple=16, max_side=16, max_frames=9)
    monkeypatch.setattr(type(system.family.sampling), "lattice", lambda *_: lattice)
    request = Request(frames=9, height=16, width=16, prompt_spans={"0-2": "a", "3-4": "b", "5-6": "c", "7-8": "d"})
    each = {text: Conditions({text: text}) for text in "abcd"}
    windows = WindowConditions.of_request(system, request, {**each})
    expected = {None: "b", (0,): "a", (0, 1): "b", (0, 1, 2): "b", (1, 2): "d", (2,): "d"}
    assert {frames: next(iter(windows.of(frames).branches)) for frames in expected} == expected


def test_given_regions_cover_held_ones_and_have_fresh_noise(system: System) -> None:
    """Held pieces have the clip's initial noise; they must not cover a given piece."""
    request = Request(frames=8, height=16, width=16)
    held = [Piece(torch.full((1, 3, 8, 16, 16), v), torch.ones(1, 1, 8, 16, 16), Release("level")) for v in (0.1, 0.2)]
    given = Piece(torch.full((1, 3, 8, 16, 16), 0.3), torch.ones(1, 1, 8, 16, 16))
    block = Block(0, 8, "replacement", (1, 2))
    canvas = Canvas(Shape(1, 3, 8, 16, 16), (held[0], given, held[1]), block)
    for clean, noise in ((False, ["fixed", "fixed", "fresh"]), (True, ["clean"] * 3)):
        pieces, targets = known_regions(system, request, canvas, clean=clean)
        assert [round(float(piece.content.mean()), 3) for piece in pieces] == [0.1, 0.2, 0.3]
        assert [piece.release for piece in pieces] == [1, 2, None]
        assert [piece.noise for piece in pieces] == noise
        assert targets.given is None
