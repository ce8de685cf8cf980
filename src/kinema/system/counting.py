"""Sizes of a family's network, counted on the meta device."""

from __future__ import annotations

from typing import Any

from kinema.nn.meta import on_meta


def parameters(family: Any, config: Any) -> tuple[int, int]:
    """Return (parameters, tensors) of a family's network, counted on the meta device, so without using memory."""
    counts = parts(family, config).values()
    return sum(part["parameters"] for part in counts), sum(part["tensors"] for part in counts)


def parts(family: Any, config: Any) -> dict[str, dict[str, int]]:
    """Return parameters and tensors of each top-level module (``unet``, ``vae``) and each top-level tensor."""
    with on_meta():
        model = family.build(config)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    counts: dict[str, dict[str, int]] = {}
    for name in model.state_dict():
        top = name.partition(".")[0]
        part = counts.setdefault(top, {"parameters": 0, "tensors": 0})
        part["tensors"] += 1
        part["parameters"] += sizes.get(name, 0)
        if ".motion_modules." in name and name in sizes:
            part["motion_parameters"] = part.get("motion_parameters", 0) + sizes[name]
    return counts
