"""Opened models. Each folder under ``families/`` implements `Family`; `open_system` returns a `System`."""

from __future__ import annotations

from kinema.system.family import (
    DECODING,
    Codec,
    Conditions,
    Defaults,
    Family,
    Opened,
    Process,
    Sampling,
    decoding_of,
)
from kinema.system.files import Checkpoints, FoundCheckpoint, Slots
from kinema.system.opening import HUB, family_of, fetched, is_hub_id, open_system
from kinema.system.precision import Asked, WeightPolicy, chosen, described, name_of, policy_for
from kinema.system.runtime import Runtime
from kinema.system.system import MemoryOptions, System, with_model
from kinema.system.training import Batch, Training, TrainingSettings, Tuning
from kinema.system.weights import AddOn, Weights

__all__ = [
    "DECODING",
    "HUB",
    "AddOn",
    "Asked",
    "Batch",
    "Checkpoints",
    "Codec",
    "Conditions",
    "Defaults",
    "Family",
    "FoundCheckpoint",
    "MemoryOptions",
    "Opened",
    "Process",
    "TrainingSettings",
    "Sampling",
    "Training",
    "Runtime",
    "Slots",
    "System",
    "Tuning",
    "WeightPolicy",
    "Weights",
    "chosen",
    "decoding_of",
    "described",
    "family_of",
    "fetched",
    "is_hub_id",
    "name_of",
    "open_system",
    "policy_for",
    "with_model",
]
