"""Training a part of a network or a LoRA: trained tensors, checkpoints, and exported layouts."""

from __future__ import annotations

import json

import pytest
import torch

from kinema.checkpoints import files
from kinema.checkpoints.convert import convert
from kinema.checkpoints.lora_formats import Merged
from kinema.families.svd import lora as svd_lora
from kinema.schema import BadRequest
from kinema.system import open_system
from kinema.training import checkpoint, setup, trainable
from kinema.training.options import TrainOptions


@pytest.fixture
def svd(small):
    """Options of a run of SVD's tiny preset."""
    return lambda out="run", **more: small(out, **{"model": "svd/tiny", "steps": 4, "validate_every": 0, **more})


def last(folder):
    return sorted(folder.glob("step-*.safetensors"))[-1]


@pytest.fixture
def lora_run(runs, svd):
    result, heard = runs[0](svd("lora", lora="4:2", learning_rate=1e-2))
    return result, heard


# ------------------------------------------------------------------------------------------ parts


def test_only_temporal_layers_are_trained_and_stored(runs, svd):
    result, _ = runs[0](svd(only="temporal", steps=2))
    held = files.header(last(result.folder))
    trained = {k.removeprefix("raw.") for k in held if k.startswith("raw.")}
    assert trained
    assert all("temporal_" in k or "time_" in k for k in trained)
    assert trained == {k.removeprefix("ema.") for k in held if k.startswith("ema.")}
    momenta = {k.split(".")[2] for k in held if k.startswith("optim.")}
    assert len(momenta) == len(trained)
    # The exported file is complete and differs from the initial weights only in the trained tensors.
    torch.manual_seed(0)
    initial = open_system("svd/tiny").family.build(open_system("svd/tiny").config).state_dict()
    exported = files.read_tensors(result.weights)
    assert exported.keys() == initial.keys()
    moved = {k for k, v in exported.items() if not torch.equal(v.to(initial[k].dtype), initial[k])}
    assert moved
    assert moved <= trained


def test_checkpoints_exclude_the_frozen_codec(runs, svd):
    result, _ = runs[0](svd(steps=1))
    names = {k for k in files.header(last(result.folder)) if not k.startswith("optim.")}
    assert all(k == "rng" or ".unet." in k for k in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "spatial"}, "svd cannot train only 'spatial'; expected temporal"),
        ({"only": "temporal", "model": "zoetrope/tiny"}, "zoetrope cannot train only 'temporal'; leave out only"),
        ({"lora": "4", "model": "zoetrope/tiny"}, "zoetrope does not support LoRA training; leave out lora"),
        ({"lora": "0"}, "lora is '0'; expected a rank"),
        ({"lora": "4:0"}, "expected a rank from 1 to 1024, or rank:alpha"),
        ({"stage": "base", "model": "vdm/tiny"}, "vdm has no training stages"),
        ({"stage": "codec"}, "this svd model has no training stage 'codec'"),
        ({"height": 18}, "height is 18; expected a multiple of 4"),
        ({"height": 32, "model": "zoetrope/tiny"}, "zoetrope has a fixed size; leave out height"),
    ],
)
def test_unsupported_training_options_are_refused(runs, svd, options, message):
    with pytest.raises(BadRequest, match=message):
        runs[0]({**svd(), **options})


def test_the_exported_model_has_the_training_stage_and_size(runs, svd):
    result, _ = runs[0](svd(stage="base", frames=3, height=32, width=24, steps=1))
    opened = open_system(result.weights)
    assert (opened.config.stage, opened.config.frames, opened.config.height, opened.config.width) == ("base", 3, 32, 24)


# ------------------------------------------------------------------------------------------- LoRA


def test_a_lora_run_trains_and_stores_only_the_lora(lora_run):
    result, _ = lora_run
    held = files.header(last(result.folder))
    names = {k.split(".", 1)[1] for k in held if k.startswith(("raw.", "ema."))}
    assert names
    assert all(k.endswith((".lora_down", ".lora_up")) for k in names)
    assert len({k.split(".")[2] for k in held if k.startswith("optim.")}) == len(names)
    assert not any("attn2.to_q" in k or "attn2.to_k" in k for k in names)
    assert last(result.folder).stat().st_size < 0.2 * 4 * sum(
        p.numel() for p in open_system("svd/tiny").model.parameters()
    )


def test_both_layouts_hold_the_averaged_lora(lora_run):
    result, _ = lora_run
    modules = svd_lora.modules(svd_lora.SVD).values()
    diffusers = trainable.lora_formats.read_lora(result.folder / "lora.safetensors", modules)
    kohya = trainable.lora_formats.read_lora(result.folder / "lora-kohya.safetensors", modules)
    shadow = {k[4:]: v for k, v in files.read_tensors(last(result.folder)).items() if k.startswith("ema.")}
    assert diffusers.keys() == kohya.keys() == {k.rpartition(".")[0] for k in shadow}
    for name, adapter in diffusers.items():
        assert torch.equal(adapter.down, shadow[f"{name}.lora_down"])
        assert torch.equal(adapter.up, shadow[f"{name}.lora_up"])
        assert adapter.scale == kohya[name].scale == 0.5
        assert torch.equal(kohya[name].up, adapter.up)


def test_both_files_load_as_loras(lora_run):
    result, _ = lora_run
    models = [
        open_system("svd/tiny", loras={result.folder / f: 1.0}).model for f in ("lora.safetensors", trainable.KOHYA)
    ]
    plain, (diffusers, kohya) = open_system("svd/tiny").model.state_dict(), (m.state_dict() for m in models)
    changed = {k for k, v in diffusers.items() if not torch.equal(v, plain[k])}
    assert len(changed) == len([k for k in files.header(result.weights) if k.endswith("lora_A.weight")])
    assert all(torch.equal(diffusers[k], kohya[k]) for k in changed)


def test_a_lora_converts_to_the_other_layout_and_back(lora_run, tmp_path):
    result, _ = lora_run
    convert(result.folder / "lora.safetensors", tmp_path / "k.safetensors", "kohya")
    trained = files.read_tensors(result.folder / "lora-kohya.safetensors")
    converted = files.read_tensors(tmp_path / "k.safetensors")
    assert trained.keys() == converted.keys()
    assert all(torch.equal(trained[k].float(), converted[k].float()) for k in trained)
    convert(tmp_path / "k.safetensors", tmp_path / "d.safetensors", "diffusers")
    back, first = files.read_tensors(tmp_path / "d.safetensors"), files.read_tensors(result.folder / "lora.safetensors")
    assert back.keys() == first.keys()
    assert all(torch.equal(first[k], back[k]) for k in first)


def test_the_network_in_training_equals_the_base_with_the_lora_merged(svd, tmp_path, heard, lora_run):
    """Fails if an optimised path of the network bypasses an adapted layer."""
    run = setup.begin(TrainOptions(**svd("lora", lora="4:2", learning_rate=1e-2)), tmp_path / "lora", heard)
    run.log.close()
    lora = trainable.adapters(dict(run.model.named_parameters()), trainable.LoraSize(4, 2.0))
    torch.manual_seed(0)
    merged = run.system.family.build(run.system.config)
    base = {k: v.clone() for k, v in merged.state_dict().items()}
    Merged(merged).set([(lora, 1.0)])
    assert any(not torch.equal(v, base[k]) for k, v in merged.state_dict().items())
    batch, losses = run.stream.at(0), []
    loss = run.system.family.training.loss
    for network in (run.model, merged):
        with torch.no_grad():
            losses.append(loss(network, run.system.config, batch, torch.Generator().manual_seed(3)))
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    merged.load_state_dict(base)
    with torch.no_grad():
        plain = run.system.family.training.loss(merged, run.system.config, batch, torch.Generator().manual_seed(3))
    assert float((plain - losses[0]).abs().max()) > 1e-4


@pytest.mark.parametrize("options", [{"lora": "4"}, {"only": "temporal"}])
def test_resuming_after_kill_9_gives_the_losses_and_file_of_the_uninterrupted_run(runs, svd, tmp_path, options):
    whole, heard = runs[0](svd("whole", **options))
    expected = heard.losses
    code, before = runs[1](svd("cut", **options), tmp_path / "losses", die_at=3)
    assert code == -9
    assert sorted(before) == [1, 2, 3]
    result, heard = runs[0](svd("cut", **options))
    assert {**before, **heard.losses} == expected
    assert result.weights.read_bytes() == whole.weights.read_bytes()


def test_a_lora_run_is_not_resumed_with_another_lora_or_base(runs, svd, lora_run, tmp_path):
    for options in ({}, {"lora": "8:2"}, {"lora": "4:2", "only": "temporal"}):
        with pytest.raises(BadRequest, match="has trains lora 4:2"):
            runs[0](svd("lora", **options))
    base, _ = runs[0](svd("base", steps=1))
    first = svd("on-base", model=str(base.weights), lora="4")
    runs[0](first)
    other, _ = runs[0](svd("other", steps=2))
    (tmp_path / "base" / "model.safetensors").write_bytes(other.weights.read_bytes())
    with pytest.raises(BadRequest, match="has other frozen weights"):
        runs[0](first)


def test_the_run_state_names_the_trained_part(lora_run):
    state, description = checkpoint.peek(last(lora_run[0].folder))
    assert state.trains == "lora 4:2"
    assert state.base == "seed:0"
    assert json.dumps(description)


# --------------------------------------------------------------------------------- other layouts


def test_a_trained_model_converts_to_sgm_and_to_a_diffusers_folder(runs, svd, tmp_path):
    pytest.importorskip("diffusers")
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

    result, _ = runs[0](svd(steps=1))
    exported = files.read_tensors(result.weights)
    convert(result.weights, tmp_path / "sgm.safetensors", "sgm")
    opened = open_system(tmp_path / "sgm.safetensors")
    assert all(torch.equal(v, exported[k].float()) for k, v in opened.model.state_dict().items())
    convert(result.weights, tmp_path / "folder", "diffusers")
    for part, kind in (("unet", UNetSpatioTemporalConditionModel), ("vae", AutoencoderKLTemporalDecoder)):
        loaded = kind.from_pretrained(tmp_path / "folder", subfolder=part).state_dict()
        assert {f"{part}.{k}" for k in loaded} == {k for k in exported if k.startswith(f"{part}.")}
        assert all(torch.equal(v, exported[f"{part}.{k}"].float()) for k, v in loaded.items())


def test_a_pocket_model_has_no_other_layout(tmp_path):
    system = open_system("svd/pocket")
    note = json.dumps({"family": "svd", "config": system.family.to_json(system.config)})
    files.write_tensors(tmp_path / "pocket.safetensors", {"unet.conv_out.bias": torch.zeros(16)}, {"kinema": note})
    with pytest.raises(BadRequest, match="no other layout supports its autoencoder"):
        convert(tmp_path / "pocket.safetensors", tmp_path / "sgm.safetensors", "sgm")


def test_lora_training_settings_apply_below_given_options():
    def values(model, **options):
        _, settings, _ = setup.prepare(TrainOptions(model=model, lora="4", **options))
        return settings.steps, settings.batch, settings.learning_rate, settings.optimiser

    assert values("animatediff/v3") == (5000, 4, 1e-4, "adamw")
    assert values("animatediff/tiny") == (200, 4, 1e-4, "adamw")
    assert values("animatediff/pocket") == (300, 8, 2e-3, "adamw")
    assert values("svd/svd", stage="base") == (5000, 8, 1e-4, "adamw")
    assert values("svd/tiny", steps=7, learning_rate=0.5) == (7, 4, 0.5, "adamw")
