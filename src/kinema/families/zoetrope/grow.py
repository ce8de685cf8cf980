"""Weights of ``zoetrope/base`` grown into what ``zoetrope/sprite`` begins as (docs/decisions/0002, point 10).

The sprite's layers are as they are built, with a share of a tenth. Room for them is made in the MLPs of the token
blocks: hidden units are cut where that costs least, when what the others can tell of their outputs by least squares is
added to those ("optimal brain surgeon", Hassibi & Stork 1993). What is lost is said, block by block.
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
"""Noise of the clips that hidden units are seen at, as in training."""
BATCHES, AT_ONCE, RIDGE = 6, 16, 1e-6
FIRST_SEED = 500


def grow(base: Path, out: Path, on_event: OnEvent) -> None:
    """Write the grown weights of ``base`` to ``out``. Raises BadRequest for those of another model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = open_system(base)
        if before.family.name != "zoetrope" or replace(before.config, words=()) != BASE:
            raise BadRequest(f"weights are grown from zoetrope/base; {base} holds those of another model")
        old = cast(Zoetrope, before.model.float().eval())
        config = replace(FAMILY.presets["sprite"], words=before.config.words)
        new = grown(old, before.config, config, [clips(FIRST_SEED + i) for i in range(BATCHES)], on_event)
    told = json.dumps({"family": "zoetrope", "config": FAMILY.to_json(config)})
    with replacing(out) as part:
        files.write_tensors(part, {name: x.half() for name, x in new.state_dict().items()}, {"kinema": told})


def clips(seed: int) -> tuple[Tensor, list[str]]:
    """As many clips as there are noise levels, B×3×T×H×W, and their captions."""
    made = [playroom.sample([seed, i], grammar="mixed") for i in range(len(SIGMAS))]
    return torch.stack([torch.from_numpy(s.video_CTHW) for s in made]), [s.caption for s in made]


@torch.no_grad()
def draw(model: Zoetrope, config: Config, video: Tensor, captions: list[str], seed: int) -> None:
    """Have a network draw noised clips."""
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    level = RectifiedFlow(config.shift).level(sigma / (config.shift - (config.shift - 1) * sigma))
    eps = torch.randn(video.shape, generator=torch.Generator().manual_seed(seed))
    z = level.add_noise(video, eps).to(video)
    scale = (level.alpha.square() + level.sigma.square()).rsqrt().to(z)[:, None, None, None, None]
    ids = PocketTokenizer(config.words).encode(captions, config.text_length)
    given = torch.zeros(len(video), 1, *video.shape[2:])
    model(z * scale, level.log_snr.float(), ids, torch.zeros_like(video), given)


def grown(
    old: Zoetrope, was: Config, config: Config, batches: Iterable[tuple[Tensor, list[str]]], on_event: OnEvent
) -> Zoetrope:
    """The network with a sprite, and with smaller MLPs in its token blocks."""
    blocks = {name: m for name, m in old.named_modules() if isinstance(m, TokenBlock)}
    grams = {name: torch.zeros(was.mlp + 1, was.mlp + 1, dtype=torch.float64) for name in blocks}

    def see(name: str, _module: object, args: tuple[Tensor]) -> None:
        rows = F.pad(args[0].flatten(0, -2), (0, 1), value=1.0).double()
        grams[name] += rows.mT @ rows

    hooks = [block.down.register_forward_pre_hook(partial(see, name)) for name, block in blocks.items()]
    for i, (video, captions) in enumerate(batches):
        draw(old, was, video, captions, seed=i)
    for hook in hooks:
        hook.remove()
    state = {name: x.clone() for name, x in old.state_dict().items()}
    for name, block in blocks.items():
        weight = torch.cat([block.down.weight, block.down.bias[:, None]], 1).double()
        kept, made, lost = cut(weight, grams[name], config.mlp)
        on_event(Note(f"{name}: {was.mlp} to {config.mlp} units, {100 * lost:.2f} % of its output's variance lost"))
        for part in ("weight", "bias"):
            state[f"{name}.up.{part}"] = state[f"{name}.up.{part}"][kept]
        state[f"{name}.down.weight"], state[f"{name}.down.bias"] = made[:, :-1].float(), made[:, -1].float()
    return _with_sprite(config, state)


def _with_sprite(config: Config, state: dict[str, Tensor]) -> Zoetrope:
    """A network of these weights and a fresh sprite."""
    new = cast(Zoetrope, FAMILY.build(config).eval())
    missing, extra = new.load_state_dict(state, strict=False)
    assert new.sprite is not None
    assert not extra
    assert all(name.startswith("sprite.") for name in missing)
    with torch.no_grad():  # what shows no ground is what an object covers
        for of_cover, of_ground in zip(new.sprite.cover.parameters(), new.backdrop.share.parameters(), strict=True):
            of_cover.copy_(-of_ground)
    return new


@torch.no_grad()
def cut(weight: Tensor, gram: Tensor, units: int) -> tuple[Tensor, Tensor, float]:
    """Units kept, the weights D×(units+1) of those and the bias, and the share of the output's variance lost.

    ``weight`` D×(n+1) and ``gram`` (n+1)×(n+1), the second moments of the hidden units; the last is the bias's 1.
    """
    ridge = RIDGE * gram.diagonal().mean()
    kept = torch.arange(len(gram))

    def folded() -> tuple[Tensor, Tensor]:
        inner = gram[kept][:, kept] + ridge * torch.eye(len(kept), dtype=gram.dtype)
        return torch.linalg.solve(inner, gram[kept] @ weight.mT).mT, inner

    while len(kept) - 1 > units:
        here, inner = folded()
        cost = here.square().sum(0) / torch.linalg.inv(inner).diagonal()
        cost[-1] = torch.inf
        gone = cost.argsort()[: min(AT_ONCE, len(kept) - 1 - units)]
        kept = kept[~torch.isin(torch.arange(len(kept)), gone)]
    made, _ = folded()
    off = -weight
    off[:, kept] += made
    variance = ((weight @ gram) * weight).sum() - ((weight @ gram[:, -1]).square() / gram[-1, -1]).sum()
    return kept[:-1], made, float(((off @ gram) * off).sum() / variance)
