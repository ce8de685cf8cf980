"""Open-Sora 2.0's transformer: Flux's MMDiT over space and time, with a second input for conditioning latents.

Peng et al. 2025 (arXiv 2503.09642), section 4; its blocks are those of Flux and Stable Diffusion 3 (Esser et al. 2024).
Parameter names are those of the published files.

Letters: B batch, T H W latent frames, rows and columns, C latent channels, N video tokens, M text tokens, L = M + N,
D width, h heads, K width of a head, P = K / 2 pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.nn import attention
from kinema.nn.embeddings import sinusoidal
from kinema.nn.linear import Linear
from kinema.nn.rope import Layout, angles, rotate, rotate_, video_positions

EPS = 1e-6
TIME_FEATURES = 256
TIME_SCALE = 1000.0


@dataclass(frozen=True)
class MMDiTConfig:
    """Sizes of one transformer; the defaults are Open-Sora 2.0's."""

    channels: int = 16
    """Of the latents; a token has ``channels · patch²`` features."""
    patch: int = 2
    text: int = 4096
    """Width of T5's states."""
    vector: int = 768
    """Width of CLIP's pooled embedding."""
    width: int = 3072
    heads: int = 24
    mlp: float = 4.0
    double_blocks: int = 19
    single_blocks: int = 38
    axes: tuple[int, ...] = (16, 56, 56)
    """Features of a head that turn with time, row and column."""
    theta: float = 10_000.0
    rope: Layout = "half"
    qkv_bias: bool = True
    conditioned: bool = True
    """Whether it takes conditioning latents and their mask (``cond_in``)."""
    guided: bool = False
    """Whether it takes the guidance scale as an input (Flux-dev, distilled)."""

    @property
    def features(self) -> int:
        """Of one token of latents."""
        return self.channels * self.patch**2


class Rotation(NamedTuple):
    """Cosines and sines of every token's angles, each L×P."""

    cos_LP: Tensor
    sin_LP: Tensor
    layout: Layout


class MLPEmbedder(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.in_layer = Linear(features, width)
        self.out_layer = Linear(width, width)

    def forward(self, x_BF: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x_BF)))


class RMSNorm(nn.Module):
    """Root-mean-square norm over the features of a head; overwrites its input if no gradient is needed.

    PyTorch's own holds several copies in float32 on a CPU and takes four times as long (docs/notes/opensora_speed.md).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale)


def rms_norm(x: Tensor, scale_K: Tensor) -> Tensor:
    """In place if no gradient is needed."""
    if torch.is_grad_enabled():
        return F.rms_norm(x, scale_K.shape, scale_K, EPS)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return x.mul_(norm.square_().div_(x.shape[-1]).add_(EPS).rsqrt_()).mul_(scale_K)


class QKNorm(nn.Module):
    """Norms of queries and keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(width)
        self.key_norm = RMSNorm(width)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(q), self.key_norm(k)


class Modulation(nn.Module):
    """``parts`` vectors B×1×D from the conditioning vector: (shift, scale, gate) once or twice."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.lin = Linear(width, parts * width)

    def forward(self, vector_BD: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vector_BD))[:, None].chunk(self.parts, dim=-1)


class Attention(nn.Module):
    """The projections of one stream; `attend` runs over both streams together."""

    def __init__(self, width: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (Linear(width, width, bias=bias) for _ in range(3))
        self.norm = QKNorm(width // heads)
        self.proj = Linear(width, width)

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values B×L×h×K, the first two normed."""
        q, k, v = (split_heads(layer(x_BLD), self.heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return *self.norm(q, k), v


def split_heads(x_BLD: Tensor, heads: int) -> Tensor:
    return rearrange(x_BLD, "b l (h k) -> b l h k", h=heads)


def attend(q_BLhK: Tensor, k_BLhK: Tensor, v_BLhK: Tensor, rotation: Rotation) -> Tensor:
    """Attention over all tokens, heads joined again, B×L×D. Queries and keys are turned in place without gradients."""
    cos, sin = rotation.cos_LP[:, None], rotation.sin_LP[:, None]
    turned = rotate if torch.is_grad_enabled() else rotate_
    q, k = (turned(x, cos, sin, rotation.layout).transpose(1, 2) for x in (q_BLhK, k_BLhK))
    out_BhLK = attention.attend(q, k, v_BLhK.transpose(1, 2))
    return rearrange(out_BhLK, "b h l k -> b l (h k)")


def modulated(x_BLD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """Layer norm without weights, scaled by ``1 + scale`` and shifted."""
    return torch.addcmul(shift_B1D, F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=EPS), 1 + scale_B1D)


class GELU(nn.Module):
    """Overwrites its input if no gradient is needed: the widest map of a block, of which no copy is held."""

    def forward(self, x_BLF: Tensor) -> Tensor:
        return gelu(x_BLF)


def gelu(x_BLF: Tensor) -> Tensor:
    """In place if no gradient is needed."""
    if torch.is_grad_enabled():
        return F.gelu(x_BLF, approximate="tanh")
    return torch.ops.aten.gelu_(x_BLF, approximate="tanh")


def mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(Linear(width, hidden), GELU(), Linear(hidden, width))


class DoubleBlock(nn.Module):
    """Video and text with weights of their own, joined in attention."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp)
        self.img_mod = Modulation(width, 6)
        self.img_attn = Attention(width, config.heads, bias=config.qkv_bias)
        self.img_mlp = mlp(width, hidden)
        self.txt_mod = Modulation(width, 6)
        self.txt_attn = Attention(width, config.heads, bias=config.qkv_bias)
        self.txt_mlp = mlp(width, hidden)

    def forward(
        self, video_BND: Tensor, text_BMD: Tensor, vector_BD: Tensor, rotation: Rotation
    ) -> tuple[Tensor, Tensor]:
        video_shift, video_scale, video_gate, *video_mlp = self.img_mod(vector_BD)
        text_shift, text_scale, text_gate, *text_mlp = self.txt_mod(vector_BD)
        video_qkv = self.img_attn(modulated(video_BND, video_shift, video_scale))
        text_qkv = self.txt_attn(modulated(text_BMD, text_shift, text_scale))
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(text_qkv, video_qkv, strict=True))
        del text_qkv, video_qkv
        text_out, video_out = attend(q, k, v, rotation).split([text_BMD.shape[1], video_BND.shape[1]], dim=1)
        del q, k, v
        video = torch.addcmul(video_BND, video_gate, self.img_attn.proj(video_out))
        text = torch.addcmul(text_BMD, text_gate, self.txt_attn.proj(text_out))
        return _through_mlp(video, self.img_mlp, *video_mlp), _through_mlp(text, self.txt_mlp, *text_mlp)


def _through_mlp(x_BLD: Tensor, layers: nn.Module, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    return torch.addcmul(x_BLD, gate, layers(modulated(x_BLD, shift, scale)))


class SingleBlock(nn.Module):
    """Text and video as one sequence; attention and MLP side by side (Dehghani et al. 2023)."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        width, self.hidden, self.heads = config.width, int(config.width * config.mlp), config.heads
        self.q_proj, self.k_proj = Linear(width, width), Linear(width, width)
        self.v_mlp = Linear(width, width + self.hidden)
        self.norm = QKNorm(width // config.heads)
        self.linear2 = Linear(width + self.hidden, width)
        self.modulation = Modulation(width, 3)

    def forward(self, x_BLD: Tensor, vector_BD: Tensor, rotation: Rotation) -> Tensor:
        shift, scale, gate = self.modulation(vector_BD)
        x = modulated(x_BLD, shift, scale)
        joined = self.v_mlp(x)
        v_BLD, hidden_BLF = joined.split([x.shape[-1], self.hidden], dim=-1)
        q, k, v = (split_heads(y, self.heads) for y in (self.q_proj(x), self.k_proj(x), v_BLD))
        del x
        q, k = self.norm(q, k)
        out_BLD, hidden_BLF = attend(q, k, v, rotation), gelu(hidden_BLF)
        del q, k
        if torch.is_grad_enabled():
            joined = torch.cat([out_BLD, hidden_BLF], dim=-1)
        else:  # the values are not needed again: what attention returns takes their place
            v_BLD.copy_(out_BLD)
            del out_BLD
        return torch.addcmul(x_BLD, gate, self.linear2(joined))


class FinalLayer(nn.Module):
    """Modulated norm and the projection to the features of a token."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.linear = Linear(config.width, config.features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(config.width, 2 * config.width))

    def forward(self, x_BND: Tensor, vector_BD: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vector_BD)[:, None].chunk(2, dim=-1)
        return self.linear(modulated(x_BND, shift, scale))


class MMDiT(nn.Module):
    """``forward(z B×C×T×H×W, time [B] in [0, 1], text B×M×4096, pooled B×768) -> velocity B×C×T×H×W``."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        if config.width % config.heads or sum(config.axes) != config.width // config.heads:
            raise ValueError(f"rotary axes {config.axes} do not add up to a head of {config.width} / {config.heads}")
        self.config, width = config, config.width
        self.img_in = Linear(config.features, width)
        self.txt_in = Linear(config.text, width)
        self.time_in = MLPEmbedder(TIME_FEATURES, width)
        self.vector_in = MLPEmbedder(config.vector, width)
        self.guidance_in = MLPEmbedder(TIME_FEATURES, width) if config.guided else None
        self.cond_in = Linear(config.features + config.patch**2, width) if config.conditioned else None
        self.double_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.double_blocks))
        self.single_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.single_blocks))
        self.final_layer = FinalLayer(config)
        if self.cond_in is not None:  # at first conditioning changes nothing
            nn.init.zeros_(self.cond_in.weight)
            nn.init.zeros_(self.cond_in.bias)

    def forward(  # noqa: PLR0917
        self,
        z_BCTHW: Tensor,
        time_B: Tensor,
        text_BMF: Tensor,
        pooled_BF: Tensor,
        condition_BCTHW: Tensor | None = None,
        guidance_B: Tensor | None = None,
    ) -> Tensor:
        """``condition_BCTHW``: mask (1 where given) and given latents, C + 1 channels; None is all zero, unconditioned.

        ``guidance_B``: the scale that a guidance-distilled model takes as an input.
        """
        patch, dtype = self.config.patch, self.img_in.weight.dtype
        _, _, frames, height, width = z_BCTHW.shape
        text = self.txt_in(text_BMF)
        time_B = TIME_SCALE * time_B.to(dtype)  # the original's times are in its precision: 0.95583 gives 956 in bf16
        vector = self.time_in(sinusoidal(time_B.float(), TIME_FEATURES).to(dtype)) + self.vector_in(pooled_BF)
        if self.guidance_in is not None and guidance_B is not None:
            vector = vector + self.guidance_in(sinusoidal(guidance_B * TIME_SCALE, TIME_FEATURES).to(dtype))
        video = self.img_in(patched(z_BCTHW, patch))
        if self.cond_in is not None:
            video = video + (
                self.cond_in.bias if condition_BCTHW is None else self.cond_in(patched(condition_BCTHW, patch))
            )
        rotation = self.rotation(text.shape[1], (frames, height // patch, width // patch), dtype, z_BCTHW.device)
        for block in self.double_blocks:
            video, text = block(video, text, vector, rotation)
        joined, words = torch.cat([text, video], dim=1), text.shape[1]
        del text, video
        for block in self.single_blocks:
            joined = block(joined, vector, rotation)
        out = self.final_layer(joined[:, words:], vector)
        return rearrange(
            out,
            "b (t h w) (c ph pw) -> b c t (h ph) (w pw)",
            t=frames,
            h=height // patch,
            ph=patch,
            pw=patch,
        )

    def rotation(self, text: int, grid: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Rotation:
        """Angles of ``text`` text tokens, at the origin, and of a grid of video tokens."""
        turned_LP = angles(video_positions(*grid, text=text, device=device), self.config.axes, self.config.theta)
        return Rotation(turned_LP.cos().to(dtype), turned_LP.sin().to(dtype), self.config.rope)


def patched(x_BCTHW: Tensor, patch: int) -> Tensor:
    """Tokens in the order (t, y, x), features in the order (channel, row, column of the patch)."""
    return rearrange(x_BCTHW, "b c t (h ph) (w pw) -> b (t h w) (c ph pw)", ph=patch, pw=patch)
