"""The benchmarks of errors, choices, and of opening and keeping open: their arithmetic, and one small run of each."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kinema.events import Phase, Step

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """``bench(name, *words)`` runs one and returns its module, result and page; without words, the module alone."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(ROOT))

    def run(name, *words):
        module = importlib.import_module(f"benchmarks.{name}")
        if not words:
            return module
        arguments = [f"benchmarks.{name}", "--threads", "1", "--out", str(tmp_path), *words]
        monkeypatch.setattr(sys, "argv", arguments)
        assert module.main() == 0
        (file,) = tmp_path.glob(f"20*-{name}*.json")
        return module, json.loads(file.read_text()), file.with_suffix(".md").read_text()

    return run


def test_results_of_other_settings_are_never_overwritten(bench, tmp_path, capsys):
    """Rows of one command replace those of the same name and settings; other settings have another file."""
    report, measure = bench("vs.report"), bench("vs.measure")
    options = argparse.Namespace(out=tmp_path, threads=1)

    def written(what, seconds, **settings):
        row = measure.Row(what)
        row.add(2.0, seconds)
        report.Report("title", "about", "it", settings, options).write([row], [])

    for what, seconds, frames in (("step", 1.0, 8), ("decode", 1.0, 8), ("decode", 0.5, 2), ("step", 4.0, 8)):
        written(what, seconds, frames=frames)
    first, second = sorted(tmp_path.glob("*.json"), key=lambda path: len(path.name))
    assert second.stem == f"{first.stem}-2"
    found = [{row["what"]: row["ours"] for row in json.loads(path.read_text())["rows"]} for path in (first, second)]
    assert found == [{"decode": [1.0], "step": [4.0]}, {"decode": [0.5]}]


# ------------------------------------------------------------------------------------------- errors


def test_an_error_is_the_relative_root_of_the_mean_square(bench):
    errors = bench("errors")
    b = torch.tensor([3.0, 4.0])
    assert errors.relative(b + torch.tensor([0.0, 0.5]), b) == pytest.approx(0.1)


@pytest.fixture
def sides(bench, monkeypatch):
    """A network of one layer in place of all: the reference rounds its result once more."""
    errors, networks = bench("errors"), bench("networks")
    layer = networks.built(lambda: nn.Linear(64, 64))

    def twice(network, normal):
        return network(network(normal(8, 64)))

    small = {
        "referenced": lambda _: networks.Sides(layer, lambda n, normal: n(normal(8, 64)), nn.Sequential(layer), twice),
        "alone": lambda _: networks.Sides(networks.built(lambda: nn.Linear(64, 64)), twice),
    }
    monkeypatch.setattr(errors, "NETWORKS", small)
    return small


def test_both_errors_and_their_ratio_are_reported(bench, sides, monkeypatch):
    errors = bench("errors")
    monkeypatch.setattr(errors, "SAME", 10.0)  # the reference computes something else
    _, result, page = bench("errors", "--runs", "3")
    rows = {row["what"]: row for row in result["rows"]}
    assert all(0 < error < 0.01 for row in rows.values() for error in row["ours"])
    assert len(set(rows["referenced"]["ours"])) == 3
    assert rows["referenced"]["ratio"] > 1.2  # the reference's over ours: two roundings have a larger error than one
    assert "| **0." in page  # ours over the reference's
    assert "| alone | – |" in page
    assert "- alone: no reference" in page
    assert result["commands"][0].startswith("python -m benchmarks.errors")


def test_networks_that_differ_in_float32_are_not_compared(bench, sides):
    _, result, _ = bench("errors", "--runs", "1", "--only", "referenced")
    (row,) = result["rows"]
    assert "theirs" not in row
    assert row["note"].startswith("float32 outputs differ by")


def test_weights_and_inputs_are_exact_in_bfloat16(bench):
    networks = bench("networks")
    layer = networks.built(lambda: nn.Linear(64, 64))
    assert torch.equal(layer.weight, layer.weight.bfloat16().float())
    normal = networks.in_precision(1, torch.float32)
    first = normal(4, 4)
    assert torch.equal(first, first.bfloat16().float())
    assert torch.equal(first, networks.in_precision(1, torch.bfloat16)(4, 4).float())
    assert not torch.equal(first, networks.in_precision(2, torch.float32)(4, 4))


@pytest.mark.parametrize(
    "name", ["MMDiT", "CLIP text", "T5", "STDiT 1.0", "STDiT 1.1", "STDiT 1.3", "lumiere U-Net", "vdm", "zoetrope"]
)
def test_every_network_runs_in_both_precisions(bench, name, monkeypatch):
    errors, networks, opensora = bench("errors"), bench("networks"), bench("vs.opensora")
    small = opensora.MMDiTConfig(text=32, vector=16, width=96, heads=2, axes=(16, 16, 16), double_blocks=1,
                                 single_blocks=1, conditioned=False)  # fmt: skip
    monkeypatch.setattr(networks, "WHOLE", small)
    row = importlib.import_module("benchmarks.vs.measure").Row(name)
    with torch.no_grad():
        errors.compare(row, networks.NETWORKS[name]("reduced"), 1)
    assert 1e-4 < row.ours[0] < 0.1
    assert row.note in ("", "no reference")
    assert row.difference is None or row.difference < 1e-4


# ------------------------------------------------------------------------------------------ choices


def test_every_number_of_rows_is_timed_and_the_chosen_one_is_found(bench, monkeypatch):
    choices = bench("choices")
    monkeypatch.setattr(choices, "cache_bytes", lambda: 20_000)
    monkeypatch.setattr(choices, "WORK", 12 * 16**2 * 256)
    monkeypatch.setattr(choices, "BRIEF", 1e-5)
    _, result, page = bench("choices", "--only", "rows", "--widths", "16", "--dtype", "fp32", "--runs", "2")
    rows = result["rows"]
    assert [set(row["options"]) for row in rows] == [{"32", "64", "128", "256"}, {"32", "64"}]
    for row in rows:
        assert row["ours"] == row["options"][row["chosen"]]
        assert row["theirs"] in row["options"].values()
        assert sum(row["theirs"]) == min(map(sum, row["options"].values()))  # of two runs, the median is the mean
    assert "width 16, 256 tokens" in page


def test_the_rows_at_once_are_those_of_the_layer(bench):
    choices, recorded = bench("choices"), bench("vs.recorded")
    layers = choices.cold_layers(32, torch.float32)
    assert len(layers) > 1
    assert all(torch.equal(layers[0].net[2].weight, layer.net[2].weight) for layer in layers)
    layers[0].chunk, x = 48, torch.randn(1, 200, 32)
    with torch.no_grad():
        _, recording = recorded.recorded(lambda: layers[0](x, x.clone()), layers[:1])
    assert choices.rows_of(recording) == 48


def test_branches_are_timed_in_every_order_and_the_package_s_is_found(bench, monkeypatch):
    choices, svd = bench("choices"), bench("vs.svd")
    tiny = svd.replace(svd.REDUCED, frames=2, height=64, width=64, layers=1, context=32, scalars=(("fps", 8),) * 3,
                       channels=(32, 64), heads=(1, 1), vae_channels=(32, 32, 32, 32), **svd.SMALL_CLIP)  # fmt: skip
    monkeypatch.setattr(svd.SVDPair, "configs", {"full": tiny})
    monkeypatch.setitem(choices.LEVELS, "64-256", ((32, 64), (1, 1)))
    monkeypatch.setattr(choices, "BRIEF", 1e-5)
    words = ("--only", "branches", "--levels", "64-256", "--dtype", "fp32", "--runs", "1", "--frames", "2")
    _, result, _ = bench("choices", *words)
    (row,) = result["rows"]
    assert set(row["options"]) == {"one after the other", "one batch"}  # one thread
    assert row["chosen"] in row["options"]


def test_the_order_of_branches_is_read_from_a_recording(bench):
    choices, recorded = bench("choices"), bench("vs.recorded")

    def order(threads, images):
        recording = recorded.Recording(threads=threads)
        recording.products[recorded.Product("convolution", ((images, 4, 8, 8), (4, 4, 3, 3)), "float32")] = 1
        return choices.order_of(recording, frames=4)

    assert [order(1, 4), order(2, 4), order(1, 8)] == ["one after the other", "at the same time", "one batch"]


# --------------------------------------------------------------------------------------------- stay


def test_the_parts_of_a_clip_are_encoding_decoding_and_median_steps(bench):
    stay = bench("stay")
    step = Step(1, 3, 0.0)
    seen = [(0, Phase("load")), (5, Phase("condition")), (7, Phase("sample")), (9, step), (11, step), (18, step),
            (18, Phase("decode")), (21, Phase("load")), (22, Phase("condition")), (23, Phase("sample")), (24, step),
            (30, Phase("decode"))]  # fmt: skip
    assert stay.parts(seen, ended=34) == (2 + 3 * 2 + 3) + (1 + 1 + 4)


def test_the_slope_of_memory_ignores_the_first_clips_and_single_peaks(bench):
    stay = bench("stay")
    climbing = [0, 500, 900, 950, 980] + [1000 + 2 * i for i in range(7)]
    climbing[8] += 5000
    assert stay.slope(climbing) == 2
    assert stay.slope([7, 7, 7]) == 0


def test_loading_and_later_clips_are_measured_in_fresh_processes(bench, monkeypatch):
    """The children's work, run in this process."""
    stay, svd = bench("stay"), bench("vs.svd")
    tiny = svd.replace(svd.REDUCED, height=64, width=64, layers=1, channels=(32, 64, 64, 64), heads=(1, 1, 1, 1),
                       context=32, scalars=(("fps", 8), ("motion_bucket", 8), ("augmentation", 8)), clip_layers=1,
                       vae_channels=(32, 32, 32, 32), clip_patch=56, clip_width=80, clip_heads=1,
                       clip_mlp=64)  # fmt: skip
    monkeypatch.setattr(svd.SVDPair, "configs", {"reduced": tiny})
    monkeypatch.setattr(stay, "fresh", lambda told, _: stay.child(told))
    _, result, page = bench("stay", "--runs", "1", "--clips", "3", "--steps", "2", "--models", "svd-pocket")
    rows = {row["what"]: row for row in result["rows"]}
    assert list(rows) == [
        "load a fp32 folder as bf16", "load a fp32 folder as bf16, peak memory", "load a bf16 folder as fp32",
        "load a bf16 folder as fp32, peak memory", "later clip, svd-pocket, 2 steps",
        "memory over 3 clips, svd-pocket",
    ]  # fmt: skip
    assert (
        0
        < rows["later clip, svd-pocket, 2 steps"]["theirs"][0]
        <= rows["later clip, svd-pocket, 2 steps"]["ours"][0] * 1.5
    )
    assert len(rows["memory over 3 clips, svd-pocket"]["ours"]) == 3
    assert "MiB a clip" in page
