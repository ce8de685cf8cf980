"""LoRAs: merging, recipes, replay, exact removal, and rejection of LoRAs for other models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kinema.api import load
from kinema.checkpoints.files import weight_hash
from kinema.checkpoints.lora_formats import Adapter, write_lora
from kinema.cli.main import main
from kinema.media.metadata import read_recipe
from kinema.schema import BadRequest

LAYERS = (
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_v",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v",
)
ASK = {"seed": 3, "steps": 2, "frames": 5, "height": 32, "width": 32}


def adapters(seed: int) -> dict[str, Adapter]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: Adapter(torch.randn(4, 32, generator=random), torch.randn(32, 4, generator=random), 2.0)
        for name in LAYERS
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """One LoRA in kohya's layout and one in diffusers'."""
    folder = tmp_path_factory.mktemp("loras")
    write_lora(folder / "one.safetensors", adapters(1), "kohya")
    write_lora(folder / "two.safetensors", adapters(2), "diffusers")
    return folder / "one.safetensors", folder / "two.safetensors"


@pytest.mark.parametrize("when", ["at opening", "later"])
def test_loras_are_merged_with_their_weights(saved, files, when):
    plain = load(saved).system.model.state_dict()
    weights = {files[0]: 0.5, str(files[1]): -1.5}
    model = load(saved, loras=weights if when == "at opening" else None)
    if when == "later":
        _ = model.system.model
        model.use_loras(weights)
    held = model.system.model.state_dict()
    for name, one in adapters(1).items():
        two = adapters(2)[name]
        expected = plain[f"{name}.weight"] + 0.5 * 0.5 * one.up @ one.down - 1.5 * 0.5 * two.up @ two.down
        torch.testing.assert_close(held[f"{name}.weight"], expected)
    other = [name for name in plain if name.removesuffix(".weight") not in LAYERS]
    assert all(torch.equal(held[name], plain[name]) for name in other)


def test_removing_loras_restores_the_weights_exactly(saved, files):
    before = {p: weight_hash(p) for p in saved.rglob("*.safetensors")}
    model = load(saved, loras={files[0]: 1.0})
    plain = load(saved).system.model.state_dict()
    assert not torch.equal(model.system.model.state_dict()[f"{LAYERS[0]}.weight"], plain[f"{LAYERS[0]}.weight"])
    model.use_loras({files[1]: 0.3})
    model.use_loras({})
    assert all(torch.equal(tensor, plain[name]) for name, tensor in model.system.model.state_dict().items())
    assert {p: weight_hash(p) for p in saved.rglob("*.safetensors")} == before


def test_loras_change_the_clip_and_are_in_the_recipe(saved, files, image_path):
    model = load(saved)
    plain = model.animate(image_path, **ASK)
    model.use_loras({files[0]: 0.7})
    changed = model.animate(image_path, **ASK)
    assert (changed.video - plain.video).abs().max() > 1e-3
    assert "loras" not in plain.recipe
    assert changed.recipe["stages"][0]["loras"] == [
        {"file": files[0].name, "weight": 0.7, "hash": weight_hash(files[0])}
    ]
    assert changed.recipe["stages"][0]["weights"] == plain.recipe["stages"][0]["weights"]
    model.use_loras({})
    assert torch.equal(model.animate(image_path, **ASK).video, plain.video)


def test_the_command_line_and_replay_support_loras(saved, files, image_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one = Path("one.safetensors")
    one.write_bytes(files[0].read_bytes())
    words = [
        "animate",
        str(image_path),
        "--model",
        str(saved),
        "--steps",
        "2",
        "--height",
        "32",
        "--width",
        "32",
        "--quiet",
    ]
    assert main([*words, "--seed", "1", "-o", "plain.mp4"]) == 0
    loras = ["--lora", "one.safetensors:0.7", "--lora", str(files[1])]
    assert main([*words, "--seed", "1", "-o", "clip.mp4", *loras]) == 0
    recipe = read_recipe("clip.mp4")
    assert [(each["file"], each["weight"]) for each in recipe["stages"][0]["loras"]] == [
        ("one.safetensors", 0.7),
        (files[1].name, 1.0),
    ]
    assert recipe["frames_hash"] != read_recipe("plain.mp4")["frames_hash"]
    capsys.readouterr()
    given = ["--model", str(saved), "--input", f"image={image_path}"]
    assert main(["replay", "clip.mp4", "-o", "again.mp4", *given, *loras]) == 0
    assert "are not identical" not in (err := capsys.readouterr().err)
    assert "other LoRAs" not in err
    assert main(["replay", "clip.mp4", "-o", "third.mp4", *given]) == 2
    assert "give them with --lora PATH:0.7, --lora PATH:1" in capsys.readouterr().err
    write_lora(one, adapters(5), "kohya")
    assert main(["replay", "clip.mp4", "-o", "third.mp4", *given, *loras]) == 0
    err = capsys.readouterr().err
    assert "the LoRAs are not those of the clip" in err
    assert "are not identical to" in err


@pytest.mark.parametrize("loras", [[{"file": "x"}], ["x"], [{"file": "x", "weight": "much", "hash": ""}], {"x": 1}])
def test_a_recipe_with_damaged_loras_is_rejected(loras, tmp_path, monkeypatch, capsys):
    from kinema.schema import Clip

    monkeypatch.chdir(tmp_path)
    recipe = {"model": "svd/tiny", "request": {"task": "generate"}, "loras": loras}
    Clip(torch.zeros(1, 3, 2, 16, 16), recipe=recipe).save("clip.mp4")
    assert main(["replay", "clip.mp4", "-o", "again.mp4"]) == 2
    assert "damaged" in capsys.readouterr().err


def kohya(*shapes: tuple[str, int, int]) -> dict[str, torch.Tensor]:
    result = {}
    for stem, out, into in shapes:
        result |= {f"{stem}.lora_down.weight": torch.ones(4, into), f"{stem}.lora_up.weight": torch.ones(out, 4)}
    return result


SD15 = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
XL = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
MOTION = (
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora"
)


@pytest.mark.parametrize(
    ("tensors", "what", "why"),
    [
        (kohya((SD15, 320, 768)), "a LoRA of Stable Diffusion 1.5", "320×768 at unet.down_blocks.0"),
        (kohya((SD15, 320, 1024)), "a LoRA of Stable Diffusion 2", "expected 32×32"),
        (kohya((XL, 640, 640)), "a LoRA of Stable Diffusion XL", "2 of its tensors fit no layer"),
        (kohya((LAYERS[0].replace("unet.", "lora_unet_").replace(".", "_"), 32, 48)), "a LoRA", "32×48 at unet"),
        (
            {f"{MOTION}.down.weight": torch.ones(4, 320), f"{MOTION}.up.weight": torch.ones(320, 4)},
            "a LoRA of an AnimateDiff motion module",
            "fit no layer",
        ),
        (
            {
                "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(4, 32),
                "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(32, 4),
            },
            "a LoRA of Flux",
            "fit no layer",
        ),
    ],
)
def test_a_lora_of_another_model_is_rejected_before_weights_are_read(saved, tmp_path, tensors, what, why):
    save_file(tensors, tmp_path / "other.safetensors")
    model = load(saved)
    with pytest.raises(BadRequest, match=what) as error:
        model.use_loras({tmp_path / "other.safetensors": 1.0})
    assert why in str(error.value)
    assert model.system.runtime.model is None
    assert model.system.loras.files == ()


def test_a_rejected_lora_keeps_those_in_use(saved, files, tmp_path):
    save_file(kohya((SD15, 320, 768)), tmp_path / "other.safetensors")
    model = load(saved, loras={files[0]: 1.0})
    before = {name: tensor.clone() for name, tensor in model.system.model.state_dict().items()}
    with pytest.raises(BadRequest):
        model.use_loras({files[1]: 1.0, tmp_path / "other.safetensors": 1.0})
    assert [file.path for file in model.system.loras.files] == [files[0]]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.system.model.state_dict().items())


def test_sgm_layer_names_are_found(saved, tmp_path):
    stem = "lora_unet_input_blocks_1_1_time_stack_0_attn1_to_v"
    save_file(kohya((stem, 32, 32)), tmp_path / "sgm.safetensors")
    model = load(saved, loras={tmp_path / "sgm.safetensors": 1.0})
    assert set(model.system.loras.files[0].lora) == {LAYERS[1]}


def test_native_layer_names_work_for_other_families(tmp_path):
    model = load("zoetrope", preset="tiny")
    shapes = {n: tuple(p.shape) for n, p in model.system.model.named_parameters() if p.ndim == 2}
    name, (out, into) = sorted(shapes.items())[0]
    stem = name.removesuffix(".weight")
    lora = {f"{stem}.lora_A.weight": torch.ones(1, into), f"{stem}.lora_B.weight": torch.ones(out, 1)}
    save_file(lora, tmp_path / "own.safetensors")
    before = model.system.model.get_parameter(name).clone()
    model.use_loras({tmp_path / "own.safetensors": 0.5})
    torch.testing.assert_close(model.system.model.get_parameter(name), before + 0.5)


@pytest.mark.parametrize(
    ("weight", "message"),
    [(float("nan"), "nan; expected a number"), (1e6, "expected -100 to 100"), ("1", "'1'"), (True, "True")],
)
def test_an_invalid_lora_weight_is_rejected(saved, files, weight, message):
    with pytest.raises(BadRequest, match=message):
        load(saved, loras={files[0]: weight})


def test_a_model_as_a_lora_and_a_lora_as_a_model_are_identified(saved, files, tmp_path):
    unet = saved / "unet/diffusion_pytorch_model.safetensors"
    with pytest.raises(BadRequest, match="is not a LoRA: it is one component of a Stable Video Diffusion folder"):
        load(saved, loras={unet: 1.0})
    with pytest.raises(BadRequest, match="is not a LoRA: it is a folder of the pipeline StableVideoDiffusionPipeline"):
        load(saved, loras={saved: 1.0})
    with pytest.raises(BadRequest, match="LoRA of Stable Video Diffusion; name a model and pass this file with --lora"):
        load(files[0])
    with pytest.raises(BadRequest, match="there is no LoRA file nowhere.safetensors"):
        load(saved, loras={"nowhere.safetensors": 1.0})
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files[0].read_bytes()[:-10])
    with pytest.raises(BadRequest, match=r"cut\.safetensors is cut short"):
        load(saved, loras={cut: 1.0})


def test_float16_adapters_are_merged_in_float32(saved, files, tmp_path):
    half = {name: tensor.half() for name, tensor in load_file(files[0]).items()}
    save_file(half, tmp_path / "half.safetensors")
    name = f"{LAYERS[0]}.weight"
    full, result = (
        load(saved, loras={path: 1.0}).system.model.get_parameter(name)
        for path in (files[0], tmp_path / "half.safetensors")
    )
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, full, atol=2e-2, rtol=2e-2)


def test_recipes_with_loras_are_json(saved, files, image_path):
    clip = load(saved, loras={files[0]: 1}).animate(image_path, **{**ASK, "steps": 1})
    assert json.loads(json.dumps(clip.recipe["stages"][0]["loras"]))[0]["weight"] == 1.0


def test_what_of_a_lora_has_no_effect_is_noted(saved, files, image_path, tmp_path):
    tensors = load_file(files[0])
    save_file(tensors | {"bundle_emb.mascot.clip_l": torch.ones(1, 8)}, tmp_path / "bundle.safetensors")
    events = []
    model = load(saved, loras={tmp_path / "bundle.safetensors": 1.0, files[1]: 1.0})
    model.animate(image_path, on_event=lambda event: events.append(str(event)), **{**ASK, "steps": 1})
    assert sum("bundle.safetensors contains 1 embedding (mascot), which" in event for event in events) == 1


def test_a_loha_of_norms_and_kernels_changes_the_clip_and_is_restored(saved, image_path, tmp_path):
    model = load(saved)
    plain = {name: p.detach().clone() for name, p in model.system.model.named_parameters()}
    norm, kernel = "unet.conv_norm_out", "unet.conv_in"
    rows, wide = plain[f"{kernel}.weight"].shape[0], plain[f"{kernel}.weight"][0].numel()
    tensors = {f"{kernel}.hada_w{n}_a": torch.full((rows, 2), 0.1) for n in (1, 2)}
    tensors |= {f"{kernel}.hada_w{n}_b": torch.full((2, wide), 0.1) for n in (1, 2)}
    tensors |= {f"{norm}.{name}": torch.full_like(plain[f"{norm}.weight"], 0.1) for name in ("w_norm", "b_norm")}
    save_file(tensors, tmp_path / "a.safetensors")
    before = model.animate(image_path, **ASK).video
    model.use_loras({tmp_path / "a.safetensors": 0.5})
    changed = dict(model.system.model.named_parameters())
    torch.testing.assert_close(changed[f"{kernel}.weight"], plain[f"{kernel}.weight"] + 0.5 * 0.02**2)
    for name in ("weight", "bias"):
        torch.testing.assert_close(changed[f"{norm}.{name}"], plain[f"{norm}.{name}"] + 0.05)
    assert (model.animate(image_path, **ASK).video - before).abs().max() > 1e-3
    model.use_loras({})
    assert all(torch.equal(p, plain[name]) for name, p in model.system.model.named_parameters())
