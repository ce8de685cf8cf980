"""The sprite: an object drawn once and laid over every frame."""

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
from kinema.families.zoetrope import lessons, recipe, sprite, turning, warp
from kinema.families.zoetrope.family import FAMILY
from kinema.families.zoetrope.model import Zoetrope
from kinema.families.zoetrope.steady import least_absolute_line, steadied
from kinema.settle import with_defaults
from kinema.system import Batch

SIDE = 32


@pytest.fixture(scope="module")
def tiny() -> Zoetrope:
    torch.manual_seed(0)
    model = FAMILY.build(FAMILY.presets["tiny-sprite"]).eval()
    with torch.no_grad():
        for p in model.parameters():  # zero-initialised layers would make every claim trivially true
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
    made = [playroom.sample(i, frames=8, height=16, width=16, split="all", **f) for i, f in enumerate(fixed)]
    video = torch.stack([torch.from_numpy(sample.video_CTHW) for sample in made])
    known = [sample.scene for sample in made]
    return Batch(video, [sample.caption for sample in made], torch.zeros(len(made), 1, 8, 16, 16), scenes=known)


def pose(frames: int = 1, x: float = 32.0, y: float = 32.0, radius: float = SIDE / 2 / warp.REACH) -> warp.Pose:
    """A texel a pixel, unless told otherwise, and unturned."""
    one = torch.ones(1, frames, dtype=torch.float64)
    return warp.Pose(torch.stack([x * one, y * one], -1), radius * one, 0 * one, one)


def picture(channels: int = 4) -> torch.Tensor:
    return torch.randn(1, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_texel_a_pixel_shows_the_picture_itself_and_shifts_by_whole_pixels_are_exact() -> None:
    shown = picture()
    for right, down in ((0, 0), (5, 0), (0, -3), (-7, 4)):
        colour, _ = warp.laid(shown, pose(x=32 + right, y=32 + down), 64, 64)
        window = colour[:, :, 0, 16 + down : 16 + down + SIDE, 16 + right : 16 + right + SIDE]
        assert torch.allclose(window, shown[:, :3], atol=1e-12)


def test_a_quarter_turn_is_clockwise() -> None:
    colour, _ = warp.laid(
        picture(), pose()._replace(turn_BT=torch.full((1, 1), math.pi / 2, dtype=torch.float64)), 64, 64
    )
    assert torch.allclose(colour[:, :, 0, 16:48, 16:48], picture()[:, :3].rot90(-1, (2, 3)), atol=1e-6)


def test_lifting_undoes_laying() -> None:
    placed = pose(x=29.0, y=35.0)
    colour, _ = warp.laid(picture(), placed, 64, 64)
    assert torch.allclose(warp.lifted(colour, placed, SIDE)[:, :, 0], picture()[:, :3], atol=1e-12)


def test_nothing_is_covered_outside_the_picture_whatever_it_says() -> None:
    everywhere = torch.full_like(picture(), -5.0)
    _, cover = warp.laid(everywhere, pose(), 64, 64)
    assert cover[0, 0, 0, 32, 32] == 1
    assert cover[..., :17, :].eq(0).all()
    assert cover[..., 48:].eq(0).all()


@pytest.mark.parametrize("glyph", ["ball", "star", "heart", "A"])
def test_with_true_poses_and_outline_the_cover_is_the_renderers(glyph: str) -> None:
    shape = {"letter": glyph} if len(glyph) == 1 else {"shape": glyph}
    scene = playroom.sample(3, split="all", motion="spins", **shape).scene
    x, y, size, turn, visible = torch.from_numpy(labels.poses(scene))[None].unbind(-1)
    placed = warp.Pose(torch.stack([x, y], -1) * 64, size * 32, turn, visible)
    outline = torch.from_numpy(labels.upright(glyph, 32, warp.REACH))[None, None]
    _, cover = warp.laid(outline.expand(1, 4, 32, 32), placed, 64, 64)
    off = (cover[0, 0] - torch.from_numpy(labels.covered(scene, 64, 64))).abs()
    assert off.mean() < 0.002
    found, radius = sprite.found(cover)
    if glyph in ("ball", "star"):  # others are not balanced about the point that they turn around
        assert (found - placed.centre_BT2).abs().max() < 0.1
    if glyph == "ball":
        assert (radius / placed.radius_BT - 1).abs().max() < 0.03


@pytest.mark.parametrize("motion", ["bounces", "orbits", "swings", "slides right", "rolls left", "grows", "fades"])
def test_steadying_bends_true_motions_by_less_than_a_third_of_a_pixel(motion: str) -> None:
    known = [playroom.sample(i, height=8, width=8, split="all", motion=motion).scene for i in range(16)]
    true = torch.stack([torch.from_numpy(labels.poses(scene)) for scene in known])
    for part in (true[..., 0], true[..., 1]):
        moved = part * 64
        assert (steadied(moved, torch.ones_like(moved), sprite.TREMBLE) - moved).abs().max() < 0.3
    for even in (true[..., 2] * 32, true[..., 4]):  # size and opacity: straight lines
        assert (least_absolute_line(even, torch.ones_like(even)) - even).abs().max() < 1e-4


@pytest.mark.parametrize("motion", ["moves right", "slides up"])
def test_steadying_takes_half_of_what_trembles_on_a_straight_way(motion: str) -> None:
    known = [playroom.sample(i, height=8, width=8, split="all", motion=motion).scene for i in range(16)]
    way = torch.stack([torch.from_numpy(labels.poses(scene)[:, :2].T) for scene in known]).flatten(0, 1) * 64
    trembling = 0.2 * torch.randn(way.shape, generator=torch.Generator().manual_seed(0))
    left = steadied(way + trembling, torch.ones_like(way), sprite.TREMBLE) - way
    assert left.square().mean().sqrt() < 0.55 * trembling.square().mean().sqrt()


def test_frames_that_are_not_sure_follow_the_others() -> None:
    way = torch.arange(16.0)[None] * 2
    wrong = way.clone()
    wrong[0, 9] += 0.8
    sure = torch.ones_like(way)
    sure[0, 9] = 0
    assert (steadied(wrong, sure, 0.3) - way).abs().max() < 0.1


@pytest.mark.parametrize("wrong_at", [[3, 4, 11, 12, 13], [0, 1, 8], [13, 14, 15]])
def test_a_straight_line_is_not_bent_by_frames_that_are_wrong(wrong_at: list[int]) -> None:
    line = torch.linspace(4, 9, 16, dtype=torch.float64)[None]
    wrong = line.clone()
    wrong[0, wrong_at] = torch.tensor([0.5, 2, 0, 1, 0.3], dtype=torch.float64)[: len(wrong_at)]
    assert (least_absolute_line(wrong, torch.ones_like(wrong)) - line).abs().max() < 0.02
    half_as_sure = least_absolute_line(wrong, 0.5 * torch.ones_like(wrong))
    assert torch.allclose(half_as_sure, least_absolute_line(wrong, torch.ones_like(wrong)))


@pytest.mark.parametrize(
    ("grown", "kept"), [(1.0, 0.0), (1.18, 0.0), (1 / 1.18, 0.0), (1.5, 1.0), (2.0, 1.0), (1 / 2.08, 1.0)]
)
def test_sizes_change_as_much_as_what_grows_or_not_at_all(grown: float, kept: float) -> None:
    line = torch.linspace(8, 8 * grown, 16, dtype=torch.float64)[None]
    made = sprite.levelled(line)
    torch.testing.assert_close(made[0].diff().sum(), kept * line[0].diff().sum(), atol=1e-9, rtol=0)
    assert made.mean() == pytest.approx(line.mean().item())


def test_between_the_two_sizes_change_by_a_part() -> None:
    ends = [sprite.levelled(torch.linspace(8, 8 * g, 16)[None])[0, -1].item() for g in (1.15, 1.25, 1.35, 1.45)]
    assert ends == sorted(ends)


def test_the_gradient_of_a_line_reaches_every_frame_near_it() -> None:
    value = torch.linspace(4, 9, 16) + 0.3 * torch.randn(16, generator=torch.Generator().manual_seed(0))
    value.requires_grad_()
    least_absolute_line(value[None], torch.ones(1, 16)).sum().backward()
    assert value.grad is not None
    assert value.grad.abs().max() < 3
    assert (value.grad > 0.2).sum() >= 12


@pytest.mark.parametrize("lost", [range(2, 5), range(7, 10), range(11, 14)])
@pytest.mark.parametrize("shown", [0, 0.2])
def test_where_frames_lose_the_object_it_goes_on_as_its_neighbours_say(lost: range, shown: float) -> None:
    ball = torch.from_numpy(labels.upright("ball", 32, warp.REACH))[None, None].expand(1, 4, 32, 32)
    ways = [torch.stack([torch.linspace(14, 50, 16), torch.full((16,), 50.0)], -1)]
    turn = torch.linspace(0, 5, 16)
    ways.append(32 + 18 * torch.stack([turn.cos(), turn.sin()], -1))
    for way, most in zip(ways, (0.3, 2.0), strict=True):
        radius, opaque = torch.full((1, 16), 8.0), torch.ones(1, 16)
        true = warp.Pose(way[None], radius, 0 * opaque, opaque)
        _, cover = warp.laid(ball, true, 64, 64)
        cover = cover.clone()
        cover[:, :, lost] *= shown
        centre, found = sprite.found(cover)
        disc, sure = sprite.sure_of(cover, found, opaque)
        pose = sprite.composed(warp.Pose(centre, disc, 0 * opaque, opaque), sure, torch.zeros(1, 2))
        assert (pose.radius_BT - 8).abs().max() < 0.2
        assert (pose.centre_BT2 - true.centre_BT2).abs().max() < most


def test_a_fading_object_keeps_its_colour_in_its_picture() -> None:
    placed = pose(frames=8, radius=10.0)._replace(visible_BT=torch.linspace(1, 0.1, 8, dtype=torch.float64)[None])
    disc = torch.zeros(1, 4, SIDE, SIDE, dtype=torch.float64)
    disc[:, :3] = torch.tensor([0.8, -0.6, 0.1])[None, :, None, None]
    disc[:, 3] = torch.from_numpy(labels.upright("ball", SIDE, warp.REACH))
    ground = torch.full((1, 3, 8, 64, 64), 0.3, dtype=torch.float64)
    colour, cover = warp.laid(disc, placed, 64, 64)
    clip = torch.lerp(ground, colour, cover * placed.visible_BT[:, None, :, None, None])
    mean, share = sprite.averaged(clip, ground, cover, placed, SIDE)
    assert (mean - disc[:, :3])[..., 10:-10, 10:-10].abs().max() < 0.02
    assert share[..., 10:-10, 10:-10].min() > 0.99
    assert share[..., 0].max() == 0


def test_the_turn_is_told_by_matching_a_template_through_more_than_a_whole_turn() -> None:
    scene = playroom.sample(5, split="all", motion="spins", shape="heart", speed="fast").scene
    x, y, size, turn, _ = torch.from_numpy(labels.poses(scene))[None].unbind(-1)
    assert (turn[:, -1] - turn[:, 0]).abs() > 7
    cover = torch.from_numpy(labels.covered(scene, 64, 64))[None, None]
    unturned = warp.Pose(torch.stack([x, y], -1) * 64, size * 32, torch.zeros_like(turn), torch.ones_like(turn))
    seen = turning.around(cover.expand(1, 3, -1, -1, -1), cover, unturned)
    angle = torch.arange(turning.STEPS) * (2 * math.pi / turning.STEPS)
    radius = torch.tensor(turning.RADII)[:, None]
    template = torch.zeros(1, turning.CHANNELS, len(turning.RADII), turning.STEPS)
    outline = labels.distance("heart", (radius * angle.cos()).numpy(), (radius * angle.sin()).numpy())
    template[:, 3] = torch.from_numpy(0.5 - (outline > 0).astype("float32"))
    told = turning.told(turning.matched(seen, template))
    off = told - turn
    assert (off - (off[0, 0] / (2 * math.pi)).round() * 2 * math.pi).abs().max() < math.radians(6)


def test_where_nothing_tells_the_turn_it_is_upright() -> None:
    assert turning.told(torch.zeros(2, 16, turning.STEPS)).eq(0).all()


def test_of_the_turns_of_a_star_those_that_turn_least_are_taken() -> None:
    step = 2 * math.pi / turning.STEPS
    angle = torch.arange(turning.STEPS) * step
    turn = torch.arange(16.0)[None] * 0.3
    logits = 8 * (4 * (angle - turn[..., None])).cos()  # four alike
    assert (turning.told(logits) - turn).abs().max() < 0.5 * step


def test_without_a_share_the_clip_is_the_one_drawn_frame_by_frame(tiny: Zoetrope) -> None:
    """Also the network without a sprite is the same to the bit."""
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
    alone = tiny(**given, per_frame=True)  # frames by themselves have no sprite
    assert alone.sprite is None
    assert torch.equal(alone.x0, plain(**given, per_frame=True).x0)


def test_with_the_whole_share_the_clip_is_the_sprite_over_the_backdrop(
    tiny: Zoetrope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sprite, "agreement", lambda under, shown: torch.ones(len(under)))  # noqa: ARG005
    whole = copy.deepcopy(tiny)
    nn.init.zeros_(whole.sprite.frame.weight)
    with torch.no_grad():
        whole.sprite.frame.bias[3] = 50.0
    made = whole(**inputs())
    assert torch.allclose(made.x0, made.sprite.laid_BCTHW, atol=1e-5)
    bare = made.sprite.laid_BCTHW == made.still
    assert 0 < bare.float().mean() < 1  # beyond the sprite it is the backdrop, exactly


def test_a_sprite_that_disagrees_with_the_frames_is_not_believed() -> None:
    one, other = torch.zeros(3, 1, 2, 8, 8), torch.zeros(3, 1, 2, 8, 8)
    one[..., :4], other[0, ..., :4], other[1, ..., 2:6] = 1, 1, 1
    assert sprite.agreement(one, other).tolist() == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize(("agreed", "share"), [(sprite.DOUBT, 0), (sprite.TRUST, 1), (1, 1)])
def test_as_far_as_it_is_not_believed_the_clip_is_drawn_frame_by_frame(
    agreed: float, share: int, tiny: Zoetrope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sprite, "agreement", lambda under, shown: torch.full((len(under),), float(agreed)))  # noqa: ARG005
    sure = copy.deepcopy(tiny)
    nn.init.zeros_(sure.sprite.frame.weight)
    with torch.no_grad():
        sure.sprite.frame.bias[3] = 50.0
    plain = FAMILY.build(FAMILY.presets["tiny"]).eval()
    plain.load_state_dict({k: v for k, v in tiny.state_dict().items() if not k.startswith("sprite.")})
    given = inputs()
    made = sure(**given)
    assert made.sprite.share_B.tolist() == pytest.approx([share] * len(made.x0), abs=1e-6)
    assert torch.allclose(made.x0, plain(**given).x0, atol=1e-6) == (share == 0)


def test_a_faint_object_does_not_make_its_visibility_count_more(tiny: Zoetrope) -> None:
    scenes = [playroom.sample(0, frames=8, split="all", caption="a red star spins").scene]
    seen = tiny(**inputs(1)).sprite
    unsure = seen._replace(visible_BT=torch.zeros_like(seen.visible_BT))
    off = []
    for opacity in (1.0, 0.05):
        true = lessons.truth(scenes, seen, 16)
        faint = true._replace(pose=true.pose._replace(visible_BT=torch.full_like(true.pose.visible_BT, opacity)))
        exact = unsure._replace(pose=faint.pose)
        off.append(
            lessons.misposed(exact, faint).item()
            - lessons.misposed(exact._replace(visible_BT=faint.pose.visible_BT.logit(1e-6)), faint).item()
        )
    entropy = -(0.05 * math.log(0.05) + 0.95 * math.log(0.95))
    assert off == pytest.approx([math.log(2), math.log(2) - entropy], rel=1e-3)


def test_a_request_is_planned_where_memory_is_scarce() -> None:
    """On the meta device, which has no autocast."""
    model = kinema.load("zoetrope", preset="tiny-sprite", memory=8 * 2**20)
    assert model.generate("a red ball rolls right", steps=1, seed=0).video.shape[2:] == (8, 16, 16)


def test_gradients_reach_the_picture_and_the_pose_and_every_parameter_learns(tiny: Zoetrope) -> None:
    config = FAMILY.presets["tiny-sprite"]
    batch = batch_of({"motion": "spins", "shape": "star"}, {"motion": "bounces", "shape": "heart"})
    learner = copy.deepcopy(tiny).train()
    seen = learner(**inputs()).sprite
    for wanted in (seen.picture_BCNN, *seen.pose):
        (grad,) = torch.autograd.grad(seen.laid_BCTHW.square().sum(), wanted, retain_graph=True)
        assert grad.abs().sum() > 0
    recipe.loss(learner, config, batch, torch.Generator().manual_seed(0)).mean().backward()
    assert all(p.grad is not None for p in learner.parameters())
    assert all(p.grad.abs().sum() > 0 for n, p in learner.named_parameters() if n.startswith("sprite."))
    folder = copy.deepcopy(tiny).train()
    plain = replace(batch, scenes=[None, None])
    recipe.loss(folder, config, plain, torch.Generator().manual_seed(0)).mean().backward()
    assert all(p.grad is not None for p in folder.parameters())


def test_under_bf16_autocast_geometry_stays_exact_and_everything_learns(tiny: Zoetrope) -> None:
    learner = copy.deepcopy(tiny).train()
    batch = batch_of({"motion": "spins", "shape": "star"}, {"motion": "bounces", "shape": "heart"})
    with torch.autocast("cpu", torch.bfloat16):
        seen = learner(**inputs()).sprite
        loss = recipe.loss(learner, FAMILY.presets["tiny-sprite"], batch, torch.Generator().manual_seed(0)).mean()
    loss.backward()
    assert loss.isfinite()
    for part in (seen.laid_BCTHW, seen.picture_BCNN, *seen.pose):
        assert part.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters())


def test_weights_in_halves_draw_in_halves(tiny: Zoetrope) -> None:
    half = copy.deepcopy(tiny).to(torch.bfloat16)
    given = {
        k: v.to(torch.bfloat16) if k in ("z_BCTHW", "given_BCTHW", "mask_B1THW") else v for k, v in inputs().items()
    }
    made = half(**given)
    assert made.x0.dtype == torch.bfloat16
    assert made.sprite.pose.centre_BT2.dtype == torch.float32


def test_only_one_object_before_a_still_camera_is_a_sprite(tiny: Zoetrope) -> None:
    known = [
        playroom.sample(0, frames=8, split="all", caption="a red ball rolls right").scene,
        playroom.sample(0, frames=8, split="all", caption="a red ball rolls right behind a blue box").scene,
        playroom.sample(0, frames=8, split="all", caption="a red star spins while the camera zooms in").scene,
        None,
    ]
    seen = tiny(**inputs(4)).sprite
    true = lessons.truth(known, seen, 16)
    assert true.alone_B.tolist() == [1, 0, 0, 0]
    certain = seen._replace(alone_B=torch.tensor([50.0, -50.0, -50.0, 0.0]))
    assert lessons.untold(certain, known, true).abs().max() < 1e-6
    assert lessons.misposed(seen, true)[1:].eq(0).all()
    assert lessons.misshapen(seen.picture_BCNN, true)[1:].eq(0).all()


def test_the_true_sprite_is_not_mended(tiny: Zoetrope) -> None:
    known = [playroom.sample(0, frames=8, split="all", caption="a red star spins").scene]
    seen = tiny(**inputs(1)).sprite
    true = lessons.truth(known, seen, 16)
    right = seen.picture_BCNN.detach().clone()
    right[:, -1] = true.distance_BNN
    assert lessons.misshapen(right, true).max() < 1e-6 < lessons.misshapen(right.roll(1, -1), true).min()
    turned = true.pose.turn_BT + 2 * math.pi / 5  # to a star's next point: its outline is the same
    angle = torch.arange(turning.STEPS) * (2 * math.pi / turning.STEPS)
    fives, wrong = torch.tensor([5.0]), []
    for turn in (true.pose.turn_BT, turned, turned + 0.5):
        one = 20 * (angle - turn[..., None]).cos()
        wrong.append(turning.misturned(one, true.pose.turn_BT, fives, 0.0).min())
    five = turning.misturned(20 * (5 * (angle - turned[..., None])).cos(), true.pose.turn_BT, fives, 0.0)
    assert five.max() < min(wrong)
    certain = seen._replace(pose=true.pose, visible_BT=torch.full((1, 8), 30.0), turn_BTA=0 * seen.turn_BTA)
    assert lessons.misposed(certain, true).item() == pytest.approx(1.2 * math.log(turning.STEPS), rel=1e-4)


def test_turns_leave_outlines_as_they_are() -> None:
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


def test_weights_with_a_sprite_fit_twelve_megabytes_in_half_precision() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in FAMILY.build(FAMILY.presets["sprite"]).parameters())
    assert count * 2 < 11_970_000  # names and the config take some 20 kB


def test_files_without_the_word_have_no_sprite() -> None:
    told = FAMILY.to_json(FAMILY.presets["base"])
    del told["sprite"]
    config = FAMILY.from_json(told)
    assert config.sprite == 0
    assert config == FAMILY.presets["base"]


def test_guidance_acts_where_noise_outweighs_the_clip_unless_told_otherwise() -> None:
    """Nearer to the clip the sprite of the branch without words would show."""
    sprited, plain = (kinema.load("zoetrope", preset=preset).system for preset in ("tiny-sprite", "tiny"))
    ask = Request(prompt="a red ball")
    assert with_defaults(sprited, ask).guidance_interval == (-math.inf, 0)
    assert with_defaults(plain, ask).guidance_interval is None
    assert with_defaults(sprited, replace(ask, guidance_interval=(-3, 3))).guidance_interval == (-3, 3)
    assert Request.from_json(with_defaults(sprited, ask).to_json()).guidance_interval == (-math.inf, 0)
