"""Zoetrope's network: an x0-predicting transformer over space-time patches of pixels.

Letters: B batch, C channels, T H W pixels, L text words, S tokens of the video, D width, N heads.

Why tokens and not a U-Net: see docs/decisions/0002. Predicting x0 from large pixel patches follows
"Back to Basics: Let Denoising Generative Models Denoise" (Li & He 2025, arXiv 2511.13720): clean
patches lie near a low-dimensional manifold, so a narrow transformer can represent them although it
could not represent the noise. Conditioning by shared adaptive layer norm is PixArt-α's adaLN-single
(Chen et al. 2023, arXiv 2310.00426, §2.3).
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.conditioning.pocket import PocketText
from kinema.families.zoetrope.config import Config
from kinema.nn.embeddings import LogSNREmbedding

_PATCH = "b c (t p) (h q) (w r) -> b (t h w) (c p q r)"


class Zoetrope(nn.Module):
    """``forward(z, log_snr, ids, given, mask) -> x0`` estimate, B×3×T×H×W.

    The canvas enters beside the noise: ``given`` B×3×T×H×W (zero where unknown) and ``mask`` B×1×T×H×W.
    Text enters twice: as words that the patches attend to, and pooled, into every layer's modulation.
    """

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        p, q, r = config.patch
        box, d = p * q * r, config.width
        self.config = config
        self.grid = (config.frames // p, config.side // q, config.side // r)
        self.text = PocketText(vocab_size, config.text_width, config.text_depth, config.text_length)
        self.text_in = nn.Linear(config.text_width, d)
        self.text_pool = nn.Linear(config.text_width, 1)
        self.text_cond = nn.Linear(config.text_width, d)
        self.level = LogSNREmbedding(d)
        self.z_in = nn.Linear(3 * box, d)
        self.canvas_in = nn.Linear(4 * box, d, bias=False)
        self.position_T = nn.Parameter(_sincos(self.grid[0], d)[:, None, None])
        self.position_H = nn.Parameter(_sincos(self.grid[1], d)[None, :, None])
        self.position_W = nn.Parameter(_sincos(self.grid[2], d)[None, None, :].flip(-1))
        self.modulate = nn.Sequential(nn.Linear(d, config.modulation), nn.Linear(config.modulation, 6 * d))
        self.blocks = nn.ModuleList([Block(d, config.heads, config.mlp) for _ in range(config.depth)])
        self.modulate_out = nn.Sequential(nn.Linear(d, config.modulation), nn.Linear(config.modulation, 2 * d))
        self.out = nn.Linear(d, 3 * box)
        for layer in (self.modulate[1], self.modulate_out[1], self.out, self.canvas_in):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.text_pool.weight)

    def forward(
        self,
        z_BCTHW: Tensor,
        log_snr_B: Tensor,
        ids_BL: Tensor,
        given_BCTHW: Tensor,
        mask_B1THW: Tensor,
        *,
        per_frame: bool = False,
    ) -> Tensor:
        """``per_frame`` forbids attention between temporal patches: the video's parts are made apart."""
        p, q, r = self.config.patch
        text_BLD, keep_BL = self.text(ids_BL)
        weight_BL = self.text_pool(text_BLD)[..., 0].masked_fill(~keep_BL, -math.inf).softmax(-1)
        pooled_BD = torch.einsum("bl,bld->bd", weight_BL, text_BLD)
        cond_BD = F.silu(self.level(log_snr_B) + self.text_cond(pooled_BD))

        canvas = torch.cat([given_BCTHW * mask_B1THW, mask_B1THW], dim=1)
        x_BSD = self.z_in(rearrange(z_BCTHW, _PATCH, p=p, q=q, r=r))
        x_BSD = x_BSD + self.canvas_in(rearrange(canvas, _PATCH, p=p, q=q, r=r))
        t, h, w = (z_BCTHW.shape[2] // p, z_BCTHW.shape[3] // q, z_BCTHW.shape[4] // r)
        where_THWD = self.position_T[:t] + self.position_H[:, :h] + self.position_W[:, :, :w]
        x_BSD = x_BSD + rearrange(where_THWD, "t h w d -> (t h w) d")

        words = ids_BL.shape[1]
        x_BSD = torch.cat([self.text_in(text_BLD), x_BSD], dim=1)
        # Padding is seen by nobody; SDPA with no mask at all is faster, so cut the columns that all rows lack.
        kept = int(keep_BL.sum(1).max())
        x_BSD, words = torch.cat([x_BSD[:, :kept], x_BSD[:, words:]], dim=1), kept
        seen = F.pad(keep_BL[:, :kept], (0, x_BSD.shape[1] - kept), value=True)[:, None, None, :]
        attend = None if bool(keep_BL[:, :kept].all()) else seen
        if per_frame:
            attend = seen & _same_time(kept, t, h * w).to(seen.device)

        shared_B6D = self.modulate(cond_BD).unflatten(1, (6, -1))
        for block in self.blocks:
            x_BSD = block(x_BSD, shared_B6D, attend)
        shift, scale = self.modulate_out(cond_BD)[:, None].chunk(2, dim=-1)
        x_BSD = F.layer_norm(x_BSD[:, words:], x_BSD.shape[-1:]) * (1 + scale) + shift
        return rearrange(
            self.out(x_BSD), "b (t h w) (c p q r) -> b c (t p) (h q) (w r)", t=t, h=h, w=w, p=p, q=q, r=r
        )


class Block(nn.Module):
    """Attention over all tokens, then a GELU MLP, each gated and modulated (adaLN-single)."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.offset = nn.Parameter(torch.zeros(6, width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.scale_q = nn.Parameter(torch.ones(width // heads))
        self.scale_k = nn.Parameter(torch.ones(width // heads))
        self.proj = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, mlp), nn.Linear(mlp, width)
        with torch.no_grad():  # gates start open at a tenth: deep enough to learn at once, shallow enough to be stable
            self.offset[2] = self.offset[5] = 0.1

    def forward(self, x_BSD: Tensor, shared_B6D: Tensor, attend: Tensor | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (shared_B6D + self.offset)[:, :, None].unbind(1)
        width = x_BSD.shape[-1:]
        h = F.layer_norm(x_BSD, width) * (1 + scale1) + shift1
        q, k, v = rearrange(self.qkv(h), "b s (three n d) -> three b n s d", three=3, n=self.heads)
        q, k = F.rms_norm(q, q.shape[-1:], self.scale_q), F.rms_norm(k, k.shape[-1:], self.scale_k)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        x_BSD = x_BSD + gate1 * self.proj(rearrange(h, "b n s d -> b s (n d)"))
        h = F.layer_norm(x_BSD, width) * (1 + scale2) + shift2
        return x_BSD + gate2 * self.down(F.gelu(self.up(h), approximate="tanh"))


def _same_time(words: int, times: int, places: int) -> Tensor:
    """Who may attend to whom when temporal patches are kept apart, 1×1×S×S: words are seen by all, and see words."""
    time = torch.cat([torch.full((words,), -1), torch.arange(times).repeat_interleave(places)])
    return ((time[:, None] == time) | (time == -1))[None, None]


def _sincos(length: int, width: int) -> Tensor:
    """Sinusoidal positions ``length×width`` to start the learned ones from."""
    rate = torch.exp(-math.log(100.0) * torch.arange(width // 2) / (width // 2))
    angle = torch.arange(length)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=-1) * 0.3
