"""How ``zoetrope`` is trained from scratch: without the sprite, then with it on weights grown from those.

As many clips as the shipped weights saw, by the recipe as it stands. It was never run in one piece: those weights saw
their clips while the recipe was being found, and the rate rose and fell eight times on the way (README, model card).
"""

from __future__ import annotations

from kinema.families.zoetrope.grow import grow
from kinema.system.legs import Leg, Shipped

SHIPPED = Shipped(
    {
        "base": Leg({"model": "zoetrope/base", "steps": 9050}),
        "sprite": Leg({"model": "{base}", "steps": 5228, "learning_rate": 2e-3, "seed": 3}, grow=grow),
    },
    {"zoetrope": "sprite"},
)
