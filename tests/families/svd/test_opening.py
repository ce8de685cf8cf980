"""Folders saved by diffusers, and single files: opening from headers and JSON, loading, identification by name."""

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
from kinema.events import Note
from kinema.families.svd.config import PRESETS, SVD, SVD_XT
from kinema.media.metadata import read_recipe
from kinema.schema import BadRequest, Request
from kinema.settle import settle
from kinema.system import System, policy_for
from kinema.training.options import TrainOptions
from kinema.training.setup import prepare

PARTS = ("unet", "vae", "image_encoder")


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of the saved folder that tests can damage."""
    return Path(shutil.copytree(saved, tmp_path / "folder"))


@pytest.fixture(scope="module")
def single(saved, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("single") / "svd.safetensors"
    convert(saved, path, "sgm")
    return path


def notes_of(system: System, **options) -> list[str]:
    notes: list[str] = []
    settle(system, Request(prompt="x", **options), lambda e: notes.append(e.message) if isinstance(e, Note) else None)
    return notes


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# -------------------------------------------------------------------------------------- folders


def test_weights_of_a_folder_are_read_lazily_and_completely(saved, monkeypatch):
    read = Source.tensors

    def refuse(*_args):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Source, "tensors", refuse)
    system = load(saved).system
    settle(system, Request(prompt="x"))
    assert system.runtime.model is None
    monkeypatch.setattr(Source, "tensors", read)
    tensors = system.model.state_dict()
    files = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model"}
    expected = {
        f"{part}.{name}": tensor
        for part, stem in files.items()
        for name, tensor in load_file(saved / part / f"{stem}.safetensors").items()
    }
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_weights_are_memory_mapped(saved, monkeypatch):
    mapped = {}
    read = Source.tensors
    monkeypatch.setattr(Source, "tensors", lambda *args: mapped.update(read(*args)) or mapped)
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


def test_fp16_files_load_by_variant_or_if_there_are_no_others(saved, tmp_path):
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
    with pytest.raises(BadRequest, match="no weights of the variant 'fp16'; its variants: none"):
        load(saved, variant="fp16")


def test_shards_equal_one_file(saved, tmp_path):
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(saved, local_files_only=True)
    pipeline.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    assert len(list((tmp_path / "shards/unet").glob("*-of-*.safetensors"))) > 1
    whole, shards = load(saved).system.model.state_dict(), load(tmp_path / "shards").system.model.state_dict()
    assert all(torch.equal(whole[name], shards[name]) for name in whole)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["vae"], "lacks vae/, which the pipeline StableVideoDiffusionPipeline needs"),
        (["unet", "image_encoder"], "lacks unet/ and image_encoder/, which"),
        (["unet", "vae", "image_encoder"], "lacks unet/, vae/ and image_encoder/, which"),
        (["unet/config.json", "vae"], "lacks vae/ and unet/config.json, which"),
        (["unet/diffusion_pytorch_model.safetensors"], "unet has no weights"),
        (["model_index.json"], "has no weights; expected a .safetensors file, an index or a pipeline"),
    ],
)
def test_missing_parts_of_a_folder_are_named(folder, missing, message):
    for name in missing:
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(BadRequest, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_a_scheduler_and_a_feature_extractor_are_not_needed(folder):
    for part in ("scheduler", "feature_extractor"):
        shutil.rmtree(folder / part)
    assert load(folder).system.config.frames == 5


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("image_encoder/config.json", {"hidden_act": "quick_gelu"}, "hidden_act quick_gelu; expected gelu"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "prediction_type epsilon; expected v_pred"),
        ("feature_extractor/preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}, r"image_mean \[0.5, 0.5"),
        ("unet/config.json", {"num_attention_heads": [3, 2]}, r"num_attention_heads of the unet is \[3, 2\]"),
        ("unet/config.json", {"num_frames": 0}, "num_frames of the unet is 0"),
        ("unet/config.json", {"block_out_channels": [32, 32]}, "does not match its layout"),
        ("unet/config.json", {"transformer_layers_per_block": [1, 2]}, "expected the same number for all levels"),
        ("vae/config.json", {"scaling_factor": "much"}, "scaling_factor of the vae is 'much'"),
        ("image_encoder/config.json", {"num_attention_heads": 5}, "num_attention_heads of the image_encoder is 5"),
        (
            "model_index.json",
            {"_class_name": "WanPipeline"},
            "not a supported model: it is a folder of the pipeline Wan",
        ),
    ],
)
def test_unsupported_config_values_are_rejected_by_name(folder, file, values, message):
    change(folder / file, **values)
    with pytest.raises(BadRequest, match=message):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": ' * 100_000])
def test_a_damaged_config_is_rejected_by_name(folder, text):
    (folder / "vae/config.json").write_text(text)
    with pytest.raises(BadRequest, match=r"vae/config\.json (is damaged|is nested deeper|is not a JSON object)"):
        load(folder)


def test_another_scheduler_is_reported_and_ignored(folder):
    change(folder / "scheduler/scheduler_config.json", sigma_max=80.0)
    assert any("sigma_max 80.0; Kinema samples with" in note for note in notes_of(load(folder).system))


@pytest.mark.parametrize(
    "setting",
    [
        {"_class_name": "DDIMScheduler"},
        {"rescale_betas_zero_snr": True},
        {"trained_betas": [0.1, 0.2]},
        {"timestep_type": "discrete"},
        {"use_karras_sigmas": False},
        {"clip_sample": True},
        {"invented": 1},
    ],
    ids=str,
)
def test_every_setting_of_another_scheduler_is_named(folder, setting):
    change(folder / "scheduler/scheduler_config.json", **setting)
    (name,) = setting
    assert any(f"the folder's scheduler has {name} " in note for note in notes_of(load(folder).system))


def test_the_official_scheduler_as_saved_by_diffusers_needs_no_note(folder):
    from diffusers import EulerDiscreteScheduler

    place = folder / "scheduler/scheduler_config.json"
    EulerDiscreteScheduler(**{k: v for k, v in json.loads(place.read_text()).items() if k[0] != "_"}).save_pretrained(
        place.parent
    )
    assert not any("scheduler" in note for note in notes_of(load(folder).system))


def test_tensors_that_do_not_match_the_configs_are_rejected(folder):
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    bias = tensors.pop("conv_in.bias")
    save_file(tensors | {"conv_in.offset": bias}, file)
    with pytest.raises(BadRequest, match=r"1 missing \(unet\.conv_in\.bias\); 1 unexpected \(unet\.conv_in\.offset\)"):
        load(folder)


def test_a_truncated_part_is_rejected(folder):
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(BadRequest, match=r"diffusion_pytorch_model\.safetensors is cut short"):
        load(folder)


def test_position_ids_of_older_image_encoders_are_ignored(folder):
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
def test_a_folders_frames_or_else_its_name_determine_the_model(saved, tmp_path, name, frames, sampling):
    folder = Path(shutil.copytree(saved, tmp_path / name))
    change(folder / "unet/config.json", num_frames=frames)
    system = load(folder).system
    assert (system.config.frames, system.config.guidance) == (frames, sampling.guidance)
    assert any(f"by the {frames} frames of its unet/config.json" in note for note in notes_of(system))
    assert not any("loaded as" in note for note in notes_of(load(folder, variant="svd").system))
    config = load(folder, variant="svd-xt").system.config
    assert (config.frames, config.guidance) == (25, SVD_XT.guidance)


@pytest.mark.parametrize(
    ("name", "model", "why"),
    [
        ("svd", "svd", "by its name"),
        ("svd_xt", "svd-xt", "by its name"),
        ("svd_xt_1_1", "svd-xt-1.1", "by its name"),
        ("svd_xt.fp16", "svd-xt", "by its name"),
        ("svd_xt_image_decoder", "svd-xt", "by its name"),
        ("model", "svd", "by default"),
    ],
)
def test_a_files_name_determines_the_model_unless_variant_is_given(single, tmp_path, name, model, why):
    path = tmp_path / f"{name}.safetensors"
    path.hardlink_to(single)
    system = load(path).system
    preset = PRESETS[model]
    assert (system.config.frames, system.config.guidance) == (preset.frames, preset.guidance)
    assert [note for note in notes_of(system) if f"{name} is loaded as {model} {why}: {preset.frames} frames" in note]
    other = "svd" if model != "svd" else "svd-xt"
    chosen = load(path, variant=other).system
    assert chosen.config.frames == PRESETS[other].frames
    assert not any("loaded as" in note for note in notes_of(chosen))


def test_training_supports_variant(single, tmp_path):
    path = tmp_path / "model.safetensors"
    path.hardlink_to(single)
    configs = {name: prepare(TrainOptions(model=str(path), variant=name))[0].config for name in (None, "svd-xt")}
    assert (configs[None].frames, configs["svd-xt"].frames) == (14, 25)


def test_a_variant_of_other_sizes_or_without_weights_is_rejected(single):
    with pytest.raises(BadRequest, match=r"is not sv3d-u: its tensors have the sizes of svd or svd-xt or svd-xt-1\.1"):
        load(single, variant="sv3d-u")
    with pytest.raises(BadRequest, match="variant fp16 selects weight files, but svd/tiny is untrained"):
        load("svd/tiny", variant="fp16")
    with pytest.raises(BadRequest, match="preset tiny applies only to a family"):
        load(single, preset="tiny")


def test_short_names_resolve_to_the_hubs_cache(saved, tmp_path, monkeypatch):
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
        assert any("stable-video-diffusion-img2vid-xt is loaded as svd-xt" in note for note in notes_of(system))


def test_a_file_and_its_folder_generate_the_same_clip(saved, single, image_path):
    ask = Request(task="animate", image=str(image_path), seed=3, steps=2, frames=5, height=32, width=32)
    one, two = (load(source).run(ask).video for source in (saved, single))
    assert one.std() > 0.05
    # Not bit-equal: on AMD, MKL's summation order for single-row products depends on the weight's memory alignment.
    assert (one - two).abs().max() <= 2e-5


# ----------------------------------------------------------------------------- the command line


def test_the_command_line_animates_inspects_plans_and_replays_a_folder(
    folder, image_path, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    size = ["--height", "32", "--width", "32", "--steps", "2", "--model", "folder"]
    assert main(["animate", str(image_path), *size, "-o", "clip.mp4", "--seed", "1"]) == 0
    assert "loaded as svd" in capsys.readouterr().err
    recipe = read_recipe("clip.mp4")
    assert recipe["stages"][0]["weights"] == Source(folder).hash(PARTS)
    assert main(["inspect", "folder", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["layout"] == "folder of StableVideoDiffusionPipeline"
    assert report["tensors"] == report["network_tensors"] == sum(report["parts"][part]["tensors"] for part in PARTS)
    assert report["hash"] == recipe["stages"][0]["weights"]
    assert main(["plan", "animate", str(image_path), *size, "--no-measure", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == report["parameters"]
    given = ["--model", "folder", "--input", f"image={image_path}"]
    assert main(["replay", "clip.mp4", "-o", "again.mp4", *given]) == 0
    assert "are not identical" not in (err := capsys.readouterr().err)
    assert "are not those of the clip" not in err


def test_replaying_a_changed_folder_needs_the_model_and_is_reported(folder, image_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    load("folder").animate(image_path, height=32, width=32, steps=1, seed=1).save("clip.mp4")
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"quant_conv.bias": tensors["quant_conv.bias"] + 1}, file)
    given = ["--input", f"image={image_path}"]
    assert main(["replay", "clip.mp4", "-o", "again.mp4", *given]) == 2
    assert "needs folder; give it with --model PATH" in capsys.readouterr().err
    assert main(["replay", "clip.mp4", "-o", "again.mp4", *given, "--model", "folder"]) == 0
    assert "are not those of the clip" in capsys.readouterr().err


def test_the_variant_is_in_the_recipe(saved, image_path):
    clip = load(saved, variant="svd-xt").animate(image_path, height=32, width=32, frames=5, steps=1, seed=1)
    assert clip.recipe["stages"][0]["variant"] == "svd-xt"
    assert clip.recipe["stages"][0]["request"]["guidance"] == 1.5


# ----------------------------------------------------------------------------- against diffusers


@pytest.fixture
def pipeline(saved):
    from diffusers import StableVideoDiffusionPipeline

    result = StableVideoDiffusionPipeline.from_pretrained(saved, local_files_only=True)
    result.set_progress_bar_config(disable=True)
    return result


def official(unet: nn.Module) -> None:
    """Set the eps of sgm's residual blocks in diffusers' model."""
    for name, module in unet.named_modules():
        if isinstance(module, nn.GroupNorm) and "res_block" in name:
            module.eps = 1e-5


def latents_of(
    pipeline, system: System, path: Path, request: Request, monkeypatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Kinema's and diffusers' latents for the same image, image noise and latent noise."""
    from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as svd_pipeline
    from PIL import Image

    from kinema.api import Model
    from kinema.families.svd import conditioning

    settled = settle(system, request)
    noise = system.noise(settled).normal(system.latent_shape(settled).bcthw[1:])
    image_noise = conditioning.image_noise(settled, settled.height, settled.width)
    monkeypatch.setattr(svd_pipeline, "randn_tensor", lambda *_args, **_more: image_noise.to(pipeline.unet.dtype))
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
def test_latents_equal_those_of_the_saved_pipeline(saved, pipeline, image_path, monkeypatch, mode):
    system = load(saved, overrides={"norm_eps": "diffusers"} if mode == "diffusers" else None).system
    request = Request(
        task="animate",
        image=str(image_path),
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
    result, expected = latents_of(pipeline, system, image_path, request, monkeypatch)
    assert expected.std() > 0.1
    assert (result - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("mode", ["diffusers", "official"])
def test_networks_equal_those_of_the_saved_pipeline(saved, pipeline, dtype, most, mode):
    system = load(saved, dtype=dtype, overrides={"norm_eps": mode}).system
    pipeline.to(dtype)
    random = torch.Generator().manual_seed(1)
    z = torch.randn(1, 8, 5, 4, 4, generator=random, dtype=torch.float64).to(dtype)
    context = torch.randn(1, 1, 32, generator=random, dtype=torch.float64).to(dtype)
    level, scalars = torch.tensor([1.2]), torch.tensor([[[6.0, 127.0, 0.02]]])
    if mode == "official":
        official(pipeline.unet)
    with torch.no_grad():
        result = system.model.unet(z, level, context, scalars)
        expected = pipeline.unet(z.transpose(1, 2), level, context, scalars[:, 0], return_dict=False)[0].transpose(1, 2)
        image = torch.rand(2, 3, 32, 32, generator=random, dtype=torch.float64).to(dtype) * 2 - 1
        encoded, reference_latents = system.model.vae.encode(image), pipeline.vae.encode(image).latent_dist.mode()
        decoded = system.model.vae.decode(z[0, :4].transpose(0, 1), 5)
        reference_pixels = pipeline.vae.decode(z[0, :4].transpose(0, 1), num_frames=5).sample
    assert expected.std() > 0.1
    assert (result - expected).abs().max() <= most
    assert (encoded - reference_latents).abs().max() <= 1e-4
    assert (decoded - reference_pixels).abs().max() <= 1e-4
