"""Training of ``zoetrope`` from scratch: first without the sprite, then with it on weights grown from the first stage.

The number of clips equals that of the shipped weights, but the shipped weights were trained while these settings were
being developed, with eight learning-rate cycles (README, model card); this schedule was never run as a whole.
"""

from __future__ import annotations

from kinema.families.zoetrope.grow import grow
from kinema.system.legs import ShippedRun, ShippedRuns

SHIPPED = ShippedRuns(
    {
        "base": ShippedRun({"model": "zoetrope/base", "steps": 9050, "split": "train-v1"}),
        "sprite": ShippedRun(
            {"model": "{base}", "steps": 5228, "learning_rate": 2e-3, "seed": 3, "split": "train-v1"}, grow=grow
        ),
    },
    {"zoetrope": "sprite"},
)
