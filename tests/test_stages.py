"""Jobs of two stages: the base stage and super-resolution, and their requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kinema import tasks
from kinema.api import Model
from kinema.canvas import Block, LowResolution
from kinema.diffusion.overwrite import KnownRegion
from kinema.diffusion.schedules import NoiseLevel
from kinema.events import Event, Note, Phase
from kinema.families.vdm.config import Config, presets
from kinema.families.vdm.family import FAMILY
from kinema.families.zoetrope.family import ZoetropeSampling
from kinema.grid import LatentGrid, Lattice
from kinema.guide import ReconstructionTargets, downsampled
from kinema.job import build_job
from kinema.schema import BadRequest, Clip, Request
from kinema.stages import ReplayedStage, _side, replayed, stages_of
from kinema.system import System, Weights

HALF = NoiseLevel(torch.tensor([0.6], dtype=torch.float64), torch.tensor([0.8], dtype=torch.float64))
ASK = {"prompt": "a red ball rolls right", "seed": 7}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def system(config: Config, seed: int = 0) -> System:
    return System("vdm/tiny", FAMILY, config, Weights(seed=seed))


def cascade(frames: int = 8, upper_frames: int = 9, **changes: Any) -> Model:
    """Models of 8×16×16 and 9×32×32, as the paper's 16×64×64 and 9×128×128; the second is named "large"."""
    tiny = replace(presets()["tiny"], frames=frames, sampling_steps=2)
    large = replace(tiny, **{"frames": upper_frames, "side": 32, "attention_sides": (8, 16)} | changes)
    model = Model(system(tiny))
    model.system.runtime.beside("large", lambda: system(large, seed=1))
    return model


@pytest.fixture(scope="module")
def model() -> Model:
    torch.set_num_threads(1)
    return cascade()


def test_downsampling_selects_frames_and_averages_pixels() -> None:
    video = random(1, 3, 9, 8, 8)
    small = downsampled([0, 4, 8], 2, video)
    assert small.shape == (1, 3, 3, 4, 4)
    torch.testing.assert_close(small[0, 1, 2, 1, 3], video[0, 1, 8, 2:4, 6:8].mean())


@pytest.mark.parametrize("frames", [range(5), range(3, 5), range(1, 4)])
def test_a_window_is_guided_by_the_small_clips_frames_within_it(frames: range) -> None:
    """With x0 = c z and a mean over 4 pixels, the gradient of the squared error is -2 c (low - downsampled(x0)) / 4."""
    z, low, c, weight = random(1, 3, 5, 8, 8), random(1, 3, 2, 4, 4, seed=1), 0.7, 3.0
    part = z[:, :, list(frames)]
    targets = ReconstructionTargets(None, LowResolution(low, 2, 4, weight), weight)
    got = targets.around(lambda z, _level: c * z, frames)(part, HALF)
    expected = c * z
    residual = low - downsampled([0, 4], 2, c * z)
    expected[:, :, ::4] += weight * 0.6 * c * residual.repeat_interleave(2, -1).repeat_interleave(2, -2) / 4
    torch.testing.assert_close(got, expected[:, :, list(frames)], rtol=0, atol=1e-14)


def test_given_large_frames_enter_the_gradient_together_with_the_small_clip() -> None:
    z, low = random(1, 3, 5, 8, 8), random(1, 3, 2, 4, 4, seed=1)
    mask = torch.zeros(1, 1, 5, 8, 8)
    mask[:, :, 0] = 1
    mixing = random(5, 5, seed=2)

    def denoise(z: Tensor, _level: NoiseLevel) -> Tensor:
        return torch.einsum("st,bcthw->bcshw", mixing, z)

    known = [KnownRegion(random(1, 3, 5, 8, 8, seed=seed), mask, None) for seed in (3, 4)]
    small = LowResolution(low, 2, 4, 9.0)
    got = [ReconstructionTargets(each, small, 9.0).around(denoise, range(5))(z, HALF) for each in known]
    assert (got[0] - got[1])[:, :, 1:].abs().max() > 1e-3


def test_a_block_gets_its_part_of_the_small_clip() -> None:
    small = LowResolution(torch.arange(5.0).reshape(1, 1, 5, 1, 1), 2, 4, 1.0)
    assert small.part(Block(8, 9)).video.flatten().tolist() == [2, 3, 4]
    assert small.part(Block(16, 4)).video.flatten().tolist() == [4]


def test_a_higher_weight_brings_super_resolution_closer_to_the_small_clip(model: Model) -> None:
    apart = []
    for weight in (0.0, 2.0):
        ask = Request(**ASK, super_resolution="large", super_resolution_weight=weight, frames=8)
        base = model.run(ask, output="latents:base").video
        large = model.run(ask).video
        assert large.shape == (1, 3, 8, 32, 32)
        apart.append((downsampled(range(8), 2, large) - base.clamp(-1, 1)).square().mean().item())
    assert apart[1] < 0.8 * apart[0]


def test_the_base_stage_equals_the_clip_of_the_model_alone(model: Model) -> None:
    alone = model.run(Request(**ASK), output="latents").video
    both = model.run(Request(**ASK, super_resolution="large"), output="latents:base").video
    assert torch.equal(alone, both)


def test_super_resolution_blocks_start_at_the_last_frame_of_the_previous_block(model: Model) -> None:
    ask = Request(**ASK, super_resolution="large", every=4)
    whole = model.run(ask.with_(frames=20))
    assert whole.video.shape == (1, 3, 20, 32, 32)
    stage = whole.recipe["stages"][1]
    assert [(block["start"], block["frames"]) for block in stage["blocks"]] == [(0, 9), (8, 9), (16, 4)]


def test_the_request_gives_rate_and_size_of_the_finished_clip(model: Model) -> None:
    settled: list[Request] = []
    clip = model.run(
        Request(**ASK, super_resolution="large", every=4, frames=17, height=64, width=32, fps=16),
        on_settled=settled.append,
    )
    assert (clip.shape.bcthw, clip.fps) == ((1, 3, 17, 64, 32), 16)
    assert [(each.frames, each.height, each.width, each.fps) for each in settled] == [(17, 64, 32, 16)]
    base = clip.recipe["stages"][0]["request"]
    assert (base["frames"], base["height"], base["width"], base["fps"]) == (5, 32, 16, 4)


def test_clips_of_a_batch_equal_single_runs() -> None:
    model = cascade(frames=4)
    both = model.run(Request(**ASK, clips=2, super_resolution="large", every=4)).video
    single = model.run(Request(**ASK | {"seed": 8}, super_resolution="large", every=4)).video
    torch.testing.assert_close(both[1:], single, rtol=0, atol=1e-4)
    assert (both[0] - both[1]).abs().max() > 0.1


def test_an_image_is_held_in_both_stages(model: Model, tmp_path) -> None:  # noqa: ANN001
    image = torch.rand(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    Clip(image).save(tmp_path / "first.png")
    video = model.animate(tmp_path / "first.png", "a red ball", seed=1, super_resolution="large").video
    assert torch.allclose(video[:, :, :1], image, atol=1 / 127)
    assert video.shape == (1, 3, 8, 32, 32)


def test_strength_zero_enlarges_the_given_clip(model: Model, tmp_path) -> None:  # noqa: ANN001
    t = torch.linspace(-1, 1, 8)[None, None, :, None, None]
    video = (t * torch.linspace(-1, 1, 16)).expand(1, 3, 8, 16, 16).contiguous()
    Clip(video, 8.0).save(tmp_path / "small.gif")
    ask = {"strength": 0.0, "seed": 1, "super_resolution": "large"}
    far, near = (
        model.edit(tmp_path / "small.gif", "a ball", **ask, super_resolution_weight=weight) for weight in (0.0, 3.0)
    )
    assert near.shape.bcthw == (1, 3, 8, 32, 32)
    known = video.clamp(-1, 1)
    apart = [(downsampled(range(8), 2, clip.video) - known).square().mean() for clip in (far, near)]
    assert apart[1] < 0.8 * apart[0]


def test_noise_and_latents_are_selected_by_stage_name(model: Model) -> None:
    ask = Request(**ASK, super_resolution="large")
    noise = {"base": torch.randn(1, 3, 8, 16, 16), "super-resolution": torch.randn(1, 3, 8, 32, 32)}
    one, two = (model.run(ask.with_(seed=seed), noise=noise, output="latents:base").video for seed in (1, 1))
    assert torch.equal(one, two)
    large = model.run(ask, noise=noise, output="latents:super-resolution").video
    assert large.shape == (1, 3, 8, 32, 32)
    other = model.run(ask, noise=noise | {"super-resolution": -noise["super-resolution"]})
    assert not torch.equal(other.video, model.run(ask, noise=noise).video)
    assert set(other.recipe["noise"]) == {"base", "super-resolution"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": torch.zeros(1, 3, 8, 16, 16)}, "give tensors by name: base, super-resolution"),
        ({"noise": {"middle": torch.zeros(1)}}, "the stage 'middle'"),
        ({"noise": "loud"}, "noise is 'loud'; expected a tensor, or tensors by stage name"),
        ({"noise": {"base": [1.0]}}, r"noise is \[1.0\]; expected a tensor of shape \(1, 3, 8, 16, 16\)"),
        ({"noise": {"super-resolution": torch.zeros(1, 3, 8, 16, 16)}}, r"needs \(1, 3, 8, 32, 32\)"),
        ({"output": "latents"}, "latents:base or latents:super-resolution"),
        ({"output": "latents:middle"}, "latents:base or latents:super-resolution"),
    ],
)
def test_unknown_stages_and_wrong_shapes_are_refused(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        model.run(Request(**ASK, super_resolution="large"), **options)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"side": 24}, {}, r"generates 24×24, which is not a multiple \(2 or more\) of the 16×16"),
        ({"side": 16}, {}, r"generates 16×16, which is not a multiple \(2 or more\) of the 16×16"),
        ({"upper_frames": 4}, {"every": 4}, "handles 4 frames at a time, too few for --every 4"),
    ],
)
def test_models_that_do_not_form_a_cascade_are_refused(
    changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        cascade(**changes).run(Request(**ASK, super_resolution="large", **options))


def test_a_latent_model_cannot_enlarge_and_every_needs_super_resolution() -> None:
    model = cascade()
    with pytest.raises(BadRequest, match="is not a super-resolution model"):
        model.run(Request(**ASK, super_resolution="svd/tiny"))
    with pytest.raises(BadRequest, match="--every needs --super-resolution"):
        model.run(Request(**ASK, every=4))


def test_a_super_resolution_model_without_text_gets_no_prompt() -> None:
    model = cascade(text="none", words=(), guidance=1.0)
    clip = model.run(Request(**ASK, guidance=3.0, super_resolution="large"))
    assert "prompt" not in clip.recipe["stages"][1]["request"]
    assert [stage["request"]["guidance"] for stage in clip.recipe["stages"]] == [3.0, 1.0]


def test_both_stages_report_events(model: Model) -> None:
    events: list[Event] = []
    model.run(Request(**ASK, super_resolution="large"), on_event=events.append)
    names = [event.name for event in events if isinstance(event, Phase)]
    assert names == 2 * ["load", "condition", "sample", "decode"]
    assert not [event for event in events if isinstance(event, Note) and "block" in event.message]


def test_a_backward_clip_is_guided_by_the_small_clip_at_its_frames(
    paired: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """For 17 frames the super-resolution model generates 20; the 3 surplus frames come before the clip."""
    monkeypatch.setattr(ZoetropeSampling, "denoiser", lambda *_: lambda z, _level: 0.5 * z)
    source = Clip(torch.zeros(1, 3, 8, 32, 32), 8.0).save(tmp_path / "ball.gif")[0]
    ask = {"seed": 1, "steps": 8, "frames": 17, "backward": True}
    model = paired(upper={"side": 32}, families=("vdm", "zoetrope"))
    base = model.extend(source, prompt="a red ball", height=16, width=16, **ask).video
    weight = {"super_resolution": "large", "super_resolution_weight": 4.0}
    large = downsampled(range(17), 2, model.extend(source, prompt="a red ball", **ask, **weight).video)
    apart = [(large[:, :, :6] - base[:, :, late : 6 + late]).square().mean().item() for late in (0, 3)]
    assert apart[0] < 0.7 * apart[1]


# ------------------------------------------------------------------------- requests of the stages

BLUE = "a blue box"
BOTH = ASK | {"super_resolution": "large", "steps": 2}


def asked(model: Model, **options: Any) -> list[Request]:
    return [part.request for part in stages_of(model.system, Request(**BOTH | options))]


def test_a_random_seed_is_shared_by_both_stages(model: Model) -> None:
    small, large = asked(model, seed=None)
    assert small.seed is not None
    assert small.seed == large.seed
    assert small.seed != asked(model, seed=None)[0].seed


def test_the_request_of_a_super_resolution_model_without_text_has_no_text_options() -> None:
    model = cascade(text="none", words=(), guidance=1.0)
    options = {"negative_prompt": BLUE, "guidance": 3.0, "guidance_end": 5.0, "prompt_spans": {"10-19": BLUE}}
    small, large = asked(model, frames=20, **options)
    assert {name: getattr(small, name) for name in options} == options
    blank = Request()
    names = ("prompt", "negative_prompt", "guidance_end", "prompt_spans")
    assert [getattr(large, name) for name in names] == [getattr(blank, name) for name in names]
    assert large.guidance == 1.0


def test_loras_apply_to_the_base_stage_only(model: Model) -> None:
    assert [request.loras for request in asked(model, loras={"a.safetensors": 0.5})] == [{"a.safetensors": 0.5}, None]


def test_prompt_spans_are_refused_with_every(model: Model) -> None:
    spans = {"10-19": BLUE}
    assert [request.prompt_spans for request in asked(model, frames=20, prompt_spans=spans)] == [spans, spans]
    with pytest.raises(BadRequest, match="prompt spans .* cannot be combined with --every"):
        asked(model, frames=20, prompt_spans=spans, every=4)


def test_every_that_takes_the_rate_out_of_range_is_refused(model: Model) -> None:
    assert [request.fps for request in asked(model, every=30, frames=2)] == [8, 240]
    with pytest.raises(BadRequest, match="--every 31 turns the 8 fps of the base stage into 248; expected at most 240"):
        asked(model, every=31, frames=2)


def test_options_of_another_family_stay_with_the_base_stage(paired: Callable[..., Model]) -> None:
    extra = {"per_frame": True}
    assert [request.extra for request in asked(cascade(), extra=extra)] == [extra, extra]
    mixed = paired(families=("zoetrope", "vdm"))
    assert [request.extra for request in asked(mixed, extra=extra)] == [extra, {}]


def test_windows_longer_than_the_super_resolution_models_limit_apply_to_the_base_stage_only() -> None:
    events: list[Event] = []
    options = {"frames": 20, "window": 8, "overlap": 2, "window_weights": "flat", "loop": True}
    model = cascade(upper_frames=5)
    small, large = (part.request for part in stages_of(model.system, Request(**BOTH, **options), events.append))
    assert {name: getattr(small, name) for name in options} == options
    assert (large.window, large.overlap, large.window_weights, large.loop) == (None, None, "pyramid", False)
    assert [event for event in events if isinstance(event, Note) and "in blocks, not windows" in event.message]
    small, large = asked(cascade(), **options)
    assert (large.window, large.overlap, large.window_weights, large.loop) == (8, None, "flat", True)


def test_notes_are_not_repeated_and_a_clip_is_edited_at_the_small_size_only(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    source = Clip(torch.zeros(1, 3, 8, 16, 16), 8.0).save(tmp_path / "ball.gif")[0]
    edit, read = tasks.TASKS["edit"], []

    def canvas(request: Request, on_event: Any) -> Any:
        read.append((request.height, request.width))
        return edit.canvas(request, on_event)

    monkeypatch.setitem(tasks.TASKS, "edit", replace(edit, canvas=canvas))
    events: list[Event] = []
    works = build_job(model.system, Request(**BOTH, task="edit", video=str(source), strength=0.1), events.append)
    assert read == [(16, 16)]
    assert works[1].canvas.pieces == ()
    notes = [event.message for event in events if isinstance(event, Note)]
    assert len([note for note in notes if "less than one step" in note]) == 1
    assert len(notes) == len({*notes})


def lattices(small: int, large: int) -> tuple[Lattice, Lattice]:
    return Lattice(LatentGrid(), side_multiple=small), Lattice(LatentGrid(), side_multiple=large)


@given(
    asked=st.integers(1, 600),
    small=st.sampled_from([1, 4, 6, 8]),
    large=st.sampled_from([4, 16, 24]),
    factor=st.integers(2, 5),
)
def test_the_base_side_is_the_nearest_that_both_models_support(asked: int, small: int, large: int, factor: int) -> None:
    one, other = lattices(small, large)
    side = _side(asked, one, other, factor)
    assert side is not None

    def fits(side: int) -> bool:
        return one.snap_side(side) == side and other.snap_side(factor * side) == factor * side

    assert fits(side)
    away = abs(factor * side - asked)
    assert not [near for near in range(1, 2 * side) if fits(near) and abs(factor * near - asked) < away]


@pytest.mark.parametrize(("asked", "side"), [(None, None), (32, 16), (40, 24), (48, 24), (64, 32), (1, 16)])
def test_base_sides_with_multiples_of_4_and_16(asked: int | None, side: int | None) -> None:
    """The small side is a multiple of 8, at least 16."""
    assert _side(asked, *lattices(4, 16), 2) == side


def test_the_nearer_of_two_sides_is_chosen() -> None:
    assert _side(42, *lattices(4, 16), 2) == 24


def test_a_snapped_size_is_noted(model: Model) -> None:
    events: list[Event] = []
    stages_of(model.system, Request(**BOTH, height=35), events.append)
    assert [event for event in events if isinstance(event, Note) and "height 35 snapped" in event.message]


def test_a_default_size_that_super_resolution_cannot_enlarge_is_refused(paired: Callable[..., Model]) -> None:
    """The base model's side of 8 is snapped to 16, and the super-resolution model's 32 to 16."""
    model = paired({"side": 8, "attention_sides": (2, 4)}, families=("vdm", "zoetrope"))
    with pytest.raises(BadRequest):
        asked(model)


def test_notes_of_a_replayed_recipe_are_not_repeated(model: Model, tmp_path: Any) -> None:
    source = Clip(torch.zeros(1, 3, 8, 16, 16), 8.0).save(tmp_path / "ball.gif")[0]
    requests = asked(model, task="edit", video=str(source), strength=0.1)
    events: list[Event] = []
    replayed(model.system, [ReplayedStage(request) for request in requests], events.append)
    assert len([event for event in events if "less than one step" in str(event)]) == 1


def test_two_models_without_a_common_side_are_refused() -> None:
    fixed = Lattice(LatentGrid(), side_multiple=64, min_side=64, max_side=64)
    with pytest.raises(BadRequest, match="no side near 40 is supported by both models"):
        _side(40, lattices(24, 24)[0], fixed, 4)


def test_a_model_with_a_second_stage_of_its_own_runs_it_unless_told_otherwise(monkeypatch) -> None:  # noqa: ANN001
    from kinema import load, registry

    monkeypatch.setitem(registry.SECOND_STAGES, "lumiere/tiny", "lumiere/tiny-sr")
    model = load("lumiere", preset="tiny")

    def sides(**options: object) -> list[int]:
        clip = model.run(Request(prompt="a red ball", seed=1, steps=1, **options))
        return [stage["request"]["height"] for stage in clip.recipe["stages"]]

    assert sides() == [16, 32]
    assert sides(height=48, width=48) == [24, 48]
    assert sides(super_resolution="none") == [16]
    assert sides(super_resolution="none", height=32, width=32) == [32]
