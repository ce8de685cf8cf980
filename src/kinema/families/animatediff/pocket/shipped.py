"""Training of ``animatediff-pocket`` from scratch, with its motion module, styles and MotionLoRAs.

The motion module trains in five legs: camera motion is learned from clips in which the whole ground moves, and a zoom
takes longer than a pan (docs/notes/0009).
"""

from __future__ import annotations

from typing import Any

from kinema.system.legs import ShippedRun, ShippedRuns

RANK = "6"
_SPLIT = {"split": "train-v1"}
_ON_BASE = {**_SPLIT, "model": "{base}", "stage": "motion"}


def _style(name: str) -> ShippedRun:
    return ShippedRun({**_SPLIT, "model": "{base}", "stage": "style", "style": name}, "style.safetensors")


def _motion(**overrides: Any) -> ShippedRun:
    return ShippedRun({**_ON_BASE, **overrides}, "motion.safetensors")


def _lora(camera: str, steps: int) -> ShippedRun:
    settings = {**_ON_BASE, "add": "motion={motion}", "lora": RANK, "camera": camera, "steps": steps}
    return ShippedRun(settings, "motion-lora.safetensors")


SHIPPED = ShippedRuns(
    {
        "base": ShippedRun({**_SPLIT, "model": "animatediff/pocket", "stage": "image"}),
        "outline": _style("outline"),
        "night": _style("night"),
        "moved": _motion(),
        "panned": _motion(add="motion={moved}", camera="pans left", steps=400),
        "filmed": _motion(add="motion={panned}", grammar="filmed", seed=5, steps=1500),
        "zoomed": _motion(add="motion={filmed}", camera="zooms in", seed=6, steps=500),
        "motion": _motion(add="motion={zoomed}", grammar="filmed", seed=7, steps=1200),
        "left": _lora("pans left", 600),
        "right": _lora("pans right", 600),
        "zoom": _lora("zooms in", 2400),
    },
    {
        "animatediff-pocket": "base",
        "animatediff-pocket-outline": "outline",
        "animatediff-pocket-night": "night",
        "animatediff-pocket-motion": "motion",
        "animatediff-pocket-pans-left": "left",
        "animatediff-pocket-pans-right": "right",
        "animatediff-pocket-zooms-in": "zoom",
    },
)
