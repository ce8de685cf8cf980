"""The alphas in PEFT's settings, found by the names that layers have in the file."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from kinema.checkpoints.lora_formats import Adapter, Piece, read_lora, write_lora
from kinema.checkpoints.peft import PEFT_NOTE, PeftAlphas
from kinema.schema import BadRequest

QUERY = "unet.block.attn.q"


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


def test_a_pattern_is_the_end_of_a_name_or_a_whole_name():
    found = alphas({"lora_alpha": 8, "alpha_pattern": {"out": 1, "^in": 2, "block.0.out": 3}})
    names = ("out", "block.1.out", "block.0.out", "in", "block.in", "without")
    assert [found.of(name) for name in names] == [1, 1, 3, 2, 8, 8]
    assert found.of("base_model.model.block.0.out") == 3


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
        ({"use_rslora": True}, "rank-stabilised"),
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
