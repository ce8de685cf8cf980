"""Folders that diffusers saved, and single files: opened by headers and JSON, filled whole, told apart by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kinema.api import load
from kinema.checkpoints.convert import convert
from kinema.checkpoints.source import Source
from kinema.cli.main import main
from kinema.families.svd.config import PRESETS, SVD, SVD_XT
from kinema.media.metadata import read_recipe
from kinema.schema import BadRequest, Note, Request
from kinema.settle import settle
from kinema.system import System, policy_for
from kinema.training.options import TrainOptions
from kinema.training.setup import prepare

PARTS = ("unet", "vae", "image_encoder")


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """The saved folder, to be harmed."""
    return Path(shutil.copytree(saved, tmp_path / "folder"))


@pytest.fixture(scope="module")
def single(saved, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("single") / "svd.safetensors"
    convert(saved, path, "sgm")
    return path


def said(system: System, **options) -> list[str]:
    notes: list[str] = []
    settle(system, Request(prompt="x", **options), lambda e: notes.append(e.message) if isinstance(e, Note) else None)
    return notes


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# -------------------------------------------------------------------------------------- folders


def test_a_folder_is_opened_without_its_weights_and_filled_with_exactly_them(saved, monkeypatch):
    read = Source.tensors

    def refuse(*_told):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Source, "tensors", refuse)
    system = load(saved).system
    settle(system, Request(prompt="x"))
    assert system.runtime.model is None
    monkeypatch.setattr(Source, "tensors", read)
    held = system.model.state_dict()
    files = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model"}
    expected = {
        f"{part}.{name}": tensor
        for part, stem in files.items()
        for name, tensor in load_file(saved / part / f"{stem}.safetensors").items()
    }
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[name], expected[name]) for name in expected)


def test_weights_are_assigned_from_the_memory_map_and_not_copied(saved, monkeypatch):
    mapped = {}
    read = Source.tensors
    monkeypatch.setattr(Source, "tensors", lambda *told: mapped.update(read(*told)) or mapped)
    model = load(saved).system.model
    assert all(p.data_ptr() == mapped[name].data_ptr() for name, p in model.named_parameters())


def test_sizes_frames_heads_and_scaling_come_from_the_configs(folder):
    config = load(folder).system.config
    assert (config.frames, config.channels, config.heads, config.vae_channels) == (
        5,
        (32, 64),
        (1, 2),
        (32, 32, 32, 64),
    )
    assert (config.clip_side, config.clip_patch, config.clip_heads, config.latent_scale) == (224, 56, 2, 0.18215)
    change(folder / "unet/config.json", num_attention_heads=[4, 8], num_frames=9)
    change(folder / "image_encoder/config.json", num_attention_heads=4)
    change(folder / "vae/config.json", scaling_factor=0.5)
    changed = load(folder).system.config
    assert changed == replace(config, heads=(4, 8), frames=9, clip_heads=4, latent_scale=0.5)


def test_halves_are_taken_by_name_or_where_there_is_nothing_else(saved, tmp_path):
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(saved, local_files_only=True).to(torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    name = "unet.conv_in.weight"
    expected = load_file(saved / "unet/diffusion_pytorch_model.safetensors")["conv_in.weight"].half()
    for variant in ("fp16", None):
        system = load(tmp_path / "half", variant=variant).system
        assert torch.equal(system.model.state_dict()[name], expected.float())
    kept = load(tmp_path / "half", dtype=torch.float16).system
    computed = policy_for(torch.float16, kept.device).computed  # float32 where the CPU has no native float16
    assert kept.policy.precision == torch.float16
    assert torch.equal(kept.model.get_parameter(name), expected.to(computed))
    both = shutil.copytree(saved, tmp_path / "both")
    shutil.copytree(tmp_path / "half", both, dirs_exist_ok=True)
    plain, half = load(both).system, load(both, variant="fp16").system
    assert not torch.equal(plain.model.state_dict()[name], expected.float())
    assert torch.equal(half.model.state_dict()[name], expected.float())
    assert plain.weights.hash != half.weights.hash
    with pytest.raises(BadRequest, match="no weights of the variant 'fp16'; there is only plain files"):
        load(saved, variant="fp16")


def test_shards_read_like_one_file(saved, tmp_path):
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(saved, local_files_only=True)
    pipeline.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    assert len(list((tmp_path / "shards/unet").glob("*-of-*.safetensors"))) > 1
    whole, shards = load(saved).system.model.state_dict(), load(tmp_path / "shards").system.model.state_dict()
    assert all(torch.equal(whole[name], shards[name]) for name in whole)


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        (["vae"], "lacks vae/, which a StableVideoDiffusionPipeline is made of"),
        (["unet", "image_encoder"], "lacks unet/ and image_encoder/, which"),
        (["unet", "vae", "image_encoder"], "lacks unet/, vae/ and image_encoder/, which"),
        (["unet/config.json", "vae"], "lacks vae/ and unet/config.json, which"),
        (["unet/diffusion_pytorch_model.safetensors"], "unet holds no weights"),
        (["model_index.json"], "holds no weights; expected a .safetensors file, its index or a pipeline"),
    ],
)
def test_what_a_folder_lacks_is_named_in_one_sentence(folder, gone, told):
    for name in gone:
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(BadRequest, match=told) as refused:
        load(folder)
    assert "\n" not in str(refused.value)


def test_a_scheduler_and_a_feature_extractor_are_not_needed(folder):
    for part in ("scheduler", "feature_extractor"):
        shutil.rmtree(folder / part)
    assert load(folder).system.config.frames == 5


@pytest.mark.parametrize(
    ("file", "values", "told"),
    [
        ("image_encoder/config.json", {"hidden_act": "quick_gelu"}, "hidden_act quick_gelu; expected gelu"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "prediction_type epsilon; expected v_pred"),
        ("feature_extractor/preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}, r"image_mean \[0.5, 0.5"),
        ("unet/config.json", {"num_attention_heads": [3, 2]}, r"num_attention_heads of the unet is \[3, 2\]"),
        ("unet/config.json", {"num_frames": 0}, "num_frames of the unet is 0"),
        ("unet/config.json", {"block_out_channels": [32, 32]}, "does not fit"),
        ("unet/config.json", {"transformer_layers_per_block": [1, 2]}, "expected one number for all levels"),
        ("vae/config.json", {"scaling_factor": "much"}, "scaling_factor of the vae is 'much'"),
        ("image_encoder/config.json", {"num_attention_heads": 5}, "num_attention_heads of the image_encoder is 5"),
        (
            "model_index.json",
            {"_class_name": "WanPipeline"},
            "not a supported model: it is a folder of Wan",
        ),
    ],
)
def test_configs_that_these_networks_cannot_follow_are_refused_by_name(folder, file, values, told):
    change(folder / file, **values)
    with pytest.raises(BadRequest, match=told):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": ' * 100_000])
def test_a_damaged_config_is_named(folder, text):
    (folder / "vae/config.json").write_text(text)
    with pytest.raises(BadRequest, match=r"vae/config\.json (is damaged|is nested deeper|holds no table)"):
        load(folder)


def test_another_scheduler_is_said_and_the_official_levels_are_kept(folder):
    change(folder / "scheduler/scheduler_config.json", sigma_max=80.0)
    assert any("sigma_max 80.0; sampled is with the official" in note for note in said(load(folder).system))


def test_tensors_that_disagree_with_the_configs_are_refused_when_the_folder_is_opened(folder):
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    held = load_file(file)
    bias = held.pop("conv_in.bias")
    save_file(held | {"conv_in.offset": bias}, file)
    with pytest.raises(BadRequest, match=r"1 missing \(unet\.conv_in\.bias\); 1 unexpected \(unet\.conv_in\.offset\)"):
        load(folder)


def test_a_truncated_part_is_refused_when_the_folder_is_opened(folder):
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(BadRequest, match=r"diffusion_pytorch_model\.safetensors is cut short"):
        load(folder)


def test_a_counter_of_older_image_encoders_is_left_out(folder):
    file = folder / "image_encoder/model.safetensors"
    save_file(load_file(file) | {"vision_model.embeddings.position_ids": torch.arange(17)[None]}, file)
    assert load(folder).system.model is not None


# --------------------------------------------------------------------------- which model it is


@pytest.mark.parametrize(
    ("name", "frames", "sampling"),
    [
        ("stable-video-diffusion-img2vid", 14, SVD),
        ("stable-video-diffusion-img2vid-xt", 25, SVD_XT),
        ("stable-video-diffusion-img2vid-xt-1-1", 25, SVD_XT),
        ("mine", 25, SVD_XT),
        ("mine", 14, SVD),
        ("my-xt", 14, SVD),
        ("my-xt", 7, SVD_XT),
    ],
)
def test_a_folder_s_frames_choose_its_sampling_and_its_name_where_they_do_not(saved, tmp_path, name, frames, sampling):
    folder = Path(shutil.copytree(saved, tmp_path / name))
    change(folder / "unet/config.json", num_frames=frames)
    system = load(folder).system
    assert (system.config.frames, system.config.guidance) == (frames, sampling.guidance)
    assert any(f"by the {frames} frames of its unet/config.json" in note for note in said(system))
    assert not any("taken for" in note for note in said(load(folder, variant="svd").system))
    told = load(folder, variant="svd-xt").system.config
    assert (told.frames, told.guidance) == (25, SVD_XT.guidance)


@pytest.mark.parametrize(
    ("name", "model", "why"),
    [
        ("svd", "svd", "by its name"),
        ("svd_xt", "svd-xt", "by its name"),
        ("svd_xt_1_1", "svd-xt-1.1", "by its name"),
        ("svd_xt.fp16", "svd-xt", "by its name"),
        ("svd_xt_image_decoder", "svd-xt", "by its name"),
        ("model", "svd", "as neither its weights nor its name tell"),
    ],
)
def test_a_single_file_is_known_by_its_name_and_the_user_s_word_wins(single, tmp_path, name, model, why):
    path = tmp_path / f"{name}.safetensors"
    path.hardlink_to(single)
    system = load(path).system
    preset = PRESETS[model]
    assert (system.config.frames, system.config.guidance) == (preset.frames, preset.guidance)
    assert [note for note in said(system) if f"{name} is taken for {model} {why}: {preset.frames} frames" in note]
    other = "svd" if model != "svd" else "svd-xt"
    told = load(path, variant=other).system
    assert told.config.frames == PRESETS[other].frames
    assert not any("taken for" in note for note in said(told))


def test_training_may_be_told_which_model_a_file_is(single, tmp_path):
    path = tmp_path / "model.safetensors"
    path.hardlink_to(single)
    told = {name: prepare(TrainOptions(model=str(path), variant=name))[0].config for name in (None, "svd-xt")}
    assert (told[None].frames, told["svd-xt"].frames) == (14, 25)


def test_a_model_of_other_sizes_and_a_variant_without_weights_are_refused(single):
    with pytest.raises(BadRequest, match=r"cannot be sv3d-u: its sizes are those of svd or svd-xt or svd-xt-1\.1"):
        load(single, variant="sv3d-u")
    with pytest.raises(BadRequest, match="variant fp16 selects weight files, but svd/tiny is untrained"):
        load("svd/tiny", variant="fp16")
    with pytest.raises(BadRequest, match="preset tiny applies only to a family"):
        load(single, preset="tiny")


def test_a_short_name_is_its_repository_in_the_hub_s_cache(saved, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadRequest, match="stable-video-diffusion-img2vid-xt is not in the local cache and offline"):
        load("svd-xt", offline=True)
    repository = tmp_path / "models--stabilityai--stable-video-diffusion-img2vid-xt"
    shutil.copytree(saved, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for name in ("svd-xt", "stabilityai/stable-video-diffusion-img2vid-xt"):
        system = load(name, offline=True).system
        assert (system.name, system.config.guidance) == (name, SVD_XT.guidance)
        assert any("stable-video-diffusion-img2vid-xt is taken for svd-xt" in note for note in said(system))


def test_a_file_and_the_folder_it_was_written_from_make_the_same_clip(saved, single, picture):
    ask = Request(task="animate", image=str(picture), seed=3, steps=2, frames=5, height=32, width=32)
    one, two = (load(source).run(ask).video for source in (saved, single))
    assert one.std() > 0.05
    # To the last bits: MKL on AMD adds up a product of one row in an order that depends on where the weight begins.
    assert (one - two).abs().max() <= 2e-5


# ----------------------------------------------------------------------------- the command line


def test_the_command_line_animates_inspects_plans_and_replays_a_folder(folder, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    size = ["--height", "32", "--width", "32", "--steps", "2", "--model", "folder"]
    assert main(["animate", str(picture), *size, "-o", "made.mp4", "--seed", "1"]) == 0
    assert "taken for svd" in capsys.readouterr().err
    recipe = read_recipe("made.mp4")
    assert recipe["stages"][0]["weights"] == Source(folder).hash(PARTS)
    assert main(["inspect", "folder", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layout"] == "folder of StableVideoDiffusionPipeline"
    assert told["tensors"] == told["network_tensors"] == sum(told["parts"][part]["tensors"] for part in PARTS)
    assert told["hash"] == recipe["stages"][0]["weights"]
    assert main(["plan", "animate", str(picture), *size, "--no-measure", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == told["parameters"]
    given = ["--model", "folder", "--input", f"image={picture}"]
    assert main(["replay", "made.mp4", "-o", "again.mp4", *given]) == 0
    assert "are not identical" not in (err := capsys.readouterr().err)
    assert "other weights" not in err


def test_a_changed_folder_is_replayed_only_where_it_is_given_and_that_is_said(
    folder, picture, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    load("folder").animate(picture, height=32, width=32, steps=1, seed=1).save("made.mp4")
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    held = load_file(file)
    save_file(held | {"quant_conv.bias": held["quant_conv.bias"] + 1}, file)
    given = ["--input", f"image={picture}"]
    assert main(["replay", "made.mp4", "-o", "again.mp4", *given]) == 2
    assert "made from folder, which a replay does not look for; give it with --model PATH" in capsys.readouterr().err
    assert main(["replay", "made.mp4", "-o", "again.mp4", *given, "--model", "folder"]) == 0
    assert "other weights than the clip's" in capsys.readouterr().err


def test_the_told_variant_is_in_the_recipe(saved, picture):
    clip = load(saved, variant="svd-xt").animate(picture, height=32, width=32, frames=5, steps=1, seed=1)
    assert clip.recipe["stages"][0]["variant"] == "svd-xt"
    assert clip.recipe["stages"][0]["request"]["guidance"] == 1.5


# ----------------------------------------------------------------------------- against diffusers


@pytest.fixture
def pipeline(saved):
    from diffusers import StableVideoDiffusionPipeline

    made = StableVideoDiffusionPipeline.from_pretrained(saved, local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made


def official(unet: nn.Module) -> None:
    """The eps that sgm's residual blocks have, put into diffusers' model."""
    for name, module in unet.named_modules():
        if isinstance(module, nn.GroupNorm) and "res_block" in name:
            module.eps = 1e-5


def latents_of(
    pipeline, system: System, path: Path, request: Request, monkeypatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ours, theirs) from the same picture, noise of the picture and noise of the latents."""
    from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as theirs
    from PIL import Image

    from kinema.api import Model
    from kinema.families.svd import conditioning

    settled = settle(system, request)
    noise = system.noise(settled).normal(system.latent_shape(settled).bcthw[1:])
    of_picture = conditioning.picture_noise(settled, settled.height, settled.width)
    monkeypatch.setattr(theirs, "randn_tensor", lambda *_told, **_more: of_picture.to(pipeline.unet.dtype))
    expected = pipeline(
        Image.open(path).convert("RGB"),
        height=settled.height,
        width=settled.width,
        num_frames=settled.frames,
        num_inference_steps=settled.steps,
        min_guidance_scale=settled.guidance,
        max_guidance_scale=settled.guidance_end,
        fps=int(settled.fps),
        motion_bucket_id=settled.extra["motion_bucket"],
        noise_aug_strength=settled.extra["augmentation"],
        latents=noise.transpose(1, 2),
        output_type="latent",
    ).frames
    return Model(system).run(request, noise=noise, output="latents").video, expected.transpose(1, 2)


@pytest.mark.parametrize("mode", ["diffusers", "official"])
def test_latents_of_a_saved_pipeline_equal_its_own(saved, pipeline, picture, monkeypatch, mode):
    system = load(saved, overrides={"norm_eps": "diffusers"} if mode == "diffusers" else None).system
    request = Request(
        task="animate",
        image=str(picture),
        seed=7,
        steps=4,
        height=32,
        width=32,
        fps=7,
        guidance=1.0,
        guidance_end=3.0,
        extra={"motion_bucket": 60, "augmentation": 0.1},
    )
    if mode == "official":
        assert system.config.norm_eps == "official"
        official(pipeline.unet)
    made, expected = latents_of(pipeline, system, picture, request, monkeypatch)
    assert expected.std() > 0.1
    assert (made - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("mode", ["diffusers", "official"])
def test_the_networks_of_a_saved_pipeline_equal_its_own(saved, pipeline, dtype, most, mode):
    system = load(saved, dtype=dtype, overrides={"norm_eps": mode}).system
    pipeline.to(dtype)
    random = torch.Generator().manual_seed(1)
    z = torch.randn(1, 8, 5, 4, 4, generator=random, dtype=torch.float64).to(dtype)
    context = torch.randn(1, 1, 32, generator=random, dtype=torch.float64).to(dtype)
    level, told = torch.tensor([1.2]), torch.tensor([[[6.0, 127.0, 0.02]]])
    if mode == "official":
        official(pipeline.unet)
    with torch.no_grad():
        made = system.model.unet(z, level, context, told)
        expected = pipeline.unet(z.transpose(1, 2), level, context, told[:, 0], return_dict=False)[0].transpose(1, 2)
        image = torch.rand(2, 3, 32, 32, generator=random, dtype=torch.float64).to(dtype) * 2 - 1
        encoded, of_theirs = system.model.vae.encode(image), pipeline.vae.encode(image).latent_dist.mode()
        decoded = system.model.vae.decode(z[0, :4].transpose(0, 1), 5)
        of_their_decoder = pipeline.vae.decode(z[0, :4].transpose(0, 1), num_frames=5).sample
    assert expected.std() > 0.1
    assert (made - expected).abs().max() <= most
    assert (encoded - of_theirs).abs().max() <= 1e-4
    assert (decoded - of_their_decoder).abs().max() <= 1e-4
