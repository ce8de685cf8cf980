"""SparseCtrl and video-to-video pipelines, from request to latents, against diffusers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kinema.api import load
from kinema.canvas import Canvas, Piece, Release
from kinema.schema import Request, Shape

ASK = {"prompt": "a b c d", "negative_prompt": "z y", "steps": 5, "guidance": 4.0, "height": 16, "width": 16, "seed": 0}
COMMON = {"prompt": "a b c d", "negative_prompt": "z y", "num_inference_steps": 5, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def parts(oracle, tmp_path_factory):
    """Components of a pipeline, and its SparseCtrl."""
    size = replace(oracle.letters, sparse="rgb", sparse_positions=16)
    network, components = oracle.components(size, tmp_path_factory.mktemp("vocabulary") / "tokenizer")
    components |= {"motion_adapter": None, "scheduler": oracle.scheduler()}
    return components, oracle.same_weights(oracle.sparse(size), network.sparse)


@pytest.fixture(scope="module")
def saved(parts, tmp_path_factory):
    """Folders of a pipeline and of its SparseCtrl."""
    from diffusers import AnimateDiffVideoToVideoPipeline

    folder = tmp_path_factory.mktemp("saved")
    components, sparse = parts
    AnimateDiffVideoToVideoPipeline(**components).save_pretrained(folder / "pipeline")
    sparse.save_pretrained(folder / "sparsectrl")
    return folder


@pytest.fixture
def modes(monkeypatch):
    """Make diffusers encode to the mode of the latents, as Kinema does, instead of a sample."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


@pytest.fixture
def set_canvas(monkeypatch):
    """``set_canvas(verb, canvas)`` replaces the canvas that a verb builds."""
    from kinema import tasks

    def replace_canvas(verb, canvas):
        monkeypatch.setitem(tasks.TASKS, verb, tasks.Task(lambda r: r, lambda _r, _e: canvas))

    return replace_canvas


def random_images(count):
    from PIL import Image

    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (count, 16, 16, 3), generator=generator, dtype=torch.uint8)
    video = (pixels.permute(3, 0, 1, 2)[None] / 255.0) * 2 - 1
    return [Image.fromarray(frame.numpy()) for frame in pixels], video


@pytest.mark.parametrize("frames", [[0], [0, 5], [1, 4]], ids=["first", "ends", "keyframes"])
def test_conditioning_frames_equal_the_sparsectrl_pipeline(parts, saved, modes, set_canvas, frames):
    from diffusers import AnimateDiffSparseControlNetPipeline

    components, sparse = parts
    reference = AnimateDiffSparseControlNetPipeline(**components, controlnet=sparse).to(torch.float64)
    reference.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 6, 8, 8, generator=torch.Generator().manual_seed(3))
    images, video = random_images(len(frames))
    expected = reference(
        num_frames=6,
        height=16,
        width=16,
        conditioning_frames=images,
        controlnet_frame_indices=frames,
        controlnet_conditioning_scale=0.8,
        latents=noise.double(),
        output_type="latent",
        **COMMON,
    ).frames
    canvas = Canvas.of(torch.zeros(1, 3, 6, 16, 16), torch.zeros(1, 1, 6, 16, 16))
    canvas.video[:, :, frames], canvas.mask[:, :, frames] = video, 1
    set_canvas("animate", canvas)
    model = load(
        saved / "pipeline",
        add={"sparsectrl": saved / "sparsectrl"},
        overrides={"norms": "diffusers"},
        dtype=torch.float64,
    )
    request = Request(task="animate", frames=6, extra={"control_scale": 0.8}, **ASK)
    result = model.run(request, noise=noise, output="latents").video
    assert (result - expected).abs().max() <= 1e-4
    without = model.run(request.with_(honour="replacement"), noise=noise, output="latents").video
    assert (without - expected).abs().max() > 1e-2


def test_scribbles_equal_the_sparsectrl_pipeline(oracle, tmp_path):
    """Grey scribbles at frames 0 and 2, read by both as pixels from 0 to 1."""
    from diffusers import AnimateDiffSparseControlNetPipeline
    from PIL import Image

    size = replace(oracle.letters, vae_channels=(32, 32, 32, 32), height=64, width=64)
    size = replace(size, sparse="scribble", sparse_positions=16)
    network, result = oracle.components(size, tmp_path / "tokenizer")
    result |= {"motion_adapter": None, "scheduler": oracle.scheduler()}
    sparse = oracle.same_weights(oracle.sparse(size), network.sparse)
    reference = AnimateDiffSparseControlNetPipeline(**result, controlnet=sparse)
    reference.save_pretrained(tmp_path / "pipeline")
    sparse.save_pretrained(tmp_path / "sparsectrl")
    reference = reference.to(torch.float64)
    reference.set_progress_bar_config(disable=True)
    pixels = torch.randint(0, 256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    scribbles, frames = [Image.fromarray(each.numpy()) for each in pixels], [0, 2]
    noise = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = reference(
        num_frames=4,
        height=64,
        width=64,
        conditioning_frames=scribbles,
        controlnet_frame_indices=frames,
        controlnet_conditioning_scale=0.8,
        latents=noise.double(),
        output_type="latent",
        **COMMON,
    ).frames
    extra = {"scribble": {}, "control_scale": 0.8}
    for frame, scribble in zip(frames, scribbles, strict=True):
        scribble.save(tmp_path / f"{frame}.png")
        extra["scribble"][frame] = str(tmp_path / f"{frame}.png")
    model = load(
        tmp_path / "pipeline",
        add={"sparsectrl": tmp_path / "sparsectrl"},
        overrides={"norms": "diffusers"},
        dtype=torch.float64,
    )
    request = Request(frames=4, extra=extra, **(ASK | {"height": 64, "width": 64}))
    result = model.run(request, noise=noise, output="latents").video
    assert (result - expected).abs().max() <= 1e-4
    without = model.run(request.with_(extra={}), noise=noise, output="latents").video
    assert (without - expected).abs().max() > 1e-2


@pytest.mark.parametrize("strength", [0.4, 0.35, 0.75])  # 2, 1.75 and 3.75 steps of five
def test_edited_clips_equal_the_video_to_video_pipeline(parts, saved, modes, set_canvas, monkeypatch, strength):
    from diffusers import AnimateDiffVideoToVideoPipeline
    from diffusers.pipelines.animatediff import pipeline_animatediff_video2video as module

    reference = AnimateDiffVideoToVideoPipeline(**parts[0]).to(torch.float32)
    reference.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 6, 8, 8, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(module, "randn_tensor", lambda *_a, **_k: noise.transpose(1, 2))
    images, video = random_images(6)
    expected = reference(video=images, strength=strength, height=16, width=16, output_type="latent", **COMMON).frames
    edited = Piece(video, torch.ones_like(video[:, :1]), Release("strength", strength))
    set_canvas("edit", Canvas(Shape.of(video), (edited,)))
    model = load(saved / "pipeline", overrides={"norms": "diffusers"})
    request = Request(task="edit", frames=6, strength=strength, **ASK)
    result = model.run(request, noise=noise, output="latents").video
    assert (result - expected).abs().max() <= 1e-4
