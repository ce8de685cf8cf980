"""STDiT2, the transformer of Open-Sora 1.1: sizes, lengths and frame rates of all kinds, and frames that are given.

Letters: B batch, C latent channels, T H W frames, rows and columns (of latents, then of tokens), S = H·W tokens of a
frame, D width, M tokens of a prompt, F features of text, P pairs of a head's features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kinema.families.opensora.mmdit import modulated
from kinema.families.opensora.stdit import layers
from kinema.families.opensora.stdit.config import STDiTConfig
from kinema.families.opensora.stdit.inputs import About, Given
from kinema.families.opensora.stdit.layers import Words
from kinema.families.opensora.stdit.positions import Rotary, Turns, grid_table, time_turns
from kinema.nn.linear import Linear


class Block(nn.Module):
    """Temporal attention has a norm and a modulation of its own, and rotary angles."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.attn = layers.Attention(config)
        self.attn_temp = layers.Attention(config)
        self.cross_attn = layers.CrossAttention(config)
        self.mlp = layers.MLP(config.width, config.hidden, config.width)
        self.scale_shift_table = layers.modulation_table(6, config.width)
        self.scale_shift_table_temporal = layers.modulation_table(3, config.width)

    def forward(self, x_BTSD: Tensor, space_BT6D: Tensor, time_BT3D: Tensor, words: Words, turns: Turns) -> Tensor:
        shift, scale, gate, *mlp = layers.modulation(self.scale_shift_table, space_BT6D)
        x = torch.addcmul(x_BTSD, gate, layers.over_space(self.attn, modulated(x_BTSD, shift, scale)))
        shift, scale, gate = layers.modulation(self.scale_shift_table_temporal, time_BT3D)
        x = torch.addcmul(x, gate, layers.over_time(self.attn_temp, modulated(x, shift, scale), turns))
        x = x + self.cross_attn(x, words)
        shift, scale, gate = mlp
        return torch.addcmul(x, gate, self.mlp(modulated(x, shift, scale)))


class SecondSTDiT(nn.Module):
    """Open-Sora 1.1. Conditioned frames are clean, and are modulated as at time 0."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.x_embedder = layers.PatchEmbedder(config.channels, width)
        self.t_embedder = layers.ScalarEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))
        self.t_block_temp = nn.Sequential(nn.SiLU(), Linear(width, 3 * width))
        self.y_embedder = layers.TextEmbedder(config)
        self.rope = Rotary(config.rotary)
        blocks = [Block(config) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.final_layer = layers.FinalLayer(config)
        self.csize_embedder = layers.ScalarEmbedder(width // 3)
        self.ar_embedder = layers.ScalarEmbedder(width // 3)
        self.fl_embedder = layers.ScalarEmbedder(width)
        self.fps_embedder = layers.ScalarEmbedder(width)
        layers.start(
            self,
            narrow=(self.t_embedder, self.t_block, self.t_block_temp, self.y_embedder),
            zero=(
                *(part.proj for block in blocks for part in (block.attn_temp, block.cross_attn)),
                self.final_layer.linear,
            ),
        )
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))

    def forward(
        self,
        z_BCTHW: Tensor,
        time_B: Tensor,
        text_BMF: Tensor,
        text_mask_BM: Tensor | None = None,
        *,
        about: About,
        generated_BT: Tensor | None = None,
        given: Given | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Noise and variance B×2C×T×H×W at ``time_B`` in [0, 1000); ``generated_BT`` is false at conditioned frames,
        and ``given`` is for 1.3."""
        x_BTHWD = self.x_embedder(z_BCTHW)
        (frames, *_), dtype = x_BTHWD.shape[1:], x_BTHWD.dtype
        grid = (x_BTHWD.shape[2], x_BTHWD.shape[3])
        where_HWD = grid_table(
            grid, self.config.width, about.scale(self.config.side, dtype),
            base=round(math.sqrt(math.prod(grid))), like=x_BTHWD, rounded=True,
        )  # fmt: skip
        x_BTSD = (x_BTHWD + where_HWD).flatten(2, 3)
        size_BD, length_BD = self._about(about, frames, x_BTSD)
        time_B = time_B.to(dtype)
        now_BD, clean_BD = self.t_embedder(time_B), self.t_embedder(torch.zeros_like(time_B))
        space_BT6D, time_BT3D = (
            layers.by_frame(generated_BT, layer(now_BD + about_BD), layer(clean_BD + about_BD)).unflatten(-1, (n, -1))
            for layer, about_BD, n in ((self.t_block, size_BD, 6), (self.t_block_temp, length_BD, 3))
        )
        words, turns = self.y_embedder(text_BMF, text_mask_BM), time_turns(frames, self.rope.freqs)
        for block in self.blocks:
            x_BTSD = block(x_BTSD, space_BT6D, time_BT3D, words, turns)
        # As published: the last layer knows the size of a clip at its conditioned frames alone.
        out = self.final_layer(x_BTSD, now_BD, clean_BD + size_BD, generated_BT)
        return layers.unpatched(out, grid, (z_BCTHW.shape[3], z_BCTHW.shape[4]))

    def _about(self, about: About, frames: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings, B×D (or 1×D), of height, width and their ratio; and of length and frame rate."""
        height, width, ratio, length = like.new_tensor([about.height, about.width, about.height / about.width, frames])
        size = [self.csize_embedder(height), self.csize_embedder(width), self.ar_embedder(ratio)]
        fps_B = about.fps_B.to(like)
        return torch.cat(size, dim=-1)[None], self.fl_embedder(length)[None] + self.fps_embedder(fps_B)
