"""Kinema: video diffusion systems behind one interface.

>>> import kinema
>>> clip = kinema.load("zoetrope").generate("a red ball rolls right")
>>> clip.save("ball.mp4")

Names are resolved at first use, so ``import kinema`` loads neither torch nor any model family.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinema.api import load
    from kinema.cancel import Cancel
    from kinema.canvas import Canvas
    from kinema.client.service import connect
    from kinema.document import Document
    from kinema.schema import BadRequest, Cancelled, Clip, JobFailed, Request, Shape

__version__ = "0.1.0"
__all__ = ["BadRequest", "Cancel", "Cancelled", "Canvas", "Clip", "Document", "JobFailed", "Request", "Shape"]
__all__ += ["__version__", "connect", "load"]

_HOMES = {
    "connect": "kinema.client.service",
    "load": "kinema.api",
    "BadRequest": "kinema.schema",
    "Cancel": "kinema.cancel",
    "Cancelled": "kinema.schema",
    "Canvas": "kinema.canvas",
    "Clip": "kinema.schema",
    "JobFailed": "kinema.schema",
    "Document": "kinema.document",
    "Request": "kinema.schema",
    "Shape": "kinema.schema",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kinema' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
