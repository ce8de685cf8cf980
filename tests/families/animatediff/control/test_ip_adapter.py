"""IP-Adapters and their image encoder: SDXL against diffusers, files of both layouts, and options."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

from kinema.api import load
from kinema.checkpoints import files
from kinema.checkpoints.convert import convert
from kinema.conditioning.clip_vision import ClipVision
from kinema.families.animatediff.config import IMAGE, SDXL_IMAGE, TINY, AdapterSize, VisionSize, from_json, to_json
from kinema.families.animatediff.control import image_prompts
from kinema.families.animatediff.control.ip_adapter import ImagePrompt
from kinema.families.animatediff.files import ip_adapter_file
from kinema.families.animatediff.model import AnimateDiff
from kinema.families.animatediff.unet import UNet
from kinema.schema import BadRequest, Request
from kinema.system import open_system

VISION = VisionSize(width=32, layers=3, heads=16, mlp=64, patch=8, side=32, projection=24)
PLAIN = AdapterSize(kind="plain", embedding=24, tokens=4)
PLUS = AdapterSize(kind="plus", embedding=32, tokens=6, width=48, inner=128, layers=4)
SIZE = replace(TINY, words=("a", "cat"), text=(replace(TINY.text[0], vocabulary=6),))


def header_of(tensors):
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


@pytest.mark.parametrize("size", [PLAIN, PLUS], ids=["plain", "plus"])
def test_sdxl_with_an_adapter_equals_unet_motion_model(oracle, size, adapter_of, nested):
    config = replace(oracle.tiny_xl, norms="diffusers", adapters=(size,))
    network = oracle.randomised(UNet(config))
    reference = oracle.motion_unet(config)
    plain = {k: v for k, v in network.state_dict().items() if "_ip" not in k and "encoder_hid_proj" not in k}
    reference.load_state_dict(plain, strict=True)
    tensors = adapter_of(size, config)
    reference._load_ip_adapter_weights([nested(tensors)])
    reference.eval()
    for processor in reference.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.6]
    converted = ip_adapter_file.convert(ip_adapter_file.recognise(header_of(tensors)), config, 0, tensors)
    network.load_state_dict(converted, strict=False)
    same = {k: v for k, v in reference.state_dict().items() if k in converted}
    assert same.keys() == converted.keys()  # same names as in diffusers
    generator = torch.Generator().manual_seed(2)
    frames, context = 3, torch.randn(1, 7, config.context, generator=generator)
    z, embeddings = torch.randn(1, 4, frames, 8, 8, generator=generator), torch.randn(1, 2, 24, generator=generator)
    if size.kind == "plus":
        embeddings = torch.randn(1, 2, 17, 32, generator=generator)
    pooled, sizes = torch.randn(1, config.pooled, generator=generator), torch.arange(6.0)[None]
    from kinema.nn.embeddings import sinusoidal

    with torch.no_grad():
        expected = reference(
            z,
            torch.tensor(500),
            context.repeat_interleave(frames, 0),
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes, "image_embeds": [embeddings]},
        ).sample
        tokens = network.encoder_hid_proj(0, embeddings[0]).flatten(0, 1)[None]
        added = torch.cat([pooled, sinusoidal(sizes, config.size_embedding).flatten(1)], dim=1)
        inputs = (z, torch.tensor([500.0]), context, added)
        result = network(*inputs, image_prompts=[ImagePrompt(0, tokens, torch.tensor([0.6]))])
        without = network(*inputs)
        per_frame = ImagePrompt(0, tokens.repeat(frames, 1, 1), torch.tensor([0.6] * frames))
        result_per_frame = network(*inputs, image_prompts=[per_frame])
    assert (result - expected).abs().max() <= 1e-5
    assert (result_per_frame - expected).abs().max() <= 1e-5
    assert (without - expected).abs().max() > 1e-3


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_image_encoder_equals_transformers(activation):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    network = ClipVision(**asdict(replace(VISION, activation=activation))).eval()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 24, "num_hidden_layers": 3}
    config = transformers.CLIPVisionConfig(
        **sizes, num_attention_heads=16, image_size=32, patch_size=8, hidden_act=activation
    )
    reference = transformers.CLIPVisionModelWithProjection(config).eval()
    reference.load_state_dict(network.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = reference(pixels, output_hidden_states=True)
        assert (network(pixels) - expected.image_embeds).abs().max() <= 1e-5
        assert (network.patches(pixels) - expected.hidden_states[-2]).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [(96, 64), (31, 200), (64, 64), (500, 333)])
def test_images_are_preprocessed_as_in_transformers(size):
    """Up to 2 of 255 levels in single pixels, as the resizing libraries round differently."""
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    pixels = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    processor = transformers.CLIPImageProcessor(size=32, crop_size=32)
    expected = processor(Image.fromarray(pixels.numpy()), return_tensors="pt").pixel_values
    result = image_prompts.preprocess(pixels.permute(2, 0, 1)[None].float() / 127.5 - 1, 32)
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= 2.1 / 255 / 0.26
    assert (result - expected).abs().mean() <= 0.2 / 255 / 0.26


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("config", "size", "tensors", "parameters"),
    [
        (IMAGE, AdapterSize(), 36, 22_319_616),
        (IMAGE, AdapterSize(kind="plus", embedding=1280, tokens=16), 83, 49_087_488),
        (SDXL_IMAGE, AdapterSize(embedding=1280), 144, 351_285_248),
        (SDXL_IMAGE, AdapterSize(kind="plus", embedding=1280, tokens=16, width=1280, inner=1280), 191, 423_748_864),
    ],
    ids=["1.5", "1.5-plus", "xl", "xl-plus"],
)
def test_published_files_are_recognised_by_keys_and_shapes_in_both_layouts(config, size, tensors, parameters):
    rows = list(ip_adapter_file.rows(config, size, 0))
    foreign = {row.foreign: (row.shape, torch.float16) for row in rows}
    assert len(foreign) == tensors
    # Two bytes each, and a header: ip-adapter_sdxl.safetensors has 702,585,376 bytes, ip-adapter-plus_sdxl 847,517,512.
    assert sum(torch.Size(shape).numel() for shape, _ in foreign.values()) == parameters
    last = 31 if config is IMAGE else 139
    middle = (1280, config.context)
    assert foreign[f"ip_adapter.{last}.to_v_ip.weight"][0] == middle  # the middle block is numbered last
    with torch.device("meta"):
        state = UNet(replace(config, adapters=(size,))).state_dict()
    native = {k: (tuple(v.shape), v.dtype) for k, v in state.items() if "_ip." in k or k.startswith("encoder_hid_proj")}
    for header in (foreign, native):
        adapter = ip_adapter_file.recognise(header)
        assert adapter.into(config, "style").adapters == (replace(size, name="style"),)
        assert ip_adapter_file.base_of(adapter) is config


@pytest.fixture(scope="module")
def saved(oracle, tmp_path_factory, adapter_of, nested):
    folder = tmp_path_factory.mktemp("adapters")
    note = json.dumps({"family": "animatediff", "config": to_json(SIZE)})
    files.write_tensors(
        folder / "tiny.safetensors", oracle.randomised(AnimateDiff(SIZE)).state_dict(), {"kinema": note}
    )
    files.write_tensors(folder / "plain.safetensors", adapter_of(PLAIN, SIZE))
    torch.save(nested(adapter_of(PLUS, SIZE, seed=1)), folder / "plus.bin")
    torch.manual_seed(0)
    ids = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    files.write_tensors(folder / "vision.safetensors", ClipVision(**asdict(VISION)).state_dict() | ids)
    return folder


@pytest.mark.parametrize("file", ["plain.safetensors", "plus.bin"])
def test_files_of_both_layouts_convert_both_ways(saved, tmp_path, monkeypatch, file):
    monkeypatch.setattr(ip_adapter_file, "BASES", (SIZE,))
    native, again = tmp_path / "native.safetensors", tmp_path / "again.safetensors"
    convert(saved / file, native, "diffusers")
    convert(native, again, "official")
    before, after = files.read_tensors(saved / file), files.read_tensors(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    one, other = (open_system(saved / "tiny.safetensors", add={"ip-adapter": path}) for path in (saved / file, native))
    other_state = other.model.state_dict()
    assert all(torch.equal(tensor, other_state[name]) for name, tensor in one.model.state_dict().items())


def test_a_config_with_adapters_survives_json():
    config = replace(SIZE, adapters=(PLAIN, PLUS), vision=VISION)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_wrong_files_are_named(saved, tmp_path):
    tiny = saved / "tiny.safetensors"
    faces = {
        "image_proj.perceiver_resampler.proj_in.weight": "FaceID plus",
        "image_proj.proj.3.weight": "full-face",
        "image_proj.proj.0.weight": "FaceID",
    }
    for name, what in faces.items():
        torch.save({name: torch.zeros(1)}, tmp_path / "face.bin")
        with pytest.raises(BadRequest, match=rf"\({what}\), which is not supported"):
            open_system(tiny, add={"ip-adapter": tmp_path / "face.bin"})
    with pytest.raises(BadRequest, match="is a CLIP image encoder; expected an IP-Adapter"):
        open_system(tiny, add={"ip-adapter": saved / "vision.safetensors"})
    with pytest.raises(BadRequest, match=r"is an IP-Adapter \(--add ip-adapter=FILE\); expected a CLIP image encoder"):
        open_system(tiny, add={"image-encoder": saved / "plain.safetensors"})
    with pytest.raises(BadRequest, match=r"is an IP-Adapter \(--add ip-adapter=FILE\); expected a ControlNet"):
        open_system(tiny, add={"controlnet": saved / "plus.bin"})
    with pytest.raises(BadRequest, match=r"it is an IP-Adapter, an add-on to an image model \(--add ip-adapter=FILE\)"):
        open_system(saved / "plain.safetensors")
    with pytest.raises(BadRequest, match="for another model .* has 16 cross-attentions and prompt width 768"):
        open_system("animatediff/v3", add={"ip-adapter": saved / "plain.safetensors"})
    tensors = files.read_tensors(saved / "plain.safetensors")
    files.write_tensors(
        tmp_path / "less.safetensors", {k: v for k, v in tensors.items() if k != "image_proj.norm.bias"}
    )
    with pytest.raises(BadRequest, match=r"1 missing \(image_proj.norm.bias\)"):
        open_system(tiny, add={"ip-adapter": tmp_path / "less.safetensors"})


@pytest.mark.parametrize("encoder_first", [True, False])
def test_an_encoder_of_another_width_raises_in_either_order(saved, tmp_path, encoder_first):
    wide = ClipVision(**asdict(replace(VISION, projection=40))).state_dict()
    files.write_tensors(tmp_path / "wide.safetensors", wide)
    add = {"ip-adapter": saved / "plain.safetensors", "image-encoder": tmp_path / "wide.safetensors"}
    add = dict(reversed(add.items())) if encoder_first else add
    with pytest.raises(BadRequest, match="needs embeddings of width 24 and the image encoder has 40"):
        open_system(saved / "tiny.safetensors", add=add)


# ----------------------------------------------------------------------------------------- in use


def test_image_prompts_are_scaled_and_interpolated_over_the_frames(saved, tmp_path, image_file):
    add = {"ip-adapter": saved / "plain.safetensors", "image-encoder": saved / "vision.safetensors"}
    model = load(saved / "tiny.safetensors", add=add)
    a, b = image_file(tmp_path / "a.png", 10), image_file(tmp_path / "b.png", 240)
    events = []

    def generate(**extra):
        request = Request(prompt="a cat", frames=3, steps=2, seed=1, extra=extra)
        return model.run(request, on_event=events.append).video

    plain = generate()
    assert any("IP-Adapter ip_adapter has no image" in str(event) for event in events)
    one, other, both = generate(ip_image=a), generate(ip_image=b), generate(ip_image=[a, b])
    for x, y in ((plain, one), (one, other), (one, both)):
        assert not torch.allclose(x, y, atol=1e-5)
    assert torch.allclose(generate(ip_image=a, ip_scale=0), plain, atol=1e-5)
    assert torch.allclose(generate(ip_image={0: a, 2: a}), one, atol=1e-5)
    interpolated = generate(ip_image={0: a, 2: b}, effect=0)
    ends = generate(ip_image=a, effect=0), generate(ip_image=b, effect=0)
    assert torch.allclose(interpolated[:, :, 0], ends[0][:, :, 0], atol=1e-4)
    assert torch.allclose(interpolated[:, :, 2], ends[1][:, :, 2], atol=1e-4)
    assert not torch.allclose(interpolated[:, :, 1], ends[0][:, :, 1], atol=1e-4)
    alone = generate(ip_image=a, ip_scale=[1, 0, 0], effect=0)
    assert torch.allclose(alone[:, :, 0], ends[0][:, :, 0], atol=1e-4)


def test_a_batch_equals_its_single_clips(saved, tmp_path, image_file):
    add = {"ip-adapter": saved / "plain.safetensors", "image-encoder": saved / "vision.safetensors"}
    model = load(saved / "tiny.safetensors", add=add)
    a, b = image_file(tmp_path / "a.png", 10), image_file(tmp_path / "b.png", 240)
    fields = {
        "prompt": "a cat",
        "frames": 3,
        "steps": 2,
        "extra": {"ip_image": {0: a, 2: b}, "ip_scale": [1, 0.5, 0.2]},
    }
    two = model.run(Request(clips=2, seed=1, **fields)).video
    for n in range(2):
        assert torch.allclose(two[n : n + 1], model.run(Request(seed=1 + n, **fields)).video, atol=1e-4)


def test_invalid_options_raise_before_weights_are_loaded(saved, tmp_path, image_file):
    tiny, still = saved / "tiny.safetensors", image_file(tmp_path / "a.png", 10)
    without_encoder = load(tiny, add={"ip-adapter": saved / "plain.safetensors"})
    full = load(tiny, add={"ip-adapter": saved / "plus.bin", "image-encoder": saved / "vision.safetensors"})
    cases = [
        (
            load(tiny),
            {"ip_image": still},
            "ip_image needs IP-Adapter and this model has none; give --add ip-adapter=FILE",
        ),
        (without_encoder, {"ip_image": still}, "ip_image needs CLIP's image encoder; give --add image-encoder=FOLDER"),
        (full, {"ip_image": "none.png"}, "ip_image none.png does not exist"),
        (full, {"ip_image": {9: still}}, "ip_image names frame 9; this clip has frames 0 to 3"),
        (full, {"ip_image": {0: still, 3: [still, still]}}, "expected the same number"),
        (full, {"ip_image": 3}, "ip_image is 3; expected an image"),
        (full, {"ip_image": still, "ip_scale": 11}, "ip_scale is 11; expected a number from 0 to 10"),
        (full, {"affinity": "small"}, "affinity needs PIA and this model has another motion module"),
    ]
    for model, extra, message in cases:
        with pytest.raises(BadRequest, match=message):
            model.generate("a cat", frames=4, extra=extra)
        assert model.system.runtime.model is None
