"""Training objective of the family: single frames, pre-encoded clips, SparseCtrl's conditioning frames."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kinema.checkpoints.lora_formats import Adapter
from kinema.data.playroom import Playroom
from kinema.data.playroom.rendered import Rendered
from kinema.families.animatediff import recipe
from kinema.families.animatediff.family import FAMILY
from kinema.families.animatediff.files import lora
from kinema.families.animatediff.model import AnimateDiff
from kinema.families.animatediff.training import TRAINING
from kinema.system import Batch
from kinema.training.stream import Stream


def batch(config, count):
    defaults = FAMILY.sampling.defaults(config)
    source = Rendered(defaults.frames, defaults.height, defaults.width, defaults.fps, Playroom("scenic"))
    return Stream(source, FAMILY.training.settings(config), count).at(0)


def test_the_image_stage_trains_on_single_frames_without_motion_modules():
    config = TRAINING.staged(FAMILY.presets["tiny"], "image")
    torch.manual_seed(0)
    model = AnimateDiff(config)
    clips = batch(config, 3)
    one = recipe.single_frames(clips, torch.Generator().manual_seed(0))
    assert one.video.shape == (3, 3, 1, 16, 16)
    assert all(any(torch.equal(one.video[b, :, 0], clips.video[b, :, t]) for t in range(8)) for b in range(3))
    losses = recipe.loss(model, config, clips, torch.Generator().manual_seed(0))
    for module in model.motion_modules:  # would change the loss if they ran
        nn.init.normal_(module.proj_out.weight)
    torch.testing.assert_close(recipe.loss(model, config, clips, torch.Generator().manual_seed(0)), losses)


def test_pre_encoded_clips_give_the_same_loss():
    config = replace(FAMILY.presets["tiny"], stage="motion")
    torch.manual_seed(0)
    model, clips = AnimateDiff(config), batch(config, 2)
    encoded = replace(clips, encoded=TRAINING.encode(model, clips.video), video=clips.video[:, :, :1])
    losses = [recipe.loss(model, config, b, torch.Generator().manual_seed(0)) for b in (clips, encoded)]
    torch.testing.assert_close(*losses)
    names = TRAINING.frozen(model)
    assert "vae.encoder.conv_in.weight" in names
    assert not any("decoder" in n for n in names)


def test_sparsectrl_trains_with_few_or_no_conditioning_frames():
    generator = torch.Generator().manual_seed(0)
    kept = torch.stack([recipe.keyframes(8, generator) for _ in range(600)])
    counts = kept.sum(1)
    assert 0.06 < float((counts == 0).float().mean()) < 0.14
    assert counts.max() <= 4
    first = (counts == 1) & (kept[:, 0] == 1)
    ends = (counts == 2) & (kept[:, 0] == 1) & (kept[:, 7] == 1)
    assert min(float(first.float().mean()), float(ends.float().mean())) > 0.25
    assert (kept.sum(0) > 0).all()


@pytest.mark.parametrize(("sparse", "channels", "side"), [("rgb", 4, 8), ("scribble", 3, 16)])
def test_sparse_input_is_zero_outside_the_mask(sparse, channels, side):
    config = replace(FAMILY.presets["tiny"], sparse=sparse, stage="sparsectrl")
    video, latents = batch(config, 2).video, torch.randn(2, 4, 8, 8, 8)
    clips, generator = Batch(video, [""] * len(video), video), torch.Generator().manual_seed(3)
    frames, mask = recipe.sparse_input(config, clips, latents, generator)
    assert frames.shape == (2, channels, 8, side, side)
    assert mask.shape == (2, 1, 8, side, side)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert not frames[(mask == 0).expand_as(frames)].any()
    if sparse == "scribble":
        assert 0 <= float(frames.min()) <= float(frames.max()) <= 1
    else:
        assert torch.equal(frames, latents * mask)


def test_up_includes_the_scale_in_the_authors_lora_layout():
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    name = "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn2.to_out.0"
    tensors = lora.official({name: Adapter(down, up, alpha=1.0)})
    stem = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.processor."
    assert torch.equal(tensors[f"{stem}to_out_lora.down.weight"], down)
    assert torch.equal(tensors[f"{stem}to_out_lora.up.weight"], up / 2)
    spatial = lora.official({"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": Adapter(down, up)})
    assert set(spatial) == {
        f"mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{x}.weight" for x in ("down", "up")
    }
