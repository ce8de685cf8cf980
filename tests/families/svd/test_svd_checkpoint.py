"""Both layouts of SVD's weights: completeness, recognition, strictness, and byte-exact round trips."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from kinema.api import load
from kinema.checkpoints.convert import convert
from kinema.checkpoints.files import header
from kinema.checkpoints.source import Source
from kinema.cli.main import main
from kinema.events import Note
from kinema.families.svd import checkpoint
from kinema.families.svd.checkpoint import from_sgm, recognise, sized, variant
from kinema.families.svd.config import PRESETS, SVD_XT
from kinema.families.svd.family import FAMILY
from kinema.families.svd.layout import SV3D_P, SV3D_U, SVD, SVD_IMAGE_DECODER, Outline, table
from kinema.schema import BadRequest

TINY = Outline(
    widths=(32, 64),
    resnets=1,
    attention=(True, False),
    context=32,
    vector=96,
    vae_widths=(32, 64),
    vae_resnets=1,
    clip_width=32,
    clip_hidden=64,
    clip_layers=2,
    clip_positions=17,
    patch=8,
    embedding=32,
    text_width=16,
    text_length=7,
    vocabulary=50,
)
IMAGE = replace(TINY, decoder="image", post_quant=True)
ORBIT = replace(TINY, kind="sv3d", decoder="image", vector=160)
NAMES = {
    SVD: "svd",
    SVD_IMAGE_DECODER: "svd image decoder",
    SV3D_U: "sv3d-u",
    SV3D_P: "sv3d-p",
    TINY: "tiny",
    IMAGE: "tiny image decoder",
    ORBIT: "tiny sv3d",
}
ENCODER = "the first stage's encoder"
FILES = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "image_encoder/model")


def tensors_of(outline, dtype=torch.float32, without=()):
    random = torch.Generator().manual_seed(0)
    rows = [row for row in table(outline).rows if row.group not in without]
    return {row.foreign: torch.randn(row.shape, generator=random).to(dtype) for row in rows}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A complete synthetic single file and the folder converted from it."""
    folder = tmp_path_factory.mktemp("svd")
    save_file(tensors_of(TINY), folder / "svd.safetensors", {"format": "pt", "author": "someone"})
    convert(folder / "svd.safetensors", folder / "converted", "diffusers")
    return folder


# ------------------------------------------------------------------------------- the full layouts


def test_the_single_file_has_the_published_tensors_and_bytes():
    foreign = table(SVD).foreign
    assert len(foreign) == 2446
    assert 4 * sum(math.prod(shape) for shape in foreign.values()) == 9_559_279_140


@pytest.mark.parametrize(
    ("outline", "part", "tensors", "parameters"),
    [
        (SVD, "unet", 1428, 1_524_623_082),
        (SVD, "vae", 374, 97_742_847),
        (SVD, "image_encoder", 520, 632_076_800),
        (SVD_IMAGE_DECODER, "vae", 248, 83_653_863),
        (SV3D_U, "unet", 1428, 1_523_967_722),
        (SV3D_P, "unet", 1428, 1_525_278_442),
    ],
)
def test_parts_have_the_published_tensor_and_parameter_counts(outline, part, tensors, parameters):
    own = [shape for name, shape in table(outline).native.items() if name.startswith(f"{part}.")]
    assert (len(own), sum(map(math.prod, own))) == (tensors, parameters)


def reference(outline):
    """Names and shapes of the networks that diffusers and transformers build, without weights."""
    from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    configs = checkpoint.folder.configs(outline, 14)
    vae = AutoencoderKLTemporalDecoder if outline.decoder == "temporal" else AutoencoderKL
    with torch.device("meta"):
        parts = {
            "unet": UNetSpatioTemporalConditionModel.from_config(configs["unet/config.json"]),
            "vae": vae.from_config(configs["vae/config.json"]),
            "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**configs["image_encoder/config.json"])),
        }
    return {f"{part}.{n}": tuple(t.shape) for part, m in parts.items() for n, t in m.state_dict().items()}


@pytest.mark.parametrize("outline", [SVD, SVD_IMAGE_DECODER, SV3D_P, TINY, ORBIT], ids=NAMES.get)
def test_folder_names_and_shapes_match_diffusers(outline):
    assert table(outline).native == reference(outline)


@pytest.mark.parametrize("outline", NAMES, ids=NAMES.get)
def test_the_built_network_has_exactly_a_files_tensors(outline):
    with torch.device("meta"):
        model = FAMILY.build(sized(PRESETS[variant(outline)], outline))
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == table(outline).native


def test_known_names_map_as_published():
    known = table(SVD).by_foreign
    unet = "model.diffusion_model."
    for foreign, native in {
        f"{unet}input_blocks.1.0.time_stack.in_layers.2.weight": (
            "unet.down_blocks.0.resnets.0.temporal_res_block.conv1.weight"
        ),
        f"{unet}input_blocks.1.1.time_stack.0.norm1.bias": (
            "unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.bias"
        ),
        f"{unet}label_emb.0.2.weight": "unet.add_embedding.linear_2.weight",
        f"{unet}output_blocks.2.1.conv.weight": "unet.up_blocks.0.upsamplers.0.conv.weight",
        "first_stage_model.decoder.up.3.block.0.mix_factor": (
            "vae.decoder.up_blocks.0.resnets.0.time_mixer.mix_factor"
        ),
        "first_stage_model.decoder.conv_out.time_mix_conv.bias": "vae.decoder.time_conv_out.bias",
        "conditioner.embedders.3.encoder.encoder.mid.attn_1.q.weight": (
            "vae.encoder.mid_block.attentions.0.to_q.weight"
        ),
        "conditioner.embedders.3.encoder.quant_conv.weight": "vae.quant_conv.weight",
    }.items():
        assert known[foreign].native == (native,)
    assert known["first_stage_model.encoder.conv_in.weight"].native == ()


# ------------------------------------------------------------------------------------ recognising


@pytest.mark.parametrize("outline", [SVD, SVD_IMAGE_DECODER, SV3D_U, SV3D_P, TINY, IMAGE, ORBIT], ids=NAMES.get)
def test_sizes_are_read_from_keys_and_shapes(outline):
    file_header = {name: (shape, torch.float16) for name, shape in table(outline).foreign.items()}
    assert recognise(file_header) == outline


def test_models_are_identified_by_sizes_and_name():
    names = {"svd": "svd", "svd_xt": "svd-xt", "svd_xt_1_1": "svd-xt-1.1", "svd_xt_image_decoder": "svd-xt"}
    assert {name: variant(SVD, name) for name in names} == names
    assert (variant(SV3D_U), variant(SV3D_P), variant(SVD, "mysvdxtra")) == ("sv3d-u", "sv3d-p", "svd")
    xt = {"svd_xt.fp16": "svd-xt", "SVD XT": "svd-xt", "svd_xt.1.1": "svd-xt-1.1", "svd-xt-1.1.fp16": "svd-xt-1.1"}
    assert {name: variant(SVD, name) for name in xt} == xt
    assert variant(SVD, "svd_xt_v11") == "svd-xt"


@pytest.mark.parametrize(
    ("outline", "name", "preset"),
    [(SVD, "svd_xt", "svd-xt"), (SV3D_U, "", "sv3d-u"), (SV3D_P, "", "sv3d-p"), (SVD, "", "svd")],
)
def test_the_configuration_of_a_published_file_is_the_preset(outline, name, preset):
    assert sized(PRESETS[variant(outline, name)], outline) == PRESETS[preset]


def test_an_unsupported_network_is_rejected_with_its_differences():
    with pytest.raises(BadRequest, match="in_channels 9, expected 8"):
        sized(PRESETS["svd"], replace(SVD, in_channels=9))


def test_num_frames_of_xt_is_written_to_the_folder(tmp_path):
    save_file(tensors_of(TINY), tmp_path / "svd_xt.safetensors")
    convert(tmp_path / "svd_xt.safetensors", tmp_path / "out", "diffusers")
    assert json.loads((tmp_path / "out/unet/config.json").read_text())["num_frames"] == SVD_XT.frames


# ------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    ("outline", "without"),
    [(TINY, ()), (IMAGE, ()), (ORBIT, (ENCODER,)), (TINY, ("CLIP's text side",)), (TINY, (ENCODER,))],
    ids=["svd", "image decoder", "sv3d", "no text side", "no encoder"],
)
def test_single_file_to_folder_and_back_is_byte_identical(tmp_path, outline, without):
    tensors = tensors_of(outline, torch.float16, without)
    tensors |= {name: tensors[name].float() for name in list(tensors)[::7]}  # a file of mixed precision
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt", "modelspec.title": "é"})
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "diffusers")
    convert(tmp_path / "folder", tmp_path / "b.safetensors", "sgm")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_the_full_layout_round_trips_byte_for_byte(tmp_path):
    """All 2,446 tensors of the published file, with its depth and small widths."""
    narrow = replace(
        SVD,
        widths=(4, 8, 16, 16),
        context=8,
        vector=24,
        vae_widths=(4, 8, 16, 16),
        clip_width=16,
        clip_hidden=16,
        clip_positions=5,
        embedding=8,
        text_width=8,
        text_length=3,
        vocabulary=5,
    )
    assert table(narrow).foreign.keys() == table(SVD).foreign.keys()
    save_file(tensors_of(narrow, torch.float16), tmp_path / "a.safetensors", {"format": "pt"})
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "diffusers")
    convert(tmp_path / "folder", tmp_path / "b.safetensors", "sgm")
    assert len(header(tmp_path / "b.safetensors")) == 2446
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_the_order_of_tensors_in_a_file_round_trips(tmp_path, converted):
    data = load_file(converted / "svd.safetensors")
    table_, blob = {}, b""
    for name in reversed(sorted(data)):
        bytes_ = data[name].numpy().tobytes()
        entry = {"shape": list(data[name].shape), "dtype": "F32", "data_offsets": [len(blob), len(blob) + len(bytes_)]}
        table_[name], blob = entry, blob + bytes_
    text = json.dumps(table_, indent=1).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + blob)
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "diffusers")
    convert(tmp_path / "folder", tmp_path / "b.safetensors", "sgm")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_changed_weights_are_exported_with_the_kept_ones(tmp_path, converted):
    import shutil

    shutil.copytree(converted / "converted", tmp_path / "tuned")
    file = tmp_path / "tuned/unet/diffusion_pytorch_model.safetensors"
    unet = load_file(file)
    save_file(unet | {"conv_in.bias": unet["conv_in.bias"] + 1}, file)
    convert(tmp_path / "tuned", tmp_path / "b.safetensors", "sgm")
    before, after = load_file(converted / "svd.safetensors"), load_file(tmp_path / "b.safetensors")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["model.diffusion_model.input_blocks.0.0.bias"]


def test_exporting_without_the_kept_tensors_reports_what_is_lost(tmp_path, converted):
    import shutil

    shutil.copytree(converted / "converted", tmp_path / "plain", ignore=shutil.ignore_patterns("kinema_extra"))
    events = []
    convert(tmp_path / "plain", tmp_path / "b.safetensors", "sgm", on_event=events.append)
    after = load_file(tmp_path / "b.safetensors")
    messages = [event.message for event in events if isinstance(event, Note)]
    assert any("first stage's encoder" in message and "copied" in message for message in messages)
    assert any("text side" in message and "left out" in message for message in messages)
    image = "conditioner.embedders.3.encoder."
    assert torch.equal(after["first_stage_model.encoder.conv_in.weight"], after[f"{image}encoder.conv_in.weight"])
    kept = [row.foreign for row in table(TINY).rows if row.native]
    before = load_file(converted / "svd.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert recognise(header(tmp_path / "b.safetensors")) is not None


def read_folder(folder, variant=None):
    return Source(folder, variant).tensors(("unet", "vae", "image_encoder"))


def test_values_are_converted_correctly(converted):
    foreign, native = load_file(converted / "svd.safetensors"), read_folder(converted / "converted")
    clip = "conditioner.embedders.0.open_clip.model.visual."
    layer = "image_encoder.vision_model.encoder.layers.1.self_attn"
    packed = foreign[f"{clip}transformer.resblocks.1.attn.in_proj_weight"]
    assert torch.equal(torch.cat([native[f"{layer}.{x}_proj.weight"] for x in "qkv"]), packed)
    assert torch.equal(native["image_encoder.visual_projection.weight"], foreign[f"{clip}proj"].T)
    attention = foreign["first_stage_model.decoder.mid.attn_1.k.weight"]
    assert torch.equal(native["vae.decoder.mid_block.attentions.0.to_k.weight"], attention[:, :, 0, 0])


def test_loading_either_layout_gives_the_same_tensors(converted):
    single = from_sgm(TINY, load_file(converted / "svd.safetensors"))
    folder = read_folder(converted / "converted")
    assert single.keys() == folder.keys()
    assert all(torch.equal(single[name], folder[name]) for name in single)


@pytest.mark.parametrize("outline", [TINY, IMAGE, ORBIT], ids=NAMES.get)
def test_every_kind_of_file_and_its_folder_fill_the_same_network(tmp_path, outline):
    tensors = tensors_of(outline, without=(ENCODER,) if outline is ORBIT else ())
    save_file(tensors, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "diffusers")
    file, folder = (load(tmp_path / name).system for name in ("a.safetensors", "folder"))
    assert (file.config.decoder, file.config.orbit) == (outline.decoder, outline is ORBIT)
    assert replace(folder.config, frames=file.config.frames) == file.config
    one, two = file.model.state_dict(), folder.model.state_dict()
    assert one.keys() == table(outline).native.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_diffusers_opens_the_converted_folder_as_its_pipeline(converted):
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(converted / "converted", local_files_only=True)
    native = read_folder(converted / "converted")
    for part in ("unet", "vae", "image_encoder"):
        held = getattr(pipeline, part).state_dict()
        assert all(torch.equal(held[name], native[f"{part}.{name}"]) for name in held)


def test_a_folder_that_diffusers_saved_converts(tmp_path, converted):
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(converted / "converted", local_files_only=True)
    pipeline.save_pretrained(tmp_path / "saved", variant="fp16")
    convert(tmp_path / "saved", tmp_path / "b.safetensors", "sgm", variant="fp16")
    before, after = load_file(converted / "svd.safetensors"), load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(before[row.foreign], after[row.foreign]) for row in table(TINY).rows if row.native)


def test_fp16_writes_variant_names_and_rounds_once(tmp_path, converted):
    convert(converted / "svd.safetensors", tmp_path / "half", "diffusers", dtype="fp16")
    assert all((tmp_path / f"half/{stem}.fp16.safetensors").is_file() for stem in FILES)
    half, full = read_folder(tmp_path / "half", "fp16"), read_folder(converted / "converted")
    assert all(torch.equal(half[name], full[name].half()) for name in full)
    convert(tmp_path / "half", tmp_path / "half.safetensors", "sgm")
    assert {dtype for _, dtype in header(tmp_path / "half.safetensors").values()} == {torch.float16}


# ---------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.input_blocks.1.0.time_mixer.mix_factor",
        "model.diffusion_model.input_blocks.0.0.weight",
        "conditioner.embedders.0.open_clip.model.logit_scale",
        "conditioner.embedders.3.encoder.post_quant_conv.bias",
        "first_stage_model.encoder.norm_out.bias",
        "first_stage_model.decoder.conv_in.weight",
    ],
)
def test_a_missing_key_is_rejected_and_nothing_is_written(tmp_path, name):
    tensors = tensors_of(TINY)
    tensors.pop(name)
    save_file(tensors, tmp_path / "svd.safetensors")
    with pytest.raises(BadRequest, match=name.replace(".", r"\.")):
        convert(tmp_path / "svd.safetensors", tmp_path / "out", "diffusers")
    assert [p.name for p in tmp_path.iterdir()] == ["svd.safetensors"]


def test_an_unexpected_key_is_rejected_by_name(tmp_path):
    save_file({**tensors_of(TINY), "model.diffusion_model.mystery": torch.ones(2)}, tmp_path / "svd.safetensors")
    with pytest.raises(BadRequest, match=r"1 unexpected \(model\.diffusion_model\.mystery\)"):
        convert(tmp_path / "svd.safetensors", tmp_path / "out", "diffusers")


def test_a_wrong_shape_is_rejected_with_the_expected_one(tmp_path):
    name = "conditioner.embedders.3.encoder.quant_conv.bias"
    save_file({**tensors_of(TINY), name: torch.ones(9)}, tmp_path / "svd.safetensors")
    with pytest.raises(BadRequest, match=rf"{name} is 9, expected 8"):
        convert(tmp_path / "svd.safetensors", tmp_path / "out", "diffusers")


def test_missing_and_unexpected_keys_of_a_folder_are_rejected(tmp_path, converted):
    import shutil

    shutil.copytree(converted / "converted", tmp_path / "folder")
    file = tmp_path / "folder/vae/diffusion_pytorch_model.safetensors"
    vae = load_file(file)
    bias = vae.pop("quant_conv.bias")
    save_file(vae | {"quant_conv.offset": bias}, file)
    with pytest.raises(BadRequest, match=r"1 missing \(vae\.quant_conv\.bias\); 1 unexpected \(vae\.quant_conv\.off"):
        convert(tmp_path / "folder", tmp_path / "b.safetensors", "sgm")


def test_a_truncated_file_is_rejected_and_nothing_is_written(tmp_path, converted):
    whole = (converted / "svd.safetensors").read_bytes()
    (tmp_path / "svd.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadRequest, match="cut short"):
        convert(tmp_path / "svd.safetensors", tmp_path / "out", "diffusers")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"], "this motion module lacks"),
        (
            ["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x"],
            "other.safetensors lacks .*, which Stable Diffusion files have",
        ),
        (["conditioner.embedders.1.model.transformer.resblocks.0.ln_1.bias"], "a Stable Diffusion XL checkpoint"),
        (["model.diffusion_model.input_blocks.1.0.time_stack.x", "model.diffusion_model.x.time_mix_blocks.0.y"], "4D"),
        (["vision_model.post_layernorm.bias"], "a CLIP image encoder"),
        (["double_blocks.0.img_mod.lin.weight"], "Open-Sora"),
        (["something"], "of an unknown kind"),
    ],
)
def test_a_file_of_another_family_is_identified(tmp_path, keys, what):
    save_file({key: torch.ones(1) for key in keys}, tmp_path / "other.safetensors")
    with pytest.raises(BadRequest, match=what):
        convert(tmp_path / "other.safetensors", tmp_path / "out", "diffusers")


def test_a_folder_of_another_pipeline_is_identified(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(BadRequest, match="a folder of the pipeline KandinskyPipeline"):
        convert(tmp_path / "other", tmp_path / "b.safetensors", "sgm")


@pytest.mark.parametrize(
    ("target", "layout", "what"),
    [
        ("out.safetensors", "diffusers", "is not a name for a folder"),
        ("out", "sgm", r"ending in \.safetensors"),
        ("missing/out", "diffusers", "does not exist"),
        ("out", "difusers", "did you mean diffusers"),
        ("out", "kohya", "a checkpoint has no layout kohya"),
    ],
)
def test_an_invalid_target_or_layout_is_rejected(tmp_path, converted, target, layout, what):
    with pytest.raises(BadRequest, match=what):
        convert(converted / "svd.safetensors", tmp_path / target, layout)


def test_an_existing_target_is_kept_without_overwrite(tmp_path, converted):
    (tmp_path / "b.safetensors").write_text("mine")
    with pytest.raises(BadRequest, match="already exists"):
        convert(converted / "converted", tmp_path / "b.safetensors", "sgm")
    assert (tmp_path / "b.safetensors").read_text() == "mine"
    convert(converted / "converted", tmp_path / "b.safetensors", "sgm", overwrite=True)
    assert (tmp_path / "b.safetensors").read_bytes() == (converted / "svd.safetensors").read_bytes()


def test_a_folder_with_other_files_is_never_replaced(tmp_path, converted):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    with pytest.raises(BadRequest, match="folder of other files"):
        convert(converted / "svd.safetensors", tmp_path / "mine", "diffusers", overwrite=True)
    assert (tmp_path / "mine/thesis.txt").read_text() == "years"


def test_the_command_line_converts_both_ways(tmp_path, converted, capsys):
    assert (
        main(["convert", str(converted / "svd.safetensors"), "-o", str(tmp_path / "f"), "--layout", "diffusers"]) == 0
    )
    assert main(["convert", str(tmp_path / "f"), "-o", str(tmp_path / "b.safetensors"), "--layout", "sgm"]) == 0
    assert (tmp_path / "b.safetensors").read_bytes() == (converted / "svd.safetensors").read_bytes()
    assert capsys.readouterr().out.split() == [str(tmp_path / "f"), str(tmp_path / "b.safetensors")]


@pytest.mark.parametrize("words", [[], ["x.safetensors"], ["x.safetensors", "-o", "y"]])
def test_the_command_line_reports_missing_arguments(words, capsys):
    assert main(["convert", *words]) == 2
    assert "kinema convert svd.safetensors -o svd --layout diffusers" in capsys.readouterr().err
