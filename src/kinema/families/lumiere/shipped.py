"""Training of ``lumiere-pocket`` and ``lumiere-pocket-sr`` from scratch: temporal layers of a shipped image model."""

from __future__ import annotations

from kinema.system.legs import ShippedRun, ShippedRuns

SHIPPED = ShippedRuns(
    {
        "base": ShippedRun({"model": "lumiere/pocket"}, "temporal.safetensors"),
        "sr": ShippedRun({"model": "lumiere/pocket-sr"}, "temporal.safetensors"),
    },
    {"lumiere-pocket": "base", "lumiere-pocket-sr": "sr"},
)
