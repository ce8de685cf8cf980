"""Zoetrope's network: convolutions on two grids around a transformer over space-time tokens.

Letters: B batch, C channels, T H W frames, rows and columns of the grid at hand, L words, S tokens, D width.
Activations stay in B·T·H·W·C memory from end to end: the layout that convolutions (channels last), layer
norms and linear layers all take without a copy.

Why this shape and not a U-Net or a plain transformer: see docs/decisions/0002. The network predicts x0, as
in "Back to Basics: Let Denoising Generative Models Denoise" (Li & He 2025, arXiv 2511.13720): clean clips
lie near a low-dimensional manifold, so a narrow network can represent them although not the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.conditioning.pocket import PocketText
from kinema.data.playroom.labels import CLASSES
from kinema.families.zoetrope.backdrop import PIXELS, Backdrop, kept
from kinema.families.zoetrope.config import Config, Drawing
from kinema.families.zoetrope.layers import ConvBlock, PlaceBlock, over_space
from kinema.families.zoetrope.sprite import Drawn, Seen, Sprite
from kinema.nn.embeddings import LogSNREmbedding
from kinema.nn.meta import placed

_CELLS = "b c t (h p) (w q) -> b t h w (c p q)"


class Estimate(NamedTuple):
    """What one pass tells: the clip, what the tokens name, and where they would cover the ground with an object.

    ``x0`` B×3×T×H×W; ``read`` B×S×K logits of glyph, colour and motion; ``sketch`` B×1×T×h×w logits on cells
    of half a fine cell's side; ``still`` B×3×T×H×W the picture behind all frames, and ``share`` B×1×T×H×W the
    logits of its share in ``x0``. ``sprite`` is what is told of the object drawn once, where the network has one.
    """

    x0: Tensor
    read: Tensor
    sketch: Tensor
    still: Tensor
    share: Tensor
    sprite: Seen | None = None


class Zoetrope(nn.Module):
    """``forward(z, log_snr, ids, given, mask) -> Estimate``: the clip, and what is read of it on the way.

    The canvas enters beside the noise: ``given`` B×3×T×H×W (counted only where ``mask`` B×1×T×H×W is 1).
    Text enters twice: as words that the tokens attend to, and pooled, in every block's modulation.
    """

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        area, d = config.cell**2, config.width
        self.config = config
        self.text = PocketText(vocab_size, config.text_width, config.text_depth, config.text_length)
        self.text_in = nn.Linear(config.text_width, d)
        self.text_pool = nn.Linear(config.text_width, 1)
        self.text_cond = nn.Linear(config.text_width, d)
        self.level = LogSNREmbedding(d)
        self.squeeze = nn.Linear(d, config.modulation)

        self.stem = nn.Linear(7 * area, config.fine)
        self.fine_down = ConvBlock(config.fine, config.modulation)
        self.down = nn.Linear(4 * config.fine, config.coarse)
        self.coarse_down = ConvBlock(config.coarse, config.modulation)
        self.merge = nn.Linear(config.merge * config.coarse, d)
        self.position_T, self.position_H, self.position_W = (nn.Parameter(_sincos(n, d)) for n in config.grid)
        self.blocks = nn.ModuleList(
            [TokenBlock(d, config.heads, config.mlp, config.modulation) for _ in range(config.depth)]
        )
        self.unmerge = nn.Linear(d, config.merge * config.coarse)
        self.coarse_up = _drawing(config.coarse_up, config.coarse, config)
        self.up = nn.Linear(config.coarse, 4 * config.fine)
        self.join = nn.Linear(2 * config.fine, config.fine)
        self.sketch = nn.Linear(d, config.merge * 16)
        self.sketch_in = nn.Linear(4, config.fine, bias=False)
        self.fine_up = _drawing(config.fine_up, config.fine, config)
        self.out = nn.Conv2d(config.fine, 3 * area, 3, padding=1)
        self.backdrop = Backdrop(config.fine, config.places * config.fine, config.modulation, config.cell)
        self.read = nn.Linear(d, sum(CLASSES))
        self.sprite = Sprite(config, sum(CLASSES)) if config.sprite else None
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.text_pool.weight)
        nn.init.zeros_(self.sketch_in.weight)

    def forward(
        self,
        z_BCTHW: Tensor,
        log_snr_B: Tensor,
        ids_BL: Tensor,
        given_BCTHW: Tensor,
        mask_B1THW: Tensor,
        *,
        per_frame: bool = False,
    ) -> Estimate:
        """``per_frame`` forbids mixing between groups of ``merge`` frames: the clip's parts are made apart, and without
        the sprite, which is one for all frames."""
        cell, merge = self.config.cell, self.config.merge
        span = merge if per_frame else z_BCTHW.shape[2]
        text_BLD, keep_BL = self.text(ids_BL)
        cond_BM = self.squeeze(F.silu(self.level(log_snr_B) + self._pooled(text_BLD, keep_BL)))

        x = torch.cat([z_BCTHW, given_BCTHW * mask_B1THW, mask_B1THW], dim=1)
        fine = self.fine_down(self.stem(rearrange(x, _CELLS, p=cell, q=cell)), cond_BM, span)
        coarse = self.down(rearrange(fine, "b t (h p) (w q) c -> b t h w (p q c)", p=2, q=2))
        coarse = self.coarse_down(coarse, cond_BM, span)

        tokens = self.merge(rearrange(coarse, "b (t m) h w c -> b t h w (m c)", m=merge))
        t, h, w = tokens.shape[1:4]
        where = self.position_T[:t, None, None] + self.position_H[:h, None] + self.position_W[:w]
        tokens_BSD = rearrange(tokens + where, "b t h w d -> b (t h w) d")
        tokens_BSD, read_BSK = self._attend(tokens_BSD, text_BLD, keep_BL, cond_BM, t if per_frame else 1)
        sketch = rearrange(
            self.sketch(tokens_BSD),
            "b (t h w) (m p r q s) -> b (t m) (h p) (w q) (r s)",
            t=t, h=h, w=w, m=merge, p=2, r=2, q=2,
        )  # fmt: skip
        tokens = rearrange(self.unmerge(tokens_BSD), "b (t h w) (m c) -> b (t m) h w c", t=t, h=h, w=w, m=merge)

        coarse = coarse + tokens
        for block in self.coarse_up:
            coarse = block(coarse, cond_BM, span)
        risen = rearrange(self.up(coarse), "b t h w (p q c) -> b t (h p) (w q) c", p=2, q=2)
        fine = self.join(torch.cat([risen, fine], dim=-1)) + self.sketch_in(sketch.sigmoid())
        for block in self.fine_up:
            fine = block(fine, cond_BM, span)
        fine = F.layer_norm(fine, fine.shape[-1:])
        drawn_BCTHW = rearrange(over_space(self.out, fine), PIXELS, p=cell, q=cell)
        drawn_BCTHW = kept(drawn_BCTHW, z_BCTHW, log_snr_B)
        still_BCTHW, share_B1THW = self.backdrop(fine, sketch, z_BCTHW, log_snr_B, cond_BM, span)
        outline_BCTHW = rearrange(sketch, "b t h w (p q) -> b 1 t (h p) (w q)", p=2, q=2)
        ground_B1THW = share_B1THW.sigmoid()
        x0_BCTHW = torch.lerp(drawn_BCTHW, still_BCTHW, ground_B1THW)
        drawn = Estimate(x0_BCTHW, read_BSK, outline_BCTHW, still_BCTHW, share_B1THW)
        if self.sprite is None or per_frame:
            return drawn
        known_BCTHW = torch.where(mask_B1THW > 0, given_BCTHW.to(x0_BCTHW), x0_BCTHW)
        known = Drawn(known_BCTHW, still_BCTHW, ground_B1THW, mask_B1THW)
        seen = self.sprite(fine, sketch, tokens_BSD, read_BSK, cond_BM, known)
        still_BCTHW = seen.still_BCTHW.to(x0_BCTHW)
        x0_BCTHW = torch.lerp(drawn_BCTHW, still_BCTHW, ground_B1THW)
        share_B1111 = seen.share_B[:, None, None, None, None].to(x0_BCTHW)
        x0_BCTHW = torch.lerp(x0_BCTHW, seen.laid_BCTHW.to(x0_BCTHW), share_B1111)
        return drawn._replace(x0=x0_BCTHW, sprite=seen)

    def _pooled(self, text_BLD: Tensor, keep_BL: Tensor) -> Tensor:
        weight_BL = self.text_pool(text_BLD)[..., 0].masked_fill(~keep_BL, -math.inf).softmax(-1)
        return self.text_cond(torch.einsum("bl,bld->bd", weight_BL, text_BLD))

    def _attend(
        self, x_BSD: Tensor, text_BLD: Tensor, keep_BL: Tensor, cond_BM: Tensor, times: int
    ) -> tuple[Tensor, Tensor]:
        """The token blocks over words and tokens together; ``times`` > 1 keeps that many parts in time apart.

        Also the classes read of the tokens before the last blocks, which are left free to draw.
        """
        words = int(keep_BL.sum(1).max())  # columns that every row lacks are cut: fewer tokens, and often no mask
        x_BSD = torch.cat([self.text_in(text_BLD[:, :words]), x_BSD], dim=1)
        seen = F.pad(keep_BL[:, :words], (0, x_BSD.shape[1] - words), value=True)[:, None, None, :]
        attend = None if bool(keep_BL[:, :words].all()) else seen
        if times > 1:
            places = (x_BSD.shape[1] - words) // times
            attend = seen & _same_time(words, times, places).to(seen.device)
        after = [x_BSD]
        for block in self.blocks:
            after.append(block(after[-1], cond_BM, attend))
        known = (len(self.blocks) + 1) // 2
        read_BSD, x_BSD = (F.layer_norm(y[:, words:], y.shape[-1:]) for y in (after[known], after[-1]))
        return x_BSD, self.read(read_BSD)


class TokenBlock(nn.Module):
    """Attention over all tokens, then a GELU MLP, each modulated and gated (Peebles & Xie 2023, adaLN)."""

    def __init__(self, width: int, heads: int, mlp: int, cond: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulate = nn.Linear(cond, 6 * width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.scale_q = nn.Parameter(torch.ones(width // heads))
        self.scale_k = nn.Parameter(torch.ones(width // heads))
        self.proj = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, mlp), nn.Linear(mlp, width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        with torch.no_grad():  # gates start part open, so that there is something to learn from the first step
            self.modulate.bias.view(6, width)[[2, 5]] = 0.3

    def forward(self, x_BSD: Tensor, cond_BM: Tensor, attend: Tensor | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(cond_BM)[:, None].chunk(6, dim=-1)
        h = F.layer_norm(x_BSD, x_BSD.shape[-1:]) * (1 + scale1) + shift1
        q, k, v = rearrange(self.qkv(h), "b s (three n d) -> three b n s d", three=3, n=self.heads)
        q, k = F.rms_norm(q, q.shape[-1:], self.scale_q), F.rms_norm(k, k.shape[-1:], self.scale_k)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        x_BSD = x_BSD + gate1 * self.proj(rearrange(h, "b n s d -> b s (n d)"))
        h = F.layer_norm(x_BSD, x_BSD.shape[-1:]) * (1 + scale2) + shift2
        return x_BSD + gate2 * self.down(F.gelu(self.up(h), approximate="tanh"))


def _drawing(kinds: Sequence[Drawing], channels: int, config: Config) -> nn.ModuleList:
    """The blocks of a grid on the way up, in the order of ``kinds``."""
    cond = config.modulation
    return nn.ModuleList(
        ConvBlock(channels, cond) if kind == "conv" else PlaceBlock(channels, config.places * channels, cond)
        for kind in kinds
    )


def _same_time(words: int, times: int, places: int) -> Tensor:
    """Who may attend to whom when parts in time are kept apart, 1×1×S×S; words see words and are seen by all."""
    time = torch.cat([torch.full((words,), -1), torch.arange(times).repeat_interleave(places)])
    return ((time[:, None] == time) | (time == -1))[None, None]


def _sincos(length: int, width: int) -> Tensor:
    """Sinusoidal positions ``length×width`` to start the learned ones from."""

    def table() -> Tensor:
        rate = torch.exp(-math.log(100.0) * torch.arange(width // 2) / (width // 2))
        angle = torch.arange(length)[:, None] * rate
        return torch.cat([angle.sin(), angle.cos()], dim=-1) * 0.3

    return placed((length, 2 * (width // 2)), table)


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The repeated blocks, in the order they run."""
    return [m for m in model.modules() if isinstance(m, ConvBlock | PlaceBlock | TokenBlock)]
