"""Layers that the STDiTs share. Parameter names are those of the published files.

Letters: B batch, T H W frames, rows and columns of tokens, S = H·W, D width, M tokens of a padded prompt, L tokens of
all prompts one after the other, F features of text, N sequences, h heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.families.opensora.mmdit import gelu, modulated, rms_norm
from kinema.families.opensora.stdit.config import PATCH, STDiTConfig
from kinema.families.opensora.stdit.positions import Turns
from kinema.nn.attention import attend
from kinema.nn.embeddings import sinusoidal
from kinema.nn.linear import Linear

FREQUENCIES = 256


class PatchEmbedder(nn.Module):
    """Latents B×C×T×H×W to tokens B×T×(H/2)×(W/2)×D; an odd side is padded with zeros at its end."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, (1, PATCH, PATCH), (1, PATCH, PATCH))

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        height, width = z_BCTHW.shape[-2:]
        z = F.pad(z_BCTHW, (0, -width % PATCH, 0, -height % PATCH))
        return rearrange(self.proj(z.to(self.proj.weight.dtype)), "b d t h w -> b t h w d")


def unpatched(x_BTSF: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Features of tokens, (row, column, channel) of a patch, as B×C×T×H×W in float32, without the padding."""
    rows, columns = grid
    whole = rearrange(
        x_BTSF, "b t (h w) (ph pw c) -> b c t (h ph) (w pw)", h=rows, w=columns, ph=PATCH, pw=PATCH
    )  # fmt: skip
    return whole[..., : size[0], : size[1]].float()


class ScalarEmbedder(nn.Module):
    """Sinusoids and an MLP for a number of each clip, [B] to B×D; the original rounds that number beforehand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(FREQUENCIES, width), nn.SiLU(), Linear(width, width))

    def forward(self, x_B: Tensor) -> Tensor:
        return self.mlp(sinusoidal(x_B, FREQUENCIES).to(next(self.mlp.parameters()).dtype))


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, features: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = Linear(features, hidden)
        self.fc2 = Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class Words(NamedTuple):
    """Embedded prompts without their padding, one after the other, and how many tokens each has."""

    states_LD: Tensor
    lengths: tuple[int, ...]


class TextEmbedder(nn.Module):
    """T5's states to the network's width; it also has the states of no prompt."""

    y_embedding: Tensor

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.y_proj = MLP(config.text, config.width, config.width)
        null_MF = nn.init.normal_(torch.empty(config.tokens, config.text), std=config.text**-0.5)
        self.register_buffer("y_embedding", null_MF)

    def null(self, clips: int, tokens: int) -> Tensor:
        """States B×M×F of no prompt: the first rows, since in guidance they take the prompt's mask."""
        return self.y_embedding[:tokens].expand(clips, -1, -1)

    def forward(self, text_BMF: Tensor, mask_BM: Tensor | None) -> Words:
        """``mask_BM`` is true (or 1) at tokens and false at padding; None: there is no padding."""
        states = self.y_proj(text_BMF.to(self.y_proj.fc1.weight.dtype))
        if mask_BM is None or mask_BM.is_meta:  # rehearsed without values: as if all prompts were full
            return Words(states.flatten(0, 1), (states.shape[1],) * len(states))
        kept_BM = mask_BM.bool()
        return Words(states[kept_BM], tuple(kept_BM.sum(1).tolist()))


class RMSNorm(nn.Module):
    """Root-mean-square norm over the features of a head; overwrites its input if no gradient is needed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class Attention(nn.Module):
    """Self-attention; queries and keys may be normed, and turned by rotary angles."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.heads, self.rotate_first = config.heads, config.rotate_first
        self.qkv = Linear(config.width, 3 * config.width)
        self.q_norm = RMSNorm(config.head) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head) if config.qk_norm else nn.Identity()
        self.proj = Linear(config.width, config.width)

    def queries_keys_values(self, x_LD: Tensor, turns: Turns | None) -> tuple[Tensor, Tensor, Tensor]:
        """Each […, L, h, K], ready for attention."""
        q, k, v = self.qkv(x_LD).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        if turns and self.rotate_first:
            q, k = turns.applied(q), turns.applied(k)
        q, k = self.q_norm(q), self.k_norm(k)
        if turns and not self.rotate_first:
            q, k = turns.applied(q), turns.applied(k)
        return q, k, v

    def forward(self, x_NLD: Tensor, turns: Turns | None = None) -> Tensor:
        q, k, v = (y.transpose(1, 2) for y in self.queries_keys_values(x_NLD, turns))
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention to prompts. Each clip sees its own tokens alone, so that padding has no effect at all."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_linear = Linear(config.width, config.width)
        self.kv_linear = Linear(config.width, 2 * config.width)
        self.proj = Linear(config.width, config.width)

    def forward(
        self, x_BTSD: Tensor, words: Words, null: Words | None = None, given_BT: Tensor | None = None
    ) -> Tensor:
        """Given frames attend to ``null`` instead."""
        q_BhLK = self.q_linear(x_BTSD).flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out = self._attended(q_BhLK, words).view(x_BTSD.shape)
        if null is not None and given_BT is not None:
            unprompted = self._attended(q_BhLK, null).view(x_BTSD.shape)
            out = torch.where(given_BT[..., None, None], unprompted, out)
        return self.proj(out)

    def _attended(self, q_BhLK: Tensor, words: Words) -> Tensor:
        k_LhK, v_LhK = self.kv_linear(words.states_LD).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        if len(set(words.lengths)) == 1:
            k, v = (rearrange(y, "(b l) h k -> b h l k", b=len(q_BhLK)) for y in (k_LhK, v_LhK))
            out = attend(q_BhLK, k, v)
        else:
            keys, values = (rearrange(y, "l h k -> 1 h l k").split(words.lengths, dim=2) for y in (k_LhK, v_LhK))
            out = torch.cat([attend(*each) for each in zip(q_BhLK.split(1), keys, values, strict=True)])
        return rearrange(out, "b h l k -> b l (h k)")


class FinalLayer(nn.Module):
    """Modulated norm and the projection to the features of a token."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.norm_twice = config.norm_twice
        self.linear = Linear(config.width, PATCH**2 * config.out)
        self.scale_shift_table = modulation_table(2, config.width)

    def forward(
        self, x_BTSD: Tensor, now_BD: Tensor, clean_BD: Tensor | None = None, generated_BT: Tensor | None = None
    ) -> Tensor:
        """``now_BD`` embeds the time of generated frames, ``clean_BD`` that of conditioned ones."""
        now_BTD = now_BD[:, None]
        if clean_BD is None or generated_BT is None:
            return self.linear(self._modulated(x_BTSD, now_BTD))
        if not self.norm_twice:
            return self.linear(self._modulated(x_BTSD, by_frame(generated_BT, now_BD, clean_BD)))
        x = self._modulated(x_BTSD, now_BTD)
        again = self._modulated(x, clean_BD[:, None])  # as published, from what is modulated and not from its input
        return self.linear(torch.where(generated_BT[..., None, None], x, again))

    def _modulated(self, x_BTSD: Tensor, time_BTD: Tensor) -> Tensor:
        shift, scale = modulation(self.scale_shift_table, time_BTD[:, :, None])
        return modulated(x_BTSD, shift, scale)


def modulation_table(parts: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(torch.empty(parts, width), std=width**-0.5))


def modulation(table_ND: Tensor, time_BTND: Tensor) -> tuple[Tensor, ...]:
    """A layer's own N vectors plus those of the time, each B×T×1×D; a time axis of 1 is every frame's."""
    return (table_ND + time_BTND)[:, :, None].unbind(-2)


def by_frame(generated_BT: Tensor | None, now_BD: Tensor, clean_BD: Tensor | None) -> Tensor:
    """The vector of every frame, B×T×D: of time 0 where the frame is conditioned. B×1×D if all are generated."""
    if generated_BT is None or clean_BD is None:
        return now_BD[:, None]
    return torch.where(generated_BT[..., None], now_BD[:, None], clean_BD[:, None])


def over_space(attention: Attention, x_BTSD: Tensor, turns: Turns | None = None) -> Tensor:
    """Attention within each frame."""
    return attention(x_BTSD.flatten(0, 1), turns).view(x_BTSD.shape)


def over_time(attention: Attention, x_BTSD: Tensor, turns: Turns | None = None) -> Tensor:
    """Attention of each place over time."""
    x_BSTD = x_BTSD.transpose(1, 2)
    return attention(x_BSTD.flatten(0, 1), turns).view(x_BSTD.shape).transpose(1, 2)


def start(network: nn.Module, narrow: Iterable[nn.Module], zero: Iterable[nn.Module]) -> None:
    """Weights before training: Xavier's in linear layers, a deviation of 0.02 in those of ``narrow``, none in ``zero``,
    which therefore add nothing at first; no biases."""
    for layer in network.modules():
        if isinstance(layer, Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    for part in narrow:
        for layer in part.modules():
            if isinstance(layer, Linear):
                nn.init.normal_(layer.weight, std=0.02)
    for layer in zero:
        nn.init.zeros_(cast(Tensor, layer.weight))
        nn.init.zeros_(cast(Tensor, layer.bias))
