"""Mask strategies and loops from a request to the sampler's state, with tiny models.

Which frames a strategy fills is tested against the original in first_line/test_masks.py, and whole runs of its
samplers in first_line/test_process.py; here is what reaches the network, and what is left in the clip. Reference: 1.1
at c37e6d6, 1.2 at bde3c42. Comparisons are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kinema.api import Model
from kinema.events import Event, Step
from kinema.families.opensora.first_line import process
from kinema.families.opensora.v1 import strategy
from kinema.families.opensora.v1.config import PRESETS
from kinema.media.read import read_image, read_video
from kinema.schema import BadRequest, Request
from kinema.settle import settle

Models, Ask = Callable[[str], Model], Callable[..., Request]


def placed(mask_strategy: object, *files: Path, **more: object) -> dict[str, Any]:
    return {"mask_strategy": mask_strategy, "reference_path": ";".join(map(str, files)), **more}


def encoded(model: Model, path: Path) -> Tensor:
    video = read_image(path) if path.suffix else read_video(path).video
    with torch.no_grad():
        return model.system.encode(video)


# ------------------------------------------------------------------------------- given references


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_given_reference_is_in_the_latents_to_the_bit_and_told_clean(
    models: Models, ask: Ask, media: Path, calls: Any, version: str
) -> None:
    model = models(version)
    with calls.of(model):
        found = model.run(ask(extra=placed(0, media / "one.png")), output="latents").video
    assert torch.equal(found[:, :, :1], encoded(model, media / "one.png"))
    assert calls.clean() == [[0]] * 4
    assert all(torch.equal(call["z"][:, :, :1], found[:, :, :1]) for call in calls)
    free = model.run(ask(), output="latents").video
    assert not torch.allclose(found[:, :, 1:], free[:, :, 1:], atol=1e-4)


def test_1_1_predicts_given_frames_again_unless_asked_to_keep_them(
    models: Models, ask: Ask, media: Path, calls: Any
) -> None:
    model, extra = models("1.1"), placed("0;0,1,0,-1,1", media / "one.png", media / "two.png")
    with calls.of(model):
        published = model.run(ask(extra=extra), output="latents").video
    kept = model.run(ask(extra={**extra, "keep_given": True}), output="latents").video
    assert calls.clean() == [[0, 7]] * 4
    for frame, name in ((0, "one.png"), (7, "two.png")):
        given = encoded(model, media / name)[:, :, 0]
        assert torch.equal(kept[:, :, frame], given)
        assert 1e-4 < float((published[:, :, frame] - given).abs().max()) < 0.5


@pytest.mark.parametrize(("align", "frames"), [(None, range(5, 10)), (0, range(7, 10)), (2, range(6, 10))])
def test_starts_are_aligned_by_5_in_1_2_unless_told_otherwise(
    models: Models, ask: Ask, media: Path, align: int | None, frames: range
) -> None:
    """As 1.2's sample.py is shipped; a group is cut to the clip."""
    model, options = models("1.2"), {} if align is None else {"align": align}
    found = model.run(ask(steps=1, extra=placed("0,0,0,7,5", media / "clip", **options)), output="latents").video
    reference = encoded(model, media / "clip")
    same = [i for i in range(10) if torch.equal(found[:, :, i], reference[:, :, i - frames.start])]
    assert same == list(frames)


def test_an_edit_ratio_joins_at_the_published_step(models: Models, ask: Ask, media: Path, calls: Any) -> None:
    model = models("1.2")
    request = settle(model.system, ask(steps=30, guidance=1.0, extra=placed("0,0,0,0,5,0.4", media / "clip")))
    join = process.flow_release(0.4, model.system.levels(request))
    with calls.of(model):
        model.run(request)
    assert 0 < join < 30
    assert calls.clean() == [[0, 1, 2, 3, 4]] * join + [[]] * (30 - join)
    reference = encoded(model, media / "clip")
    assert all(torch.equal(call["z"][:, :, :5], reference[:, :, :5]) for call in calls[:join])
    assert not torch.allclose(calls[join]["z"][:, :, :5], reference[:, :, :5], atol=0.1)


def test_an_edit_of_the_whole_clip_takes_the_steps_after_its_release(models: Models, ask: Ask, media: Path) -> None:
    model, events = models("1.2"), list[Event]()
    request = settle(model.system, ask(steps=30, extra=placed("0,0,0,0,10,0.4", media / "clip")))
    join = process.flow_release(0.4, model.system.levels(request))
    model.run(request, on_event=events.append)
    assert [event.total for event in events if isinstance(event, Step)] == [30 - join] * (30 - join)


def test_an_edit_has_the_strength_of_the_steps_after_its_edit_ratio_joins(
    models: Models, ask: Ask, media: Path, calls: Any
) -> None:
    """Strength counts steps, and an edit ratio is a time: the same clip where they begin at the same step."""
    model = models("1.2")
    request = settle(model.system, ask(steps=30, extra=placed("0,0,0,0,10,0.4", media / "clip")))
    join = process.flow_release(0.4, model.system.levels(request))
    assert 0 < join < 30
    by_ratio = model.run(request, output="latents").video
    edit = ask(task="edit", video=str(media / "clip"), frames=34, steps=30, strength=(30 - join) / 30)
    assert torch.allclose(model.run(edit, output="latents").video, by_ratio, atol=1e-5)


def test_a_reference_of_ratio_1_stands_where_the_noise_was(models: Models, ask: Ask, media: Path, calls: Any) -> None:
    """The original adds no noise to it, and samples from it as if it were."""
    model = models("1.2")
    with calls.of(model):
        found = model.run(ask(extra=placed("0,0,0,5,5,1", media / "clip")), output="latents").video
    reference = encoded(model, media / "clip")
    assert torch.equal(calls[0]["z"][:, :, 5:], reference[:, :, :5])
    assert calls.clean() == [[]] * 4
    assert not torch.allclose(found[:, :, 5:], reference[:, :, :5], atol=1e-3)


def test_later_groups_replace_earlier_ones_with_their_own_ratio(models: Models, ask: Ask, media: Path) -> None:
    model = models("1.2")
    found = model.run(
        ask(extra=placed("0,0,0,0,5;0,1,0,0,1", media / "clip", media / "one.png")), output="latents"
    ).video
    assert torch.equal(found[:, :, :1], encoded(model, media / "one.png"))
    assert torch.equal(found[:, :, 1:5], encoded(model, media / "clip")[:, :, 1:5])


# ----------------------------------------------------------------------------------------- loops


@pytest.mark.parametrize(
    ("version", "starts", "frames", "clean"),
    [("1.1", [0, 4, 8], 8, [0, 1, 2, 3]), ("1.2", [0, 17, 34], 34, [0, 1, 2, 3, 4])],
)
def test_three_loops_have_the_frames_and_prompts_that_theirs_have(  # noqa: PLR0917
    models: Models, ask: Ask, calls: Any, version: str, starts: list[int], frames: int, clean: list[int]
) -> None:
    """1.1 with a condition_frame_length of 4 pixel frames, 1.2 with one of 5 latent ones, or 17 pixel frames."""
    model = models(version)
    request = ask(prompt="|0|a red ball|2|a blue star", guidance=1.0, extra={"loop": 3})
    with calls.of(model):
        clip = model.run(request)
    [stage] = clip.recipe["stages"]
    assert [block["start"] for block in stage["blocks"]] == starts
    assert {block["frames"] for block in stage["blocks"]} == {frames}
    assert [block["prompt"] for block in stage["blocks"]] == ["a red ball", "a red ball", "a blue star"]
    assert clip.shape.frames == starts[-1] + frames
    assert calls.clean() == [[], [], clean, clean, clean, clean]
    shared = clip.video[:, :, starts[1] : starts[1] + starts[1 if version == "1.2" else 1]]
    with torch.no_grad():  # the second clip begins with the end of the first, encoded
        expected = model.system.encode(shared)
    assert torch.allclose(calls[2]["z"][:, :, : len(clean)], expected, atol=1e-5)
    texts = [call["text"] for call in calls]
    assert torch.equal(texts[0], texts[2])
    assert not torch.equal(texts[0], texts[4])


def test_the_first_clip_of_loops_is_the_clip_without_them(models: Models, ask: Ask) -> None:
    model = models("1.2")
    looped, single = model.run(ask(extra={"loop": 2})).video, model.run(ask()).video
    assert torch.equal(looped[:, :, :34], single)


def test_the_end_of_the_clip_before_may_be_edited(models: Models, ask: Ask, calls: Any) -> None:
    model, steps = models("1.2"), 10
    extra = {"loop": 2, "condition_frame_edit": 0.4}
    request = settle(model.system, ask(steps=steps, guidance=1.0, extra=extra))
    join = process.flow_release(0.4, model.system.levels(request.with_(frames=34)))
    with calls.of(model):
        model.run(request)
    assert 0 < join < steps
    assert calls.clean()[steps:] == [[0, 1, 2, 3, 4]] * join + [[]] * (steps - join)


def test_a_group_for_a_loop_is_placed_in_it_alone(models: Models, ask: Ask, media: Path, calls: Any) -> None:
    model = models("1.2")
    with calls.of(model):
        model.run(ask(steps=1, guidance=1.0, extra=placed("1,0,0,5,4", media / "clip", loop=3)))
    assert calls.clean() == [[], list(range(9)), [0, 1, 2, 3, 4]]
    assert torch.equal(calls[1]["z"][:, :, 5:9], encoded(model, media / "clip")[:, :, :4])


def test_loops_are_settled_once(models: Models, ask: Ask, media: Path) -> None:
    system = models("1.2").system
    request = ask(prompt="|0|a|1|b", extra=placed("0", media / "one.png", loop=3))
    once = settle(system, request)
    assert (once.frames, once.prompt, dict(once.prompt_spans)) == (68, "a", {"34": "b"})
    assert once.extra["reference_path"] == [str(media / "one.png")]
    assert settle(system, once) == once


@pytest.mark.parametrize(("length", "frames", "spans"), [(5, 51 + 34, {"51": "b"}), (10, 51 + 17, {"42": "b"})])
def test_a_prompt_reaches_the_middle_of_its_block_whatever_is_shared(
    length: int, frames: int, spans: dict[str, str]
) -> None:
    config = PRESETS["v1.2"]
    request = Request(prompt="|0|a|1|b", extra={"loop": 2, "condition_frame_length": length})
    found = strategy.settled(config, request)
    assert (found.frames, dict(found.prompt_spans)) == (frames, spans)


def test_loops_may_begin_with_a_given_image(models: Models, ask: Ask, media: Path) -> None:
    model = models("1.2")
    clip = model.run(ask(task="animate", image=str(media / "one.png"), extra={"loop": 2}))
    assert clip.shape.frames == 51
    assert torch.equal(clip.video[:, :, :1], read_image(media / "one.png"))


# ------------------------------------------------------------------------- the references of 1.3


def referred(kind: str, *files: Path, **more: object) -> dict[str, Any]:
    return {"cond_type": kind, "reference_path": ";".join(map(str, files)), **more}


@pytest.mark.parametrize(
    ("kind", "names", "expected"),
    [
        ("i2v_head", ["one.png"], {0: ("one.png", 0)}),
        ("i2v_tail", ["one.png"], {9: ("one.png", 0)}),
        ("i2v_loop", ["one.png", "two.png"], {0: ("one.png", 0), 9: ("two.png", 0)}),
        ("i2v_loop", ["clip"], {0: ("clip", 0), 9: ("clip", -1)}),
        ("v2v_head", ["clip"], {i: ("clip", i) for i in range(5)}),
    ],
)
def test_cond_type_gives_1_3_what_its_inference_gives(  # noqa: PLR0917
    models: Models, ask: Ask, media: Path, calls: Any, kind: str, names: list[str], expected: dict[int, tuple[str, int]]
) -> None:
    """prep_ref_and_mask of 1.3 (2ca632a), read: the latents that are an input, and those that are left in the end."""
    model = models("1.3")
    with calls.of(model):
        found = model.run(ask(extra=referred(kind, *(media / name for name in names))), output="latents").video
    files = {}
    for name in names:  # a reference has as many frames as the codec can encode
        video = read_image(media / name) if name.endswith("png") else read_video(media / name).video[:, :, :33]
        with torch.no_grad():
            files[name] = model.system.encode(video)
    for call in calls:
        assert call["given"].frames_BT[0].nonzero().flatten().tolist() == sorted(expected)
    given = max((call["given"].latents_BCTHW for call in calls), key=lambda x: float(x.abs().sum()))
    for cell, (name, frame) in expected.items():
        assert torch.equal(given[:, :, cell], files[name][:, :, frame])
        assert torch.equal(found[:, :, cell], files[name][:, :, frame])


def test_an_image_by_cond_type_is_the_one_of_animate(models: Models, ask: Ask, media: Path) -> None:
    model, image = models("1.3"), media / "one.png"
    by_reference = model.run(ask(extra=referred("i2v_head", image)), output="latents").video
    by_task = model.run(ask(task="animate", image=str(image)), output="latents").video
    assert torch.allclose(by_reference, by_task, atol=1e-5)


def test_loops_of_1_3_begin_with_the_end_of_the_one_before_and_not_with_the_reference(
    models: Models, ask: Ask, media: Path, calls: Any
) -> None:
    model, extra = models("1.3"), referred("i2v_loop", media / "one.png", media / "two.png", loop=2)
    with calls.of(model):
        model.run(ask(steps=1, extra=extra))
    cells = [call["given"].frames_BT[0].nonzero().flatten().tolist() for call in calls]
    # Frame 16 has a latent in both runs that share it, 4 and 5; the original gives the first alone.
    assert cells == [[0]] * 3 + [[0, 1, 2, 3, 4, 5, 9]] * 3


def test_cond_type_needs_references(models: Models, ask: Ask) -> None:
    with pytest.raises(BadRequest, match="cond_type applies only with reference_path"):
        settle(models("1.3").system, ask(extra={"cond_type": "i2v_head"}))


# -------------------------------------------------------------------------------------- bad input

BAD: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("1.2", {"mask_strategy": "0,0,0,12,5"}, {}, "starts at latent frame 12 of the clip, which has 10 latent frames"),
    (
        "1.2",
        {"mask_strategy": "0,0,-20,0,5"},
        {},
        "latent frame -20 of its reference, which has 10 latent frames",
    ),
    ("1.1", {"mask_strategy": "0,0,0,6,5"}, {}, "takes 5 frames of its reference for 2 frames of the clip"),
    ("1.2", {"mask_strategy": "0,0,0,0,5,2"}, {}, "has an edit ratio of 2; expected 0 to 1"),
    ("1.2", {"mask_strategy": "0,0,0,0,5,0,7"}, {}, "has 7 fields; expected at most 6"),
    ("1.2", {"mask_strategy": "0,1"}, {}, "is for reference 1; the prompt has 1 reference"),
    ("1.2", {"mask_strategy": "1"}, {}, "has a group for loop 1; expected loops 0 to 0"),
    ("1.2", {"mask_strategy": 0.5}, {}, "mask_strategy is 0.5; expected groups of numbers"),
    ("1.2", {"mask_strategy": "0", "reference_path": "gone.mp4"}, {}, "there is no reference 'gone.mp4'"),
    ("1.2", {"mask_strategy": "0", "reference_path": "https://a.b/c.mp4"}, {}, "is an address; download it"),
    ("1.2", {"mask_strategy": "0", "reference_path": ["a", 3]}, {}, "expected files joined by ;"),
    ("1.2", {"reference_path": "gone.mp4", "mask_strategy": None}, {}, "mask_strategy is None"),
    ("1.2", {"loop": 0}, {}, "loop is 0; expected a whole number from 1 to 256"),
    (
        "1.2",
        {"loop": 3},
        {"frames": 100},
        "100 frames do not divide into 3 loops that share 17 frames; expected a number such as 68",
    ),
    (
        "1.2",
        {"loop": 2, "condition_frame_length": 4},
        {},
        "is 4 latent frames; expected a multiple of 5",
    ),
    ("1.2", {"loop": 2, "condition_frame_length": 10}, {}, "begins with 34 frames of the one before"),
    ("1.2", {"condition_frame_length": 5}, {}, "condition_frame_length applies only with a loop of 2 or more"),
    ("1.2", {"loop": 2, "condition_frame_edit": 2}, {}, "condition_frame_edit is 2; expected a number from 0 to 1"),
    ("1.1", {"loop": 2, "condition_frame_edit": 0.4}, {}, "Open-Sora 1.1 has no option condition_frame_edit"),
    ("1.2", {"loop": 2}, {"overlap": 3}, "loop sets what blocks share"),
    ("1.2", {"align": 5}, {}, "align applies only with mask_strategy"),
    ("1.2", {"keep_given": True}, {}, "Open-Sora 1.2 has no option keep_given; it belongs to 1.1"),
    ("1.0", {"mask_strategy": "0"}, {}, "Open-Sora 1.0 has no option mask_strategy"),
    ("1.2", {"loop": 2}, {"prompt": "|0|a|1|b", "prompt_spans": {"9": "c"}}, "leave prompt spans"),
    ("1.1", {}, {"prompt": "|0|a|2|b"}, "has a part for loop 2, but 1 loop"),
    ("1.2", {"loop": 2}, {"prompt": "|0|a|2|b"}, "has a part for loop 2, but 2 loops"),
    ("1.2", {"loop": 2}, {"prompt": "|1|a|2|b"}, "does not begin with loop 0; expected such as |0|a|2|b"),
    ("1.2", {"mask_strategy": "0", "reference_path": ""}, {}, "reference_path is '', which has an empty path"),
    ("1.2", {"mask_strategy": "0", "reference_path": "a.png;"}, {}, "which has an empty path; expected files joined"),
    ("1.2", {}, {"prompt": "[" * 6000}, "a prompt has 6,000 characters; expected at most 5,000"),
    ("1.0", {}, {"negative_prompt": "a" * 5001}, "a prompt has 5,001 characters; expected at most 5,000"),
    ("1.2", {}, {"prompt": "|0|a|x|b"}, "has 'x' for a loop's number"),
    ("1.2", {"aesthetic_score": True}, {}, "aesthetic_score is True; expected a number from 0 to 100"),
    ("1.2", {"aesthetic_score": "good"}, {}, "aesthetic_score is 'good'; expected a number from 0 to 100"),
    ("1.2", {"camera_motion": 3}, {}, "camera_motion is 3; expected text"),
    ("1.2", {"norm_twice": 1}, {}, "norm_twice is 1; expected true or false"),
    ("1.3", {"image_guidance": 3}, {}, "image_guidance applies only to frames that the network is given"),
    ("1.2", {"cond_type": "i2v_head"}, {}, "Open-Sora 1.2 has no option cond_type; it belongs to 1.3"),
    (
        "1.3",
        {"cond_type": "i2v", "mask_strategy": None},
        {},
        "cond_type is 'i2v'; expected i2v_head, i2v_tail",
    ),
    ("1.3", {"cond_type": "i2v_head", "mask_strategy": "0"}, {}, "cond_type both place references: give one"),
    ("1.2", {"no_such": 1}, {}, "opensora has no option 'no_such'"),
]


@pytest.mark.parametrize(("version", "extra", "more", "message"), BAD)
def test_bad_options_are_refused_in_one_sentence(  # noqa: PLR0917
    models: Models, ask: Ask, media: Path, version: str, extra: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    if (extra.get("mask_strategy") is not None or "cond_type" in extra) and version != "1.0":
        extra = {"reference_path": str(media / "clip"), **extra}
    with pytest.raises(BadRequest) as refused:
        settle(models(version).system, ask(extra=extra, **more))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "value"), [("mask_strategy", "0"), ("reference_path", "a.png")])
def test_a_strategy_and_its_references_need_each_other(models: Models, ask: Ask, name: str, value: str) -> None:
    with pytest.raises(BadRequest, match=f"{name} applies only with"):
        settle(models("1.2").system, ask(extra={name: value}))


def test_a_strategy_is_for_generate_alone(models: Models, ask: Ask, media: Path) -> None:
    request = ask(task="animate", image=str(media / "one.png"), extra=placed(0, media / "one.png"))
    with pytest.raises(BadRequest, match="mask_strategy applies only to generate: leave it out of animate"):
        settle(models("1.2").system, request)
