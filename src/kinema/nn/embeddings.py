"""Embeddings of scalars: sinusoids, and the noise level as a continuous log-SNR.

Letters: B batch (or any leading axes), D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kinema.nn.linear import Linear

LOG_SNR_LIMIT = 20.0
"""VDM clips its schedule to log-SNR in [-20, 20]; beyond that a clip is visually clean or pure noise."""
_SCALE = 1000.0


def sinusoidal(x_B: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Embed ``[…] -> […, width]``: cosines, then sines, with periods 2π to 2π·max_period (Vaswani et al. 2017, §3.5).

    Raises ValueError for an odd width.
    """
    if width % 2:
        raise ValueError(f"the width of a sinusoidal embedding is {width}; expected an even width")
    half = width // 2
    rate_D = torch.exp(-math.log(max_period) / half * torch.arange(half, device=x_B.device, dtype=torch.float32))
    angle_BD = x_B.float()[..., None] * rate_D
    return torch.cat([angle_BD.cos(), angle_BD.sin()], dim=-1)


class LogSNREmbedding(nn.Module):
    """``forward(log_snr […]) -> […, width]``: maps log-SNR from [-20, 20] to [0, 1000], then sinusoids and an MLP.

    ``features`` is the width of the sinusoids (default ``width``). Values outside [-20, 20] are clamped.
    """

    def __init__(self, width: int, features: int | None = None) -> None:
        super().__init__()
        self.features = features or width
        self.mlp = nn.Sequential(Linear(self.features, width), nn.SiLU(), Linear(width, width))

    def forward(self, log_snr_B: Tensor) -> Tensor:
        unit_B = (log_snr_B.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT) / LOG_SNR_LIMIT + 1) / 2
        # Cast after the sinusoids, since half precision cannot separate close levels.
        wave_BD = sinusoidal(unit_B * _SCALE, self.features).to(next(self.mlp.parameters()).dtype)
        return self.mlp(wave_BD)
