"""The first file's header, kept in a converted LoRA, restores that file or is not used."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from kinema.checkpoints.convert import NOTE
from kinema.checkpoints.files import read_tensors, write_streamed
from kinema.checkpoints.lora_convert import LoraLayout, is_kohya, is_peft, plan, read, restored, written_as
from kinema.checkpoints.lora_formats import Adapter
from kinema.checkpoints.source import Source

LAYER, STEM = "unet.block.q", "lora_unet_block_q"
KOHYA = LoraLayout("kohya", [LAYER], written_as("kohya"), is_kohya)
DIFFUSERS = LoraLayout("diffusers", [LAYER], written_as("diffusers"), is_peft)
LORA = {LAYER: Adapter(torch.ones(2, 6), torch.ones(8, 2), 3.0)}


def kept(alpha_shape=(), alpha_dtype="F32", absent=""):
    """A header in kohya's layout."""
    table, at = {}, 0
    entries = {
        "lora_down.weight": ((2, 6), "F32"),
        "lora_up.weight": ((8, 2), "F32"),
        "alpha": (alpha_shape, alpha_dtype),
    }
    for name, (shape, dtype) in entries.items():
        size = torch.Size(shape).numel() * {"F32": 4, "F16": 2, "U8": 1}[dtype]
        if name != absent:
            table[f"{STEM}.{name}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at := at + size]}
    return json.dumps(table).encode()


def convert(path, layout, target):
    (file,) = plan(read(Source(path), [LAYER], {}, (KOHYA, DIFFUSERS)), layout, None).files
    write_streamed(target, file.header, file.make, file.metadata, file.text)
    return target


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_an_alpha_of_zero_stays_zero_on_the_way_there_and_back(tmp_path, alpha):
    tensors = {f"{STEM}.lora_down.weight": torch.ones(2, 6), f"{STEM}.lora_up.weight": torch.ones(8, 2)}
    first = tmp_path / "a.safetensors"
    save_file({**tensors, f"{STEM}.alpha": torch.tensor([alpha])}, first)
    back = convert(convert(first, "diffusers", tmp_path / "b.safetensors"), "kohya", tmp_path / "c.safetensors")
    assert float(read_tensors(back)[f"{STEM}.alpha"]) == alpha
    assert back.read_bytes() == first.read_bytes()


def test_a_kept_header_without_alphas_is_not_used_for_an_alpha_of_zero():
    lora = {LAYER: Adapter(torch.ones(2, 6), torch.ones(8, 2), 0.0)}
    assert restored(lora, KOHYA, kept(absent="alpha")) is None


@pytest.mark.parametrize("shape", [(2**14, 2**14, 2**14), (2,), (0,)])
def test_a_kept_header_cannot_ask_for_more_than_one_value_of_alpha(shape, monkeypatch):
    made = []
    monkeypatch.setattr(torch, "full", lambda size, *_, **__: made.append(size))
    assert restored(LORA, KOHYA, kept(shape)) is None
    assert not made


def test_a_kept_header_that_does_not_fit_is_not_used():
    assert set(restored(LORA, KOHYA, kept((1,)))) == {
        f"{STEM}.{e}" for e in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    half = {LAYER: Adapter(torch.ones(2, 6), torch.ones(8, 2), 2.5)}
    assert restored(half, KOHYA, kept(alpha_dtype="U8")) is None
    assert restored({LAYER: Adapter(torch.ones(2, 6), torch.ones(8, 2), 300.0)}, KOHYA, kept(alpha_dtype="U8")) is None
    assert restored(LORA, KOHYA, kept(absent="lora_up.weight")) is None
    assert NOTE == "kinema_original_header"  # files that were written before have it
