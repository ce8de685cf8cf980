"""Registered names as ``module:object`` strings: the only module that refers to higher layers.

Imports without torch; families are imported when `resolve` is called.
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
    "lumiere": "kinema.families.lumiere.family:FAMILY",
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
"""The family that is tried first for a folder, by the pipeline class in its ``model_index.json``."""

EMBEDDED: dict[str, tuple[str, str]] = {
    "zoetrope": ("zoetrope", "zoetrope.safetensors"),
    "svd-pocket": ("svd", "svd-pocket.safetensors"),
    "animatediff-pocket": ("animatediff", "animatediff-pocket.safetensors"),
    "lumiere-pocket": ("lumiere", "lumiere-pocket.safetensors"),
    "lumiere-pocket-sr": ("lumiere", "lumiere-pocket-sr.safetensors"),
    "opensora-pocket": ("opensora", "opensora-pocket.safetensors"),
}
"""Models included in the package: name to (family, file under ``kinema/weights``)."""

ADD_ONS: dict[str, str] = {
    "animatediff-pocket-motion": "motion",
    "animatediff-pocket-outline": "style",
    "animatediff-pocket-night": "style",
    "animatediff-pocket-pans-left": "lora",
    "animatediff-pocket-pans-right": "lora",
    "animatediff-pocket-zooms-in": "lora",
}
"""Included add-ons and LoRAs, ``NAME.safetensors``: name to slot, or "lora"."""

SHIPPED: dict[str, str] = {
    "animatediff": "kinema.families.animatediff.pocket.shipped:SHIPPED",
    "lumiere": "kinema.families.lumiere.shipped:SHIPPED",
    "opensora": "kinema.families.opensora.pocket.shipped:SHIPPED",
    "svd": "kinema.families.svd.pocket.shipped:SHIPPED",
    "zoetrope": "kinema.families.zoetrope.shipped:SHIPPED",
}
"""Training settings of the included weights, by family."""

ALIASES: dict[str, str] = {
    "animatediff-v3": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "open-sora-1.0": "hpcai-tech/Open-Sora/OpenSora-v1-HQ-16x256x256.pth",
    "open-sora-1.0-512px": "hpcai-tech/Open-Sora/OpenSora-v1-HQ-16x512x512.pth",
    "open-sora-1.1": "hpcai-tech/OpenSora-STDiT-v2-stage3",
    "open-sora-1.2": "hpcai-tech/OpenSora-STDiT-v3",
    "open-sora-1.3": "hpcai-tech/OpenSora-STDiT-v4",
    "open-sora-1.3-360p": "hpcai-tech/OpenSora-STDiT-v4-360p",
    "open-sora-1.3-i2v": "hpcai-tech/OpenSora-STDiT-v4-i2v",
    "open-sora-2": "hpcai-tech/Open-Sora-v2/Open_Sora_v2.safetensors",
    "open-sora-2-dc-ae": "hpcai-tech/Open-Sora-v2-Video-DC-AE/Open_Sora_v2_Video_DC_AE.safetensors",
    "svd": "stabilityai/stable-video-diffusion-img2vid",
    "svd-xt": "stabilityai/stable-video-diffusion-img2vid-xt",
    "svd-xt-1.1": "stabilityai/stable-video-diffusion-img2vid-xt-1-1",
    "sv3d-u": "stabilityai/sv3d/sv3d_u.safetensors",
    "sv3d-p": "stabilityai/sv3d/sv3d_p.safetensors",
}
"""Short names of hub repositories, or of files in them."""

_IMAGE_VAE, _VAE_1_3 = "stabilityai/sd-vae-ft-ema", "hpcai-tech/OpenSora-VAE-v1.3"
DEFAULT_ADD_ONS: dict[str, dict[str, str]] = {
    "animatediff-pocket": {"motion": "animatediff-pocket-motion"},
    "animatediff-v3": {"motion": "guoyww/animatediff/v3_sd15_mm.ckpt"},
    "lumiere-pocket": {"image": "animatediff-pocket"},
    "lumiere-pocket-sr": {"image": "animatediff-pocket"},
    "lumiere/pocket": {"image": "animatediff-pocket"},
    "lumiere/pocket-sr": {"image": "animatediff-pocket"},
    "lumiere/pocket-keyframes": {"image": "animatediff-pocket"},
    "lumiere/pocket-between": {"image": "animatediff-pocket"},
    "open-sora-1.0": {"vae": _IMAGE_VAE},
    "open-sora-1.0-512px": {"vae": _IMAGE_VAE},
    "open-sora-1.1": {"vae": _IMAGE_VAE},
    "open-sora-1.2": {"vae": "hpcai-tech/OpenSora-VAE-v1.2"},
    "open-sora-1.3": {"vae": _VAE_1_3},
    "open-sora-1.3-360p": {"vae": _VAE_1_3},
    "open-sora-1.3-i2v": {"vae": _VAE_1_3},
    "hpcai-tech/Open-Sora/OpenSora-v1-16x256x256.pth": {"vae": _IMAGE_VAE},
    "hpcai-tech/Open-Sora/OpenSora-v1-HQ-16x256x256.pth": {"vae": _IMAGE_VAE},
    "hpcai-tech/Open-Sora/OpenSora-v1-HQ-16x512x512.pth": {"vae": _IMAGE_VAE},
    "hpcai-tech/OpenSora-STDiT-v2-stage2": {"vae": _IMAGE_VAE},
    "hpcai-tech/OpenSora-STDiT-v2-stage3": {"vae": _IMAGE_VAE},
    "hpcai-tech/OpenSora-STDiT-v3": {"vae": "hpcai-tech/OpenSora-VAE-v1.2"},
    "hpcai-tech/OpenSora-STDiT-v4": {"vae": _VAE_1_3},
    "hpcai-tech/OpenSora-STDiT-v4-360p": {"vae": _VAE_1_3},
    "hpcai-tech/OpenSora-STDiT-v4-i2v": {"vae": _VAE_1_3},
    "open-sora-2": {"vae": "hpcai-tech/Open-Sora-v2/hunyuan_vae.safetensors"},
    "open-sora-2-dc-ae": {"vae": "hpcai-tech/Open-Sora-v2-Video-DC-AE/F32T4C128_AE.safetensors"},
}
"""Default add-ons of a model name, by slot; an add-on given by the user replaces the default in its slot."""

SECOND_STAGES: dict[str, str] = {"lumiere-pocket": "lumiere-pocket-sr"}
"""The super-resolution model that a model's clips are enlarged with, unless a request names another or "none"."""

_OPEN_SORA = (
    "Open-Sora's code is Apache-2.0; its licence appends the Tencent Hunyuan community licence, which grants no rights "
    "in the European Union, the United Kingdom and South Korea. The transformer was initialised from FLUX.1-dev, whose "
    "weights have a non-commercial licence"
)
_OPEN_SORA_1 = "Open-Sora 1.x's code and weights are Apache-2.0; T5-XXL, which reads its prompts, is Apache-2.0 too"
TERMS: dict[str, str] = {
    **dict.fromkeys(
        (
            "hpcai-tech/Open-Sora",
            "hpcai-tech/OpenSora-STDiT-v2-stage2",
            "hpcai-tech/OpenSora-STDiT-v2-stage3",
            "hpcai-tech/OpenSora-STDiT-v3",
            "hpcai-tech/OpenSora-STDiT-v4",
            "hpcai-tech/OpenSora-STDiT-v4-360p",
            "hpcai-tech/OpenSora-STDiT-v4-i2v",
            "hpcai-tech/OpenSora-VAE-v1.2",
            "hpcai-tech/OpenSora-VAE-v1.3",
        ),
        _OPEN_SORA_1,
    ),
    "stabilityai/sd-vae-ft-ema": "the VAE of Stable Diffusion, of Open-Sora 1.0 and 1.1, has the MIT licence",
    "hpcai-tech/Open-Sora-v2": _OPEN_SORA,
    "hpcai-tech/Open-Sora-v2-Video-DC-AE": _OPEN_SORA,
}
"""Licence terms of a repository of the hub that are said before the first download from it."""


def weight_file(file: str) -> Path:
    """Return the path of an included weight file."""
    return Path(str(resources.files("kinema") / "weights" / file))


def add_on_file(name: str | Path) -> str | Path:
    """Return the path of an included add-on or model by name; other names unchanged. ``./name`` is a file."""
    return weight_file(f"{name}.safetensors") if isinstance(name, str) and name in {*ADD_ONS, *EMBEDDED} else name


def similar_add_ons(name: str | Path, slot: str) -> str:
    """Return the end of a "no such file" message: included add-ons of the slot with a similar name, if any."""
    near = difflib.get_close_matches(str(name), [part for part, of in ADD_ONS.items() if of == slot], n=3, cutoff=0.7)
    return f"; did you mean {', '.join(near)}?" if near else ""


def recipe_name(path: str | Path) -> str:
    """Return the name of a file in recipes: an included add-on's name, or the file name without its folder.

    A file name that equals a registered name becomes ``./name``, so the two are not confused.
    """
    stem = Path(path).stem
    if stem in {*ADD_ONS, *EMBEDDED} and Path(path) == weight_file(f"{stem}.safetensors"):
        return stem
    name = file_name(path)
    return f"./{name}" if name in {*EMBEDDED, *ADD_ONS, *ALIASES, *FAMILIES} else name


def file_name(path: str | Path) -> str:
    """Return the last component of a POSIX or Windows path."""
    parts = [part for part in re.split(r"[\\/]", str(path)) if part not in ("", ".", "..")]
    return parts[-1] if parts else "folder"


def family(name: str) -> Any:
    """Return the family registered under ``name``. Raises `BadRequest` with similar names if unknown."""
    if name not in FAMILIES:
        raise BadRequest(unknown_name("family", name, FAMILIES))
    return resolve(FAMILIES[name])


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return a message about an unknown name with similar names, or else the known ones.

    ``what`` is "sampler", or "size of zoetrope" for what belongs to something.
    """
    names = sorted(known)
    kind, _, owner = what.partition(" of ")
    start = f"{owner} has no {kind} {quoted(name)}" if owner else f"there is no {kind} {quoted(name)}"
    if near := difflib.get_close_matches(name[:MAX_QUOTED], names, n=3, cutoff=0.55):
        return f"{start}; did you mean {', '.join(near)}?"
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{start}; {'it has' if owner else 'there are'} {', '.join(names[:8]) or 'none'}{more}"
