"""Grow the weights of ``zoetrope/base`` into initial weights of ``zoetrope/sprite`` (docs/notes/0002, entry 10).

The sprite's layers are freshly initialised, with a share of a tenth. To make room for them, hidden units of the token
blocks' MLPs are pruned where that costs least, and the remaining weights are refitted by least squares ("optimal brain
surgeon", Hassibi & Stork 1993). The loss of each block is reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.atomic import replacing
from kinema.checkpoints import files
from kinema.conditioning.pocket import PocketTokenizer
from kinema.data import playroom
from kinema.diffusion.schedules import RectifiedFlow
from kinema.events import Note, OnEvent
from kinema.families.zoetrope.config import BASE, Config
from kinema.families.zoetrope.family import FAMILY
from kinema.families.zoetrope.model import TokenBlock, Zoetrope
from kinema.schema import BadRequest
from kinema.system import open_system

SIGMAS = (0.15, 0.4, 0.6, 0.8, 0.9, 0.96, 0.985, 0.998)
"""Noise levels at which hidden activations are recorded, as in training."""
BATCHES, UNITS_PER_STEP, RIDGE = 6, 16, 1e-6
FIRST_SEED = 500


def grow(base: Path, out: Path, on_event: OnEvent) -> None:
    """Grow the weights in ``base`` and write them to ``out``. Raises BadRequest for weights of another model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = open_system(base)
        if before.family.name != "zoetrope" or replace(before.config, words=()) != BASE:
            raise BadRequest(f"{base} contains another model; expected weights of zoetrope/base")
        old = cast(Zoetrope, before.model.float().eval())
        config = replace(FAMILY.presets["sprite"], words=before.config.words)
        new = grow_network(old, before.config, config, [sample_clips(FIRST_SEED + i) for i in range(BATCHES)], on_event)
    metadata = json.dumps({"family": "zoetrope", "config": FAMILY.to_json(config)})
    with replacing(out) as part:
        files.write_tensors(part, {name: x.half() for name, x in new.state_dict().items()}, {"kinema": metadata})


def sample_clips(seed: int) -> tuple[Tensor, list[str]]:
    """Return one clip per noise level, B×3×T×H×W, and their captions."""
    # The clips with which the shipped weights were grown.
    samples = [playroom.sample([seed, i], grammar="mixed", split="train-v1") for i in range(len(SIGMAS))]
    return torch.stack([torch.from_numpy(s.video_CTHW) for s in samples]), [s.caption for s in samples]


@torch.no_grad()
def run_noised(model: Zoetrope, config: Config, video: Tensor, captions: list[str], seed: int) -> None:
    """Run the network on noised clips."""
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    level = RectifiedFlow(config.shift).level(sigma / (config.shift - (config.shift - 1) * sigma))
    eps = torch.randn(video.shape, generator=torch.Generator().manual_seed(seed))
    z = level.add_noise(video, eps).to(video)
    scale = (level.alpha.square() + level.sigma.square()).rsqrt().to(z)[:, None, None, None, None]
    ids = PocketTokenizer(config.words).encode(captions, config.text_length)
    given = torch.zeros(len(video), 1, *video.shape[2:])
    model(z * scale, level.log_snr.float(), ids, torch.zeros_like(video), given)


def grow_network(
    old: Zoetrope, old_config: Config, config: Config, batches: Iterable[tuple[Tensor, list[str]]], on_event: OnEvent
) -> Zoetrope:
    """Return the network with a sprite and with smaller MLPs in its token blocks."""
    blocks = {name: m for name, m in old.named_modules() if isinstance(m, TokenBlock)}
    grams = {name: torch.zeros(old_config.mlp + 1, old_config.mlp + 1, dtype=torch.float64) for name in blocks}

    def record(name: str, _module: object, args: tuple[Tensor]) -> None:
        rows = F.pad(args[0].flatten(0, -2), (0, 1), value=1.0).double()
        grams[name] += rows.mT @ rows

    hooks = [block.down.register_forward_pre_hook(partial(record, name)) for name, block in blocks.items()]
    for i, (video, captions) in enumerate(batches):
        run_noised(old, old_config, video, captions, seed=i)
    for hook in hooks:
        hook.remove()
    state = {name: x.clone() for name, x in old.state_dict().items()}
    for name, block in blocks.items():
        weight = torch.cat([block.down.weight, block.down.bias[:, None]], 1).double()
        kept, pruned, lost = prune(weight, grams[name], config.mlp)
        units = f"{old_config.mlp} to {config.mlp} units"
        on_event(Note(f"{name}: {units}, {100 * lost:.2f} % of its output's variance lost"))
        for part in ("weight", "bias"):
            state[f"{name}.up.{part}"] = state[f"{name}.up.{part}"][kept]
        state[f"{name}.down.weight"], state[f"{name}.down.bias"] = pruned[:, :-1].float(), pruned[:, -1].float()
    return _with_sprite(config, state)


def _with_sprite(config: Config, state: dict[str, Tensor]) -> Zoetrope:
    """Return a network with these weights and a freshly initialised sprite."""
    new = cast(Zoetrope, FAMILY.build(config).eval())
    missing, extra = new.load_state_dict(state, strict=False)
    assert new.sprite is not None
    assert not extra
    assert all(name.startswith("sprite.") for name in missing)
    with torch.no_grad():  # the object covers what the backdrop does not
        for cover, ground in zip(new.sprite.cover.parameters(), new.backdrop.share.parameters(), strict=True):
            cover.copy_(-ground)
    return new


@torch.no_grad()
def prune(weight: Tensor, gram: Tensor, units: int) -> tuple[Tensor, Tensor, float]:
    """Prune hidden units. Return the units kept, their refitted weights D×(units+1) and the output variance lost.

    ``weight`` is D×(n+1) and ``gram`` (n+1)×(n+1), the second moments of the hidden units; the last column is the bias.
    """
    ridge = RIDGE * gram.diagonal().mean()
    kept = torch.arange(len(gram))

    def refit() -> tuple[Tensor, Tensor]:
        inner = gram[kept][:, kept] + ridge * torch.eye(len(kept), dtype=gram.dtype)
        return torch.linalg.solve(inner, gram[kept] @ weight.mT).mT, inner

    while len(kept) - 1 > units:
        here, inner = refit()
        cost = here.square().sum(0) / torch.linalg.inv(inner).diagonal()
        cost[-1] = torch.inf
        gone = cost.argsort()[: min(UNITS_PER_STEP, len(kept) - 1 - units)]
        kept = kept[~torch.isin(torch.arange(len(kept)), gone)]
    refitted, _ = refit()
    off = -weight
    off[:, kept] += refitted
    variance = ((weight @ gram) * weight).sum() - ((weight @ gram[:, -1]).square() / gram[-1, -1]).sum()
    return kept[:-1], refitted, float(((off @ gram) * off).sum() / variance)
