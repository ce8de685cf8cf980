"""One model used from many threads: each clip is the same as if its request ran alone."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from kinema import job, registry
from kinema.api import load
from kinema.checkpoints import files
from kinema.checkpoints.lora_formats import Adapter, write_lora
from kinema.families.svd.config import TINY
from kinema.memory.plan import MemoryPlan
from kinema.provenance import frames_hash
from kinema.schema import BadRequest, Request

SMALL = replace(TINY, frames=3, height=32, width=32)
ASK = Request(prompt=" ", seed=5, steps=1)
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file with a tiny SVD, and three LoRAs for it."""
    folder, family = tmp_path_factory.mktemp("model"), registry.family("svd")
    torch.manual_seed(0)
    model = family.build(SMALL)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    note = json.dumps({"family": "svd", "config": family.to_json(SMALL)})
    files.write_tensors(folder / "svd.safetensors", model.state_dict(), {"kinema": note})
    for seed in range(3):
        random = torch.Generator().manual_seed(seed)
        down, up = (torch.randn(shape, generator=random) for shape in ((4, 32), (32, 4)))
        write_lora(folder / f"{seed}.safetensors", {LAYER: Adapter(down, up, 2.0)}, "kohya")
    return folder


def requests_of(folder, count):
    """Requests with different seeds and LoRAs, some with none."""
    loras = [None, {}, *({str(folder / f"{i}.safetensors"): 0.5 + i} for i in range(3))]
    return [ASK.with_(seed=i % 7, loras=loras[i % len(loras)]) for i in range(count)]


@pytest.fixture(scope="module")
def alone(folder):
    """Hashes of the clips of ten requests, each run on a fresh model."""
    hashes = [frames_hash(load(folder / "svd.safetensors").run(request).video) for request in requests_of(folder, 10)]
    assert len(set(hashes)) > 6
    return hashes


@pytest.mark.parametrize("offload", ["none", "block", "sequential"])
def test_threads_with_different_loras_get_the_same_clips_as_alone(folder, alone, offload):
    requests = requests_of(folder, 10)
    model = load(folder / "svd.safetensors", offload=offload)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda request: frames_hash(model.run(request).video), requests))
    assert together == alone


def test_a_hundred_runs_from_eight_threads_end(folder, monkeypatch):
    """Even if some requests are rejected and the model's own LoRAs change meanwhile.

    All have one size and so one memory plan; measuring it anew would take five times as long as the rest of a run.
    """
    model, plan = load(folder / "svd.safetensors", offload="block"), MemoryPlan(offload="block")
    monkeypatch.setattr(job, "choose", lambda *_args, **_named: plan)
    requests = [*requests_of(folder, 90), *(ASK.with_(loras={"nowhere.safetensors": 1.0}) for _ in range(10))]

    def run(number_and_request):
        number, request = number_and_request
        if number % 10 == 0:
            model.use_loras({folder / "0.safetensors": 1.0})
        try:
            return model.run(request).video.shape
        except BadRequest:
            return None

    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(run, enumerate(requests), timeout=200))
    assert ended.count(None) == 10
    assert set(ended) == {None, (1, 3, 3, 32, 32)}


def test_a_request_that_sets_no_loras_uses_the_model_s_and_an_empty_mapping_uses_none(folder):
    own = {folder / "0.safetensors": 1.0}
    plain, adapted = load(folder / "svd.safetensors"), load(folder / "svd.safetensors", loras=own)
    bare, merged = plain.run(ASK).video, adapted.run(ASK).video
    assert not torch.equal(bare, merged)
    assert torch.equal(adapted.run(ASK.with_(loras={})).video, bare)
    assert torch.equal(adapted.run(ASK).video, merged)
    assert torch.equal(plain.run(ASK.with_(loras={str(path): 1.0 for path in own})).video, merged)
    assert torch.equal(plain.run(ASK).video, bare)


def test_the_recipe_records_a_request_s_loras_by_name_and_hash(folder):
    recipe = load(folder / "svd.safetensors").run(ASK.with_(loras={str(folder / "1.safetensors"): 0.5})).recipe
    assert [(each["file"], each["weight"]) for each in recipe["stages"][0]["loras"]] == [("1.safetensors", 0.5)]
    assert "loras" not in recipe["stages"][0]["request"]
    assert str(folder) not in json.dumps(recipe)


def test_neither_random_state_nor_thread_count_leaks_out(folder):
    before, state = torch.get_num_threads(), torch.get_rng_state()
    model, seen = load("svd", preset="tiny"), []

    def elsewhere():
        threads = torch.get_num_threads()
        model.run(ASK)
        seen.append((threads, torch.get_num_threads()))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    model.run(ASK)
    assert seen[0][0] == seen[0][1]
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_another_thread_computes_with_the_thread_count_the_model_was_opened_with(folder):
    model, seen = load("svd", preset="tiny"), []
    opened_with = torch.get_num_threads()

    def elsewhere():
        torch.set_num_threads(opened_with + 1)
        with model.system.runtime.running():
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    torch.set_num_threads(opened_with)
    assert seen == [opened_with, opened_with + 1]
