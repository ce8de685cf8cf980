"""Losses of 1.0 to 1.3 against the original's training code (recorded), and against what is published."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kinema.diffusion.schedules import NoiseLevel, RectifiedFlow
from kinema.families.opensora.family import FAMILY
from kinema.families.opensora.first_line import process
from kinema.families.opensora.training import first, iddpm, masks
from kinema.families.opensora.training.first import Drawn
from kinema.schema import BadRequest
from kinema.system import Batch

SHAPE = (3, 4, 6, 4, 2)
GENERATED = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
STEPS = {"early": (0, 1, 2), "late": (700, 350, 999)}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


X0, EPS, OUTPUT = normal(1, *SHAPE), normal(2, *SHAPE), 0.7 * normal(3, SHAPE[0], 8, *SHAPE[2:])


class Replayed:
    """`first.Inputs` of the recordings."""

    def __init__(self, generated_BT: Tensor) -> None:
        self.generated_BT = generated_BT

    def frames(self, x0: Tensor) -> Tensor:  # noqa: ARG002
        return self.generated_BT

    def output(self, z: Tensor, time_B: Tensor) -> Tensor:
        self.z, self.time_B = z, time_B
        return OUTPUT


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("masked", [True, False])
def test_iddpm_losses_equal_the_originals(
    name: str, masked: bool, recorded: Callable[[str], dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = recorded("training")
    key = f"iddpm.{name}.{'masked' if masked else 'free'}"
    inputs = Replayed(GENERATED if masked else torch.ones_like(GENERATED))
    monkeypatch.setattr(first, "_step", lambda *_: torch.tensor(STEPS[name]))
    config = FAMILY.presets["tiny-1.1"]
    found = first._iddpm_loss(inputs, config, None, (X0, EPS), None)  # type: ignore[arg-type]
    assert torch.allclose(inputs.z, expected[f"{key}.z"], atol=1e-5)
    assert torch.allclose(found, expected[f"{key}.loss"], rtol=2e-5)


def test_flow_losses_of_1_2_equal_the_originals(recorded: Callable[[str], dict[str, Tensor]]) -> None:
    expected, inputs = recorded("training"), Replayed(GENERATED)
    config = FAMILY.presets["tiny-1.2"]
    batch = Batch(torch.zeros(3, 3, 1, 8, 8), [""] * 3, torch.zeros(3, 1, 34, 16, 24), time=0.35)
    found = first._flow_loss(inputs, config, batch, (X0, EPS), torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert torch.allclose(inputs.z, expected["1.2.z"], atol=1e-6)
    assert torch.allclose(inputs.time_B, expected["1.2.time"], atol=1e-3)
    assert torch.allclose(found, expected["1.2.loss"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["keep", "cond", "text", "null"])
def test_inputs_and_losses_of_1_3_equal_the_originals(
    kind: str, recorded: Callable[[str], dict[str, Tensor]], network: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given frames are noised and count; a drop hides their latents, never their mask."""
    expected, (config, model) = recorded("training"), network("tiny-1.3")
    given = torch.zeros(3, 6, dtype=torch.bool)
    given[:, [0, 5]] = True
    monkeypatch.setattr(masks, "drawn", lambda *_: masks.Drawn(given, torch.zeros(3, dtype=torch.bool)))
    monkeypatch.setattr(masks, "kinds", lambda *_: [kind] * 3)
    clips = batch(config)
    asked = first.drawn(config, clips, 6, torch.Generator())
    shown = first._shown(model, clips, normal(4, *SHAPE), asked, [0, 1, 2])
    assert torch.equal(shown, expected[f"1.3.{kind}.cond"])
    assert torch.equal(expected[f"1.3.{kind}.cond_mask"][:, 0, :, 0, 0].bool(), given)
    assert asked.text_dropped_B.tolist() == (expected[f"1.3.{kind}.y"][:, 0, 0, 0] == 7).tolist()
    inputs = Replayed(torch.ones_like(GENERATED))
    fixed = replace(clips, time=0.35)
    found = first._flow_loss(inputs, config, fixed, (X0, EPS), torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert torch.allclose(inputs.z, expected[f"1.3.{kind}.z"], atol=1e-6)
    assert torch.allclose(found, expected[f"1.3.{kind}.loss"], rtol=1e-5)


# ------------------------------------------------------------------------------------ given frames


@pytest.mark.parametrize("version", ["1.1", "1.2", "1.3"])
def test_the_output_at_given_frames_changes_the_loss_by_exactly_nothing_except_in_1_3(
    version: str, network: Any, batch: Any, fixed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original's 1.3 counts given frames like all others (x_cond_weight 1)."""
    config, model = network(f"tiny-{version}")
    model.transformer = fixed(model.transformer)
    frames = first.latents(model, batch(config)).shape[2]
    given = torch.zeros(3, frames, dtype=torch.bool)
    given[0, 0] = given[1, -2:] = True
    monkeypatch.setattr(masks, "drawn", lambda *_: masks.Drawn(given, torch.zeros(3, dtype=torch.bool)))

    def losses(added: Tensor | float) -> Tensor:
        model.transformer.added = added
        with torch.no_grad():
            return FAMILY.training.loss(model, config, batch(config), torch.Generator().manual_seed(1))

    plain, at = losses(0.0), given[:, None, :, None, None]
    elsewhere = losses(1e3 * ~at)
    assert torch.equal(losses(1e3 * at), plain) == (version != "1.3")
    assert bool((elsewhere > 10 * plain).all())
    if version != "1.3":
        seen = model.transformer.seen
        assert torch.equal(seen["generated_BT"], ~given)
        x0 = first.latents(model, batch(config))
        clean = seen["z"].movedim(2, 1)[given]
        if version == "1.2":
            assert torch.equal(clean, x0.movedim(2, 1)[given])
        else:  # noise of the first timestep
            assert float((clean - math.sqrt(1 - 1e-4) * x0.movedim(2, 1)[given]).std()) == pytest.approx(0.01, rel=0.3)


def test_a_clip_of_which_all_frames_are_given_has_no_loss(network: Any, batch: Any, monkeypatch: Any) -> None:
    for version in ("1.1", "1.2"):
        config, model = network(f"tiny-{version}")
        monkeypatch.setattr(
            masks, "drawn", lambda mix, n, t, g: masks.Drawn(torch.ones(n, t).bool(), torch.zeros(n).bool())
        )
        found = FAMILY.training.loss(model, config, batch(config), torch.Generator().manual_seed(1))
        assert found.tolist() == [0, 0, 0]


# -------------------------------------------------------------------------------------------- times


def test_times_of_a_flow_are_logit_normal_and_shifted(network: Any, batch: Any) -> None:
    """Against the formula of the original: r = sqrt(hw / 512²) sqrt(frames // 17 * 5), or (frames - 1) // 4."""
    for version, frames in (("1.2", 34 // 17 * 5), ("1.3", 32 // 4)):
        config, _ = network(f"tiny-{version}")
        clips = Batch(torch.zeros(1, 3, 1, 16, 24), [""] * 4000, torch.zeros(1, 1, config.frames, 16, 24))
        level = first._level(config, clips, torch.Generator().manual_seed(1))
        u = torch.randn(4000, generator=torch.Generator().manual_seed(1)).sigmoid()
        ratio = math.sqrt(16 * 24 / 512**2) * math.sqrt(frames)
        assert torch.allclose(level.sigma, ratio * u / (1 + (ratio - 1) * u), atol=1e-6)


def test_timesteps_of_iddpm_are_uniform() -> None:
    clips = Batch(torch.zeros(1, 3, 1, 1, 1), [""] * 50_000, torch.zeros(1, 1, 1, 1, 1))
    step = first._step(clips, torch.Generator().manual_seed(1))
    assert (int(step.min()), int(step.max())) == (0, 999)
    assert float(step.float().mean()) == pytest.approx(499.5, abs=6)
    assert first._step(replace(clips, time=0.5), torch.Generator()).unique().tolist() == [500]


def test_the_network_is_called_with_the_flows_time_in_thousandths(network: Any, batch: Any, fixed: Any) -> None:
    for preset, expected in (("tiny-1.2", 300.0), ("tiny-1.3", 300.0), ("tiny-1.0", 300), ("tiny-1.1", 300)):
        config, model = network(preset)
        model.transformer = fixed(model.transformer)
        FAMILY.training.loss(model, config, batch(config, time=0.3), torch.Generator().manual_seed(1))
        assert torch.allclose(model.transformer.seen["time"], torch.full((3,), float(expected)))


def test_levels_of_a_frame_are_those_of_its_clip_or_clean() -> None:
    level = first._per_frame(
        RectifiedFlow(1.0).level(torch.tensor([0.2, 0.6, 0.9])), GENERATED, NoiseLevel(torch.ones(1), torch.zeros(1))
    )
    expected = torch.tensor([[0.2], [0.6], [0.9]]) * GENERATED
    assert torch.allclose(level.sigma, expected)
    assert torch.allclose(level.alpha, 1 - expected)


def test_every_loss_is_of_its_own_clip_however_the_step_is_split(network: Any, batch: Any) -> None:
    """A step of four clips in two parts: the same losses, with masks and drops that differ from clip to clip."""
    for preset in ("tiny-1.1", "tiny-1.2", "tiny-1.3", "tiny", "tiny-dc-ae"):
        config, model = network(preset)
        whole = batch(config, 4)
        mask = whole.mask.clone()
        mask[1, :, 0] = mask[3, :, -1] = 1
        whole = replace(whole, mask=mask)
        for seed in range(3):
            with torch.no_grad():
                together = FAMILY.training.loss(model, config, whole, torch.Generator().manual_seed(seed))
                apart = [
                    FAMILY.training.loss(model, config, part, torch.Generator().manual_seed(seed))
                    for part in whole.parts(2)
                ]
            assert torch.allclose(together, torch.cat(apart), rtol=1e-4), preset


@pytest.mark.parametrize("preset", ["tiny", "tiny-dc-ae", "tiny-1.0", "tiny-1.1", "tiny-1.2", "tiny-1.3"])
def test_losses_under_bf16_autocast_are_those_of_float32_and_have_its_precision(
    preset: str, network: Any, batch: Any
) -> None:
    """Only networks compute in bfloat16: latents, noise and errors do not."""
    config, model = network(preset)
    clips = batch(config, 2)

    def losses(*, enabled: bool) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return FAMILY.training.loss(model, config, clips, torch.Generator().manual_seed(1))

    low = losses(enabled=True)
    assert low.dtype == torch.float32
    assert torch.allclose(low, losses(enabled=False), rtol=0.05)


# ---------------------------------------------------------------------------------- drops, about


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_a_tenth_of_prompts_is_dropped(version: str) -> None:
    config = FAMILY.presets[f"tiny-{version}"]
    clips = Batch(torch.zeros(1), [""] * 20_000, torch.zeros(1))
    asked = first.drawn(config, clips, 3, torch.Generator().manual_seed(1))
    assert float(asked.text_dropped_B.float().mean()) == pytest.approx(0.1, abs=0.01)
    assert not bool(asked.given_dropped_B.any())
    kept = first.drawn(config, replace(clips, drops=False), 3, torch.Generator().manual_seed(1))
    assert not bool(kept.text_dropped_B.any())


def test_in_1_3_text_and_given_latents_of_clips_with_given_frames_are_dropped_in_three_ways() -> None:
    """.05 each of text, of given latents and of both; of clips without given frames the text in a tenth."""
    config = FAMILY.presets["tiny-1.3"]
    asked = first.drawn(
        config, Batch(torch.zeros(1), [""] * 40_000, torch.zeros(1)), 6, torch.Generator().manual_seed(1)
    )
    some = asked.given_BT.any(1)
    assert float(some.float().mean()) == pytest.approx(14 / 16, abs=0.01)
    text, hidden = asked.text_dropped_B, asked.given_dropped_B
    shares = [float((some & each).sum() / some.sum()) for each in (text & ~hidden, hidden & ~text, text & hidden)]
    assert shares == pytest.approx([0.05, 0.05, 0.05], abs=0.006)
    assert float((text & ~some).sum() / (~some).sum()) == pytest.approx(0.1, abs=0.02)
    assert not bool((hidden & ~some).any())


def test_a_dropped_prompt_is_the_null_text_under_its_own_mask(
    network: Any, batch: Any, fixed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, model = network("tiny-1.2")
    model.transformer = fixed(model.transformer)
    drop, none = torch.tensor([True, False, True]), torch.zeros(3, dtype=torch.bool)
    frames = first.latents(model, batch(config)).shape[2]
    asked = Drawn(torch.zeros(3, frames, dtype=torch.bool), none, drop, none)
    monkeypatch.setattr(first, "drawn", lambda *_: asked)
    FAMILY.training.loss(model, config, batch(config), torch.Generator().manual_seed(1))
    seen = model.transformer.seen
    null = model.transformer.y_embedder.y_embedding
    assert torch.equal(seen["states"][0], null)
    assert not torch.equal(seen["states"][1], null)
    assert torch.equal(seen["tokens"][0], seen["tokens"][1])
    assert seen["tokens"][0].sum() == 5


def test_the_network_knows_the_rate_and_the_published_size(network: Any, batch: Any) -> None:
    config, _ = network("tiny-1.2")
    clips = batch(config, fps=torch.tensor([12.0, math.nan, 30.0]))
    about = first.about(config, clips)
    assert about.fps_B.tolist() == [12, config.fps, 30]
    assert (about.height, about.width) == (16, 24)
    published = replace(FAMILY.presets["v1.2"])
    large = Batch(clips.video, clips.captions, torch.zeros(3, 1, 51, 240, 424))
    assert first.about(published, large)[1:] == (240, 426)
    image = Batch(clips.video[:, :, :1], clips.captions, clips.mask[:, :, :1], fps=clips.fps)
    assert first.about(config, image).fps_B.tolist() == [120, 120, 120]


def test_noisy_given_frames_are_encoded_with_a_tenth_to_three_tenths_of_noise(
    network: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, model = network("tiny-1.3")
    clips = batch(config, 2)
    seen: list[Tensor] = []
    encode = first.codec_of(model).encode

    class Codec:
        def encode(self, video: Tensor) -> Tensor:
            seen.append(video)
            return encode(video)

    monkeypatch.setattr(first, "codec_of", lambda _: Codec())
    frames = encode(clips.video).shape[2]
    given = torch.ones(2, frames, dtype=torch.bool)
    none = torch.zeros(2, dtype=torch.bool)
    x0 = encode(clips.video).detach()
    asked = Drawn(given, torch.tensor([True, False]), none, none)
    shown = first._shown(model, clips, x0, asked, [1, 2])
    assert len(seen) == 1
    mixed = seen[0]
    video = clips.video[:1]
    share = 1 - float((mixed * video).mean() / video.square().mean())
    assert 0.09 < share < 0.31
    assert float((mixed - (1 - share) * video).std()) == pytest.approx(share, rel=0.05)
    assert torch.equal(shown[1], x0[1])
    assert torch.allclose(shown[0], encode(mixed)[0], atol=1e-4)
    stored = replace(clips, encoded={"latents": x0})
    assert torch.equal(first._shown(model, stored, x0, asked, [1, 2]), x0)  # as the original's cached latents


@pytest.mark.parametrize("frames", [2, 16])
def test_clips_too_short_for_the_shift_of_1_2_are_refused_before_training(frames: int) -> None:
    config = replace(FAMILY.presets["tiny-1.2"], frames=frames)
    with pytest.raises(BadRequest, match=f"1.2 is trained on .* of at least 17 frames, not on {frames}"):
        FAMILY.training.settings(config)
    for allowed in (
        replace(config, frames=1),
        replace(config, frames=17),
        replace(FAMILY.presets["v1.1"], frames=frames),
    ):
        assert FAMILY.training.settings(allowed).batch == 4


def test_an_unknown_stage_is_named() -> None:
    config = FAMILY.presets["tiny-1.2"]
    with pytest.raises(BadRequest, match="no training stage 'stage9'"):
        FAMILY.training.settings(replace(config, stage="stage9"))
    with pytest.raises(BadRequest, match="no training stage 'stage9'; expected one of adapt, stage1, stage2, stage3"):
        FAMILY.training.tuning.staged(config, "stage9")
    with pytest.raises(BadRequest, match="has no training stage"):
        FAMILY.training.tuning.staged(FAMILY.presets["tiny"], "stage1")
    assert FAMILY.training.settings(FAMILY.training.tuning.staged(config, "stage3")).warmup == 1000


def test_rates_are_those_of_the_original() -> None:
    """Learning rate, warm-up and decay of the average."""
    asked = {
        name: (s.learning_rate, s.warmup, s.ema)
        for name in ("v1.0", "v1.1", "v1.2", "v1.3")
        for s in (FAMILY.training.settings(FAMILY.presets[name]),)
    }
    assert asked == {
        "v1.0": (2e-5, 0, 0.9999),
        "v1.1": (2e-5, 0, 0.9999),
        "v1.2": (1e-4, 1000, 0.99),
        "v1.3": (1e-4, 1000, 0.99),
    }


def test_the_bound_of_a_perfect_prediction_is_that_of_the_posterior() -> None:
    """With eps predicted exactly and the posterior's own variance the divergence is 0, but for the last step."""
    step = torch.tensor([500, 20, 999])
    z = iddpm.level(step).add_noise(X0, EPS)
    found = iddpm.loss(torch.cat([EPS, -torch.ones_like(EPS)], 1), X0, z, EPS, step, torch.ones(3, 1, 6, 1, 1))
    assert torch.allclose(found, torch.zeros(3), atol=1e-5)
    worse = iddpm.loss(torch.cat([EPS, torch.ones_like(EPS)], 1), X0, z, EPS, step, torch.ones(3, 1, 6, 1, 1))
    assert bool((worse[:2] > 1e-7).all())  # at the last step the range of the variance is next to nothing
    assert process.BETAS.count == 1000
