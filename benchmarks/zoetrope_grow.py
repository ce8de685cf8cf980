"""Weights for `zoetrope/sprite` to start from, grown out of weights of `zoetrope/base` (docs/decisions/0002, point 10).

    git show d29f769:src/kinema/weights/zoetrope.safetensors > base.safetensors
    python benchmarks/zoetrope_grow.py base.safetensors start.safetensors
    kinema train start.safetensors --out runs/sprite --steps 1600 --batch 16 --learning-rate 2e-3

The sprite's layers are as they are built, with a share of a tenth. Room for them is made in the MLPs of the token
blocks: hidden units are cut where that costs least, when what the others can tell of their outputs by least squares is
added to those ("optimal brain surgeon", Hassibi & Stork 1993). What is lost is printed, block by block, and what the
grown network draws of held-out clips beside the one before.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema.atomic import replacing
from kinema.checkpoints import files
from kinema.conditioning.pocket import PocketTokenizer
from kinema.data import playroom
from kinema.diffusion.schedules import RectifiedFlow
from kinema.families.zoetrope.family import FAMILY
from kinema.families.zoetrope.model import TokenBlock, Zoetrope
from kinema.system import open_system

SIGMAS = (0.15, 0.4, 0.6, 0.8, 0.9, 0.96, 0.985, 0.998)
"""Noise of the clips that hidden units are seen at, as in training."""
BATCHES, AT_ONCE, RIDGE = 6, 16, 1e-6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    before = open_system(options.base)
    old = before.model.float().eval()
    config = replace(FAMILY.presets["sprite"], words=before.config.words)
    new = grown(old, config, [batch(500 + i, "train", "mixed") for i in range(BATCHES)], before.config)
    told = json.dumps({"family": "zoetrope", "config": FAMILY.to_json(config)})
    with replacing(options.out) as part:
        files.write_tensors(part, {name: x.half() for name, x in new.state_dict().items()}, {"kinema": told})
    compare(old, before.config, new, config)
    return 0


def batch(seed: int, split: str, grammar: str) -> tuple[Tensor, list[str]]:
    """As many clips as there are noise levels, B×3×T×H×W, and their captions."""
    made = [playroom.sample([seed, i], split=split, grammar=grammar) for i in range(len(SIGMAS))]
    return torch.stack([torch.from_numpy(s.video_CTHW) for s in made]), [s.caption for s in made]


@torch.no_grad()
def drawn(model: Zoetrope, config: Any, clips: tuple[Tensor, list[str]], sigmas: Sequence[float], seed: int) -> Any:
    """What a network makes of noised clips."""
    video, captions = clips
    sigma = torch.tensor(sigmas, dtype=torch.float64)
    level = RectifiedFlow(config.shift).level(sigma / (config.shift - (config.shift - 1) * sigma))
    eps = torch.randn(video.shape, generator=torch.Generator().manual_seed(seed))
    z = level.add_noise(video, eps).to(video)
    scale = (level.alpha.square() + level.sigma.square()).rsqrt().to(z)[:, None, None, None, None]
    ids = PocketTokenizer(config.words).encode(captions, config.text_length)
    given = torch.zeros(len(video), 1, *video.shape[2:])
    return model(z * scale, level.log_snr.float(), ids, torch.zeros_like(video), given)


def grown(old: Zoetrope, config: Any, batches: Iterable[tuple[Tensor, list[str]]], was: Any) -> Zoetrope:
    """The network with a sprite, and with smaller MLPs in its token blocks."""
    blocks = {name: m for name, m in old.named_modules() if isinstance(m, TokenBlock)}
    grams = {name: torch.zeros(was.mlp + 1, was.mlp + 1, dtype=torch.float64) for name in blocks}

    def see(name: str, hidden: Tensor) -> None:
        rows = torch.nn.functional.pad(hidden.flatten(0, -2), (0, 1), value=1.0).double()
        grams[name] += rows.mT @ rows

    hooks = [b.down.register_forward_pre_hook(lambda _m, a, n=name: see(n, a[0])) for name, b in blocks.items()]
    for i, clips in enumerate(batches):
        drawn(old, was, clips, SIGMAS, seed=i)
    for hook in hooks:
        hook.remove()
    state = {name: x.clone() for name, x in old.state_dict().items()}
    for name, block in blocks.items():
        weight = torch.cat([block.down.weight, block.down.bias[:, None]], 1).double()
        kept, made, lost = cut(weight, grams[name], config.mlp)
        print(f"{name}: {was.mlp} to {config.mlp} units, {100 * lost:.2f} % of its output's variance lost", flush=True)
        for part in ("weight", "bias"):
            state[f"{name}.up.{part}"] = state[f"{name}.up.{part}"][kept]
        state[f"{name}.down.weight"], state[f"{name}.down.bias"] = made[:, :-1].float(), made[:, -1].float()
    new = FAMILY.build(config).eval()
    missing, extra = new.load_state_dict(state, strict=False)
    if extra or not all(name.startswith("sprite.") for name in missing):
        raise SystemExit(f"the weights are no zoetrope/base: {[*extra, *missing][:3]}")
    with torch.no_grad():  # what shows no ground is what an object covers
        for of_cover, of_ground in zip(new.sprite.cover.parameters(), new.backdrop.share.parameters(), strict=True):
            of_cover.copy_(-of_ground)
    return new


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


def compare(old: Zoetrope, was: Any, new: Zoetrope, config: Any) -> None:
    """Errors of x0 on held-out clips, before and after."""
    for grammar in ("simple", "mixed"):
        clips = batch(9000, "held-out", grammar)
        for sigma in (0.3, 0.6, 0.8, 0.9, 0.97):
            made = [drawn(m, c, clips, [sigma] * len(SIGMAS), 3).x0 for m, c in ((old, was), (new, config))]
            before, after = (float((x0 - clips[0]).square().mean()) for x0 in made)
            apart = float((made[0] - made[1]).square().mean())
            print(f"{grammar}, sigma {sigma}: error of x0 {before:.5f}, grown {after:.5f}; apart by {apart:.5f}")


if __name__ == "__main__":
    sys.exit(main())
