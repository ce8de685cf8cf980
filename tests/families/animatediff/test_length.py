"""Clips longer than the motion module: FreeNoise and FreeInit against diffusers, attention windows, memory."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kinema.api import load
from kinema.diffusion.windows import attention_windows, windows
from kinema.families.animatediff import conditioning, recipe
from kinema.families.animatediff.control.ip_adapter import ImagePrompt
from kinema.families.animatediff.control.steering import Steering
from kinema.families.animatediff.motion.module import MotionControl, MotionModule
from kinema.media.metadata import read_recipe
from kinema.schema import BadRequest, Request

PROMPTS = {0: "a b c d", 5: "x y", 10: "ab z"}
FREE_NOISE = {"window": 8, "overlap": 6, "window_in": "attention", "noise_type": "shuffle-context"}


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(oracle, tmp_path_factory):
    """A random AnimateDiff pipeline as diffusers saves it."""
    from diffusers import AnimateDiffPipeline

    _, parts = oracle.components(oracle.letters, tmp_path_factory.mktemp("vocabulary") / "tokenizer")
    adapter = oracle.motion_adapter(oracle.letters)
    pipeline = AnimateDiffPipeline(**parts, motion_adapter=adapter, scheduler=oracle.scheduler())
    path = tmp_path_factory.mktemp("saved") / "animatediff"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture
def reference(folder):
    from diffusers import AnimateDiffPipeline

    pipeline = AnimateDiffPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, overrides={"norms": "diffusers"})


def ask(**fields):
    """A request with the settings common to both libraries."""
    common = {"prompt": "a b c d", "negative_prompt": "z y", "steps": 2, "guidance": 4.0, "height": 16, "width": 16}
    return Request(**(common | {"seed": 7} | fields))


def generate_with(pipeline, request, prompt=None):
    return pipeline(
        prompt or request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        num_frames=request.frames,
        height=request.height,
        width=request.width,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="latent",
    ).frames


# ------------------------------------------------------------------------------ against diffusers


def test_free_noise_equals_diffusers_with_prompt_spans(reference, model):
    """20 frames with 16 positions, in windows of 8 every 2 frames (`context_stride`)."""
    reference.enable_free_noise(context_length=8, context_stride=2)
    request = ask(frames=20, **FREE_NOISE, prompt_spans={5: PROMPTS[5], 10: PROMPTS[10]})
    expected = generate_with(reference, request, prompt=dict(PROMPTS))
    result = model.run(request, output="latents").video
    assert (result - expected).abs().max() <= 1e-4
    without_shuffle = model.run(request.with_(noise_type=None), output="latents").video
    in_denoiser = model.run(request.with_(window_in="denoiser"), output="latents").video
    assert min((without_shuffle - result).abs().max(), (in_denoiser - result).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("kind", "stop", "fast"),
    [("butterworth", (0.25, 0.25), False), ("gaussian", (0.4, 0.2), True), ("ideal", (0.3, 0.3), False)],
)
def test_free_init_equals_diffusers(reference, model, kind, stop, fast):
    reference.enable_free_init(
        num_iters=2,
        method=kind,
        spatial_stop_frequency=stop[0],
        temporal_stop_frequency=stop[1],
        use_fast_sampling=fast,
    )
    request = ask(frames=8, free_init=2, free_init_filter=kind, free_init_stop=stop, free_init_fast=fast)
    result = model.run(request, output="latents").video
    assert (result - generate_with(reference, request)).abs().max() <= 1e-4
    assert (result - model.run(request.with_(free_init=1), output="latents").video).abs().max() > 1e-2


def test_free_noise_and_free_init_together_equal_diffusers(reference, model):
    reference.enable_free_noise(context_length=8, context_stride=4)
    reference.enable_free_init(num_iters=2, order=2)
    request = ask(frames=20, **(FREE_NOISE | {"overlap": 4}), free_init=2, free_init_order=2)
    result = model.run(request, output="latents").video
    assert (result - generate_with(reference, request)).abs().max() <= 1e-4


# ------------------------------------------------------------------------ windows inside attention


def test_windowed_attention_is_the_weighted_mean_of_its_windows(oracle):
    """Attention and positions are per window; the feed-forward layer gets the mean."""
    module = oracle.randomised(MotionModule(32, 2, 16))
    block, x = module.transformer_blocks[0], normal(2, 20, 6, 32)
    total, weight = torch.zeros(2, 20, 6, 32), torch.zeros(20)
    for frames in windows(20, 8, 4):
        h, ramp = x[:, frames], torch.tensor([1.0, 2, 3, 4, 4, 3, 2, 1])
        for norm, attention in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
            h = h + attention.over_time(norm(h) + block.pos_embed(8)[:, None])
        total[:, frames] += ramp[:, None, None] * h
        weight[frames] += ramp
    mean = total / weight[:, None, None]
    expected = block.ff(block.norm3(mean), onto=mean)
    result = block(x.clone(), windows=attention_windows(20, 8, 4, "pyramid"))
    assert (result - expected).abs().max() <= 1e-5


def test_a_window_of_the_whole_clip_changes_nothing_and_loops_wrap_around(model):
    plain = model.run(ask(frames=8), output="latents").video
    assert torch.equal(model.run(ask(frames=8, window=8, window_in="attention"), output="latents").video, plain)
    fields = {"frames": 20, "window": 8, "window_in": "attention", "overlap": 4}
    noise = normal(1, 4, 20, 8, 8)
    straight, looped = (
        model.run(ask(loop=loop, steps=1, **fields), noise=noise, output="latents").video for loop in (False, True)
    )
    assert not torch.equal(straight, looped)
    turned = torch.roll(noise, 4, dims=2)  # by a whole number of windows, to which a loop is invariant
    again = model.run(ask(loop=True, steps=1, **fields), noise=turned, output="latents").video
    assert (torch.roll(again, -4, dims=2) - looped).abs().max() <= 1e-4


@pytest.mark.parametrize("window_in", ["denoiser", "attention"])
def test_sparsectrl_conditions_a_clip_longer_than_its_positions(oracle, window_in, tmp_path):
    """Windows of frames 0 to 15 and 8 to 23 each get their own conditioning frame: the first and the last."""
    for name, colour in (("red", "#c02020"), ("blue", "#2020c0")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{name}.png")
    sparse_model = load("animatediff", preset="tiny", overrides={"sparse": "rgb", "sparse_positions": 16})
    oracle.randomised(sparse_model.system.model)

    def generate(first, last):
        images = {"image": str(tmp_path / f"{first}.png"), "last_image": str(tmp_path / f"{last}.png")}
        settings = {"window": 16, "overlap": 8, "window_in": window_in, "honour": "native"}
        request = Request(task="interpolate", frames=24, prompt="a red ball", seed=1, steps=1, **settings, **images)
        return sparse_model.run(request, output="latents").video  # latents, so known pixels are not pasted

    plain = generate("red", "red")
    for other, near, far in (
        (generate("blue", "red"), slice(0, 8), slice(16, 24)),
        (generate("red", "blue"), slice(16, 24), slice(0, 8)),
    ):
        assert (other - plain)[:, :, near].abs().amax((0, 1, 3, 4)).min() > 1e-4
        if window_in == "denoiser":  # attention windows that share frames influence each other
            assert torch.equal(other[:, :, far], plain[:, :, far])


# ------------------------------------------------------------------------------------------ memory


class LiveMemory(TorchDispatchMode):
    """Peak number of bytes in live tensor storages."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self._counts = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, tensor):
        import weakref

        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        count = self._counts.get(key, 0)
        self._counts[key] = count + 1
        self.now += 0 if count else size
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key, size):
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]
            self.now -= size


def peak_of(model, **fields):
    with LiveMemory() as live:
        model.run(Request(prompt="a red ball", seed=1, steps=1, **fields), output="latents")
    return live.peak


def test_windows_of_16_frames_need_the_memory_of_16_frames():
    model = load("animatediff", preset="tiny", overrides={"stretch": 64, "frames": 16})
    peak_of(model, frames=2)  # loads the weights
    short, long, whole = (peak_of(model, frames=n, window=w) for n, w in ((16, None), (64, 16), (64, None)))
    assert long <= 1.25 * short
    assert whole >= 1.4 * short  # spatial layers run on a few images at a time, so it is far below 4 times


def test_the_prompt_is_encoded_once_however_many_windows_and_passes(model, monkeypatch):
    from kinema.families.animatediff.prompting import PromptEncoder

    encoded_prompts = []
    real = PromptEncoder.encode

    def counting(self, text):
        encoded_prompts.append(text)
        return real(self, text)

    monkeypatch.setattr(PromptEncoder, "encode", counting)
    model.run(ask(frames=30, window=8, steps=2, free_init=2), output="latents")
    once = len(encoded_prompts)
    encoded_prompts.clear()
    model.run(ask(frames=8, steps=1), output="latents")
    assert once == len(encoded_prompts) == 3  # the prompt, the negative prompt and the empty prompt


# ------------------------------------------------------------------------------------------ requests


@pytest.mark.parametrize("weights", ["flat", "pyramid", "relative", "overlap-linear"])
@pytest.mark.parametrize("places", ["static", "uniform"])
def test_every_kind_of_window_generates_every_frame(model, weights, places):
    clip = model.run(ask(frames=20, steps=2, window=8, window_places=places, window_weights=weights))
    assert clip.shape.frames == 20
    assert bool(clip.video.isfinite().all())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window_weights": "flat"}, "--window-weights applies only with --window: give --window"),
        ({"window_in": "attention"}, "--window-in applies only with --window"),
        ({"noise_type": "shuffle-context"}, "--noise-type applies only with --window"),
        ({"window_stride": 2}, "--window-stride applies only with --window"),
        ({"window": 8, "window_stride": 2}, "needs --window-places uniform"),
        ({"window": 8, "window_in": "attention", "window_places": "uniform"}, "supports only static windows"),
        ({"window": 20, "window_in": "attention"}, "window is 20 frames; .* handles at most 16 at a time"),
        ({"free_init_filter": "box"}, "--free-init-filter applies only with --free-init"),
        ({"free_init": 0}, "free_init is 0"),
        ({"free_init": 2, "free_init_stop": (0.2, 2)}, "free_init_stop is"),
    ],
)
def test_incompatible_options_raise_by_name(model, fields, message):
    with pytest.raises(BadRequest, match=message):
        model.run(ask(frames=12, **fields))


def test_families_without_attention_windows_and_edits_with_free_init_raise(tmp_path):
    other = load("zoetrope", preset="tiny")
    with pytest.raises(BadRequest, match="zoetrope/tiny does not support --window-in attention"):
        other.generate("a red ball", frames=16, window=8, window_in="attention")
    with pytest.raises(BadRequest, match="free_init has no effect"):
        other.generate("a red ball", free_init=2)
    with pytest.raises(BadRequest, match="edit does not support --free-init"):
        other.edit(tmp_path / "clip.mp4", "a red ball", free_init=2)


def test_step_events_count_all_passes(model):
    from kinema.events import Step

    events = []
    model.run(ask(frames=2, steps=4, free_init=2, free_init_fast=True), on_event=events.append)
    assert [(e.index, e.total) for e in events if isinstance(e, Step)] == [(i, 6) for i in range(1, 7)]


def test_the_command_line_generates_long_clips_with_a_complete_recipe(tmp_path):
    from kinema.cli.main import main

    clip = tmp_path / "long.mp4"
    words = "generate ball --model animatediff/tiny --steps 2 --seed 1 --frames 24 --window 16 --overlap 12 --quiet"
    length = "--window-in attention --noise-type shuffle-context --free-init 2 --free-init-stop 0.2,0.3"
    assert main([*words.split(), *length.split(), "-o", str(clip)]) == 0
    request = read_recipe(clip)["stages"][0]["request"]
    assert (request["window_in"], request["noise_type"], request["free_init_stop"]) == (
        "attention",
        "shuffle-context",
        [0.2, 0.3],
    )
    assert Request.from_json(json.dumps(request)).free_init_stop == (0.2, 0.3)
    assert main(["generate", "ball", "--model", "animatediff/tiny", "--frames", "24", "--quiet"]) == 2


# ------------------------------------------------------------------------------------------ blocks


def test_prompt_spans_count_frames_of_the_whole_clip_across_blocks(monkeypatch):
    """Blocks of frames 0 to 15 and 4 to 19 get the same prompt rows as in one pass."""
    tiny, contexts = load("animatediff", preset="tiny"), []
    run_unet = recipe.run_unet

    def recording(model, config, z, level, condition):
        contexts.append(condition.context_BKLC[0])
        return run_unet(model, config, z, level, condition)

    monkeypatch.setattr(recipe, "run_unet", recording)
    request = Request(
        prompt="a red ball", seed=1, steps=1, guidance=1.0, frames=20, prompt_spans={8: "a blue star", 19: "spins"}
    )
    assert tiny.run(request.with_(overlap=12)).shape.frames == 20
    first, second = contexts
    tiny.run(request.with_(window=16, window_in="attention"))
    whole = contexts[-1]
    assert len(whole) == 20
    assert torch.equal(first, whole[:16])
    assert torch.equal(second, whole[4:])
    assert not torch.equal(first[0], first[4])


def test_scribbles_of_a_block_wise_clip_go_to_the_block_with_their_frame(tmp_path):
    Image.new("RGB", (16, 16), "white").save(tmp_path / "scribble.png")
    scribble = str(tmp_path / "scribble.png")
    request = Request(frames=16, height=16, width=16, extra={"scribble": {2: scribble, 19: scribble}})
    at = [
        conditioning.scribble_input(request, start).mask_B1THW[0, 0, :, 0, 0].nonzero().flatten().tolist()
        for start in (0, 4)
    ]
    assert at == [[2], [15]]
    assert conditioning.scribble_input(request.with_(frames=12), 5) is None


@pytest.mark.parametrize(
    ("overrides", "extra"),
    [
        ({"sparse": "rgb"}, {"control_scale": [1.0] * 20}),
        ({"motion": "pia"}, {"affinity": [0.5] * 20}),
    ],
)
def test_per_frame_options_of_block_wise_clips_raise_before_weights_are_loaded(overrides, extra):
    tiny = load("animatediff", preset="tiny", overrides=overrides)
    with pytest.raises(
        BadRequest, match=f"per-frame {next(iter(extra))} does not work block by block; give a --window"
    ):
        tiny.generate("a red ball", frames=20, overlap=12, extra=extra)
    assert tiny.system.runtime.model is None


# ---------------------------------------------------------------------------- windows and regions


def test_windows_select_their_part_of_per_frame_maps(oracle):
    """With equal weights and no overlap, windows equal the module run on each part."""
    module = oracle.randomised(MotionModule(32, 2, 16))
    x, scale = normal(16, 32, 4, 4), torch.linspace(0, 2, 16)[:, None, None, None]
    result = module(x, 16, MotionControl(scale_T1HW=scale, windows=attention_windows(16, 8, 0, "flat")))
    for part in (slice(0, 8), slice(8, 16)):
        alone = module(x[part], 8, MotionControl(scale_T1HW=scale[part]))
        assert (result[part] - alone).abs().max() <= 1e-5


def test_a_condition_is_sliced_by_the_frames_of_a_window():
    """Everything per frame is sliced; values shared by all frames stay the same."""
    frames, at = 6, [4, 5, 0]
    condition = conditioning.Condition(
        context_BKLC=normal(1, frames, 3, 8),
        motion_control=MotionControl(effect_T1HW=normal(frames, 1, 1, 1), scale_T1HW=normal(frames, 1, 2, 2)),
        sparse=conditioning.SparseInput(normal(1, 4, frames, 2, 2), normal(1, 1, frames, 2, 2), normal(frames)),
        steerings=(Steering(0, normal(frames, 8, 2, 2), normal(frames), 0.0, 1.0),),
        image_prompts=(ImagePrompt(0, normal(frames, 4, 8), normal(frames)),),
        first_BCTHW=normal(1, 5, frames, 2, 2),
    )
    result = condition.of(at)
    pairs = [
        (result.context_BKLC, condition.context_BKLC[:, at]),
        (result.motion_control.effect_T1HW, condition.motion_control.effect_T1HW[at]),
        (result.motion_control.scale_T1HW, condition.motion_control.scale_T1HW[at]),
        (result.sparse.frames_BCTHW, condition.sparse.frames_BCTHW[:, :, at]),
        (result.sparse.mask_B1THW, condition.sparse.mask_B1THW[:, :, at]),
        (result.sparse.scale_T, condition.sparse.scale_T[at]),
        (result.steerings[0].hint_TChw, condition.steerings[0].hint_TChw[at]),
        (result.steerings[0].scale_T, condition.steerings[0].scale_T[at]),
        (result.image_prompts[0].tokens_RLC, condition.image_prompts[0].tokens_RLC[at]),
        (result.image_prompts[0].scale_T, condition.image_prompts[0].scale_T[at]),
        (result.first_BCTHW, condition.first_BCTHW[:, :, at]),
    ]
    assert all(torch.equal(mine, expected) for mine, expected in pairs)
    prompt = ImagePrompt(0, normal(1, 4, 8), normal(1))
    shared = conditioning.Condition(normal(1, 1, 3, 8), image_prompts=(prompt,)).of(at)
    (prompt,) = shared.image_prompts
    assert (shared.context_BKLC.shape[1], len(prompt.tokens_RLC), len(prompt.scale_T)) == (1, 1, 1)
