"""The alphas in PEFT's settings, found by the names that layers have in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kinema.checkpoints.lora_formats import Adapter, Merged, Piece, read_lora, write_lora
from kinema.checkpoints.lora_use import read_loras
from kinema.checkpoints.peft import PEFT_NOTE, PeftAlphas
from kinema.schema import BadRequest

QUERY = "unet.block.attn.q"
RECORDED = Path(__file__).parent / "recorded"


def alphas(settings):
    return PeftAlphas(settings, "a.safetensors", "its metadata")


def pair(stem):
    return {f"{stem}.lora_A.weight": torch.ones(2, 6), f"{stem}.lora_B.weight": torch.ones(8, 2)}


@pytest.mark.parametrize("alias", [QUERY, (Piece(QUERY, rows=(0, 8)),)])
@pytest.mark.parametrize("prefix", ["unet.", "", "base_model.model."])
def test_patterns_name_layers_as_the_file_does_whatever_they_are_natively(tmp_path, alias, prefix):
    """By an alias or a part of one, with the prefixes of every tool."""
    part = "" if prefix == "base_model.model." else "unet."
    note = {f"{part}lora_alpha": 8, f"{part}alpha_pattern": {"blocks.0.to_q": 1}}
    save_file(pair(f"{prefix}blocks.0.to_q"), tmp_path / "a.safetensors", {PEFT_NOTE: json.dumps(note)})
    names = {"blocks.0.to_q": alias, "unet.blocks.0.to_q": alias}
    assert read_lora(tmp_path / "a.safetensors", [QUERY], names)[QUERY].scale == 1 / 2


def test_a_pattern_is_the_end_of_a_name_or_a_whole_name_and_the_first_counts():
    """As in PEFT's get_pattern_key: run on tests/checkpoints/recorded/peft-unet, whose patterns overlap."""
    patterns = {"block.0.out": 3, "out": 1, "^in": 2, "mid.*.q": 4, "k\\.0$": 5}
    expected = {"out": 1, "block.1.out": 1, "block.0.out": 3, "in": 2, "block.in": 8, "without": 8}
    expected |= {"mid.a.b.q": 4, "x.mid.q": 4, "mid.k": 8, "k.0": 5, "xk.0": 8, "xout": 8}
    found = alphas({"lora_alpha": 8, "alpha_pattern": patterns})
    assert {name: found.of(name) for name in expected} == expected
    assert found.of("base_model.model.block.0.out") == 3
    assert alphas({"alpha_pattern": {"out": 1, "block.0.out": 3}}).of("block.0.out") == 1


@pytest.mark.parametrize("pattern", ["(a+)+$", "a|b", "[ab]", "a{9}", ".*" * 5, "a" * 300, "\\d", "a b"])
def test_a_pattern_that_could_stall_is_refused(pattern):
    with pytest.raises(BadRequest, match=r"has the pattern .* in its metadata; expected names of layers"):
        alphas({"alpha_pattern": {pattern: 1}})
    with pytest.raises(BadRequest, match=r"has the pattern"):
        alphas({"rank_pattern": {pattern: 1}})


def test_a_rank_stabilised_scale_is_alpha_over_the_root_of_the_rank(tmp_path):
    note = {"unet.lora_alpha": 6, "unet.use_rslora": True}
    save_file(pair("unet.block.attn.q"), tmp_path / "a.safetensors", {PEFT_NOTE: json.dumps(note)})
    assert read_lora(tmp_path / "a.safetensors", [QUERY])[QUERY].scale == pytest.approx(6 / 2**0.5, rel=1e-12)
    own = {"unet.block.attn.q.alpha": torch.tensor(1.0)}  # an alpha in the file is that of the usual scale
    save_file(pair("unet.block.attn.q") | own, tmp_path / "b.safetensors", {PEFT_NOTE: json.dumps(note)})
    assert read_lora(tmp_path / "b.safetensors", [QUERY])[QUERY].scale == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"init_lora_weights": "pissa_niter_4"},
            "was initialised by 'pissa_niter_4' .*, which changes the model's own",
        ),
        ({"init_lora_weights": "olora"}, "'olora'"),
        ({"init_lora_weights": "lora_ga"}, "'lora_ga'"),
        ({"use_qalora": True}, "has use_qalora True in adapter_config.json, a variant of LoRA that is not supported"),
        ({"layer_replication": [[0, 4]]}, "has layer_replication"),
        ({"alora_invocation_tokens": [3]}, "has alora_invocation_tokens"),
        ({"use_dora": True}, "state a DoRA, but unet.block.attn.q has no magnitudes"),
        ({"r": "x"}, "has the rank 'x' in adapter_config.json; expected a number"),
        ({"rank_pattern": {"q": -3}}, "has the rank -3 in adapter_config.json; expected at least 1"),
    ],
)
def test_settings_whose_effect_is_not_in_the_file_are_refused(tmp_path, settings, message):
    save_file(pair("base_model.model.block.attn.q"), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "init_lora_weights": True} | settings))
    with pytest.raises(BadRequest, match=message):
        read_lora(tmp_path, [QUERY])


def test_the_rank_in_the_settings_is_hashed_where_the_scale_needs_it(tmp_path):
    """Full matrices of a LoKr have no rank of their own; the hashes of all other LoRAs stay as recorded."""

    def hashes(tensors):
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        found = []
        for rank in (2, 4):
            (tmp_path / "adapter_config.json").write_text(json.dumps({"alpha": 2, "r": rank}))
            shapes = {f"{QUERY}.weight": torch.Size((8, 6))}
            (file,) = read_loras({tmp_path: 1.0}, shapes, {}, "a model")
            found.append((file.hash, float(file.lora[QUERY].delta("weight", torch.zeros(8, 6)).abs().max())))
        return found

    (first, one), (second, other) = hashes({f"{QUERY}.lokr_w1": torch.ones(2, 2), f"{QUERY}.lokr_w2": torch.ones(4, 3)})
    assert (one, other) == (1.0, 0.5)
    assert first != second
    (first, _), (second, _) = hashes(pair(QUERY))
    assert first == second


def test_settings_belong_to_the_file_that_their_folder_is_read_as(tmp_path):
    """The only weight file, whatever its name, or adapter_model among others."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8}))
    save_file(pair("base_model.model.block.attn.q"), tmp_path / "a.safetensors")

    def scale(name):
        return read_lora(tmp_path / name, [QUERY])[QUERY].scale

    def notes(name):
        shapes = {f"{QUERY}.weight": torch.Size((8, 6))}
        return read_loras({tmp_path / name: 1.0}, shapes, {}, "a model")[0].notes

    assert scale("a.safetensors") == scale(".") == 4
    assert not notes("a.safetensors")
    save_file(pair("base_model.model.block.attn.q"), tmp_path / "adapter_model.safetensors")
    assert scale("adapter_model.safetensors") == 4
    assert scale("a.safetensors") == 1
    (note,) = notes("a.safetensors")
    assert note.startswith("a.safetensors has no alphas, and the adapter_config.json next to it is not used")


class Unet(torch.nn.Module):
    def __init__(self):
        from diffusers import UNet2DConditionModel

        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )


@pytest.mark.parametrize("name", ["peft-unet", "peft-unet/adapter_model.safetensors"])
def test_a_folder_of_peft_adds_to_a_unet_what_peft_adds(name):
    """Rank-stabilised, with patterns that overlap; recorded by tools/record_lora_kinds.py with PEFT 0.21.2."""
    model, expected = Unet(), load_file(RECORDED / "peft-unet.safetensors")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    folder = RECORDED / name
    (file,) = read_loras({folder: 1.0}, {n: p.shape for n, p in before.items()}, {}, "a model")
    assert {module.removeprefix("unet.") for module in file.lora} == expected.keys()
    merged = Merged(model)
    merged.set([(file.lora, 1.0)])
    for module, difference in expected.items():
        n = f"unet.{module}.weight"
        torch.testing.assert_close(
            file.lora[f"unet.{module}"].delta("weight", before[n]), difference, atol=1e-6, rtol=0
        )
        torch.testing.assert_close(model.get_parameter(n), before[n] + difference, atol=1e-6, rtol=0)
    merged.clear()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_each_component_has_its_own_alphas():
    found = alphas({"unet.lora_alpha": 8, "text_encoder.lora_alpha": 4})
    names = ("unet.block.q", "block.q", "text_encoder.block.q", "text_encoder_2.block.q")
    assert [found.of(name) for name in names] == [8, 8, 4, None]


def test_a_written_pattern_changes_no_layer_whose_name_ends_in_it(tmp_path):
    """Flux's final layer is ``proj_out``, and its single blocks have a ``proj_out`` too."""
    wanted = {"unet.blocks.0.proj_out": 2.0, "unet.blocks.1.proj_out": 2.0, "unet.proj_out": 5.0}
    lora = {name: Adapter(torch.ones(2, 6), torch.ones(8, 2), alpha) for name, alpha in wanted.items()}
    write_lora(tmp_path / "a.safetensors", lora, "diffusers")
    found = read_lora(tmp_path / "a.safetensors", wanted)
    assert {name: adapter.alpha for name, adapter in found.items()} == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_alpha": "nan"}, "a.safetensors has the alpha 'nan' in its metadata; expected a number"),
        ({"alpha_pattern": {"q": True}}, "has the alpha True in its metadata"),
        ({"lora_alpha": None}, "has the alpha None in its metadata"),
        ({"alpha_pattern": [1]}, "damaged PEFT settings in its metadata; expected names and values"),
        ([1], "damaged PEFT settings in its metadata"),
    ],
)
def test_settings_that_are_not_those_of_a_plain_lora_are_refused(settings, message):
    with pytest.raises(BadRequest, match=message):
        alphas(settings)


def test_damaged_settings_next_to_the_weights_are_refused_in_one_sentence(tmp_path):
    save_file(pair("base_model.model.block.attn.q"), tmp_path / "adapter_model.safetensors")
    config = tmp_path / "adapter_config.json"
    cases = {
        b'{"lora_alpha": ': "adapter_config.json is damaged: it is not JSON",
        b'{"lora_alpha": NaN}': "NaN is not a number",
        b'{"lora_alpha": 1e999}': "adapter_config.json",
        b"[8]": "adapter_config.json is not a JSON object",
        b"\xff\xfe\xfa": "adapter_config.json is not UTF-8 text",
        b" " * (16 * 2**20 + 1): r"adapter_config.json is 16,777,217 bytes long; at most 16,777,216 are read",
        b'{"lora_alpha": {}}': r"has the alpha {} in adapter_config.json; expected a number",
    }
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        for data, message in cases.items():
            config.write_bytes(data)
            with pytest.raises(BadRequest, match=message) as caught:
                read_lora(path, [QUERY])
            assert "\n" not in str(caught.value)
    config.unlink()
    config.symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadRequest, match="cannot be read: No such file"):
        read_lora(tmp_path, [QUERY])
