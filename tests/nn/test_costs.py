"""The cost model: closed forms at its ends, and the machine's caches."""

from __future__ import annotations

import pytest

from kinema.nn import costs


@pytest.fixture(autouse=True)
def server(monkeypatch):
    """A core's cache of 1 MiB, 32 MiB shared, and products by oneDNN, on any machine."""
    monkeypatch.setattr(costs, "caches", lambda: (2**20, 2**25))
    monkeypatch.setattr(costs, "mkl_is_fast", lambda: False)
    costs.rows_at_once.cache_clear()
    yield
    costs.rows_at_once.cache_clear()


def test_without_transfers_all_tokens_are_one_part():
    """Layers whose weights and activations fit a core's cache pay for calls alone."""
    assert costs.rows_at_once(100, 32, 4, 1) == 100
    assert costs.seconds(100, 100, 32, 4, 1) == pytest.approx(100 * 24 * 32**2 / costs.RATE[4] + costs.CALL)


def test_wide_layers_read_their_weights_again_for_each_part():
    width, rows = 1280, 2**14
    weights, compute = 12 * width**2 * 4, 24 * width**2 / costs.RATE[4]
    few, many = (costs.seconds(rows, part, width, 4, 1) for part in (16, 32))
    reading = weights / costs.MEMORY
    waits = [
        count * (costs.CALL + reading - costs.OVERLAP * rows / count * compute) for count in (rows / 16, rows / 32)
    ]
    assert few - many == pytest.approx(waits[0] - waits[1], rel=1e-9)


def test_activations_beyond_a_quarter_of_the_shared_cache_cost_their_transfer():
    width, rows = 448, 2048
    hidden = 8 * width * rows * 4
    whole = rows * 24 * width**2 / costs.RATE[4] + costs.CALL + (hidden - 2**23) / costs.SPILL
    assert costs.seconds(rows, rows, width, 4, 1) == pytest.approx(whole, rel=1e-9)
    assert costs.rows_at_once(rows, width, 4, 1) == 512


@pytest.mark.parametrize("width", [320, 640])
def test_parts_are_neither_a_few_tokens_nor_larger_than_the_shared_cache(width):
    """A few dozen tokens cost 1.3 times as much; so does an activation that goes through memory, if weights are few."""
    chosen = costs.rows_at_once(2**16, width, 4, 1)
    assert chosen >= 128
    assert chosen * 4 * width * 4 <= 2**25


@pytest.mark.parametrize(
    ("times_the_cache", "threads", "order"),
    [
        (1, 1, "one by one"),
        (1000, 1, "in one batch"),
        (1000, 3, "in one batch"),
        (1, 2, "in parallel"),
        (1000, 2, "in parallel"),
    ],
)
def test_large_networks_run_branches_in_one_batch_where_threads_cannot_be_halved(times_the_cache, threads, order):
    assert costs.order_of_branches(times_the_cache * 2**25, 4, threads) == order


@pytest.mark.parametrize(
    ("times_the_cache", "threads", "order"),
    [(1, 1, "one by one"), (1, 2, "in parallel"), (1000, 1, "in one batch"), (1000, 2, "in one batch")],
)
def test_intel_cpus_run_branches_of_large_networks_in_one_batch(times_the_cache, threads, order, monkeypatch):
    monkeypatch.setattr(costs, "mkl_is_fast", lambda: True)
    assert costs.order_of_branches(times_the_cache * 2**25, 4, threads) == order
    other = "in parallel" if threads == 2 else order
    assert costs.order_of_branches(times_the_cache * 2**25, 2, threads) == other


def test_mkl_copies_the_weights_for_every_part_in_float32(monkeypatch):
    width, rows = 960, 512
    without = {part: costs.seconds(rows, part, width, 4, 2) for part in (256, 512)}
    half = costs.seconds(rows, 256, width, 2, 2)
    monkeypatch.setattr(costs, "mkl_is_fast", lambda: True)
    copy = 12 * width**2 * 4 / (costs.PACKED * 2)
    assert costs.seconds(rows, 512, width, 4, 2) == pytest.approx(without[512] + copy)
    assert costs.seconds(rows, 256, width, 4, 2) == pytest.approx(without[256] + 2 * copy)
    assert costs.seconds(rows, 256, width, 2, 2) == half


def test_caches_are_read_from_the_system(tmp_path, monkeypatch):
    monkeypatch.undo()
    for index, (level, size) in enumerate([(1, "48K"), (1, "32K"), (2, "1024K"), (3, "32768K")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    monkeypatch.setattr(costs, "CACHES", tmp_path)
    costs.caches.cache_clear()
    assert costs.caches() == (2**20, 2**25)
    (tmp_path / "index3" / "level").write_text("unknown")
    costs.caches.cache_clear()
    assert costs.caches() == (costs.OWN_CACHE, costs.SHARED_CACHE)
    costs.caches.cache_clear()
