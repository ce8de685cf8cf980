"""Open-Sora 1.0 to 1.3 as models of the family: tiny presets generate, hold what is given, and are told what they were
trained with. Networks, codecs and processes have tests of their own against the original."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kinema import registry, tasks
from kinema.api import Model, load
from kinema.canvas import Canvas, Piece, Release
from kinema.checkpoints import files
from kinema.evaluation.sampling import Sampling
from kinema.families.opensora.config import Config as SecondConfig
from kinema.families.opensora.family import FIRST, SECOND, line_of
from kinema.families.opensora.v1.config import PRESETS, Config
from kinema.families.opensora.v1.text import completed
from kinema.schema import BadRequest, MissingFiles, Request, Shape

Models, Ask = Callable[[str], Model], Callable[..., Request]
VERSIONS = ("1.0", "1.1", "1.2", "1.3")
HEIGHT, WIDTH = 16, 24


@pytest.mark.parametrize("version", VERSIONS)
def test_item_i_of_a_batch_is_the_single_run_of_seed_plus_i(models: Models, ask: Ask, version: str) -> None:
    model = models(version)
    both, single = model.run(ask(steps=1, clips=2)), model.run(ask(steps=1, seed=6))
    own = model.system.config
    assert both.shape == Shape(2, 3, own.frames, HEIGHT, WIDTH)
    assert both.fps == own.fps
    assert torch.allclose(both.video[1:], single.video, atol=1e-5)
    assert not torch.allclose(both.video[:1], single.video, atol=1e-2)


def canvas(system: Any, frames: Any, region: bool = False) -> Canvas:
    config = system.config
    video = torch.rand(1, 3, config.frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mask = torch.zeros_like(video[:, :1])
    mask[:, :, frames, :, : WIDTH // 2 if region else WIDTH] = 1
    return Canvas.of(video, mask)


HELD = [
    ("1.0", "replacement", [0], False),
    ("1.1", "native", [0], False),
    ("1.1", "native", [3], False),
    ("1.1", "replacement", slice(None), True),
    ("1.2", "native", [0], False),
    ("1.2", "native", slice(0, 17), False),
    ("1.2", "native", [0, -1], False),
    ("1.2", "replacement", [0], False),
    ("1.2", "reconstruction", [0], False),
    ("1.3", "native", [0, -1], False),
    ("1.3", "native", slice(0, 17), False),
    ("1.3", "replacement", slice(None), True),
]


@pytest.mark.parametrize(("version", "way", "frames", "region"), HELD)
def test_given_frames_are_kept_to_the_bit_and_reach_the_rest(  # noqa: PLR0917
    models: Models, ask: Ask, monkeypatch: pytest.MonkeyPatch, version: str, way: str, frames: Any, region: bool
) -> None:
    model = models(version)
    given = canvas(model.system, frames, region)
    monkeypatch.setitem(tasks.TASKS, "animate", tasks.Task(lambda r: r, lambda _r, _e: given))
    clip = model.run(ask(task="animate", honour=way)).video
    plain = model.run(ask()).video
    held = given.mask.expand_as(clip) > 0
    assert torch.equal(clip[held], given.video[held])
    assert clip.isfinite().all()
    assert not torch.allclose(clip[~held], plain[~held], atol=1e-6)


def test_1_0_holds_frames_by_guidance_alone() -> None:
    sampling = FIRST.sampling
    assert sampling.honours(PRESETS["v1.0"], "first") == ("replacement", "reconstruction")
    assert all(sampling.honours(PRESETS[f"v{v}"], "first")[0] == "native" for v in ("1.1", "1.2", "1.3"))
    assert sampling.honours(PRESETS["v1.2"], "region") == ("replacement", "reconstruction")


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2", "1.3"])
def test_an_edit_takes_the_steps_of_its_strength(
    models: Models, ask: Ask, calls: Any, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    model = models(version)
    whole = canvas(model.system, slice(None))
    edited = Canvas(whole.shape, (Piece(whole.video, whole.mask, Release("strength", 0.5)),))
    monkeypatch.setitem(tasks.TASKS, "edit", tasks.Task(lambda r: r, lambda _r, _e: edited))
    with calls.of(model):
        model.run(ask(task="edit", steps=4, strength=0.5, guidance=1.0))
    assert len(calls) == 2


def test_networks_are_told_the_published_size_the_rate_and_the_time(models: Models, ask: Ask, calls: Any) -> None:
    """1.1 is told 24 frames a second for clips of 8, as its sample.py does; images are told 120."""
    model = models("1.1")
    with calls.of(model):
        model.run(ask(guidance=1.0))
        model.run(ask(frames=1, guidance=1.0))
        model.run(ask(guidance=1.0, extra={"told_fps": 8}))
    assert [float(call["about"].fps_B[0]) for call in calls[::2]] == [24, 120, 8]
    assert {(call["about"].height, call["about"].width) for call in calls} == {(HEIGHT, WIDTH)}
    assert [float(call["time"][0]) for call in calls[:2]] == pytest.approx([999, 0], abs=1e-3)
    assert PRESETS["v1.2"].published(240, 424) == (240, 426)
    assert PRESETS["v1.2"].sizes["240p:9:16"] == (240, 424)
    assert PRESETS["v1.2"].published(256, 256) == (256, 256)
    assert PRESETS["v1.0"].sizes == {}


def test_without_a_negative_prompt_the_weights_null_text_has_the_prompts_mask(
    models: Models, ask: Ask, calls: Any
) -> None:
    model = models("1.2")
    with calls.of(model):
        model.run(ask(steps=1))
        model.run(ask(steps=1, negative_prompt="a blue star"))
    positive, null, _, negative = calls if len(calls[0]["text"]) == 1 else pytest.fail("branches in one batch")
    assert torch.equal(null["text"], model.system.model.transformer.y_embedder.y_embedding[None])
    assert torch.equal(null["mask"], positive["mask"])
    assert int(negative["mask"].sum()) == 3 != int(positive["mask"].sum())


@pytest.mark.parametrize(
    ("preset", "extra", "expected"),
    [
        ("v1.1", {}, "a red ball"),
        ("v1.2", {}, "a red ball aesthetic score: 6.5."),
        ("v1.2", {"aesthetic_score": None, "motion_score": 5}, "a red ball motion score: 5.0."),
        ("v1.2", {"camera_motion": "pan left"}, "a red ball aesthetic score: 6.5. camera motion: pan left."),
        ("v1.3", {"aesthetic_score": 5.7}, "a red ball the aesthetic score is good."),
        ("v1.3", {"motion_score": "high"}, "a red ball the motion strength is high."),
    ],
)
def test_prompts_are_completed_and_cleaned(preset: str, extra: dict[str, Any], expected: str) -> None:
    assert completed(PRESETS[preset], Request(prompt=" A red Ball", extra=extra)) == expected


def test_an_empty_prompt_has_no_score() -> None:
    assert completed(PRESETS["v1.2"], Request(prompt=" ")) == ""


# ----------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("version", "option", "image"),
    [
        ("1.0", {"guided_channels": 4}, False),
        ("1.1", {"guided_channels": 4}, False),
        ("1.1", {"rotate_first": False}, False),
        ("1.2", {"flow_shift": 3}, False),
        ("1.2", {"motion_score": 5}, False),
        ("1.3", {"transform_scale": 2}, False),
        ("1.3", {"flaw_fix": False}, False),
        ("1.3", {"sdedit": False}, True),
        ("1.3", {"image_guidance": 1}, True),
        ("1.3", {"dynamic_image": False}, True),
    ],
)
def test_each_option_changes_the_clip_and_leaves_the_next_as_it_was(  # noqa: PLR0917
    models: Models, ask: Ask, media: Path, version: str, option: dict[str, Any], image: bool
) -> None:
    model = models(version)
    request = ask(task="animate", image=str(media / "one.png")) if image else ask()
    before, other, after = (model.run(request.with_(extra=extra)).video for extra in ({}, option, {}))
    assert not torch.equal(before, other)
    assert torch.equal(before, after)


@pytest.mark.parametrize(("version", "rescale"), [("1.1", 0.0), ("1.2", 0.7), ("1.3", 0.0)])
def test_a_second_norm_of_given_frames_shows_where_their_predictions_count(
    models: Models, ask: Ask, media: Path, version: str, rescale: float
) -> None:
    """In 1.1 they are predicted again at the last step; later they count in what rescales guidance alone."""
    model, extra = models(version), {"mask_strategy": "0", "reference_path": str(media / "one.png")}
    request = ask(guidance_rescale=rescale)
    before, other, after = (
        model.run(request.with_(extra={**extra, **option}), output="latents").video
        for option in ({}, {"norm_twice": False}, {})
    )
    assert not torch.equal(before, other)
    assert torch.equal(before, after)


@pytest.mark.parametrize(("option", "image"), [("oscillate", False), ("oscillate_image", True)])
def test_guidance_of_1_3_oscillates_from_the_tenth_step(
    models: Models, ask: Ask, media: Path, option: str, image: bool
) -> None:
    request = ask(task="animate", image=str(media / "one.png")) if image else ask()
    found = {
        (steps, on): models("1.3").run(request.with_(steps=steps, extra={option: on})).video
        for steps in (2, 14)
        for on in (True, False)
    }
    assert torch.equal(found[2, True], found[2, False])
    assert not torch.equal(found[14, True], found[14, False])


def test_the_blank_branch_of_1_3_has_the_mask_of_given_frames_and_no_latents(
    models: Models, ask: Ask, media: Path, calls: Any
) -> None:
    model = models("1.3")
    with calls.of(model):
        found = model.run(ask(task="animate", image=str(media / "one.png"), steps=1), output="latents").video
    given = [call["given"] for call in calls]
    assert len(given) == 3
    assert all(each.frames_BT[0].nonzero().flatten().tolist() == [0] for each in given)
    zero = [not each.latents_BCTHW.any() for each in given]
    assert sorted(zero) == [False, False, True]
    assert torch.equal(found[:, :, 0], given[zero.index(False)].latents_BCTHW[:, :, 0])


def test_1_3_without_given_frames_has_no_input_for_them(models: Models, ask: Ask, calls: Any) -> None:
    with calls.of(models("1.3")):
        models("1.3").run(ask(steps=1))
    assert [call["given"] for call in calls] == [None, None]


# ---------------------------------------------------------------------------------- the two lines


def test_a_config_tells_its_line_and_survives_json() -> None:
    family = registry.family("opensora")
    for name, config in family.presets.items():
        first = name.removeprefix("tiny-").startswith(("v1", "1."))
        assert line_of(config) is (FIRST if first else SECOND), name
        assert isinstance(config, Config if first else SecondConfig)
        assert family.from_json(json.loads(json.dumps(family.to_json(config)))) == config


def test_transformer_and_codec_of_other_channels_are_refused() -> None:
    with pytest.raises(BadRequest, match="the transformer has 4 latent channels, and the codec 16"):
        registry.family("opensora").from_json({"stdit": {"channels": 4, "version": "1.3"}})


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_survive_a_file_and_give_the_same_clip(models: Models, ask: Ask, tmp_path: Path, version: str) -> None:
    system = models(version).system
    note = json.dumps({"family": "opensora", "config": system.family.to_json(system.config)})
    files.write_tensors(tmp_path / "a.safetensors", system.model.state_dict(), {"kinema": note})
    again = load(tmp_path / "a.safetensors")
    assert again.system.config == system.config
    assert torch.equal(again.run(ask(steps=1)).video, models(version).run(ask(steps=1)).video)


def test_a_missing_t5_is_named_before_weights_are_read(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = load("opensora", preset="tiny-1.2", overrides={"words": ()})
    with pytest.raises(MissingFiles, match="T5-XXL, which encodes the prompt") as refused:
        model.run(ask())
    assert len(refused.value.args) == 1  # CLIP is not asked for
    assert model.system.runtime.model is None


@pytest.mark.parametrize("frames", [2, 16])
def test_clips_too_short_for_the_shift_are_refused(models: Models, ask: Ask, frames: int) -> None:
    """The original's shift of them is 0, and its first time 0 / 0; with a shift of one's own they are generated."""
    with pytest.raises(BadRequest, match="expected 1 frame, at least 17, or a flow_shift"):
        models("1.2").run(ask(frames=frames))
    assert models("1.2").run(ask(frames=frames, extra={"flow_shift": 3})).shape.frames == frames
    assert models("1.3").run(ask(frames=frames)).shape.frames == frames  # 17, which are cut


@pytest.mark.parametrize(("version", "given"), [("1.1", [0]), ("1.2", [0]), ("1.3", [0]), ("1.2", [])])
def test_every_clip_of_a_batch_to_evaluate_has_its_own_prompt_and_given_frames(
    models: Models, version: str, given: list[int]
) -> None:
    system, prompts = models(version).system, ["a red ball", "a blue star"]
    sampling, first = Sampling.of(system, steps=2), canvas(system, given)
    other = Canvas.of(-first.video, first.mask)
    both = Canvas.of(torch.cat([first.video, other.video]), torch.cat([first.mask, other.mask]))
    batch = sampling.clips(prompts, 5, both)
    for i, one in enumerate((first, other)):
        assert torch.allclose(batch[i : i + 1], sampling.clips(prompts[i : i + 1], 5 + i, one), atol=1e-4)
    assert not torch.allclose(batch[0], batch[1], atol=0.1)
