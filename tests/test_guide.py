"""One pass of the sampler: the prompt of each window, and the order and noise of the known regions."""

from __future__ import annotations

import pytest
import torch

from kinema.api import load
from kinema.canvas import Block, Canvas, Piece, Release
from kinema.diffusion.guidance import classifier_free
from kinema.diffusion.noise import Noise
from kinema.diffusion.overwrite import KnownRegion, Overwrite
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.schedules import CosineLogSNR, NoiseLevel, spaced
from kinema.grid import FrameGrid, LatentGrid, Lattice
from kinema.guide import WindowConditions, guide, known_regions
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


@pytest.mark.parametrize("window", [None, 4])
def test_clean_frames_are_put_around_the_guidance(
    system: System, monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """Guidance sees predictions for them too; the network is told of each frame of its window, and of z's own level."""
    request = Request(frames=8, height=16, width=16, steps=4, window=window, overlap=1)
    told: list[NoiseLevel] = []

    def denoiser(_system: System, condition: float, _frames: object) -> Denoiser:
        return lambda z, level: told.append(level) or condition * z  # type: ignore[func-returns-value]

    monkeypatch.setattr(type(system.family.sampling), "denoiser", lambda _self, *given: denoiser(*given))
    z = torch.randn(1, 3, 8, 16, 16)
    held, released = torch.zeros(1, 1, 8, 1, 1), torch.zeros(1, 1, 8, 1, 1)
    held[:, :, 0], released[:, :, 3] = 1, 1
    levels = spaced(CosineLogSNR(), 4)
    regions = [KnownRegion(z, held, None, "clean"), KnownRegion(z, released, 2, "lagging")]
    over = Overwrite(regions, levels, Noise([0]), z)
    branches = Conditions({"positive": 0.5, "negative": 0.25})
    denoise = guide(system, branches, request, classifier_free(5.0), levels, None, over)
    level = levels[2].batch(1)
    found = denoise(z, level)
    assert torch.equal(found[:, :, :1], z[:, :, :1])
    torch.testing.assert_close(found[:, :, 1:], 1.5 * z[:, :, 1:])  # 0.25 + 5 (0.5 - 0.25)
    clean = [(each.sigma == 0)[0].tolist() for each in told]
    assert all(each.state is level for each in told)
    whole = [True, False, False, True, False, False, False, False]
    if window is None:
        assert clean == [whole, whole]
    else:
        assert clean == [each for at in (0, 3, 4) for each in [whole[at : at + 4]] * 2]
