"""ControlNet, IP-Adapter and PIA pipelines, from request to latents, against diffusers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kinema.api import load
from kinema.canvas import Canvas, Piece, Release
from kinema.checkpoints import files
from kinema.families.animatediff.config import AdapterSize, ControlSize, VisionSize
from kinema.families.animatediff.control.controlnet import ControlNet
from kinema.families.animatediff.files import controlnet_file
from kinema.media import read
from kinema.schema import Request, Shape

SIDE, FRAMES = 64, 4
NET = ControlSize(depths=(1, 1, None), middle=1)
VISION = VisionSize(width=32, layers=3, heads=2, mlp=64, patch=8, side=32, projection=24)
PLAIN = AdapterSize(kind="plain", embedding=24, tokens=4)
PLUS = AdapterSize(kind="plus", embedding=32, tokens=6, width=48, inner=128, layers=4)
ASK = {"prompt": "a b c d", "negative_prompt": "z y", "guidance": 4.0, "height": SIDE, "width": SIDE, "seed": 0}
COMMON = {
    "prompt": "a b c d",
    "negative_prompt": "z y",
    "guidance_scale": 4.0,
    "height": SIDE,
    "width": SIDE,
}


def image_encoder():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(5)
    sizes = {"hidden_size": VISION.width, "intermediate_size": VISION.mlp, "projection_dim": VISION.projection}
    sizes |= {"num_hidden_layers": VISION.layers, "num_attention_heads": VISION.heads, "hidden_act": "gelu"}
    config = CLIPVisionConfig(**sizes, image_size=VISION.side, patch_size=VISION.patch)
    return CLIPVisionModelWithProjection(config).eval()


def write_images(folder, count, side, seed=5):
    from PIL import Image

    folder.mkdir()
    pixels = torch.randint(0, 256, (count, side, side, 3), generator=torch.Generator().manual_seed(seed))
    images = [Image.fromarray(frame.to(torch.uint8).numpy()) for frame in pixels]
    for n, each in enumerate(images):
        each.save(folder / f"{n:03}.png")
    return images, [str(folder / f"{n:03}.png") for n in range(count)]


@pytest.fixture(scope="module")
def size(oracle):
    """Config with latents of 1/8 the frame size, as ControlNets need."""
    return replace(oracle.letters, vae_channels=(32, 32, 32, 32), height=SIDE, width=SIDE)


@pytest.fixture(scope="module")
def parts(oracle, size, tmp_path_factory):
    _, components = oracle.components(size, tmp_path_factory.mktemp("vocabulary") / "tokenizer")
    return components | {"motion_adapter": None, "scheduler": oracle.scheduler()}


@pytest.fixture(scope="module")
def saved(parts, oracle, size, adapter_of, nested, tmp_path_factory):
    """Folder of a pipeline, with two ControlNets, an image encoder and two IP-Adapters."""
    from diffusers import AnimateDiffVideoToVideoPipeline

    folder = tmp_path_factory.mktemp("saved")
    AnimateDiffVideoToVideoPipeline(**parts).save_pretrained(folder / "pipeline")
    for n in range(2):
        net = oracle.randomised(ControlNet(size, NET), seed=n)
        file = controlnet_file.ControlFile("official", size, NET)
        files.write_tensors(folder / f"net{n}.safetensors", controlnet_file.export(file, "official", net.state_dict()))
    image_encoder().save_pretrained(folder / "image_encoder")
    files.write_tensors(folder / "plain.safetensors", adapter_of(PLAIN, size))
    torch.save(nested(adapter_of(PLUS, size, seed=1)), folder / "plus.bin")
    return folder


def diffusers_nets(saved, size):
    from diffusers import ControlNetModel

    nets = []
    for n in range(2):
        file = controlnet_file.recognise(files.header(saved / f"net{n}.safetensors"))
        net = ControlNetModel(
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            block_out_channels=size.channels,
            layers_per_block=size.layers,
            cross_attention_dim=size.context,
            attention_head_dim=size.heads,
        )
        net.load_state_dict(controlnet_file.convert(file, files.read_tensors(saved / f"net{n}.safetensors")))
        nets.append(net.eval())
    return nets


def noise_of(frames=FRAMES):
    return torch.randn(1, 4, frames, 8, 8, generator=torch.Generator().manual_seed(3))


def opened(saved, **add):
    names = {name.replace("__", ".").replace("_", "-"): saved / file for name, file in add.items()}
    return load(saved / "pipeline", add=names, overrides={"norms": "diffusers"}, dtype=torch.float64)


def latents(model, steps, **extra):
    request = Request(frames=FRAMES, steps=steps, extra=extra, **ASK)
    return model.run(request, noise=noise_of(), output="latents").video


# ------------------------------------------------------------------------------------- ControlNet


@pytest.mark.parametrize("count", [1, 2])
def test_control_clips_equal_the_controlnet_pipeline(parts, saved, oracle, tmp_path, count, size):
    """Each ControlNet has its own clip, scale and span of steps."""
    from diffusers import AnimateDiffControlNetPipeline

    nets = diffusers_nets(saved, size)[:count]
    reference = AnimateDiffControlNetPipeline(**parts, controlnet=nets if count > 1 else nets[0]).to(torch.float64)
    reference.set_progress_bar_config(disable=True)
    clips = [write_images(tmp_path / f"clip{n}", FRAMES, SIDE, seed=n) for n in range(count)]
    settings = {
        "conditioning_frames": [images for images, _ in clips],
        "controlnet_conditioning_scale": [0.8, 0.5],
        "control_guidance_start": [0.0, 0.4],
        "control_guidance_end": [0.7, 1.0],
    }
    if count == 1:
        settings = {name: values[0] for name, values in settings.items()}
    expected = reference(
        num_frames=FRAMES,
        num_inference_steps=5,
        latents=noise_of().double(),
        output_type="latent",
        **settings,
        **COMMON,
    ).frames
    model = opened(saved, **{f"controlnet__n{n}": f"net{n}.safetensors" for n in range(count)})
    extra = {
        "control.n0": str(tmp_path / "clip0"),
        "control_scale.n0": 0.8,
        "control_span.n0": [0.0, 0.7],
        "control.n1": str(tmp_path / "clip1"),
        "control_scale.n1": 0.5,
        "control_span.n1": [0.4, 1.0],
    }
    extra = {name: value for name, value in extra.items() if count == 2 or name.endswith("n0")}
    result = latents(model, 5, **extra)
    assert (result - expected).abs().max() <= 1e-4
    other = latents(model, 5, **(extra | {"control_span.n0": [0.0, 1.0]}))
    assert (other - expected).abs().max() > 1e-3


@pytest.mark.parametrize("span", [(0.0, 0.34), (0.4, 1.0)])
def test_control_spans_of_an_edit_cover_its_remaining_steps(parts, saved, size, tmp_path, monkeypatch, span):
    """Strength 0.75 of five steps leaves three; the spans select the first and the last."""
    from diffusers import AnimateDiffVideoToVideoControlNetPipeline
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from diffusers.pipelines.animatediff import pipeline_animatediff_video2video_controlnet as module

    from kinema import tasks

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    reference = AnimateDiffVideoToVideoControlNetPipeline(**parts, controlnet=diffusers_nets(saved, size)[0])
    reference = reference.to(torch.float32)
    reference.set_progress_bar_config(disable=True)
    monkeypatch.setattr(module, "randn_tensor", lambda *_a, **_k: noise_of().transpose(1, 2))
    source, paths = write_images(tmp_path / "source", FRAMES, SIDE, seed=7)
    images, _ = write_images(tmp_path / "control", FRAMES, SIDE)
    expected = reference(
        video=source,
        conditioning_frames=images,
        strength=0.75,
        num_inference_steps=5,
        controlnet_conditioning_scale=0.8,
        control_guidance_start=span[0],
        control_guidance_end=span[1],
        output_type="latent",
        **COMMON,
    ).frames
    video = torch.cat([read.read_image(path) for path in paths], dim=2)
    edited = Piece(video, torch.ones_like(video[:, :1]), Release("strength", 0.75))
    canvas = Canvas(Shape.of(video), (edited,))
    monkeypatch.setitem(tasks.TASKS, "edit", tasks.Task(lambda r: r, lambda _r, _e: canvas))
    model = load(
        saved / "pipeline", add={"controlnet.n0": saved / "net0.safetensors"}, overrides={"norms": "diffusers"}
    )
    extra = {"control.n0": str(tmp_path / "control"), "control_scale.n0": 0.8, "control_span.n0": list(span)}
    request = Request(task="edit", frames=FRAMES, steps=5, strength=0.75, extra=extra, **ASK)
    result = model.run(request, noise=noise_of(), output="latents").video
    assert (result - expected).abs().max() <= 1e-4
    whole = extra | {"control_span.n0": [0.0, 1.0]}
    other = model.run(request.with_(extra=whole), noise=noise_of(), output="latents").video
    assert (other - expected).abs().max() > 1e-3


# ------------------------------------------------------------------------------------- IP-Adapter


@pytest.mark.parametrize("which", ["plain", "plus", "both"])
def test_image_prompts_equal_the_pipeline_with_ip_adapters(parts, saved, tmp_path, which, adapter_of, nested, size):
    """Two images for one adapter; two adapters with their own scales."""
    from diffusers import AnimateDiffPipeline, UNetMotionModel
    from transformers import CLIPImageProcessor

    unet = UNetMotionModel.from_config(parts["unet"].config)
    unet.load_state_dict(parts["unet"].state_dict())
    kinds = {"plain": [PLAIN], "plus": [PLUS], "both": [PLAIN, PLUS]}[which]
    reference = AnimateDiffPipeline(
        **(parts | {"unet": unet}),
        image_encoder=image_encoder(),
        feature_extractor=CLIPImageProcessor(size=VISION.side, crop_size=VISION.side),
    ).to(torch.float64)
    reference.set_progress_bar_config(disable=True)
    seeds = {"plain": 0, "plus": 1}
    tables = [nested(adapter_of(kind, size, seed=seeds[kind.kind])) for kind in kinds]
    reference.load_ip_adapter(tables, [""] * len(kinds), [""] * len(kinds), image_encoder_folder=None)
    scales = [0.7, 0.4][: len(kinds)]
    reference.set_ip_adapter_scale(scales)
    reference.unet.to(torch.float64)
    images, paths = write_images(tmp_path / "images", 3, VISION.side)
    expected = reference(
        num_frames=FRAMES,
        num_inference_steps=3,
        latents=noise_of().double(),
        ip_adapter_image=[images[:2], images[2]][: len(kinds)],
        output_type="latent",
        **COMMON,
    ).frames
    files_of = {"plain": "plain.safetensors", "plus": "plus.bin"}
    model = opened(
        saved, image_encoder="image_encoder", **{f"ip_adapter__{kind.kind}": files_of[kind.kind] for kind in kinds}
    )
    prompts = [paths[:2], paths[2]]
    extra = {f"ip_image.{kind.kind}": prompts[n] for n, kind in enumerate(kinds)}
    extra |= {f"ip_scale.{kind.kind}": scales[n] for n, kind in enumerate(kinds)}
    result = latents(model, 3, **extra)
    assert (result - expected).abs().max() <= 1e-4
    without = latents(model, 3)
    assert (without - expected).abs().max() > 1e-3


# -------------------------------------------------------------------------------------------- PIA


@pytest.mark.parametrize(("affinity", "number"), [("small", 0), ("loop-large", 5), ("style-large", 8)])
def test_an_animated_image_equals_the_pia_pipeline(parts, oracle, tmp_path, monkeypatch, affinity, number, size):
    from diffusers import PIAPipeline
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    torch.manual_seed(0)
    unet = oracle.randomised(oracle.motion_unet(replace(size, in_channels=9)))
    components = parts | {"unet": unet}
    reference = PIAPipeline(**components).to(torch.float32)
    reference.save_pretrained(tmp_path / "pia")
    reference = reference.to(torch.float64)
    reference.set_progress_bar_config(disable=True)
    images, paths = write_images(tmp_path / "images", 1, SIDE)
    expected = reference(
        image=images[0],
        num_frames=FRAMES,
        num_inference_steps=3,
        latents=noise_of().double(),
        motion_scale=number,
        output_type="latent",
        **COMMON,
    ).frames
    model = load(tmp_path / "pia", overrides={"norms": "diffusers"}, dtype=torch.float64)
    assert (model.system.config.motion, model.system.config.in_channels) == ("pia", 4)
    request = Request(task="animate", image=paths[0], frames=FRAMES, steps=3, extra={"affinity": affinity}, **ASK)
    result = model.run(request, noise=noise_of(), output="latents").video
    assert (result - expected).abs().max() <= 1e-4
    if affinity == "small":
        other = model.run(request.with_(extra={"affinity": "large"}), noise=noise_of(), output="latents").video
        assert (other - expected).abs().max() > 1e-4
