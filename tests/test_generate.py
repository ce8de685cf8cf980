"""The walk from a request to a clip: long clips, edits, guidance, noise and recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kinema.generate import Model, frames_hash, guidance_scale, latent_mask, load, start_from
from kinema.schema import BadRequest, Clip, Event, Lattice, Note, Phase, Request, Step
from kinema.system import System


@pytest.fixture(scope="module")
def model() -> Model:
    torch.set_num_threads(1)
    made = load("zoetrope", preset="tiny")
    with torch.no_grad():
        for p in made.system.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
    return made


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    t = torch.linspace(-1, 1, 8)[None, None, :, None, None]
    video = (t * torch.linspace(-1, 1, 16)).expand(1, 3, 8, 16, 16).contiguous()
    return Clip(video, 8.0).save(tmp_path / "known.gif")[0]


def test_events_tell_phases_and_every_step_with_its_estimate(model: Model) -> None:
    events: list[Event] = []
    model.generate("a red ball", seed=0, steps=3, on_event=events.append)
    steps = [e for e in events if isinstance(e, Step)]
    assert [(s.index, s.total) for s in steps] == [(1, 3), (2, 3), (3, 3)]
    assert all(s.x0 is not None and s.x0.shape == (1, 3, 8, 16, 16) for s in steps)
    assert [e.name for e in events if isinstance(e, Phase)] == ["load", "condition", "sample", "decode"]


@pytest.mark.parametrize("window", [None, 8])
def test_a_clip_longer_than_the_model_has_all_its_frames_and_is_seeded(model: Model, window: int | None) -> None:
    ask = {"seed": 3, "steps": 2, "frames": 20, "window": window}
    one, two = (model.generate("a red ball", **ask).video for _ in range(2))
    assert one.shape[2] == 20
    assert torch.equal(one, two)


def test_rolled_out_blocks_hold_the_frames_of_the_block_before(model: Model) -> None:
    """The first block of a long clip is the short clip itself: what follows must not touch it."""
    noise = torch.randn(1, 3, 20, 16, 16)
    long = model.run(Request(prompt="a red ball", seed=3, steps=2, frames=20, overlap=4), noise=noise)
    short = model.run(Request(prompt="a red ball", seed=3, steps=2, frames=8), noise=noise[:, :, :8])
    assert torch.equal(long.video[:, :, :4], short.video[:, :, :4])


def test_an_overlap_of_the_whole_model_is_refused(model: Model) -> None:
    with pytest.raises(BadRequest, match="overlap"):
        model.generate("a red ball", frames=20, overlap=8)


def test_a_window_longer_than_the_model_is_refused(model: Model) -> None:
    with pytest.raises(BadRequest, match="window"):
        model.generate("a red ball", frames=20, window=12)


def test_an_unknown_sampler_is_refused_with_the_nearest(model: Model) -> None:
    with pytest.raises(BadRequest, match="euler"):
        model.generate("a red ball", sampler="eular")


def test_eta_with_a_sampler_that_has_none_is_refused_not_ignored(model: Model) -> None:
    with pytest.raises(BadRequest, match="takes no eta"):
        model.generate("a red ball", sampler="euler", eta=0.5, steps=2)


def test_sampler_options_reach_the_sampler_and_unknown_ones_are_refused(model: Model) -> None:
    ask = {"sampler": "vdm-ancestral", "seed": 1, "steps": 3}
    low, high = (model.generate("a red ball", sampler_options={"gamma": g}, **ask).video for g in (0.0, 1.0))
    assert not torch.equal(low, high)
    with pytest.raises(BadRequest, match="it takes gamma"):
        model.generate("a red ball", sampler_options={"churn": 1.0}, **ask)


def test_a_loop_without_windows_is_refused_not_ignored(model: Model) -> None:
    with pytest.raises(BadRequest, match="window"):
        model.generate("a red ball", loop=True)


def test_an_option_the_verb_does_not_know_is_one_sentence(model: Model) -> None:
    with pytest.raises(BadRequest, match="telepathy"):
        model.generate("a red ball", telepathy=True)


def test_words_the_model_never_saw_are_said(model: Model) -> None:
    events: list[Event] = []
    model.generate("a red zeppelin", seed=0, steps=1, on_event=events.append)
    assert any(isinstance(e, Note) and "zeppelin" in e.message for e in events)


def test_guidance_one_is_the_conditional_model_and_per_frame_ends_agree(model: Model) -> None:
    plain = model.generate("a red ball", seed=1, steps=2, guidance=1.0).video
    strong = model.generate("a red ball", seed=1, steps=2, guidance=4.0).video
    ramp = model.generate("a red ball", seed=1, steps=2, guidance=4.0, guidance_end=4.0).video
    assert not torch.equal(plain, strong)
    assert torch.equal(strong, ramp)
    scale = guidance_scale(Request(guidance=1.0, guidance_end=3.0), 5)
    assert isinstance(scale, torch.Tensor)
    assert scale.tolist() == [1, 1.5, 2, 2.5, 3]


def test_edit_strength_zero_returns_the_source_and_one_forgets_it(model: Model, clip_file: Path) -> None:
    kept = model.edit(clip_file, "a red ball", seed=0, steps=4, strength=0.0).video
    from kinema.media.read import read_video

    assert torch.allclose(kept, read_video(clip_file).video, atol=1e-6)
    gone = model.edit(clip_file, "a red ball", seed=0, steps=4, strength=1.0)
    fresh = model.generate("a red ball", seed=0, steps=4)
    assert torch.allclose(gone.video, fresh.video, atol=1e-5)


def test_an_edit_starts_at_the_level_of_its_strength() -> None:
    system = load("zoetrope", preset="tiny").system
    request = system.settle(Request(prompt="x", steps=10))
    levels = system.levels(request)
    source, noise = torch.ones(1, 3, 8, 16, 16), torch.zeros(1, 3, 8, 16, 16)
    some, z = start_from(source, 0.3, levels, noise)
    assert len(some) == 4
    assert torch.allclose(z, some[0].alpha.float() * source)


def test_the_latent_mask_gives_a_cell_only_when_all_of_it_is_given() -> None:
    class Strided(System):
        @property
        def lattice(self) -> Lattice:
            return Lattice(frame_step=4, frame_offset=1, stride=(4, 8, 8), channels=4)

    base = load("zoetrope", preset="tiny").system
    system = Strided(base.name, base.family, base.config, base.weights)
    mask = torch.zeros(1, 1, 9, 16, 16)
    mask[:, :, :5, :, :8] = 1
    mask[:, :, 5:8] = 1
    made = latent_mask(system, mask)
    assert made.shape == (1, 1, 3, 2, 2)
    assert made[0, 0, :, 0].tolist() == [[1, 0], [1, 0], [0, 0]]


def test_the_recipe_makes_the_clip_again_to_the_bit(model: Model) -> None:
    clip = model.generate("a red ball", steps=2)  # the seed is drawn, and recorded
    request = Request(**clip.recipe["request"])
    again = model.run(request)
    assert clip.recipe["request"]["seed"] >= 0
    assert frames_hash(again.video) == clip.recipe["frames_hash"]
    assert torch.equal(again.video, clip.video)


def test_latents_come_out_on_request(model: Model) -> None:
    clip = model.run(Request(prompt="a red ball", seed=0, steps=2), output="latents")
    assert clip.shape.bcthw == (1, 3, 8, 16, 16)


def test_an_untrained_model_is_seeded_by_its_weights_seed() -> None:
    a, b = (load("zoetrope", preset="tiny").system for _ in range(2))
    c = replace(a, weights=replace(a.weights, seed=1))
    name = "stem.weight"
    assert torch.equal(a.model.state_dict()[name], b.model.state_dict()[name])
    assert not torch.equal(a.model.state_dict()[name], c.model.state_dict()[name])
