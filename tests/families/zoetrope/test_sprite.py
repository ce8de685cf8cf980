"""The sprite: one image of the object, composited into every frame."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import kinema
from kinema import Request
from kinema.data import playroom
from kinema.data.playroom import labels
from kinema.families.zoetrope import recipe, rotation, sprite, sprite_losses, warp
from kinema.families.zoetrope.family import FAMILY
from kinema.families.zoetrope.model import Zoetrope
from kinema.families.zoetrope.smoothing import least_absolute_line, smooth
from kinema.settle import with_defaults
from kinema.system import Batch

SIDE = 32


@pytest.fixture(scope="module")
def tiny() -> Zoetrope:
    torch.manual_seed(0)
    model = FAMILY.build(FAMILY.presets["tiny-sprite"]).eval()
    with torch.no_grad():
        for p in model.parameters():  # zero-initialised layers would make the tests trivial
            p.add_(torch.randn_like(p) * 0.05)
    return model


def inputs(batch: int = 2) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "z_BCTHW": torch.randn(batch, 3, 8, 16, 16, generator=g),
        "log_snr_B": torch.linspace(-2, 2, batch),
        "ids_BL": torch.randint(2, 50, (batch, 20), generator=g),
        "given_BCTHW": torch.zeros(batch, 3, 8, 16, 16),
        "mask_B1THW": torch.zeros(batch, 1, 8, 16, 16),
    }


def batch_of(*fixed: dict[str, str]) -> Batch:
    result = [playroom.sample(i, frames=8, height=16, width=16, split="all", **f) for i, f in enumerate(fixed)]
    video = torch.stack([torch.from_numpy(sample.video_CTHW) for sample in result])
    scenes = [sample.scene for sample in result]
    return Batch(video, [sample.caption for sample in result], torch.zeros(len(result), 1, 8, 16, 16), scenes=scenes)


def pose(frames: int = 1, x: float = 32.0, y: float = 32.0, radius: float = SIDE / 2 / warp.HALF_SIDE) -> warp.Pose:
    """An upright pose with one texel per pixel by default."""
    one = torch.ones(1, frames, dtype=torch.float64)
    return warp.Pose(torch.stack([x * one, y * one], -1), radius * one, 0 * one, one)


def random_sprite(channels: int = 4) -> torch.Tensor:
    return torch.randn(1, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_whole_pixel_shifts_at_native_scale_are_exact() -> None:
    shown = random_sprite()
    for right, down in ((0, 0), (5, 0), (0, -3), (-7, 4)):
        colour, _ = warp.to_frames(shown, pose(x=32 + right, y=32 + down), 64, 64)
        window = colour[:, :, 0, 16 + down : 16 + down + SIDE, 16 + right : 16 + right + SIDE]
        assert torch.allclose(window, shown[:, :3], atol=1e-12)


def test_a_quarter_turn_is_clockwise() -> None:
    colour, _ = warp.to_frames(
        random_sprite(), pose()._replace(angle_BT=torch.full((1, 1), math.pi / 2, dtype=torch.float64)), 64, 64
    )
    assert torch.allclose(colour[:, :, 0, 16:48, 16:48], random_sprite()[:, :3].rot90(-1, (2, 3)), atol=1e-6)


def test_to_sprite_inverts_to_frames() -> None:
    placed = pose(x=29.0, y=35.0)
    colour, _ = warp.to_frames(random_sprite(), placed, 64, 64)
    assert torch.allclose(warp.to_sprite(colour, placed, SIDE)[:, :, 0], random_sprite()[:, :3], atol=1e-12)


def test_coverage_is_zero_outside_the_sprite() -> None:
    everywhere = torch.full_like(random_sprite(), -5.0)
    _, cover = warp.to_frames(everywhere, pose(), 64, 64)
    assert cover[0, 0, 0, 32, 32] == 1
    assert cover[..., :17, :].eq(0).all()
    assert cover[..., 48:].eq(0).all()


@pytest.mark.parametrize("glyph", ["ball", "star", "heart", "A"])
def test_coverage_from_true_poses_matches_the_renderer(glyph: str) -> None:
    shape = {"letter": glyph} if len(glyph) == 1 else {"shape": glyph}
    scene = playroom.sample(3, split="all", motion="spins", **shape).scene
    x, y, size, turn, visible = torch.from_numpy(labels.poses(scene))[None].unbind(-1)
    placed = warp.Pose(torch.stack([x, y], -1) * 64, size * 32, turn, visible)
    outline = torch.from_numpy(labels.upright(glyph, 32, warp.HALF_SIDE))[None, None]
    _, cover = warp.to_frames(outline.expand(1, 4, 32, 32), placed, 64, 64)
    off = (cover[0, 0] - torch.from_numpy(labels.covered(scene, 64, 64))).abs()
    assert off.mean() < 0.002
    found, radius = sprite.locate(cover)
    if glyph in ("ball", "star"):  # other shapes rotate about a point off their centroid
        assert (found - placed.centre_BT2).abs().max() < 0.1
    if glyph == "ball":
        assert (radius / placed.radius_BT - 1).abs().max() < 0.03


@pytest.mark.parametrize("motion", ["bounces", "orbits", "swings", "slides right", "rolls left", "grows", "fades"])
def test_smoothing_changes_true_motions_by_less_than_a_third_of_a_pixel(motion: str) -> None:
    scenes = [playroom.sample(i, height=8, width=8, split="all", motion=motion).scene for i in range(16)]
    target = torch.stack([torch.from_numpy(labels.poses(scene)) for scene in scenes])
    for part in (target[..., 0], target[..., 1]):
        moved = part * 64
        assert (smooth(moved, torch.ones_like(moved), sprite.MAX_JITTER) - moved).abs().max() < 0.3
    for even in (target[..., 2] * 32, target[..., 4]):  # size and opacity: straight lines
        assert (least_absolute_line(even, torch.ones_like(even)) - even).abs().max() < 1e-4


@pytest.mark.parametrize("motion", ["moves right", "slides up"])
def test_smoothing_halves_jitter_on_straight_paths(motion: str) -> None:
    scenes = [playroom.sample(i, height=8, width=8, split="all", motion=motion).scene for i in range(16)]
    way = torch.stack([torch.from_numpy(labels.poses(scene)[:, :2].T) for scene in scenes]).flatten(0, 1) * 64
    trembling = 0.2 * torch.randn(way.shape, generator=torch.Generator().manual_seed(0))
    left = smooth(way + trembling, torch.ones_like(way), sprite.MAX_JITTER) - way
    assert left.square().mean().sqrt() < 0.55 * trembling.square().mean().sqrt()


def test_unsure_frames_follow_the_others() -> None:
    way = torch.arange(16.0)[None] * 2
    wrong = way.clone()
    wrong[0, 9] += 0.8
    sure = torch.ones_like(way)
    sure[0, 9] = 0
    assert (smooth(wrong, sure, 0.3) - way).abs().max() < 0.1


@pytest.mark.parametrize("wrong_at", [[3, 4, 11, 12, 13], [0, 1, 8], [13, 14, 15]])
def test_outliers_do_not_bend_a_least_absolute_line(wrong_at: list[int]) -> None:
    line = torch.linspace(4, 9, 16, dtype=torch.float64)[None]
    wrong = line.clone()
    wrong[0, wrong_at] = torch.tensor([0.5, 2, 0, 1, 0.3], dtype=torch.float64)[: len(wrong_at)]
    assert (least_absolute_line(wrong, torch.ones_like(wrong)) - line).abs().max() < 0.02
    half_as_sure = least_absolute_line(wrong, 0.5 * torch.ones_like(wrong))
    assert torch.allclose(half_as_sure, least_absolute_line(wrong, torch.ones_like(wrong)))


@pytest.mark.parametrize(
    ("grown", "kept"), [(1.0, 0.0), (1.18, 0.0), (1 / 1.18, 0.0), (1.5, 1.0), (2.0, 1.0), (1 / 2.08, 1.0)]
)
def test_sizes_change_fully_or_not_at_all(grown: float, kept: float) -> None:
    line = torch.linspace(8, 8 * grown, 16, dtype=torch.float64)[None]
    result = sprite.snap_size(line)
    torch.testing.assert_close(result[0].diff().sum(), kept * line[0].diff().sum(), atol=1e-9, rtol=0)
    assert result.mean() == pytest.approx(line.mean().item())


def test_changes_between_the_bounds_are_partial() -> None:
    ends = [sprite.snap_size(torch.linspace(8, 8 * g, 16)[None])[0, -1].item() for g in (1.15, 1.25, 1.35, 1.45)]
    assert ends == sorted(ends)


def test_the_gradient_of_a_line_reaches_nearby_frames() -> None:
    value = torch.linspace(4, 9, 16) + 0.3 * torch.randn(16, generator=torch.Generator().manual_seed(0))
    value.requires_grad_()
    least_absolute_line(value[None], torch.ones(1, 16)).sum().backward()
    assert value.grad is not None
    assert value.grad.abs().max() < 3
    assert (value.grad > 0.2).sum() >= 12


@pytest.mark.parametrize("lost", [range(2, 5), range(7, 10), range(11, 14)])
@pytest.mark.parametrize("shown", [0, 0.2])
def test_frames_without_the_object_are_interpolated(lost: range, shown: float) -> None:
    ball = torch.from_numpy(labels.upright("ball", 32, warp.HALF_SIDE))[None, None].expand(1, 4, 32, 32)
    ways = [torch.stack([torch.linspace(14, 50, 16), torch.full((16,), 50.0)], -1)]
    turn = torch.linspace(0, 5, 16)
    ways.append(32 + 18 * torch.stack([turn.cos(), turn.sin()], -1))
    for way, most in zip(ways, (0.3, 2.0), strict=True):
        radius, opaque = torch.full((1, 16), 8.0), torch.ones(1, 16)
        target = warp.Pose(way[None], radius, 0 * opaque, opaque)
        _, cover = warp.to_frames(ball, target, 64, 64)
        cover = cover.clone()
        cover[:, :, lost] *= shown
        centre, found = sprite.locate(cover)
        disc, sure = sprite.fit_size(cover, found, opaque)
        pose = sprite.smooth_pose(warp.Pose(centre, disc, 0 * opaque, opaque), sure, torch.zeros(1, 2))
        assert (pose.radius_BT - 8).abs().max() < 0.2
        assert (pose.centre_BT2 - target.centre_BT2).abs().max() < most


def test_a_fading_object_keeps_its_colour_in_the_sprite() -> None:
    placed = pose(frames=8, radius=10.0)._replace(visible_BT=torch.linspace(1, 0.1, 8, dtype=torch.float64)[None])
    disc = torch.zeros(1, 4, SIDE, SIDE, dtype=torch.float64)
    disc[:, :3] = torch.tensor([0.8, -0.6, 0.1])[None, :, None, None]
    disc[:, 3] = torch.from_numpy(labels.upright("ball", SIDE, warp.HALF_SIDE))
    ground = torch.full((1, 3, 8, 64, 64), 0.3, dtype=torch.float64)
    colour, cover = warp.to_frames(disc, placed, 64, 64)
    clip = torch.lerp(ground, colour, cover * placed.visible_BT[:, None, :, None, None])
    mean, share = sprite.average_object(clip, ground, cover, placed, SIDE)
    assert (mean - disc[:, :3])[..., 10:-10, 10:-10].abs().max() < 0.02
    assert share[..., 10:-10, 10:-10].min() > 0.99
    assert share[..., 0].max() == 0


def test_angles_are_decoded_through_more_than_a_full_rotation() -> None:
    scene = playroom.sample(5, split="all", motion="spins", shape="heart", speed="fast").scene
    x, y, size, turn, _ = torch.from_numpy(labels.poses(scene))[None].unbind(-1)
    assert (turn[:, -1] - turn[:, 0]).abs() > 7
    cover = torch.from_numpy(labels.covered(scene, 64, 64))[None, None]
    unturned = warp.Pose(torch.stack([x, y], -1) * 64, size * 32, torch.zeros_like(turn), torch.ones_like(turn))
    seen = rotation.sample_polar(cover.expand(1, 3, -1, -1, -1), cover, unturned)
    angle = torch.arange(rotation.STEPS) * (2 * math.pi / rotation.STEPS)
    radius = torch.tensor(rotation.RADII)[:, None]
    template = torch.zeros(1, rotation.CHANNELS, len(rotation.RADII), rotation.STEPS)
    outline = labels.distance("heart", (radius * angle.cos()).numpy(), (radius * angle.sin()).numpy())
    template[:, 3] = torch.from_numpy(0.5 - (outline > 0).astype("float32"))
    decoded = rotation.decode_angles(rotation.correlate(seen, template))
    off = decoded - turn
    assert (off - (off[0, 0] / (2 * math.pi)).round() * 2 * math.pi).abs().max() < math.radians(6)


def test_uniform_logits_decode_to_upright() -> None:
    assert rotation.decode_angles(torch.zeros(2, 16, rotation.STEPS)).eq(0).all()


def test_symmetric_shapes_decode_to_the_least_rotation() -> None:
    step = 2 * math.pi / rotation.STEPS
    angle = torch.arange(rotation.STEPS) * step
    turn = torch.arange(16.0)[None] * 0.3
    logits = 8 * (4 * (angle - turn[..., None])).cos()  # four equal maxima
    assert (rotation.decode_angles(logits) - turn).abs().max() < 0.5 * step


def test_with_zero_share_the_clip_equals_the_network_without_a_sprite(tiny: Zoetrope) -> None:
    """Both are bit-identical."""
    plain = FAMILY.build(FAMILY.presets["tiny"]).eval()
    plain.load_state_dict({k: v for k, v in tiny.state_dict().items() if not k.startswith("sprite.")})
    shut = copy.deepcopy(tiny)
    nn.init.zeros_(shut.sprite.frame.weight)
    nn.init.constant_(shut.sprite.frame.bias, -200.0)
    given = inputs()
    old, new = plain(**given), shut(**given)
    assert old.sprite is None
    assert new.sprite.share_B.eq(0).all()
    assert torch.equal(old.x0, new.x0)
    alone = tiny(**given, per_frame=True)  # per-frame mode has no sprite
    assert alone.sprite is None
    assert torch.equal(alone.x0, plain(**given, per_frame=True).x0)


def test_with_full_share_the_clip_is_the_sprite_over_the_backdrop(
    tiny: Zoetrope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sprite, "dice", lambda under, shown: torch.ones(len(under)))  # noqa: ARG005
    whole = copy.deepcopy(tiny)
    nn.init.zeros_(whole.sprite.frame.weight)
    with torch.no_grad():
        whole.sprite.frame.bias[3] = 50.0
    result = whole(**inputs())
    assert torch.allclose(result.x0, result.sprite.composite_BCTHW, atol=1e-5)
    bare = result.sprite.composite_BCTHW == result.backdrop
    assert 0 < bare.float().mean() < 1  # outside the sprite it is exactly the backdrop


def test_dice_measures_agreement_of_coverages() -> None:
    one, other = torch.zeros(3, 1, 2, 8, 8), torch.zeros(3, 1, 2, 8, 8)
    one[..., :4], other[0, ..., :4], other[1, ..., 2:6] = 1, 1, 1
    assert sprite.dice(one, other).tolist() == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize(("agreed", "share"), [(sprite.MIN_DICE, 0), (sprite.FULL_DICE, 1), (1, 1)])
def test_low_agreement_disables_the_sprite(
    agreed: float, share: int, tiny: Zoetrope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sprite, "dice", lambda under, shown: torch.full((len(under),), float(agreed)))  # noqa: ARG005
    sure = copy.deepcopy(tiny)
    nn.init.zeros_(sure.sprite.frame.weight)
    with torch.no_grad():
        sure.sprite.frame.bias[3] = 50.0
    plain = FAMILY.build(FAMILY.presets["tiny"]).eval()
    plain.load_state_dict({k: v for k, v in tiny.state_dict().items() if not k.startswith("sprite.")})
    given = inputs()
    result = sure(**given)
    assert result.sprite.share_B.tolist() == pytest.approx([share] * len(result.x0), abs=1e-6)
    assert torch.allclose(result.x0, plain(**given).x0, atol=1e-6) == (share == 0)


def test_visibility_loss_does_not_depend_on_the_weight_of_faint_frames(tiny: Zoetrope) -> None:
    scenes = [playroom.sample(0, frames=8, split="all", caption="a red star spins").scene]
    seen = tiny(**inputs(1)).sprite
    unsure = seen._replace(visible_BT=torch.zeros_like(seen.visible_BT))
    off = []
    for opacity in (1.0, 0.05):
        target = sprite_losses.scene_targets(scenes, seen, 16)
        faint = target._replace(pose=target.pose._replace(visible_BT=torch.full_like(target.pose.visible_BT, opacity)))
        exact = unsure._replace(pose=faint.pose)
        off.append(
            sprite_losses.pose_loss(exact, faint).item()
            - sprite_losses.pose_loss(exact._replace(visible_BT=faint.pose.visible_BT.logit(1e-6)), faint).item()
        )
    entropy = -(0.05 * math.log(0.05) + 0.95 * math.log(0.95))
    assert off == pytest.approx([math.log(2), math.log(2) - entropy], rel=1e-3)


def test_a_memory_plan_works_with_a_sprite() -> None:
    """Planning runs on the meta device, which has no autocast."""
    model = kinema.load("zoetrope", preset="tiny-sprite", memory=8 * 2**20)
    assert model.generate("a red ball rolls right", steps=1, seed=0).video.shape[2:] == (8, 16, 16)


def test_gradients_reach_sprite_pose_and_every_parameter(tiny: Zoetrope) -> None:
    config = FAMILY.presets["tiny-sprite"]
    batch = batch_of({"motion": "spins", "shape": "star"}, {"motion": "bounces", "shape": "heart"})
    learner = copy.deepcopy(tiny).train()
    seen = learner(**inputs()).sprite
    for wanted in (seen.sprite_BCNN, *seen.pose):
        (grad,) = torch.autograd.grad(seen.composite_BCTHW.square().sum(), wanted, retain_graph=True)
        assert grad.abs().sum() > 0
    recipe.loss(learner, config, batch, torch.Generator().manual_seed(0)).mean().backward()
    assert all(p.grad is not None for p in learner.parameters())
    assert all(p.grad.abs().sum() > 0 for n, p in learner.named_parameters() if n.startswith("sprite."))
    folder = copy.deepcopy(tiny).train()
    plain = replace(batch, scenes=[None, None])
    recipe.loss(folder, config, plain, torch.Generator().manual_seed(0)).mean().backward()
    assert all(p.grad is not None for p in folder.parameters())


def test_geometry_stays_float32_under_bfloat16_autocast(tiny: Zoetrope) -> None:
    learner = copy.deepcopy(tiny).train()
    batch = batch_of({"motion": "spins", "shape": "star"}, {"motion": "bounces", "shape": "heart"})
    with torch.autocast("cpu", torch.bfloat16):
        seen = learner(**inputs()).sprite
        loss = recipe.loss(learner, FAMILY.presets["tiny-sprite"], batch, torch.Generator().manual_seed(0)).mean()
    loss.backward()
    assert loss.isfinite()
    for part in (seen.composite_BCTHW, seen.sprite_BCNN, *seen.pose):
        assert part.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters())


def test_bfloat16_weights_give_bfloat16_clips(tiny: Zoetrope) -> None:
    half = copy.deepcopy(tiny).to(torch.bfloat16)
    given = {
        k: v.to(torch.bfloat16) if k in ("z_BCTHW", "given_BCTHW", "mask_B1THW") else v for k, v in inputs().items()
    }
    result = half(**given)
    assert result.x0.dtype == torch.bfloat16
    assert result.sprite.pose.centre_BT2.dtype == torch.float32


def test_only_single_objects_with_a_static_camera_have_a_sprite(tiny: Zoetrope) -> None:
    scenes = [
        playroom.sample(0, frames=8, split="all", caption="a red ball rolls right").scene,
        playroom.sample(0, frames=8, split="all", caption="a red ball rolls right behind a blue box").scene,
        playroom.sample(0, frames=8, split="all", caption="a red star spins while the camera zooms in").scene,
        None,
    ]
    seen = tiny(**inputs(4)).sprite
    target = sprite_losses.scene_targets(scenes, seen, 16)
    assert target.single_B.tolist() == [1, 0, 0, 0]
    certain = seen._replace(single_B=torch.tensor([50.0, -50.0, -50.0, 0.0]))
    assert sprite_losses.single_object_loss(certain, scenes, target).abs().max() < 1e-6
    assert sprite_losses.pose_loss(seen, target)[1:].eq(0).all()
    assert sprite_losses.shape_loss(seen.sprite_BCNN, target)[1:].eq(0).all()


def test_losses_are_lowest_for_the_true_sprite(tiny: Zoetrope) -> None:
    scenes = [playroom.sample(0, frames=8, split="all", caption="a red star spins").scene]
    seen = tiny(**inputs(1)).sprite
    target = sprite_losses.scene_targets(scenes, seen, 16)
    right = seen.sprite_BCNN.detach().clone()
    right[:, -1] = target.distance_BNN
    assert (
        sprite_losses.shape_loss(right, target).max() < 1e-6 < sprite_losses.shape_loss(right.roll(1, -1), target).min()
    )
    turned = target.pose.angle_BT + 2 * math.pi / 5  # to a star's next point, with the same outline
    angle = torch.arange(rotation.STEPS) * (2 * math.pi / rotation.STEPS)
    fives, wrong = torch.tensor([5.0]), []
    for turn in (target.pose.angle_BT, turned, turned + 0.5):
        one = 20 * (angle - turn[..., None]).cos()
        wrong.append(rotation.rotation_loss(one, target.pose.angle_BT, fives, 0.0).min())
    five = rotation.rotation_loss(20 * (5 * (angle - turned[..., None])).cos(), target.pose.angle_BT, fives, 0.0)
    assert five.max() < min(wrong)
    certain = seen._replace(pose=target.pose, visible_BT=torch.full((1, 8), 30.0), angle_BTA=0 * seen.angle_BTA)
    assert sprite_losses.pose_loss(certain, target).item() == pytest.approx(1.2 * math.log(rotation.STEPS), rel=1e-4)


def test_labelled_symmetries_preserve_outlines() -> None:
    along = torch.linspace(-1.2, 1.2, 41)
    y, x = torch.meshgrid(along, along, indexing="ij")

    def changed(glyph: str, turns: int) -> float:
        angle = torch.tensor(2 * math.pi / turns)
        turned = angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y
        before, after = (labels.distance(glyph, u.numpy(), v.numpy()) < 0 for u, v in ((x, y), turned))
        return float((before != after).sum() / before.sum())

    for glyph in labels.GLYPHS:
        turns = labels.turns(glyph) or 7
        assert changed(glyph, turns) < 0.03, glyph
        assert turns == 7 or all(changed(glyph, n) > 0.06 for n in range(turns + 1, 6)), glyph


def test_float16_weights_with_a_sprite_are_under_twelve_megabytes() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in FAMILY.build(FAMILY.presets["sprite"]).parameters())
    assert count * 2 < 11_970_000  # names and the config take some 20 kB


def test_configs_without_the_sprite_key_have_no_sprite() -> None:
    data = FAMILY.to_json(FAMILY.presets["base"])
    del data["sprite"]
    config = FAMILY.from_json(data)
    assert config.sprite == 0
    assert config == FAMILY.presets["base"]


def test_guidance_is_limited_to_high_noise_by_default() -> None:
    """At low noise the negative branch's sprite would show."""
    sprited, plain = (kinema.load("zoetrope", preset=preset).system for preset in ("tiny-sprite", "tiny"))
    ask = Request(prompt="a red ball")
    assert with_defaults(sprited, ask).guidance_interval == (-math.inf, 0)
    assert with_defaults(plain, ask).guidance_interval is None
    assert with_defaults(sprited, replace(ask, guidance_interval=(-3, 3))).guidance_interval == (-3, 3)
    assert Request.from_json(with_defaults(sprited, ask).to_json()).guidance_interval == (-math.inf, 0)
