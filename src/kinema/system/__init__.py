"""Opened models. Each folder under ``families/`` implements `Family`; `open_system` returns a `System`."""

from __future__ import annotations

from kinema.system.family import (
    DECODING,
    Codec,
    Conditions,
    Defaults,
    Family,
    OpenedModel,
    OverSteps,
    Process,
    Prompts,
    Sampling,
    decode_options,
)
from kinema.system.files import Checkpoints, FoundCheckpoint, Slots
from kinema.system.opening import HUB, fetch, is_hub_id, open_system, parse_metadata
from kinema.system.precision import DTypeOption, WeightPolicy, default_policy, device_title, dtype_name, policy_for
from kinema.system.runtime import Runtime
from kinema.system.system import MemoryOptions, System, with_model
from kinema.system.training import Batch, Training, TrainingSettings, Tuning
from kinema.system.weights import AddOn, Weights

__all__ = [
    "DECODING",
    "HUB",
    "AddOn",
    "DTypeOption",
    "Batch",
    "Checkpoints",
    "Codec",
    "Conditions",
    "Defaults",
    "Family",
    "FoundCheckpoint",
    "MemoryOptions",
    "OpenedModel",
    "OverSteps",
    "Process",
    "Prompts",
    "TrainingSettings",
    "Sampling",
    "Training",
    "Runtime",
    "Slots",
    "System",
    "Tuning",
    "WeightPolicy",
    "Weights",
    "default_policy",
    "decode_options",
    "device_title",
    "parse_metadata",
    "fetch",
    "is_hub_id",
    "dtype_name",
    "open_system",
    "policy_for",
    "with_model",
]
