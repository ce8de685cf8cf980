"""Training the parts of AnimateDiff: trained and frozen tensors, and exported files."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from kinema.api import load
from kinema.checkpoints import files, hub
from kinema.checkpoints.convert import convert
from kinema.data import shards, styles
from kinema.families.animatediff import recipe
from kinema.families.animatediff.family import FAMILY
from kinema.families.animatediff.model import AnimateDiff
from kinema.families.animatediff.training import TRAINING
from kinema.schema import BadRequest
from kinema.system import Batch, open_system
from kinema.training import checkpoint, setup, sources
from kinema.training.options import TrainOptions
from kinema.training.run import step

MOVING = replace(FAMILY.presets["tiny"], channels=(64, 64), heads=(8, 8), motion_heads=8)
STILL = replace(MOVING, motion="none", frames=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Weight files of an image model, and of the same model with a motion module."""
    folder, paths = tmp_path_factory.mktemp("models"), {}
    for name, config in (("image", STILL), ("moving", MOVING)):
        torch.manual_seed(0)
        model = AnimateDiff(config)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.05)
        description = json.dumps({"family": "animatediff", "config": FAMILY.to_json(config)})
        paths[name] = checkpoint.export(folder / f"{name}.safetensors", model.state_dict(), {}, description)
    return paths


@pytest.fixture
def options_for(small):
    """Options of a run of four steps, with a learning rate whose updates are visible in fp16."""
    return lambda out="run", **more: small(
        out, **{"steps": 4, "validate_every": 0, "learning_rate": 1e-2, "threads": 1, **more}
    )


def moved(result, model):
    """Names of the tensors that training changed."""
    before, after = files.read_tensors(model), files.read_tensors(result.weights)
    return {k for k, v in after.items() if k not in before or not torch.equal(v, before[k])}


def raw(result):
    """Names of the parameters in a run's last checkpoint, without buffers."""
    header = files.header(sorted(result.folder.glob("step-*.safetensors"))[-1])
    return {k.removeprefix("raw.") for k in header if k.startswith("raw.") and not k.endswith(".pe")}


# ------------------------------------------------------------------------------ trained parameters


def test_each_training_stage_trains_only_its_part():
    def of(config, stage):
        with torch.device("meta"):
            model = AnimateDiff(TRAINING.staged(config, stage))
        return model, {n for n, p in model.named_parameters() if p.requires_grad}

    for stage in ("image", "style"):
        model, trained = of(MOVING, stage)
        names = {f"unet.{n}" for n, _ in model.unet.named_parameters()}
        assert trained == {n for n in names if ".motion_modules." not in n}
    model, trained = of(STILL, "motion")
    assert trained == {f"unet.{n}" for n, _ in model.unet.named_parameters() if ".motion_modules." in n}
    model, trained = of(MOVING, "sparsectrl")
    assert trained == {f"sparse.{n}" for n, _ in model.sparse.named_parameters()}
    pocket = FAMILY.presets["pocket"]
    parts = {s: {n.split(".")[0] for n in of(pocket, s)[1]} for s in ("image", "style", "motion", "sparsectrl")[:3]}
    assert parts == {"image": {"unet", "text_encoder", "reader"}, "style": {"unet"}, "motion": {"unet"}}
    finest = ("unet.conv_", "unet.down_blocks.0.", "unet.up_blocks.1.")
    assert all(n.startswith(finest) for n in of(pocket, "style")[1])


def test_training_a_motion_module_keeps_the_image_model(runs, options_for, models, tmp_path):
    result, _ = runs[0](options_for(model=str(models["image"]), stage="motion"))
    assert raw(result)
    assert all(".motion_modules." in k for k in raw(result) | moved(result, models["image"]))
    # Its file has the authors' layout: it adds motion to the image model, and converts to diffusers.
    file = result.folder / "motion.safetensors"
    assert all(".temporal_transformer." in k for k in files.header(file))
    whole, put = open_system(result.weights), open_system(models["image"], add={"motion": file})
    trained, loaded = whole.model.state_dict(), put.model.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in trained.items())
    assert loaded.keys() == trained.keys()
    diffusers = pytest.importorskip("diffusers")
    convert(file, tmp_path / "folder", "diffusers")
    adapter = diffusers.MotionAdapter.from_pretrained(tmp_path / "folder").state_dict()
    assert all(torch.equal(w, trained[f"unet.{k}"]) for k, w in adapter.items())


def test_frozen_weights_are_bit_exact_after_steps_in_fp32(options_for, models, tmp_path, heard):
    options = TrainOptions(**options_for(model=str(models["moving"]), stage="motion"))
    (tmp_path / "run").mkdir()
    run = setup.begin(options, tmp_path / "run", heard)
    run.log.close()
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    batches = iter([run.stream.at(0), run.stream.at(1)])
    for _ in range(2):
        step(run, batches, heard)
    same = {n for n, p in run.model.named_parameters() if torch.equal(p, before[n])}
    assert same == {n for n, p in run.model.named_parameters() if not p.requires_grad}
    assert all(".motion_modules." in n for n in before.keys() - same)


def test_a_fresh_motion_module_is_the_identity_and_depends_on_the_seed(models):
    config = TRAINING.staged(STILL, "motion")
    still = open_system(models["image"]).model
    first, again, other = (TRAINING.grown(still, config, seed) for seed in (1, 1, 2))
    state = first.state_dict()
    assert all(torch.equal(state[k], v) for k, v in still.state_dict().items())
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    assert any(not torch.equal(v, state[k]) for k, v in other.state_dict().items())
    z, t = torch.randn(1, 4, 3, 8, 8), torch.tensor([500.0])
    context = torch.randn(1, 20, config.context)
    with torch.no_grad():
        torch.testing.assert_close(
            first.unet(z, t, context), still.unet(z, t, context, motion=False), atol=1e-5, rtol=1e-5
        )


# ------------------------------------------------------------------------------------------- LoRAs


@pytest.mark.parametrize(("stage", "inside"), [("motion", ".motion_modules."), ("image", ".attentions.")])
def test_a_lora_adapts_the_attention_of_its_stage_and_exports_to_the_authors_layout(
    runs, options_for, models, stage, inside
):
    result, _ = runs[0](options_for(model=str(models["moving"]), stage=stage, lora="4:2"))
    names = raw(result)
    assert names
    assert all(inside in n and ".attn" in n and n.endswith((".lora_down", ".lora_up")) for n in names)
    file = result.folder / {"motion": "motion-lora.safetensors", "image": "adapter.safetensors"}[stage]
    keys = files.header(file)
    assert len(keys) == len(names)
    assert all(".processor.to_" in k and k.endswith((".down.weight", ".up.weight")) for k in keys)
    assert all((".temporal_transformer." in k) == (stage == "motion") for k in keys)
    # Authors' files have no alpha; both layouts change the same weights by the same amount.
    plain = {k: v.clone() for k, v in open_system(models["moving"]).model.state_dict().items()}
    systems = [open_system(models["moving"], loras={f: 1.0}) for f in (file, result.folder / "lora.safetensors")]
    authors, diffusers = (s.model.state_dict() for s in systems)
    changed = {k for k in plain if not torch.equal(authors[k], plain[k])}
    assert changed == {f"{n.rpartition('.')[0]}.weight" for n in names}
    for k in changed:
        torch.testing.assert_close(authors[k], diffusers[k], atol=2e-4, rtol=1e-3)
    # Removed and loaded again.
    systems[0].use_loras({})
    assert all(torch.equal(v, plain[k]) for k, v in systems[0].model.state_dict().items())
    systems[0].use_loras({file: 1.0})
    assert any(not torch.equal(v, plain[k]) for k, v in systems[0].model.state_dict().items())


def test_a_motion_lora_trains_on_an_image_model_with_a_motion_module_added(runs, options_for, models):
    moving, _ = runs[0](options_for("motion", model=str(models["image"]), stage="motion"))
    add = f"motion={moving.folder / 'motion.safetensors'}"
    more = {"model": str(models["image"]), "add": add, "stage": "motion", "lora": "2", "camera": "pans left"}
    result, _ = runs[0](options_for("lora", **more))
    assert all(".motion_modules." in n for n in raw(result))
    options = json.loads((result.folder / "options.json").read_text())
    assert options["recipe"]["playroom"]["camera"] == "pans left"
    with pytest.raises(BadRequest, match="has other frozen weights"):
        runs[0](options_for("lora", **{**more, "model": str(moving.weights), "add": None}))
    with pytest.raises(BadRequest, match="expected SLOT=FILE"):
        runs[0](options_for("x", **{**more, "add": "motion"}))


# ------------------------------------------------------------------------------------- vocabulary


def test_captions_use_the_vocabulary_next_to_the_weights(options_for, tmp_path, heard, monkeypatch):
    """As in generation, neither the hub nor its cache is needed."""

    def unreachable(*_, **__):
        raise BadRequest("the hub is unreachable")

    monkeypatch.setattr(hub, "fetch", unreachable)
    config = replace(STILL, words=(), text=(replace(STILL.text[0], vocabulary=64),))
    model, place = tmp_path / "image.safetensors", tmp_path / "tokenizer"
    description = json.dumps({"family": "animatediff", "config": FAMILY.to_json(config)})
    checkpoint.export(model, AnimateDiff(config).state_dict(), {}, description)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    place.mkdir()
    (place / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    options = TrainOptions(**options_for(model=str(model), stage="motion"))
    (tmp_path / "run").mkdir()
    run = setup.begin(options, tmp_path / "run", heard)
    run.log.close()
    assert math.isfinite(step(run, iter([run.stream.at(0)]), heard).loss)
    place.rename(tmp_path / "elsewhere")
    with pytest.raises(BadRequest, match="vocabulary .* is not in .*, next to the weights or in the hub's cache"):
        step(run, iter([run.stream.at(0)]), heard)


# -------------------------------------------------------------------------------------- SparseCtrl


def test_sparsectrl_starts_from_the_encoder_and_keeps_the_model(runs, options_for, models):
    config = TRAINING.staged(MOVING, "sparsectrl")
    grown = TRAINING.grown(open_system(models["moving"]).model, config, 0)
    sparse, unet = grown.sparse.state_dict(), grown.unet.state_dict()
    copied = {k for k, v in sparse.items() if k in unet and torch.equal(v, unet[k])}
    assert {k for k in sparse if ".motion_modules." not in k and not k.startswith("controlnet")} <= copied
    assert not grown.sparse.controlnet_mid_block.weight.any()
    result, _ = runs[0](options_for(model=str(models["moving"]), stage="sparsectrl"))
    assert all(k.startswith("sparse.") for k in raw(result) | moved(result, models["moving"]))
    file = result.folder / "sparsectrl.safetensors"
    put = open_system(models["moving"], add={"sparsectrl": file})
    assert put.config.sparse == "rgb"
    whole = open_system(result.weights).model.state_dict()
    assert all(torch.equal(v, whole[k]) for k, v in put.model.state_dict().items())


def test_what_sparsectrl_cannot_be_trained_on_is_said(runs, options_for, models):
    with pytest.raises(BadRequest, match="has none; give --add motion=FILE first"):
        runs[0](options_for(model=str(models["image"]), stage="sparsectrl"))
    with pytest.raises(BadRequest, match="animatediff has no training stage 'codec'"):
        runs[0](options_for(model=str(models["image"]), stage="codec"))
    with pytest.raises(BadRequest, match="latents are 1/2 of the frame size; SparseCtrl for scribbles needs 1/8"):
        runs[0](options_for(model=str(models["moving"]), stage="scribble"))


def test_scribbles_are_not_trained_on_precomputed_latents(tmp_path):
    """Latents keep the pixels of the first frame only, whose scribble would stand in for every frame's."""
    folder = tmp_path / "latents"
    folder.mkdir()
    config = replace(MOVING, sparse="scribble", stage="sparsectrl")
    with torch.device("meta"):
        model = AnimateDiff(config)
    frozen = TRAINING.frozen(model.requires_grad_(False))  # as in `kinema data latents`
    encoding = shards.EncodingSettings("animatediff", "?", config.frames, 16, 16, 8.0, 1, 8, "fp32")
    window = shards.Window("clip.mp4", "?", 0, ("a red ball",), 8.0, None)
    tensors = {"latents": torch.zeros(4, 8, 8, 8), "picture": torch.zeros(3, 16, 16, dtype=torch.uint8)}
    shards.write_shard(folder, 0, encoding, [(window, tensors)])
    shards.write_index(folder, encoding, [])
    assert "vae.encoder.conv_in.weight" in frozen
    system = replace(open_system("animatediff/tiny"), config=config)
    options, prepared = TrainOptions(data=str(folder)), sources.Prepared(system, FAMILY.training.settings(config))
    with pytest.raises(BadRequest, match="SparseCtrl for scribbles needs the pixels of every frame"):
        sources.open_source(options, prepared, setup.training_network(system, 0))


# ------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize(
    "more",
    [
        {"stage": "motion"},
        {"stage": "image", "model": "moving", "lora": "4"},
        {"stage": "sparsectrl", "model": "moving"},
        {"stage": "image", "model": "animatediff/pocket"},
    ],
)
def test_resuming_after_kill_9_gives_the_losses_and_file_of_the_uninterrupted_run(
    runs, options_for, models, tmp_path, more
):
    name = more.pop("model", "image")
    more = {"model": str(models.get(name, name)), **more}
    whole, heard = runs[0](options_for("whole", **more))
    expected = heard.losses
    code, before = runs[1](options_for("cut", **more), tmp_path / "losses", die_at=3)
    assert code == -9
    assert sorted(before) == [1, 2, 3]
    result, heard = runs[0](options_for("cut", **more))
    assert sorted(heard.losses) == [3, 4]
    assert {**before, **heard.losses} == expected
    assert result.weights.read_bytes() == whole.weights.read_bytes()
    more["model"] = name


# ----------------------------------------------------------------------------------- pocket files


def test_a_pocket_model_combines_a_style_and_a_motion_module_trained_separately(runs, options_for):
    base, _ = runs[0](options_for("base", model="animatediff/pocket", stage="image", steps=1))
    how = {"model": str(base.weights), "steps": 1}
    style, _ = runs[0](options_for("night", **how, stage="style", style="night"))
    motion, _ = runs[0](options_for("motion", **how, stage="motion"))
    files_of = {"style": style.folder / "style.safetensors", "motion": motion.folder / "motion.safetensors"}
    combined = open_system(base.weights, add=files_of).model.state_dict()
    styled, moving = (open_system(r.weights).model.state_dict() for r in (style, motion))
    for name, tensor in combined.items():
        assert torch.equal(tensor, moving[name] if ".motion_modules." in name else styled[name])
    model = load(base.weights, add=files_of)
    clip = model.generate("a red ball rolls right", seed=1, steps=2)
    assert clip.video.shape == (1, 3, 8, 64, 64)
    assert load(base.weights).generate("a red ball", seed=1, steps=2).video.shape == (1, 3, 1, 64, 64)
    with pytest.raises(BadRequest, match="expected a style of this model"):
        open_system(base.weights, add={"style": files_of["motion"]})


def test_scribbles_are_the_lines_of_pixels_in_0_to_1():
    """An edge of 0.2 in that range has a partly opaque line; in [-1, 1] its contrast would double."""
    config = FAMILY.presets["tiny"]
    video = torch.full((8, 3, 4, 8, 8), -0.2)
    video[..., 4:] = 0.2
    shown, mask = recipe.sparse_input(
        replace(config, sparse="scribble"), Batch(video, [""] * 8, video), video, torch.Generator().manual_seed(0)
    )
    opacity = (0.8 * 3**0.5 * 0.2 - styles.FAINT) / (styles.FULL - styles.FAINT)
    assert 0.1 < opacity < 0.9
    kept = mask.expand_as(shown) > 0
    edge = torch.zeros_like(shown)
    edge[..., 3:5] = opacity
    assert kept.any()
    assert torch.allclose(shown[kept], edge[kept], atol=1e-5)
    assert not shown[~kept].any()
