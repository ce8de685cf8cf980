"""Tensors of a file, one at a time: for files that are larger than the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kinema.checkpoints.files import Header, Layout, merge, weight_files
from kinema.checkpoints.pickles import read_pickle
from kinema.schema import BadRequest

LINE = 64


class Stream(Mapping[str, Tensor]):
    """The tensors of a file or folder by name, each read from disk when it is asked for and then forgotten.

    A memory map would do for most uses (`files.read_tensors`), but its pages count as this process's
    memory for as long as it is open, and a conversion reads every page. PyTorch's own files are mapped.
    Raises `BadRequest` for a file that is missing, cut short, hostile, or holds code.
    """

    def __init__(self, path: str | Path, variant: str | None = None) -> None:
        self.files = weight_files(path, variant)
        self.header: Header = {}
        self.metadata: dict[str, str] = {}
        self.text = b""
        """The header as it stands in the file; empty for several files and for PyTorch's own."""
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._mapped: dict[str, Tensor] = {}
        for file in self.files:
            found = self._open(file)
            merge(self.header, found, file)

    def _open(self, file: Path) -> Header:
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
        if name in self._mapped:
            return self._mapped[name]
        file, begin, size = self._places[name]
        shape, dtype = self.header[name]
        held = _as_mapped(size, begin, dtype)
        with file.open("rb") as opened:
            opened.seek(begin)
            if opened.readinto(held.numpy().data) != size:
                raise BadRequest(f"{file.name} is cut short: {name} could not be read")
        return held.view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header)

    def __len__(self) -> int:
        return len(self.header)


def _as_mapped(size: int, begin: int, dtype: torch.dtype) -> Tensor:
    """Bytes that lie to a cache's line as those of a map of the file do, which begins at ``begin``.

    MKL on AMD sums a product of one row in an order that depends on where the weight begins, and a clip is to be the
    same to the bit whether its weights are mapped or read.
    """
    held = torch.empty(size + LINE, dtype=torch.uint8)
    at = (begin - held.data_ptr()) % LINE
    return held[at : at + size] if at % dtype.itemsize == 0 else held[:size]
