"""The pocket model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kinema.api import load
from kinema.data.playroom import Playroom
from kinema.data.playroom.rendered import Rendered
from kinema.evaluation.measuring import first_frames
from kinema.evaluation.sampling import Sampling
from kinema.families.svd import recipe
from kinema.families.svd.config import from_json, to_json
from kinema.families.svd.family import FAMILY
from kinema.families.svd.pocket.parts import PocketAutoencoder, PocketSVD
from kinema.families.svd.pocket.presets import POCKET
from kinema.families.svd.pocket.recipe import STAGES
from kinema.families.svd.training import TRAINING
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip
from kinema.system import Batch, open_system
from kinema.training.stream import Stream

SMALL = replace(POCKET, frames=4, height=32, width=32, channels=(32, 32), heads=(1, 1), vae_channels=(32, 32))


def small(stage):
    torch.manual_seed(0)
    return PocketSVD(recipe.staged(SMALL, stage))


def batch(count=4, config=SMALL):
    source = Rendered(config.frames, config.height, config.width, config.fps, Playroom("simple", slow=4.0))
    return Stream(source, FAMILY.training.settings(recipe.staged(config, "codec")), count).at(0)


def test_float16_weights_are_under_ten_megabytes():
    with torch.device("meta"):
        result = PocketSVD(POCKET)
    assert 2 * sum(x.numel() for x in result.state_dict().values()) < 10_000_000
    assert from_json(to_json(POCKET)) == POCKET


def test_each_training_stage_trains_its_part():
    trained = {s: {n.split(".")[0] for n, p in small(s).named_parameters() if p.requires_grad} for s in STAGES}
    assert trained == {"codec": {"vae"}, "playroom": {"unet", "image_encoder"}}


@pytest.mark.parametrize("stage", STAGES)
def test_training_on_one_batch_lowers_the_loss_and_changes_every_parameter(stage):
    model, data = small(stage), batch(2)
    config = recipe.staged(SMALL, stage)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=3e-3)
    losses = []
    for _ in range(10):
        loss = recipe.loss(model, config, data, torch.Generator().manual_seed(1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}


def test_settled_statistics_normalise_the_latents():
    torch.manual_seed(1)
    vae = PocketAutoencoder(SMALL)
    images = 2 * torch.rand(64, 3, 32, 32) - 0.5
    with torch.no_grad():
        mean, _ = vae.raw(images).chunk(2, dim=1)
        for _ in range(300):
            vae.update_statistics(mean)
        z = vae.encode(images)
    assert z.shape == (64, 16, 4, 4)
    assert float(z.mean((0, 2, 3)).abs().max()) < 0.02
    assert float((z.std((0, 2, 3)) - 1).abs().max()) < 0.02


def test_statistics_change_only_in_training_and_for_finite_batches():
    model, data = small("codec"), batch()
    config = recipe.staged(SMALL, "codec")
    recipe.loss(model.eval(), config, data, torch.Generator())
    assert not model.vae.mean.any()
    recipe.loss(model.train(), config, replace(data, video=data.video * torch.nan), torch.Generator())
    assert not model.vae.mean.any()
    recipe.loss(model, config, data, torch.Generator())
    assert model.vae.mean.any()


def test_posterior_and_mode_are_in_the_same_units():
    torch.manual_seed(2)
    vae = PocketAutoencoder(SMALL)
    vae.mean += 3
    vae.variance *= 4
    images = torch.rand(2, 3, 32, 32)
    mean, log_variance = vae.raw(images).chunk(2, dim=1)
    scaled_mean, scaled_log_variance = vae.moments(images).chunk(2, dim=1)
    torch.testing.assert_close(scaled_mean, (mean - 3) / 2)
    torch.testing.assert_close((scaled_log_variance / 2).exp(), (log_variance / 2).exp() / 2)
    torch.testing.assert_close(vae.decode(scaled_mean, 1), vae.decoder(mean))


def test_pre_encoding_clips_is_rejected():
    with pytest.raises(BadRequest, match="image encoder is trained with the U-Net"):
        TRAINING.frozen(small("playroom"))


def test_the_motion_bucket_changes_the_clip(tmp_path):
    image_path = tmp_path / "image.png"
    save_clip(Clip(batch(1).video[:, :, :1]), image_path, generated=False)
    model = load("svd", preset="pocket", overrides={"channels": (32, 32), "heads": (1, 1), "frames": 4})
    for p in model.system.model.unet.parameters():  # untrained, its output is zero
        torch.nn.init.normal_(p, std=0.05)
    clips = [model.animate(image_path, seed=1, steps=2, extra={"motion_bucket": b}).video for b in (40, 160)]
    assert clips[0].shape == (1, 3, 4, 64, 64)
    assert not torch.equal(*clips)


def test_the_first_frame_is_held_in_latents():
    small_one = {"channels": (32, 32), "heads": (1, 1), "frames": 4, "height": 32, "width": 32}
    system = open_system("svd/pocket", overrides=small_one)
    sampling, real = Sampling.of(system, steps=2), batch(2).video
    result = sampling.clips(["", ""], 0, first_frames(real))
    with torch.no_grad():
        decoded = system.decode(system.codec.encode(real[:, :, :1]))
    torch.testing.assert_close(result[:, :, :1], decoded, atol=1e-5, rtol=1e-5)


def test_batches_have_fps_and_motion():
    data = batch(3)
    assert isinstance(data, Batch)
    assert data.fps.tolist() == [7.0] * 3
    assert bool((data.motion >= 0).all())
