"""The network of a configuration, and its blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from kinema.families.opensora.stdit.config import STDiTConfig
from kinema.families.opensora.stdit.first import FirstSTDiT
from kinema.families.opensora.stdit.second import SecondSTDiT
from kinema.families.opensora.stdit.third import ThirdSTDiT

STDiT = FirstSTDiT | SecondSTDiT | ThirdSTDiT
"""All are called alike; see `inputs`."""


def build(config: STDiTConfig) -> STDiT:
    if config.version == "1.0":
        return FirstSTDiT(config)
    return SecondSTDiT(config) if config.version == "1.1" else ThirdSTDiT(config)


def blocks(network: STDiT) -> Sequence[nn.Module]:
    """The repeated blocks, in the order in which they run."""
    if isinstance(network, ThirdSTDiT):
        pairs = zip(network.spatial_blocks, network.temporal_blocks, strict=True)
        return [block for pair in pairs for block in pair]
    return list(network.blocks)
