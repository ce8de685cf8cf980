"""Names to ``module:object`` strings, and nothing else: the only place that points upward.

Importing this module costs nothing: no torch, no family is imported until `resolve` is called.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from kinema.schema import BadRequest
from kinema.values import MAX_QUOTED, quoted, resolve

FAMILIES: dict[str, str] = {
    "animatediff": "kinema.families.animatediff.family:FAMILY",
    "opensora": "kinema.families.opensora.family:FAMILY",
    "svd": "kinema.families.svd.family:FAMILY",
    "vdm": "kinema.families.vdm.family:FAMILY",
    "zoetrope": "kinema.families.zoetrope.family:FAMILY",
}
"""Folder name under ``families/`` to its `Family` object."""

PIPELINES: dict[str, str] = {
    "AnimateDiffPipeline": "animatediff",
    "OpenSoraPipeline": "opensora",
    "StableDiffusionPipeline": "animatediff",
    "StableDiffusionXLPipeline": "animatediff",
    "StableVideoDiffusionPipeline": "svd",
}
"""Which family to ask first about a folder, by the class its ``model_index.json`` names; the others come after it."""

EMBEDDED: dict[str, tuple[str, str]] = {
    "zoetrope": ("zoetrope", "zoetrope.safetensors"),
    "svd-pocket": ("svd", "svd-pocket.safetensors"),
    "animatediff-pocket": ("animatediff", "animatediff-pocket.safetensors"),
}
"""Weights that ship in the package: name to (family, file under ``kinema/weights``)."""

PARTS: dict[str, str] = {
    "animatediff-pocket-motion": "motion",
    "animatediff-pocket-outline": "style",
    "animatediff-pocket-night": "style",
    "animatediff-pocket-pans-left": "lora",
    "animatediff-pocket-pans-right": "lora",
    "animatediff-pocket-zooms-in": "lora",
}
"""What ships beside them, ``NAME.safetensors``: name to the slot that it is added in, or "lora"."""

SHIPPED: dict[str, str] = {
    "animatediff": "kinema.families.animatediff.pocket.shipped:SHIPPED",
    "svd": "kinema.families.svd.pocket.shipped:SHIPPED",
    "zoetrope": "kinema.families.zoetrope.shipped:SHIPPED",
}
"""Families whose weights ship, to how those are trained from scratch."""

ALIASES: dict[str, str] = {
    "animatediff-v3": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "open-sora-2": "hpcai-tech/Open-Sora-v2/Open_Sora_v2.safetensors",
    "open-sora-2-dc-ae": "hpcai-tech/Open-Sora-v2-Video-DC-AE/Open_Sora_v2_Video_DC_AE.safetensors",
    "svd": "stabilityai/stable-video-diffusion-img2vid",
    "svd-xt": "stabilityai/stable-video-diffusion-img2vid-xt",
    "svd-xt-1.1": "stabilityai/stable-video-diffusion-img2vid-xt-1-1",
    "sv3d-u": "stabilityai/sv3d/sv3d_u.safetensors",
    "sv3d-p": "stabilityai/sv3d/sv3d_p.safetensors",
}
"""Short names to a repository of the hub, or to one file of it."""

ADDED: dict[str, dict[str, str]] = {
    "animatediff-pocket": {"motion": "animatediff-pocket-motion"},
    "animatediff-v3": {"motion": "guoyww/animatediff/v3_sd15_mm.ckpt"},
    "open-sora-2": {"vae": "hpcai-tech/Open-Sora-v2/hunyuan_vae.safetensors"},
    "open-sora-2-dc-ae": {"vae": "hpcai-tech/Open-Sora-v2-Video-DC-AE/F32T4C128_AE.safetensors"},
}
"""What a name adds to its model, by slot; a user's own addition in a slot takes its place."""

_OPEN_SORA = (
    "Open-Sora's code is Apache-2.0; its licence appends the Tencent Hunyuan community licence, which grants no rights "
    "in the European Union, the United Kingdom and South Korea. The transformer was initialised from FLUX.1-dev, whose "
    "weights have a non-commercial licence"
)
TERMS: dict[str, str] = {
    "hpcai-tech/Open-Sora-v2": _OPEN_SORA,
    "hpcai-tech/Open-Sora-v2-Video-DC-AE": _OPEN_SORA,
}
"""Licence terms of a repository of the hub that are said before the first download from it."""


def weights(file: str) -> Path:
    """Where a file of weights that ships lies."""
    return Path(str(resources.files("kinema") / "weights" / file))


def part(name: str | Path) -> str | Path:
    """The file of a part that ships, by its name; any other name as it is. A file of such a name is ``./name``."""
    return weights(f"{name}.safetensors") if isinstance(name, str) and name in PARTS else name


def near_part(name: str | Path, slot: str) -> str:
    """The end of a sentence that says a file is not there: which parts of a slot that ship have such a name."""
    near = difflib.get_close_matches(str(name), [part for part, of in PARTS.items() if of == slot], n=3, cutoff=0.7)
    return f"; did you mean {', '.join(near)}?" if near else ""


def called(path: str | Path) -> str:
    """What a recipe calls a file: a part that ships by its name, any other by its own name without its folder.

    A file that is called like something else of ours is ``./name``, so that it is never taken for that.
    """
    stem = Path(path).stem
    if stem in PARTS and Path(path) == weights(f"{stem}.safetensors"):
        return stem
    name = file_name(path)
    return f"./{name}" if name in {*EMBEDDED, *PARTS, *ALIASES, *FAMILIES} else name


def file_name(path: str | Path) -> str:
    """The last part of a path of any system, Windows' too: nothing of the folders above it."""
    parts = [part for part in re.split(r"[\\/]", str(path)) if part not in ("", ".", "..")]
    return parts[-1] if parts else "folder"


def family(name: str) -> Any:
    """The family registered under ``name``; an unknown one is refused with the nearest names."""
    if name not in FAMILIES:
        raise BadRequest(unknown("family", name, FAMILIES))
    return resolve(FAMILIES[name])


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One sentence: what was not found, and the names that are near it or else the ones there are."""
    names = sorted(known)
    told, more = quoted(name), f" and {len(names) - 8} more" if len(names) > 8 else ""
    if near := difflib.get_close_matches(name[:MAX_QUOTED], names, n=3, cutoff=0.55):
        return f"there is no {what} {told}; did you mean {', '.join(near)}?"
    return f"there is no {what} {told}; there are {', '.join(names[:8])}{more}"
