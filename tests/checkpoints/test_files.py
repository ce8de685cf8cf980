from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from kinema.checkpoints import files
from kinema.checkpoints.files import (
    fill,
    header,
    metadata,
    read_tensors,
    weight_files,
    weight_hash,
    write_tensors,
)
from kinema.schema import BadRequest

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "a.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "step": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "none": torch.empty(0, 5),
    "half": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).half(),
}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def raw_file(path: Path, table: object, body: bytes = b"", length: int | None = None) -> Path:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


# ------------------------------------------------------------------------------------ safetensors


def test_written_tensors_are_read_back_by_us_and_by_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"kind": "test", "é": "ü"})
    assert same(read_tensors(path), TENSORS)
    assert same(load_file(path), TENSORS)
    assert metadata(path) == {"kind": "test", "é": "ü"}
    assert header(path) == {name: (tuple(t.shape), t.dtype) for name, t in TENSORS.items()}


def test_a_file_written_by_safetensors_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", {"format": "pt"})
    assert same(read_tensors(tmp_path / "a.safetensors"), TENSORS)
    assert metadata(tmp_path / "a.safetensors") == {"format": "pt"}


def test_the_same_tensors_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", TENSORS)
    write_tensors(tmp_path / "b.safetensors", dict(reversed(TENSORS.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert weight_hash(tmp_path / "a.safetensors") == weight_hash(tmp_path / "b.safetensors")


def test_views_and_shared_tensors_are_written_separately(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {"transposed": base.T, "row": base[1], "same": base, "parameter": nn.Parameter(base)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    assert all(torch.equal(read_tensors(tmp_path / "a.safetensors")[k], v) for k, v in tensors.items())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure private memory")
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_large_file_is_memory_mapped(tmp_path: Path, name: str) -> None:
    def private_kib() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    tensors = {f"t{i}": torch.zeros(1 << 20) for i in range(8)}  # 32 MiB
    torch.save(tensors, tmp_path / name) if name == "a.pt" else write_tensors(tmp_path / name, tensors)
    read_tensors(tmp_path / name)
    before = private_kib()
    held = read_tensors(tmp_path / name)
    assert held["t3"].sum() == 0
    assert private_kib() - before < 8_000


@pytest.mark.parametrize("share", [0, 4, 8, 20, 0.3, 0.6, 0.99])
def test_a_truncated_safetensors_file_is_refused_in_one_line(tmp_path: Path, share: float) -> None:
    write_tensors(tmp_path / "a.safetensors", TENSORS)
    raw = (tmp_path / "a.safetensors").read_bytes()
    keep = share if isinstance(share, int) else int(len(raw) * share)
    (tmp_path / "b.safetensors").write_bytes(raw[:keep])
    for read in (header, read_tensors, metadata):
        with pytest.raises(BadRequest, match=r"b\.safetensors") as caught:
            read(tmp_path / "b.safetensors")
        assert "\n" not in str(caught.value)


def entry(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("table", "body", "expected"),
    [
        ({"a": entry([2**40, 2**40])}, bytes(8), "do not match its dtype F32 and shape"),
        ({"a": entry([2], [0, 2**60])}, bytes(8), "do not match its dtype F32 and shape"),
        ({"a": entry([-2], [0, -8])}, bytes(8), "damaged header at 'a'"),
        ({"a": entry([2.0])}, bytes(8), "damaged header at 'a'"),
        ({"a": entry([True, 2])}, bytes(8), "damaged header at 'a'"),
        ({"a": entry(dtype="F3")}, bytes(8), "of dtype F3; expected one of"),
        ({"a": entry(dtype=["F32"])}, bytes(8), "a.safetensors"),
        ({"a": {"dtype": "F32"}}, bytes(8), "damaged header at 'a'"),
        ({"a": entry(), "b": entry()}, bytes(8), "'b' begins at byte 0; expected 8"),
        ({"a": entry(), "b": entry([2], [12, 20])}, bytes(20), "begins at byte 12; expected 8"),
        ({"a": entry()}, bytes(12), "4 bytes follow"),
        ([1, 2], b"", "damaged header"),
        (b'{"a": 1, "a": 2}', b"", "header of a.safetensors is damaged"),
        (b"{" * 50_000, b"", "header of a.safetensors is"),
        ({"__metadata__": {"a": 1}}, b"", "metadata that is not text"),
    ],
)
def test_a_hostile_header_is_refused_before_anything_is_allocated(
    tmp_path: Path, table: object, body: bytes, expected: str
) -> None:
    path = raw_file(tmp_path / "a.safetensors", table, body)
    with pytest.raises(BadRequest, match=expected):
        read_tensors(path)


def test_header_size_and_entries_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadRequest, match="its header claims"):
        header(raw_file(tmp_path / "a.safetensors", {}, length=2**62))
    monkeypatch.setattr(files, "MAX_ENTRIES", 3)
    many = {f"t{i}": entry([0], [0, 0]) for i in range(4)}
    with pytest.raises(BadRequest, match="lists 4 tensors; expected at most 3"):
        header(raw_file(tmp_path / "b.safetensors", many))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("random", numbered=True)
    for name in ("a.safetensors", "a.pt"):
        (folder / name).write_bytes(raw)
        with pytest.raises(BadRequest):
            read_tensors(folder / name)


# ------------------------------------------------------------------------------------ PyTorch's files


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_old_and_new_pytorch_files_are_read(tmp_path: Path, suffix: str, zipped: bool) -> None:
    torch.save(TENSORS, tmp_path / f"a{suffix}", _use_new_zipfile_serialization=zipped)
    assert same(read_tensors(tmp_path / f"a{suffix}"), TENSORS)
    assert header(tmp_path / f"a{suffix}") == {name: (tuple(t.shape), t.dtype) for name, t in TENSORS.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"state_dict": t, "epoch": 3, "optimizer": {"lr": 1}},
        lambda t: {"model": t},
        lambda t: {"ema": t, "model": {"other": torch.zeros(1)}},
        lambda t: {"model": {"state_dict": {f"module.{k}": v for k, v in t.items()}}},
        lambda t: {f"module.{k}": v for k, v in t.items()},
        lambda t: {**t, "global_step": 5},
    ],
)
def test_wrappers_and_the_module_prefix_are_removed(tmp_path: Path, wrap: Callable[[dict], dict]) -> None:
    torch.save(wrap(TENSORS), tmp_path / "a.ckpt")
    assert same(read_tensors(tmp_path / "a.ckpt"), TENSORS)


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_pickle_with_code_is_refused_and_never_run(tmp_path: Path, how: str) -> None:
    bad = {"weight": torch.zeros(2), "code": Hostile(tmp_path / "ran")}
    if how == "pickle":
        (tmp_path / "a.pt").write_bytes(pickle.dumps({"code": Hostile(tmp_path / "ran")}))
    else:
        torch.save(bad, tmp_path / "a.pt", _use_new_zipfile_serialization=how == "zip")
    for read in (read_tensors, header):
        with pytest.raises(BadRequest, match=r"a\.pt contains Python code \(\w+\.mkdir\)") as caught:
            read(tmp_path / "a.pt")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_pytorch_files_without_weights_are_refused(tmp_path: Path) -> None:
    for content, expected in (
        ([1, 2], "contains a list"),
        ({"a": {"b": torch.zeros(1)}}, r"contains nested tables \(a\)"),
        ({"x": 1}, "no tensors"),
    ):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(BadRequest, match=expected):
            read_tensors(tmp_path / "a.pt")
    torch.save(TENSORS, tmp_path / "b.pt")
    raw = (tmp_path / "b.pt").read_bytes()
    for keep in (0, 10, len(raw) // 2, len(raw) - 30):
        (tmp_path / "c.pt").write_bytes(raw[:keep])
        with pytest.raises(BadRequest, match=r"c\.pt"):
            read_tensors(tmp_path / "c.pt")


# --------------------------------------------------------------------------------------- folders


def sharded(folder: Path, variant: str = "") -> None:
    folder.mkdir(exist_ok=True)
    where = {}
    dot = f".{variant}" if variant else ""
    for part, names in enumerate((("a.weight", "a.bias"), ("step", "mask", "none", "half")), start=1):
        file = f"model{dot}-0000{part}-of-00002.safetensors"
        write_tensors(folder / file, {name: TENSORS[name] for name in names})
        where |= dict.fromkeys(names, file)
    (folder / f"model.safetensors.index{dot}.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_a_sharded_folder_reads_like_one_file(tmp_path: Path) -> None:
    sharded(tmp_path / "m")
    assert same(read_tensors(tmp_path / "m"), TENSORS)
    assert same(read_tensors(tmp_path / "m" / "model.safetensors.index.json"), TENSORS)
    assert header(tmp_path / "m").keys() == TENSORS.keys()
    assert weight_hash(tmp_path / "m").startswith("sha256-shards:")


def test_a_missing_shard_and_a_shard_outside_the_folder_are_refused(tmp_path: Path) -> None:
    sharded(tmp_path / "m")
    (tmp_path / "m" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadRequest, match=r"names 2 shards but model-00002\S* is missing"):
        read_tensors(tmp_path / "m")
    write_tensors(tmp_path / "secret.safetensors", TENSORS)
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "..", 3):
        (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(BadRequest, match="index"):
            read_tensors(tmp_path / "m")


def test_the_variant_selects_the_file(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.fp16.safetensors", "model.bin"):
        (tmp_path / name).touch()
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    assert weight_files(tmp_path, "fp16") == [tmp_path / "model.fp16.safetensors"]
    with pytest.raises(BadRequest, match="variant 'bf16'; its variants: fp16"):
        weight_files(tmp_path, "bf16")
    (tmp_path / "model.safetensors").unlink()
    assert weight_files(tmp_path) == [tmp_path / "model.fp16.safetensors"]
    sharded(tmp_path / "m", "fp16")
    assert len(weight_files(tmp_path / "m", "fp16")) == len(weight_files(tmp_path / "m")) == 2


def test_shards_and_a_single_file_of_another_variant_coexist(tmp_path: Path) -> None:
    sharded(tmp_path / "m")
    write_tensors(tmp_path / "m" / "model.fp16.safetensors", TENSORS)
    assert len(weight_files(tmp_path / "m")) == 2
    assert weight_files(tmp_path / "m", "fp16") == [tmp_path / "m" / "model.fp16.safetensors"]
    sharded(tmp_path / "n", "fp16")
    write_tensors(tmp_path / "n" / "model.safetensors", TENSORS)
    assert weight_files(tmp_path / "n") == [tmp_path / "n" / "model.safetensors"]
    assert len(weight_files(tmp_path / "n", "fp16")) == 2


def test_a_folder_without_weights_or_with_several_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="has no weights"):
        weight_files(tmp_path)
    for name in ("one.safetensors", "two.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(BadRequest, match=r"2 weight files \(one\.safetensors, two\.safetensors\); name the one"):
        weight_files(tmp_path)
    with pytest.raises(BadRequest, match="no weight file"):
        weight_files(tmp_path / "none.safetensors")
    (tmp_path / "a.txt").touch()
    with pytest.raises(BadRequest, match="expected .safetensors"):
        weight_files(tmp_path / "a.txt")


# ---------------------------------------------------------------------------------------- hashes


def test_the_hash_covers_every_byte_of_a_small_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", TENSORS)
    first = weight_hash(tmp_path / "a.safetensors")
    raw = bytearray((tmp_path / "a.safetensors").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "a.safetensors").write_bytes(raw)
    assert first.startswith("sha256:")
    assert weight_hash(tmp_path / "a.safetensors") != first


def test_the_hash_of_a_large_file_covers_its_ends_and_states_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WHOLE", 1000)
    monkeypatch.setattr(files, "_BLOCK", 100)
    seen = set()
    for first, last, size in ((0, 0, 1000), (1, 0, 1000), (0, 1, 1000), (0, 0, 1001)):
        tensor = torch.zeros(size)
        tensor[0], tensor[-1] = first, last
        write_tensors(tmp_path / "a.safetensors", {"t": tensor})
        seen.add(weight_hash(tmp_path / "a.safetensors"))
    assert len(seen) == 4
    assert all(name.startswith("sha256-parts:") for name in seen)


# --------------------------------------------------------------------------------------- writing


def test_a_full_disk_keeps_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """A file size limit simulates a full disk (both errors are in `atomic.FULL`)."""
    resource = pytest.importorskip("resource")
    write_tensors(tmp_path / "a.safetensors", TENSORS)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, usual[1]))
    try:
        with pytest.raises(BadRequest, match="is full"):
            write_tensors(tmp_path / "a.safetensors", {"t": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert same(read_tensors(tmp_path / "a.safetensors"), TENSORS)


def test_a_loaded_file_can_be_overwritten(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", TENSORS)
    held = read_tensors(tmp_path / "a.safetensors")
    write_tensors(tmp_path / "a.safetensors", {**held, "more": torch.ones(3)})
    assert same(held, TENSORS)
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["more"], torch.ones(3))


# ------------------------------------------------------------------------------------------- fill


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_fill_shares_memory_with_the_mapped_file(tmp_path: Path) -> None:
    source = network().eval()
    write_tensors(tmp_path / "a.safetensors", source.state_dict())
    tensors = read_tensors(tmp_path / "a.safetensors")
    with torch.device("meta"):
        model = network().eval()
    fill(model, tensors, "a.safetensors")
    assert model[0].weight.data_ptr() == tensors["0.weight"].data_ptr()
    assert model[0].weight.requires_grad
    x = torch.randn(5, 3)
    assert torch.equal(model(x), source(x))


def test_fill_reports_all_faults_together() -> None:
    tensors = dict(network().state_dict())
    del tensors["0.bias"]
    tensors["extra"] = torch.zeros(1)
    tensors["2.weight"] = torch.zeros(2, 5)
    with pytest.raises(BadRequest) as caught:
        fill(network(), tensors, "my.ckpt")
    assert str(caught.value) == (
        "my.ckpt does not fit this model: 1 missing (0.bias); 1 unexpected (extra); "
        "1 with the wrong shape (2.weight is 2×5, expected 2×4)"
    )


def test_fill_lists_only_the_first_keys() -> None:
    with pytest.raises(BadRequest, match=r"1000 unexpected \(k0, k1, k2, …\)"):
        fill(network(), {**network().state_dict(), **{f"k{i}": torch.zeros(1) for i in range(1000)}}, "x")


def test_fill_refuses_to_leave_a_buffer_on_the_meta_device() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(3), persistent=False)
            self.weight = nn.Parameter(torch.zeros(2))

    with torch.device("meta"):
        model = Table()
    with pytest.raises(RuntimeError, match="table are not in the state dict"):
        fill(model, {"weight": torch.ones(2)}, "x")


def test_training_a_filled_model_never_changes_the_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", network().state_dict())
    before = (tmp_path / "a.safetensors").read_bytes()
    with torch.device("meta"):
        model = network()
    fill(model, read_tensors(tmp_path / "a.safetensors"), "a")
    with torch.no_grad():
        model[0].weight.add_(np.float32(1.0))
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_a_training_run_loads_as_its_result(tmp_path: Path) -> None:
    for name in ("model.safetensors", "best.safetensors", "step-00000002.safetensors"):
        save_file({"a": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(BadRequest):
        files.weight_files(tmp_path)
    (tmp_path / "options.json").write_text("{}")
    assert files.weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_weights_that_are_not_floating_point_are_refused() -> None:
    model = nn.Linear(2, 2, device="meta")
    for kind in (torch.int64, torch.bool, torch.uint8, torch.complex64):
        tensors = {"weight": torch.ones(2, 2).to(kind), "bias": torch.zeros(2)}
        with pytest.raises(BadRequest, match=f"1 not floating-point .weight is {kind}"):
            fill(model, tensors, "a.safetensors")


def test_a_shape_with_many_axes_is_refused_before_it_is_multiplied(tmp_path: Path) -> None:
    table = {"a": {"dtype": "F32", "shape": [10**19] * 10_000, "data_offsets": [0, 4]}}
    with pytest.raises(BadRequest, match="damaged header at 'a'") as refused:
        header(raw_file(tmp_path / "a.safetensors", table, bytes(4)))
    assert len(str(refused.value)) < 200


def test_messages_cut_tensor_names_and_escape_control_characters(tmp_path: Path) -> None:
    table = {"\x1b[2J" * 10**5: {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}
    with pytest.raises(BadRequest) as refused:
        header(raw_file(tmp_path / "a.safetensors", table, bytes(4)))
    assert len(str(refused.value)) < 400
    assert "\x1b" not in str(refused.value)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(BadRequest, match="not a regular file"):
        header(tmp_path / "a.safetensors")
