"""Training of ``svd-pocket`` from scratch: first the codec, then the U-Net on the codec's latents."""

from __future__ import annotations

from kinema.system.legs import ShippedRun, ShippedRuns

SHIPPED = ShippedRuns(
    {
        "codec": ShippedRun({"model": "svd/pocket", "stage": "codec"}),
        "playroom": ShippedRun({"model": "{codec}", "stage": "playroom"}),
    },
    {"svd-pocket": "playroom"},
)
