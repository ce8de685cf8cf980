"""Jobs that are drawn up: blocks of both stages, those of a recipe, when pieces go, memory that stages share."""

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
from kinema.job import StageRun, bytes_of_other_stages, draw_up, drawn_up, rehearsed, with_blocks, with_memory_plan
from kinema.memory.plan import MemoryPlan as Fitting
from kinema.memory.plan import Needs, TooLarge, weight_bytes
from kinema.rollout import enlarged, pixels
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
def picture(tmp_path: Path) -> Path:
    video = torch.rand(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return Clip(video).save(tmp_path / "first.png")[0]


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def placed(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    return [(block.start, block.frames) for block in blocks]


# ------------------------------------------------------------------------------ blocks of a recipe


def test_recorded_blocks_are_those_of_the_stage_and_of_its_canvas(model: Model) -> None:
    (work,) = drawn_up(model.system, Request(**ASK, frames=20))
    blocks = tuple(replace(work.stage.blocks[0], start=start) for start in (0, 6, 12))
    told = with_blocks(work, blocks)
    assert told.stage.blocks == blocks != work.stage.blocks
    backward = with_blocks(work, blocks[::-1])
    assert backward.canvas.block == blocks[-1]
    assert backward.stage.blocks == blocks[::-1]


@pytest.mark.parametrize("frames", [9, 16, 20])
def test_a_recorded_block_is_no_longer_than_the_model_sees(model: Model, frames: int) -> None:
    (work,) = drawn_up(model.system, Request(**ASK, frames=20))
    assert placed(work.stage.blocks)[0] == (0, 8)
    with pytest.raises(BadRequest, match=f"a block of {frames} frames from 0 on is none of this clip"):
        with_blocks(work, (replace(work.stage.blocks[0], frames=frames), *work.stage.blocks))


@pytest.mark.parametrize("release", [-1, 5])
def test_a_recorded_release_lies_within_the_steps(tiny: Model, release: int, tmp_path: Path) -> None:
    source = Clip(torch.zeros(1, 3, 8, 16, 16), 8.0).save(tmp_path / "ball.gif")[0]
    (work,) = drawn_up(tiny.system, Request(task="edit", video=str(source), **ASK | {"steps": 4}))
    for within in (0, 4):
        with_blocks(work, (replace(work.stage.blocks[0], releases=(within,)),))
    with pytest.raises(BadRequest, match="lets go of other pieces; expected 1, 0 to 4"):
        with_blocks(work, (replace(work.stage.blocks[0], releases=(release,)),))


def test_a_recorded_block_of_a_second_stage_begins_at_a_frame_of_the_small_clip(model: Model) -> None:
    work = drawn_up(model.system, Request(**LARGE, every=4, frames=20))[1]
    own = work.stage.blocks
    with_blocks(work, (*own, replace(own[0], start=4)))
    with pytest.raises(BadRequest, match="a block of 9 frames from 6 on is none of this clip"):
        with_blocks(work, (*own, replace(own[0], start=6)))


# ------------------------------------------------------------------------- blocks that are settled


def test_a_block_of_the_second_stage_goes_on_from_the_last_frame_of_the_one_before(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here each frame is drawn to the mean of its block: what is held in a block is seen in all of it. That frame stays
    to the bit, and the clip does not jump beside it as it does before a block that is made from scratch.
    """
    monkeypatch.setattr(
        VDMSampling, "denoiser", lambda *_: lambda z, _level: 0.1 * z + 0.9 * z.mean((2, 3, 4), keepdim=True)
    )
    work = drawn_up(model.system, Request(**LARGE | {"steps": 8}, every=4, frames=12, super_resolution_weight=0))[1]
    work = enlarged(work, torch.zeros(1, 3, 3, 16, 16))
    assert placed(work.stage.blocks) == [(0, 9), (8, 4)]
    large = noise(1, 3, 12, 32, 32)
    large[:, :, :9] += 0.8

    def made(blocks: Sequence[Block]) -> Tensor:
        told = replace(work, stage=replace(work.stage, blocks=tuple(blocks)))
        return pixels(told, large, model.system.noise(work.stage.request), lambda _: None)

    both, first, second = (made(blocks) for blocks in (work.stage.blocks, work.stage.blocks[:1], work.stage.blocks[1:]))
    assert torch.equal(both[:, :, :9], first[:, :, :9])
    jump = (both[:, :, 9] - both[:, :, 8]).mean().abs()
    assert jump < 0.7 * (second[:, :, 9] - both[:, :, 8]).mean().abs()


def test_each_block_of_the_second_stage_has_the_prompt_of_its_middle(model: Model) -> None:
    work = drawn_up(model.system, Request(**LARGE, frames=20, prompt_spans={"10-19": BLUE}))[1]
    assert [(block.start, block.prompt) for block in work.stage.blocks] == [(0, RED), (8, BLUE), (16, BLUE)]


@pytest.mark.parametrize("way", ["auto", "reconstruction", "replacement"])
def test_a_picture_is_held_by_each_block_of_the_second_stage_in_the_way_that_is_asked_for(
    model: Model, way: Any, picture: Path
) -> None:
    ask = Request(task="animate", image=str(picture), **LARGE, frames=12, honour=way)
    wanted = "reconstruction" if way == "auto" else way
    for work in drawn_up(model.system, ask):
        assert len(work.stage.blocks) > 1
        assert {block.way for block in work.stage.blocks} == {wanted}
        assert work.canvas.kind == "first"


def test_the_second_stage_takes_a_way_of_its_own_where_it_has_not_the_first_ones(paired: Paired, picture: Path) -> None:
    model = paired({"frames": 8}, families=("zoetrope", "vdm"))
    works = drawn_up(model.system, Request(task="animate", image=str(picture), **LARGE, honour="native"))
    assert [work.stage.blocks[0].way for work in works] == ["native", "reconstruction"]


@pytest.mark.parametrize("frames", [16, 20])
@pytest.mark.parametrize("every", [2, 4])
def test_a_second_model_that_makes_frames_by_fours_makes_any_clip_in_blocks_that_meet(
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


def test_a_long_clip_of_which_all_is_given_is_made_in_no_block_and_has_no_latents(model: Model, tmp_path: Path) -> None:
    video = (torch.rand(1, 3, 20, 16, 16, generator=torch.Generator().manual_seed(3)) * 255).round() / 127.5 - 1
    source = Clip(video, 8.0).save(tmp_path / "frames")[0]
    Image.new("L", (16, 16), 0).save(tmp_path / "nothing.png")
    told = {"video": str(source), "mask": str(tmp_path / "nothing.png"), "fps": 8.0}
    request = Request(task="inpaint", **ASK, **told)
    clip = model.run(request)
    assert torch.allclose(clip.video, video, atol=1e-6)
    assert clip.recipe["stages"][0]["blocks"] == []
    with pytest.raises(BadRequest, match="block-wise clips cannot return latents"):
        model.run(request, output="latents")


def test_a_long_clip_of_keyframes_alone_is_those_pictures(model: Model, tmp_path: Path) -> None:
    colours = [20 * frame for frame in range(12)]
    for frame, colour in enumerate(colours):
        Image.new("RGB", (16, 16), (colour, 0, 255 - colour)).save(tmp_path / f"{frame}.png")
    keyframes = {str(frame): str(tmp_path / f"{frame}.png") for frame in range(12)}
    clip = model.run(Request(task="animate", **ASK, frames=12, keyframes=keyframes))
    assert ((clip.video[0, 0, :, 5, 5] + 1) * 127.5).round().tolist() == colours
    assert clip.recipe["stages"][0]["blocks"] == []


def test_a_block_is_no_loop_of_its_own(tiny: Model, picture: Path) -> None:
    ask = Request(task="animate", image=str(picture), **ASK, frames=20, loop=True)
    (work,) = drawn_up(tiny.system, ask)
    assert work.stage.request.loop
    assert not any(work.stage.of(block).loop for block in work.stage.blocks)
    (at_once,) = drawn_up(tiny.system, ask.with_(frames=8))
    assert at_once.stage.of(at_once.stage.blocks[0]).loop


# ---------------------------------------------------------------------------------- when pieces go


def test_pieces_go_at_the_noise_level_or_the_time_that_they_name(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times 1, 3/4, 1/2, 1/4 and 0 of a flow of shift 6 are the noise levels 1, 18/19, 6/7, 2/3 and 0."""
    video = torch.rand(1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    masks = [torch.zeros(1, 1, 8, 16, 16) for _ in range(2)]
    masks[0][:, :, :3], masks[1][:, :, 3:5] = 1, 1
    ask = Request(task="animate", **ASK | {"steps": 4}, image="none")

    def made(*releases: Release) -> Clip:
        canvas = Canvas(Shape.of(video), tuple(map(Piece, (video, video), masks, releases)))
        monkeypatch.setitem(tasks.TASKS, "animate", tasks.Task(lambda r: r, lambda _r, _e: canvas))
        monkeypatch.setattr(Request, "files", lambda _self: {})
        return tiny.run(ask)

    for level, ratio, states in ((0.98, 0.5, (0, 2)), (0.87, 0.9, (2, 1)), (0.7, 0.2, (3, 4)), (0.2, 1.0, (4, 0))):
        clip = made(Release("level", level), Release("ratio", ratio))
        assert clip.recipe["stages"][0]["blocks"][0]["releases"] == list(states)
        by_hand = made(*(Release("strength", 1 - state / 4) for state in states))
        assert by_hand.recipe["stages"][0]["blocks"][0]["releases"] == list(states)
        assert torch.equal(clip.video, by_hand.video)


# ------------------------------------------------------------------------------------------ memory


def within(work: StageRun, budget: int) -> StageRun:
    return replace(work, system=replace(work.system, memory=MemoryOptions(budget=budget)))


def needs(work: StageRun, *, measured: bool) -> Needs:
    canvas = rehearsed(work)
    return Needs(work.system, work.stage.of(canvas.block), canvas, measured)


def test_each_stage_is_planned_with_its_gradient_and_what_the_other_one_takes(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, told = drawn_up(model.system, Request(**LARGE, frames=8)), []

    def choose(_system: object, request: Request, _canvas: object, **options: Any) -> Fitting:
        told.append((request.height, options))
        return Fitting()

    monkeypatch.setattr("kinema.job.choose", choose)
    for number, work in enumerate(works):
        with_memory_plan(work, number + 5)
    assert told == [(16, {"measured": False, "taken": 5}), (32, {"measured": True, "taken": 6})]
    assert [needs(works[1], measured=measured).differentiates for measured in (True, False)] == [True, False]


def test_weights_of_another_stage_count_once_they_are_there_or_will_be(model: Model, paired: Paired) -> None:
    works = drawn_up(model.system, Request(**LARGE, frames=8))
    assert all(work.system.runtime.model is not None for work in works)
    assert [bytes_of_other_stages(works, number) for number in (0, 1)] == [
        0,
        0,
    ]  # what is free is so without them already
    told = [within(work, 10**9) for work in works]  # copies of which nothing is loaded
    first, second = (weight_bytes(work.system) for work in works)
    assert [bytes_of_other_stages(told, number) for number in (0, 1)] == [0, first]
    for work in told:
        work.system.runtime.model = model.system.model
    assert [bytes_of_other_stages(told, number) for number in (0, 1)] == [second, first]


def test_a_budget_that_fits_each_stage_alone_is_refused_where_both_do_not_fit(model: Model) -> None:
    ask = Request(**LARGE, frames=8)
    works = drawn_up(model.system, ask)
    need, others = needs(works[1], measured=True).bytes(Fitting()), weight_bytes(model.system)
    told = [within(work, need + others // 2) for work in works]  # copies of which nothing is loaded
    told[0].system.runtime.beside("large", lambda: told[1].system)
    assert with_memory_plan(told[1]).need == need
    with pytest.raises(TooLarge, match="large needs"):
        draw_up(told[0].system, ask)
