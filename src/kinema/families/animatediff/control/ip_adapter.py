"""IP-Adapter (Ye et al. 2023, arXiv 2308.06721): pictures beside the prompt, by cross-attention of their own.

CLIP's view of a picture becomes a few tokens; every cross-attention of the image model attends to them with the same
queries and further keys and values, and adds what it gets. Names are those of diffusers.

Letters: N images, R rows of tokens (one, or one a clip or a frame), S places, L tokens, C width, K pictures, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.families.animatediff.config import AdapterSize
from kinema.nn.ldm_unet import Attention, TransformerBlock, add_, attend

HEAD = 64
"""Channels of a head of the resampler."""


@dataclass(frozen=True, eq=False)
class Picture:
    """What one adapter (by its ``index``) made of its pictures, and how much of it is added: [T], or [1] for all."""

    index: int
    tokens_RLC: Tensor
    scale_T: Tensor

    def of(self, frames: Sequence[int]) -> Picture:
        """What belongs to these frames."""
        tokens, scale = (x[list(frames)] if len(x) > 1 else x for x in (self.tokens_RLC, self.scale_T))
        return replace(self, tokens_RLC=tokens, scale_T=scale)

    def of_batch(self, clips: int) -> Picture:
        """The same for so many clips, where every frame has a row of its own."""
        return replace(self, tokens_RLC=self.tokens_RLC.repeat(clips, 1, 1)) if len(self.tokens_RLC) > 1 else self


Pictures = Sequence[Picture]


class PictureBlock(TransformerBlock):
    """A transformer block whose cross-attention also reads pictures."""

    def __init__(self, width: int, heads: int, context: int, adapters: int) -> None:
        super().__init__(width, heads, context)
        self.attn2 = PictureAttention(width, heads, context, adapters)

    def forward(self, x_NSC: Tensor, context_RLC: Tensor, pictures: Pictures = ()) -> Tensor:
        """x may be overwritten where no gradient is needed."""
        x_NSC = add_(x_NSC, self.attn1(self.norm1(x_NSC)))
        x_NSC = add_(x_NSC, self.attn2(self.norm2(x_NSC), context_RLC, pictures))
        return self.ff(self.norm3(x_NSC), onto=x_NSC)


class PictureAttention(Attention):
    """Attention to the prompt, plus ``scale`` times that of the same queries to each adapter's pictures (eq. 5)."""

    def __init__(self, width: int, heads: int, context: int, adapters: int) -> None:
        super().__init__(width, heads, context)
        self.processor = PictureKeys(width, context, adapters)

    def forward(self, x_NSC: Tensor, context_RLC: Tensor | None = None, pictures: Pictures = ()) -> Tensor:
        assert context_RLC is not None
        q_NSC = self.to_q(x_NSC)
        out_NSC = self._read(q_NSC, self.to_k(context_RLC), self.to_v(context_RLC))
        for picture in pictures:
            to_k, to_v = self.processor.to_k_ip[picture.index], self.processor.to_v_ip[picture.index]
            seen_NSC = self._read(q_NSC, to_k(picture.tokens_RLC), to_v(picture.tokens_RLC))
            out_NSC = out_NSC + per_image(picture.scale_T.to(seen_NSC), len(seen_NSC))[..., 0] * seen_NSC
        return self.to_out[0](out_NSC)

    def _read(self, q_NSC: Tensor, k_RLC: Tensor, v_RLC: Tensor) -> Tensor:
        """Rows of the context are shared by equally many images: their places are one sequence to it."""
        q_RSC = q_NSC.unflatten(0, (len(k_RLC), -1)).flatten(1, 2)
        q, k, v = (rearrange(x, "r s (h d) -> r h s d", h=self.heads) for x in (q_RSC, k_RLC, v_RLC))
        return rearrange(attend(q, k, v), "r h s d -> r s (h d)").reshape(q_NSC.shape)


class PictureKeys(nn.Module):
    """Keys and values of every adapter, without biases."""

    def __init__(self, width: int, context: int, adapters: int) -> None:
        super().__init__()
        self.to_k_ip = nn.ModuleList(nn.Linear(context, width, bias=False) for _ in range(adapters))
        self.to_v_ip = nn.ModuleList(nn.Linear(context, width, bias=False) for _ in range(adapters))


def per_image(scale_T: Tensor, count: int) -> Tensor:
    """A scale of every frame, or one of all, as [count, 1, 1, 1] of the images of a batch of clips."""
    return scale_T.repeat(count // len(scale_T))[:, None, None, None]


# ------------------------------------------------------------------------------- pictures to tokens


class Projections(nn.Module):
    """Of each adapter, what turns CLIP's view into tokens as wide as the prompt's."""

    def __init__(self, adapters: Sequence[AdapterSize], context: int) -> None:
        super().__init__()
        self.image_projection_layers = nn.ModuleList(
            Projection(size, context) if size.kind == "plain" else Resampler(size, context) for size in adapters
        )

    def forward(self, index: int, seen: Tensor) -> Tensor:
        """Tokens K×L×C of K pictures, from their embeddings K×E or their patches K×S×E."""
        return self.image_projection_layers[index](seen)


class Projection(nn.Module):
    """One embedding to a few tokens: a linear layer and a layer norm."""

    def __init__(self, size: AdapterSize, context: int) -> None:
        super().__init__()
        self.tokens = size.tokens
        self.image_embeds = nn.Linear(size.embedding, size.tokens * context)
        self.norm = nn.LayerNorm(context)

    def forward(self, seen_KE: Tensor) -> Tensor:
        return self.norm(self.image_embeds(seen_KE).unflatten(1, (self.tokens, -1)))


class Resampler(nn.Module):
    """Learnt queries that read the patches, and themselves, a few times (Flamingo's perceiver; "plus")."""

    def __init__(self, size: AdapterSize, context: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(1, size.tokens, size.width))
        nn.init.normal_(self.latents, std=size.width**-0.5)
        self.proj_in = nn.Linear(size.embedding, size.width)
        self.layers = nn.ModuleList(ResamplerLayer(size.width, size.inner) for _ in range(size.layers))
        self.proj_out = nn.Linear(size.width, context)
        self.norm_out = nn.LayerNorm(context)

    def forward(self, seen_KSE: Tensor) -> Tensor:
        x_KSC, latents_KLC = self.proj_in(seen_KSE), self.latents.expand(len(seen_KSE), -1, -1)
        for layer in self.layers:
            latents_KLC = layer(x_KSC, latents_KLC)
        return self.norm_out(self.proj_out(latents_KLC))


class ResamplerLayer(nn.Module):
    """Attention of the queries to the patches and themselves, then a feed-forward, each added."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.ln0, self.ln1 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = ResamplerAttention(width, inner)
        self.ff = nn.ModuleList([nn.LayerNorm(width), Gelu(width)])

    def forward(self, x_KSC: Tensor, latents_KLC: Tensor) -> Tensor:
        query = self.ln1(latents_KLC)
        latents_KLC = latents_KLC + self.attn(query, torch.cat([self.ln0(x_KSC), query], dim=1))
        return latents_KLC + self.ff[1](self.ff[0](latents_KLC))


class ResamplerAttention(nn.Module):
    """Attention without biases, whose heads need not add up to the width."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, width, bias=False)])

    def forward(self, query_KLC: Tensor, source_KSC: Tensor) -> Tensor:
        q, k, v = (
            rearrange(of(x), "k s (h d) -> k h s d", d=HEAD)
            for of, x in ((self.to_q, query_KLC), (self.to_k, source_KSC), (self.to_v, source_KSC))
        )
        return self.to_out[0](rearrange(F.scaled_dot_product_attention(q, k, v), "k h s d -> k s (h d)"))


class Gelu(nn.Module):
    """Two linear layers without biases and GELU between them, four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Wider(width), nn.Identity(), nn.Linear(4 * width, width, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class Wider(nn.Module):
    """The first of them and GELU, under the names that files have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 4 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))
