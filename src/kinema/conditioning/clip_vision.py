"""CLIP's image encoder (Radford et al. 2021) with its projection, with transformers' weight names.

Reimplemented because importing transformers takes longer than loading a model, and because generation should not need
the extra for text. A test checks that both agree.

Letters: B images, S tokens (one class token, then the patches), C width, P patch side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.nn.linear import Linear

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Statistics of CLIP's training images in [0, 1], by channel (its preprocessing)."""


class ClipVision(nn.Module):
    """``forward(pixels B×3×side×side, normalised) -> embedding B×projection``. ViT-H/14 has 632,076,800 parameters.

    ``activation``: "gelu", or "quick_gelu" as in OpenAI's models.
    """

    def __init__(  # noqa: PLR0913
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        mlp: int,
        patch: int,
        side: int,
        projection: int,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.side = side
        quick = activation == "quick_gelu"
        self.vision_model = _Tower(width, layers, heads, mlp, patch, side, quick)
        self.visual_projection = Linear(width, projection, bias=False)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        return self.visual_projection(self.vision_model(pixels_B3HW))

    def patches(self, pixels_B3HW: Tensor) -> Tensor:
        """Return the class and patch tokens before the last layer, B×S×C, the input of IP-Adapter Plus."""
        return self.vision_model.before_last(pixels_B3HW)

    def embed(self, image_B3HW: Tensor) -> Tensor:
        """Return the embeddings B×projection of images of any size in [-1, 1]."""
        small = resize(image_B3HW.float(), self.side)
        mean, std = (torch.tensor(values, device=small.device)[:, None, None] for values in (MEAN, STD))
        return self((((small + 1) / 2 - mean) / std).to(self.visual_projection.weight.dtype))


class _Tower(nn.Module):
    def __init__(  # noqa: PLR0917
        self, width: int, layers: int, heads: int, mlp: int, patch: int, side: int, quick: bool
    ) -> None:
        super().__init__()
        self.embeddings = _Embeddings(width, patch, side)
        self.pre_layrnorm = nn.LayerNorm(width)  # spelled like this in every file
        self.encoder = _Layers(width, heads, mlp, layers, quick)
        self.post_layernorm = nn.LayerNorm(width)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        x_BSC = self.encoder(self.pre_layrnorm(self.embeddings(pixels_B3HW)))
        return self.post_layernorm(x_BSC[:, 0])

    def before_last(self, pixels_B3HW: Tensor) -> Tensor:
        x_BSC = self.pre_layrnorm(self.embeddings(pixels_B3HW))
        for layer in self.encoder.layers[:-1]:
            x_BSC = layer(x_BSC)
        return x_BSC


class _Layers(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int, count: int, quick: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads, mlp, quick) for _ in range(count))

    def forward(self, x_BSC: Tensor) -> Tensor:
        for layer in self.layers:
            x_BSC = layer(x_BSC)
        return x_BSC


class _Embeddings(nn.Module):
    def __init__(self, width: int, patch: int, side: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.class_embedding, std=1 / math.sqrt(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((side // patch) ** 2 + 1, width)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        patches_BSC = self.patch_embedding(pixels_B3HW).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches_BSC), 1, -1)
        return torch.cat([first, patches_BSC], dim=1) + self.position_embedding.weight


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int, quick: bool) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.self_attn = _Attention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": Linear(width, mlp), "fc2": Linear(mlp, width)})
        self.quick = quick

    def forward(self, x_BSC: Tensor) -> Tensor:
        x_BSC = x_BSC + self.self_attn(self.layer_norm1(x_BSC))
        inner = self.mlp["fc1"](self.layer_norm2(x_BSC))
        return x_BSC + self.mlp["fc2"](inner * torch.sigmoid(1.702 * inner) if self.quick else F.gelu(inner))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(width, width) for _ in range(4))

    def forward(self, x_BSC: Tensor) -> Tensor:
        q, k, v = (
            of(x_BSC).unflatten(-1, (self.heads, -1)).transpose(1, 2) for of in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# ------------------------------------------------------------------------------------------- images


def resize(image_B3HW: Tensor, side: int) -> Tensor:
    """Resize to side×side as in SVD's code (kornia, antialiased): Gaussian blur, then bicubic with aligned corners.

    The blur has sigma ``(factor - 1) / 2`` along each axis, at least 0.001, and an odd window of about four sigmas.
    """
    for axis in (-1, -2):
        image_B3HW = _blur(image_B3HW, image_B3HW.shape[axis] / side, axis)
    return F.interpolate(image_B3HW, size=(side, side), mode="bicubic", align_corners=True)


def _blur(x_B3HW: Tensor, factor: float, axis: int) -> Tensor:
    sigma = max((factor - 1) / 2, 0.001)
    size = int(max(4 * sigma, 3)) // 2 * 2 + 1
    offset = torch.arange(size, device=x_B3HW.device, dtype=x_B3HW.dtype) - size // 2
    kernel = torch.exp(-offset.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).reshape((1, 1, 1, size) if axis == -1 else (1, 1, size, 1)).expand(3, 1, -1, -1)
    half = size // 2
    padding = (half, half, 0, 0) if axis == -1 else (0, 0, half, half)
    return F.conv2d(F.pad(x_B3HW, padding, mode="reflect"), kernel, groups=3)
