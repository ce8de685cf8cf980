"""The benchmark against diffusers, at a size that takes a second: its output, and when it skips timing."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kinema
from kinema.families.animatediff.config import TINY as TINY_ANIMATEDIFF
from kinema.families.svd.config import TINY

ROOT = Path(__file__).parents[1]
SVD = replace(
    TINY,
    frames=3,
    height=32,
    width=32,
    norm_eps="diffusers",
    guidance=(1.0, 3.0),
    vae_channels=(32, 32, 32, 64),
    clip_side=224,  # diffusers' pipeline always feeds the encoder 224 pixels
    clip_patch=56,
)
ANIMATEDIFF = replace(
    TINY_ANIMATEDIFF,
    frames=3,
    motion="v2",
    motion_mid=True,
    norms="diffusers",
    words=(),
    channels=(32, 64, 64),
    depths=(1, 1, 0),
    heads=(2, 2, 2),
    text=(replace(TINY_ANIMATEDIFF.text[0], vocabulary=40_000),),
)


SDXL = replace(
    ANIMATEDIFF,
    motion="sdxl",
    motion_mid=False,
    linear=True,
    size_embedding=8,
    depths=(0, 1, 2),
    context=64,
    text=(ANIMATEDIFF.text[0], replace(ANIMATEDIFF.text[0], projection=32)),
)


@pytest.fixture
def bench(monkeypatch, tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(ROOT))
    svd, animatediff, sdxl = (
        importlib.import_module(f"benchmarks.vs.{name}") for name in ("svd", "animatediff", "sdxl")
    )
    monkeypatch.setattr(sdxl.SDXLPair, "configs", {"full": SDXL})
    monkeypatch.setattr(svd.SVDPair, "configs", {"reduced": SVD, "full": SVD})
    monkeypatch.setattr(animatediff.AnimateDiffPair, "configs", {"reduced": ANIMATEDIFF, "full": ANIMATEDIFF})

    def run(*words, family="svd"):
        arguments = ["benchmarks.vs", "--family", family, "--threads", "1", "--out", str(tmp_path), *words]
        monkeypatch.setattr(sys, "argv", arguments)
        code = importlib.import_module("benchmarks.vs.__main__").main()
        written = list(tmp_path.glob(f"20*-{family}*.json"))
        if code:
            assert not written
            return code, {}, ""
        return code, json.loads(written[0].read_text()), written[0].with_suffix(".md").read_text()

    return run, importlib.import_module("benchmarks.vs.__main__"), tmp_path


def stopped_after(vs, monkeypatch, pairs):
    """Interrupt the run after ``pairs`` pairs, as Ctrl-C would."""
    alternate, left = vs.measure.alternate, [pairs]

    def stopping(*arguments):
        for _ in alternate(*arguments):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            yield

    monkeypatch.setattr(vs.measure, "alternate", stopping)


@pytest.mark.parametrize("family", ["svd", "animatediff"])
def test_both_sides_give_equal_results_and_every_run_is_stored(bench, family):
    run, vs, folder = bench
    code, result, page = run("--runs", "2", "--only", "step", "decode", family=family)
    assert code == 0
    rows = {row["what"]: row for row in result["rows"]}
    measured = {f"{what}, {dtype}" for what, dtype in vs.PAIRS[family].goals if what in ("step", "decode")}
    assert {"step, fp32", "step, bf16"} <= measured <= set(rows)
    assert all(row["difference"] < 1e-4 for name, row in rows.items() if name.endswith("fp32"))
    assert all(len(row["theirs"]) == len(row["ours"]) == 2 and row["ratio"] > 0 for row in rows.values())
    assert all(rows[f"{what}, {dtype}"]["goal"] == goal for (what, dtype), goal in vs.PAIRS[family].goals.items()
               if what in ("step", "decode"))  # fmt: skip
    assert result["date"] in page
    assert result["machine"]["cores"] >= 1
    assert "cold: skipped" in result["to be known"]
    assert "step, fp32" in page
    assert not any(home in page for home in ("/home/", f"{Path.home()}/", f"{folder}", tempfile.gettempdir()))
    assert not list(folder.glob("*.partial.json"))


@pytest.mark.parametrize("family", ["svd", "animatediff", "sdxl"])
def test_a_full_width_is_measured_beside_what_its_products_take_alone(bench, family):
    run, _, _ = bench
    _, result, page = run(
        "--runs", "1", "--width", "full", "--budget", "--only", "step", "--dtype", "fp32", family=family
    )
    (row,) = result["rows"]
    assert row["difference"] < 1e-4
    assert set(row["shares"]) == {"theirs", "ours"}
    for side, share in row["shares"].items():
        budget = row["budget"][side]
        assert share == pytest.approx(sum(budget["alone"].values()) / row[side][0])
        assert sum(budget["seconds"].values()) == pytest.approx(2 * budget["seconds"]["all"])
        assert all(budget["operations"][kind] > 0 < budget["seconds"][kind] for kind in ("linear", "convolution"))
    assert "at the published width" in page
    assert "GFLOP/s alone" in page
    assert result["commands"] == [row["command"]]
    assert f"`{row['command']}`" in page


def test_t5_reads_a_prompt_as_transformers_does(bench, monkeypatch):
    run, vs, _ = bench
    small = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
    monkeypatch.setattr(vs.T5Reading, "config", {**vs.T5Reading.config, **small})
    _, result, _ = run("--runs", "1", "--width", "full", "--budget", family="t5")
    for row in result["rows"]:
        assert row["difference"] < 1e-5
        budget = row["budget"]
        assert budget["ours"]["operations"] == budget["theirs"]["operations"]
        assert budget["ours"]["operations"]["linear"] == 2 * 512 * 2 * (4 * 32 * 32 + 3 * 32 * 64)
    assert [row["what"][-4:] for row in result["rows"]] == ["fp32", "bf16"]


def test_animatediff_decoding_gives_equal_results(bench):
    _, vs, _ = bench
    with torch.no_grad():
        work = vs.PAIRS["animatediff"]().decode(torch.float32)["decode"]
        assert torch.allclose(work.theirs(), work.ours(), atol=1e-4)


def test_differing_results_are_not_timed(bench, monkeypatch):
    run, vs, _ = bench
    monkeypatch.setattr(vs, "SAME", {"fp32": 0.0, "bf16": 0.0})
    _, result, _ = run("--runs", "2", "--only", "decode", "--dtype", "fp32")
    assert result["rows"][0]["note"] == "results differ: not timed"
    assert "theirs" not in result["rows"][0]


def test_the_same_command_resumes_where_it_was_stopped(bench, monkeypatch):
    run, vs, folder = bench
    words = ("--runs", "3", "--only", "step", "decode", "--dtype", "fp32")
    with monkeypatch.context() as stopping:
        stopped_after(vs, stopping, 4)
        assert run(*words)[0] == 130
    stored = json.loads((folder / "svd-1.partial.json").read_text())["rows"]
    assert [len(row["ours"]) for row in stored] == [3, 1]
    other, _, _ = run("--runs", "1", "--only", "decode", "--dtype", "bf16")  # leaves the interrupted runs in place
    assert other == 0
    code, result, _ = run(*words)
    assert code == 0
    # A CPU without native bfloat16 has a further row, in bfloat16 arithmetic.
    rows = {row["what"]: row for row in result["rows"] if "arithmetic" not in row["what"]}
    assert {what: len(row["ours"]) for what, row in rows.items()} == {
        "decode, bf16": 1,
        "step, fp32": 3,
        "decode, fp32": 3,
    }
    assert stored[0].items() <= rows["step, fp32"].items()
    assert rows["decode, fp32"]["theirs"][:1] == stored[1]["theirs"]
    assert [row["command"].endswith("--only decode --dtype bf16") for row in rows.values()] == [True, False, False]


def test_measurements_of_other_code_are_discarded(bench, monkeypatch, capsys):
    run, vs, _ = bench
    words = ("--runs", "3", "--only", "decode", "--dtype", "fp32")
    with monkeypatch.context() as stopping:
        stopped_after(vs, stopping, 1)
        run(*words)
    monkeypatch.setattr(vs, "code_hash", lambda: "another")
    assert run(*words)[0] == 0
    assert "with other code" in capsys.readouterr().err


def test_the_code_hash_covers_the_package_and_every_script(bench, monkeypatch):
    _, vs, _ = bench
    read, real = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or real(path))
    vs.code_hash()
    scripts = {path for path in read if ROOT / "benchmarks" in path.parents}
    assert scripts == set((ROOT / "benchmarks" / "vs").glob("*.py"))
    assert Path(kinema.__file__) in read


@pytest.mark.parametrize("family", ["svd", "animatediff"])
def test_both_sides_cold_start(bench, family):
    """Both sides load the written folder and run their program to the end."""
    run, _, _ = bench
    _, result, _ = run("--runs", "1", "--only", "cold", family=family)
    (row,) = result["rows"]
    assert row["note"].startswith("a folder of"), row["note"]
    assert row["ratio"] > 0
