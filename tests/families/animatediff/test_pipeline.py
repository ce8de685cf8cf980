"""Whole pipelines: the same folder and noise give the same clip here and in diffusers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kinema.api import load
from kinema.canvas import Block, Canvas
from kinema.families.animatediff.config import IMAGE_BETAS, MOTION_BETAS
from kinema.families.animatediff.model import AnimateDiff
from kinema.schema import BadRequest, Request, Shape

PROMPT, NEGATIVE = "a b c d", "z y"


@pytest.fixture(scope="module")
def parts(oracle, tmp_path_factory):
    """One random model as the components of a diffusers pipeline."""
    return oracle.components(oracle.letters, tmp_path_factory.mktemp("vocabulary") / "tokenizer")[1]


@pytest.fixture(scope="module")
def folder(parts, oracle, tmp_path_factory):
    """An AnimateDiff folder as saved by diffusers: the motion module is in the U-Net and in its own folder."""
    from diffusers import AnimateDiffPipeline

    adapter = oracle.motion_adapter(oracle.letters)
    pipeline = AnimateDiffPipeline(**parts, motion_adapter=adapter, scheduler=oracle.scheduler())
    path = tmp_path_factory.mktemp("saved") / "animatediff"
    pipeline.save_pretrained(path)
    return path


def noise_of(frames=8, batch=1):
    return torch.randn(batch, 4, frames, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_clips_equal_the_diffusers_pipeline(folder, guidance):
    from diffusers import AnimateDiffPipeline

    noise = noise_of()
    settings = {"num_inference_steps": 3, "guidance_scale": guidance, "num_frames": 8, "height": 16, "width": 16}
    reference = AnimateDiffPipeline.from_pretrained(folder)
    reference.set_progress_bar_config(disable=True)
    expected = reference(PROMPT, negative_prompt=NEGATIVE, latents=noise.clone(), output_type="pt", **settings).frames
    model = load(folder, overrides={"norms": "diffusers"})
    assert (model.system.config.motion, model.system.config.betas) == ("v2", MOTION_BETAS)
    request = Request(
        prompt=PROMPT, negative_prompt=NEGATIVE, steps=3, guidance=guidance, frames=8, height=16, width=16, seed=0
    )
    result = model.run(request, noise=noise).video
    assert ((result.transpose(1, 2) + 1) / 2 - expected).abs().max() <= 1e-4
    official = load(folder).run(request, noise=noise).video
    assert (official - result).abs().max() > 1e-3


def test_a_single_frame_equals_the_image_model(parts, folder, oracle):
    """A single frame skips the motion module and uses the image model's betas, even if those of clips differ."""
    from diffusers import StableDiffusionPipeline

    image = oracle.image_unet(oracle.letters)
    image.load_state_dict({k: v for k, v in parts["unet"].state_dict().items() if ".motion_modules." not in k})
    reference = StableDiffusionPipeline(
        **(parts | {"unet": image.eval()}),
        scheduler=oracle.scheduler(IMAGE_BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    reference.set_progress_bar_config(disable=True)
    noise = noise_of(frames=1)
    settings = {"num_inference_steps": 3, "guidance_scale": 4.0, "height": 16, "width": 16, "output_type": "pt"}
    expected = reference(PROMPT, negative_prompt=NEGATIVE, latents=noise[:, :, 0].clone(), **settings).images
    request = Request(
        prompt=PROMPT, negative_prompt=NEGATIVE, steps=3, guidance=4.0, frames=1, height=16, width=16, seed=0
    )
    result = load(folder, overrides={"betas": IMAGE_BETAS}).run(request, noise=noise).video[:, :, 0]
    assert ((result + 1) / 2 - expected).abs().max() <= 1e-4


def test_v_prediction_with_zero_terminal_snr_equals_the_diffusers_pipeline(folder, tmp_path):
    """Four steps: diffusers' DDIM goes to t - 1000 // steps, which is the next timestep only if steps divides 1000."""
    import shutil

    from diffusers import AnimateDiffPipeline

    copy = shutil.copytree(folder, tmp_path / "copy")
    place = copy / "scheduler" / "scheduler_config.json"
    settings = json.loads(place.read_text()) | {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    place.write_text(json.dumps(settings))
    noise = noise_of()
    reference = AnimateDiffPipeline.from_pretrained(copy)
    reference.set_progress_bar_config(disable=True)
    sizes = {"num_frames": 8, "height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 4.0}
    expected = reference(PROMPT, negative_prompt=NEGATIVE, latents=noise.clone(), output_type="pt", **sizes).frames
    model = load(copy, overrides={"norms": "diffusers"})
    assert (model.system.config.predicts, model.system.config.zero_snr) == ("v", True)
    request = Request(
        prompt=PROMPT, negative_prompt=NEGATIVE, steps=4, guidance=4.0, frames=8, height=16, width=16, seed=0
    )
    result = model.run(request, noise=noise).video
    assert ((result.transpose(1, 2) + 1) / 2 - expected).abs().max() <= 1e-4
    noisy = load(folder, overrides={"norms": "diffusers"}).run(request, noise=noise).video
    assert (noisy - result).abs().max() > 1e-2


def test_a_folder_without_a_part_or_with_another_prediction_type_raises(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    scheduler = json.loads((copy / "scheduler" / "scheduler_config.json").read_text())
    (copy / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(scheduler | {"prediction_type": "flow_prediction"})
    )
    with pytest.raises(BadRequest, match="has prediction_type 'flow_prediction'; expected epsilon, v_prediction or"):
        load(copy)
    shutil.rmtree(copy / "vae")
    with pytest.raises(BadRequest, match="lacks vae/"):
        load(copy)


# ------------------------------------------------------------------------------------- requests


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


def ask(**fields):
    return Request(**({"prompt": PROMPT, "seed": 1, "steps": 2, "height": 16, "width": 16} | fields))


def test_more_frames_than_positions_raise_with_the_options_that_help(model):
    with pytest.raises(BadRequest, match=r"frames is 20.*handles 16 at a time.*--window.*--overlap"):
        model.run(ask(frames=20))
    still = model.run(ask(frames=20, window=8)).video
    assert still.shape[2] == 20
    assert not torch.equal(model.run(ask(frames=20, window=8, window_places="uniform")).video, still)
    assert model.run(ask(frames=20, overlap=4)).shape.frames == 20


def test_stretched_positions_allow_longer_clips(folder):
    assert load(folder, overrides={"stretch": 20}).run(ask(frames=20)).shape.frames == 20


def test_prompt_spans_and_effect_change_the_clip(model):
    plain = model.run(ask(frames=4)).video
    assert torch.equal(model.run(ask(frames=4, prompt_spans={"0-3": PROMPT}, extra={"effect": 1.0})).video, plain)
    interpolated = model.run(ask(frames=4, prompt_spans={3: "z z z"})).video
    assert not torch.equal(interpolated, plain)
    assert not torch.equal(model.run(ask(frames=4, prompt_spans={"2-3": "z z z"})).video, interpolated)
    still = model.run(ask(frames=4, extra={"effect": 0})).video
    assert not torch.equal(still, plain)


def test_prompt_frames_outside_the_clip_raise(model):
    with pytest.raises(BadRequest, match="there is a prompt at frame 9; this clip has frames 0 to 3"):
        model.run(ask(frames=4, prompt_spans={9: "x"}))


def test_contexts_are_interpolated_between_neighbouring_prompts(model):
    """Bit-equal to the interpolation written out."""
    system = model.system

    def conditions_of(request, canvas):
        return system.condition(system.encode_prompt(request_of("a", request.prompt_spans)), request, canvas)

    by_text = {
        text: system.condition(system.encode_prompt(request_of(text)), request_of(text), canvas_of(12))
        for text in "abc"
    }
    row = {text: conditions.branches["positive"].context_BKLC[0] for text, conditions in by_text.items()}
    stops = {0: "a", 4: "b", 9: "c"}
    rows = []
    for frame in range(12):
        before = max(stop for stop in stops if stop <= frame)
        after = min((stop for stop in stops if stop > frame), default=before)
        share = (frame - before) / (after - before) if after > before else 0.0
        rows.append(torch.lerp(row[stops[before]], row[stops[after]], share))
    conditions = conditions_of(request_of("a", {4: "b", 9: "c"}), canvas_of(12))
    assert torch.equal(conditions.branches["positive"].context_BKLC[0], torch.cat(rows))
    part = request_of("a", {4: "b", 9: "c"}).with_(frames=5)
    later = conditions_of(part, replace(canvas_of(5), block=Block(6, 5)))
    assert torch.equal(later.branches["positive"].context_BKLC[0], torch.cat(rows[6:11]))


def request_of(prompt, spans=None):
    return Request(prompt=prompt, prompt_spans=spans or {}, frames=12, height=16, width=16, steps=1, seed=1)


def canvas_of(frames):
    return Canvas(Shape(1, 3, frames, 16, 16))


def test_effect_0_makes_frames_independent(model):
    noise = noise_of(frames=4)
    still = model.run(ask(frames=4, extra={"effect": 0}), noise=noise, output="latents").video
    other = noise.clone()
    other[:, :, 2] = 0
    changed = model.run(ask(frames=4, extra={"effect": 0}), noise=other, output="latents").video
    assert torch.allclose(still[:, :, [0, 1, 3]], changed[:, :, [0, 1, 3]], atol=1e-6)


def test_clip_skip_and_long_prompts_change_the_clip(model):
    plain = model.run(ask(frames=2)).video
    assert torch.equal(model.run(ask(frames=2, extra={"clip_skip": 1})).video, plain)
    assert not torch.equal(model.run(ask(frames=2, extra={"clip_skip": 2})).video, plain)
    words = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    long = " ".join(words)
    cut = model.run(ask(frames=2, prompt=" ".join(words[:18]))).video
    assert not torch.equal(model.run(ask(frames=2, prompt=long)).video, cut)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"clip_skip": 0}, "clip_skip is 0"),
        ({"clip_skip": 3}, r"clip_skip is 3; expected a whole number from 1 \(nothing skipped\) to 2"),
        ({"effect": [1, 0]}, "effect is .* or one per frame"),
        ({"effect": -1}, "effect is -1"),
        ({"clipskip": 2}, "did you mean clip_skip"),
    ],
)
def test_options_out_of_range_raise_by_name(model, extra, message):
    with pytest.raises(BadRequest, match=message):
        model.run(ask(frames=4, extra=extra))


def test_clip_skip_leaves_every_text_encoder_a_layer():
    """A larger value would index hidden states from the other end."""
    from kinema.families.animatediff.conditioning import max_clip_skip
    from kinema.families.animatediff.config import PRESETS

    most = [max_clip_skip(PRESETS[name]) for name in ("image", "sdxl-image", "tiny")]
    assert most == [12, 11, 2]  # SDXL always skips one of its 12 and 32 layers


def test_half_precision_and_batches_with_prompt_spans_run(folder, model):
    half = load(folder, dtype=torch.bfloat16).run(ask(frames=4)).video
    assert (half - model.run(ask(frames=4)).video).abs().mean() < 0.1
    request = ask(frames=4, prompt_spans={3: "z z z"})
    both = model.run(request.with_(clips=2)).video
    assert torch.allclose(both[1:], model.run(request.with_(seed=2)).video, atol=1e-4)


# ------------------------------------------------------------------------------------------ SDXL


@pytest.mark.parametrize("negative", ["z y", ""])
def test_sdxl_clips_equal_the_diffusers_pipeline(oracle, tmp_path, negative):
    from diffusers import AnimateDiffSDXLPipeline

    texts = tuple(replace(size, vocabulary=64) for size in oracle.tiny_xl.text)
    config = replace(oracle.tiny_xl, text=texts)
    network = oracle.randomised(AnimateDiff(config))
    encoders = [oracle.clip_text(size) for size in texts]
    for encoder, mine in zip(encoders, (network.text_encoder, network.text_encoder_2), strict=True):
        oracle.same_weights(encoder, mine)
        encoder.config.bos_token_id, encoder.config.eos_token_id = 53, 54
        for part in encoder.modules():  # position of the pooled state
            if hasattr(part, "eos_token_id"):
                part.eos_token_id = 54
    first, second = (oracle.tokenizer(tmp_path / name) for name in ("one", "two"))
    second.pad_token = "a"  # token 0, as SDXL's second tokenizer has "!"
    reference = AnimateDiffSDXLPipeline(
        vae=oracle.same_weights(oracle.vae(config), network.vae),
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=first,
        tokenizer_2=second,
        unet=oracle.same_weights(oracle.motion_unet(config), network.unet),
        motion_adapter=oracle.motion_adapter(config),
        scheduler=oracle.scheduler(config.betas),
    )
    reference.save_pretrained(tmp_path / "xl")
    reference.set_progress_bar_config(disable=True)
    noise = noise_of(frames=4)
    expected = reference(
        PROMPT,
        negative_prompt=negative or None,
        num_inference_steps=3,
        guidance_scale=4.0,
        num_frames=4,
        height=16,
        width=16,
        latents=noise.clone(),
        output_type="latent",
    ).frames
    model = load(tmp_path / "xl", overrides={"norms": "diffusers"})
    assert (model.system.config.channels, model.system.config.size_embedding) == (config.channels, 8)
    request = Request(
        prompt=PROMPT, negative_prompt=negative, steps=3, guidance=4.0, frames=4, height=16, width=16, seed=0,
        sampler="ddim",
    )  # fmt: skip
    result = model.run(request, noise=noise, output="latents").video
    assert (result - expected).abs().max() <= 1e-4
