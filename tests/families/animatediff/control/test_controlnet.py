"""ControlNets: against diffusers, files in both layouts, and options."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kinema.api import load
from kinema.checkpoints import files
from kinema.checkpoints.convert import convert
from kinema.families.animatediff.config import IMAGE, SDXL_IMAGE, TINY, ControlSize, from_json, to_json
from kinema.families.animatediff.control.controlnet import ControlNet
from kinema.families.animatediff.files import controlnet_file
from kinema.families.animatediff.model import AnimateDiff
from kinema.schema import BadRequest, Request
from kinema.system import open_system

XL_SIZE = ControlSize(depths=(None, 1, 2), middle=2, linear=True)
FIFTEEN_SIZE = ControlSize(depths=(1, 1, None), middle=1)


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def diffusers_control(config, size):
    from diffusers import ControlNetModel

    embedding = {}
    if config.size_embedding:
        embedding = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": config.size_embedding,
            "projection_class_embeddings_input_dim": 6 * config.size_embedding + config.pooled,
        }
    return ControlNetModel(
        in_channels=config.latent_channels,
        down_block_types=tuple("DownBlock2D" if d is None else "CrossAttnDownBlock2D" for d in size.depths),
        mid_block_type="UNetMidBlock2D" if size.middle is None else "UNetMidBlock2DCrossAttn",
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        cross_attention_dim=config.context,
        transformer_layers_per_block=tuple(d or 0 for d in size.depths[:-1]) + (size.depths[-1] or size.middle or 0,),
        attention_head_dim=config.heads,
        use_linear_projection=size.linear,
        controlnet_conditioning_channel_order="bgr" if size.bgr else "rgb",
        global_pool_conditions=size.pooled,
        **embedding,
    )


@pytest.mark.parametrize(
    "size",
    [
        FIFTEEN_SIZE,
        replace(FIFTEEN_SIZE, bgr=True),
        replace(FIFTEEN_SIZE, pooled=True),
        XL_SIZE,
        replace(XL_SIZE, depths=(None, 0, 1), middle=1),
        replace(XL_SIZE, depths=(None, None, None), middle=None),
    ],
    ids=["1.5", "bgr", "pooled", "xl", "xl-mid", "xl-small"],
)
def test_residuals_equal_diffusers(oracle, size):
    config = oracle.tiny_xl if len(size.depths) == 3 and size.linear else oracle.middle
    network = oracle.randomised(ControlNet(config, size))
    reference = oracle.same_weights(diffusers_control(config, size), network)
    frames, clips = 3, 2
    z, control_images = normal(clips, 4, frames, 8, 8), torch.rand(1, 3, frames, 64, 64)
    context = normal(clips, 7, config.context)
    added, conditions = None, {}
    if config.size_embedding:
        sizes, pooled = torch.arange(12.0).reshape(clips, 6), normal(clips, config.pooled)
        conditions = {
            "text_embeds": pooled.repeat_interleave(frames, 0),
            "time_ids": sizes.repeat_interleave(frames, 0),
        }
        from kinema.nn.embeddings import sinusoidal

        added = torch.cat([pooled, sinusoidal(sizes, config.size_embedding).flatten(1)], dim=1)
    scale = torch.tensor([0.7, 0.0, 1.3])
    result = network(z, network.embed(control_images), torch.tensor([981.0, 20.0]), context, added, scale)
    skips, middle = reference(
        z.transpose(1, 2).flatten(0, 1),
        torch.tensor([981.0, 20.0]).repeat_interleave(frames),
        context.repeat_interleave(frames, dim=0),
        control_images.transpose(1, 2).flatten(0, 1).repeat(clips, 1, 1, 1),
        added_cond_kwargs=conditions,
        return_dict=False,
    )
    assert len(result.skips) == len(skips)
    for mine, their in zip([*result.skips, result.middle], [*skips, middle], strict=True):
        expected = their * scale.repeat(clips)[:, None, None, None]
        assert (mine - expected).abs().max() <= 1e-5
        assert expected.abs().max() > 1e-3


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("config", "size", "parameters", "tensors"),
    [
        (IMAGE, ControlSize(), 361_279_120, 340),
        (SDXL_IMAGE, ControlSize(depths=(None, 2, 10), middle=10, linear=True), 1_251_014_160, 844),
    ],
    ids=["1.5", "xl"],
)
def test_published_files_are_recognised_by_keys_and_shapes_in_both_layouts(config, size, parameters, tensors):
    with torch.device("meta"):
        network = ControlNet(config, size)
    state = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    assert sum(p.numel() for p in network.parameters()) == parameters
    table = controlnet_file.ControlFile("official", config, size).table
    assert table.native == state
    assert len(table.foreign) == tensors
    for prefix, shapes in (("control_model.", table.foreign), ("", table.foreign), ("", state)):
        header = {prefix + name: (shape, torch.float16) for name, shape in shapes.items()}
        control = controlnet_file.recognise(header)
        assert control.into(config, "depth").controls == (replace(size, name="depth"),)
    if size.linear:
        assert "label_emb.0.0.weight" in table.foreign
    else:
        assert table.foreign["input_hint_block.14.weight"] == (320, 256, 3, 3)


SIZE = replace(
    TINY,
    channels=(64, 128),
    heads=(8, 8),
    motion_heads=8,
    vae_channels=(32, 32, 32, 32),
    height=64,
    width=64,
    words=("a", "cat"),
    text=(replace(TINY.text[0], vocabulary=6),),
)
NET = ControlSize(depths=(1, None), middle=1)


def clip_of(folder, frames, side=64, seed=0):
    """Write a folder of numbered random images."""
    from PIL import Image

    folder.mkdir()
    video = torch.randint(0, 256, (frames, side, side, 3), generator=torch.Generator().manual_seed(seed))
    for n, frame in enumerate(video):
        Image.fromarray(frame.to(torch.uint8).numpy()).save(folder / f"{n:03}.png")
    return str(folder)


@pytest.fixture(scope="module")
def saved(oracle, tmp_path_factory):
    """A tiny Kinema model, and two ControlNets: one in the authors' layout, one in diffusers'."""
    folder = tmp_path_factory.mktemp("control")
    note = json.dumps({"family": "animatediff", "config": to_json(SIZE)})
    files.write_tensors(
        folder / "tiny.safetensors", oracle.randomised(AnimateDiff(SIZE)).state_dict(), {"kinema": note}
    )
    network = oracle.randomised(ControlNet(SIZE, NET))
    file = controlnet_file.ControlFile("official", SIZE, NET)
    tensors = controlnet_file.export(file, "official", network.state_dict())
    torch.save({"state_dict": tensors}, folder / "canny.pth")
    second = oracle.randomised(ControlNet(SIZE, NET), seed=1)
    oracle.same_weights(diffusers_control(SIZE, NET), second).save_pretrained(folder / "depth")
    files.write_tensors(folder / "depth.safetensors", second.state_dict())
    return folder


def test_files_of_both_layouts_convert_both_ways(saved, tmp_path):
    from diffusers import ControlNetModel

    convert(saved / "canny.pth", tmp_path / "folder", "diffusers")
    convert(tmp_path / "folder", tmp_path / "again.safetensors", "official")
    before, after = files.read_tensors(saved / "canny.pth"), files.read_tensors(tmp_path / "again.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    opened = ControlNetModel.from_pretrained(tmp_path / "folder")
    native = controlnet_file.convert(controlnet_file.recognise(files.header(saved / "canny.pth")), before)
    assert all(torch.equal(tensor, native[name]) for name, tensor in opened.state_dict().items())
    with pytest.raises(BadRequest, match="hotshot is a layout for motion modules"):
        convert(saved / "canny.pth", tmp_path / "h.safetensors", "hotshot")


def test_a_whole_model_gives_its_controlnet_with_a_note(saved, tmp_path):
    tensors = files.read_tensors(saved / "canny.pth")
    torch.save(tensors | {"model.diffusion_model.out.0.weight": torch.zeros(64)}, tmp_path / "whole.pth")
    system = open_system(saved / "tiny.safetensors", add={"controlnet": tmp_path / "whole.pth"})
    assert any("also contains an image model" in note for note in system.notes)
    alone = open_system(saved / "tiny.safetensors", add={"controlnet": saved / "canny.pth"})
    state = system.model.controls.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in alone.model.controls.state_dict().items())


def test_a_config_with_controls_survives_json():
    config = replace(SIZE, controls=(replace(NET, name="depth"), replace(NET, hint=3)))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("damage", ["missing", "unknown"])
def test_missing_and_unknown_tensors_are_named(saved, tmp_path, damage):
    for file, name in (("canny.pth", "control_model.zero_convs.1.0.bias"), ("depth.safetensors", "conv_in.weight")):
        tensors = files.read_tensors(saved / file)
        if damage == "missing":
            del tensors[name]
            expected = name.removeprefix("control_model.").replace(".", r"\.")
        else:
            prefix = "control_model." if "control_model." in name else ""
            tensors[f"{prefix}more.weight"] = torch.zeros(1)
            expected = "more.weight"
        torch.save(tensors, tmp_path / "damaged.pth")
        with pytest.raises(BadRequest, match=expected):
            open_system(saved / "tiny.safetensors", add={"controlnet": tmp_path / "damaged.pth"})


def test_wrong_files_and_slots_are_named(saved, tmp_path):
    tiny = saved / "tiny.safetensors"
    wrong = {
        "lora_controlnet": "a Control-LoRA",
        "lllite_unet_x.weight": "a ControlNet-LLLite",
        "task_embedding": "a union ControlNet",
        "adapter.body.0.weight": "a T2I-Adapter",
    }
    for key, what in wrong.items():
        torch.save({key: torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(BadRequest, match=f"is {what}, which is not supported; expected a ControlNet"):
            open_system(tiny, add={"controlnet": tmp_path / "other.pth"})
    with pytest.raises(BadRequest, match=r"is a ControlNet \(--add controlnet=FILE\); expected SparseCtrl"):
        open_system(tiny, add={"sparsectrl": saved / "canny.pth"})
    with pytest.raises(BadRequest, match=r"is a ControlNet \(--add controlnet=FILE\); expected a motion module"):
        open_system("animatediff/image", add={"motion": saved / "depth"})
    with pytest.raises(BadRequest, match=r"it is a ControlNet, an add-on to an image model \(--add controlnet=FILE\)"):
        open_system(saved / "canny.pth")
    with pytest.raises(BadRequest, match=r"for a model .*64/128 channels.*; the image model is Stable Diffusion 1.5"):
        open_system("animatediff/v3", add={"controlnet": saved / "canny.pth"})
    with pytest.raises(BadRequest, match="add another as controlnet.NAME=FILE"):
        open_system(tiny, add={"controlnet": saved / "canny.pth", "controlnet.controlnet": saved / "depth"})
    with pytest.raises(BadRequest, match="motion takes no name; give --add motion=FILE"):
        open_system(tiny, add={"motion.x": saved / "canny.pth"})


# ----------------------------------------------------------------------------------------- in use


def test_control_clips_scales_and_spans(saved, tmp_path, image_file):
    add = {"controlnet.canny": saved / "canny.pth", "controlnet.depth": saved / "depth"}
    model = load(saved / "tiny.safetensors", add=add)
    moving, still = clip_of(tmp_path / "moving", 5), image_file(tmp_path / "still.png", 20)
    events = []

    def generate(**extra):
        request = Request(prompt="a cat", frames=4, steps=3, seed=1, extra=extra)
        return model.run(request, on_event=events.append).video

    plain = generate()
    assert any("ControlNet depth has no input" in str(event) for event in events)
    one = generate(**{"control.canny": moving})
    assert any("has 5 frames, of which the first 4 are used" in str(event) for event in events)
    both = generate(**{"control.canny": moving, "control.depth": still})
    assert not torch.allclose(plain, one, atol=1e-5)
    assert not torch.allclose(one, both, atol=1e-5)
    none = generate(**{"control.canny": moving, "control.depth": still, "control_scale": 0})
    assert torch.allclose(none, plain, atol=1e-5)
    canny = generate(**{"control.canny": moving, "control.depth": still, "control_scale.depth": 0.0})
    assert torch.allclose(canny, one, atol=1e-5)
    late = generate(**{"control.canny": moving, "control_span.canny": [0.5, 1.0]})
    assert not torch.allclose(late, one, atol=1e-5)
    never = generate(**{"control.canny": moving, "control_span": [0.4, 0.6]})  # contains none of the three steps
    assert torch.equal(never, plain)
    ramp = generate(**{"control.canny": moving, "control_scale": [1.0, 0.5, 0.2, 0.0]})
    assert not torch.allclose(ramp, one, atol=1e-5)
    assert torch.allclose(generate(**{"control.canny": moving, "control_scale": [1.0] * 4}), one, atol=1e-6)


def test_windows_use_the_control_images_of_their_frames(saved, tmp_path):
    """Without overlap and motion module, windows must equal one pass."""
    model = load(saved / "tiny.safetensors", add={"controlnet": saved / "canny.pth"})
    moving = clip_of(tmp_path / "moving", 6)
    fields = {"prompt": "a cat", "frames": 6, "steps": 2, "seed": 1}
    extra = {"control": moving, "effect": 0.0, "control_scale": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]}
    whole = model.run(Request(extra=extra, **fields)).video
    windows = model.run(Request(extra=extra, window=2, overlap=0, **fields)).video
    assert torch.allclose(whole, windows, atol=1e-4)


def test_invalid_options_raise_before_weights_are_loaded(saved, tmp_path, image_file):
    add = {"controlnet.canny": saved / "canny.pth", "controlnet.depth": saved / "depth"}
    two, none = load(saved / "tiny.safetensors", add=add), load(saved / "tiny.safetensors")
    one = load(saved / "tiny.safetensors", add={"controlnet": saved / "canny.pth"})
    short, still = clip_of(tmp_path / "short", 2), image_file(tmp_path / "still.png", 20)
    cases = [
        (none, {"control": still}, "control needs ControlNet and this model has none; give --add controlnet=FILE"),
        (none, {"control_span": [0, 1]}, "control_span needs ControlNet and this model has none"),
        (two, {"control": still}, "use control.canny, control.depth"),
        (two, {"control.pose": still}, "there is no ControlNet 'pose'"),
        (one, {"control": "nothing.png"}, "control file nothing.png does not exist"),
        (one, {"control": short}, "has 2 frames and the request 4"),
        (one, {"control": still, "control_scale": -1}, "control_scale is -1; expected a number from 0 to 10"),
        (one, {"control": still, "control_scale": [1, 2]}, "or one per frame"),
        (one, {"control": still, "control_span": [0.5, 0.5]}, "expected 0 <= start < end <= 1"),
        (one, {"control": still, "control_span": 0.5}, "expected two fractions of the steps"),
        (one, {"controls": still}, "animatediff has no option 'controls'"),
    ]
    for model, extra, message in cases:
        with pytest.raises(BadRequest, match=message.replace("(", r"\(")):
            model.generate("a cat", frames=4, extra=extra)
        assert model.system.runtime.model is None
    with pytest.raises(BadRequest, match="do not work block by block: give --window"):
        one.generate("a cat", frames=24, overlap=4, extra={"control": still})


def test_the_command_line_names_controlnets_and_the_recipe_has_them(saved, tmp_path, capsys, image_file):
    from kinema.cli.main import main
    from kinema.media.metadata import read_recipe

    still, out = image_file(tmp_path / "still.png", 20), tmp_path / "cat.mp4"
    adds = [f"controlnet.canny={saved / 'canny.pth'}", f"controlnet.depth={saved / 'depth'}"]
    words = ["generate", "a cat", "--model", str(saved / "tiny.safetensors"), "--add", adds[0], "--add", adds[1]]
    words += ["--frames", "2", "--steps", "1", "--seed", "1", "-o", str(out), "--quiet"]
    words += ["--control", f"depth={still}", "--extra", "control-scale.depth=0.5", "--extra", "control-span=[0,1]"]
    assert main(words) == 0
    recipe = read_recipe(out)
    assert [each["slot"] for each in recipe["stages"][0]["added"]] == ["controlnet.canny", "controlnet.depth"]
    expected = {"control.depth": "still.png", "control_scale.depth": 0.5, "control_span": [0, 1]}
    assert recipe["stages"][0]["request"]["extra"] == expected
    assert main([*words, "--overwrite", "--add", adds[0]]) == 2
    assert "--add controlnet.canny is given twice" in capsys.readouterr().err
    arguments = ["--model", words[3], "--add", adds[0], "--add", adds[1], "--input", f"still.png={still}"]
    assert main(["replay", str(out), "-o", str(tmp_path / "again.mp4"), *arguments]) == 0
    assert "are identical to" in capsys.readouterr().err
