"""Clips longer than the motion module: FreeNoise and FreeInit against diffusers, windows inside attention, memory."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kinema.api import load
from kinema.diffusion.windows import views, windows
from kinema.families.animatediff import conditioning, recipe
from kinema.families.animatediff.control.ip_adapter import Picture
from kinema.families.animatediff.control.steering import Steering
from kinema.families.animatediff.motion.module import MotionModule, Moving
from kinema.media.metadata import read_recipe
from kinema.schema import BadRequest, Request

TRAVEL = {0: "a b c d", 5: "x y", 10: "ab z"}
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
def theirs(folder):
    from diffusers import AnimateDiffPipeline

    pipeline = AnimateDiffPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, overrides={"norms": "diffusers"})


def ask(**told):
    """The request, and what of it diffusers is told."""
    common = {"prompt": "a b c d", "negative_prompt": "z y", "steps": 2, "guidance": 4.0, "height": 16, "width": 16}
    return Request(**(common | {"seed": 7} | told))


def made_by(pipeline, request, prompt=None):
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


def test_free_noise_equals_diffusers_also_with_a_prompt_that_travels(theirs, model):
    """More frames than positions (20 and 16); windows of 8 every 2 frames, as `context_stride` has it."""
    theirs.enable_free_noise(context_length=8, context_stride=2)
    request = ask(frames=20, **FREE_NOISE, prompt_spans={5: TRAVEL[5], 10: TRAVEL[10]})
    expected = made_by(theirs, request, prompt=dict(TRAVEL))
    made = model.run(request, output="latents").video
    assert (made - expected).abs().max() <= 1e-4
    fresh = model.run(request.with_(noise_type=None), output="latents").video
    around = model.run(request.with_(window_in="denoiser"), output="latents").video
    assert min((fresh - made).abs().max(), (around - made).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("kind", "stop", "fast"),
    [("butterworth", (0.25, 0.25), False), ("gaussian", (0.4, 0.2), True), ("ideal", (0.3, 0.3), False)],
)
def test_free_init_equals_diffusers(theirs, model, kind, stop, fast):
    theirs.enable_free_init(
        num_iters=2,
        method=kind,
        spatial_stop_frequency=stop[0],
        temporal_stop_frequency=stop[1],
        use_fast_sampling=fast,
    )
    request = ask(frames=8, free_init=2, free_init_filter=kind, free_init_stop=stop, free_init_fast=fast)
    made = model.run(request, output="latents").video
    assert (made - made_by(theirs, request)).abs().max() <= 1e-4
    assert (made - model.run(request.with_(free_init=1), output="latents").video).abs().max() > 1e-2


def test_free_noise_and_free_init_together_equal_diffusers(theirs, model):
    theirs.enable_free_noise(context_length=8, context_stride=4)
    theirs.enable_free_init(num_iters=2, order=2)
    request = ask(frames=20, **(FREE_NOISE | {"overlap": 4}), free_init=2, free_init_order=2)
    made = model.run(request, output="latents").video
    assert (made - made_by(theirs, request)).abs().max() <= 1e-4


# ------------------------------------------------------------------------ windows inside attention


def test_a_motion_module_in_views_is_the_weighted_mean_of_its_windows(oracle):
    """Attention by window, positions from 0 in each; the feed-forward layer sees the mean."""
    module = oracle.randomised(MotionModule(32, 2, 16))
    block, x = module.transformer_blocks[0], normal(2, 20, 6, 32)
    seen, weight = torch.zeros(2, 20, 6, 32), torch.zeros(20)
    for frames in windows(20, 8, 4):
        h, ramp = x[:, frames], torch.tensor([1.0, 2, 3, 4, 4, 3, 2, 1])
        for norm, attention in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
            h = h + attention.over_time(norm(h) + block.pos_embed(8)[:, None])
        seen[:, frames] += ramp[:, None, None] * h
        weight[frames] += ramp
    mean = seen / weight[:, None, None]
    expected = block.ff(block.norm3(mean), onto=mean)
    made = block(x.clone(), views=views(20, 8, 4, "pyramid"))
    assert (made - expected).abs().max() <= 1e-5


def test_views_that_hold_the_clip_change_nothing_and_loops_see_round_the_end(model):
    plain = model.run(ask(frames=8), output="latents").video
    assert torch.equal(model.run(ask(frames=8, window=8, window_in="attention"), output="latents").video, plain)
    told = {"frames": 20, "window": 8, "window_in": "attention", "overlap": 4}
    noise = normal(1, 4, 20, 8, 8)
    straight, looped = (
        model.run(ask(loop=loop, steps=1, **told), noise=noise, output="latents").video for loop in (False, True)
    )
    assert not torch.equal(straight, looped)
    turned = torch.roll(noise, 4, dims=2)  # by a whole number of windows: a loop has no beginning
    again = model.run(ask(loop=True, steps=1, **told), noise=turned, output="latents").video
    assert (torch.roll(again, -4, dims=2) - looped).abs().max() <= 1e-4


@pytest.mark.parametrize("window_in", ["denoiser", "attention"])
def test_sparse_ctrl_holds_frames_of_a_clip_longer_than_its_positions(oracle, window_in, tmp_path):
    """Windows of frames 0 to 15 and 8 to 23 are shown the given frame that is theirs: the first, and the last."""
    for name, colour in (("red", "#c02020"), ("blue", "#2020c0")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{name}.png")
    held = load("animatediff", preset="tiny", overrides={"sparse": "rgb", "sparse_positions": 16})
    oracle.randomised(held.system.model)

    def made(first, last):
        told = {"image": str(tmp_path / f"{first}.png"), "last_image": str(tmp_path / f"{last}.png")}
        how = {"window": 16, "overlap": 8, "window_in": window_in, "honour": "native"}
        request = Request(task="interpolate", frames=24, prompt="a red ball", seed=1, steps=1, **how, **told)
        return held.run(request, output="latents").video  # nothing is pasted into latents

    plain = made("red", "red")
    for other, near, far in (
        (made("blue", "red"), slice(0, 8), slice(16, 24)),
        (made("red", "blue"), slice(16, 24), slice(0, 8)),
    ):
        assert (other - plain)[:, :, near].abs().amax((0, 1, 3, 4)).min() > 1e-4
        if window_in == "denoiser":  # inside attention, windows that share frames tell each other
            assert torch.equal(other[:, :, far], plain[:, :, far])


# ------------------------------------------------------------------------------------------ memory


class Live(TorchDispatchMode):
    """The most bytes that tensors held at one time, by their storages."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self._held = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor)
        self.peak = max(self.peak, self.now)
        return made

    def _hold(self, tensor):
        import weakref

        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        count = self._held.get(key, 0)
        self._held[key] = count + 1
        self.now += 0 if count else size
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key, size):
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
            self.now -= size


def peak_of(made, **told):
    with Live() as live:
        made.run(Request(prompt="a red ball", seed=1, steps=1, **told), output="latents")
    return live.peak


def test_64_frames_in_windows_of_16_need_the_memory_of_16_and_whole_ones_do_not():
    made = load("animatediff", preset="tiny", overrides={"stretch": 64, "frames": 16})
    peak_of(made, frames=2)  # weights are held from here on
    short, long, whole = (peak_of(made, frames=n, window=w) for n, w in ((16, None), (64, 16), (64, None)))
    assert long <= 1.25 * short
    assert whole >= 1.4 * short  # layers over space take a few images at a time, so it is far from four times


def test_the_prompt_is_encoded_once_however_many_windows_and_passes(model, monkeypatch):
    from kinema.families.animatediff import conditioning

    asked = []
    real = conditioning.encode_text

    def counting(*args):
        asked.append(args[3])
        return real(*args)

    monkeypatch.setattr(conditioning, "encode_text", counting)
    model.run(ask(frames=30, window=8, steps=2, free_init=2), output="latents")
    once = len(asked)
    asked.clear()
    model.run(ask(frames=8, steps=1), output="latents")
    assert once == len(asked)


# ------------------------------------------------------------------------------------------ requests


@pytest.mark.parametrize("weights", ["flat", "pyramid", "relative", "overlap-linear"])
@pytest.mark.parametrize("places", ["static", "uniform"])
def test_every_kind_of_window_makes_every_frame(model, weights, places):
    clip = model.run(ask(frames=20, steps=2, window=8, window_places=places, window_weights=weights))
    assert clip.shape.frames == 20
    assert bool(clip.video.isfinite().all())


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"window_weights": "flat"}, "window_weights is of a window: give one"),
        ({"window_in": "attention"}, "window_in is of a window"),
        ({"noise_type": "shuffle-context"}, "noise_type is of a window"),
        ({"window_stride": 2}, "window_stride is of a window"),
        ({"window": 8, "window_stride": 2}, "give window_places uniform"),
        ({"window": 8, "window_in": "attention", "window_places": "uniform"}, "inside attention stay"),
        ({"window": 20, "window_in": "attention"}, "window is 20 frames; .* sees at most 16"),
        ({"free_init_filter": "box"}, "free_init_filter is of a free_init"),
        ({"free_init": 0}, "free_init is 0"),
        ({"free_init": 2, "free_init_stop": (0.2, 2)}, "free_init_stop is"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(model, told, says):
    with pytest.raises(BadRequest, match=says):
        model.run(ask(frames=12, **told))


def test_a_family_without_windows_in_attention_says_so_and_an_edit_takes_no_free_init(tmp_path):
    other = load("zoetrope", preset="tiny")
    with pytest.raises(BadRequest, match="attention over time of zoetrope/tiny does not work in windows"):
        other.generate("a red ball", frames=16, window=8, window_in="attention")
    with pytest.raises(BadRequest, match="free_init has no effect"):
        other.generate("a red ball", free_init=2)
    with pytest.raises(BadRequest, match="edit makes no use of free_init"):
        other.edit(tmp_path / "clip.mp4", "a red ball", free_init=2)


def test_steps_of_all_passes_are_counted_through(model):
    from kinema.schema import Step

    events = []
    model.run(ask(frames=2, steps=4, free_init=2, free_init_fast=True), on_event=events.append)
    assert [(e.index, e.total) for e in events if isinstance(e, Step)] == [(i, 6) for i in range(1, 7)]


def test_the_command_line_makes_long_clips_and_their_recipe_says_how(tmp_path):
    from kinema.cli.main import main

    clip = tmp_path / "long.mp4"
    words = "generate ball --model animatediff/tiny --steps 2 --seed 1 --frames 24 --window 16 --overlap 12 --quiet"
    length = "--window-in attention --noise-type shuffle-context --free-init 2 --free-init-stop 0.2,0.3"
    assert main([*words.split(), *length.split(), "-o", str(clip)]) == 0
    told = read_recipe(clip)["stages"][0]["request"]
    assert (told["window_in"], told["noise_type"], told["free_init_stop"]) == (
        "attention",
        "shuffle-context",
        [0.2, 0.3],
    )
    assert Request.from_json(json.dumps(told)).free_init_stop == (0.2, 0.3)
    assert main(["generate", "ball", "--model", "animatediff/tiny", "--frames", "24", "--quiet"]) == 2


# ------------------------------------------------------------------------------------------ blocks


def test_a_prompt_that_travels_has_its_frames_in_the_whole_of_a_clip_made_in_blocks(monkeypatch):
    """Blocks are of frames 0 to 15 and 4 to 19; each is told the rows that the clip at once has for its frames."""
    tiny, told = load("animatediff", preset="tiny"), []
    run_unet = recipe.run_unet

    def listening(model, config, z, level, condition):
        told.append(condition.context_BKLC[0])
        return run_unet(model, config, z, level, condition)

    monkeypatch.setattr(recipe, "run_unet", listening)
    request = Request(
        prompt="a red ball", seed=1, steps=1, guidance=1.0, frames=20, prompt_spans={8: "a blue star", 19: "spins"}
    )
    assert tiny.run(request.with_(overlap=12)).shape.frames == 20
    first, second = told
    tiny.run(request.with_(window=16, window_in="attention"))
    whole = told[-1]
    assert len(whole) == 20
    assert torch.equal(first, whole[:16])
    assert torch.equal(second, whole[4:])
    assert not torch.equal(first[0], first[4])


def test_drawings_of_a_clip_made_in_blocks_go_to_the_block_that_has_their_frame(tmp_path):
    Image.new("RGB", (16, 16), "white").save(tmp_path / "drawing.png")
    drawing = str(tmp_path / "drawing.png")
    request = Request(frames=16, height=16, width=16, extra={"scribble": {2: drawing, 19: drawing}})
    at = [conditioning.drawn(request, start).mask_B1THW[0, 0, :, 0, 0].nonzero().flatten().tolist() for start in (0, 4)]
    assert at == [[2], [15]]
    assert conditioning.drawn(request.with_(frames=12), 5) is None


@pytest.mark.parametrize(
    ("add", "extra", "says"),
    [
        ({"sparse": "rgb"}, {"control_scale": [1.0] * 20}, "control_scale of single frames is for a clip made at once"),
        ({"motion": "pia"}, {"affinity": [0.5] * 20}, "affinity of single frames is for a clip made at once"),
    ],
)
def test_what_no_block_can_be_told_of_single_frames_is_refused_before_weights_are_read(add, extra, says):
    tiny = load("animatediff", preset="tiny", overrides=add)
    with pytest.raises(BadRequest, match=says):
        tiny.generate("a red ball", frames=20, overlap=12, extra=extra)
    assert tiny.system.runtime.model is None


# ------------------------------------------------------------------------------ views and regions


def test_views_take_their_part_of_what_is_told_of_each_frame(oracle):
    """With weight 1 everywhere and no overlap, windows are the module on each part by itself."""
    module = oracle.randomised(MotionModule(32, 2, 16))
    x, scale = normal(16, 32, 4, 4), torch.linspace(0, 2, 16)[:, None, None, None]
    made = module(x, 16, Moving(scale_T1HW=scale, views=views(16, 8, 0, "flat")))
    for part in (slice(0, 8), slice(8, 16)):
        alone = module(x[part], 8, Moving(scale_T1HW=scale[part]))
        assert (made[part] - alone).abs().max() <= 1e-5


def test_a_window_is_told_the_rows_of_its_own_frames():
    """Of everything that may differ from frame to frame; what all frames share stays as it is."""
    frames, at = 6, [4, 5, 0]
    condition = conditioning.Condition(
        context_BKLC=normal(1, frames, 3, 8),
        moving=Moving(effect_T1HW=normal(frames, 1, 1, 1), scale_T1HW=normal(frames, 1, 2, 2)),
        shown=conditioning.Shown(normal(1, 4, frames, 2, 2), normal(1, 1, frames, 2, 2), normal(frames)),
        steerings=(Steering(0, normal(frames, 8, 2, 2), normal(frames), 0.0, 1.0),),
        pictures=(Picture(0, normal(frames, 4, 8), normal(frames)),),
        first_BCTHW=normal(1, 5, frames, 2, 2),
    )
    made = condition.of(at)
    pairs = [
        (made.context_BKLC, condition.context_BKLC[:, at]),
        (made.moving.effect_T1HW, condition.moving.effect_T1HW[at]),
        (made.moving.scale_T1HW, condition.moving.scale_T1HW[at]),
        (made.shown.given_BCTHW, condition.shown.given_BCTHW[:, :, at]),
        (made.shown.mask_B1THW, condition.shown.mask_B1THW[:, :, at]),
        (made.shown.scale_T, condition.shown.scale_T[at]),
        (made.steerings[0].hint_TChw, condition.steerings[0].hint_TChw[at]),
        (made.steerings[0].scale_T, condition.steerings[0].scale_T[at]),
        (made.pictures[0].tokens_RLC, condition.pictures[0].tokens_RLC[at]),
        (made.pictures[0].scale_T, condition.pictures[0].scale_T[at]),
        (made.first_BCTHW, condition.first_BCTHW[:, :, at]),
    ]
    assert all(torch.equal(mine, expected) for mine, expected in pairs)
    shared = conditioning.Condition(normal(1, 1, 3, 8), pictures=(Picture(0, normal(1, 4, 8), normal(1)),)).of(at)
    assert (shared.context_BKLC.shape[1], len(shared.pictures[0].tokens_RLC), len(shared.pictures[0].scale_T)) == (
        1,
    ) * 3
