"""Files of the transformers of Open-Sora 1.0 to 1.3: version and sizes from names and shapes, every tensor accounted
for. There are no tolerances: tensors are moved, not computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kinema.checkpoints.files import Header
from kinema.checkpoints.settings import FileFault
from kinema.families.opensora.config import TINY
from kinema.families.opensora.files.stdit_file import recognise
from kinema.families.opensora.mmdit import MMDiT
from kinema.families.opensora.stdit.config import PRESETS, V1_0, V1_1, V1_2, V1_3, STDiTConfig, tiny
from kinema.families.opensora.stdit.network import STDiT, build
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest

Configs = dict[str, STDiTConfig]
VERSIONS = ("1.0", "1.1", "1.2", "1.3")
PUBLISHED_JSON = {
    "architectures": ["STDiT3"],
    "model_type": "STDiT3",
    "in_channels": 16,
    "hidden_size": 1152,
    "num_heads": 16,
    "depth": 28,
    "caption_channels": 4096,
    "model_max_length": 300,
    "pred_sigma": True,
    "qk_norm": True,
    "mlp_ratio": 4.0,
    "input_sq_size": 512,
    "kernel_size": [8, 8, -1],
    "use_spatial_rope": True,
    "enable_flash_attn": True,
    "torch_dtype": "float32",
}


def header_of(config: STDiTConfig, prefix: str = "") -> Header:
    with on_meta():
        state = build(config).state_dict()
    return {prefix + name: (tuple(x.shape), x.dtype) for name, x in state.items()}


def without(header: Header, *names: str) -> Header:
    return {name: entry for name, entry in header.items() if name not in names}


@pytest.mark.parametrize("config", [V1_0, V1_1, V1_2, PRESETS["1.2-3b"], V1_3], ids=lambda c: f"{c.version}-{c.width}")
def test_a_published_file_tells_its_version_and_sizes(config: STDiTConfig) -> None:
    header = header_of(config)
    file = recognise(header)
    assert file is not None
    assert file.config == config
    file.check(header, "it")


def test_a_config_json_may_stand_next_to_it() -> None:
    file = recognise(header_of(V1_3), PUBLISHED_JSON)
    assert file is not None
    assert file.config == V1_3


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_of_other_sizes_tells_them(version: str, configs: Configs) -> None:
    """1.0's number of heads, and windows and steps of positions, are told by config.json alone."""
    config = configs[version]
    given: dict[str, Any] = {"num_heads": 3} if version == "1.0" else {"input_sq_size": 384}
    config = replace(config, space_scale=0.5, time_scale=1.0) if version == "1.0" else replace(config, side=384)
    if version == "1.3":
        given["kernel_size"] = [3, 2, -1]
    file = recognise(header_of(config), given)
    assert file is not None
    assert file.config == config


@pytest.mark.parametrize(
    "change",
    [{"variance": False}, {"qk_norm": False}, {"window": None, "spatial_rope": False}, {"spatial_rope": False}],
)
def test_a_file_of_1_3_with_other_parts_tells_them(change: dict[str, Any]) -> None:
    config = replace(tiny(V1_3), window=(8, 8))
    config = replace(config, **change)
    given: dict[str, Any] = {"num_heads": 4, "use_spatial_rope": config.spatial_rope}
    file = recognise(header_of(config), given)
    assert file is not None
    assert file.config == config


def test_without_norms_the_rotary_rates_of_1_3_tell_a_third_of_a_head() -> None:
    config = replace(tiny(V1_3), window=(8, 8), qk_norm=False)
    file = recognise(header_of(config))
    assert file is not None
    assert file.config == config


def test_the_order_of_norm_and_rotation_can_be_told() -> None:
    file = recognise(header_of(V1_1), {"qk_norm_legacy": False})
    assert file is not None
    assert file.config == replace(V1_1, rotate_first=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_its_tensors_are_those_of_the_network(
    version: str, configs: Configs, fill: Callable[[STDiTConfig], STDiT]
) -> None:
    trained = fill(configs[version]).state_dict()
    tensors: dict[str, Tensor] = dict(trained)
    header = {name: (tuple(x.shape), x.dtype) for name, x in tensors.items()}
    file = recognise(header, {"num_heads": 3})
    assert file is not None
    network = build(configs[version])
    network.load_state_dict(file.to_ours(tensors, "it"))
    assert all(torch.equal(x, trained[name]) for name, x in network.state_dict().items())


@pytest.mark.parametrize("names", [("pos_embed",), ("pos_embed_temporal",), ("pos_embed", "pos_embed_temporal")])
def test_tables_of_positions_may_be_in_a_file_of_1_0(names: tuple[str, ...], configs: Configs) -> None:
    state = build(configs["1.0"]).state_dict()
    tensors = state | {name: torch.zeros(1, 7, 72) for name in names}
    header = {name: (tuple(x.shape), x.dtype) for name, x in tensors.items()}
    file = recognise(header, {"num_heads": 3})
    assert file is not None
    assert file.to_ours(tensors, "it").keys() == state.keys()


def test_other_tables_of_positions_are_named(configs: Configs) -> None:
    for shape in ((7, 72), (1, 7, 71)):
        header = header_of(configs["1.0"]) | {"pos_embed": (shape, torch.float32)}
        file = recognise(header, {"num_heads": 3})
        assert file is not None
        with pytest.raises(BadRequest, match=r"1 with the wrong shape \(pos_embed"):
            file.check(header, "it")
    header = header_of(configs["1.1"]) | {"pos_embed": ((1, 7, 72), torch.float32)}
    file = recognise(header)
    assert file is not None
    with pytest.raises(BadRequest, match=r"1 unexpected \(pos_embed\)"):
        file.check(header, "it")


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("1.0", "blocks.1.attn.proj.bias"),
        ("1.1", "blocks.0.scale_shift_table_temporal"),
        ("1.1", "t_block_temp.1.weight"),
        ("1.2", "temporal_blocks.1.cross_attn.kv_linear.weight"),
        ("1.3", "x_embedder_cond_mask.proj.weight"),
        ("1.3", "x_embedder_cond.proj.bias"),
    ],
)
def test_missing_unexpected_and_misshapen_tensors_are_named(version: str, name: str, configs: Configs) -> None:
    whole = header_of(configs[version])
    given = {"num_heads": 3}
    for header, fault in (
        (without(whole, name), rf"1 missing \({name}\)"),
        (whole | {f"{name}x": ((3,), torch.float32)}, rf"1 unexpected \({name}x\)"),
        (whole | {name: ((3, 1), torch.float32)}, rf"1 with the wrong shape \({name} is 3×1"),
    ):
        file = recognise(header, given)
        assert file is not None
        with pytest.raises(BadRequest, match=fault):
            file.check(header, "it")


def test_a_tensor_that_tells_a_size_must_be_there(configs: Configs) -> None:
    header = header_of(configs["1.2"])
    for name in ("x_embedder.proj.weight", "y_embedder.y_embedding", "final_layer.linear.bias", "rope.freqs"):
        with pytest.raises(FileFault, match=f"lacks {name}, which Open-Sora 1.2 files have"):
            recognise(without(header, name))


@pytest.mark.parametrize(
    ("version", "name", "shape", "fault"),
    [
        ("1.2", "x_embedder.proj.weight", (72, 5, 2, 2, 2), "patches of 2×2×2 latent cells"),
        ("1.2", "x_embedder.proj.weight", (72, 20), "2 axes"),
        ("1.2", "final_layer.linear.bias", (21,), "predicts 21 features of a token with 20; expected 20 or 40"),
        ("1.2", "rope.freqs", (4,), "rotates 8 of the 24 features of a head"),
        ("1.3", "rope.freqs", (5,), "rotates 10 of the 24 features of a head"),
        ("1.2", "spatial_blocks.0.attn.q_norm.weight", (25,), "rotates 24 of the 25 features of a head"),
        ("1.1", "x_embedder.proj.weight", (71, 5, 1, 2, 2), "width of 71, which heads of 24 features do not divide"),
        ("1.0", "x_embedder.proj.weight", (70, 5, 1, 2, 2), "width of 70, which heads of 72 features do not divide"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    version: str, name: str, shape: tuple[int, ...], fault: str, configs: Configs
) -> None:
    with pytest.raises(FileFault, match=fault):
        recognise(header_of(configs[version]) | {name: (shape, torch.float32)})


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"hidden_size": 1872}, "has the hidden_size 1872 in its config; its tensors have 1152"),
        ({"num_heads": 18}, "num_heads"),
        ({"depth": "28"}, "depth"),
        ({"in_channels": 4}, "in_channels"),
        ({"pred_sigma": False}, "pred_sigma"),
        ({"qk_norm": False}, "qk_norm"),
        ({"model_max_length": 200}, "model_max_length"),
        ({"kernel_size": [8, 8, 4]}, r"expected \[rows, columns, -1\]"),
        ({"kernel_size": [8, True, -1]}, r"expected \[rows, columns, -1\]"),
        ({"kernel_size": 8}, r"expected \[rows, columns, -1\]"),
        ({"input_sq_size": "512"}, "expected a positive whole number"),
        ({"input_sq_size": 0}, "expected a positive whole number"),
    ],
)
def test_a_config_json_that_the_tensors_contradict_is_refused(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(FileFault, match=fault):
        recognise(header_of(V1_3), given)


def test_windows_without_their_rotary_rates_are_refused() -> None:
    config = replace(tiny(V1_3), window=None, spatial_rope=False)
    with pytest.raises(FileFault, match="without windows"):
        recognise(header_of(config), {"kernel_size": [8, 8, -1]})


def test_other_files_are_not_recognised() -> None:
    with on_meta():
        other = MMDiT(TINY.transformer).state_dict()
    assert recognise({name: (tuple(x.shape), x.dtype) for name, x in other.items()}) is None
    assert recognise({}) is None
    assert recognise({"blocks.0.attn.qkv.weight": ((3, 1), torch.float32)}) is None
