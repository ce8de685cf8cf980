"""Scene graphs: motions, relations, the camera."""

from __future__ import annotations

import numpy as np
import pytest

from kinema.data.playroom import MOTIONS, sample
from kinema.schema import BadRequest


def tracks(seed: int, **fixed):
    return sample(seed, **{"split": "all", **fixed}).scene.objects


@pytest.mark.parametrize("way", ["left", "right", "up", "down"])
@pytest.mark.parametrize("verb", ["rolls", "moves", "slides"])
@pytest.mark.parametrize("fps", [4.0, 8.0, 24.0])
def test_directed_motion_covers_a_third_to_two_thirds_of_the_frame(verb: str, way: str, fps: float):
    for seed in range(6):
        (track,) = tracks(seed, motion=f"{verb} {way}", fps=fps, height=16, width=16)
        dx, dy = track.position_T2[-1] - track.position_T2[0]
        along, aside = (dx, dy) if way in ("left", "right") else (dy, dx)
        assert 0.3 < along * (1 if way in ("right", "down") else -1) < 0.7
        assert abs(aside) < 1e-6


@pytest.mark.parametrize("motion", MOTIONS)
def test_doubling_the_frame_rate_interpolates_the_motion(motion: str):
    (slow,) = tracks(5, motion=motion, frames=16, fps=8.0, height=8, width=8)
    (quick,) = tracks(5, motion=motion, frames=32, fps=16.0, height=8, width=8)
    for name in ("position_T2", "size_T", "angle_T", "opacity_T"):
        np.testing.assert_allclose(getattr(quick, name)[::2], getattr(slow, name), atol=1e-5)


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_scene_does_not_depend_on_the_resolution(motion: str):
    (small,) = tracks(9, motion=motion, height=16, width=16)
    (large,) = tracks(9, motion=motion, height=48, width=48)
    np.testing.assert_allclose(small.position_T2, large.position_T2, atol=1e-6)
    np.testing.assert_allclose(small.size_T, large.size_T, atol=1e-6)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("size", [(32, 32), (32, 64), (48, 32)])
def test_single_objects_stay_in_view(motion: str, size: tuple[int, int]):
    for seed in range(4):
        (track,) = tracks(seed, motion=motion, height=size[0], width=size[1])
        assert track.visible_T.mean() > 0.93
        assert track.visible_T.min() > 0.7


def test_a_rolling_object_rotates_by_the_distance_travelled():
    (track,) = tracks(2, motion="rolls right", height=32, width=64)
    travelled = (track.position_T2[-1, 0] - track.position_T2[0, 0]) * 64
    turned = track.angle_T[-1] - track.angle_T[0]
    assert turned == pytest.approx(travelled / (0.5 * track.size_T[0] * 32), rel=1e-4)


def test_motions_in_place_change_size_opacity_or_angle():
    (grown,), (shrunk,), (faded,), (spun,) = (tracks(3, motion=m) for m in ("grows", "shrinks", "fades", "spins"))
    assert (np.diff(grown.size_T) > 0).all()
    assert (np.diff(shrunk.size_T) < 0).all()
    assert faded.opacity_T[0] == 1
    assert faded.opacity_T[-1] < 0.15
    assert abs(spun.angle_T[-1] - spun.angle_T[0]) > np.pi


def test_orbits_are_circular_and_bounces_accelerate_constantly():
    (orbit,) = tracks(4, motion="orbits")
    radius = np.linalg.norm(orbit.position_T2 - 0.5, axis=1)
    assert np.ptp(radius) < 1e-5
    (bounce,) = tracks(4, motion="bounces", frames=64, fps=64.0)
    fall = np.diff(bounce.position_T2[:, 1], n=2)
    assert (np.abs(fall - np.median(fall)) < 1e-4).mean() > 0.9
    assert np.median(fall) > 0


def test_fast_objects_travel_further_than_slow_ones():
    far, near = (
        np.mean([np.ptp(tracks(s, motion="moves right", size="small", speed=v)[0].position_T2[:, 0]) for s in range(8)])
        for v in ("fast", "slowly")
    )
    assert far > 1.5 * near


def test_an_object_behind_is_occluded_while_passing():
    for seed in range(4):
        first, second = tracks(seed, grammar="full", relation="behind", camera="zooms in")
        assert first.visible_T.min() < 0.75
        assert second.visible_T.min() > 0.9


@pytest.mark.parametrize(("relation", "sign"), [("above", -1), ("below", 1)])
def test_above_and_below_hold_over_the_whole_clip(relation: str, sign: int):
    for seed in range(4):
        scene = sample(seed, grammar="full", split="all", relation=relation).scene
        gap = scene.objects[0].position_T2[:, 1] - scene.objects[1].position_T2[:, 1]
        assert (np.sign(gap) == sign).all()


def test_a_chase_keeps_its_distance_and_a_collision_transfers_motion():
    chaser, leader = tracks(1, grammar="full", relation="chases", direction="right", background="plain grey")
    assert np.ptp(leader.position_T2[:, 0] - chaser.position_T2[:, 0]) < 1e-5
    assert (np.diff(chaser.position_T2[:, 0]) > 0).all()
    first, second = tracks(1, grammar="full", relation="collides", direction="right", background="plain grey")
    gap = second.position_T2[:, 0] - first.position_T2[:, 0] - 0.5 * (first.size_T + second.size_T)
    assert gap.min() > -0.01
    assert abs(second.position_T2[3, 0] - second.position_T2[0, 0]) < 1e-6
    assert second.position_T2[-1, 0] - second.position_T2[0, 0] > 0.15


def test_a_pan_to_the_right_moves_objects_to_the_left():
    (still,) = tracks(6, motion="spins")
    (panned,) = tracks(6, motion="spins", camera="pans right", background="checkered")
    assert panned.position_T2[-1, 0] - panned.position_T2[0, 0] < -0.15
    assert np.ptp(still.position_T2[:, 0]) < 1e-6


def test_a_zoom_in_makes_objects_larger():
    (track,) = tracks(6, motion="spins", camera="zooms in", background="striped")
    assert track.size_T[-1] > 1.5 * track.size_T[0]


def test_a_caption_determines_its_scene():
    rendered = sample(0, caption="a blue letter K slides up on a striped background")
    (track,) = rendered.scene.objects
    assert (track.colour, track.letter, track.motion) == ("blue", "K", "slides up")
    assert rendered.scene.background == "striped"
    assert rendered.caption == "a blue letter K slides up on a striped background"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "positive"),
        ({"fps": 0.0}, "positive"),
        ({"grammar": "rich"}, "grammar"),
        ({"colour": "pink"}, "colour 'pink'"),
        ({"color": "red"}, "'color' cannot be fixed"),
        ({"caption": "hello"}, "not in the grammar"),
        ({"caption": "a red ball spins", "colour": "red"}, "combined"),
    ],
)
def test_invalid_arguments_are_refused(options: dict, message: str):
    with pytest.raises(BadRequest, match=message):
        sample(0, **options)
