"""Tensors read and written one at a time."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from safetensors.torch import save_file

from kinema.checkpoints.files import read_tensors, write_streamed, write_tensors
from kinema.checkpoints.stream import Stream
from kinema.schema import BadRequest

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor(3, dtype=torch.int64),
    "c": torch.ones(5, dtype=torch.bfloat16),
    "d": torch.tensor([True, False]),
    "e": torch.empty(0, 4),
}


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_every_tensor_is_read_back(tmp_path, name):
    if name.endswith(".pt"):
        torch.save(TENSORS, tmp_path / name)
    else:
        save_file(TENSORS, tmp_path / name)
    stream = Stream(tmp_path / name)
    assert set(stream) == set(TENSORS)
    assert stream.header == {name: (tuple(t.shape), t.dtype) for name, t in TENSORS.items()}
    assert all(torch.equal(stream[name], TENSORS[name]) for name in TENSORS)


def test_shards_read_as_one_file_and_duplicates_are_refused(tmp_path):
    names = {name: f"model-0000{1 + (name > 'b')}-of-00002.safetensors" for name in TENSORS}
    for file in set(names.values()):
        save_file({n: TENSORS[n] for n in names if names[n] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    stream = Stream(tmp_path)
    assert all(torch.equal(stream[name], TENSORS[name]) for name in TENSORS)
    save_file({"a": TENSORS["a"], "c": TENSORS["c"]}, tmp_path / names["a"])
    with pytest.raises(BadRequest, match="another shard has"):
        Stream(tmp_path)


def test_a_file_truncated_after_opening_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    stream = Stream(tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[: len(whole) - 40])
    with pytest.raises(BadRequest, match="cut short"):
        list(stream.values())


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    alive, most = weakref.WeakSet(), []

    def make(name):
        tensor = torch.full((100,), float(name))
        most.append(len(alive))  # earlier tensors still in memory
        alive.add(tensor)
        return tensor

    header = {str(i): ((100,), torch.float32) for i in range(20)}
    write_streamed(tmp_path / "a.safetensors", header, make)
    assert max(most) <= 1
    assert all(bool((tensor == float(name)).all()) for name, tensor in read_tensors(tmp_path / "a.safetensors").items())


def test_an_earlier_header_gives_the_same_file(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors", {"title": "ü"})
    stream = Stream(tmp_path / "a.safetensors")
    write_streamed(tmp_path / "b.safetensors", stream.header, stream.__getitem__, text=stream.text)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_a_tensor_that_contradicts_the_header_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError, match="its header states"):
        write_streamed(tmp_path / "a.safetensors", {"a": ((3,), torch.float32)}, lambda _: torch.ones(2))
    assert not list(tmp_path.iterdir())


def test_streamed_and_whole_writing_give_the_same_bytes(tmp_path):
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"k": "v"})
    header = {name: (tuple(t.shape), t.dtype) for name, t in TENSORS.items()}
    write_streamed(tmp_path / "b.safetensors", header, TENSORS.__getitem__, {"k": "v"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_read_and_mapped_tensors_have_the_same_alignment(tmp_path):
    """To the cache line, also in a file with another order; with odd sizes and float16 after a single float32 value."""
    shapes = {"a": ((3, 8), torch.float32), "b": ((1,), torch.float32)}
    shapes |= {"c": ((5, 8), torch.float16), "d": ((3,), torch.float16)}
    tensors = {name: torch.randn(shape).to(dtype) for name, (shape, dtype) in shapes.items()}
    native, foreign = tmp_path / "native.safetensors", tmp_path / "foreign.safetensors"
    write_tensors(native, tensors)
    save_file(tensors, foreign)
    for path in (native, foreign):
        mapped, read = read_tensors(path), Stream(path)
        for name, tensor in tensors.items():
            assert torch.equal(read[name], tensor)
            assert (read[name].data_ptr() - mapped[name].data_ptr()) % 64 == 0
    mapped = read_tensors(native)
    assert [mapped[name].data_ptr() % 16 for name in "ac"] == [0, 0]
    assert read_tensors(foreign)["c"].data_ptr() % 16 != 0  # so the order matters
