"""Tensors of a file, one at a time: for files larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kinema.checkpoints import gguf_file
from kinema.checkpoints.files import Header, Layout, merge, weight_files
from kinema.checkpoints.gguf_file import Gguf
from kinema.checkpoints.pickles import read_pickle
from kinema.checkpoints.storage import view
from kinema.schema import BadRequest

LINE = 64
"""Bytes of a cache line."""


class Stream(Mapping[str, Tensor]):
    """The tensors of a file or folder by name, each read from disk on access and not cached.

    The pages of a memory map (`files.read_tensors`) count as this process's memory while it is open, and a conversion
    reads every page. PyTorch's own files are mapped nevertheless. Raises `BadRequest` for a file that is missing, cut
    short or hostile, or that contains code.
    """

    def __init__(self, path: str | Path, variant: str | None = None) -> None:
        self.files = weight_files(path, variant)
        self._raw: Header = {}
        self.metadata: dict[str, str] = {}
        self.text = b""
        """The raw header of a safetensors file whose names and values are read as they are; empty for others."""
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._mapped: dict[str, Tensor] = {}
        self._quantised: dict[str, Gguf] = {}
        for file in self.files:
            found = self._open(file)
            merge(self._raw, found, file)
        self._view = view(self._raw, Path(path).name)
        self.header: Header = self._view.header
        if self._view.renamed:
            self.text = b""

    def _open(self, file: Path) -> Header:
        if file.suffix == gguf_file.SUFFIX:
            quantised = Gguf.read(file)
            self.metadata |= quantised.metadata
            self._quantised |= dict.fromkeys(quantised.entries, quantised)
            return quantised.header
        if file.suffix != ".safetensors":
            mapped = read_pickle(file, "cpu")
            self._mapped |= mapped
            return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in mapped.items()}
        layout = Layout.read(file)
        self.metadata |= layout.metadata
        self.text = layout.text if len(self.files) == 1 else b""
        for name, (_, _, begin, end) in layout.entries.items():
            self._places[name] = (file, layout.begin + begin, end - begin)
        return {name: (shape, dtype) for name, (shape, dtype, _, _) in layout.entries.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._view.tensor(name, self._read)

    def _read(self, name: str) -> Tensor:
        if name in self._mapped:
            return self._mapped[name]
        if name in self._quantised:
            return self._quantised[name].tensor(name)
        file, begin, size = self._places[name]
        shape, dtype = self._raw[name]
        data = _aligned_like_map(size, begin, dtype)
        with file.open("rb") as opened:
            opened.seek(begin)
            if opened.readinto(data.numpy().data) != size:
                raise BadRequest(f"{file.name} is cut short: it ends within the tensor {name}")
        return data.view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header)

    def __len__(self) -> int:
        return len(self.header)


def _aligned_like_map(size: int, begin: int, dtype: torch.dtype) -> Tensor:
    """Allocate bytes with the same cache line offset as a memory map of the file would have at ``begin``.

    MKL on AMD sums matrix-vector products in an order that depends on the address of the weight, and clips must be
    bit-identical whether weights are mapped or read.
    """
    data = torch.empty(size + LINE, dtype=torch.uint8)
    offset = (begin - data.data_ptr()) % LINE
    return data[offset : offset + size] if offset % dtype.itemsize == 0 else data[:size]
