"""STDiT3, the transformer of Open-Sora 1.2 and 1.3: whole blocks over space and over time in turn.

In 1.3 the temporal blocks attend over windows of several tokens, and given latents are an input.

Letters: B batch, C latent channels, T H W frames, rows and columns (of latents, then of tokens), S = H·W tokens of a
frame, D width, M tokens of a prompt, F features of text, P pairs of a head's features.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kinema.families.opensora.mmdit import modulated
from kinema.families.opensora.stdit import layers
from kinema.families.opensora.stdit.config import STDiTConfig
from kinema.families.opensora.stdit.inputs import About, Given
from kinema.families.opensora.stdit.layers import Words
from kinema.families.opensora.stdit.positions import Rotary, Turns, grid_table, space_turns, time_turns, window_turns
from kinema.families.opensora.stdit.windows import over_windows
from kinema.nn.linear import Linear


class Text(NamedTuple):
    """What each frame attends to: the prompts, and no prompt where it is given."""

    words: Words
    null: Words | None = None
    given_BT: Tensor | None = None


class Block(nn.Module):
    """Attention over space, over time or over windows; attention to the text; MLP."""

    def __init__(self, config: STDiTConfig, *, temporal: bool) -> None:
        super().__init__()
        self.temporal, self.window = temporal, config.window
        self.attn = layers.Attention(config)
        self.cross_attn = layers.CrossAttention(config)
        self.mlp = layers.MLP(config.width, config.hidden, config.width)
        self.scale_shift_table = layers.modulation_table(6, config.width)

    def forward(
        self, x_BTSD: Tensor, time_BT6D: Tensor, text: Text, turns: Turns | None, grid: tuple[int, int]
    ) -> Tensor:
        shift, scale, gate, *mlp = layers.modulation(self.scale_shift_table, time_BT6D)
        x = torch.addcmul(x_BTSD, gate, self._attended(modulated(x_BTSD, shift, scale), turns, grid))
        x = x + self.cross_attn(x, *text)
        shift, scale, gate = mlp
        return torch.addcmul(x, gate, self.mlp(modulated(x, shift, scale)))

    def _attended(self, x_BTSD: Tensor, turns: Turns | None, grid: tuple[int, int]) -> Tensor:
        if not self.temporal:
            return layers.over_space(self.attn, x_BTSD, turns)
        if self.window and turns:
            return over_windows(self.attn, x_BTSD, turns, grid, self.window)
        return layers.over_time(self.attn, x_BTSD, turns)


class ThirdSTDiT(nn.Module):
    """Open-Sora 1.2 and 1.3. Conditioned frames are clean, and are modulated as at time 0."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.rope = Rotary(config.rotary)
        patches = partial(layers.PatchEmbedder, config.channels, width)
        self.x_embedder = patches()
        self.x_embedder_cond = patches() if config.takes_given else None
        self.x_embedder_cond_mask = patches() if config.takes_given else None
        self.t_embedder = layers.ScalarEmbedder(width)
        self.fps_embedder = layers.ScalarEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))
        self.y_embedder = layers.TextEmbedder(config)
        self.spatial_blocks = nn.ModuleList(Block(config, temporal=False) for _ in range(config.depth))
        temporal = [Block(config, temporal=True) for _ in range(config.depth)]
        self.temporal_blocks = nn.ModuleList(temporal)
        self.final_layer = layers.FinalLayer(config)
        given = (each.proj for each in (self.x_embedder_cond, self.x_embedder_cond_mask) if each is not None)
        outputs = (y for b in temporal for y in (b.attn.proj, b.cross_attn.proj, b.mlp.fc2))
        layers.start(self, narrow=[self.fps_embedder.mlp[0]], zero=(self.fps_embedder.mlp[2], *outputs, *given))

    def forward(
        self,
        z_BCTHW: Tensor,
        time_B: Tensor,
        text_BMF: Tensor,
        text_mask_BM: Tensor | None = None,
        *,
        about: About,
        generated_BT: Tensor | None = None,
        given: Given | None = None,
    ) -> Tensor:
        """The velocity, B×2C×T×H×W of which the first C channels count, at ``time_B`` in [0, 1000].

        ``generated_BT`` is false at conditioned frames. ``given`` is for 1.3; without it not even the biases of its
        layers are added, as in the original's text-to-video.
        """
        x_BTHWD = self.x_embedder(z_BCTHW)
        if self.x_embedder_cond is not None and self.x_embedder_cond_mask is not None and given is not None:
            mask = given.frames_BT[:, None, :, None, None].expand_as(given.latents_BCTHW)
            x_BTHWD = x_BTHWD + self.x_embedder_cond(given.latents_BCTHW) + self.x_embedder_cond_mask(mask)
        frames, grid, dtype = x_BTHWD.shape[1], (x_BTHWD.shape[2], x_BTHWD.shape[3]), x_BTHWD.dtype
        scale = about.scale(self.config.side, dtype)
        base = round(math.sqrt(math.prod(grid)))
        where_HWD = grid_table(grid, self.config.width, scale, base=base, like=x_BTHWD, rounded=True)
        x_BTSD = (x_BTHWD + where_HWD).flatten(2, 3)
        time_B = time_B.to(dtype) if self.config.version == "1.2" else time_B.float()
        fps_BD = self.fps_embedder(about.fps_B.to(x_BTSD))
        now_BD, clean_BD = (self.t_embedder(t) + fps_BD for t in (time_B, torch.zeros_like(time_B)))
        time_BT6D = layers.by_frame(generated_BT, self.t_block(now_BD), self.t_block(clean_BD)).unflatten(-1, (6, -1))
        text = self._text(text_BMF, text_mask_BM, given)
        in_space, in_time = self._turns(frames, grid, scale)
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            x_BTSD = spatial(x_BTSD, time_BT6D, text, in_space, grid)
            x_BTSD = temporal(x_BTSD, time_BT6D, text, in_time, grid)
        out = self.final_layer(x_BTSD, now_BD, clean_BD, generated_BT)
        return layers.unpatched(out, grid, (z_BCTHW.shape[3], z_BCTHW.shape[4]))

    def _text(self, text_BMF: Tensor, mask_BM: Tensor | None, given: Given | None) -> Text:
        words = self.y_embedder(text_BMF, mask_BM)
        if self.x_embedder_cond is None or given is None:
            return Text(words)
        null_BMF = self.y_embedder.null(*text_BMF.shape[:2])
        return Text(words, self.y_embedder(null_BMF, mask_BM), given.frames_BT)

    def _turns(self, frames: int, grid: tuple[int, int], scale: float) -> tuple[Turns | None, Turns]:
        """Of spatial and of temporal blocks."""
        config, rate_P = self.config, self.rope.freqs
        in_space = space_turns(grid, scale, rate_P) if config.spatial_rope else None
        if config.window:
            return in_space, window_turns((frames, *grid), config.window, scale, rate_P)
        return in_space, time_turns(frames, rate_P)
