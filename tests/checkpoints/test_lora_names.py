"""The spellings of training tools, as the table on AnimateDiff's page lists them, find their layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from kinema import registry
from kinema.checkpoints.lora_formats import Alias, layers_of, match_keys
from kinema.checkpoints.lora_names import bundled, bundled_note, is_lora, split, unsupported
from kinema.nn.meta import on_meta

PAGE = Path(__file__).resolve().parents[2] / "src/kinema/families/animatediff/README.md"
MODELS = {
    "SD 1.5": ("animatediff", "v3"),
    "SDXL": ("animatediff", "sdxl"),
    "SVD": ("svd", "svd-xt"),
    "Open-Sora 2.0": ("opensora", "v2"),
}
ROWS = re.findall(
    r"^\| ([^|`]+) \| `([^`]+)` \| `([^`]+)` \| [^|]+ \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
)


@cache
def layers(model: str) -> tuple[list[str], Mapping[str, Alias]]:
    name, preset = MODELS[model]
    family = registry.family(name)
    config = family.presets[preset]
    with on_meta():
        shapes = {name: p.shape for name, p in family.build(config).named_parameters()}
    return layers_of(shapes), family.checkpoints.lora_aliases(config)


def test_the_table_has_the_spellings_of_every_model():
    assert len(ROWS) >= 50
    assert {model for model, *_ in ROWS} == set(MODELS)
    assert len({key for _, key, _ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("model", "key", "layer"), ROWS)
def test_a_spelling_finds_its_layer_and_identifies_a_lora(model, key, layer):
    modules, aliases = layers(model)
    found, unknown = match_keys([key], modules, aliases)
    assert not unknown
    ((name, role),) = found.values()
    assert name == layer
    assert role == split(key)[1]
    alone = {"alpha", "rescale", "a1", "diff_b"}  # not enough without their siblings
    assert is_lora([key]) or role in alone


@pytest.mark.parametrize("model", MODELS)
def test_no_two_layers_share_a_name_with_underscores(model):
    modules, aliases = layers(model)
    pairs = [(name, name) for name in modules]
    pairs += [(name, name if isinstance(alias, tuple) else alias) for name, alias in aliases.items()]
    known: dict[str, set[str]] = {}
    for name, layer in pairs:
        for flat in {name.replace(".", "_"), name.removeprefix("unet.").replace(".", "_")}:
            known.setdefault(flat, set()).add(layer.removeprefix("transformer."))
    double = {flat: found for flat, found in known.items() if len(found) > 1}
    assert not double


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("unet.a.oft_R.weight", "an OFT that rotates a layer's input"),
        ("base_model.model.a.oft_r", "an OFT that rotates a layer's input"),
        ("lora_unet_a.oft_diag", "an OFT of early LyCORIS versions"),
        ("base_model.model.a.boft_R", "a BOFT of PEFT"),
        ("base_model.model.a.ia3_l", "an (IA)³ of PEFT"),
        ("base_model.model.a.vera_lambda_b", "a VeRA"),
        ("base_model.model.a.hra_u", "an HRA"),
        ("base_model.model.a.lora_embedding_A", "a LoRA of token embeddings"),
        ("base_model.model.a.fourierft_spectrum", "a LoRA of Fourier"),
        ("diffusion_model.a.set_weight", "a replacement of whole weights"),
        ("diffusion_model.a.reshape_weight", "a change of a layer's size"),
        ("lora_unet_a.q_layer.weight", "a T-LoRA"),
        ("unet:0:up", "a LoRA of cloneofsimo's first tools"),
    ],
)
def test_kinds_that_are_not_supported_have_names(key, kind):
    assert is_lora([key])
    assert unsupported(["x", key]).startswith(kind)
    assert key in unsupported([key])


def test_files_of_other_kinds_are_no_loras():
    names = [
        "model.diffusion_model.out.2.weight",
        "a.alpha",
        "b.rescale",
        "c.diff_b",
        "net.a1.weight",
        "text_model.x.bias",
    ]
    assert not is_lora(names)
    assert not any(is_lora([name]) for name in names)
    assert not is_lora([])


def test_bundled_embeddings_are_named():
    names = [
        "bundle_emb.mascot.string_to_param.*",
        "bundle_emb.mascot.clip_l",
        "bundle_emb.style.clip_g",
        "a.alpha",
    ]
    assert bundled(names) == ["mascot", "style"]
    assert bundled_note(names, "a") == (
        "a also contains 2 embeddings (mascot, style), which only prompts can use: ignored"
    )
    assert not bundled_note(names[-1:], "a")


def test_a_role_is_found_by_the_whole_ending():
    endings = {
        ".lora_A.weight": "down", ".lora_A": "down", ".lora_A.a-b_1.weight": "down", ".lora_B.bias": "up_bias",
        "_lora.up.weight": "up", ".lora.up.weight": "up", ".lora_magnitude_vector.default": "magnitude",
        ".lora_magnitude_vector.default.weight": "magnitude", ".weight": "weight", ".bias": "",
        ".lora_A.a.b.weight": "weight", ".hada_w1_a": "hada_w1_a", ".lokr_w2": "lokr_w2", ".b_norm": "b_norm",
    }  # fmt: skip
    assert {end: split(f"block{end}")[1] for end in endings} == endings
    assert split("a.to_q_lora.up.weight")[0] == "a.to_q"
