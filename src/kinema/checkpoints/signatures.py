"""Identifies weight files of the wrong kind by characteristic tensor names, for error messages."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kinema import registry
from kinema.bounds import MAX_QUOTED, first_names, from_json, printable
from kinema.checkpoints.files import Header
from kinema.checkpoints.lora_names import is_lora
from kinema.checkpoints.settings import naming_faults
from kinema.checkpoints.source import Source
from kinema.schema import BadRequest
from kinema.values import counted

ADD_ON = "an add-on to an image model (--add"
MOTION = f"an AnimateDiff motion module, {ADD_ON} motion=FILE)"
FLUX = (
    "a Flux transformer, which generates images (`kinema convert FILE TARGET --layout open-sora` turns it into the "
    "initial weights of an Open-Sora 2.0 model)"
)
SIGNATURES: tuple[tuple[str, str], ...] = (
    (r"^model\.diffusion_model\..*\.time_mix_blocks\.", "Stable Video 4D"),
    (r"(^|\.)motion_modules\.\d+\.|\.temporal_transformer\.", MOTION),
    (r"^(controlnet_cond_embedding|controlnet_down_blocks)\.", f"a diffusers ControlNet, {ADD_ON} controlnet=FILE)"),
    (r"^(control_model\.|input_hint_block\.)", f"a ControlNet, {ADD_ON} controlnet=FILE)"),
    (r"^(image_proj|ip_adapter)\.|\.attn2\.processor\.to_k_ip\.", f"an IP-Adapter, {ADD_ON} ip-adapter=FILE)"),
    (r"^conditioner\.embedders\.1\.model\.transformer\.", "a Stable Diffusion XL checkpoint"),
    (r"^model\.diffusion_model\..*\.time_stack\.", "an sgm video checkpoint without its conditioner"),
    (r"^cond_stage_model\.", "a Stable Diffusion checkpoint"),
    (r"^model\.diffusion_model\.", "a diffusion network without its text encoder"),
    (r"\.temporal_res_block\.|\.temporal_transformer_blocks\.", "one component of a Stable Video Diffusion folder"),
    (r"^(down_blocks|mid_block|up_blocks)\.", "the U-Net of a diffusers folder"),
    (r"^(encoder|decoder)\.(down|up)_blocks\..*\.conv1\.conv\.", "the VAE of HunyuanVideo (--add vae=FILE)"),
    (r"^(encoder|decoder)\.stages\..*\.op_list\.", "the Video DC-AE of Open-Sora 2.0 (--add vae=FILE)"),
    (r"^(encoder|decoder)\.(down_blocks|up_blocks|mid_block|down|up|mid)\.", "a VAE"),
    (r"^(vision_model|visual)\.", "a CLIP image encoder"),
    (r"^text_model\.", "a CLIP text encoder"),
    (r"^double_blocks\.\d+\.img_attn\.qkv\.", FLUX),
    (r"^single_transformer_blocks\.", FLUX),
    (r"^double_blocks\.\d+\.img_attn_qkv\.", "a HunyuanVideo transformer"),
    (r"^(double_blocks|single_blocks)\.", "a Flux or Open-Sora 2.0 transformer"),
    (r"^temporal\.(down|mid|up)\.", "the temporal layers of a Lumiere model (--add temporal=FILE)"),
    (r"^(encoder|decoder|shared)\.(block\.|.*SelfAttention|weight)", "a T5 text encoder"),
)
"""Patterns of tensor names and what they identify; the first that matches any name wins."""

LORA_OF: tuple[tuple[str, str], ...] = (
    (r"motion_modules", "an AnimateDiff motion module"),
    (r"temporal_transformer_blocks|temporal_res_block|time_stack", "Stable Video Diffusion"),
    (r"(double|single|single_transformer)_blocks", "Flux or Open-Sora 2.0"),
    (r"^lora_te2_|^text_encoder_2\.|input_blocks_[478]_1_transformer_blocks_[1-9]", "Stable Diffusion XL"),
    (r"(^|[._])blocks[._]\d+[._](self|cross)_attn", "Wan"),
)
"""Patterns that identify a LoRA's base model by the layers it changes."""
CONTEXT_OF = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
"""Base model by the width of the text states, the input of cross-attention's keys and values."""

UNKNOWN = "of an unknown kind"


def describe_unsupported(source: Source) -> str:
    """Say what a file is that no family opens ("it is a LoRA …"), or name its first tensors."""
    kind = describe(source)
    return beginning(source.header) if kind.startswith(UNKNOWN) else f"it is {kind}"


def beginning(header: Iterable[str]) -> str:
    """Name the first tensors of an unknown file, as a clause."""
    names = sorted(header)
    if not names:
        return "it has no tensors"
    verb = "is" if len(names) == 1 else "include"
    return f"its {counted(len(names), 'tensor')} {verb} {first_names(names[:3])}"


def describe(source: Source) -> str:
    """Identify a file or folder; completes the sentence "it is …"."""
    if source.pipeline:
        return f"a folder of the pipeline {source.pipeline}"
    if "kinema" in source.metadata:
        return _native(source.metadata["kinema"])
    header = source.header
    if is_lora(header):
        return lora_kind(header)
    family = next((name for name in registry.FAMILIES if _is_of(name, source)), None)
    if family:
        return f"a model of the family {family}"
    return next((kind for pattern, kind in SIGNATURES if _any(pattern, header)), f"{UNKNOWN} ({beginning(header)})")


def _native(text: str) -> str:
    try:
        family = str(from_json(text, "the metadata")["family"])
    except (ValueError, KeyError, TypeError):
        return "a Kinema weight file with damaged metadata"
    return f"a Kinema weight file of the family {printable(family, MAX_QUOTED)}"


def lora_kind(header: Header) -> str:
    """Identify a LoRA's base model: "a LoRA of Stable Diffusion 1.5", or "a LoRA" if its layers are ambiguous."""
    base = next((model for pattern, model in LORA_OF if _any(pattern, header)), "")
    keys = re.compile(r"attn2[._](processor[._])?to_[kv][._](lora[._]((linear_layer\.)?down|A)([._]|$)|hada_w[12]_b$)")
    widths = {shape[1] for name, (shape, _) in header.items() if keys.search(name) and len(shape) > 1}
    base = base or next((CONTEXT_OF[width] for width in sorted(widths) if width in CONTEXT_OF), "")
    return f"a LoRA of {base}" if base else "a LoRA"


def _is_of(family: str, source: Source) -> bool:
    try:
        with naming_faults(str(source.path)):
            return registry.family(family).checkpoints.recognise(source) is not None
    except BadRequest:
        return True  # this family recognises the file, but something is missing in it


def _any(pattern: str, header: Header) -> bool:
    found = re.compile(pattern)
    return any(found.search(name) for name in header)
