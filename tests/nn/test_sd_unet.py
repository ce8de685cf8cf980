"""Building blocks of Stable Diffusion's image U-Net, assembled without motion modules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kinema.families.animatediff.config import TINY, skip_widths
from kinema.families.animatediff.unet import UNet
from kinema.nn import sd_unet
from kinema.nn.embeddings import sinusoidal
from kinema.nn.ldm_unet import Downsample, ResBlock, TimestepEmbedding, Upsample, group_norm, silu_
from kinema.nn.sd_unet import (
    EPS,
    BlockInputs,
    Transformer,
    UNetLevel,
    down_inputs,
    middle_depth,
    run_down,
    run_mid,
    run_up,
    up_inputs,
)

SIZES = replace(
    TINY, motion="none", motion_mid=False, channels=(32, 64, 64), depths=(1, 2, 0), heads=(2, 2, 2), layers=2
)


class Plain(nn.Module):
    """An image U-Net of these building blocks only."""

    def __init__(self) -> None:
        super().__init__()
        c, emb = SIZES.channels, 4 * SIZES.channels[0]
        self.conv_in = nn.Conv2d(SIZES.in_channels, c[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(c[0], emb)
        last = len(c) - 1
        self.down_blocks = nn.ModuleList(
            self.level(n, down_inputs(c, SIZES.layers, n), down=Downsample(c[n]) if n < last else None)
            for n in range(last + 1)
        )
        middle = Transformer(c[-1], SIZES.heads[-1], SIZES.context, middle_depth(SIZES.depths), SIZES.linear)
        self.mid_block = UNetLevel([ResBlock(c[-1], c[-1], emb, EPS) for _ in range(2)], [middle])
        self.up_blocks = nn.ModuleList(
            self.level(n, up_inputs(c, SIZES.layers, n), up=Upsample(c[n]) if n else None)
            for n in reversed(range(last + 1))
        )
        self.conv_norm_out = group_norm(c[0], EPS)
        self.conv_out = nn.Conv2d(c[0], SIZES.latent_channels, 3, padding=1)

    def level(self, n, inputs, **ends):
        out, depth = SIZES.channels[n], SIZES.depths[n]
        resnets = [ResBlock(into, out, 4 * SIZES.channels[0], EPS) for into in inputs]
        sizes = (out, SIZES.heads[n], SIZES.context, depth, SIZES.linear)
        return UNetLevel(resnets, [Transformer(*sizes) for _ in inputs] if depth else [], **ends)

    def forward(self, z_NCHW, step_N, context_NLC):
        inputs = BlockInputs(silu_(self.time_embedding(sinusoidal(step_N, SIZES.channels[0]))), context_NLC)
        x, skips = run_down(self.down_blocks, self.conv_in(z_NCHW), inputs)
        x = run_up(self.up_blocks, run_mid(self.mid_block, x, inputs), skips, inputs)
        assert not skips
        return self.conv_out(silu_(self.conv_norm_out(x)))


def test_the_building_blocks_form_animatediffs_image_model():
    torch.manual_seed(0)
    plain, family = Plain().eval(), UNet(SIZES).eval()
    assert list(plain.state_dict()) == list(family.state_dict())
    plain.load_state_dict(family.state_dict())
    z, step, context = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 900.0]), torch.randn(2, 5, SIZES.context)
    with torch.no_grad():
        assert torch.equal(plain(z, step, context), family(z[:, :, None], step, context)[:, :, 0])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_decoder_inputs_are_the_previous_output_and_the_skips(layers):
    sizes = replace(SIZES, layers=layers, channels=(3, 5, 7, 7))
    skips, into = skip_widths(sizes), sizes.channels[-1]
    for level in reversed(range(4)):
        expected = []
        for _ in range(layers + 1):
            expected.append(into + skips.pop())
            into = sizes.channels[level]
        assert up_inputs(sizes.channels, layers, level) == expected
    assert not skips


def test_encoder_levels_start_with_the_previous_levels_channels():
    assert [down_inputs((3, 5, 7), 2, level) for level in range(3)] == [[3, 3], [3, 5], [5, 7]]
    assert down_inputs((3, 5), 1, 1) == [3]


def test_the_middle_has_the_depth_of_the_coarsest_level_with_attention():
    assert [middle_depth(depths) for depths in ((1, 1, 1, 0), (1, 2, 0), (0, 2, 10), (0, 0))] == [1, 2, 10, 0]


def test_transformer_blocks_get_all_arguments_after_the_context():
    class Recording(sd_unet.TransformerBlock):
        def forward(self, x_NSC, context_RLC, *more):
            self.extra = more
            return super().forward(x_NSC, context_RLC)

    transformer = Transformer(32, 2, 16, 2, True, Recording)
    transformer(torch.randn(1, 32, 4, 4), torch.randn(1, 3, 16), "extra")
    assert [block.extra for block in transformer.transformer_blocks] == [("extra",)] * 2
