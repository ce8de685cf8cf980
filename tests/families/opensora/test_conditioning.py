"""What each verb gives to Open-Sora 2.0: the published kinds of conditioning, by latent frame, for 33 of them.

The original's kinds: i2v head, tail and loop are images at the first and last latent frame; v2v head and tail are 33
frames of a clip (their easy forms 65) in the first or last 9 (17) latent frames. Each piece is encoded by itself.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kinema.api import Model, load
from kinema.events import Event, Note
from kinema.families.opensora import conditioning
from kinema.families.opensora.config import TINY, TINY_DC_AE, Config
from kinema.families.opensora.family import FAMILY
from kinema.job import plan_job
from kinema.media.read import read_image, read_video
from kinema.schema import Clip, Request
from kinema.settle import note_branches, with_defaults
from kinema.system import System, Weights

SIDE = 16
LONG = {"hunyuan": 129, "dc-ae": 128}


def opened(vae: str, fill: Any) -> System:
    """A tiny model that generates as many frames as the published ones, at once, with no weight zero."""
    config: Config = replace(TINY if vae == "hunyuan" else TINY_DC_AE, frames=LONG[vae], height=SIDE, width=SIDE)
    system = System(f"opensora-{vae}", FAMILY, config, Weights(seed=0))
    fill(system.model, 3, std=0.1)
    return system


@pytest.fixture(scope="module")
def systems(fill: Any) -> dict[str, System]:
    torch.set_num_threads(1)
    return {vae: opened(vae, fill) for vae in LONG}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images and a clip of 80 frames."""
    folder = tmp_path_factory.mktemp("media")
    random = torch.Generator().manual_seed(0)
    video = (torch.rand(2, 3, 80, SIDE, SIDE, generator=random) * 2 - 1).clamp(-1, 1)
    for i, name in enumerate(("one", "two")):
        Clip(video[i : i + 1, :, :1]).save(folder / f"{name}.png")
    Clip(video[:1], 24.0).save(folder / "clip.png")
    return folder


def asked(media: Path, kind: str, vae: str) -> Request:
    """The request that gives this kind of conditioning."""
    one, two, clip = str(media / "one.png"), str(media / "two.png"), str(media / "clip")
    keep = {"v2v": 33, "easy": 65} if vae == "hunyuan" else {"v2v": 32, "easy": 64}
    last = LONG[vae] - 1
    options: dict[str, dict[str, Any]] = {
        "t2v": {"task": "generate"},
        "i2v_head": {"task": "animate", "image": one},
        "i2v_tail": {"task": "animate", "keyframes": {last: two}},
        "i2v_loop": {"task": "animate", "image": one, "last_image": two},
        "loop of one": {"task": "animate", "image": one, "loop": True},
        "v2v_head": {"task": "extend", "video": clip, "keep": keep["v2v"]},
        "v2v_tail": {"task": "extend", "video": clip, "keep": keep["v2v"], "backward": True},
        "v2v_head_easy": {"task": "extend", "video": clip, "keep": keep["easy"]},
        "v2v_tail_easy": {"task": "extend", "video": clip, "keep": keep["easy"], "backward": True},
    }
    return Request(prompt="a red ball", frames=LONG[vae], seed=1, steps=2, **options[kind])


def pieces(media: Path, kind: str, vae: str) -> dict[int, Tensor]:
    """The frames of each piece by the latent frame where it begins, as the original reads them."""
    one, two = (read_image(media / f"{name}.png") for name in ("one", "two"))
    video = read_video(media / "clip").video
    more, last = (1 if vae == "hunyuan" else 0), (32 if vae == "hunyuan" else 31)
    short, easy = 32 + more, 64 + more
    after = last + 1 - (8 + more), last + 1 - (16 + more)
    return {
        "t2v": {},
        "i2v_head": {0: one},
        "i2v_tail": {last: two},
        "i2v_loop": {0: one, last: two},
        "loop of one": {0: one, last: one},
        "v2v_head": {0: video[:, :, -short:]},  # an extension goes on from the end of its clip
        "v2v_tail": {after[0]: video[:, :, :short]},
        "v2v_head_easy": {0: video[:, :, -easy:]},
        "v2v_tail_easy": {after[1]: video[:, :, :easy]},
    }[kind]


KINDS = (
    *("t2v", "i2v_head", "i2v_tail", "i2v_loop", "loop of one"),
    *("v2v_head", "v2v_tail", "v2v_head_easy", "v2v_tail_easy"),
)


@pytest.mark.parametrize("vae", LONG)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_conditioning_is_where_the_original_has_it(
    kind: str, vae: str, systems: dict[str, System], media: Path
) -> None:
    system, expected = systems[vae], pieces(media, kind, vae)
    [work] = plan_job(system, asked(media, kind, vae))
    assert work.stage.frames == LONG[vae]
    assert work.stage.blocks[0].way == "native"
    with torch.no_grad():
        found = conditioning.given(system, work.canvas)
        if not expected:
            assert found is None
            return
        assert found is not None
        frames = system.latent_shape(work.stage.whole).frames
        told = torch.zeros_like(found)
        for begin, piece in expected.items():
            z = system.encode(piece)
            told[:, 1:, begin : begin + z.shape[2]] = z
            told[:, :1, begin : begin + z.shape[2]] = 1
    assert found.shape[2] == frames == LONG[vae] // 4 + (vae == "hunyuan")
    assert torch.equal(found[:, :1], told[:, :1])
    assert (found - told).abs().max() <= 1e-5 * told.abs().max()


@pytest.mark.parametrize("vae", LONG)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_given_frames_are_in_the_clip_to_the_bit(kind: str, vae: str, systems: dict[str, System], media: Path) -> None:
    """Also a lone last frame, which a causal codec cannot encode by itself at its place."""
    system, request = systems[vae], asked(media, kind, vae).with_(steps=1)
    clip = Model(system).run(request).video
    [work] = plan_job(system, request)
    given = work.canvas.given
    held = given.mask.expand_as(clip) > 0
    assert int(given.mask[0, 0, :, 0, 0].sum()) == sum(piece.shape[2] for piece in pieces(media, kind, vae).values())
    assert torch.equal(clip[held], given.video[held])
    assert clip.shape.numel() > held.sum()


def test_what_is_given_reaches_every_clip_of_a_batch(systems: dict[str, System], media: Path) -> None:
    """The original sets the frames of the first clip alone."""
    system = systems["hunyuan"]
    [work] = plan_job(system, asked(media, "i2v_head", "hunyuan").with_(clips=3))
    with torch.no_grad():
        words = conditioning.encode_prompt(system, work.stage.request, lambda _event: None)
        found = conditioning.conditions(system, words, work.stage.request, work.canvas)
    given = found.branches["positive"].given_BCThw
    assert given.shape[0] == 3
    assert bool((given[:, :1, 0] == 1).all())
    assert torch.equal(given[0], given[2])
    assert found.branches["blank"].given_BCThw is None
    assert found.branches["negative"].given_BCThw is given


def test_the_negative_branch_is_the_blank_one_where_nothing_is_given(systems: dict[str, System]) -> None:
    system = systems["hunyuan"]
    [work] = plan_job(system, Request(prompt="a red ball", seed=1, steps=2))
    with torch.no_grad():
        words = conditioning.encode_prompt(system, work.stage.request, lambda _event: None)
        found = conditioning.conditions(system, words, work.stage.request, work.canvas)
    assert found.branches["blank"] is found.branches["negative"]
    assert found.given is None


@pytest.mark.parametrize("preset", ["tiny", "tiny-1.3"])
def test_options_of_guidance_are_noted_at_a_scale_of_1_where_nothing_is_given(preset: str) -> None:
    """Then only the prompt's branch is left; given frames keep the branch without them, which image guidance needs."""
    system = load("opensora", preset=preset).system
    for task, noted in (("generate", True), ("animate", False)):
        request = Request(task=task, prompt="a ball", guidance=1.0, guidance_rescale=0.5, frames=5, steps=2, seed=1)
        found: list[Event] = []
        note_branches(system, with_defaults(system, request), found.append)
        assert (Note("--guidance-rescale is not used, since the guidance scale is 1") in found) == noted
    long = with_defaults(system, request.with_(task="generate", frames=200))  # whose blocks are given the last frames
    assert set(system.guidance(long).branches) == {"positive", "negative", "blank"}
