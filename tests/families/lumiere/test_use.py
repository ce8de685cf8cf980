"""Lumiere from the command line and Python: canvases, styles, super-resolution in windows, training."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kinema import Request, load
from kinema.checkpoints import files
from kinema.cli.main import main
from kinema.families.lumiere import conditioning, recipe
from kinema.families.lumiere.config import presets
from kinema.families.lumiere.model import is_new, of_new_layer
from kinema.media.read import read_video
from kinema.schema import BadRequest, Clip
from kinema.settle import settle
from kinema.system import open_system
from kinema.training.options import TrainOptions
from kinema.training.run import train


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)


def stirred(model):
    with torch.no_grad():
        for p in model.system.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
    return model


@pytest.fixture
def model():
    return stirred(load("lumiere", preset="tiny"))


@pytest.fixture
def clip(tmp_path):
    video = torch.rand(1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    Clip(video, 8.0).save(tmp_path / "clip.png")
    return str(tmp_path / "clip")


# ------------------------------------------------------------------------------------- canvases


@pytest.mark.parametrize(
    ("task", "options", "given"),
    [
        ("animate", {"image": "clip"}, (0, slice(None))),
        ("animate", {"image": "clip", "last_image": "clip"}, ([0, -1], slice(None))),
        ("animate", {"image": "clip", "region": (0.0, 0.0, 0.5, 1.0)}, (slice(1, None), slice(8, None))),
        ("inpaint", {"video": "clip", "region": (0.0, 0.0, 0.5, 1.0)}, (slice(None), slice(8, None))),
        ("inpaint", {"video": "clip", "region": (0.25, 0.0, 0.75, 1.0), "outside": True}, (slice(None), slice(4, 12))),
        ("extend", {"video": "clip", "frames": 12, "keep": 4}, (slice(0, 4), slice(None))),
    ],
    ids=["image-to-video", "both ends", "cinemagraph", "inpainting", "outpainting", "extension"],
)
def test_given_pixels_reach_the_network_and_come_out_to_the_bit(task, options, given, model, clip):
    """Image-to-video, cinemagraph, in- and outpainting are canvases; the network takes them as C and M."""
    frames, columns = given
    held = model.run(Request(task=task, prompt="a red ball", seed=1, **options))
    source = read_video(clip).video
    if task == "animate":  # the image, repeated
        source = source[:, :, :1].expand(-1, -1, held.shape.frames, -1, -1)
    if task == "extend":
        source = source[:, :, 4:]
    assert torch.equal(held.video[:, :, frames][..., columns], source[:, :, frames][..., columns])
    assert (
        {stage["way"] for stage in held.recipe["stages"]} == {"native"} if "way" in held.recipe["stages"][0] else True
    )
    with torch.no_grad():
        model.system.model.unet.conv_given.weight.zero_()
    other = model.run(Request(task=task, prompt="a red ball", seed=1, **options))
    assert not torch.allclose(held.video, other.video, atol=1e-4)  # the rest depends on what is given


def test_content_and_mask_are_seven_channels_of_a_pixel_model():
    config = replace(presets()["tiny"], patch=1, latent_channels=3)
    video, mask = torch.randn(2, 3, 4, 6, 6), (torch.rand(2, 1, 4, 6, 6) > 0.5).float()
    given = conditioning.given_pixels(config, video, mask)
    assert torch.equal(given[:, :3], video * mask)
    assert torch.equal(given[:, 3:], mask)


def test_content_and_mask_of_a_cell_are_those_of_its_pixels():
    config = presets()["tiny"]
    video, mask = torch.randn(1, 3, 2, 4, 4), torch.zeros(1, 1, 2, 4, 4)
    mask[0, 0, 1, 2, 3] = 1  # one pixel, in the last cell, at its upper right
    given = conditioning.given_pixels(config, video, mask)
    assert given.shape == (1, 16, 2, 2, 2)
    assert given.count_nonzero() == 4  # three colours and the mask
    assert torch.equal(given[0, [1, 5, 9], 1, 1, 1], video[0, :, 1, 2, 3])
    assert given[0, 13, 1, 1, 1] == 1


# ---------------------------------------------------------------------------------------- style


def style_file(model, path):
    """A fine-tuned copy of the model's image part, in Kinema's own file of an image model."""
    from kinema import registry

    family, config = registry.family("animatediff"), model.system.config
    from kinema.families.lumiere.image_files import _of_images

    of_images = _of_images(family, config)
    note = json.dumps({"family": "animatediff", "config": family.to_json(of_images)})
    draw = torch.Generator().manual_seed(8)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=draw)
        for name, tensor in model.system.model.state_dict().items()
        if not is_new(name.removeprefix("unet."))
    }
    files.write_tensors(path, tensors, {"kinema": note})
    return tensors


def test_a_style_of_alpha_0_and_1_is_either_model_and_goes_out_again_exactly(model, tmp_path):
    path = tmp_path / "style.safetensors"
    style = style_file(model, path)
    before = {name: tensor.clone() for name, tensor in model.system.model.state_dict().items()}
    plain = model.generate("a red ball", seed=1).video

    def with_style(alpha):
        return model.generate("a red ball", seed=1, extra={"style": str(path), "style_alpha": alpha}).video

    assert torch.equal(with_style(0.0), plain)
    full, half = with_style(1.0), with_style(0.5)
    assert torch.equal(model.generate("a red ball", seed=1).video, plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.system.model.state_dict().items())
    other = stirred(load("lumiere", preset="tiny"))
    unet = {name: tensor for name, tensor in style.items() if name.startswith("unet.")}
    other.system.model.load_state_dict(before | unet)
    assert torch.equal(other.generate("a red ball", seed=1).video, full)
    mixed = {name: torch.lerp(before[name], tensor, 0.5) for name, tensor in unet.items()}
    other.system.model.load_state_dict(before | mixed)
    assert torch.equal(other.generate("a red ball", seed=1).video, half)


def test_a_style_may_have_some_layers_alone(model, tmp_path):
    some = ("unet.conv_in.", "unet.up_blocks.2.")
    style = {name: x for name, x in style_file(model, tmp_path / "whole.safetensors").items() if name.startswith(some)}
    files.write_tensors(tmp_path / "style.safetensors", style, {"format": "pt"})
    styled = model.generate("a red ball", seed=1, extra={"style": "style.safetensors"}).video
    before = dict(model.system.model.state_dict())
    other = stirred(load("lumiere", preset="tiny"))
    other.system.model.load_state_dict(before | style)
    assert torch.equal(other.generate("a red ball", seed=1).video, styled)
    files.write_tensors(tmp_path / "odd.safetensors", {**style, "unet.conv_in.bias": torch.zeros(3)}, {"format": "pt"})
    with pytest.raises(BadRequest, match="expected an image model"):
        model.generate("a red ball", extra={"style": "odd.safetensors"})


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ({"style_alpha": 0.5}, "style_alpha needs a style"),
        ({"style": "nowhere.safetensors"}, "there is no file or folder"),
        ({"style": "clip", "style_alpha": 1.5}, "expected a number from 0"),
        ({"stile": "clip"}, "did you mean style"),
    ],
)
def test_options_of_a_style_that_cannot_be_are_refused(model, clip, extra, fault):
    with pytest.raises(BadRequest, match=fault):
        model.generate("a red ball", extra=extra)
    assert not model.system.runtime._other_stages


# ------------------------------------------------------------------------------- super-resolution


def test_base_and_super_resolution_in_windows_that_overlap_by_two(capsys):
    options = ["--model", "lumiere/tiny", "--super-resolution", "lumiere/tiny-sr", "--frames", "20", "--window", "16"]
    assert main(["plan", "a red ball", *options, "--no-measure", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["model"] == "lumiere/tiny then lumiere/tiny-sr"
    assert main(["generate", "a red ball", *options, "--seed", "1", "-o", "a.mp4", "--json-events"]) == 0
    capsys.readouterr()
    assert main(["inspect", "a.mp4", "--json"]) == 0
    recipe = json.loads(capsys.readouterr().out)
    stages = recipe.get("stages") or recipe["recipe"]["stages"]
    base, large = (stage["request"] for stage in stages)
    assert (base["height"], large["height"], large["frames"]) == (16, 32, 20)
    assert (large["window"], large["overlap"], large["window_weights"]) == (8, 2, "flat")
    assert main(["replay", "a.mp4", "-o", "b.mp4"]) == 0


def test_the_small_clip_reaches_every_window():
    upper = stirred(load("lumiere", preset="tiny-sr"))
    request = {"frames": 14, "height": 32, "width": 32, "seed": 1, "steps": 1}
    video = torch.rand(1, 3, 14, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    Clip(video, 8.0).save("small.png")
    one = upper.upscale("small", prompt="a ball", **request).video
    video[:, :, 12] = -video[:, :, 12]
    Clip(video, 8.0).save("other.png")
    two = upper.upscale("other", prompt="a ball", **request).video
    change = (one - two).abs().amax((0, 1, 3, 4))
    assert change[12] > 0
    assert change[:6].max() == 0  # the windows are frames 0 to 7 and 6 to 13: only the second has frame 12


def test_weights_of_windows_that_are_asked_for_are_used():
    Clip(torch.zeros(1, 3, 14, 16, 16), 8.0).save("small.png")
    upper = load("lumiere", preset="tiny-sr")
    settled = [
        settle(upper.system, Request(task="upscale", video="small", prompt="a ball", seed=1, frames=14, **options))
        for options in ({}, {"window_weights": "overlap-linear"})
    ]
    assert [(each.window, each.window_weights) for each in settled] == [(8, "flat"), (8, "overlap-linear")]


def test_a_super_resolution_model_alone_is_refused():
    with pytest.raises(BadRequest, match="this model enlarges clips"):
        load("lumiere", preset="tiny-sr").generate("a red ball")


# ------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("preset", ["tiny", "tiny-sr"])
def test_training_leaves_the_image_model_to_the_bit_and_writes_what_is_new(preset, tmp_path, image_file):
    image, _ = image_file(tmp_path)
    options = {"steps": 2, "batch": 2, "sample_every": 0, "validate_every": 0, "out": str(tmp_path / "run")}
    before = open_system(f"lumiere/{preset}", add={"image": image})
    train(TrainOptions(model=f"lumiere/{preset}", add=f"image={image}", **options))
    after, given = files.read_tensors(tmp_path / "run" / "model.safetensors"), before.model.state_dict()
    new = {name for name in after if is_new(name.removeprefix("unet."))}
    assert after.keys() == given.keys()
    assert all(torch.equal(after[name], given[name]) for name in given.keys() - new)
    assert any(not torch.equal(after[name], given[name]) for name in new)
    alone = files.read_tensors(tmp_path / "run" / "temporal.safetensors")
    assert alone.keys() == new
    add = {"image": image, "temporal": tmp_path / "run" / "temporal.safetensors"}
    put_together, trained = open_system(f"lumiere/{preset}", add=add), open_system(tmp_path / "run")
    assert put_together.config == trained.config
    for name, tensor in put_together.model.state_dict().items():
        assert torch.allclose(tensor.float(), trained.model.state_dict()[name].float(), atol=1e-3), name
    opened = open_system(tmp_path / "run" / "temporal.safetensors", add={"image": image})
    assert opened.config == trained.config
    assert all(torch.equal(x, opened.model.state_dict()[name]) for name, x in put_together.model.state_dict().items())


def test_new_layers_alone_ask_for_their_image_model(tmp_path, image_file):
    image, _ = image_file(tmp_path)
    made = open_system("lumiere/tiny", add={"image": image})
    new = {name: x for name, x in made.model.state_dict().items() if of_new_layer(name)}
    note = json.dumps({"family": "lumiere", "config": made.family.to_json(made.config)})
    files.write_tensors(tmp_path / "mine.safetensors", new, {"kinema": note})
    with pytest.raises(BadRequest, match=r"has temporal layers only: add the image model"):
        load(tmp_path / "mine.safetensors").generate("a red ball")


def test_what_does_not_belong_in_a_slot_is_refused_by_name(tmp_path, image_file):
    image, _ = image_file(tmp_path)
    files.write_tensors(tmp_path / "odd.safetensors", {"a.weight": torch.zeros(3)}, {})
    for slot, file, fault in (
        ("image", tmp_path / "odd.safetensors", "expected an image model"),
        ("temporal", image, "expected temporal layers"),
        ("temporal", tmp_path / "odd.safetensors", "expected temporal layers"),
        ("image.two", image, "there is one image, which takes no name"),
    ):
        with pytest.raises(BadRequest, match=fault):
            open_system("lumiere/tiny", add={slot: file})
    made = load("lumiere", preset="tiny").system.model.unet.state_dict()
    other = {f"unet.{name}": tensor for name, tensor in made.items() if is_new(name)}
    files.write_tensors(tmp_path / "temporal.safetensors", other, {})
    with pytest.raises(BadRequest, match="fits another image model or preset"):
        open_system("lumiere/tiny", add={"image": image, "temporal": tmp_path / "temporal.safetensors"})


def test_an_image_model_with_a_missing_or_another_tensor_is_refused_by_name(tmp_path, image_file):
    """It would stay as it was initialised, without a word."""
    image, _ = image_file(tmp_path)
    tensors, note = files.read_tensors(image), files.metadata(image)
    name = "unet.time_embedding.linear_1.bias"
    files.write_tensors(tmp_path / "less.safetensors", {k: v for k, v in tensors.items() if k != name}, note)
    files.write_tensors(tmp_path / "odd.safetensors", tensors | {name: torch.zeros(3)}, note)
    for file, fault in (
        ("less", f"lacks 1 tensor of its image model .{name}"),
        ("odd", "has other shapes for 1 tensor"),
    ):
        with pytest.raises(BadRequest, match=rf"{file}\.safetensors {fault}"):
            open_system("lumiere/tiny", add={"image": tmp_path / f"{file}.safetensors"})
        with pytest.raises(BadRequest, match=rf"{file}\.safetensors {fault}"):
            load("lumiere", preset="tiny").generate("a ball", extra={"style": str(tmp_path / f"{file}.safetensors")})


def test_layers_over_time_are_not_trained_on_a_random_image_model(tmp_path):
    with pytest.raises(BadRequest, match="no image model to inflate, only random weights; give --add image=FILE"):
        train(TrainOptions(model="lumiere/sd15", out=str(tmp_path / "run"), steps=1))
    assert open_system("lumiere/pocket").config.inflated


def test_a_clip_of_an_included_image_model_replays_as_it_was_written(capsys):
    options = ["--frames", "4", "--steps", "1", "--extra", "style=animatediff-pocket", "--extra", "style-alpha=0.5"]
    assert main(["generate", "a red ball", "--model", "lumiere/pocket", *options, "--seed", "1", "-o", "a.mp4"]) == 0
    assert "no trained weights" not in capsys.readouterr().err
    assert main(["replay", "a.mp4", "-o", "b.mp4"]) == 0
    hashes = []
    for file in ("a.mp4", "b.mp4"):
        capsys.readouterr()
        assert main(["inspect", file, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        hashes.append((found.get("recipe") or found)["frames_hash"])
    assert hashes[0] == hashes[1]


def test_a_style_is_checked_before_anything_is_loaded(model, clip, capsys):
    assert main(["plan", "a ball", "--model", "lumiere/tiny", "--extra", "style=clip", "--no-measure"]) == 2
    assert "clip" in capsys.readouterr().err
    with pytest.raises(BadRequest, match="there is no file or folder ''"):
        model.generate("a ball", extra={"style": ""})


def test_a_vocabulary_is_looked_for_next_to_the_image_model(tmp_path, image_file):
    image, _ = image_file(tmp_path)
    assert open_system("lumiere/tiny", add={"image": image}).weights.place == image
    assert open_system(image).weights.place == image
    assert open_system("lumiere/tiny").weights.place is None


def test_each_preset_trains_with_its_own_settings():
    found = {name: recipe.settings_of(replace(config, inflated=True)) for name, config in presets().items()}
    assert found["sd15"] is found["base-128px"] is recipe.SETTINGS
    assert found["pocket"].steps == found["pocket-keyframes"].steps + found["pocket-between"].steps == 3600
    assert found["pocket-between"].canvas_mix == {"ends": 1.0}
    assert found["pocket-between"].playroom.scene == 33
    assert set(found["pocket-sr"].canvas_mix) == {"nothing"} == set(found["tiny-sr"].canvas_mix)
    assert "first" in found["tiny"].canvas_mix
    with pytest.raises(BadRequest, match="no image model to inflate"):
        recipe.settings_of(presets()["pocket"])


def test_noise_levels_of_training_rise_with_the_frames():
    """T frames are as informative as one at a level lower by ln(T) / 2."""
    schedule, draw = recipe.schedule_of(presets()["pocket"]), torch.Generator()
    means = []
    for frames in (8, 32):
        levels = recipe.clip_levels(replace(presets()["pocket"], frames=frames))
        level = levels(schedule, 4000, draw.manual_seed(0))
        means.append(float((level.sigma / level.alpha).log().median()))
    assert means[1] - means[0] == pytest.approx(0.693, abs=0.02)
    assert means[1] == pytest.approx(2.3, abs=0.05)
