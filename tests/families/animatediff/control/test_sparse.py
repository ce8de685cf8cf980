"""SparseCtrl: against diffusers, its files, and its native canvas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kinema.api import Model, load
from kinema.canvas import Canvas
from kinema.checkpoints import files
from kinema.families.animatediff import conditioning
from kinema.families.animatediff.config import PRESETS, TINY
from kinema.families.animatediff.control import sparse
from kinema.families.animatediff.control.sparse import SparseCtrl
from kinema.families.animatediff.family import FAMILY
from kinema.families.animatediff.model import AnimateDiff
from kinema.schema import BadRequest, Request
from kinema.system import System, Weights, open_system, with_model

COUNTS = {"rgb": (496_730_880, 486), "scribble": (497_802_784, 500)}


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["rgb", "scribble"])
def test_residuals_equal_diffusers(oracle, kind):
    """In float64: maps of frames without conditioning are nearly constant, and norms amplify rounding to 1e-4."""
    config = replace(oracle.middle, sparse=kind, norms="diffusers")
    network = oracle.randomised(SparseCtrl(config)).double()
    frames, side = 5, 8 if kind == "rgb" else 64
    mask = torch.zeros(2, 1, frames, side, side)
    mask[:, :, [0, 3]] = 1
    mask = mask.double()
    known = normal(2, 4 if kind == "rgb" else 3, frames, side, side) * mask
    step, context = torch.tensor([981.0, 20.0]), normal(2, 7, config.context).double()
    result = network(known, mask, step, context, 0.7)
    skips, middle = oracle.same_weights(oracle.sparse(config), network).double()(
        normal(2, 4, frames, 8, 8).double(),  # noisy latents, which are ignored
        step,
        context.repeat_interleave(frames, dim=0),
        known,
        conditioning_scale=0.7,
        conditioning_mask=mask,
        return_dict=False,
    )
    assert len(result.skips) == len(skips)
    for mine, their in zip([*result.skips, result.middle], [*skips, middle], strict=True):
        assert (mine - their).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["rgb", "scribble"])
def test_a_fresh_sparsectrl_adds_nothing(kind):
    network = SparseCtrl(replace(TINY, sparse=kind))
    side = 8 if kind == "rgb" else 64
    result = network(
        normal(1, 4 if kind == "rgb" else 3, 2, side, side),
        torch.ones(1, 1, 2, side, side),
        torch.ones(1),
        normal(1, 5, 32),
    )
    assert all(not skip.any() for skip in [*result.skips, result.middle])


@pytest.mark.parametrize("kind", ["rgb", "scribble"])
def test_published_files_are_recognised_and_convert_both_ways(kind):
    parameters, tensors = COUNTS[kind]
    config = replace(PRESETS["v3"], sparse=kind)
    with torch.device("meta"):
        network = SparseCtrl(config)
    assert sum(p.numel() for p in network.parameters()) == parameters
    native = {k: torch.zeros(()).expand(v.shape) for k, v in network.state_dict().items()}
    file = sparse.export("official", native)
    assert len(file) == tensors
    assert (
        "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q.weight"
        in file
    )
    module = sparse.recognise({k: (tuple(v.shape), v.dtype) for k, v in file.items()})
    assert module.kind == kind
    assert module.into(PRESETS["v3"]) == config
    back = sparse.convert(file)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in native.items()}


# -------------------------------------------------------------------------------------- in use

SIZE = replace(TINY, heads=(8, 8), motion_heads=8, words=("a", "cat"), text=(replace(TINY.text[0], vocabulary=6),))


@pytest.fixture(scope="module")
def saved(oracle, tmp_path_factory):
    """A tiny Kinema model, and SparseCtrl files of both kinds in the authors' layout."""
    import json

    from kinema.families.animatediff.config import to_json

    folder = tmp_path_factory.mktemp("sparse")
    model = folder / "tiny.safetensors"
    note = json.dumps({"family": "animatediff", "config": to_json(SIZE)})
    files.write_tensors(model, oracle.randomised(AnimateDiff(SIZE)).state_dict(), {"kinema": note})
    for kind in COUNTS:
        network = oracle.randomised(SparseCtrl(replace(SIZE, sparse=kind)))
        tensors = sparse.export("official", network.state_dict())
        state = {"controlnet": tensors, "animatediff_config": {"any": "thing"}, "epoch": 1}
        torch.save(state, folder / f"{kind}.ckpt")
    return folder


@pytest.mark.parametrize("verb", ["animate", "ends"])
def test_conditioning_frames_are_native_and_affect_the_others(saved, tmp_path, verb, image_file):
    model = load(saved / "tiny.safetensors", add={"sparsectrl": saved / "rgb.ckpt"})
    assert model.system.family.sampling.honours(model.system.config, "first")[0] == "native"
    assert "native" not in model.system.family.sampling.honours(model.system.config, "region")
    fields = {"image": image_file(tmp_path / "a.png", 30), "seed": 1, "steps": 2, "frames": 4}
    other = fields | {"image": image_file(tmp_path / "b.png", 220)}
    if verb == "ends":
        fields |= {"last_image": image_file(tmp_path / "c.png", 100)}
        other |= {"last_image": fields["last_image"]}
    clip, changed = (model.run(Request(task="animate", prompt="a cat", **t)).video for t in (fields, other))
    assert not torch.allclose(clip[:, :, 1:3], changed[:, :, 1:3], atol=1e-5)
    off = model.run(Request(task="animate", prompt="a cat", extra={"control_scale": 0}, **fields)).video
    uncontrolled = model.run(Request(prompt="a cat", **{k: v for k, v in fields.items() if "image" not in k})).video
    assert torch.allclose(off[:, :, 1:3], uncontrolled[:, :, 1:3], atol=1e-5)


def test_scribbles_control_a_clip_from_their_frames(saved, tmp_path, image_file):
    scribble = saved / "scribble.ckpt"
    with pytest.raises(BadRequest, match="latents are 1/2 of the frame size; SparseCtrl for scribbles needs 1/8"):
        load(saved / "tiny.safetensors", add={"sparsectrl": scribble})
    eighth = replace(SIZE, vae_channels=(32, 32, 32, 32), height=64, width=64, sparse="scribble")
    torch.manual_seed(0)
    network = AnimateDiff(eighth)
    network.load_state_dict({f"sparse.{k}": v for k, v in sparse.convert(files.read_tensors(scribble)).items()}, False)
    model = Model(with_model(System("tiny", FAMILY, eighth, Weights()), network.eval()))
    scribble_file, fields = image_file(tmp_path / "d.png", 10), {"frames": 4, "steps": 1, "seed": 1}
    plain = model.generate("a cat", **fields).video
    controlled = model.generate("a cat", extra={"scribble": scribble_file}, **fields).video
    assert not torch.allclose(controlled, plain, atol=1e-5)
    assert torch.equal(model.generate("a cat", extra={"scribble": {0: scribble_file}}, **fields).video, controlled)
    assert not torch.equal(model.generate("a cat", extra={"scribble": {2: scribble_file}}, **fields).video, controlled)
    with pytest.raises(BadRequest, match="scribble names frame 4; this clip has frames 0 to 3"):
        model.generate("a cat", extra={"scribble": {4: scribble_file}}, **fields)
    with pytest.raises(BadRequest, match="scribble image none.png does not exist"):
        model.generate("a cat", extra={"scribble": "none.png"}, **fields)


def test_wrong_files_and_orders_raise(saved):
    tiny = saved / "tiny.safetensors"
    with pytest.raises(BadRequest, match="is a Kinema weight file of the family animatediff; expected SparseCtrl"):
        open_system(tiny, add={"sparsectrl": tiny})
    with pytest.raises(
        BadRequest, match=r"is SparseCtrl for frames \(--add sparsectrl=FILE\); expected a motion module"
    ):
        open_system("animatediff/image", add={"motion": saved / "rgb.ckpt"})
    with pytest.raises(BadRequest, match="is for an image model of 32/64 channels"):
        open_system("animatediff/v3", add={"sparsectrl": saved / "rgb.ckpt"})
    with pytest.raises(BadRequest, match="this model has none; give --add sparsectrl=FILE"):
        load(tiny).generate("a cat", extra={"scribble": "x.png"})
    image = replace(open_system(tiny).config, motion="none")
    file = sparse.recognise(files.header(saved / "rgb.ckpt"))
    with pytest.raises(BadRequest, match="add motion=FILE first"):
        file.into(image)


def test_partly_known_frames_are_not_conditioning_frames():
    """SparseCtrl was trained on whole frames, so a partly known frame is neither an input nor in the mask."""
    mask = torch.zeros(2, 1, 5, 8, 8)
    mask[0, :, 0] = 1
    mask[0, :, 1] = 1
    mask[0, :, 1, 3, 5] = 0  # all but a pixel
    mask[0, :, 2, :, :4] = 1
    mask[1, :, 3] = 1
    mask[1, :, 0, 0, 0] = 1
    z = normal(2, 4, 5, 4, 4)
    sparse_input = conditioning.frame_input(
        Request(frames=5, height=8, width=8), Canvas.of(torch.zeros(2, 3, 5, 8, 8), mask), z
    )
    whole = torch.zeros(2, 5)
    whole[0, 0] = whole[1, 3] = 1
    expected = whole[:, None, :, None, None]
    assert torch.equal(sparse_input.mask_B1THW, expected.expand(2, 1, 5, 4, 4))
    assert torch.equal(sparse_input.frames_BCTHW, z * expected)
