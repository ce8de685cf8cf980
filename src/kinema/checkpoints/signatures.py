"""What a weight file is that nothing here can use for what was asked: told by names that only it has."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kinema import registry
from kinema.bounds import MAX_QUOTED, few, from_json, printable
from kinema.checkpoints.files import Header
from kinema.checkpoints.settings import readable
from kinema.checkpoints.source import Source
from kinema.schema import BadRequest
from kinema.values import counted

MOTION = "an AnimateDiff motion module, which an image model takes (add motion=FILE)"
BESIDE = "which an image model takes (add"
SIGNATURES: tuple[tuple[str, str], ...] = (
    (r"^model\.diffusion_model\..*\.time_mix_blocks\.", "Stable Video 4D"),
    (r"(^|\.)motion_modules\.\d+\.|\.temporal_transformer\.", MOTION),
    (r"^(controlnet_cond_embedding|controlnet_down_blocks)\.", f"a ControlNet of diffusers, {BESIDE} controlnet=FILE)"),
    (r"^(control_model\.|input_hint_block\.)", f"a ControlNet, {BESIDE} controlnet=FILE)"),
    (r"^(image_proj|ip_adapter)\.|\.attn2\.processor\.to_k_ip\.", f"an IP-Adapter, {BESIDE} ip-adapter=FILE)"),
    (r"^conditioner\.embedders\.1\.model\.transformer\.", "a Stable Diffusion XL checkpoint"),
    (r"^model\.diffusion_model\..*\.time_stack\.", "a video checkpoint of sgm without its conditioner"),
    (r"^cond_stage_model\.", "a Stable Diffusion checkpoint"),
    (r"^model\.diffusion_model\.", "a diffusion network without its text encoder"),
    (r"\.temporal_res_block\.|\.temporal_transformer_blocks\.", "one part of a folder of Stable Video Diffusion"),
    (r"^(down_blocks|mid_block|up_blocks)\.", "the U-Net of a diffusers folder"),
    (r"^(encoder|decoder)\.(down_blocks|up_blocks|mid_block|down|up|mid)\.", "a VAE"),
    (r"^(vision_model|visual)\.", "an image encoder of CLIP"),
    (r"^text_model\.", "a text encoder of CLIP"),
    (r"^(double_blocks|single_blocks)\.", "a Flux or Open-Sora 2 transformer"),
    (r"^(encoder|decoder|shared)\.(block\.|.*SelfAttention|weight)", "a T5 text encoder"),
)
"""A pattern of a tensor's name and what has such names; the first that matches any name is told."""

LORA = re.compile(r"\.lora_(down|up|[AB])\.|[._]lora\.(down|up)\.")
LORA_OF: tuple[tuple[str, str], ...] = (
    (r"motion_modules", "an AnimateDiff motion module"),
    (r"temporal_transformer_blocks|temporal_res_block|time_stack", "Stable Video Diffusion"),
    (r"(double|single|single_transformer)_blocks", "Flux"),
    (r"^lora_te2_|^text_encoder_2\.|input_blocks_[478]_1_transformer_blocks_[1-9]", "Stable Diffusion XL"),
    (r"(^|[._])blocks[._]\d+[._](self|cross)_attn", "Wan"),
)
"""The same for LoRAs, by the layers they change."""
CONTEXT_OF = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
"""Width of the text that cross-attention reads, which is the input of its keys and values."""


UNKNOWN = "nothing known here"


def refused(source: Source) -> str:
    """What is wrong with a file that no family opens: "it is a LoRA …", or only how its tensors begin."""
    told = describe(source)
    return beginning(source.header) if told.startswith(UNKNOWN) else f"it is {told}"


def beginning(header: Iterable[str]) -> str:
    """The first names of the tensors, for a sentence on a file that nobody knows."""
    names = sorted(header)
    if not names:
        return "it holds no tensors"
    begin = "begins" if len(names) == 1 else "begin"
    return f"its {counted(len(names), 'tensor')} {begin} {few(names[:3])}"


def describe(source: Source) -> str:
    """What a file or folder seems to be, to end the sentence "… it is"."""
    if source.pipeline:
        return f"a folder of {source.pipeline}"
    if "kinema" in source.metadata:
        return f"{_family(source.metadata['kinema'])} weights of kinema's own"
    header = source.header
    if any(LORA.search(name) for name in header):
        return lora_kind(header)
    family = next((name for name in registry.FAMILIES if _is_of(name, source)), None)
    if family:
        return f"a model of {family}"
    return next((what for pattern, what in SIGNATURES if _any(pattern, header)), f"{UNKNOWN} ({beginning(header)})")


def _family(note: str) -> str:
    try:
        return printable(str(from_json(note, "the note")["family"]), MAX_QUOTED)
    except (ValueError, KeyError, TypeError):
        return "damaged"


def lora_kind(header: Header) -> str:
    """Of what model a LoRA is: "a LoRA of Stable Diffusion 1.5"; "a LoRA" where its layers do not tell."""
    base = next((what for pattern, what in LORA_OF if _any(pattern, header)), "")
    keys = re.compile(r"attn2[._](processor[._])?to_[kv][._]lora[._](down|A)[._]")
    widths = {shape[1] for name, (shape, _) in header.items() if keys.search(name) and len(shape) > 1}
    base = base or next((CONTEXT_OF[width] for width in sorted(widths) if width in CONTEXT_OF), "")
    return f"a LoRA of {base}" if base else "a LoRA"


def _is_of(family: str, source: Source) -> bool:
    try:
        with readable(str(source.path)):
            return registry.family(family).checkpoints.recognise(source) is not None
    except BadRequest:
        return True  # it is one of its own that refuses, for something it lacks


def _any(pattern: str, header: Header) -> bool:
    found = re.compile(pattern)
    return any(found.search(name) for name in header)
