"""Every passage of README and the model cards that has figures."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cards import evidence, pockets, speed, zoetrope
from benchmarks.cards.figures import Passage


def every() -> Iterator[Passage]:
    yield from zoetrope.unseen_prompts()
    yield from zoetrope.tuning_prompts()
    yield from zoetrope.readme()
    yield from evidence.video_diffusion()
    yield from speed.speed()
    yield from pockets.svd()
    yield from pockets.animatediff()
    yield from pockets.opensora()
    yield from pockets.lumiere()
