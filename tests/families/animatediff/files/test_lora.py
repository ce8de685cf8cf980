"""LoRAs of every layout: kohya, diffusers, MotionLoRA, domain adapter; merged with weights and removed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from kinema.api import load
from kinema.checkpoints import files
from kinema.checkpoints.convert import convert
from kinema.checkpoints.lora_formats import Adapter, kohya, read_lora
from kinema.families.animatediff.config import IMAGE, PRESETS, SDXL_IMAGE, TINY
from kinema.families.animatediff.files import lora, motion_file
from kinema.families.animatediff.model import AnimateDiff
from kinema.schema import BadRequest

OFFICIAL = motion_file.KEYS["official"]


@cache
def shapes(config):
    with torch.device("meta"):
        return {n: p.shape for n, p in AnimateDiff(config).named_parameters()}


def layers(config, *ends, inside=""):
    return [
        n.removesuffix(".weight") for n in shapes(config) if inside in n and n.removesuffix(".weight").endswith(ends)
    ]


def pair(shape, rank):
    down, up = torch.randn(rank, *shape[1:]), torch.randn(shape[0], rank, *(1,) * (len(shape) - 2))
    return down, up


SPATIAL = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")


def kohya_file(config, rank=1, alpha=0.5):
    """All layers of kohya's trainer: 192 of the U-Net and 72 of the text encoder."""
    names = layers(config, *SPATIAL, inside="unet.")
    names = [n for n in names if ".attentions." in n]
    names += layers(config, "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", inside="text_encoder.")
    lora = {}
    for name in names:
        part, _, inner = name.partition(".")
        stem = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part] + inner.replace(".", "_")
        down, up = pair(shapes(config)[f"{name}.weight"], rank)
        lora |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(alpha),
        }
    return lora


def processor_file(config, inside, rank=1, rename=lambda name: name):
    """MotionLoRA or domain adapter in the authors' layout of attention processors, without alpha."""
    tensors = {}
    for name in layers(config, "to_q", "to_k", "to_v", "to_out.0", inside=inside):
        if not name.startswith("unet."):
            continue
        down, up = pair(shapes(config)[f"{name}.weight"], rank)
        stem = rename(name.removeprefix("unet.")).removesuffix(".0")
        block, _, which = stem.rpartition(".")
        tensors |= {f"{block}.processor.{which}_lora.{x}.weight": t for x, t in (("down", down), ("up", up))}
    return tensors


def official(name):
    return OFFICIAL.rename_back(f"{name}.weight").removesuffix(".weight")


def read(config, tensors, tmp_path):
    path = tmp_path / f"lora{len(list(tmp_path.iterdir()))}.ckpt"  # files are memory-mapped, so never overwrite one
    torch.save({"state_dict": tensors}, path)
    modules = [n.removesuffix(".weight") for n, s in shapes(config).items() if n.endswith(".weight") and len(s) > 1]
    return read_lora(path, modules, lora.aliases(config))


def test_a_full_kohya_file_of_sd15_is_read_with_alphas(tmp_path):
    tensors = kohya_file(IMAGE)
    assert len(tensors) == 792
    found = read(IMAGE, tensors, tmp_path)
    assert len(found) == 264
    assert {a.scale for a in found.values()} == {0.5}
    proj = found["unet.down_blocks.0.attentions.0.proj_in"]
    assert proj.update(torch.Size([320, 320, 1, 1])).shape == (320, 320, 1, 1)


def test_a_motion_lora_is_read(tmp_path):
    tensors = processor_file(PRESETS["v2"], ".motion_modules.", rename=official)
    name = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor"
    assert f"{name}.to_q_lora.down.weight" in tensors
    assert len(tensors) == 336
    assert 64 * sum(t.numel() for t in tensors.values()) == 19_333_120  # at the rank of the published files
    assert len(read(PRESETS["v2"], tensors, tmp_path)) == 168


def test_the_domain_adapter_is_read(tmp_path):
    tensors = processor_file(IMAGE, ".attentions.")
    assert len(tensors) == 256
    assert 128 * sum(t.numel() for t in tensors.values()) == 25_509_888
    assert len(read(IMAGE, tensors, tmp_path)) == 128


def test_lora_files_of_sdxl_in_ldm_names_are_read(tmp_path):
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    down, up = pair((640, 2048), 4)
    found = read(SDXL_IMAGE, {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path)
    assert list(found) == ["unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"]


def test_feed_forward_layers_of_motion_director_are_read(tmp_path):
    config = PRESETS["v2"]
    at = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    tensors = {}
    for stem, shape in (
        (f"{at}.ff.net.0.processor.proj", (2560, 320)),
        (f"{at}.attention_blocks.0.to_out.processor.0", (320, 320)),
    ):
        down, up = pair(shape, 2)
        tensors |= {f"{stem}_lora.down.weight": down, f"{stem}_lora.up.weight": up}
    inside = "unet.down_blocks.0.motion_modules.0.transformer_blocks.0"
    assert set(read(config, tensors, tmp_path)) == {f"{inside}.ff.net.0.proj", f"{inside}.attn1.to_out.0"}


# -------------------------------------------------------------------------------------- in use

SIZE = replace(TINY, words=("a", "cat"), text=(replace(TINY.text[0], vocabulary=6),))


@pytest.fixture
def tiny(tmp_path):
    """A tiny model in a file, and two LoRA files for it: one of the image model, one of the motion module."""
    import json

    from kinema.families.animatediff.config import to_json

    torch.manual_seed(0)
    note = json.dumps({"family": "animatediff", "config": to_json(SIZE)})
    model = tmp_path / "tiny.safetensors"
    files.write_tensors(model, AnimateDiff(SIZE).state_dict(), {"kinema": note})
    style, pan = tmp_path / "style.safetensors", tmp_path / "pan.ckpt"
    files.write_tensors(style, kohya_file(SIZE, rank=2, alpha=1.0))
    torch.save(processor_file(SIZE, ".motion_modules.", rank=2, rename=official), pan)
    return model, style, pan


def test_several_loras_are_merged_with_weights_and_removed_exactly(tiny):
    path, style, pan = tiny
    plain = {k: v.clone() for k, v in load(path).system.model.state_dict().items()}
    model = load(path, loras={style: 0.8, pan: -0.5})
    spatial = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    words = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    moving = "unet.mid_block.motion_modules.0.transformer_blocks.0.attn2.to_out.0"
    state = model.system.model.state_dict()
    tensors = files.read_tensors(style)
    for name, stem in (
        (spatial, f"lora_unet_{spatial[5:].replace('.', '_')}"),
        (words, f"lora_te_{words[13:].replace('.', '_')}"),
    ):
        delta = 0.8 * 0.5 * tensors[f"{stem}.lora_up.weight"] @ tensors[f"{stem}.lora_down.weight"]
        assert torch.allclose(state[f"{name}.weight"], plain[f"{name}.weight"] + delta, atol=1e-6), name
    tensors = files.read_tensors(pan)
    stem = (
        "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.processor.to_out_lora"
    )
    delta = -0.5 * tensors[f"{stem}.up.weight"] @ tensors[f"{stem}.down.weight"]
    assert torch.allclose(state[f"{moving}.weight"], plain[f"{moving}.weight"] + delta, atol=1e-6)
    model.use_loras({})
    assert all(torch.equal(state[k], plain[k]) for k in plain)


def test_a_lora_of_another_model_is_named(tiny, tmp_path):
    path, _, pan = tiny
    xl = tmp_path / "xl.safetensors"
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    down, up = pair((32, 2048), 2)
    files.write_tensors(xl, {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up})
    with pytest.raises(BadRequest, match="a LoRA of Stable Diffusion XL"):
        load(path, loras={xl: 1.0})
    still = replace(SIZE, motion="none", motion_mid=False)
    import json

    from kinema.families.animatediff.config import to_json

    image = tmp_path / "image.safetensors"
    note = json.dumps({"family": "animatediff", "config": to_json(still)})
    files.write_tensors(image, AnimateDiff(still).state_dict(), {"kinema": note})
    with pytest.raises(BadRequest, match="a LoRA of an AnimateDiff motion module"):
        load(image, loras={pan: 1.0})


def test_loras_convert_to_kohya_names_and_back(tmp_path):
    found = read(SIZE, kohya_file(SIZE, rank=2), tmp_path)
    unet = {name: a for name, a in found.items() if name.startswith("unet.")}
    again = read(SIZE, kohya(unet), tmp_path)
    assert again.keys() == unet.keys()
    assert all(torch.equal(again[n].down, unet[n].down) and again[n].alpha == unet[n].alpha for n in unet)


# ------------------------------------------------------------------------------------ kinema convert


def converted(tmp_path, *layouts):
    """Convert a.safetensors to these layouts in sequence."""
    source = tmp_path / "a.safetensors"
    for layout in layouts:
        target = tmp_path / f"{source.stem}-{layout}.safetensors"
        convert(source, target, layout)
        source = target
    return source


def ldm_file():
    """A LoRA of SDXL: ldm names, numbered text encoders, an alpha of another dtype."""
    tensors = {}
    for stem, shape in (
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", (640, 2048)),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", (3072, 768)),
        ("lora_te2_text_model_encoder_layers_31_mlp_fc1", (5120, 1280)),
    ):
        down, up = (x.half() for x in pair(shape, 2))
        tensors |= {f"{stem}.alpha": torch.tensor(1.5), f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    return tensors


def some_of(tensors, stems):
    """Select layers of a large file by parts of their names."""
    return {name: tensor for name, tensor in tensors.items() if any(stem in name for stem in stems)}


@pytest.mark.parametrize("kind", ["kohya", "ldm", "motion", "adapter"])
def test_a_lora_converts_between_layouts_and_back_byte_for_byte(tmp_path, kind):
    plain = {"modelspec.title": "é", "ss_network_alpha": "0.5"}
    path = tmp_path / "a.safetensors"
    if kind in ("kohya", "ldm"):
        tensors = (
            ldm_file() if kind == "ldm" else some_of(kohya_file(IMAGE), ("down_blocks_0_attentions_0", "layers_3_"))
        )
        save_file(tensors, path, plain)
        ways = [("diffusers", "kohya")]
    else:
        config, inside, rename = (PRESETS["v2"], ".motion_modules.", official) if kind == "motion" else (
            IMAGE, ".attentions.", lambda name: name
        )  # fmt: skip
        save_file(some_of(processor_file(config, inside, rename=rename), ("mid_block",)), path, plain)
        ways = [("diffusers", "official"), ("kohya", "diffusers", "official")]
    for way in ways:
        assert converted(tmp_path, *way).read_bytes() == path.read_bytes()
    # Every intermediate file is the same LoRA.
    base = PRESETS["sdxl"] if kind == "ldm" else PRESETS["v2"]
    modules = [n.removesuffix(".weight") for n, s in shapes(base).items() if n.endswith(".weight") and len(s) > 1]
    first, *others = (read_lora(file, modules, lora.aliases(base)) for file in sorted(tmp_path.iterdir()))
    for other in others:
        assert other.keys() == first.keys()
        assert all(torch.equal(other[n].up, a.up) and other[n].scale == a.scale for n, a in first.items())


def test_the_authors_layout_folds_alphas_and_has_only_attention(tmp_path):
    save_file(some_of(kohya_file(IMAGE), ("attn1_to_q",)), tmp_path / "a.safetensors")
    events = []
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "official", on_event=events.append)
    assert any("up weights were multiplied by alpha / rank" in str(event) for event in events)
    first, second = files.read_tensors(tmp_path / "a.safetensors"), files.read_tensors(tmp_path / "b.safetensors")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1"
    up = first[f"lora_unet_{name.replace('.', '_')}_to_q.lora_up.weight"]
    assert torch.equal(second[f"{name}.processor.to_q_lora.up.weight"], 0.5 * up)
    # Converted back, up stays scaled and the alphas are 1.
    again = files.read_tensors(converted(tmp_path, "official", "kohya"))
    assert {float(t) for k, t in again.items() if k.endswith(".alpha")} == {1.0}
    save_file(some_of(kohya_file(IMAGE), ("layers_0_mlp",)), tmp_path / "words.safetensors")
    with pytest.raises(BadRequest, match="only attention layers of the U-Net and this LoRA has 2 other layers"):
        convert(tmp_path / "words.safetensors", tmp_path / "c.safetensors", "official")


def test_a_changed_or_cast_lora_gets_a_new_header(tmp_path):
    save_file(some_of(kohya_file(IMAGE, rank=2), ("attn1_to_q",)), tmp_path / "a.safetensors", {"by": "me"})
    converted_file = converted(tmp_path, "diffusers")
    metadata = files.metadata(converted_file)
    files.write_tensors(
        tmp_path / "half.safetensors", {k: t.half() for k, t in files.read_tensors(converted_file).items()}, metadata
    )
    convert(tmp_path / "half.safetensors", tmp_path / "b.safetensors", "kohya")
    header = files.header(tmp_path / "b.safetensors")
    assert header.keys() == files.header(tmp_path / "a.safetensors").keys()
    assert {dtype for _, dtype in header.values()} == {torch.float16}
    convert(converted_file, tmp_path / "c.safetensors", "kohya", dtype="fp16")
    assert {dtype for _, dtype in files.header(tmp_path / "c.safetensors").values()} == {torch.float16}
    for layout in ("sgm", "hotshot"):
        with pytest.raises(BadRequest, match=f"layout .*{layout}"):
            convert(converted_file, tmp_path / "d.safetensors", layout)


def test_loras_of_other_families_or_with_unknown_tensors_are_named(tmp_path):
    down, up = pair((8, 8), 2)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    wide = {f"{name}.lora_down.weight": torch.ones(2, 768), f"{name}.lora_up.weight": torch.ones(320, 2)}
    save_file(wide | {f"{name}.lora_x": torch.ones(1)}, tmp_path / "more.safetensors")
    with pytest.raises(BadRequest, match=r"a LoRA of Stable Diffusion 1.5: 1 of its tensors fit no layer .*lora_x"):
        convert(tmp_path / "more.safetensors", tmp_path / "out.safetensors", "diffusers")
    save_file(wide | {f"{name}.dora_scale": torch.ones(320, 1)}, tmp_path / "dora.safetensors")
    with pytest.raises(BadRequest, match=r"has a DoRA over a LoRA at unet.down_blocks.0.*; only LoRAs of up and down"):
        convert(tmp_path / "dora.safetensors", tmp_path / "out.safetensors", "diffusers")
    flux = {
        "transformer.double_blocks.0.attn.lora_A.weight": down,
        "transformer.double_blocks.0.attn.lora_B.weight": up,
    }
    save_file(flux, tmp_path / "flux.safetensors")
    with pytest.raises(BadRequest, match="is a LoRA of Flux"):
        convert(tmp_path / "flux.safetensors", tmp_path / "out.safetensors", "diffusers")


def test_text_encoders_of_sdxl_are_numbered_in_kohya_names():
    """SDXL trainers write lora_te1_ and lora_te2_; lora_te_ is for models with one text encoder."""
    down, up = pair((8, 8), 2)
    both = {f"{part}.x": Adapter(down, up) for part in ("text_encoder", "text_encoder_2")}
    assert {name.split("_x.")[0] for name in kohya(both)} == {"lora_te1", "lora_te2"}
    assert {name.split("_x.")[0] for name in kohya({"text_encoder.x": Adapter(down, up)})} == {"lora_te"}
