"""Open-Sora 2.0 as a family: the frame counts of its codecs, its loss, its options, and its text encoders."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import EinopsError
from torch import Tensor

from kinema.api import Model, load
from kinema.cli.main import main
from kinema.families.opensora import conditioning, recipe
from kinema.families.opensora.config import TINY, TINY_DC_AE, Config
from kinema.families.opensora.family import FAMILY
from kinema.families.opensora.layout import latent_grid
from kinema.families.opensora.process import VELOCITY
from kinema.families.opensora.training import text
from kinema.media.read import read_image, read_video
from kinema.schema import BadRequest, Clip, Request
from kinema.system import Batch, System, Weights

SMALL = {"height": 16, "width": 24}


@pytest.fixture(scope="module", params=["tiny", "tiny-dc-ae"])
def model(request: pytest.FixtureRequest, fill: Any) -> Model:
    torch.set_num_threads(1)
    made = load("opensora", preset=request.param)
    fill(made.system.model, 3, std=0.1)
    return made


# ------------------------------------------------------------------------------------- frame counts


def test_the_grid_has_the_frame_counts_of_the_codec(model: Model) -> None:
    """Every count up to 20: what the codec takes and gives back is what the grid says, and no other count is legal."""
    time, codec = latent_grid(model.system.config).time, model.system.codec
    with torch.no_grad():
        for frames in range(1, 21):
            legal = time.ceil(frames) == frames
            try:
                z = codec.encode(torch.zeros(1, 3, frames, 16, 24))
            except EinopsError:  # what halves in time needs an even number of frames
                assert not legal, frames
                continue
            if legal:
                assert z.shape[2] == time.latent(frames)
            decoded = codec.decode(z).shape[2]
            assert (decoded == frames) == legal, frames
            assert decoded == time.frames(z.shape[2])


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 10, 13])  # one of each remainder of 4, and longer
def test_every_frame_count_is_generated_animated_and_extended(model: Model, frames: int, tmp_path: Path) -> None:
    options = {"steps": 1, "seed": 1, **SMALL}
    Clip(torch.rand(1, 3, 1, 16, 24) * 2 - 1).save(tmp_path / "one.png")
    Clip(torch.rand(1, 3, frames, 16, 24) * 2 - 1, 8.0).save(tmp_path / "clip.gif")
    image, known = read_image(tmp_path / "one.png"), read_video(tmp_path / "clip.gif").video
    assert model.generate("a red ball", frames=frames, **options).video.shape[2] == frames
    animated = model.animate(tmp_path / "one.png", frames=frames, **options).video
    assert animated.shape[2] == frames
    assert torch.equal(animated[:, :, :1], image)
    for backward in (False, True):
        longer = model.extend(tmp_path / "clip.gif", frames=frames + 3, backward=backward, **options).video
        assert longer.shape[2] == frames + 3
        assert torch.equal(longer[:, :, 3:] if backward else longer[:, :, :frames], known)


# ------------------------------------------------------------------------------------------ training


def batch(config: Config, clips: int = 3, given: int = 1, caption: str = "a red ball") -> Batch:
    """Clips of noise whose first frames are given."""
    frames = config.frames
    video = torch.rand(clips, 3, frames, 16, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1
    mask = torch.zeros(clips, 1, frames, 16, 24)
    mask[:, :, :given] = 1
    return Batch(video, [caption] * clips, mask)


def drawn(config: Config, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The time and noise of the loss, by the formulas of the paper (appendix of section 4.3)."""
    t = 1 / (1 + torch.exp(-torch.randn(len(x0), generator=generator)))
    tokens, frames = config.tokens(16, 24), x0.shape[2]
    alpha = (1 + (tokens - 256) * 2 / 3840) * math.sqrt(frames)
    return alpha * t / (1 + (alpha - 1) * t), torch.randn(x0.shape, generator=generator)


@pytest.mark.parametrize("preset", [TINY, TINY_DC_AE], ids=["tiny", "tiny-dc-ae"])
def test_the_loss_is_its_closed_form_for_a_network_of_constant_output(preset: Config, fill: Any) -> None:
    """Logit-normal times, shifted; ``z = (1 - t) x0 + t eps``; the mean square of ``v - ((1 - 1e-5) eps - x0)``."""
    model, told = FAMILY.build(preset), batch(preset)
    fill(model, 3, std=0.1)
    seen: dict[str, Any] = {}

    class Constant(torch.nn.Module):
        img_in = model.transformer.img_in

        def forward(self, z: Tensor, time: Tensor, text: Tensor, pooled: Tensor, given: Tensor) -> Tensor:
            seen.update(z=z, time=time, text=text, pooled=pooled, given=given)
            return torch.full_like(z, 0.25)

    model.transformer = Constant()
    with torch.no_grad():
        found = recipe.loss(model, preset, told, torch.Generator().manual_seed(7))
        x0 = model.vae.encode(told.video) * preset.scale
    t, eps = drawn(preset, x0, torch.Generator().manual_seed(7))
    t5 = t[:, None, None, None, None]
    assert torch.allclose(seen["time"], t, atol=1e-6)
    assert torch.allclose(seen["z"], (1 - t5) * x0 + t5 * eps, atol=1e-4 * float(x0.abs().max()))
    assert torch.allclose(found, (0.25 - ((1 - 1e-5) * eps - x0)).square().mean((1, 2, 3, 4)), rtol=1e-4)
    assert VELOCITY.sigma_min == 1e-5


def test_given_frames_are_conditioned_on_and_count_in_the_loss(fill: Any) -> None:
    model, seen = FAMILY.build(TINY), []
    fill(model, 3, std=0.1)
    forward = model.transformer.forward
    model.transformer.forward = lambda *args: seen.append(args[4]) or forward(*args)
    for given in (0, 1, 9):
        recipe.loss(model, TINY, batch(TINY, given=given), torch.Generator().manual_seed(7))
    none, first, every = (each[:, :1, :, 0, 0].tolist() for each in seen)
    assert none == [[[0, 0, 0]]] * 3
    assert first == [[[1, 0, 0]]] * 3
    assert every == [[[1, 1, 1]]] * 3
    assert bool((seen[0] == 0).all())
    with torch.no_grad():
        image = model.vae.encode(batch(TINY).video[:, :, :1]) * TINY.scale
    assert torch.allclose(seen[1][:, 1:, :1], image, atol=1e-5)  # encoded alone, as an image


def test_only_the_transformer_and_the_words_learn(fill: Any) -> None:
    model = FAMILY.build(TINY)
    fill(model, 3, std=0.1)
    recipe.loss(model, TINY, batch(TINY), torch.Generator().manual_seed(7)).sum().backward()
    learning = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    moved = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learning == moved == {"transformer", "words"}


def test_an_empty_caption_is_the_negative_prompt(fill: Any) -> None:
    model = FAMILY.build(TINY)
    fill(model, 3, std=0.1)
    system = System("opensora", FAMILY, TINY, Weights(seed=0))
    system.runtime.model = model
    request = Request(prompt="a red ball", **SMALL, frames=9)
    with torch.no_grad():
        told = replace(batch(TINY, 1, caption=""), drops=False)
        states, pooled = text.of_second(model, TINY, told, torch.Generator())
        negative = conditioning.encode_prompt(system, request, lambda _event: None)["negative"]
    assert torch.equal(states, negative[0])
    assert torch.equal(pooled, negative[1])


def test_the_mix_of_given_frames_is_that_of_the_image_to_video_stage() -> None:
    """t2v 1, i2v head 5, loop 1, tail 1, of 8."""
    told = recipe.settings(TINY)
    assert told.canvas_mix == {"nothing": 1 / 8, "first": 5 / 8, "ends": 1 / 8, "last": 1 / 8}
    assert told.learning_rate == 5e-5


# ------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"image_guidance": 101}, "image_guidance is 101; expected a number from 0 to 100"),
        ({"motion_score": "much"}, "motion_score is 'much'; expected a number from 0 to 100"),
        ({"motion_score": True}, "motion_score is True; expected a number"),
        ({"flow_shift": 0}, "flow_shift is 0; expected a number from 0.01 to 100"),
        ({"decode_chunk": 2.5}, "decode_chunk is 2.5; expected a whole number"),
        ({"decode_overlap": 0}, "decode_overlap is 0; expected a number from 1"),
        ({"decode_chunk": 2, "decode_overlap": 2}, "decode_overlap is 2; expected less than the decode_chunk of 2"),
        ({"decode_overlap": 1}, "decode_overlap applies only with decode_chunk"),
        ({"oscillate": 1}, "oscillate is 1; expected true or false"),
        ({"oscilate": True}, "opensora has no option 'oscilate'; did you mean oscillate"),
        (
            {"dynamic_image": False},
            "dynamic_image applies only to frames that the network is given: leave it out of generate",
        ),
        ({"image_guidance": 2.0}, "image_guidance applies only to frames that the network is given"),
    ],
)
def test_options_that_cannot_be_are_refused_before_weights_are_read(extra: dict[str, Any], said: str) -> None:
    model = load("opensora", preset="tiny")
    with pytest.raises(BadRequest, match=said):
        model.generate("a red ball", extra=extra)
    assert model.system.runtime.model is None


def test_a_model_without_its_text_encoders_says_so_before_weights_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One sentence that names the encoder and how to get it."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = load("opensora", preset="v2", offline=True)
    with pytest.raises(BadRequest, match="T5-XXL, which encodes the prompt, is not in the hub's cache; download it"):
        model.generate("a red ball")
    assert model.system.runtime.model is None


def test_a_plan_names_the_text_encoders_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = ["plan", "a red ball", "--model", "opensora/v2", "--frames", "5", "--height", "64", "--width", "64"]
    assert main([*options, "--memory", "1TB", "--json"]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"]
    assert plan["seconds"] is None
    assert [fault.partition(",")[0] for fault in plan["missing"]] == ["T5-XXL", "CLIP-L"]
    assert main([*options, "--memory", "1TB"]) == 1
    rows = capsys.readouterr().out.splitlines()
    assert sum("T5-XXL" in row for row in rows) == sum("CLIP-L" in row for row in rows) == 1
    assert "  reason     time: not measured, since files are missing" in rows


@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_a_request_may_set_the_shift(shift: float) -> None:
    system = System("opensora", FAMILY, TINY, Weights(seed=0))
    request = Request(frames=9, steps=2, extra={"flow_shift": shift}, **SMALL)
    assert system.levels(request).sigma.tolist() == pytest.approx([1, shift / (1 + shift), 0])
    own = replace(TINY, shift=2.0)
    assert System("opensora", FAMILY, own, Weights(seed=0)).levels(request).sigma[1] == pytest.approx(
        shift / (1 + shift)
    )
