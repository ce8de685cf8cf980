"""Training of ``opensora-pocket`` from scratch: first the codec, then the transformer on the codec's latents."""

from __future__ import annotations

from kinema.system.legs import ShippedRun, ShippedRuns

SHIPPED = ShippedRuns(
    {
        "codec": ShippedRun({"model": "opensora/pocket", "stage": "codec"}),
        "flow": ShippedRun({"model": "{codec}", "stage": "flow"}),
    },
    {"opensora-pocket": "flow"},
    {"opensora/pocket": "opensora-pocket"},
)
