"""Zoetrope's network: convolutions on two grids around a transformer over space-time tokens.

Letters: B batch, C channels, T H W frames, rows and columns of the current grid, L words, S tokens, D width.
Activations stay in B·T·H·W·C memory throughout, which convolutions (channels last), layer norms and linear layers
accept without a copy.

docs/decisions/0002 explains this architecture. The network predicts x0, as in "Back to Basics: Let Denoising Generative
Models Denoise" (Li & He 2025, arXiv 2511.13720): clean clips are near a low-dimensional manifold, so a narrow network
can represent them, but not the noise.
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
from kinema.families.zoetrope.backdrop import PIXELS, Backdrop, blend_with_input
from kinema.families.zoetrope.config import BlockKind, Config
from kinema.families.zoetrope.layers import ConvBlock, PlaceBlock, over_space
from kinema.families.zoetrope.sprite import FrameEstimate, Sprite, SpriteEstimate
from kinema.nn.embeddings import LogSNREmbedding
from kinema.nn.linear import Linear
from kinema.nn.meta import placed

_CELLS = "b c t (h p) (w q) -> b t h w (c p q)"


class Estimate(NamedTuple):
    """Output of one forward pass.

    ``x0`` B×3×T×H×W is the clip; ``read`` B×S×K the tokens' logits of glyph, colour and motion; ``sketch`` B×1×T×h×w
    the logits of object coverage, on cells of half a fine cell's side; ``backdrop`` B×3×T×H×W the static background
    and ``share`` B×1×T×H×W the logits of its share in ``x0``; ``sprite`` the sprite's output, if the network has one.
    """

    x0: Tensor
    read: Tensor
    sketch: Tensor
    backdrop: Tensor
    share: Tensor
    sprite: SpriteEstimate | None = None


class Zoetrope(nn.Module):
    """``forward(z, log_snr, ids, given, mask) -> Estimate``.

    The canvas is concatenated with the noisy clip: ``given`` B×3×T×H×W, used where ``mask`` B×1×T×H×W is 1.
    Text enters twice: as words that the tokens attend to, and pooled, in every block's modulation.
    """

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        area, d = config.cell**2, config.width
        self.config = config
        self.text = PocketText(vocab_size, config.text_width, config.text_depth, config.text_length)
        self.text_in = Linear(config.text_width, d)
        self.text_pool = Linear(config.text_width, 1)
        self.text_cond = Linear(config.text_width, d)
        self.level = LogSNREmbedding(d)
        self.squeeze = Linear(d, config.modulation)

        self.stem = Linear(7 * area, config.fine)
        self.fine_down = ConvBlock(config.fine, config.modulation)
        self.down = Linear(4 * config.fine, config.coarse)
        self.coarse_down = ConvBlock(config.coarse, config.modulation)
        self.merge = Linear(config.merge * config.coarse, d)
        self.position_T, self.position_H, self.position_W = (nn.Parameter(_sincos(n, d)) for n in config.grid)
        self.blocks = nn.ModuleList(
            [TokenBlock(d, config.heads, config.mlp, config.modulation) for _ in range(config.depth)]
        )
        self.unmerge = Linear(d, config.merge * config.coarse)
        self.coarse_up = _up_blocks(config.coarse_up, config.coarse, config)
        self.up = Linear(config.coarse, 4 * config.fine)
        self.join = Linear(2 * config.fine, config.fine)
        self.sketch = Linear(d, config.merge * 16)
        self.sketch_in = Linear(4, config.fine, bias=False)
        self.fine_up = _up_blocks(config.fine_up, config.fine, config)
        self.out = nn.Conv2d(config.fine, 3 * area, 3, padding=1)
        self.backdrop = Backdrop(config.fine, config.places * config.fine, config.modulation, config.cell)
        self.read = Linear(d, sum(CLASSES))
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
        """``per_frame`` disables mixing between groups of ``merge`` frames, and with it the sprite, which is shared by
        all frames."""
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
        upsampled = rearrange(self.up(coarse), "b t h w (p q c) -> b t (h p) (w q) c", p=2, q=2)
        fine = self.join(torch.cat([upsampled, fine], dim=-1)) + self.sketch_in(sketch.sigmoid())
        for block in self.fine_up:
            fine = block(fine, cond_BM, span)
        fine = F.layer_norm(fine, fine.shape[-1:])
        direct_BCTHW = rearrange(over_space(self.out, fine), PIXELS, p=cell, q=cell)
        direct_BCTHW = blend_with_input(direct_BCTHW, z_BCTHW, log_snr_B)
        backdrop_BCTHW, share_B1THW = self.backdrop(fine, sketch, z_BCTHW, log_snr_B, cond_BM, span)
        outline_BCTHW = rearrange(sketch, "b t h w (p q) -> b 1 t (h p) (w q)", p=2, q=2)
        ground_B1THW = share_B1THW.sigmoid()
        x0_BCTHW = torch.lerp(direct_BCTHW, backdrop_BCTHW, ground_B1THW)
        estimate = Estimate(x0_BCTHW, read_BSK, outline_BCTHW, backdrop_BCTHW, share_B1THW)
        if self.sprite is None or per_frame:
            return estimate
        clip_BCTHW = torch.where(mask_B1THW > 0, given_BCTHW.to(x0_BCTHW), x0_BCTHW)
        frames = FrameEstimate(clip_BCTHW, backdrop_BCTHW, ground_B1THW, mask_B1THW)
        sprite = self.sprite(fine, sketch, tokens_BSD, read_BSK, cond_BM, frames)
        backdrop_BCTHW = sprite.backdrop_BCTHW.to(x0_BCTHW)
        x0_BCTHW = torch.lerp(direct_BCTHW, backdrop_BCTHW, ground_B1THW)
        share_B1111 = sprite.share_B[:, None, None, None, None].to(x0_BCTHW)
        x0_BCTHW = torch.lerp(x0_BCTHW, sprite.composite_BCTHW.to(x0_BCTHW), share_B1111)
        return estimate._replace(x0=x0_BCTHW, sprite=sprite)

    def _pooled(self, text_BLD: Tensor, keep_BL: Tensor) -> Tensor:
        weight_BL = self.text_pool(text_BLD)[..., 0].masked_fill(~keep_BL, -math.inf).softmax(-1)
        return self.text_cond(torch.einsum("bl,bld->bd", weight_BL, text_BLD))

    def _attend(
        self, x_BSD: Tensor, text_BLD: Tensor, keep_BL: Tensor, cond_BM: Tensor, times: int
    ) -> tuple[Tensor, Tensor]:
        """Run the token blocks over words and tokens; ``times`` > 1 isolates that many groups in time.

        Returns the tokens, and class logits read from an intermediate block so that later blocks can focus on pixels.
        """
        words = int(keep_BL.sum(1).max())  # drop columns that are padding in every row: fewer tokens, often no mask
        x_BSD = torch.cat([self.text_in(text_BLD[:, :words]), x_BSD], dim=1)
        keep = F.pad(keep_BL[:, :words], (0, x_BSD.shape[1] - words), value=True)[:, None, None, :]
        mask = None if bool(keep_BL[:, :words].all()) else keep
        if times > 1:
            places = (x_BSD.shape[1] - words) // times
            mask = keep & _same_time(words, times, places).to(keep.device)
        outputs = [x_BSD]
        for block in self.blocks:
            outputs.append(block(outputs[-1], cond_BM, mask))
        middle = (len(self.blocks) + 1) // 2
        read_BSD, x_BSD = (F.layer_norm(y[:, words:], y.shape[-1:]) for y in (outputs[middle], outputs[-1]))
        return x_BSD, self.read(read_BSD)


class TokenBlock(nn.Module):
    """Attention over all tokens, then a GELU MLP, each modulated and gated (Peebles & Xie 2023, adaLN)."""

    def __init__(self, width: int, heads: int, mlp: int, cond: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulate = Linear(cond, 6 * width)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.scale_q = nn.Parameter(torch.ones(width // heads))
        self.scale_k = nn.Parameter(torch.ones(width // heads))
        self.proj = Linear(width, width, bias=False)
        self.up, self.down = Linear(width, mlp), Linear(mlp, width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        with torch.no_grad():  # gates start partly open, to learn from the first step
            self.modulate.bias.view(6, width)[[2, 5]] = 0.3

    def forward(self, x_BSD: Tensor, cond_BM: Tensor, mask: Tensor | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(cond_BM)[:, None].chunk(6, dim=-1)
        h = F.layer_norm(x_BSD, x_BSD.shape[-1:]) * (1 + scale1) + shift1
        q, k, v = rearrange(self.qkv(h), "b s (three n d) -> three b n s d", three=3, n=self.heads)
        q, k = F.rms_norm(q, q.shape[-1:], self.scale_q), F.rms_norm(k, k.shape[-1:], self.scale_k)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x_BSD = x_BSD + gate1 * self.proj(rearrange(h, "b n s d -> b s (n d)"))
        h = F.layer_norm(x_BSD, x_BSD.shape[-1:]) * (1 + scale2) + shift2
        return x_BSD + gate2 * self.down(F.gelu(self.up(h), approximate="tanh"))


def _up_blocks(kinds: Sequence[BlockKind], channels: int, config: Config) -> nn.ModuleList:
    """Build the blocks of a grid on the way up, in the order of ``kinds``."""
    cond = config.modulation
    return nn.ModuleList(
        ConvBlock(channels, cond) if kind == "conv" else PlaceBlock(channels, config.places * channels, cond)
        for kind in kinds
    )


def _same_time(words: int, times: int, places: int) -> Tensor:
    """Attention mask 1×1×S×S that isolates groups in time: words attend to words, tokens to words and their group."""
    time = torch.cat([torch.full((words,), -1), torch.arange(times).repeat_interleave(places)])
    return ((time[:, None] == time) | (time == -1))[None, None]


def _sincos(length: int, width: int) -> Tensor:
    """Sinusoidal positions ``length×width``, the initial values of the learned ones."""

    def table() -> Tensor:
        rate = torch.exp(-math.log(100.0) * torch.arange(width // 2) / (width // 2))
        angle = torch.arange(length)[:, None] * rate
        return torch.cat([angle.sin(), angle.cos()], dim=-1) * 0.3

    return placed((length, 2 * (width // 2)), table)


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """Return the repeated blocks, in running order."""
    return [m for m in model.modules() if isinstance(m, ConvBlock | PlaceBlock | TokenBlock)]
