"""Checks of PyTorch's own files before they are read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from kinema.checkpoints import pickles
from kinema.checkpoints.files import header, read_tensors
from kinema.schema import BadRequest


def archive(path: Path, pickled: bytes, kind: int = zipfile.ZIP_STORED, data: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", data)
    return path


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "a.pt", b"\x80\x02}.", zipfile.ZIP_DEFLATED, bytes(10**7))
    with pytest.raises(BadRequest, match="is compressed"):
        header(bomb)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_too_many_opcodes_is_refused(tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_OPCODES", 1000)
    pickled = b"\x80\x02" + b"]" * 2000 + b"."
    path = tmp_path / "a.pt"
    archive(path, pickled) if zipped else path.write_bytes(pickled)
    with pytest.raises(BadRequest, match="of over 1,000 opcodes"):
        read_tensors(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_too_many_bytes_is_refused(tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_PICKLE", 1000)
    pickled = b"\x80\x02X" + (2000).to_bytes(4, "little") + b"a" * 2000 + b"."
    path = tmp_path / "a.pt"
    archive(path, pickled) if zipped else path.write_bytes(pickled)
    with pytest.raises(BadRequest, match="of over 1,000 bytes"):
        read_tensors(path)


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_ENTRIES", 1)
    with pytest.raises(BadRequest, match="lists 2 entries"):
        header(archive(tmp_path / "a.pt", b"\x80\x02}."))


def test_a_bytearray_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="contains a bytearray, which could be of any size"):
        header(archive(tmp_path / "a.pt", b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x0f\x85R."))


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "a.pt")
    for read in (header, read_tensors):
        with pytest.raises(BadRequest, match="stores fewer values for a"):
            read(tmp_path / "a.pt")


def test_tensors_that_share_storage_many_times_are_refused(tmp_path: Path) -> None:
    whole = torch.zeros(10_000)
    torch.save({f"a{i}": whole.view(100, 100) for i in range(20)}, tmp_path / "a.pt")
    with pytest.raises(BadRequest, match="many times its own size"):
        header(tmp_path / "a.pt")
    torch.save({"a": whole, "tied": whole}, tmp_path / "b.pt")
    assert set(header(tmp_path / "b.pt")) == {"a", "tied"}


@pytest.mark.parametrize("new", [True, False])
def test_plain_files_of_both_formats_are_read(tmp_path: Path, new: bool) -> None:
    torch.save({"a": torch.arange(3.0)}, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    assert read_tensors(tmp_path / "a.pt")["a"].tolist() == [0, 1, 2]
