"""Zoetrope's network."""

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
        for p in model.parameters():  # zero-initialised layers would make the tests trivial
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


def test_float16_weights_are_under_twelve_megabytes() -> None:
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


def test_unknown_canvas_pixels_are_ignored(tiny: Zoetrope) -> None:
    given = inputs()
    other = {**given, "given_BCTHW": given["given_BCTHW"] + 1}
    assert torch.equal(x0(tiny, **given), x0(tiny, **other))
    given["mask_B1THW"] = other["mask_B1THW"] = torch.ones_like(given["mask_B1THW"])
    assert not torch.allclose(x0(tiny, **given), x0(tiny, **other))


def test_per_frame_isolates_temporal_patches(tiny: Zoetrope) -> None:
    given = inputs()
    moved = {**given, "z_BCTHW": given["z_BCTHW"].clone()}
    moved["z_BCTHW"][:, :, 4:] += 1  # the second temporal patch of four frames
    apart = (x0(tiny, **given, per_frame=True) - x0(tiny, **moved, per_frame=True)).abs().amax(dim=(0, 1, 3, 4))
    assert torch.equal(apart[:4], torch.zeros(4, dtype=torch.float64))
    assert (apart[4:] > 0).all()
    joined = (x0(tiny, **given) - x0(tiny, **moved)).abs().amax(dim=(0, 1, 3, 4))
    assert (joined[:4] > 0).all()


def test_the_prompt_changes_the_output(tiny: Zoetrope) -> None:
    given = inputs()
    other = {**given, "ids_BL": given["ids_BL"].roll(1, 0)}
    assert not torch.allclose(x0(tiny, **given), x0(tiny, **other))


def test_reading_loss_is_cross_entropy_and_zero_without_a_scene() -> None:
    samples = [playroom.sample(i, frames=8, height=16, width=16).scene for i in range(2)]
    grid = FAMILY.presets["tiny"].grid
    classes = [torch.from_numpy(labels.on_grid(scene, grid)).flatten(1) for scene in samples]
    even = torch.zeros(2, classes[0].shape[1], sum(labels.CLASSES))
    chance = sum(math.log(n) for n in labels.CLASSES)
    assert reading.reading_loss(even, samples, grid, camera=False).tolist() == pytest.approx([chance, chance], rel=1e-5)
    expected = torch.cat([F.one_hot(torch.stack([c[i] for c in classes]), n) for i, n in enumerate(labels.CLASSES)], -1)
    assert reading.reading_loss(50.0 * expected, samples, grid, camera=False).max() < 1e-6
    assert reading.reading_loss(even, [None, samples[1]], grid, camera=False).tolist() == pytest.approx(
        [0, chance], rel=1e-5
    )


def test_clips_without_scenes_train_every_parameter() -> None:
    config = FAMILY.presets["tiny"]
    model = FAMILY.build(config)
    samples = [playroom.sample(i, frames=8, height=16, width=16) for i in range(2)]
    video = torch.stack([torch.from_numpy(sample.video_CTHW) for sample in samples])
    plain = Batch(video, [sample.caption for sample in samples], torch.zeros(2, 1, 8, 16, 16))

    def loss(batch: Batch) -> torch.Tensor:
        return recipe.loss(model, config, batch, torch.Generator().manual_seed(0)).mean()

    loss(plain).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert loss(replace(plain, scenes=[sample.scene for sample in samples])) > loss(plain)


def test_pixels_near_an_object_count_more_at_lower_noise() -> None:
    level = RectifiedFlow(1.0).level(torch.tensor([0.99, 0.97, 0.92, 0.5], dtype=torch.float64))
    assert recipe.localisation(level).flatten().tolist() == pytest.approx([0, 0, 0.5, 1])
    samples = playroom.sample(0, frames=8, height=16, width=16)
    on = reading.object_mask([None, samples.scene], torch.zeros(2, 3, 8, 16, 16))
    assert on.shape == (2, 1, 8, 16, 16)
    assert not on[0].any()
    assert 0 < on[1].mean() < 0.6


def test_placement_loss_is_cross_entropy_and_zero_without_a_scene() -> None:
    samples = [playroom.sample(i, frames=8, height=16, width=16).scene for i in range(2)]
    even = torch.zeros(2, 1, 8, 8, 8)
    cover, near = recipe.cover_targets(samples, even), reading.object_mask(samples, even)
    assert recipe.placement_loss(even, cover, near, samples).tolist() == pytest.approx([math.log(2)] * 2, rel=1e-5)
    right = torch.logit(cover, 1e-6)
    least = recipe.placement_loss(right, cover, near, samples)
    for other in (right + 0.5, right - 0.5, right.roll(1, -1), right.roll(1, -2)):
        assert (recipe.placement_loss(other, cover, near, samples) > least).all()
    assert recipe.placement_loss(even, cover, near, [None, samples[1]])[0] == 0


def test_pixel_emphasis_is_largest_on_outlines() -> None:
    cover, near = torch.tensor([[0.0, 0.3], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    more = recipe.pixel_emphasis(cover[None, None, None], near[None, None, None], torch.zeros(1, 3, 1, 4, 4))[0, 0, 0]
    on, edge = recipe.OBJECT_EMPHASIS, recipe.OBJECT_EMPHASIS + recipe.EDGE_EMPHASIS
    assert more.tolist() == [[0, 0, edge, edge]] * 2 + [[on, on, on, on]] * 2


def test_a_tokens_sketch_covers_its_frames_and_pixels(tiny: Zoetrope) -> None:
    numbered = copy.deepcopy(tiny)
    nn.init.zeros_(numbered.sketch.weight)
    with torch.no_grad():
        numbered.sketch.bias.copy_(torch.arange(64))  # a token: 4 frames of 4 rows of 4 cells
    t, y, x = torch.meshgrid(torch.arange(8), torch.arange(8), torch.arange(8), indexing="ij")
    assert torch.equal(numbered(**inputs(1)).sketch[0, 0], ((t % 4) * 16 + (y % 4) * 4 + x % 4).double())


@pytest.mark.parametrize("log_snr", [-6.0, 0.0, 4.0, 12.0])
def test_input_and_estimate_are_weighted_by_inverse_variance(tiny: Zoetrope, log_snr: float) -> None:
    given = {**inputs(), "log_snr_B": torch.full((2,), log_snr, dtype=torch.float64)}
    silent = _without_estimate(tiny, shown=-1e9)
    alpha2, sigma2 = 1 / (1 + math.exp(-log_snr)), 1 / (1 + math.exp(log_snr))
    weight = (alpha2 / sigma2) / (alpha2 / sigma2 + 1 / 0.02**2)
    assert torch.allclose(x0(silent, **given), given["z_BCTHW"] * weight / alpha2**0.5, atol=1e-12)


def _without_estimate(model: Zoetrope, shown: float) -> Zoetrope:
    """Copy the model with zero estimates and with ``shown`` as the logits of the backdrop's share."""
    silent = copy.deepcopy(model)
    for layer in (silent.out, silent.backdrop.out, silent.backdrop.share):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.constant_(silent.backdrop.share.bias, shown)
    return silent


def test_the_backdrop_weights_the_mean_of_frames_by_inverse_variance(tiny: Zoetrope) -> None:
    given = {**inputs(), "log_snr_B": torch.full((2,), 5.0, dtype=torch.float64)}
    alpha2, sigma2 = 1 / (1 + math.exp(-5)), 1 / (1 + math.exp(5))
    weight = (alpha2 / sigma2 * 8) / (
        alpha2 / sigma2 * 8 + 1 / 0.02**2
    )  # the mean of 8 frames has an eighth of the noise
    mean = given["z_BCTHW"].mean(2, keepdim=True).expand_as(given["z_BCTHW"])
    assert torch.allclose(x0(_without_estimate(tiny, shown=1e3), **given), mean * weight / alpha2**0.5, atol=1e-12)


def test_the_backdrop_is_equal_in_all_frames_that_are_processed_together(tiny: Zoetrope) -> None:
    changes = [
        tiny(**inputs(), per_frame=apart).backdrop.diff(dim=2).abs().amax((0, 1, 3, 4)) for apart in (False, True)
    ]
    assert changes[0].eq(0).all()
    assert (changes[1] > 0).nonzero().tolist() == [[3]]  # from the fourth frame to the fifth


def test_the_clip_blends_estimate_and_backdrop_by_the_share(tiny: Zoetrope) -> None:
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


def test_the_initial_share_is_the_complement_of_the_sketch() -> None:
    backdrop = FAMILY.build(FAMILY.presets["tiny"]).backdrop
    sketch = torch.randn(1, 8, 4, 4, 4)
    fine = torch.randn(1, 8, 4, 4, 16)
    _, share = backdrop(fine, sketch, torch.randn(1, 3, 8, 16, 16), torch.zeros(1), torch.zeros(1, 16), 8)
    for y, x in ((0, 0), (1, 2), (6, 13), (15, 8)):
        expected = -sketch[0, :, y // 4, x // 4, (y % 4 // 2) * 2 + x % 4 // 2]
        assert torch.allclose(share[0, 0, :, y, x], expected, atol=1e-6)


def test_share_loss_is_cross_entropy_weighted_toward_objects() -> None:
    ground, near = torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    logits = torch.tensor([-50.0, 0.0, 50.0, 0.0])
    samples = recipe.share_loss(*(t.view(1, 1, 1, 2, 2) for t in (logits, ground, near)))
    assert samples.item() == pytest.approx(math.log(2) * 1.1 / 2.2, rel=1e-5)


def test_a_place_block_is_local_and_starts_near_the_identity() -> None:
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
def test_windows_and_blocks_are_conditioned_on_their_own_given_frames(how, starts, monkeypatch) -> None:  # noqa: ANN001
    """Every second frame has one given row, a different one each time."""
    mask = torch.zeros(1, 1, 16, 16, 16)
    for frame in range(0, 16, 2):
        mask[:, :, frame, frame] = 1
    canvas = Canvas.of(torch.randn(1, 3, 16, 16, 16).clamp(-1, 1) * mask, mask)
    monkeypatch.setitem(tasks.TASKS, "inpaint", tasks.Task(lambda r: r, lambda _r, _e: canvas))
    model, inputs_ = load("zoetrope", preset="tiny"), []
    model.system.model.register_forward_pre_hook(lambda _m, args: inputs_.append([x.clone() for x in args[3:5]]))
    model.run(
        Request(task="inpaint", prompt="a ball", steps=1, seed=1, guidance=1.0, frames=16, sampler="euler", **how)
    )
    assert len(inputs_) == 3
    generated = torch.zeros(16, dtype=torch.bool)  # frames of earlier blocks are fully given
    for (given, known), start in zip(inputs_, starts, strict=True):
        frames = torch.arange(start, start + 8)
        own = frames[~generated[frames]]
        assert torch.equal(given[:, :, own - start], canvas.video[:, :, own])
        assert torch.equal(known[:, :, own - start], mask[:, :, own])
        if "window" not in how:
            assert bool(known[:, :, generated[frames]].all())
            generated[frames] = True
