from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from kinema.diffusion.schedules import CosineLogSNR
from kinema.families.vdm import recipe
from kinema.families.vdm.config import Config, presets
from kinema.families.vdm.family import FAMILY
from kinema.families.vdm.model import VideoUNet
from kinema.schema import Request
from kinema.system import Batch

Lively = Callable[..., VideoUNet]


def batch(size: int = 2, images: int = 0, frames: int = 4, captions: tuple[str, ...] = ("a red ball", "")) -> Batch:
    g = torch.Generator().manual_seed(5)
    video = torch.rand(size, 3, frames, 16, 16, generator=g, dtype=torch.float64) * 2 - 1
    mask = torch.zeros(size, 1, frames, 16, 16)
    if not images:
        return Batch(video, captions[:size], mask)
    image_BKCHW = torch.rand(size, images, 3, 16, 16, generator=g, dtype=torch.float64) * 2 - 1
    return Batch(video, captions[:size], mask, image_BKCHW, [["a blue box", ""][:images]] * size)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_dropped_captions_train_the_null_condition(tiny: Config) -> None:
    torch.manual_seed(0)
    model = VideoUNet(tiny).double()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe.loss(model, tiny, batch(), seeded()).mean().backward()
    assert model.null.grad is not None
    assert model.null.grad.abs().max() > 0
    optimiser.step()
    assert model.null.abs().max() > 0


def test_the_null_condition_is_not_trained_without_dropped_captions(tiny: Config) -> None:
    torch.manual_seed(0)
    model = VideoUNet(tiny).double()
    recipe.loss(model, tiny, batch(captions=("a red ball", "a blue box")), seeded()).mean().backward()
    assert model.null.grad is None or not model.null.grad.any()


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("target", ["eps", "v"])
def test_the_loss_is_per_clip_and_deterministic(tiny: Config, lively: Lively, target: str, images: int) -> None:
    config, model = replace(tiny, target=target), lively()
    first, again, other = (recipe.loss(model, config, batch(images=images), seeded(s)) for s in (0, 0, 1))
    assert first.shape == (2,)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_losses_of_a_perfect_network_are_zero(tiny: Config) -> None:
    data = batch(images=2)

    class Perfect(torch.nn.Module):
        """Returns the exact target, computed from the clean data."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.config = config

        def forward(self, z: torch.Tensor, log_snr: torch.Tensor, cond: None, *, independent: int) -> torch.Tensor:
            assert cond is None
            assert independent == 2
            x0 = torch.cat([data.video, data.images.transpose(1, 2)], dim=2)
            level = recipe.schedule(self.config).at(log_snr.flatten())
            alpha, sigma = (part.reshape(2, 1, -1, 1, 1) for part in (level.alpha, level.sigma))
            eps = (z - alpha * x0) / sigma
            return {"eps": eps, "v": alpha * eps - sigma * x0, "x0": x0}[self.config.target]

    for target in ("eps", "v", "x0"):
        config = replace(tiny, target=target, text="none", words=(), min_snr=0.0)
        assert recipe.loss(Perfect(config), config, data, seeded()).max() < 1e-6


def test_appended_images_do_not_change_the_clips_prediction(tiny: Config, lively: Lively) -> None:
    model, data, outputs = lively(), batch(images=2), []
    model.register_forward_hook(lambda _module, _input, output: outputs.append(output[:, :, : data.video.shape[2]]))
    losses = [recipe.loss(model, tiny, each, seeded()) for each in (data, replace(data, images=-data.images))]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(losses[0], losses[1])


def test_min_snr_weighting_lowers_the_loss_of_nearly_clean_clips(tiny: Config, lively: Lively) -> None:
    model, data = lively(), batch()
    plain, weighted = (recipe.loss(model, replace(tiny, min_snr=g), data, seeded()) for g in (0.0, 5.0))
    assert bool((weighted < plain).all())


def test_training_on_fixed_noise_lowers_the_loss(tiny: Config) -> None:
    torch.manual_seed(0)
    model, data = VideoUNet(tiny), batch()
    data = replace(data, video=data.video.float())
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = recipe.loss(model, tiny, data, seeded()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_training_settings_match_the_paper() -> None:
    large, ucf = recipe.recipe(presets()["text-large"]), recipe.recipe(presets()["ucf101"])
    assert (large.steps, large.images, large.text_drop) == (700_000, 8, 0.1)
    assert (ucf.steps, ucf.batch, ucf.learning_rate, ucf.text_drop) == (60_000, 128, 3e-4, 0.0)
    assert recipe.recipe(presets()["text-128"]).images == 7


def test_the_loss_of_x0_is_that_of_v_bounded_at_low_noise(tiny: Config) -> None:
    """The same estimate of x0, as x0 and as v: equal losses, except where sigma is below the bound."""
    data, seen = batch(), {}

    class Estimate(torch.nn.Module):
        """Estimates x0 as 0: v̂ = -α/σ z + ..., from x0 = α z - σ v."""

        def __init__(self, target: str) -> None:
            super().__init__()
            self.target = target

        def forward(self, z: torch.Tensor, log_snr: torch.Tensor, cond: None, *, independent: int) -> torch.Tensor:
            level = recipe.schedule(tiny).at(log_snr[:, 0])
            seen["sigma"] = level.sigma
            alpha, sigma = (part.reshape(2, 1, 1, 1, 1) for part in (level.alpha, level.sigma))
            return z * 0 if self.target == "x0" else alpha / sigma * z

    found, sigma = {"v": [], "x0": []}, []
    for target, losses in found.items():
        config = replace(tiny, target=target, text="none", words=(), min_snr=0.0)
        for seed in range(8):
            losses.append(recipe.loss(Estimate(target), config, data, seeded(seed)))
            sigma.append(seen["sigma"])
    v, x0, sigma = torch.cat(found["v"]), torch.cat(found["x0"]), torch.cat(sigma[8:])
    low = sigma < recipe.LEAST_SIGMA
    assert 0 < low.sum() < len(low)
    torch.testing.assert_close(x0[~low], v[~low])
    torch.testing.assert_close(x0[low], (v * sigma.square() / recipe.LEAST_SIGMA**2)[low])


def test_training_and_sampling_share_the_shifted_noise_levels(tiny: Config) -> None:
    seen = {}

    class Recorder(torch.nn.Module):
        def forward(self, z: torch.Tensor, log_snr: torch.Tensor, cond: None, *, independent: int) -> torch.Tensor:
            seen[config.shift] = log_snr
            return z * 0

    for shift in (1.0, 4.0):
        config = replace(tiny, shift=shift, text="none", words=())
        recipe.loss(Recorder(), config, batch(), seeded())
        assert FAMILY.sampling.process(config, Request()).schedule == CosineLogSNR(shift=shift)
    torch.testing.assert_close(seen[4.0], seen[1.0] - 2 * math.log(4))


# ---------------------------------------------------------------------------------- image models


def image_model(config: Config) -> Config:
    return replace(config, training=replace(config.training, per_frame=True, images=0))


def test_an_image_model_is_trained_on_every_frame_as_an_independent_image(tiny: Config, lively: Lively) -> None:
    """The same loss and gradients as on a batch of images without a clip; temporal attention gets no gradient."""
    model, clips = lively(), batch(frames=3)
    recipe.loss(model, image_model(tiny), clips, seeded()).sum().backward()
    own = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert not any(".time.qk" in name or ".time.relative" in name for name in own)
    model.zero_grad(set_to_none=True)
    images = replace(
        clips,
        video=clips.video[:, :, :0],
        images=clips.video.transpose(1, 2),
        image_captions=[[caption] * 3 for caption in clips.captions],
    )
    recipe.loss(model, tiny, images, seeded()).sum().backward()
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, dict(model.named_parameters())[name].grad)


def test_frames_of_an_image_model_have_noise_levels_of_their_own(tiny: Config) -> None:
    seen = []

    class Recorder(torch.nn.Module):
        def forward(self, z: torch.Tensor, log_snr: torch.Tensor, cond: None, *, independent: int) -> torch.Tensor:
            seen.append((log_snr, independent))
            return z * 0

    config = replace(image_model(tiny), text="none", words=())
    assert recipe.loss(Recorder(), config, batch(frames=3), seeded()).shape == (2,)
    levels, independent = seen[0]
    assert independent == 3
    assert levels.shape == (2, 3)
    assert len(levels.unique()) == 6
