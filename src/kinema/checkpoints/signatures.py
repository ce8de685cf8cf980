"""What a weight file is that nothing here can use for what was asked: told by names that only it has."""

from __future__ import annotations

import json
import re

from kinema import registry
from kinema.checkpoints.files import Header

SIGNATURES: tuple[tuple[str, str], ...] = (
    (r"\.lora_(down|up)\.weight$", "a LoRA in kohya's layout"),
    (r"\.lora_[AB]\.|\.lora\.(down|up)\.|_lora\.(down|up)\.", "a LoRA in the layout of diffusers or peft"),
    (r"^model\.diffusion_model\..*\.time_mix_blocks\.", "Stable Video 4D"),
    (r"(^|\.)motion_modules\.\d+\.|\.temporal_transformer\.", "an AnimateDiff motion module"),
    (r"^(controlnet_cond_embedding|controlnet_down_blocks)\.", "a ControlNet of diffusers"),
    (r"^(control_model\.|input_hint_block\.)", "a ControlNet"),
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


def describe(header: Header, metadata: dict[str, str]) -> str:
    """What a file seems to be, to end the sentence "… it is"."""
    if "kinema" in metadata:
        return f"{json.loads(metadata['kinema']).get('family', 'another')} weights of kinema's own"
    for name in registry.FAMILIES:
        if registry.family(name).recognise(header) is not None:
            return f"a {name} model"
    for pattern, what in SIGNATURES:
        found = re.compile(pattern)
        if any(found.search(name) for name in header):
            return what
    first = ", ".join(sorted(header)[:3])
    return f"nothing known here (its {len(header)} tensors begin {first})"
