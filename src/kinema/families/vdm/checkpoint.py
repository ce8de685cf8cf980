"""VDM weight files. No weights were published, so Kinema's layout is the only one and the key map is the identity."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kinema.families.vdm.config import Config
from kinema.families.vdm.model import VideoUNet
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest

_MAX_LISTED = 3


def convert(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Check every tensor's name and shape against the network, and return the tensors unchanged.

    Raises BadRequest naming missing tensors, unexpected tensors, and tensors of the wrong shape.
    """
    with on_meta():
        expected = VideoUNet(config).state_dict()
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    for problem, names in (("lacks", missing), ("has unexpected", unexpected)):
        if names:
            listed = ", ".join(sorted(names)[:_MAX_LISTED])
            raise BadRequest(f"the vdm weight file {problem} tensors ({len(names)}): {listed}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise BadRequest(f"{name} is {tuple(tensor.shape)} in the file; expected {tuple(expected[name].shape)}")
    return dict(tensors)
