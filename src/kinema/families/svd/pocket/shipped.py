"""Training of ``svd-pocket`` from scratch: first the codec, then the U-Net on the codec's latents."""

from __future__ import annotations

from kinema.system.legs import Leg, Shipped

SHIPPED = Shipped(
    {
        "codec": Leg({"model": "svd/pocket", "stage": "codec"}),
        "playroom": Leg({"model": "{codec}", "stage": "playroom"}),
    },
    {"svd-pocket": "playroom"},
)
