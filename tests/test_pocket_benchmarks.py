"""The benchmarks of the pocket models: their prompts, resumption, and the comparison of training curves."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kinema.data import playroom
from kinema.data.playroom.grammar import in_split, phrase, random_meaning
from kinema.families.opensora.pocket import recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def benchmark():
    """The module `benchmarks.opensora_pocket`."""
    sys.path.insert(0, str(ROOT))
    yield importlib.import_module("benchmarks.opensora_pocket")
    sys.path.remove(str(ROOT))


def test_the_128_prompts_are_in_no_part_of_the_pocket_open_soras_training(benchmark):
    """Neither their meanings, nor, in 20,000 captions as training draws them, their words."""
    prompts = set(benchmark.unseen(128, 0))
    assert len(prompts) == 128
    assert [settings.playroom.split for settings in (recipe.CODEC, recipe.FLOW)] == ["train", "train"]
    assert not [prompt for prompt in prompts if in_split(playroom.parse(prompt), "train")]
    rng = np.random.default_rng(0)
    trained = {phrase(random_meaning(rng, recipe.FLOW.playroom.grammar, "train", {}), rng, 0.1) for _ in range(20_000)}
    assert len(trained) > 2000
    assert not prompts & trained


def log(path, losses, rest=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"step": 10 * (i + 1), "loss": loss}) + "\n" for i, loss in enumerate(losses)]
    path.write_text("".join(rows) + rest)


def test_an_unfinished_run_is_compared_as_far_as_it_goes(benchmark, tmp_path, capsys):
    """In windows of ten logged steps; a trend within a window is no spread."""
    falling, wave = np.linspace(2, 1, 40), 0.01 * (-1.0) ** np.arange(40)
    log(tmp_path / "opensora-pocket-codec.jsonl", falling + wave)
    other = (falling - wave)[:25]
    other[10:20] += 0.03
    log(tmp_path / "seed" / "codec" / "log.jsonl", other, rest='{"step": 260, "lo')
    options = SimpleNamespace(shipped=tmp_path, runs=[tmp_path / "seed"], evidence=tmp_path)
    benchmark.follow(options)
    (rows,) = json.loads((tmp_path / "opensora-pocket-curve.json").read_text()).values()
    assert [row["step"] for row in rows] == [100, 200]
    assert all(0.018 < row["spread"] < 0.024 for row in rows)
    assert [abs(row["other"] - row["shipped"]) < row["spread"] for row in rows] == [True, False]
    assert "to step 200, within the shipped curve's spread in 1 of 2" in capsys.readouterr().out
    assert (tmp_path / "opensora-pocket-curve.png").stat().st_size > 1000


def test_the_flow_alone_starts_from_the_shipped_codec_and_a_new_transformer(benchmark, tmp_path):
    from kinema.system import open_system

    benchmark.start(SimpleNamespace(seed=1, out=tmp_path))
    found, shipped = (
        open_system(name).model.state_dict() for name in (tmp_path / "start.safetensors", benchmark.POCKET)
    )
    assert found.keys() == shipped.keys()
    same = {name for name in found if torch.equal(found[name], shipped[name])}
    assert {name for name in found if name.startswith("vae.")} <= same
    assert not [name for name in same if "double_blocks" in name and name.endswith("weight")]


@pytest.fixture
def made(benchmark, monkeypatch):
    """The batches that a model which draws grey frames has made: (prompts, seed)."""
    made = []

    class Grey:
        request = SimpleNamespace(fps=8.0)

        def clips(self, batch, seed):
            made.append((tuple(batch), seed))
            return torch.zeros(len(batch), 3, 5, 64, 64)

    monkeypatch.setattr(benchmark.Sampling, "of", lambda *_, **__: Grey())
    monkeypatch.setattr(benchmark, "open_system", lambda _: SYSTEM)
    return made


SYSTEM = SimpleNamespace(weights=SimpleNamespace(hash="sha256:0"))


def test_an_interrupted_table_continues_with_the_next_batch(benchmark, tmp_path, made):
    options = SimpleNamespace(out=tmp_path, seed=3, batch=2)
    prompts = benchmark.unseen(4, 0)
    for start in (0, 0, 2):
        benchmark.measure(options, SYSTEM, "model", 4, prompts, start)
    assert made == [(tuple(prompts[:2]), 3), (tuple(prompts[2:]), 5)]
    assert [row["prompt"] for row in benchmark.stored(options, SYSTEM, "model", 4)] == prompts
    assert benchmark.stored(SimpleNamespace(out=tmp_path, seed=4), SYSTEM, "model", 4) == []


def test_the_table_states_each_models_prompts_and_keeps_what_was_measured(benchmark, tmp_path, made, monkeypatch):
    monkeypatch.setattr(benchmark, "STEPS", (4,))
    monkeypatch.setattr(benchmark, "TIMED", 1)
    options = SimpleNamespace(
        prompts=4, rival_prompts=2, seed=0, batch=2, threads=None, out=tmp_path, evidence=tmp_path,
        models="opensora-pocket,zoetrope",
    )  # fmt: skip
    benchmark.table(options)
    page = (tmp_path / "opensora-pocket.md").read_text()
    assert page.count("| 4 | 0 (0–") == 2
    assert "`python -m benchmarks.opensora_pocket table --rival-prompts 2`" in page
    assert "opensora-pocket: 4 prompts, " in page
    assert "zoetrope: 2 prompts, " in page
    assert sum(len(batch) == 2 for batch, _ in made) == 3
    made.clear()
    benchmark.table(options)
    assert [len(batch) for batch, _ in made] == [1, 1]  # only the seconds are measured again
