from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from kinema.evaluation import plots
from kinema.evaluation.results import Median

pytest.importorskip("matplotlib")


def test_a_forest_with_non_finite_figures_is_still_plotted(tmp_path: Path) -> None:
    rows = {
        "jerk": {"a": Median(1.2, 1.0, 1.5, 9), "b": Median(4.0, 2.0, math.inf, 9)},
        "luma": {"a": Median(0.0, 0.0, 0.0, 9), "b": Median(math.inf, 1.0, math.inf, 9)},
    }
    path = plots.forest(rows, tmp_path / "forest.png", title="t", axis="ratio", at_most=1.5)
    with Image.open(path) as image:
        assert image.width > 600
        assert len(set(image.convert("RGB").resize((80, 60)).getdata())) > 10


def test_a_forest_labels_every_dot_that_it_can_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    said, annotate = [], Axes.annotate
    monkeypatch.setattr(
        Axes, "annotate", lambda self, text, at, **k: (said.append((text, at)), annotate(self, text, at, **k))
    )
    rows = {
        "jerk": {"a": Median(1.234, 1.0, 1.5, 9), "b": Median(2322.55, 2000.0, math.inf, 9)},
        "luma": {"a": Median(0.0, 0.0, 0.0, 9), "b": Median(0.00085, 0.0005, 0.001, 9)},
    }
    plots.forest(rows, tmp_path / "forest.png", title="t", axis="ratio")
    assert [text for text, _ in said] == ["1.23", "2,323", "0.00085"]
    assert [at[0] for _, at in said] == [1.5, 2322.55, 0.001]  # next to the end of the interval
    (a, b, c) = (at[1] for _, at in said)
    assert a > b > c


def test_a_curve_without_scores_or_losses_is_still_plotted(tmp_path: Path) -> None:
    path = plots.curves([], {}, tmp_path / "curve.png", title="t", goals={})
    assert path.stat().st_size < plots.MOST_BYTES


def test_a_sheet_shows_every_frame_of_every_row_in_place(tmp_path: Path) -> None:
    red, blue = torch.full((3, 4, 16, 16), -1.0), torch.full((3, 4, 16, 16), -1.0)
    red[0], blue[2] = 1, 1
    path = plots.sheet([("# a prompt|red", red), ("blue", blue)], tmp_path / "sheet.png")
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    for t in range(4):
        x = 96 + t * 18 + 8
        assert image.getpixel((x, 18 + 8)) == (255, 0, 0)
        assert image.getpixel((x, 18 + 18 + 8)) == (0, 0, 255)


def test_noise_images_stay_below_the_size_limit(tmp_path: Path) -> None:
    noise = torch.rand(3, 16, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    path = plots.sheet([("noise", noise)] * 3, tmp_path / "sheet.png")
    assert path.stat().st_size <= plots.MOST_BYTES
