"""The pocket model and the loss of every training stage, with small networks and one batch."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kinema.checkpoints import files
from kinema.checkpoints.convert import convert
from kinema.data import reading
from kinema.data.playroom import Playroom
from kinema.data.playroom.rendered import Rendered
from kinema.families.animatediff import recipe
from kinema.families.animatediff.config import from_json, to_json
from kinema.families.animatediff.family import FAMILY
from kinema.families.animatediff.model import AnimateDiff
from kinema.families.animatediff.pocket.losses import reader_loss
from kinema.families.animatediff.pocket.parts import reader_of
from kinema.families.animatediff.pocket.presets import POCKET, POCKET_MOTION
from kinema.families.animatediff.training import TRAINING
from kinema.schema import BadRequest, Request
from kinema.training.stream import Stream
from kinema.vae.patches import Patches

SMALL = replace(
    POCKET,
    height=32,
    width=32,
    channels=(32, 32),
    context=32,
    heads=(2, 2),
    text=(replace(POCKET.text[0], width=32, heads=2, mlp=64),),
)


def small(stage):
    """A small network in a training stage, with no zero-initialised layers after the image stage."""
    torch.manual_seed(0)
    config = TRAINING.staged(TRAINING.staged(SMALL, "motion") if stage == "sparsectrl" else SMALL, stage)
    model = AnimateDiff(config)
    if stage != "image":
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.03)
    return model, config


def batch(config, count=4, **options):
    defaults = FAMILY.sampling.defaults(config)
    source = Rendered(defaults.frames, defaults.height, defaults.width, defaults.fps, Playroom("scenic", **options))
    return Stream(source, FAMILY.training.settings(config), count).at(0)


def test_three_image_models_and_a_motion_module_fit_in_ten_megabytes_of_half_precision():
    def count(config, inside=""):
        with torch.device("meta"):
            model = AnimateDiff(config)
        return model, sum(p.numel() for n, p in model.state_dict().items() if inside in n)

    base = count(POCKET)[1]
    motion = count(POCKET_MOTION, ".motion_modules.")[1]
    model, _ = count(TRAINING.staged(POCKET, "style"))
    style = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (base, style) == (2_693_388, 475_184)
    assert 2 * (base + motion + 2 * style) < 9_600_000  # and three MotionLoRAs of 0.13
    assert from_json(to_json(SMALL)) == SMALL


@pytest.mark.parametrize("stage", ["image", "style", "motion", "sparsectrl"])
def test_the_loss_of_a_repeated_batch_falls_and_trained_weights_change(stage):
    model, config = small(stage)
    clips = batch(config, 2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(trained.values(), lr=3e-3)
    losses = []
    for _ in range(10):
        loss = recipe.loss(model, config, clips, torch.Generator().manual_seed(1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    # The latent input of SparseCtrl is zero, so only the bias of its first convolution has a gradient.
    assert changed == trained.keys() - {"sparse.conv_in.weight"}


def test_reading_teaches_the_image_model_words_of_motion():
    """Single images show no motion; the reader's loss still puts it into the features."""
    model, config = small("image")
    clips = batch(config, 8)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)

    def read_loss():
        with reader_of(model).watching(model.unet) as features:
            context, _ = recipe._captions(model, config, clips)
            model.unet(torch.zeros(8, 48, 1, 8, 8), torch.full((8,), 999.0), context, motion=False)
        return reader_loss(reader_of(model), clips, features)

    first = float(read_loss().mean().detach())
    for _ in range(60):
        optimiser.zero_grad()
        loss = read_loss().mean()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.5 * first
    assert read_loss().shape == (8,)


def test_the_reader_loss_stays_on_the_device_of_the_network():
    """Meta stands in for a GPU; it also raises on mixing in CPU tensors."""
    model, config = small("image")
    clips = batch(config, 2)
    features = [torch.randn(2, 32, 4, 4, device="meta")] * 2
    reader = reader_of(model.to("meta"))
    assert reader_loss(reader, clips, features).device.type == "meta"
    assert reader_loss(reader, replace(clips, scenes=[None, None]), features).device.type == "meta"


def test_the_reading_loss_is_0_without_a_scene_graph():
    read = torch.randn(2, 8 * 8, sum(reading.READING_CLASSES))
    scene = Rendered(1, 32, 32, 8.0, Playroom("simple")).clip(0).scene
    one, none = reading.reading_loss(read, [scene, None], (1, 8, 8))
    assert float(one) > 0
    assert float(none) == 0
    assert not reading.object_mask([None], torch.zeros(1, 3, 1, 8, 8)).any()
    assert 0 < float(reading.object_mask([scene], torch.zeros(1, 3, 1, 32, 32)).mean()) < 0.8


def test_every_position_predicts_the_offset_of_the_object():
    """Also if the object is between two cells, beyond the last class, or invisible."""
    grid, farthest = (2, 4, 4), reading.FAR
    scene = Rendered(2, 32, 32, 8.0, Playroom("simple")).clip(0).scene

    def at(x, y):
        visible = np.array([1.0, 0.0], np.float32)
        place = np.array([[x, y]] * 2, np.float32)
        track = replace(scene.objects[0], position_T2=place, visible_T=visible, opacity_T=np.ones(2, np.float32))
        return replace(scene, objects=(track,))

    def logits(columns, rows):
        """Logits from class probabilities of the four cells along each axis."""
        read = torch.full((1, 32, sum(reading.OFFSET_CLASSES)), -50.0)
        for place in range(32):
            for axis, probabilities in ((0, columns[place % 4]), (1, rows[place // 4 % 4])):
                for i, probability in probabilities.items():
                    read[:, place, axis * reading.OFFSET_CLASSES[0] + i] = float(np.log(probability))
        return read

    even, none = reading.location_loss(torch.zeros(2, 32, sum(reading.OFFSET_CLASSES)), [at(0.5, 0.5), None], grid)
    assert float(even) == pytest.approx(
        0.5 * 2 * np.log(reading.OFFSET_CLASSES[0]), rel=1e-6
    )  # visible in one of two frames
    assert float(none) == 0
    quarter = [{farthest + 1 - cell: 0.75, farthest + 2 - cell: 0.25} for cell in range(4)]
    half = [{farthest + 1 - cell: 0.5, farthest + 2 - cell: 0.5} for cell in range(4)]
    entropy = np.log(2) - 0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    loss = reading.location_loss(logits(quarter, half), [at(0.4375, 0.5)], grid)
    assert float(loss) == pytest.approx(0.5 * entropy, rel=1e-5)
    last = [{2 * farthest: 1.0}] * 4
    assert float(reading.location_loss(logits(last, half), [at(3.0, 0.5)], grid)) == pytest.approx(
        0.5 * np.log(2), rel=1e-5
    )
    first = [{0: 1.0}] * 4
    assert float(reading.location_loss(logits(first, half), [at(-3.0, 0.5)], grid)) == pytest.approx(
        0.5 * np.log(2), rel=1e-5
    )


def test_latents_are_pixels():
    images = torch.randn(2, 3, 32, 32)
    latents = Patches(4).encode(images)
    assert latents.shape == (2, 48, 8, 8)
    assert torch.equal(Patches(4).decode(latents), images)


def test_norms_have_the_config_groups_and_a_fresh_network_predicts_grey():
    model, config = small("image")
    assert {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)} == {8}
    output = model.unet(torch.randn(1, 48, 1, 8, 8), torch.tensor([3.0]), torch.randn(1, 24, 32), motion=False)
    assert not output.any()
    end = FAMILY.sampling.process(config, Request(frames=8, height=64, width=64)).schedule.level(torch.ones(1))
    assert recipe.parameterisation_of(config).x0(output, output, end).sum() == 0


def test_a_pocket_model_cannot_be_pre_encoded():
    with pytest.raises(BadRequest, match="works on pixels"):
        TRAINING.frozen(small("image")[0])


def test_a_pocket_model_has_no_other_layout(tmp_path):
    note = json.dumps({"family": "animatediff", "config": to_json(POCKET)})
    files.write_tensors(tmp_path / "a.safetensors", {"unet.conv_out.bias": torch.zeros(48)}, {"kinema": note})
    with pytest.raises(BadRequest, match=r"a\.safetensors works on pixels"):
        convert(tmp_path / "a.safetensors", tmp_path / "out", "diffusers")
