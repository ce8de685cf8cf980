"""Zoetrope: its network's claims."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kinema import tasks
from kinema.api import load
from kinema.canvas import Canvas
from kinema.data import playroom, reading
from kinema.data.playroom import labels
from kinema.diffusion.schedules import RectifiedFlow
from kinema.families.zoetrope import recipe
from kinema.families.zoetrope.family import FAMILY
from kinema.families.zoetrope.model import PlaceBlock, Zoetrope
from kinema.schema import Request
from kinema.system import Batch


@pytest.fixture(scope="module")
def tiny() -> Zoetrope:
    torch.manual_seed(0)
    model = FAMILY.build(FAMILY.presets["tiny"]).double().eval()
    with torch.no_grad():
        for p in model.parameters():  # zero-initialised layers would make every claim trivially true
            p.add_(torch.randn_like(p) * 0.1)
    return model


def x0(model: Zoetrope, **given: object) -> torch.Tensor:
    return model(**given).x0


def inputs(batch: int = 2) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    video = torch.randn(batch, 3, 8, 16, 16, generator=g, dtype=torch.float64)
    ids = torch.randint(2, 50, (batch, 20), generator=g)
    ids[:, 6:] = 0
    mask = torch.zeros(batch, 1, 8, 16, 16, dtype=torch.float64)
    return {
        "z_BCTHW": video,
        "log_snr_B": torch.linspace(-2, 2, batch, dtype=torch.float64),
        "ids_BL": ids,
        "given_BCTHW": video.roll(1, 0),
        "mask_B1THW": mask,
    }


def test_parameters_of_the_embedded_size_fit_twelve_megabytes_in_half_precision() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in FAMILY.build(FAMILY.presets["base"]).parameters())
    assert count * 2 < 12_000_000


def test_padding_changes_nothing(tiny: Zoetrope) -> None:
    given = inputs()
    given["ids_BL"][1, 4:] = 0
    both = x0(tiny, **given)
    for row in range(2):
        alone = x0(tiny, **{k: v[row : row + 1] for k, v in given.items()})
        assert torch.allclose(both[row : row + 1], alone, atol=1e-10)


def test_pixels_not_given_do_not_enter_through_the_canvas(tiny: Zoetrope) -> None:
    given = inputs()
    other = {**given, "given_BCTHW": given["given_BCTHW"] + 1}
    assert torch.equal(x0(tiny, **given), x0(tiny, **other))
    given["mask_B1THW"] = other["mask_B1THW"] = torch.ones_like(given["mask_B1THW"])
    assert not torch.allclose(x0(tiny, **given), x0(tiny, **other))


def test_per_frame_keeps_temporal_patches_exactly_apart(tiny: Zoetrope) -> None:
    given = inputs()
    moved = {**given, "z_BCTHW": given["z_BCTHW"].clone()}
    moved["z_BCTHW"][:, :, 4:] += 1  # the second temporal patch of four frames
    apart = (x0(tiny, **given, per_frame=True) - x0(tiny, **moved, per_frame=True)).abs().amax(dim=(0, 1, 3, 4))
    assert torch.equal(apart[:4], torch.zeros(4, dtype=torch.float64))
    assert (apart[4:] > 0).all()
    joined = (x0(tiny, **given) - x0(tiny, **moved)).abs().amax(dim=(0, 1, 3, 4))
    assert (joined[:4] > 0).all()


def test_the_prompt_reaches_the_output_through_both_ways(tiny: Zoetrope) -> None:
    given = inputs()
    other = {**given, "ids_BL": given["ids_BL"].roll(1, 0)}
    assert not torch.allclose(x0(tiny, **given), x0(tiny, **other))


def test_reading_is_cross_entropy_of_the_scene_and_clips_without_one_count_nothing() -> None:
    made = [playroom.sample(i, frames=8, height=16, width=16).scene for i in range(2)]
    grid = FAMILY.presets["tiny"].grid
    classes = [torch.from_numpy(labels.on_grid(scene, grid)).flatten(1) for scene in made]
    even = torch.zeros(2, classes[0].shape[1], sum(labels.CLASSES))
    chance = sum(math.log(n) for n in labels.CLASSES)
    assert reading.reading_loss(even, made, grid, camera=False).tolist() == pytest.approx([chance, chance], rel=1e-5)
    told = torch.cat([F.one_hot(torch.stack([c[i] for c in classes]), n) for i, n in enumerate(labels.CLASSES)], -1)
    assert reading.reading_loss(50.0 * told, made, grid, camera=False).max() < 1e-6
    assert reading.reading_loss(even, [None, made[1]], grid, camera=False).tolist() == pytest.approx(
        [0, chance], rel=1e-5
    )


def test_a_folders_clips_train_every_parameter_and_scenes_change_the_loss() -> None:
    config = FAMILY.presets["tiny"]
    model = FAMILY.build(config)
    made = [playroom.sample(i, frames=8, height=16, width=16) for i in range(2)]
    video = torch.stack([torch.from_numpy(sample.video_CTHW) for sample in made])
    plain = Batch(video, [sample.caption for sample in made], torch.zeros(2, 1, 8, 16, 16))

    def loss(batch: Batch) -> torch.Tensor:
        return recipe.loss(model, config, batch, torch.Generator().manual_seed(0)).mean()

    loss(plain).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert loss(replace(plain, scenes=[sample.scene for sample in made])) > loss(plain)


def test_pixels_about_an_object_count_more_once_it_is_found() -> None:
    level = RectifiedFlow(1.0).level(torch.tensor([0.99, 0.97, 0.92, 0.5], dtype=torch.float64))
    assert recipe.found(level).flatten().tolist() == pytest.approx([0, 0, 0.5, 1])
    made = playroom.sample(0, frames=8, height=16, width=16)
    on = reading.about([None, made.scene], torch.zeros(2, 3, 8, 16, 16))
    assert on.shape == (2, 1, 8, 16, 16)
    assert not on[0].any()
    assert 0 < on[1].mean() < 0.6


def test_the_sketch_is_cross_entropy_of_the_cover_and_clips_without_a_scene_count_nothing() -> None:
    made = [playroom.sample(i, frames=8, height=16, width=16).scene for i in range(2)]
    even = torch.zeros(2, 1, 8, 8, 8)
    cover, near = recipe.covers(made, even), reading.about(made, even)
    assert recipe.misplaced(even, cover, near, made).tolist() == pytest.approx([math.log(2)] * 2, rel=1e-5)
    right = torch.logit(cover, 1e-6)
    least = recipe.misplaced(right, cover, near, made)
    for other in (right + 0.5, right - 0.5, right.roll(1, -1), right.roll(1, -2)):
        assert (recipe.misplaced(other, cover, near, made) > least).all()
    assert recipe.misplaced(even, cover, near, [None, made[1]])[0] == 0


def test_pixels_count_by_the_cell_they_lie_in_and_most_where_an_outline_runs() -> None:
    cover, near = torch.tensor([[0.0, 0.3], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    more = recipe.emphasis(cover[None, None, None], near[None, None, None], torch.zeros(1, 3, 1, 4, 4))[0, 0, 0]
    on, edge = recipe.OBJECT, recipe.OBJECT + recipe.EDGE
    assert more.tolist() == [[0, 0, edge, edge]] * 2 + [[on, on, on, on]] * 2


def test_a_tokens_sketch_lies_over_its_own_frames_and_pixels(tiny: Zoetrope) -> None:
    numbered = copy.deepcopy(tiny)
    nn.init.zeros_(numbered.sketch.weight)
    with torch.no_grad():
        numbered.sketch.bias.copy_(torch.arange(64))  # a token: 4 frames of 4 rows of 4 cells
    t, y, x = torch.meshgrid(torch.arange(8), torch.arange(8), torch.arange(8), indexing="ij")
    assert torch.equal(numbered(**inputs(1)).sketch[0, 0], ((t % 4) * 16 + (y % 4) * 4 + x % 4).double())


@pytest.mark.parametrize("log_snr", [-6.0, 0.0, 4.0, 12.0])
def test_input_and_drawing_are_weighted_by_their_inverse_variances(tiny: Zoetrope, log_snr: float) -> None:
    given = {**inputs(), "log_snr_B": torch.full((2,), log_snr, dtype=torch.float64)}
    silent = _silent(tiny, shown=-1e9)
    alpha2, sigma2 = 1 / (1 + math.exp(-log_snr)), 1 / (1 + math.exp(log_snr))
    weight = (alpha2 / sigma2) / (alpha2 / sigma2 + 1 / 0.02**2)
    assert torch.allclose(x0(silent, **given), given["z_BCTHW"] * weight / alpha2**0.5, atol=1e-12)


def _silent(model: Zoetrope, shown: float) -> Zoetrope:
    """The model that draws nothing, with ``shown`` for the logits of the backdrop's share."""
    silent = copy.deepcopy(model)
    for layer in (silent.out, silent.backdrop.out, silent.backdrop.share):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.constant_(silent.backdrop.share.bias, shown)
    return silent


def test_the_backdrop_keeps_the_mean_of_the_frames_by_its_inverse_variance(tiny: Zoetrope) -> None:
    given = {**inputs(), "log_snr_B": torch.full((2,), 5.0, dtype=torch.float64)}
    alpha2, sigma2 = 1 / (1 + math.exp(-5)), 1 / (1 + math.exp(5))
    weight = (alpha2 / sigma2 * 8) / (
        alpha2 / sigma2 * 8 + 1 / 0.02**2
    )  # the mean of 8 frames has an eighth of the noise
    mean = given["z_BCTHW"].mean(2, keepdim=True).expand_as(given["z_BCTHW"])
    assert torch.allclose(x0(_silent(tiny, shown=1e3), **given), mean * weight / alpha2**0.5, atol=1e-12)


def test_what_the_backdrop_shows_is_alike_in_all_frames_or_in_those_that_see_each_other(tiny: Zoetrope) -> None:
    changes = [tiny(**inputs(), per_frame=apart).still.diff(dim=2).abs().amax((0, 1, 3, 4)) for apart in (False, True)]
    assert changes[0].eq(0).all()
    assert (changes[1] > 0).nonzero().tolist() == [[3]]  # from the fourth frame to the fifth


def test_the_clip_is_drawing_and_backdrop_by_the_backdrops_share(tiny: Zoetrope) -> None:
    given, logit = inputs(), math.log(3)
    shown = {}
    for name, value in (("drawing", -1e9), ("both", logit), ("backdrop", 1e3)):
        model = copy.deepcopy(tiny)
        nn.init.zeros_(model.backdrop.share.weight)
        nn.init.constant_(model.backdrop.share.bias, value)
        shown[name] = x0(model, **given)
    mixed = torch.lerp(shown["drawing"], shown["backdrop"], 0.75)
    assert torch.allclose(shown["both"], mixed, atol=1e-9)
    assert not torch.allclose(shown["drawing"], shown["backdrop"], atol=0.1)


def test_the_backdrops_share_starts_as_where_the_sketch_has_no_object() -> None:
    backdrop = FAMILY.build(FAMILY.presets["tiny"]).backdrop
    sketch = torch.randn(1, 8, 4, 4, 4)
    fine = torch.randn(1, 8, 4, 4, 16)
    _, share = backdrop(fine, sketch, torch.randn(1, 3, 8, 16, 16), torch.zeros(1), torch.zeros(1, 16), 8)
    for y, x in ((0, 0), (1, 2), (6, 13), (15, 8)):
        expected = -sketch[0, :, y // 4, x // 4, (y % 4 // 2) * 2 + x % 4 // 2]
        assert torch.allclose(share[0, 0, :, y, x], expected, atol=1e-6)


def test_the_share_is_taught_as_cross_entropy_mostly_about_objects() -> None:
    ground, near = torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    logits = torch.tensor([-50.0, 0.0, 50.0, 0.0])
    made = recipe.unparted(*(t.view(1, 1, 1, 2, 2) for t in (logits, ground, near)))
    assert made.item() == pytest.approx(math.log(2) * 1.1 / 2.2, rel=1e-5)


def test_a_place_block_sees_no_other_place_and_starts_near_the_identity() -> None:
    torch.manual_seed(0)
    block, cond = PlaceBlock(16, 64, 8).double(), torch.randn(1, 8, dtype=torch.float64)
    x = torch.randn(1, 2, 3, 3, 16, dtype=torch.float64)
    moved = x.clone()
    moved[:, 1, 2, 0] += torch.randn(16, dtype=torch.float64)
    change = (block(moved, cond, 2) - block(x, cond, 2)).abs().amax(-1)[0]
    assert change[1, 2, 0] > 0
    assert change.count_nonzero() == 1
    assert (block(x, cond, 2) - x).std() < 0.5


@pytest.mark.parametrize(("how", "starts"), [({"window": 8, "overlap": 4}, (0, 4, 8)), ({"overlap": 4}, (0, 4, 8))])
def test_a_part_of_a_long_clip_is_shown_what_is_given_of_its_own_frames(how, starts, monkeypatch) -> None:  # noqa: ANN001
    """In every second frame a row is given, in each another."""
    mask = torch.zeros(1, 1, 16, 16, 16)
    for frame in range(0, 16, 2):
        mask[:, :, frame, frame] = 1
    canvas = Canvas.of(torch.randn(1, 3, 16, 16, 16).clamp(-1, 1) * mask, mask)
    monkeypatch.setitem(tasks.TASKS, "inpaint", tasks.Task(lambda r: r, lambda _r, _e: canvas))
    model, seen = load("zoetrope", preset="tiny"), []
    model.system.model.register_forward_pre_hook(lambda _m, args: seen.append([x.clone() for x in args[3:5]]))
    model.run(
        Request(task="inpaint", prompt="a ball", steps=1, seed=1, guidance=1.0, frames=16, sampler="euler", **how)
    )
    assert len(seen) == 3
    made = torch.zeros(16, dtype=torch.bool)  # by the block before, which is given whole
    for (given, told), start in zip(seen, starts, strict=True):
        frames = torch.arange(start, start + 8)
        own = frames[~made[frames]]
        assert torch.equal(given[:, :, own - start], canvas.video[:, :, own])
        assert torch.equal(told[:, :, own - start], mask[:, :, own])
        if "window" not in how:
            assert bool(told[:, :, made[frames]].all())
            made[frames] = True
