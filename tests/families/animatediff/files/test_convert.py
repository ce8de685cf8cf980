"""``kinema convert`` of image models, motion modules and SparseCtrl to folders that diffusers opens, and back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from kinema.checkpoints import files, stable_diffusion
from kinema.checkpoints.convert import convert
from kinema.conditioning.clip_text import ClipTextSize
from kinema.families.animatediff.config import IMAGE_BETAS, TINY, to_json
from kinema.families.animatediff.control import sparse
from kinema.families.animatediff.control.sparse import SparseCtrl
from kinema.families.animatediff.files import layout, motion_file
from kinema.families.animatediff.model import AnimateDiff
from kinema.families.animatediff.unet import UNet
from kinema.schema import BadRequest
from kinema.system import open_system

SIZE = replace(TINY, channels=(64, 128), heads=(8, 8), motion_heads=8)
IMAGE_OF = {"motion": "none", "frames": 1, "betas": IMAGE_BETAS}
STILL = replace(SIZE, motion_mid=False, text=(replace(SIZE.text[0], vocabulary=64),), **IMAGE_OF)
XL_TEXT = (
    ClipTextSize(width=32, layers=2, heads=2, mlp=64, length=20, vocabulary=64),
    ClipTextSize(width=32, layers=2, heads=2, mlp=64, length=20, vocabulary=64, activation="gelu", projection=24),
)


def motion(positions=True):
    torch.manual_seed(0)
    state = {k: v for k, v in UNet(SIZE).state_dict().items() if ".motion_modules." in k}
    return motion_file.export("official", state, positions=positions)


def there_and_back(tmp_path, tensors, **options):
    first, folder, last = tmp_path / "first.safetensors", tmp_path / "folder", tmp_path / "last.safetensors"
    files.write_tensors(first, tensors)
    convert(first, folder, "diffusers", **options)
    convert(folder, last, "official")
    return folder, files.read_tensors(last)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_motion_module_converts_to_diffusers_and_back(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    tensors = motion()
    folder, again = there_and_back(tmp_path, tensors)
    assert equal(again, tensors)
    adapter = diffusers.MotionAdapter.from_pretrained(folder)
    assert adapter.config.use_motion_mid_block
    native = motion_file.convert(motion_file.recognise(files.header(folder)), files.read_tensors(folder))
    assert equal(adapter.state_dict(), native)


def test_missing_positions_are_written_with_a_note(tmp_path):
    events = []
    _, again = there_and_back(tmp_path, motion(positions=False), on_event=events.append)
    table = again[
        "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"
    ]
    assert table.shape == (1, 32, 128)
    assert any("sinusoids for 32 frames" in str(event) for event in events)


@pytest.mark.parametrize("kind", ["rgb", "scribble"])
def test_sparsectrl_converts_to_diffusers_and_back(tmp_path, kind):
    from diffusers.models import SparseControlNetModel

    torch.manual_seed(0)
    native = SparseCtrl(replace(SIZE, sparse=kind, sparse_positions=32)).state_dict()
    tensors = sparse.export("official", native)
    folder, again = there_and_back(tmp_path, tensors)
    assert equal(again, tensors)
    assert equal(SparseControlNetModel.from_pretrained(folder).state_dict(), native)


def test_an_unknown_layout_raises(tmp_path):
    path = tmp_path / "mm.safetensors"
    files.write_tensors(path, motion())
    with pytest.raises(BadRequest, match="animatediff has no layout 'sgm'"):
        convert(path, tmp_path / "out.safetensors", "sgm")


# ------------------------------------------------------------------------------------- image models


def single_file(config, path, dtype=torch.float16, without=(), spelling=("", "")):
    """Write an image model in a single file as on CivitAI: mixed precision, with training leftovers."""
    torch.manual_seed(0)
    image = layout.ImageFile(config, "vae" not in without, "text" not in without)
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in image.table.foreign.items()}
    tensors |= {name: tensors[name].float() for name in list(tensors)[::7]}
    tensors |= {"model_ema.decay": torch.ones(()), "betas": torch.rand(1000), "alphas_cumprod": torch.rand(1000)}
    tensors = {name.replace(*spelling): tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, {"format": "pt", "modelspec.title": "é"})
    return tensors


TEXT_MODEL = (".transformer.text_model.", ".transformer.")


@pytest.mark.parametrize(("kind", "spelling"), [("sd15", ("", "")), ("sd15", TEXT_MODEL), ("xl", ("", ""))])
def test_a_single_file_converts_to_a_folder_and_back_byte_for_byte(oracle, tmp_path, kind, spelling):
    config = STILL if kind == "sd15" else replace(oracle.tiny_xl, **IMAGE_OF, text=XL_TEXT)
    tensors = single_file(config, tmp_path / "a.safetensors", spelling=spelling)
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "diffusers")
    convert(tmp_path / "folder", tmp_path / "b.safetensors", "official")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    # Both open to the same weights, and diffusers and transformers open every part of the folder.
    first, second = (open_system(tmp_path / name) for name in ("a.safetensors", "folder"))
    assert replace(first.config, spacing=second.config.spacing) == second.config
    native = first.model.state_dict()
    assert equal(native, second.model.state_dict())
    import diffusers
    import transformers

    text = "CLIPTextModelWithProjection" if kind == "xl" else "CLIPTextModel"
    opened = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder_2" if kind == "xl" else "text_encoder": getattr(transformers, text),
    }
    for part, kinds in opened.items():
        reference = {k.removeprefix("text_model."): v for k, v in loaded(kinds, tmp_path / "folder" / part).items()}
        names = {k.removeprefix(f"{part}.") for k in native if k.startswith(f"{part}.")}
        assert reference.keys() == {k.removeprefix("text_model.") for k in names}
        same = {k: native.get(f"{part}.{k}", native.get(f"{part}.text_model.{k}")) for k in reference}
        assert all(torch.equal(same[k].float(), reference[k]) for k in reference)
    assert len(tensors) == len(files.header(tmp_path / "b.safetensors"))


def loaded(kind, folder):
    """Weights that a library loads from a folder, in float32; missing tensors fail."""
    model, info = kind.from_pretrained(folder, output_loading_info=True, torch_dtype=torch.float32)
    assert not info["missing_keys"]
    return model.state_dict()


def test_a_folder_converts_to_a_single_file_and_back_in_half_precision(tmp_path):
    single_file(STILL, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "half", "diffusers", dtype="fp16")
    assert (tmp_path / "half" / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    convert(tmp_path / "half", tmp_path / "b.safetensors", "official")
    assert {dtype for _, dtype in files.header(tmp_path / "b.safetensors").values()} == {torch.float16}
    convert(tmp_path / "b.safetensors", tmp_path / "again", "diffusers")
    for part in ("unet", "vae", "text_encoder"):
        one, two = (files.read_tensors(tmp_path / name / part) for name in ("half", "again"))
        assert equal(one, two)


def test_an_image_model_from_training_converts_to_both_layouts(tmp_path):
    torch.manual_seed(0)
    model = AnimateDiff(STILL)
    for config, name in ((STILL, "image"), (SIZE, "moving")):
        note = json.dumps({"family": "animatediff", "config": to_json(config)})
        files.write_tensors(tmp_path / f"{name}.safetensors", model.state_dict(), {"kinema": note})
    convert(tmp_path / "image.safetensors", tmp_path / "single.safetensors", "official")
    convert(tmp_path / "image.safetensors", tmp_path / "folder", "diffusers")
    for path in ("single.safetensors", "folder"):
        assert equal(open_system(tmp_path / path).model.state_dict(), model.state_dict())
    files.write_tensors(tmp_path / "bad.safetensors", {"x": torch.zeros(1)}, {"kinema": '{"family": "animatediff"}'})
    with pytest.raises(BadRequest, match="is damaged; expected a family and its config"):
        convert(tmp_path / "bad.safetensors", tmp_path / "out", "diffusers")
    with pytest.raises(BadRequest, match="is an image model with add-ons"):
        convert(tmp_path / "moving.safetensors", tmp_path / "out", "diffusers")


def test_files_that_cannot_be_converted_are_named(tmp_path):
    a = tmp_path / "a.safetensors"
    single_file(STILL, a)
    with pytest.raises(BadRequest, match="image models have no layout hotshot; expected official"):
        convert(a, tmp_path / "out", "hotshot")
    single_file(STILL, tmp_path / "pruned.safetensors", without=("vae", "text"))
    with pytest.raises(BadRequest, match="has no VAE and no text encoder, which a diffusers folder"):
        convert(tmp_path / "pruned.safetensors", tmp_path / "out", "diffusers")
    single_file(replace(STILL, in_channels=9), tmp_path / "inpainting.safetensors")
    with pytest.raises(BadRequest, match="this is an inpainting model of Stable Diffusion"):
        convert(tmp_path / "inpainting.safetensors", tmp_path / "out", "diffusers")
    convert(a, tmp_path / "folder", "diffusers")
    with pytest.raises(BadRequest, match="it is a VAE; expected weights of"):
        convert(tmp_path / "folder" / "vae", tmp_path / "out", "diffusers")
    unet = tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors"
    less = files.read_tensors(unet)
    less.popitem()
    files.write_tensors(tmp_path / "less.safetensors", less)
    (tmp_path / "less.safetensors").replace(unet)
    with pytest.raises(BadRequest, match="folder does not match its layout: 1 missing"):
        convert(tmp_path / "folder", tmp_path / "b.safetensors", "official")


def test_a_changed_folder_gets_a_new_header(tmp_path):
    single_file(STILL, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "diffusers")
    vae = tmp_path / "folder" / "vae" / "diffusion_pytorch_model.safetensors"
    halves = {name: tensor.half().clone() for name, tensor in files.read_tensors(vae).items()}
    files.write_tensors(tmp_path / "vae.safetensors", halves)
    (tmp_path / "vae.safetensors").replace(vae)
    convert(tmp_path / "folder", tmp_path / "b.safetensors", "official")
    first, second = (files.header(tmp_path / f"{x}.safetensors") for x in "ab")
    assert first.keys() == second.keys()
    assert {second[name][1] for name in second if name.startswith(stable_diffusion.VAE)} == {torch.float16}
