"""The pocket, and the losses of every stage: small networks, one batch."""

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
from kinema.families.animatediff.pocket.losses import unread
from kinema.families.animatediff.pocket.parts import Patches, reader_of
from kinema.families.animatediff.pocket.presets import POCKET, POCKET_MOTION
from kinema.families.animatediff.training import TRAINING
from kinema.schema import BadRequest, Shape
from kinema.training.stream import Stream

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
    """A network in a stage, all of whose layers say something: what is trained after another stage begins so."""
    torch.manual_seed(0)
    config = TRAINING.staged(TRAINING.staged(SMALL, "motion") if stage == "sparsectrl" else SMALL, stage)
    model = AnimateDiff(config)
    if stage != "image":
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.03)
    return model, config


def batch(config, count=4, **more):
    told = FAMILY.sampling.defaults(config)
    source = Rendered(told.frames, told.height, told.width, told.fps, Playroom("scenic", **more))
    return Stream(source, FAMILY.training.recipe(config), count).at(0)


def test_three_image_models_and_what_moves_them_fit_in_ten_megabytes_of_half_precision():
    def numbers(config, inside=""):
        with torch.device("meta"):
            made = AnimateDiff(config)
        return made, sum(p.numel() for n, p in made.state_dict().items() if inside in n)

    base = numbers(POCKET)[1]
    motion = numbers(POCKET_MOTION, ".motion_modules.")[1]
    model, _ = numbers(TRAINING.staged(POCKET, "style"))
    style = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (base, style) == (2_693_388, 475_184)
    assert 2 * (base + motion + 2 * style) < 9_600_000  # and three MotionLoRAs of 0.13
    assert from_json(to_json(SMALL)) == SMALL


@pytest.mark.parametrize("stage", ["image", "style", "motion", "sparsectrl"])
def test_loss_falls_when_one_batch_is_repeated_and_what_is_trained_moves(stage):
    model, config = small(stage)
    told = batch(config)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    learnt = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(learnt.values(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = recipe.loss(model, config, told, torch.Generator().manual_seed(1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    # SparseCtrl sees zeros in place of latents, so of its first convolution the bias alone counts.
    assert moved == learnt.keys() - {"sparse.conv_in.weight"}


def test_the_words_of_a_motion_reach_the_features_a_motion_module_is_put_into():
    """Single pictures do not show motion; reading makes the image model know it all the same."""
    model, config = small("image")
    told = batch(config, 8)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)

    def misread():
        with reader_of(model).watching(model.unet) as seen:
            context, _ = recipe._captions(model, config, told)
            model.unet(torch.zeros(8, 48, 1, 8, 8), torch.full((8,), 999.0), context, motion=False)
        return unread(reader_of(model), told, seen)

    first = float(misread().mean().detach())
    for _ in range(60):
        optimiser.zero_grad()
        loss = misread().mean()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.5 * first
    assert misread().shape == (8,)


def test_what_is_read_stays_on_the_device_of_the_network():
    """Meta stands in for a GPU: there too, adding a tensor of the processor's is an error."""
    model, config = small("image")
    told = batch(config, 2)
    seen = [torch.randn(2, 32, 4, 4, device="meta")] * 2
    reader = reader_of(model.to("meta"))
    assert unread(reader, told, seen).device.type == "meta"
    assert unread(reader, replace(told, scenes=[None, None]), seen).device.type == "meta"


def test_reading_counts_nothing_for_clips_without_a_scene_graph():
    read = torch.randn(2, 8 * 8, sum(reading.READ))
    scene = Rendered(1, 32, 32, 8.0, Playroom("simple")).clip(0).scene
    one, none = reading.reading_loss(read, [scene, None], (1, 8, 8))
    assert float(one) > 0
    assert float(none) == 0
    assert not reading.about([None], torch.zeros(1, 3, 1, 8, 8)).any()
    assert 0 < float(reading.about([scene], torch.zeros(1, 3, 1, 32, 32)).mean()) < 0.8


def test_every_place_is_asked_how_far_off_the_object_is():
    """Also where that lies between two cells, is further than any class, or is not seen."""
    grid, most = (2, 4, 4), reading.FAR
    scene = Rendered(2, 32, 32, 8.0, Playroom("simple")).clip(0).scene

    def at(x, y):
        seen = np.array([1.0, 0.0], np.float32)
        place = np.array([[x, y]] * 2, np.float32)
        track = replace(scene.objects[0], position_T2=place, visible_T=seen, opacity_T=np.ones(2, np.float32))
        return replace(scene, objects=(track,))

    def told(columns, rows):
        """Classes and their shares, of each of the four cells along an axis."""
        read = torch.full((1, 32, sum(reading.AWAY)), -50.0)
        for place in range(32):
            for axis, shares in ((0, columns[place % 4]), (1, rows[place // 4 % 4])):
                for i, share in shares.items():
                    read[:, place, axis * reading.AWAY[0] + i] = float(np.log(share))
        return read

    even, none = reading.location_loss(torch.zeros(2, 32, sum(reading.AWAY)), [at(0.5, 0.5), None], grid)
    assert float(even) == pytest.approx(0.5 * 2 * np.log(reading.AWAY[0]), rel=1e-6)  # one of two frames is seen
    assert float(none) == 0
    quarter = [{most + 1 - cell: 0.75, most + 2 - cell: 0.25} for cell in range(4)]
    half = [{most + 1 - cell: 0.5, most + 2 - cell: 0.5} for cell in range(4)]
    doubt = np.log(2) - 0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    wrong = reading.location_loss(told(quarter, half), [at(0.4375, 0.5)], grid)
    assert float(wrong) == pytest.approx(0.5 * doubt, rel=1e-5)
    last = [{2 * most: 1.0}] * 4
    assert float(reading.location_loss(told(last, half), [at(3.0, 0.5)], grid)) == pytest.approx(
        0.5 * np.log(2), rel=1e-5
    )
    first = [{0: 1.0}] * 4
    assert float(reading.location_loss(told(first, half), [at(-3.0, 0.5)], grid)) == pytest.approx(
        0.5 * np.log(2), rel=1e-5
    )


def test_latents_are_the_pixels_themselves():
    images = torch.randn(2, 3, 32, 32)
    latents = Patches(4).encode(images)
    assert latents.shape == (2, 48, 8, 8)
    assert torch.equal(Patches(4).decode(latents), images)


def test_norms_have_few_groups_and_a_fresh_network_predicts_grey():
    model, config = small("image")
    assert {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)} == {8}
    output = model.unet(torch.randn(1, 48, 1, 8, 8), torch.tensor([3.0]), torch.randn(1, 24, 32), motion=False)
    assert not output.any()
    end = FAMILY.sampling.process(config, Shape(1, 3, 8, 64, 64)).schedule.level(torch.ones(1))
    assert recipe.predicted(config).x0(output, output, end).sum() == 0


def test_a_pocket_cannot_be_encoded_beforehand():
    with pytest.raises(BadRequest, match="works on pixels"):
        TRAINING.frozen(small("image")[0])


def test_a_pocket_has_no_other_layout(tmp_path):
    note = json.dumps({"family": "animatediff", "config": to_json(POCKET)})
    files.write_tensors(tmp_path / "a.safetensors", {"unet.conv_out.bias": torch.zeros(48)}, {"kinema": note})
    with pytest.raises(BadRequest, match=r"a\.safetensors works on pixels"):
        convert(tmp_path / "a.safetensors", tmp_path / "out", "diffusers")
