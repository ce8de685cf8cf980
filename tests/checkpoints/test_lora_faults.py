"""LoRA files of strangers: damaged, mixed and misfitting ones get one sentence, before any weight changes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kinema.checkpoints.lora_formats import read_plain
from kinema.checkpoints.lora_use import LoraFile, read_loras
from kinema.schema import BadRequest

LAYER = "unet.block.q"
SHAPES = {
    f"{LAYER}.weight": torch.Size((8, 6)),
    f"{LAYER}.bias": torch.Size((8,)),
    "unet.block.k.weight": torch.Size((8, 6)),
    "unet.block.conv.weight": torch.Size((8, 6, 3, 3)),
    "unet.block.conv.bias": torch.Size((8,)),
    "unet.block.norm.weight": torch.Size((8,)),
    "unet.block.norm.bias": torch.Size((8,)),
}


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


def of(layer: str = "block_q", **parts: Tensor) -> dict[str, Tensor]:
    """Tensors of one layer; "lora_down__weight" stands for "lora_down.weight"."""
    return {f"lora_unet_{layer}.{name.replace('__', '.')}": tensor for name, tensor in parts.items()}


def lora(layer: str = "block_q", **parts: Tensor) -> dict[str, Tensor]:
    return of(layer, lora_down__weight=ones(2, 6), lora_up__weight=ones(8, 2), **parts)


LOHA = {"hada_w1_a": ones(8, 2), "hada_w1_b": ones(2, 6), "hada_w2_a": ones(8, 2), "hada_w2_b": ones(2, 6)}


def opened(tmp_path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> LoraFile:
    save_file(dict(tensors), tmp_path / "a.safetensors", metadata)
    (file,) = read_loras({tmp_path / "a.safetensors": 1.0}, SHAPES, {}, "a model")
    return file


FAULTS = {
    "two kinds": (lora(**LOHA), "has parts of a LoRA and of a LoHa at unet.block.q; expected one kind"),
    "whole layer": (lora(weight=ones(8, 6)), r"has parts of a LoRA and of a \(IA\)³"),
    "trained layer": (
        lora() | of("block_k", weight=ones(8, 6)),
        "has a whole weight, not a difference, at",
    ),
    "alpha alone": (lora() | of("block_k", alpha=ones(1)), "an incomplete LoRA at unet.block.k: its down matrix"),
    "magnitudes alone": (of(dora_scale=ones(8, 1)), "an incomplete LoRA at unet.block.q: its down matrix"),
    "loha part": (of(hada_w1_a=ones(8, 2)), "an incomplete LoHa at .*: its hada_w1_b is missing"),
    "loha ranks": (of(**LOHA | {"hada_w2_b": ones(3, 6)}), "mismatched ranks at .*: down is 3×6, up is 8×2"),
    "loha sizes": (of(**LOHA | {"hada_w2_b": ones(2, 5)}), "the first product is 8×6, the second 8×5"),
    "loha core": (of(**LOHA | {"hada_w1_a": ones(2, 8)}, hada_t1=ones(2, 2, 3, 3)), "its hada_t2 is missing"),
    "loha size": (of(**LOHA | {"hada_w1_a": ones(9, 2), "hada_w2_a": ones(9, 2)}), "it is 9×6 at .*; expected 8×6"),
    "loha vectors": (of(**LOHA | {"hada_w1_a": ones(8)}), "hada_w1_a is 8, hada_w1_b is 2×6"),
    "tucker core": (lora(lora_mid__weight=ones(3, 2, 3, 3)), "down is 2×6, up is 8×2, their core 3×2×3×3"),
    "tucker size": (
        of(
            "block_conv",
            lora_down__weight=ones(2, 6, 1, 1),
            lora_up__weight=ones(8, 2, 1, 1),
            lora_mid__weight=ones(2, 2, 1, 1),
        ),
        "it is 8×6 at unet.block.conv; expected 8×6×3×3",
    ),
    "lokr part": (of(lokr_w1=ones(2, 2)), "an incomplete LoKr at .*: its lokr_w2_a is missing"),
    "lokr size": (of(lokr_w1=ones(2, 2), lokr_w2=ones(4, 4)), "it is 8×8 at .*; expected 8×6"),
    "lokr vector": (of(lokr_w1=ones(2), lokr_w2=ones(4, 3)), "has a lokr_w1 of 2 at .*; expected a matrix"),
    "lokr alpha": (of(lokr_w1=ones(2, 2), lokr_w2=ones(4, 3), alpha=torch.tensor(float("nan"))), "an alpha of nan"),
    "lokr huge": (of(lokr_w1=ones(2000, 2000), lokr_w2=ones(2000, 2000)), "it is 4000000×4000000 at"),
    "lokr empty": (of(lokr_w1=ones(2, 0), lokr_w2=ones(4, 3)), r"an empty tensor \(lokr_w1\) at"),
    "rows of dora": (lora(dora_scale=ones(7, 1)), "it is 7 magnitudes at .*; expected 8×6"),
    "columns of dora": (lora(dora_scale=ones(1, 8)), "it is 8 magnitudes at .*; expected 8×6"),
    "dora of an oft": (of(oft_blocks=ones(2, 4, 4), dora_scale=ones(8, 1)), r"magnitudes \(DoRA\) over an OFT"),
    "oft blocks": (of(oft_blocks=ones(2, 4, 3)), "has OFT blocks of 2×4×3 at .*; expected square blocks"),
    "oft axes": (of(oft_blocks=ones(4, 4)), "has OFT blocks of 4×4 at"),
    "oft rows": (of(oft_blocks=ones(3, 4, 4)), "it is 12 rows at .*; expected 8×6"),
    "oft scales": (of(oft_blocks=ones(2, 4, 4), rescale=ones(7)), "has 7 scales for 8 rows"),
    "boft stages": (of(oft_blocks=ones(9, 2, 4, 4)), "has OFT blocks of 9×2×4×4"),
    "boft odd": (of(oft_blocks=ones(1, 8, 1, 1)), "has OFT blocks of 1×8×1×1"),
    "glora": (
        of(
            **{
                f"{n}__weight": t
                for n, t in (("a1", ones(5, 2)), ("a2", ones(2, 5)), ("b1", ones(8, 2)), ("b2", ones(2, 6)))
            }
        ),
        "it is 5×5 at .*; expected 8×6",
    ),
    "ia3 columns": (of(on_input=torch.tensor(1), weight=ones(5)), "it is 5 columns at .*; expected 8×6"),
    "ia3 rows": (of(on_input=torch.tensor(0), weight=ones(5)), "it is 5 rows at .*; expected 8×6"),
    "ia3 sides": (of(on_input=torch.tensor([0, 1]), weight=ones(8)), "an on_input of 2 values"),
    "full size": (of(diff=ones(6, 8)), "it is 6×8 at .*; expected 8×6"),
    "bias size": (of(diff_b=ones(9), diff=ones(8, 6)), "it is 9 at unet.block.q; expected 8"),
    "bias matrix": (of(diff_b=ones(8, 1), diff=ones(8, 6)), "has a bias of 8×1"),
    "no bias": (of("block_k", diff_b=ones(8), diff=ones(8, 6)), "changes the bias of unet.block.k, which has none"),
    "norm size": (of("block_norm", w_norm=ones(7)), "it is 7 at unet.block.norm; expected 8"),
    "lora of a norm": (lora("block_norm"), "it is 8×6 at unet.block.norm; expected 8"),
    "integers": (of(diff=torch.ones(8, 6, dtype=torch.int32)), "has torch.int32 weights at"),
    "twice": (lora() | {"unet.block.q.lora_A.weight": ones(2, 6)}, r"1 of its tensors fit no layer .*q.lora_A.weight"),
    "unknown": (lora() | of("block_z", lora_down__weight=ones(2, 6)), r"1 of its tensors fit no layer of this model"),
    "unsupported": (
        {"unet.block.q.oft_R.weight": ones(2, 6), "unet.block.k.oft_R.weight": ones(2, 6)},
        r"is a LoRA: 2 tensors of it are an OFT that rotates a layer's input .*oft_R.weight\), not supported",
    ),
    "only embeddings": ({"bundle_emb.mascot.clip_l": ones(1, 6)}, "is not a LoRA"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_gets_one_sentence(tmp_path: Path, fault: str) -> None:
    tensors, message = FAULTS[fault]
    with pytest.raises(BadRequest, match=message) as caught:
        opened(tmp_path, tensors)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_every_kind_refuses_an_alpha_that_is_no_number(tmp_path: Path, alpha: float) -> None:
    kinds = (
        lora(),
        of(**LOHA),
        of(lokr_w1=ones(2, 2), lokr_w2_a=ones(4, 1), lokr_w2_b=ones(1, 3)),
        of(oft_blocks=ones(2, 4, 4)),
    )
    for number, tensors in enumerate(kinds):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(BadRequest, match=f"has an alpha of {alpha} at"):
            opened(tmp_path / str(number), tensors | of(alpha=torch.tensor(alpha)))


def test_a_million_keys_are_refused_by_the_header(tmp_path: Path) -> None:
    table = {f"lora_unet_{i}.alpha": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}
    text = json.dumps(table, separators=(",", ":")).encode()
    (tmp_path / "many.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(BadRequest, match="lists 100,001 tensors; expected at most 100,000"):
        read_loras({tmp_path / "many.safetensors": 1.0}, SHAPES, {}, "a model")


def test_embeddings_in_the_file_are_left_out_and_noted(tmp_path: Path) -> None:
    file = opened(tmp_path, lora() | {"bundle_emb.mascot.clip_l": ones(1, 6)})
    assert list(file.lora) == [LAYER]
    assert file.notes == ("a.safetensors also contains 1 embedding (mascot), which only prompts can use: ignored",)


def test_only_plain_loras_have_other_layouts(tmp_path: Path) -> None:
    save_file(of(**LOHA), tmp_path / "a.safetensors")
    with pytest.raises(BadRequest, match="a LoHa at unet.block.q; only LoRAs of up and down matrices are conv"):
        read_plain(tmp_path / "a.safetensors", [LAYER])
