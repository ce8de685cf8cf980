"""Opened models. `Family` is what a folder under ``families/`` provides; `System` is what `open_system` returns."""

from __future__ import annotations

from kinema.system.family import (
    DECODING,
    Batch,
    Codec,
    Conditions,
    Defaults,
    Family,
    Opened,
    Process,
    Recipe,
    Sampling,
    Training,
    Tuning,
    decoding_of,
)
from kinema.system.files import Checkpoints, Found, Slots
from kinema.system.opening import HUB, arithmetic, device_of, family_of, fetched, is_hub_id, open_system
from kinema.system.runtime import Runtime
from kinema.system.system import MemoryOptions, System, with_model
from kinema.system.weights import Added, Weights

__all__ = [
    "DECODING",
    "HUB",
    "Added",
    "Batch",
    "Checkpoints",
    "Codec",
    "Conditions",
    "Defaults",
    "Family",
    "Found",
    "MemoryOptions",
    "Opened",
    "Process",
    "Recipe",
    "Sampling",
    "Training",
    "Runtime",
    "Slots",
    "System",
    "Tuning",
    "Weights",
    "arithmetic",
    "decoding_of",
    "device_of",
    "family_of",
    "fetched",
    "is_hub_id",
    "open_system",
    "with_model",
]
