"""Jobs: blocks of both stages, recorded blocks, release states, and memory shared by the stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from kinema import tasks
from kinema.api import Model, load
from kinema.canvas import Block, Canvas, Piece, Release
from kinema.families.vdm.family import VDMSampling
from kinema.job import (
    StageRun,
    build_job,
    bytes_of_other_stages,
    choose_memory_plan,
    plan_job,
    planning_canvas,
    with_blocks,
)
from kinema.memory.plan import MemoryPlan, Needs, TooLarge, weight_bytes
from kinema.rollout import pixels, with_small_clip
from kinema.schema import BadRequest, Clip, Request, Shape
from kinema.system import MemoryOptions

RED, BLUE = "a red ball", "a blue box"
ASK: dict[str, Any] = {"prompt": RED, "seed": 7, "steps": 2}
LARGE: dict[str, Any] = ASK | {"super_resolution": "large"}
Paired = Callable[..., Model]


@pytest.fixture(scope="module")
def model(paired: Paired) -> Model:
    return paired()


@pytest.fixture(scope="module")
def tiny() -> Model:
    torch.set_num_threads(1)
    return load("zoetrope", preset="tiny")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    video = torch.rand(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return Clip(video).save(tmp_path / "first.png")[0]


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def placed(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    return [(block.start, block.frames) for block in blocks]


# ------------------------------------------------------------------------------ blocks of a recipe


def test_recorded_blocks_replace_those_of_the_stage_and_its_canvas(model: Model) -> None:
    (work,) = build_job(model.system, Request(**ASK, frames=20))
    blocks = tuple(replace(work.stage.blocks[0], start=start) for start in (0, 6, 12))
    replaced = with_blocks(work, blocks)
    assert replaced.stage.blocks == blocks != work.stage.blocks
    backward = with_blocks(work, blocks[::-1])
    assert backward.canvas.block == blocks[-1]
    assert backward.stage.blocks == blocks[::-1]


@pytest.mark.parametrize("frames", [9, 16, 20])
def test_a_recorded_block_longer_than_the_models_limit_is_refused(model: Model, frames: int) -> None:
    (work,) = build_job(model.system, Request(**ASK, frames=20))
    assert placed(work.stage.blocks)[0] == (0, 8)
    with pytest.raises(BadRequest, match=f"block at frame 0 with {frames} frames does not fit this clip"):
        with_blocks(work, (replace(work.stage.blocks[0], frames=frames), *work.stage.blocks))


@pytest.mark.parametrize("release", [-1, 5])
def test_a_recorded_release_outside_the_steps_is_refused(tiny: Model, release: int, tmp_path: Path) -> None:
    source = Clip(torch.zeros(1, 3, 8, 16, 16), 8.0).save(tmp_path / "ball.gif")[0]
    (work,) = build_job(tiny.system, Request(task="edit", video=str(source), **ASK | {"steps": 4}))
    for within in (0, 4):
        with_blocks(work, (replace(work.stage.blocks[0], releases=(within,)),))
    with pytest.raises(BadRequest, match="has invalid releases; expected 1, each 0 to 4"):
        with_blocks(work, (replace(work.stage.blocks[0], releases=(release,)),))


def test_a_recorded_block_of_super_resolution_starts_at_a_frame_of_the_small_clip(model: Model) -> None:
    work = build_job(model.system, Request(**LARGE, every=4, frames=20))[1]
    own = work.stage.blocks
    with_blocks(work, (*own, replace(own[0], start=4)))
    with pytest.raises(BadRequest, match="block at frame 6 with 9 frames does not fit this clip"):
        with_blocks(work, (*own, replace(own[0], start=6)))


# ------------------------------------------------------------------------------- generated blocks


def test_a_super_resolution_block_continues_from_the_last_frame_of_the_previous_block(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This denoiser pulls each frame to the mean of its block, so held frames affect the whole block. The shared frame
    is bit-identical, and the clip jumps less after it than with a block that is generated on its own.
    """
    monkeypatch.setattr(
        VDMSampling, "denoiser", lambda *_: lambda z, _level: 0.1 * z + 0.9 * z.mean((2, 3, 4), keepdim=True)
    )
    work = build_job(model.system, Request(**LARGE | {"steps": 8}, every=4, frames=12, super_resolution_weight=0))[1]
    work = with_small_clip(work, torch.zeros(1, 3, 3, 16, 16))
    assert placed(work.stage.blocks) == [(0, 9), (8, 4)]
    large = noise(1, 3, 12, 32, 32)
    large[:, :, :9] += 0.8

    def run(blocks: Sequence[Block]) -> Tensor:
        part = replace(work, stage=replace(work.stage, blocks=tuple(blocks)))
        return pixels(part, large, model.system.noise(work.stage.request), lambda _: None)

    both, first, second = (run(blocks) for blocks in (work.stage.blocks, work.stage.blocks[:1], work.stage.blocks[1:]))
    assert torch.equal(both[:, :, :9], first[:, :, :9])
    jump = (both[:, :, 9] - both[:, :, 8]).mean().abs()
    assert jump < 0.7 * (second[:, :, 9] - both[:, :, 8]).mean().abs()


def test_each_super_resolution_block_has_the_prompt_of_its_middle_frame(model: Model) -> None:
    work = build_job(model.system, Request(**LARGE, frames=20, prompt_spans={"10-19": BLUE}))[1]
    assert [(block.start, block.prompt) for block in work.stage.blocks] == [(0, RED), (8, BLUE), (16, BLUE)]


@pytest.mark.parametrize("way", ["auto", "reconstruction", "replacement"])
def test_an_image_is_held_by_each_super_resolution_block_in_the_requested_way(
    model: Model, way: Any, image: Path
) -> None:
    ask = Request(task="animate", image=str(image), **LARGE, frames=12, honour=way)
    expected = "reconstruction" if way == "auto" else way
    for work in build_job(model.system, ask):
        assert len(work.stage.blocks) > 1
        assert {block.way for block in work.stage.blocks} == {expected}
        assert work.canvas.kind == "first"


def test_super_resolution_chooses_its_own_way_if_it_lacks_the_requested_one(paired: Paired, image: Path) -> None:
    model = paired({"frames": 8}, families=("zoetrope", "vdm"))
    works = build_job(model.system, Request(task="animate", image=str(image), **LARGE, honour="native"))
    assert [work.stage.blocks[0].way for work in works] == ["native", "reconstruction"]


@pytest.mark.parametrize("frames", [16, 20])
@pytest.mark.parametrize("every", [2, 4])
def test_a_super_resolution_model_with_a_frame_multiple_of_four_generates_any_clip_in_overlapping_blocks(
    paired: Paired, frames: int, every: int
) -> None:
    model = paired(upper={"side": 32}, families=("vdm", "zoetrope"))
    clip = model.run(Request(**LARGE, every=every, frames=frames))
    assert clip.shape.bcthw == (1, 3, frames, 32, 32)
    assert torch.isfinite(clip.video).all()
    blocks = [(each["start"], each["frames"]) for each in clip.recipe["stages"][1]["blocks"]]
    assert all(start % every == 0 and length in (4, 8) for start, length in blocks)
    assert all(one + length > other for (one, length), (other, _) in pairwise(blocks))
    assert blocks[0][0] == 0
    assert sum(blocks[-1]) >= frames


def test_a_long_clip_that_is_entirely_given_has_no_blocks_and_no_latents(model: Model, tmp_path: Path) -> None:
    video = (torch.rand(1, 3, 20, 16, 16, generator=torch.Generator().manual_seed(3)) * 255).round() / 127.5 - 1
    source = Clip(video, 8.0).save(tmp_path / "frames")[0]
    Image.new("L", (16, 16), 0).save(tmp_path / "nothing.png")
    given = {"video": str(source), "mask": str(tmp_path / "nothing.png"), "fps": 8.0}
    request = Request(task="inpaint", **ASK, **given)
    clip = model.run(request)
    assert torch.allclose(clip.video, video, atol=1e-6)
    assert clip.recipe["stages"][0]["blocks"] == []
    with pytest.raises(BadRequest, match="block-wise clips cannot return latents"):
        model.run(request, output="latents")


def test_a_long_clip_whose_frames_are_all_keyframes_equals_those_images(model: Model, tmp_path: Path) -> None:
    colours = [20 * frame for frame in range(12)]
    for frame, colour in enumerate(colours):
        Image.new("RGB", (16, 16), (colour, 0, 255 - colour)).save(tmp_path / f"{frame}.png")
    keyframes = {str(frame): str(tmp_path / f"{frame}.png") for frame in range(12)}
    clip = model.run(Request(task="animate", **ASK, frames=12, keyframes=keyframes))
    assert ((clip.video[0, 0, :, 5, 5] + 1) * 127.5).round().tolist() == colours
    assert clip.recipe["stages"][0]["blocks"] == []


def test_blocks_do_not_loop(tiny: Model, image: Path) -> None:
    ask = Request(task="animate", image=str(image), **ASK, frames=20, loop=True)
    (work,) = build_job(tiny.system, ask)
    assert work.stage.request.loop
    assert not any(work.stage.of(block).loop for block in work.stage.blocks)
    (single,) = build_job(tiny.system, ask.with_(frames=8))
    assert single.stage.of(single.stage.blocks[0]).loop


# ---------------------------------------------------------------------------------- release states


def test_pieces_are_released_at_their_noise_level_or_time(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times 1, 3/4, 1/2, 1/4 and 0 of a flow of shift 6 are the noise levels 1, 18/19, 6/7, 2/3 and 0."""
    video = torch.rand(1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    masks = [torch.zeros(1, 1, 8, 16, 16) for _ in range(2)]
    masks[0][:, :, :3], masks[1][:, :, 3:5] = 1, 1
    ask = Request(task="animate", **ASK | {"steps": 4}, image="none")

    def run(*releases: Release) -> Clip:
        canvas = Canvas(Shape.of(video), tuple(map(Piece, (video, video), masks, releases)))
        monkeypatch.setitem(tasks.TASKS, "animate", tasks.Task(lambda r: r, lambda _r, _e: canvas))
        monkeypatch.setattr(Request, "files", lambda _self: {})
        return tiny.run(ask)

    for level, ratio, states in ((0.98, 0.5, (0, 2)), (0.87, 0.9, (2, 1)), (0.7, 0.2, (3, 4)), (0.2, 1.0, (4, 0))):
        clip = run(Release("level", level), Release("ratio", ratio))
        assert clip.recipe["stages"][0]["blocks"][0]["releases"] == list(states)
        by_hand = run(*(Release("strength", 1 - state / 4) for state in states))
        assert by_hand.recipe["stages"][0]["blocks"][0]["releases"] == list(states)
        assert torch.equal(clip.video, by_hand.video)


# ------------------------------------------------------------------------------------------ memory


def within(work: StageRun, budget: int) -> StageRun:
    return replace(work, system=replace(work.system, memory=MemoryOptions(budget=budget)))


def needs(work: StageRun, *, measured: bool) -> Needs:
    canvas = planning_canvas(work)
    return Needs(work.system, work.stage.of(canvas.block), canvas, measured)


def test_each_stage_is_planned_with_its_gradient_and_the_memory_of_the_other_stage(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, calls = build_job(model.system, Request(**LARGE, frames=8)), []

    def choose(_system: object, request: Request, _canvas: object, **options: Any) -> MemoryPlan:
        calls.append((request.height, options))
        return MemoryPlan()

    monkeypatch.setattr("kinema.job.choose", choose)
    for number, work in enumerate(works):
        choose_memory_plan(work, number + 5)
    assert calls == [(16, {"measured": False, "taken": 5}), (32, {"measured": True, "taken": 6})]
    assert [needs(works[1], measured=measured).differentiates for measured in (True, False)] == [True, False]


def test_weights_of_another_stage_count_if_they_are_loaded_or_will_be(model: Model, paired: Paired) -> None:
    works = build_job(model.system, Request(**LARGE, frames=8))
    assert all(work.system.runtime.model is not None for work in works)
    assert [bytes_of_other_stages(works, number) for number in (0, 1)] == [
        0,
        0,
    ]  # loaded weights already count as used memory
    copies = [within(work, 10**9) for work in works]  # nothing is loaded in the copies
    first, second = (weight_bytes(work.system) for work in works)
    assert [bytes_of_other_stages(copies, number) for number in (0, 1)] == [0, first]
    for work in copies:
        work.system.runtime.model = model.system.model
    assert [bytes_of_other_stages(copies, number) for number in (0, 1)] == [second, first]


def test_a_budget_that_fits_each_stage_but_not_both_is_refused(model: Model) -> None:
    ask = Request(**LARGE, frames=8)
    works = build_job(model.system, ask)
    need, others = needs(works[1], measured=True).bytes(MemoryPlan()), weight_bytes(model.system)
    copies = [within(work, need + others // 2) for work in works]  # nothing is loaded in the copies
    copies[0].system.runtime.beside("large", lambda: copies[1].system)
    assert choose_memory_plan(copies[1]).need == need
    with pytest.raises(TooLarge, match="large needs"):
        plan_job(copies[0].system, ask)
