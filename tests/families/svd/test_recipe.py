"""How SVD is trained: the stages' figures, what each clip tells of itself, what is dropped, what stands still."""

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


def batch_of(config=TINY, count=2, **told):
    g = torch.Generator().manual_seed(4)
    video = torch.rand(count, 3, config.frames, config.height, config.width, generator=g) * 2 - 1
    return Batch(video, ["" for _ in range(count)], torch.ones_like(video[:, :1]), **told)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SVD(TINY)


@pytest.fixture
def heard(monkeypatch):
    """What the U-Net is given: a list of (z, level, condition, image_only)."""
    calls, real = [], recipe.run_unet
    monkeypatch.setattr(recipe, "run_unet", lambda unet, *told: (calls.append(told), real(unet, *told))[1])
    return calls


def lose(model, config=TINY, batch=None, seed=1):
    return recipe.loss(model, config, batch or batch_of(config), torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize(
    ("name", "p_mean", "p_std"),
    [("image", -1.2, 1), ("video", -1.2, 1), ("video-large", 0, 1), ("text", 0.5, 1.4), ("base", 0.7, 1.6),
     ("finetune", 1.0, 1.6)],
)  # fmt: skip
def test_each_stage_draws_its_own_noise_levels(model, heard, name, p_mean, p_std):
    config = recipe.staged(TINY, name)
    small = replace(batch_of(count=1), video=torch.zeros(1, 3, 1, 16, 16))
    many = replace(small, video=small.video.expand(256, -1, -1, -1, -1), captions=[""] * 256)
    with torch.no_grad():
        lose(model, replace(config, frames=1), many)
    ln_sigma = -heard[0][1].log_snr / 2
    assert float(ln_sigma.mean()) == pytest.approx(p_mean, abs=0.02)
    assert float(ln_sigma.std()) == pytest.approx(p_std, rel=0.03)


def test_a_stage_sets_the_size_of_full_networks_and_leaves_small_ones_theirs():
    assert (recipe.staged(PRESETS["svd"], "base").height, recipe.staged(PRESETS["svd"], "base").width) == (320, 576)
    xt = recipe.staged(PRESETS["svd-xt"], "finetune")
    assert (xt.frames, xt.height, xt.width) == (25, 576, 1024)
    assert recipe.staged(PRESETS["svd"], "image").frames == 1
    assert recipe.staged(TINY, "base").height == TINY.height
    assert FAMILY.training.recipe(recipe.staged(PRESETS["svd"], "video")).batch == 1536
    with pytest.raises(BadRequest, match="no training stage 'bse'.*expected one of image, video"):
        recipe.staged(TINY, "bse")
    with pytest.raises(BadRequest, match="expected one of codec, playroom"):
        recipe.staged(POCKET, "base")


@pytest.mark.parametrize("name", ["image", "video", "text"])
def test_pretraining_has_the_embedding_but_no_frame(model, heard, name):
    lose(model, recipe.staged(TINY, name), seed=2)
    _, _, condition, alone = heard[0]
    assert not condition.picture_BCTHW.any()
    assert condition.context_B1C.any()
    assert (alone is not None) == (name == "image")


def test_the_image_stage_trains_single_frames_and_nothing_over_time(model, heard):
    lose(model, recipe.staged(TINY, "image")).mean().backward()
    assert heard[0][0].shape[2] == 1
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    model.zero_grad()
    assert any("spatial_res_block" in n for n in moved)
    assert not any("temporal_" in n for n in moved)


# ------------------------------------------------------------------------------------ conditions


def test_each_clip_tells_its_own_rate_and_motion_and_unknown_ones_the_models(model, heard):
    told = batch_of(fps=torch.tensor([12.0, torch.nan]), motion=torch.tensor([torch.nan, 0.3]))
    lose(model, batch=told)
    numbers = heard[0][2].scalars_BTV[:, 0]
    assert numbers[:, 0].tolist() == [11.0, TINY.fps - 1]
    assert numbers[:, 1].tolist() == pytest.approx([TINY.motion_bucket, bucket(0.3, TINY.motion_middle)])
    lose(model)
    assert heard[1][2].scalars_BTV[:, 0, :2].tolist() == [[TINY.fps - 1, TINY.motion_bucket]] * 2


def test_picture_noise_is_log_normal_told_to_the_network_and_new_at_every_step(model, heard):
    many = batch_of(count=64)
    with torch.no_grad():
        lose(model, batch=many, seed=1)
        lose(model, batch=many, seed=2)
    amounts = [call[2].scalars_BTV[:, 0, 2] for call in heard]
    assert float(torch.cat(amounts).log().mean()) == pytest.approx(-3, abs=0.15)
    assert float(torch.cat(amounts).log().std()) == pytest.approx(0.5, abs=0.12)
    assert not torch.equal(*amounts)


def test_embedding_and_latents_are_dropped_together_in_their_share_of_clips(model, heard):
    many = batch_of(count=400)
    config = replace(TINY, frames=1)
    with torch.no_grad():
        lose(model, config, replace(many, video=many.video[:, :, :1]))
    condition = heard[0][2]
    no_embedding = ~condition.context_B1C.flatten(1).any(1)
    no_latents = ~condition.picture_BCTHW.flatten(1).any(1)
    assert torch.equal(no_embedding, no_latents)
    assert float(no_latents.float().mean()) == pytest.approx(0.15, abs=0.05)


def test_latents_are_drawn_from_their_posterior():
    g = torch.Generator().manual_seed(0)
    moments = torch.cat(
        [torch.full((1, 2, 4, 16, 16), 3.0), torch.full((1, 2, 4, 16, 16), 2 * torch.tensor(0.5).log())], 1
    )
    drawn = recipe.draw(moments, Batch(moments, [""] * len(moments), moments), g)
    assert float(drawn.mean()) == pytest.approx(3, abs=0.05)
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.03)


def test_clips_encoded_beforehand_give_the_loss_of_their_pixels(model):
    whole = batch_of()
    made = TRAINING.encode(model, whole.video)
    kept = {name: value.half().float() for name, value in made.items()}
    beforehand = replace(whole, video=whole.video[:, :, :1], encoded=kept)
    torch.testing.assert_close(lose(model, batch=beforehand), lose(model, batch=whole), atol=1e-3, rtol=1e-3)
    exact = replace(beforehand, encoded=made)
    torch.testing.assert_close(lose(model, batch=exact), lose(model, batch=whole), atol=1e-6, rtol=1e-6)


# ------------------------------------------------------------------------------------------ parts


def test_the_layers_over_time_of_svd_are_as_many_as_published():
    import re

    with torch.device("meta"):
        full = SVD(PRESETS["svd"])
    named = {n: p.numel() for n, p in full.named_parameters() if re.search(TRAINING.parts["temporal"], n)}
    assert sum(named.values()) == 656_076_838
    adapted = [n for n, _ in full.named_modules() if re.fullmatch(TRAINING.adapted, n)]
    assert len(adapted) == 2 * 16 * 6


def test_only_the_u_net_learns(model):
    lose(model).mean().backward()
    with_grad = {n for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert with_grad == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(n.startswith("unet.") for n in with_grad)


def test_orbits_are_refused():
    config = replace(TINY, orbit=True)
    with pytest.raises(BadRequest, match="SV3D learns from renders"):
        recipe.loss(SVD(TINY), config, batch_of(), torch.Generator())
