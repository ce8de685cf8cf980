"""The benchmark beside diffusers, at a size that takes a second: what it writes, and what it refuses to time."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kinema.families.svd.config import TINY

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch, tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    pairs, vs = importlib.import_module("vs_pairs"), importlib.import_module("vs_diffusers")
    monkeypatch.setattr(pairs, "FRAMES", 3)
    monkeypatch.setattr(pairs, "CELLS", 4)
    small = replace(
        TINY, frames=3, height=32, width=32, norm_eps="diffusers", guidance=(1.0, 3.0), vae_channels=(32, 32, 32, 64)
    )
    monkeypatch.setattr(pairs.SVDPair, "config", small)

    def run(*words):
        told = ["vs_diffusers.py", "--runs", "2", "--threads", "1", "--out", str(tmp_path), *words]
        monkeypatch.setattr(sys, "argv", told)
        code = vs.main()
        (written,) = tmp_path.glob("*.json")
        return code, json.loads(written.read_text()), written.with_suffix(".md").read_text()

    return run, vs


def test_both_sides_give_the_same_numbers_and_every_run_is_kept(bench):
    run, _ = bench
    code, told, page = run("--only", "step", "decode")
    assert code == 0
    rows = {row["what"]: row for row in told["rows"]}
    assert {"step, fp32", "decode, fp32", "step, bf16", "decode, bf16"} <= set(rows)
    assert rows["step, fp32"]["difference"] < 1e-4
    assert rows["decode, fp32"]["difference"] < 1e-4
    assert all(len(row["theirs"]) == len(row["ours"]) == 2 and row["ratio"] > 0 for row in rows.values())
    assert "cold: left out" in told["not measured"]
    assert "step, fp32" in page
    assert not any(home in page for home in ("/root/", "/home/", "/work/", "/tmp/"))


def test_other_numbers_are_not_timed(bench, monkeypatch):
    run, vs = bench
    monkeypatch.setattr(vs, "SAME", {"fp32": 0.0, "bf16": 0.0})
    _, told, _ = run("--only", "decode", "--dtype", "fp32")
    assert told["rows"][0]["note"] == "not the same numbers: not timed"
    assert "theirs" not in told["rows"][0]


def test_an_interrupted_run_keeps_what_it_has(bench, monkeypatch):
    run, vs = bench

    def stop(pair, *_told):
        raise KeyboardInterrupt

    monkeypatch.setattr(vs, "peaks", stop)
    code, told, _ = run("--only", "decode", "memory", "--dtype", "fp32")
    assert code == 130
    assert [row["what"] for row in told["rows"]] == ["decode, fp32"]
    assert any("interrupted" in gap for gap in told["not measured"])
