"""How SVD is trained (Blattmann et al. 2023, §4 and appendix D): EDM levels, v-prediction, conditioning dropped.

Only the U-Net learns; codec and image encoder are frozen. In x0-space the weight is ``(1 + sigma²) / sigma²``,
which is the plain mean-squared error of the network's own output.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from kinema.diffusion import losses
from kinema.diffusion.parameterise import V, over
from kinema.diffusion.schedules import EDMSigmas, Level
from kinema.families.svd.conditioning import Condition, encode
from kinema.families.svd.config import Config
from kinema.families.svd.decoder import SVDCodec
from kinema.families.svd.model import SVD, VideoUNet
from kinema.schema import BadRequest
from kinema.system import Batch, Recipe

SCHEDULE = EDMSigmas(sigma_min=0.002, sigma_max=700.0, rho=7.0)
P_MEAN, P_STD = 1.0, 1.6
"""ln sigma of image-to-video at high quality, the last stage (14 and 25 frames); the 320×576 base had 0.7 and 1.6."""
NOISE_MEAN, NOISE_STD = -3.0, 0.5
"""ln of the noise added to the picture."""
DROP = 0.15

RECIPE = Recipe(
    steps=50_000,
    batch=768,
    learning_rate=3e-5,
    ema=0.9999,
    text_drop=0.0,
    canvas_mix={"first": 1.0},
)
TINY = replace(RECIPE, steps=200, batch=4, warmup=10, learning_rate=1e-3, ema=0.99)

draw_levels = losses.draw_levels("edm-lognormal", p_mean=P_MEAN, p_std=P_STD)


def c_noise(level: Level) -> Tensor:
    """What the network is told of the level: a quarter of ln sigma, [B]."""
    return -level.log_snr / 8


def run_unet(unet: VideoUNet, z_BCTHW: Tensor, level: Level, condition: Condition) -> Tensor:
    """The raw output for scaled noisy latents, beside which the picture's latents stand in every frame."""
    picture = condition.picture_BCTHW.to(z_BCTHW).expand(-1, -1, z_BCTHW.shape[2], -1, -1)
    x = torch.cat([z_BCTHW, picture], dim=1).to(unet.conv_in.weight.dtype)
    told = condition.scalars_BTV.to(z_BCTHW.device)
    return unet(x, c_noise(level).to(z_BCTHW.device), condition.context_B1C.to(x), told)


def loss(model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
    """Error of the raw output in every frame, [B]; the first frame of each clip is its picture."""
    if config.orbit:
        raise BadRequest("SV3D learns from renders with known cameras, which clips do not carry; train another preset")
    network = cast(SVD, model)
    video, count = batch.video, len(batch.video)
    picture = video[:, :, 0]
    amount = torch.exp(NOISE_MEAN + NOISE_STD * torch.randn(count, generator=generator))
    noise = torch.randn(picture.shape, generator=generator)
    values = {"fps": config.fps - 1, "motion_bucket": config.motion_bucket}
    told = [amount if name == "augmentation" else torch.full((count,), values[name]) for name, _ in config.scalars]
    with torch.no_grad():
        x0 = SVDCodec(network.vae, config.latent_scale).encode(video)
        condition = encode(network, picture, noise, torch.stack(told, dim=-1)[:, None], amount)
    kept = (torch.rand(count, generator=generator) >= DROP).to(x0)
    condition = replace(
        condition,
        context_B1C=condition.context_B1C * kept[:, None, None],
        picture_BCTHW=condition.picture_BCTHW * over(kept, x0),
    )
    level = draw_levels(SCHEDULE, count, generator)
    eps = torch.randn(x0.shape, generator=generator).to(x0)
    z = level.add_noise(x0, eps)
    output = run_unet(network.unet, over(V.scalings(level)[2], z) * z, level, condition)
    return V.loss(output.float(), x0, eps, level)
