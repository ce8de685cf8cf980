"""What a user can get wrong with SVD: one sentence on stderr, exit code 2, nothing written."""

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
    Image.new("RGB", (16, 16), (200, 30, 30)).save("picture.png")


def refused(capsys, *words: str) -> str:
    before = sorted(Path().rglob("*"))
    code = main(list(words))
    said = capsys.readouterr()
    assert code == 2, said.err
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, said.err
    assert sorted(Path().rglob("*")) == before
    return said.err


@pytest.mark.parametrize("content", [b"not a picture", b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_picture_that_is_none(content, capsys):
    Path("words.png").write_bytes(content)
    assert "words.png" in refused(capsys, "animate", "words.png", *SVD)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--fps", "0"], "fps is 0; expected 0.1 to 240"),
        (["--fps", "-7"], "fps is -7"),
        (["--extra", "motion-bucket=1000000"], "motion_bucket is 1000000; expected a number from 0 to 255"),
        (["--motion", "1000000"], "motion_bucket is 1000000.0; expected a number from 0 to 255"),
        (["--extra", "motion-bucket=fast"], "motion_bucket is 'fast'"),
        (["--extra", "augmentation=nan"], "augmentation is"),
        (["--extra", "anchor=3"], "anchor is 3; expected true or false"),
        (["--extra", "elevation=10"], "no option of this svd model"),
        (["--extra", "guidance-shape=square"], "there are linear"),
        (["--colours", "blue"], "free or seam or anchor"),
        (["--honour", "reconstruct"], "reconstruction"),
        (["--overlap", "4"], "overlap is of windows, or of the blocks"),
        (["--variant", "fp16"], "variant fp16 selects weight files"),
        (["--lora", "nowhere.safetensors:0.5"], "there is no LoRA file nowhere.safetensors"),
        (["--lora", "a", "--lora", "a:2"], "--lora a is given twice"),
    ],
)
def test_impossible_values(words, told, capsys):
    assert told in refused(capsys, "animate", "picture.png", *SVD, *words)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (
            ["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x"],
            "file of Stable Diffusion lacks",
        ),
        (["conditioner.embedders.1.model.transformer.resblocks.0.ln_1.bias"], "a Stable Diffusion XL checkpoint"),
        (["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"], "an AnimateDiff motion module"),
        (["model.diffusion_model.input_blocks.1.0.time_stack.x"], "a video checkpoint of sgm without its conditioner"),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["something"], "its 1 tensor begins something"),
    ],
)
def test_a_checkpoint_of_another_family_is_named(keys, what, capsys):
    save_file({key: torch.ones(1) for key in keys}, "other.safetensors")
    assert what in refused(capsys, "animate", "picture.png", "--model", "./other.safetensors")


def test_a_folder_of_another_pipeline_is_named(capsys):
    Path("other").mkdir()
    Path("other/model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert "which a StableDiffusionPipeline is made of" in refused(
        capsys, "animate", "picture.png", "--model", "./other"
    )
    assert "StableDiffusionPipeline" in refused(capsys, "inspect", "other")


@pytest.mark.parametrize("keep", [0.9, 0.3, 0.0])
def test_a_truncated_file_is_named(keep, capsys):
    save_file({"model.diffusion_model.input_blocks.1.0.time_stack.x": torch.ones(999)}, "svd.safetensors")
    data = Path("svd.safetensors").read_bytes()
    Path("svd.safetensors").write_bytes(data[: int(len(data) * keep)])
    assert "svd.safetensors" in refused(capsys, "animate", "picture.png", "--model", "./svd.safetensors")
    assert "svd.safetensors" in refused(capsys, "inspect", "svd.safetensors")


def test_a_lora_as_a_model_and_a_model_as_a_lora(capsys):
    layer = "unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q"
    write_lora("lora.safetensors", {layer: Adapter(torch.ones(4, 32), torch.ones(32, 4))}, "kohya")
    told = refused(capsys, "animate", "picture.png", "--model", "./lora.safetensors")
    assert "it is a LoRA of Stable Video Diffusion; name a model and pass this file with --lora" in told
    save_file({"cond_stage_model.x": torch.ones(1)}, "model.safetensors")
    told = refused(capsys, "animate", "picture.png", *SVD, "--lora", "model.safetensors")
    assert (
        "model.safetensors is no LoRA: it is a Stable Diffusion checkpoint; a model goes in the model's place" in told
    )


def test_a_lora_of_another_base_is_named(capsys):
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v"
    made = {f"{stem}.lora_down.weight": torch.ones(4, 768), f"{stem}.lora_up.weight": torch.ones(320, 4)}
    save_file(made, "sd15.safetensors")
    told = refused(capsys, "animate", "picture.png", *SVD, "--lora", "sd15.safetensors:0.8")
    assert "sd15.safetensors is a LoRA of Stable Diffusion 1.5, not of svd/tiny" in told
