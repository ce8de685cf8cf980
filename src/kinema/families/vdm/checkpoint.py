"""VDM's files: no weights were ever published, so the only layout is our own and the key map is the identity."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kinema.families.vdm.config import Config
from kinema.families.vdm.model import VideoUNet
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest

_SHOWN = 3


def convert(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, after every name and shape was checked against the network's.

    Raises BadRequest that names what is missing, left over or of another shape.
    """
    with on_meta():
        own = VideoUNet(config).state_dict()
    for what, names in (("lacks", own.keys() - tensors.keys()), ("has, beyond vdm's,", tensors.keys() - own.keys())):
        if names:
            raise BadRequest(f"the file {what} {len(names)} tensors: {', '.join(sorted(names)[:_SHOWN])}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise BadRequest(f"{name} is {tuple(tensor.shape)} in the file; expected {tuple(own[name].shape)}")
    return dict(tensors)
