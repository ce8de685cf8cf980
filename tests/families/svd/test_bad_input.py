"""Invalid use of SVD: one sentence on stderr, exit code 2, no files written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from kinema.checkpoints.lora_formats import Adapter, write_lora
from kinema.cli.main import main

SVD = ("--model", "svd/tiny", "--steps", "1", "--quiet")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16), (200, 30, 30)).save("image.png")


def rejected(capsys, *words: str) -> str:
    before = sorted(Path().rglob("*"))
    code = main(list(words))
    output = capsys.readouterr()
    assert code == 2, output.err
    assert output.out == ""
    assert len(output.err.splitlines()) == 1, output.err
    assert sorted(Path().rglob("*")) == before
    return output.err


@pytest.mark.parametrize("content", [b"not an image", b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_invalid_image_is_rejected(content, capsys):
    Path("words.png").write_bytes(content)
    assert "words.png" in rejected(capsys, "animate", "words.png", *SVD)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fps", "0"], "fps is 0; expected 0.1 to 240"),
        (["--fps", "-7"], "fps is -7"),
        (["--extra", "motion-bucket=1000000"], "motion-bucket is 1000000; expected a number from 0 to 255"),
        (["--motion", "1000000"], "--motion is 1000000.0; expected a number from 0 to 255"),
        (["--extra", "motion-bucket=fast"], "motion-bucket is 'fast'"),
        (["--extra", "augmentation=nan"], "augmentation is"),
        (["--extra", "anchor=3"], "anchor is 3; expected true or false"),
        (["--extra", "elevation=10"], "this svd model has no option"),
        (["--extra", "guidance-shape=square"], "there are linear"),
        (["--colours", "blue"], "free or seam or anchor"),
        (["--honour", "reconstruct"], "reconstruction"),
        (["--overlap", "4"], "--overlap applies only to windows and to block-wise clips"),
        (["--variant", "fp16"], "variant fp16 selects weight files"),
        (["--lora", "nowhere.safetensors:0.5"], "there is no LoRA file nowhere.safetensors"),
        (["--lora", "a", "--lora", "a:2"], "--lora a is given twice"),
    ],
)
def test_invalid_values_are_rejected(words, message, capsys):
    assert message in rejected(capsys, "animate", "image.png", *SVD, *words)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (
            ["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x"],
            "which Stable Diffusion files have",
        ),
        (["conditioner.embedders.1.model.transformer.resblocks.0.ln_1.bias"], "a Stable Diffusion XL checkpoint"),
        (["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"], "an AnimateDiff motion module"),
        (["model.diffusion_model.input_blocks.1.0.time_stack.x"], "an sgm video checkpoint without its conditioner"),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["something"], "its 1 tensor is something"),
    ],
)
def test_a_checkpoint_of_another_family_is_identified(keys, what, capsys):
    save_file({key: torch.ones(1) for key in keys}, "other.safetensors")
    assert what in rejected(capsys, "animate", "image.png", "--model", "./other.safetensors")


def test_a_folder_of_another_pipeline_is_identified(capsys):
    Path("other").mkdir()
    Path("other/model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert "which the pipeline StableDiffusionPipeline needs" in rejected(
        capsys, "animate", "image.png", "--model", "./other"
    )
    assert "StableDiffusionPipeline" in rejected(capsys, "inspect", "other")


@pytest.mark.parametrize("keep", [0.9, 0.3, 0.0])
def test_a_truncated_file_is_rejected_by_name(keep, capsys):
    save_file({"model.diffusion_model.input_blocks.1.0.time_stack.x": torch.ones(999)}, "svd.safetensors")
    data = Path("svd.safetensors").read_bytes()
    Path("svd.safetensors").write_bytes(data[: int(len(data) * keep)])
    assert "svd.safetensors" in rejected(capsys, "animate", "image.png", "--model", "./svd.safetensors")
    assert "svd.safetensors" in rejected(capsys, "inspect", "svd.safetensors")


def test_a_lora_as_a_model_and_a_model_as_a_lora_are_rejected(capsys):
    layer = "unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q"
    write_lora("lora.safetensors", {layer: Adapter(torch.ones(4, 32), torch.ones(32, 4))}, "kohya")
    message = rejected(capsys, "animate", "image.png", "--model", "./lora.safetensors")
    assert "it is a LoRA of Stable Video Diffusion; name a model and pass this file with --lora" in message
    save_file({"cond_stage_model.x": torch.ones(1)}, "model.safetensors")
    message = rejected(capsys, "animate", "image.png", *SVD, "--lora", "model.safetensors")
    assert "model.safetensors is not a LoRA: it is a Stable Diffusion checkpoint; expected a LoRA file" in message


def test_a_lora_of_another_base_is_identified(capsys):
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v"
    tensors = {f"{stem}.lora_down.weight": torch.ones(4, 768), f"{stem}.lora_up.weight": torch.ones(320, 4)}
    save_file(tensors, "sd15.safetensors")
    message = rejected(capsys, "animate", "image.png", *SVD, "--lora", "sd15.safetensors:0.8")
    assert "sd15.safetensors is a LoRA of Stable Diffusion 1.5, not of svd/tiny" in message
