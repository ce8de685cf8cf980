"""Training of ``svd-pocket`` from scratch: first the codec, then the U-Net on the codec's latents."""

from __future__ import annotations

from kinema.system.legs import ShippedRun, ShippedRuns

SHIPPED = ShippedRuns(
    {
        "codec": ShippedRun({"model": "svd/pocket", "stage": "codec", "split": "train-v1"}),
        "playroom": ShippedRun({"model": "{codec}", "stage": "playroom", "split": "train-v1"}),
    },
    {"svd-pocket": "playroom"},
)
