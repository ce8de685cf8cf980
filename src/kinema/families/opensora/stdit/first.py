"""STDiT, the transformer of Open-Sora 1.0: each block attends over space, then over time, then to the text.

Letters: B batch, C latent channels, T H W frames, rows and columns (of latents, then of tokens), S = H·W tokens of a
frame, D width, M tokens of a prompt, F features of text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinema.families.opensora.mmdit import modulated
from kinema.families.opensora.stdit import layers
from kinema.families.opensora.stdit.config import STDiTConfig
from kinema.families.opensora.stdit.inputs import About, Given
from kinema.families.opensora.stdit.layers import Words
from kinema.families.opensora.stdit.positions import grid_table, waves
from kinema.nn.linear import Linear


class Block(nn.Module):
    """Temporal attention reads the clip as it is, neither normed nor modulated, and shares the gate of the spatial."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.attn = layers.Attention(config)
        self.attn_temp = layers.Attention(config)
        self.cross_attn = layers.CrossAttention(config)
        self.mlp = layers.MLP(config.width, config.hidden, config.width)
        self.scale_shift_table = layers.modulation_table(6, config.width)

    def forward(self, x_BTSD: Tensor, time_BT6D: Tensor, words: Words, when_TD: Tensor | None) -> Tensor:
        """``when_TD``: positions in time, of the first block alone."""
        shift, scale, gate, *mlp = layers.modulation(self.scale_shift_table, time_BT6D)
        x = torch.addcmul(x_BTSD, gate, layers.over_space(self.attn, modulated(x_BTSD, shift, scale)))
        placed = x if when_TD is None else x + when_TD[:, None]
        x = torch.addcmul(x, gate, layers.over_time(self.attn_temp, placed))
        x = x + self.cross_attn(x, words)
        shift, scale, gate = mlp
        return torch.addcmul(x, gate, self.mlp(modulated(x, shift, scale)))


class FirstSTDiT(nn.Module):
    """Open-Sora 1.0. It knows neither frame rate nor size, and all frames have one time."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.x_embedder = layers.PatchEmbedder(config.channels, width)
        self.t_embedder = layers.ScalarEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))
        self.y_embedder = layers.TextEmbedder(config)
        blocks = [Block(config) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.final_layer = layers.FinalLayer(config)
        layers.start(
            self,
            narrow=(self.t_embedder, self.t_block, self.y_embedder),
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
        about: About | None = None,  # noqa: ARG002
        generated_BT: Tensor | None = None,  # noqa: ARG002
        given: Given | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Noise and variance B×2C×T×H×W at ``time_B`` in [0, 1000); ``about``, ``generated_BT`` and ``given`` are for
        later versions."""
        x_BTHWD = self.x_embedder(z_BCTHW)
        frames, grid = x_BTHWD.shape[1], (x_BTHWD.shape[2], x_BTHWD.shape[3])
        where_HWD = grid_table(grid, self.config.width, self.config.space_scale, like=x_BTHWD)
        count_T = torch.arange(frames, device=x_BTHWD.device, dtype=torch.float32)
        when_TD = waves(count_T / self.config.time_scale, self.config.width).to(x_BTHWD.dtype)
        x_BTSD = (x_BTHWD + where_HWD).flatten(2, 3)
        time_BD = self.t_embedder(time_B.to(x_BTSD.dtype))
        time_BT6D = self.t_block(time_BD)[:, None].unflatten(-1, (6, -1))
        words = self.y_embedder(text_BMF, text_mask_BM)
        for i, block in enumerate(self.blocks):
            x_BTSD = block(x_BTSD, time_BT6D, words, when_TD if i == 0 else None)
        return layers.unpatched(self.final_layer(x_BTSD, time_BD), grid, (z_BCTHW.shape[3], z_BCTHW.shape[4]))
