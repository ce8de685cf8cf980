"""The tensor names of LoRA files, as training tools write them: layer, then role.

A name is a layer's name in some layout with an ending that says what the tensor is: ``….lora_down.weight``. Collected
from the code of kohya-ss/sd-scripts, LyCORIS, diffusers, PEFT, ComfyUI, OneTrainer, ai-toolkit and SimpleTuner; the
page of the family AnimateDiff lists them with the tool that writes each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from kinema.bounds import first_names
from kinema.values import counted

KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
"""Kohya's prefixes and the components they stand for; SDXL files number the two text encoders."""
OFT_PREFIX = "oft_unet_"
"""The prefix of kohya's OFT, whose constraint differs from LyCORIS's."""
_FLAT: dict[str, tuple[str, ...]] = {
    **{prefix: (f"{part}_",) for prefix, part in KOHYA.items()},
    "lora_unet_": ("unet_", ""),
    "lora_transformer_": ("transformer_", ""),
    OFT_PREFIX: ("unet_", ""),
    "lycoris_": ("unet_", "", "text_encoder_"),
}
"""Prefixes of names that have "_" for ".", and what they stand for; the first that exists."""
_DOTTED = {
    "base_model.model.": "",
    "model.diffusion_model.": "",
    "diffusion_model.": "",
    "module.": "",
    "text_encoders.": "",
    "clip_l.transformer.": "text_encoder.",
    "clip_g.transformer.": "text_encoder_2.",
}
"""Prefixes of names with dots, and what they stand for; a name may have several, one after the other."""
_ENDS = {
    **{f".lora_{each}.weight": each for each in ("down", "up", "mid")},
    **{f"{lora}.{each}.weight": each for lora in (".lora", "_lora", ".lora_linear_layer") for each in ("down", "up")},
    ".lora_A": "down",
    ".lora_B": "up",
    ".lora_B.bias": "up_bias",
    ".alpha": "alpha",
    ".lora_alpha": "alpha",
    ".dora_scale": "dora_scale",
    **{f".hada_{each}": f"hada_{each}" for each in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{each}": f"lokr_{each}" for each in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    ".oft_blocks": "oft_blocks",
    ".rescale": "rescale",
    **{f".{each}.weight": each for each in ("a1", "a2", "b1", "b2", "bm")},
    ".on_input": "on_input",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "w_norm",
    ".b_norm": "b_norm",
    ".weight": "weight",
}
"""Endings and roles. A longer ending comes before one that it ends in."""
_PEFT_ENDS = (
    (re.compile(r"\.lora_(?P<side>[AB])(\.[\w-]+)?\.weight"), {"A": "down", "B": "up"}),
    (re.compile(r"\.lora_(?P<side>magnitude_vector)(\.[\w-]+)?(\.weight)?"), {"magnitude_vector": "magnitude"}),
)
"""PEFT's endings, which may contain the name of the adapter (``.lora_A.default.weight``)."""
_SHARED = frozenset({"alpha", "rescale", "weight", "a1", "a2", "b1", "b2", "bm", "diff", "diff_b"})
"""Roles whose endings files of other kinds have too, so that they do not identify a LoRA."""
BUNDLED = "bundle_emb."
"""What tensors of textual-inversion embeddings begin with that LyCORIS and OneTrainer keep in a LoRA's file."""
UNSUPPORTED = (
    (r"\.(oft_R|oft_r)(\.|$)", "an OFT that rotates a layer's input (PEFT, OneTrainer)"),
    (r"\.oft_diag$", "an OFT of early LyCORIS versions"),
    (r"\.boft_(R|s)(\.|$)", "a BOFT of PEFT"),
    (r"\.ia3_l(\.|$)", "an (IA)³ of PEFT"),
    (r"\.vera_(lambda_[bd]|[AB])(\.|$)", "a VeRA"),
    (r"\.hra_u(\.|$)", "an HRA"),
    (r"\.lora_embedding_[AB](\.|$)", "a LoRA of token embeddings"),
    (r"\.(fourierft|waveft)_spectrum(\.|$)", "a LoRA of Fourier or wavelet coefficients"),
    (r"\.set_weight$", "a replacement of whole weights"),
    (r"\.reshape_weight$", "a change of a layer's size"),
    (r"^(lora|lycoris)_.*\.(p|q)_layer\.weight$", "a T-LoRA"),
    (r"^(unet|text_encoder):\d+:(up|down)$", "a LoRA of cloneofsimo's first tools, which name no layers"),
)
"""Tensors of kinds that are not supported, as regular expressions, and what they are."""
_ANY_UNSUPPORTED = re.compile("|".join(pattern for pattern, _ in UNSUPPORTED))

Value = TypeVar("Value")


def split(key: str) -> tuple[str, str]:
    """Split a tensor's name into the layer's name in the file and the role; the role is "" for an unknown ending."""
    for pattern, roles in _PEFT_ENDS:
        if key.count(".lora_") and (found := pattern.search(key)) and found.end() == len(key):
            return key[: found.start()], roles[found["side"]]
    for end, role in _ENDS.items():
        if key.endswith(end):
            return key.removesuffix(end), role
    return key, ""


def is_lora(names: Iterable[str]) -> bool:
    """Whether a file with these tensors is a LoRA of any kind, supported or not."""
    names = list(names)
    roles = {split(name)[1] for name in names}
    differences = "diff" in roles and roles <= {"diff", "diff_b", "alpha"}
    return differences or {"a1", "a2", "b1", "b2"} <= roles or bool(roles - _SHARED - {""}) or bool(unsupported(names))


def unsupported(names: Iterable[str]) -> str:
    """Name the first kind that is not supported, "" if there is none: "an (IA)³ of PEFT (unet.a.ia3_l)"."""
    name = next((name for name in names if _ANY_UNSUPPORTED.search(name)), None)
    if name is None:
        return ""
    return next(f"{kind} ({first_names([name])})" for pattern, kind in UNSUPPORTED if re.search(pattern, name))


def bundled(names: Iterable[str]) -> list[str]:
    """The embeddings that a LoRA's file contains, by name."""
    return sorted({name.removeprefix(BUNDLED).split(".")[0] for name in names if name.startswith(BUNDLED)})


def bundled_note(names: Iterable[str], where: str) -> str:
    """Say which embeddings a file contains, "" without any."""
    found = bundled(names)
    if not found:
        return ""
    count = counted(len(found), "embedding")
    return f"{where} also contains {count} ({first_names(found)}), which only prompts can use: ignored"


class Names(Generic[Value]):
    """Finds the layer that a name in any layout stands for: its value in ``known``, from names with dots."""

    def __init__(self, known: Mapping[str, Value]) -> None:
        self.dotted = dict(known)
        for name, value in known.items():  # transformers 5 writes text encoders without this level
            self.dotted.setdefault(name.replace("text_model.", "", 1), value)
        self.flat = {name.replace(".", "_"): value for name, value in self.dotted.items()}

    def find(self, stem: str) -> Value | None:
        """Return the value of a layer's name in a file, without the tensor's ending; None if it is unknown."""
        for prefix, parts in _FLAT.items():
            if stem.startswith(prefix):
                inner = stem.removeprefix(prefix)
                return next((self.flat[part + inner] for part in parts if part + inner in self.flat), None)
        return next((self.dotted[name] for name in _spellings(stem) if name in self.dotted), None)


def _spellings(stem: str) -> Iterator[str]:
    """The names with dots that a name may stand for, the name itself first."""
    # Older diffusers versions keep the four projections in the attention processor.
    name = re.sub(r"\.processor\.(to_[qkv]|0|proj)$", r".\1", stem)
    name = re.sub(r"\.processor\.to_out$", ".to_out.0", name)
    for _ in range(4):
        yield from _ends(name)
        prefix = next((each for each in _DOTTED if name.startswith(each)), None)
        if prefix is None:
            return
        name = _DOTTED[prefix] + name.removeprefix(prefix)


def _ends(name: str) -> Iterator[str]:
    yield name
    if name.endswith(".to_out"):  # attention of older diffusers versions
        yield f"{name}.0"
    # Text encoders in diffusers' first layout have the names of the U-Net's projections.
    old = re.fullmatch(r"(.*\.self_attn)\.to_(q|k|v|out)", name)
    if old:
        yield f"{old[1]}.{old[2]}_proj"
