"""SVD training: stages, scalars of clips, conditioning dropout, frozen parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kinema.data.motion import bucket
from kinema.families.svd import recipe
from kinema.families.svd.config import PRESETS, TINY
from kinema.families.svd.family import FAMILY
from kinema.families.svd.model import SVD
from kinema.families.svd.pocket.presets import POCKET
from kinema.families.svd.training import TRAINING
from kinema.schema import BadRequest
from kinema.system import Batch


def batch_of(config=TINY, count=2, **options):
    g = torch.Generator().manual_seed(4)
    video = torch.rand(count, 3, config.frames, config.height, config.width, generator=g) * 2 - 1
    return Batch(video, ["" for _ in range(count)], torch.ones_like(video[:, :1]), **options)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SVD(TINY)


@pytest.fixture
def calls(monkeypatch):
    """Records the U-Net's inputs as a list of (z, level, condition, image_only)."""
    calls, real = [], recipe.run_unet
    monkeypatch.setattr(recipe, "run_unet", lambda unet, *args: (calls.append(args), real(unet, *args))[1])
    return calls


def loss_of(model, config=TINY, batch=None, seed=1):
    return recipe.loss(model, config, batch or batch_of(config), torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize(
    ("name", "p_mean", "p_std"),
    [("image", -1.2, 1), ("video", -1.2, 1), ("video-large", 0, 1), ("text", 0.5, 1.4), ("base", 0.7, 1.6),
     ("finetune", 1.0, 1.6)],
)  # fmt: skip
def test_each_stage_draws_its_own_noise_levels(model, calls, name, p_mean, p_std):
    config = recipe.staged(TINY, name)
    small = replace(batch_of(count=1), video=torch.zeros(1, 3, 1, 16, 16))
    many = replace(small, video=small.video.expand(256, -1, -1, -1, -1), captions=[""] * 256)
    with torch.no_grad():
        loss_of(model, replace(config, frames=1), many)
    ln_sigma = -calls[0][1].log_snr / 2
    assert float(ln_sigma.mean()) == pytest.approx(p_mean, abs=0.02)
    assert float(ln_sigma.std()) == pytest.approx(p_std, rel=0.03)


def test_a_training_stage_sets_the_clip_size_of_full_networks_only():
    assert (recipe.staged(PRESETS["svd"], "base").height, recipe.staged(PRESETS["svd"], "base").width) == (320, 576)
    xt = recipe.staged(PRESETS["svd-xt"], "finetune")
    assert (xt.frames, xt.height, xt.width) == (25, 576, 1024)
    assert recipe.staged(PRESETS["svd"], "image").frames == 1
    assert recipe.staged(TINY, "base").height == TINY.height
    assert FAMILY.training.settings(recipe.staged(PRESETS["svd"], "video")).batch == 1536
    with pytest.raises(BadRequest, match="no training stage 'bse'.*expected one of image, video"):
        recipe.staged(TINY, "bse")
    with pytest.raises(BadRequest, match="expected one of codec, playroom"):
        recipe.staged(POCKET, "base")


@pytest.mark.parametrize("name", ["image", "video", "text"])
def test_pretraining_has_the_embedding_but_no_image_latents(model, calls, name):
    loss_of(model, recipe.staged(TINY, name), seed=2)
    _, _, condition, image_only = calls[0]
    assert not condition.image_BCTHW.any()
    assert condition.context_B1C.any()
    assert (image_only is not None) == (name == "image")


def test_the_image_stage_trains_single_frames_and_no_temporal_layers(model, calls):
    loss_of(model, recipe.staged(TINY, "image")).mean().backward()
    assert calls[0][0].shape[2] == 1
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    model.zero_grad()
    assert any("spatial_res_block" in n for n in moved)
    assert not any("temporal_" in n for n in moved)


# ------------------------------------------------------------------------------------ conditions


def test_scalars_come_from_the_clips_or_else_from_the_config(model, calls):
    batch = batch_of(fps=torch.tensor([12.0, torch.nan]), motion=torch.tensor([torch.nan, 0.3]))
    loss_of(model, batch=batch)
    scalars = calls[0][2].scalars_BTV[:, 0]
    assert scalars[:, 0].tolist() == [11.0, TINY.fps - 1]
    assert scalars[:, 1].tolist() == pytest.approx([TINY.motion_bucket, bucket(0.3, TINY.motion_middle)])
    loss_of(model)
    assert calls[1][2].scalars_BTV[:, 0, :2].tolist() == [[TINY.fps - 1, TINY.motion_bucket]] * 2


def test_image_noise_is_log_normal_conditioned_and_resampled(model, calls):
    many = batch_of(count=64)
    with torch.no_grad():
        loss_of(model, batch=many, seed=1)
        loss_of(model, batch=many, seed=2)
    amounts = [call[2].scalars_BTV[:, 0, 2] for call in calls]
    assert float(torch.cat(amounts).log().mean()) == pytest.approx(-3, abs=0.15)
    assert float(torch.cat(amounts).log().std()) == pytest.approx(0.5, abs=0.12)
    assert not torch.equal(*amounts)


def test_embedding_and_latents_are_dropped_together(model, calls):
    many = batch_of(count=400)
    config = replace(TINY, frames=1)
    with torch.no_grad():
        loss_of(model, config, replace(many, video=many.video[:, :, :1]))
    condition = calls[0][2]
    no_embedding = ~condition.context_B1C.flatten(1).any(1)
    no_latents = ~condition.image_BCTHW.flatten(1).any(1)
    assert torch.equal(no_embedding, no_latents)
    assert float(no_latents.float().mean()) == pytest.approx(0.15, abs=0.05)


def test_latents_are_sampled_from_their_posterior():
    g = torch.Generator().manual_seed(0)
    moments = torch.cat(
        [torch.full((1, 2, 4, 16, 16), 3.0), torch.full((1, 2, 4, 16, 16), 2 * torch.tensor(0.5).log())], 1
    )
    latents = recipe.sample_posterior(moments, Batch(moments, [""] * len(moments), moments), g)
    assert float(latents.mean()) == pytest.approx(3, abs=0.05)
    assert float(latents.std()) == pytest.approx(0.5, abs=0.03)


def test_pre_encoded_clips_give_the_same_loss(model):
    whole = batch_of()
    encoded = TRAINING.encode(model, whole.video)
    rounded = {name: value.half().float() for name, value in encoded.items()}
    beforehand = replace(whole, video=whole.video[:, :, :1], encoded=rounded)
    torch.testing.assert_close(loss_of(model, batch=beforehand), loss_of(model, batch=whole), atol=1e-3, rtol=1e-3)
    exact = replace(beforehand, encoded=encoded)
    torch.testing.assert_close(loss_of(model, batch=exact), loss_of(model, batch=whole), atol=1e-6, rtol=1e-6)


# ------------------------------------------------------------------------------------------ parts


def test_temporal_parts_have_the_published_parameter_count():
    import re

    with torch.device("meta"):
        full = SVD(PRESETS["svd"])
    named = {n: p.numel() for n, p in full.named_parameters() if re.search(TRAINING.parts["temporal"], n)}
    assert sum(named.values()) == 656_076_838
    adapted = [n for n, _ in full.named_modules() if re.fullmatch(TRAINING.adapted, n)]
    assert len(adapted) == 2 * 16 * 6


def test_only_the_unet_is_trained(model):
    loss_of(model).mean().backward()
    with_grad = {n for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert with_grad == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(n.startswith("unet.") for n in with_grad)


def test_training_orbits_is_rejected():
    config = replace(TINY, orbit=True)
    with pytest.raises(BadRequest, match="SV3D training needs renders"):
        recipe.loss(SVD(TINY), config, batch_of(), torch.Generator())
