"""IP-Adapter (Ye et al. 2023, arXiv 2308.06721): image prompts by decoupled cross-attention.

CLIP's embedding of an image becomes a few tokens. Every cross-attention of the image model attends to them with the
same queries and separate keys and values, and adds the result. Names are those of diffusers.

Letters: N images, R rows of tokens (one, or one per clip or frame), S spatial positions, L tokens, C width, K image
prompts, T frames.
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
from kinema.nn.linear import Linear

HEAD_DIM = 64
"""Channels per head of the resampler."""


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """Image tokens for adapter ``index`` and their scale: [T], or [1] for all frames."""

    index: int
    tokens_RLC: Tensor
    scale_T: Tensor

    def of(self, frames: Sequence[int]) -> ImagePrompt:
        """Select these frames."""
        tokens, scale = (x[list(frames)] if len(x) > 1 else x for x in (self.tokens_RLC, self.scale_T))
        return replace(self, tokens_RLC=tokens, scale_T=scale)

    def of_batch(self, clips: int) -> ImagePrompt:
        """Repeat per-frame rows for a batch of clips."""
        return replace(self, tokens_RLC=self.tokens_RLC.repeat(clips, 1, 1)) if len(self.tokens_RLC) > 1 else self


ImagePrompts = Sequence[ImagePrompt]


class ImagePromptBlock(TransformerBlock):
    """A transformer block whose cross-attention also reads image prompts."""

    def __init__(self, width: int, heads: int, context: int, adapters: int) -> None:
        super().__init__(width, heads, context)
        self.attn2 = ImagePromptAttention(width, heads, context, adapters)

    def forward(self, x_NSC: Tensor, context_RLC: Tensor, image_prompts: ImagePrompts = ()) -> Tensor:
        """``x`` may be overwritten if no gradient is needed."""
        x_NSC = add_(x_NSC, self.attn1(self.norm1(x_NSC)))
        x_NSC = add_(x_NSC, self.attn2(self.norm2(x_NSC), context_RLC, image_prompts))
        return self.ff(self.norm3(x_NSC), onto=x_NSC)


class ImagePromptAttention(Attention):
    """Cross-attention to the prompt plus ``scale`` times that to each adapter's image tokens (eq. 5)."""

    def __init__(self, width: int, heads: int, context: int, adapters: int) -> None:
        super().__init__(width, heads, context)
        self.processor = ImagePromptKeys(width, context, adapters)

    def forward(self, x_NSC: Tensor, context_RLC: Tensor | None = None, image_prompts: ImagePrompts = ()) -> Tensor:
        assert context_RLC is not None
        q_NSC = self.to_q(x_NSC)
        out_NSC = self._attend(q_NSC, self.to_k(context_RLC), self.to_v(context_RLC))
        for prompt in image_prompts:
            to_k, to_v = self.processor.to_k_ip[prompt.index], self.processor.to_v_ip[prompt.index]
            attended_NSC = self._attend(q_NSC, to_k(prompt.tokens_RLC), to_v(prompt.tokens_RLC))
            out_NSC = out_NSC + per_image(prompt.scale_T.to(attended_NSC), len(attended_NSC))[..., 0] * attended_NSC
        return self.to_out[0](out_NSC)

    def _attend(self, q_NSC: Tensor, k_RLC: Tensor, v_RLC: Tensor) -> Tensor:
        """Attend to context rows, each shared by N / R images whose positions form one sequence."""
        q_RSC = q_NSC.unflatten(0, (len(k_RLC), -1)).flatten(1, 2)
        q, k, v = (rearrange(x, "r s (h d) -> r h s d", h=self.heads) for x in (q_RSC, k_RLC, v_RLC))
        return rearrange(attend(q, k, v), "r h s d -> r s (h d)").reshape(q_NSC.shape)


class ImagePromptKeys(nn.Module):
    """Key and value projections of every adapter, without biases."""

    def __init__(self, width: int, context: int, adapters: int) -> None:
        super().__init__()
        self.to_k_ip = nn.ModuleList(Linear(context, width, bias=False) for _ in range(adapters))
        self.to_v_ip = nn.ModuleList(Linear(context, width, bias=False) for _ in range(adapters))


def per_image(scale_T: Tensor, count: int) -> Tensor:
    """Expand a scale per frame, or one for all, to the images of a batch of clips, [count, 1, 1, 1]."""
    return scale_T.repeat(count // len(scale_T))[:, None, None, None]


# --------------------------------------------------------------------------------- images to tokens


class Projections(nn.Module):
    """Project CLIP's embeddings to tokens of the prompt's width, one projection per adapter."""

    def __init__(self, adapters: Sequence[AdapterSize], context: int) -> None:
        super().__init__()
        self.image_projection_layers = nn.ModuleList(
            Projection(size, context) if size.kind == "plain" else Resampler(size, context) for size in adapters
        )

    def forward(self, index: int, embeddings: Tensor) -> Tensor:
        """Tokens K×L×C of K images from their embeddings K×E or patches K×S×E."""
        return self.image_projection_layers[index](embeddings)


class Projection(nn.Module):
    """Project one embedding to a few tokens with a linear layer and a layer norm."""

    def __init__(self, size: AdapterSize, context: int) -> None:
        super().__init__()
        self.tokens = size.tokens
        self.image_embeds = Linear(size.embedding, size.tokens * context)
        self.norm = nn.LayerNorm(context)

    def forward(self, embedding_KE: Tensor) -> Tensor:
        return self.norm(self.image_embeds(embedding_KE).unflatten(1, (self.tokens, -1)))


class Resampler(nn.Module):
    """Learned queries that attend to the patches and themselves (Flamingo's perceiver resampler; "plus")."""

    def __init__(self, size: AdapterSize, context: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(1, size.tokens, size.width))
        nn.init.normal_(self.latents, std=size.width**-0.5)
        self.proj_in = Linear(size.embedding, size.width)
        self.layers = nn.ModuleList(ResamplerLayer(size.width, size.inner) for _ in range(size.layers))
        self.proj_out = Linear(size.width, context)
        self.norm_out = nn.LayerNorm(context)

    def forward(self, patches_KSE: Tensor) -> Tensor:
        x_KSC, latents_KLC = self.proj_in(patches_KSE), self.latents.expand(len(patches_KSE), -1, -1)
        for layer in self.layers:
            latents_KLC = layer(x_KSC, latents_KLC)
        return self.norm_out(self.proj_out(latents_KLC))


class ResamplerLayer(nn.Module):
    """Attention of the queries to patches and queries, then a feed-forward, both residual."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.ln0, self.ln1 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = ResamplerAttention(width, inner)
        self.ff = nn.ModuleList([nn.LayerNorm(width), GeluFeedForward(width)])

    def forward(self, x_KSC: Tensor, latents_KLC: Tensor) -> Tensor:
        query = self.ln1(latents_KLC)
        latents_KLC = latents_KLC + self.attn(query, torch.cat([self.ln0(x_KSC), query], dim=1))
        return latents_KLC + self.ff[1](self.ff[0](latents_KLC))


class ResamplerAttention(nn.Module):
    """Attention without biases, whose inner width may differ from the outer one."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (Linear(width, inner, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([Linear(inner, width, bias=False)])

    def forward(self, query_KLC: Tensor, source_KSC: Tensor) -> Tensor:
        q, k, v = (
            rearrange(project(x), "k s (h d) -> k h s d", d=HEAD_DIM)
            for project, x in ((self.to_q, query_KLC), (self.to_k, source_KSC), (self.to_v, source_KSC))
        )
        return self.to_out[0](rearrange(F.scaled_dot_product_attention(q, k, v), "k h s d -> k s (h d)"))


class GeluFeedForward(nn.Module):
    """Two linear layers without biases around a GELU, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GeluProjection(width), nn.Identity(), Linear(4 * width, width, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class GeluProjection(nn.Module):
    """Its first linear layer and GELU, with the weight files' key names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = Linear(width, 4 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))
