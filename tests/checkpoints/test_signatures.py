"""Weight files are identified by characteristic tensor names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kinema.checkpoints.files import Header
from kinema.checkpoints.signatures import describe, lora_kind
from kinema.checkpoints.source import Source

BLOCK = "down_blocks_0_attentions_0_transformer_blocks_0"
DOTTED = "down_blocks.0.attentions.0.transformer_blocks.0"


def header_of(*names: str, width: int = 320) -> Header:
    return {name: ((4, width), torch.float16) for name in names}


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (header_of(f"lora_unet_{BLOCK}_attn2_to_k.lora_down.weight", width=768), "a LoRA of Stable Diffusion 1.5"),
        (header_of(f"lora_unet_{BLOCK}_attn2_to_v.lora_down.weight", width=1024), "a LoRA of Stable Diffusion 2"),
        (header_of(f"unet.{DOTTED}.attn2.to_k.lora_A.weight", width=2048), "a LoRA of Stable Diffusion XL"),
        (header_of(f"unet.{DOTTED}.attn2.to_v.lora.down.weight", width=768), "a LoRA of Stable Diffusion 1.5"),
        (header_of(f"{DOTTED}.attn2.processor.to_k_lora.down.weight", width=768), "a LoRA of Stable Diffusion 1.5"),
        (header_of(f"lora_unet_{BLOCK}_attn1_to_k.lora_down.weight", width=768), "a LoRA"),
        (header_of("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"), "a LoRA of Stable Diffusion XL"),
        (header_of("lora_unet_double_blocks_0_img_attn_proj.lora_up.weight"), "a LoRA of Flux"),
        (header_of("diffusion_model.blocks.0.self_attn.q.lora_A.weight"), "a LoRA of Wan"),
        (header_of(f"lora_unet_{BLOCK}_temporal_transformer_blocks_0_x.lora_up.weight"), "a LoRA of Stable Video Diff"),
        (header_of("up_blocks.0.motion_modules.0.x.to_q_lora.up.weight"), "a LoRA of an AnimateDiff motion module"),
    ],
)
def test_a_lora_is_identified_by_its_base_model(header: Header, kind: str) -> None:
    assert lora_kind(header).startswith(kind)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["unet.a.lora_A.weight", "unet.a.lora_B.weight"], "a LoRA"),
        (["x.motion_modules.0.temporal_transformer.norm.weight"], "an AnimateDiff motion module"),
        (["cond_stage_model.x", "model.diffusion_model.x"], "a Stable Diffusion checkpoint"),
        (["vision_model.post_layernorm.bias"], "a CLIP image encoder"),
        (["decoder.up.0.x"], "a VAE"),
        (["encoder.down_blocks.0.resnets.0.conv1.conv.weight"], "the VAE of HunyuanVideo"),
        (["encoder.stages.0.op_list.0.main.conv1.conv.weight"], "the Video DC-AE of Open-Sora 2.0"),
        (["double_blocks.0.img_attn.qkv.weight", "img_in.weight"], "a Flux transformer, which generates images"),
        (["single_transformer_blocks.0.attn.to_q.weight", "x_embedder.weight"], "a Flux transformer"),
        (["double_blocks.0.img_attn_qkv.weight"], "a HunyuanVideo transformer"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "a T5 text encoder"),
        (["a", "b", "c", "d"], "of an unknown kind (its 4 tensors include a, b, c"),
    ],
)
def test_a_file_is_identified_by_its_tensors(tmp_path: Path, names: list[str], kind: str) -> None:
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "a.safetensors")
    assert describe(Source(tmp_path / "a.safetensors")).startswith(kind)


def test_folders_and_native_files_are_identified(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    assert describe(Source(tmp_path)) == "a folder of the pipeline WanPipeline"
    save_file({"a": torch.ones(1)}, tmp_path / "own.safetensors", {"kinema": '{"family": "vdm"}'})
    assert describe(Source(tmp_path / "own.safetensors")) == "a Kinema weight file of the family vdm"
