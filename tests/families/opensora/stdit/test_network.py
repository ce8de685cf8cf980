"""What holds for the transformers of Open-Sora 1.0 to 1.3 without their code: counts, closed forms, options.

Counts are those of the published files (facts §4 and §7); differences are exact unless a test says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.families.opensora.stdit import layers
from kinema.families.opensora.stdit.config import PRESETS, V1_0, V1_1, V1_2, V1_3, STDiTConfig, tiny
from kinema.families.opensora.stdit.inputs import About, Given
from kinema.families.opensora.stdit.network import STDiT, blocks, build
from kinema.families.opensora.stdit.positions import grid_table, window_turns
from kinema.families.opensora.stdit.windows import over_windows
from kinema.nn.meta import on_meta

Fill = Callable[[STDiTConfig], STDiT]
Configs = dict[str, STDiTConfig]
VERSIONS = ("1.0", "1.1", "1.2", "1.3")
LATER = VERSIONS[1:]
TOLD = About(torch.tensor([24.0, 8.0]), 56, 72)
TIME = torch.tensor([700.0, 45.0])


def latents(seed: int = 0, frames: int = 4) -> Tensor:
    return torch.randn(2, 5, frames, 7, 9, generator=torch.Generator().manual_seed(seed))


def states(seed: int = 1) -> Tensor:
    return torch.randn(2, 11, 20, generator=torch.Generator().manual_seed(seed))


MASK = torch.arange(11) < torch.tensor([[3], [8]])
HELD = torch.tensor([[False, True, True, True], [True, False, True, False]])


@torch.no_grad()
def run(network: STDiT, **more: Any) -> Tensor:
    inputs = {"z": latents(), "time": TIME, "text": states(), "mask": MASK, "about": TOLD, **more}
    positional = [inputs.pop(name) for name in ("z", "time", "text", "mask")]
    return network(*positional, **inputs)


# ------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [(V1_0, 759_620_768, 550 - 2), (V1_1, 767_452_100, 707), (V1_2, 1_207_643_972, 973), (V1_3, 1_207_959_692, 977)],
)
def test_published_sizes(config: STDiTConfig, parameters: int, tensors: int) -> None:
    with on_meta():
        network = build(config)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (V1_0, ["blocks.27.attn_temp.qkv.weight", "y_embedder.y_embedding", "t_block.1.weight"]),
        (V1_1, ["blocks.0.scale_shift_table_temporal", "t_block_temp.1.bias", "csize_embedder.mlp.2.weight"]),
        (V1_2, ["spatial_blocks.0.attn.qkv.weight", "temporal_blocks.0.cross_attn.kv_linear.weight", "rope.freqs"]),
        (V1_3, ["x_embedder_cond.proj.weight", "x_embedder_cond_mask.proj.bias", "temporal_blocks.27.mlp.fc1.bias"]),
    ],
)
def test_names_are_the_published_ones(config: STDiTConfig, names: list[str]) -> None:
    with on_meta():
        state = build(config).state_dict()
    assert set(names) <= set(state)
    if "rope.freqs" in state:
        assert len(state["rope.freqs"]) == (12 if config is V1_3 else 36)
    if config is V1_3:
        assert len(state["final_layer.linear.weight"]) == 128


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_tiny_one_that_runs(name: str) -> None:
    config = tiny(PRESETS[name])
    out = build(config)(
        torch.randn(1, config.channels, 3, 4, 5),
        torch.tensor([9.0]),
        torch.randn(1, 2, 32),
        about=About(TIME[:1], 32, 40),
    )
    assert out.shape == (1, 2 * config.channels, 3, 4, 5)


@pytest.mark.parametrize(
    ("version", "change", "what"),
    [
        ("1.2", {"heads": 5}, "heads"),
        ("1.1", {"width": 80, "heads": 2}, "three embeddings"),
        ("1.3", {"width": 96}, "three even axes"),
        ("1.3", {"window": None}, "window"),
        ("1.2", {"window": (8, 8)}, "1.2 does not have"),
        ("1.0", {"rotate_first": True}, "1.0 does not have"),
        ("1.0", {"norm_twice": False}, "1.0 does not have"),
        ("1.1", {"space_scale": 0.5}, "1.1 does not have"),
    ],
)
def test_sizes_and_settings_that_do_not_fit_are_refused(
    version: str, change: dict[str, Any], what: str, configs: Configs
) -> None:
    with pytest.raises(ValueError, match=what):
        replace(configs[version], **change)


@pytest.mark.parametrize("version", VERSIONS)
def test_blocks_are_all_and_run_in_this_order(version: str, configs: Configs, fill: Fill) -> None:
    network, seen = fill(configs[version]), []
    hooks = [b.register_forward_pre_hook(lambda block, _: seen.append(block)) for b in blocks(network)]
    run(network)
    for hook in hooks:
        hook.remove()
    assert seen == list(blocks(network))
    assert len(seen) == (2 if version < "1.2" else 4)


# -------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("version", VERSIONS)
def test_padded_text_has_no_effect(version: str, configs: Configs, fill: Fill) -> None:
    network = fill(configs[version])
    other = torch.where(MASK[..., None], states(), 100 * states(5))
    frames = HELD.logical_not()
    more = {"given": Given(latents(3) * frames[:, None, :, None, None], frames)}
    assert torch.equal(run(network, text=other, **more), run(network, **more))
    assert not torch.equal(run(network, text=100 * states(5)), run(network))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_clip_alone_equals_itself_in_a_batch_of_other_prompts(version: str, configs: Configs, fill: Fill) -> None:
    """To 1e-5: products of other sizes round otherwise."""
    network, whole = fill(configs[version]), run(fill(configs[version]))
    for i, count in enumerate((3, 8)):
        alone = run(
            network,
            z=latents()[i : i + 1],
            time=TIME[i : i + 1],
            text=states()[i : i + 1, :count],
            mask=None,
            about=TOLD._replace(fps_B=TOLD.fps_B[i : i + 1]),
        )
        assert (alone - whole[i : i + 1]).abs().max() < 1e-5 * whole.abs().max()


def test_null_text_is_its_first_rows(configs: Configs, fill: Fill) -> None:
    embedder = fill(configs["1.2"]).y_embedder
    null = embedder.null(2, 4)
    assert null.shape == (2, 4, 20)
    assert torch.equal(null[1], embedder.y_embedding[:4])


def test_a_clip_that_is_all_given_does_not_read_the_prompt_but_its_length(configs: Configs, fill: Fill) -> None:
    network, everything = fill(configs["1.3"]), torch.ones(2, 4, dtype=torch.bool)
    more = {"given": Given(latents(3), everything)}
    assert torch.equal(run(network, text=states(9), **more), run(network, **more))
    assert not torch.equal(run(network, mask=MASK.flip(0), **more), run(network, **more))


# ------------------------------------------------------------------------------- conditioned frames


@pytest.mark.parametrize("version", LATER)
def test_frames_that_are_all_generated_are_those_of_a_clip_without_mask(
    version: str, configs: Configs, fill: Fill
) -> None:
    network = fill(configs[version])
    assert torch.equal(run(network, generated_BT=torch.ones(2, 4, dtype=torch.bool)), run(network))


@pytest.mark.parametrize("version", LATER)
def test_as_published_a_clip_that_is_all_conditioned_is_not_one_at_time_0(
    version: str, configs: Configs, fill: Fill
) -> None:
    held, clean = {"generated_BT": torch.zeros(2, 4, dtype=torch.bool)}, {"time": torch.zeros(2)}
    network = fill(configs[version])
    assert (run(network, **held) - run(network, **clean)).abs().max() > 0.1


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_normed_once_it_is(version: str, configs: Configs, fill: Fill) -> None:
    network = fill(replace(configs[version], norm_twice=False))
    held, clean = {"generated_BT": torch.zeros(2, 4, dtype=torch.bool)}, {"time": torch.zeros(2)}
    assert torch.equal(run(network, **held), run(network, **clean))


@pytest.mark.parametrize("version", LATER)
def test_normed_once_conditioned_frames_alone_change(version: str, configs: Configs, fill: Fill) -> None:
    published, once = (
        run(fill(replace(configs[version], norm_twice=twice)), generated_BT=HELD).transpose(1, 2)
        for twice in (True, False)
    )
    assert torch.equal(published[HELD], once[HELD])
    assert (published[~HELD] - once[~HELD]).flatten(1).abs().amax(1).min() > 0.1


def test_the_rotary_order_matters_by_the_norms_weights_alone(configs: Configs) -> None:
    """To 1e-5: turning keeps the norm of a head, so without weights both orders are the same."""
    config = configs["1.1"]
    torch.manual_seed(0)
    network = build(config)
    for block in network.blocks:
        nn.init.normal_(block.attn_temp.proj.weight, std=0.15)
    nn.init.normal_(network.final_layer.linear.weight, std=0.15)
    corrected = build(replace(config, rotate_first=False))
    corrected.load_state_dict(network.state_dict())
    assert (run(network) - run(corrected)).abs().max() < 1e-5
    with torch.no_grad():
        for each in (network, corrected):
            for block in each.blocks:
                block.attn_temp.q_norm.weight.copy_(torch.linspace(0.2, 3, config.head))
    assert (run(network) - run(corrected)).abs().max() > 1e-3


# ------------------------------------------------------------------------------------ fresh networks


def test_fresh_temporal_blocks_of_1_2_are_the_identity_and_frames_do_not_meet(configs: Configs) -> None:
    torch.manual_seed(0)
    network = build(configs["1.2"]).eval()
    passed: list[bool] = []
    for block in network.temporal_blocks:
        block.register_forward_hook(lambda _, x, y: passed.append(torch.equal(x[0], y)))
    whole = run(network)
    assert passed == [True, True]
    changed = latents()
    changed[:, :, 1] = latents(8)[:, :, 1]
    others = [0, 2, 3]
    assert torch.equal(run(network, z=changed)[:, :, others], whole[:, :, others])
    assert not torch.equal(run(network, z=changed)[:, :, 1], whole[:, :, 1])


def test_fresh_conditioning_of_1_3_has_no_effect_on_latents(configs: Configs) -> None:
    network = build(configs["1.3"]).eval()
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    assert torch.equal(run(network, given=Given(latents(3), nothing)), run(network))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_fresh_network_of_1_0_and_1_1_predicts_nothing(version: str, configs: Configs) -> None:
    assert run(build(configs[version])).count_nonzero() == 0


# ----------------------------------------------------------------------------------- sizes of clips


@pytest.mark.parametrize("version", VERSIONS)
def test_an_odd_side_is_padded_with_zeros_at_its_end_and_cropped(version: str, configs: Configs, fill: Fill) -> None:
    network = fill(configs[version])
    padded = F.pad(latents(), (0, 1, 0, 1))
    assert torch.equal(run(network, z=padded)[..., :7, :9], run(network))


def test_windows_at_the_edges_are_padded_windows_without_their_padding(configs: Configs, fill: Fill) -> None:
    """To 1e-6: the original pads and masks, here in plain products over the whole clip."""
    attention = fill(configs["1.3"]).temporal_blocks[0].attn
    frames, rows, columns, window = 3, 4, 5, (3, 2)
    x = torch.randn(2, frames, rows * columns, 72, generator=torch.Generator().manual_seed(0))
    rates = fill(configs["1.3"]).rope.freqs
    turns = window_turns((frames, rows, columns), window, 0.4, rates)
    with torch.no_grad():
        ours = over_windows(attention, x, turns, (rows, columns), window)
        q, k, v = (y.flatten(1, 2).transpose(1, 2) for y in attention.queries_keys_values(x, turns))
        y, x_ = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        home = ((y // 3) * 10 + x_ // 2).flatten().repeat(frames)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=home[:, None] == home)
        plain = attention.proj(out.transpose(1, 2).flatten(2)).view(x.shape)
    assert (ours - plain).abs().max() < 1e-6 * max(1.0, float(plain.abs().max()))


def test_rows_and_columns_count_from_the_start_of_their_window_and_frames_from_that_of_the_clip(
    configs: Configs, fill: Fill
) -> None:
    """No matter for attention, which sees differences alone, but for how angles are rounded in half precision."""
    turns = window_turns((2, 4, 5), (3, 2), 0.4, fill(configs["1.3"]).rope.freqs)
    cos = turns.cos.unflatten(1, (4, 5))
    assert torch.equal(cos[1, 3, 4], cos[1, 0, 0])
    assert torch.equal(cos[1, 1, 3], cos[1, 1, 1])
    assert not torch.equal(cos[1, 0, 0], cos[0, 0, 0])


def test_a_window_beyond_the_clip_is_the_clip(configs: Configs, fill: Fill) -> None:
    config = configs["1.3"]
    assert torch.equal(run(fill(replace(config, window=(8, 8)))), run(fill(replace(config, window=(4, 5)))))


def test_columns_come_before_rows_and_are_stretched_to_the_base() -> None:
    """Of width 8, a half has sin and cos at the rates 1 and 1/100."""
    table = grid_table((2, 3), 8, 0.5, base=6, like=torch.zeros(1))
    column, row = 2 * (6 / 3) / 0.5, 1 * (6 / 2) / 0.5
    expected = [f(at * rate) for at in (column, row) for f in (math.sin, math.cos) for rate in (1, 0.01)]
    assert torch.allclose(table[1, 2], torch.tensor(expected), atol=1e-6)


def test_the_scale_of_positions_comes_from_sizes_in_the_precision_of_weights() -> None:
    told = About(TIME, 427, 713)
    assert told.scale(512, torch.float32) == math.sqrt(427 * 713) / 512
    assert told.scale(512, torch.bfloat16) == math.sqrt(428 * 712) / 512


# -------------------------------------------------------------------------------------------- calls


def test_inputs_that_a_version_does_not_have_are_not_looked_at(configs: Configs, fill: Fill) -> None:
    extra = {"given": Given(latents(3), HELD)}
    for version in ("1.0", "1.1", "1.2"):
        assert not configs[version].takes_given
        assert torch.equal(run(fill(configs[version]), **extra), run(fill(configs[version])))
    assert configs["1.3"].takes_given
    first = fill(configs["1.0"])
    assert not configs["1.0"].holds_frames
    assert torch.equal(run(first, generated_BT=HELD, about=None), run(first))


@pytest.mark.parametrize("version", VERSIONS)
def test_gradients_flow_and_do_not_change_the_result(version: str, configs: Configs, fill: Fill) -> None:
    """To 1e-5: without gradients some steps are in place."""
    network = fill(configs[version])
    more: dict[str, Any] = {"about": TOLD, "generated_BT": HELD, "given": Given(latents(3), ~HELD)}
    out = network(latents(), TIME, states(), MASK, **more)
    assert (out.detach() - run(network, **more)).abs().max() < 1e-5 * out.detach().abs().max()
    out.square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in network.parameters() if p.requires_grad)
    network.zero_grad()


@pytest.mark.parametrize("version", VERSIONS)
def test_it_runs_without_values(version: str) -> None:
    """On the meta device, where memory is planned."""
    config = tiny(PRESETS[version])
    with on_meta():
        network = build(config)
    z, text = torch.empty(2, config.channels, 3, 5, 6, device="meta"), torch.empty(2, 7, 32, device="meta")
    told = About(torch.empty(2, device="meta"), 40, 48)
    with torch.no_grad():
        out = network(z, torch.empty(2, device="meta"), text, torch.empty(2, 7, device="meta").bool(), about=told)
    assert out.shape == (2, 2 * config.channels, 3, 5, 6)


def test_attention_to_prompts_of_one_length_equals_that_of_each(configs: Configs, fill: Fill) -> None:
    cross = fill(configs["1.2"]).spatial_blocks[0].cross_attn
    x, words = torch.randn(2, 3, 4, 72), torch.randn(10, 72)
    with torch.no_grad():
        both = cross(x, layers.Words(words, (5, 5)))
        each = [cross(x[i : i + 1], layers.Words(words[5 * i : 5 * i + 5], (5,))) for i in (0, 1)]
    assert (both - torch.cat(each)).abs().max() < 1e-5
