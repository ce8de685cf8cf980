"""The published training stages of Open-Sora 1.0 to 1.3, as data.

Original: configs/opensora*/train (1.0 d7518da, 1.1 c37e6d6, 1.2 bde3c42, 1.3 2ca632a).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kinema.families.opensora.stdit.config import Version
from kinema.families.opensora.training.masks import NOTHING

TEXT_DROP = 0.1
"""Share of prompts that become the null text, in every version; in 1.3 of clips without given frames alone."""


@dataclass(frozen=True)
class Stage:
    """One stage. ``masks`` and ``drops`` are weights by kind; without masks every frame is generated."""

    learning_rate: float = 1e-4
    masks: Mapping[str, float] = field(default_factory=dict)
    drops: Mapping[str, float] = field(default_factory=dict)
    """1.3, of clips with given frames: ``cond`` drops the text, ``text`` the given latents, ``null`` both."""
    warmup: int = 0
    ema: float = 0.99


def _with_nothing(masks: Mapping[str, float]) -> dict[str, float]:
    return {NOTHING: 1 - sum(masks.values()), **masks}


_QUARTERS = ("quarter_random", "quarter_head", "quarter_tail", "quarter_head_tail")
_V1_1 = _with_nothing({
    **{f"{what}_{where}": 0.025 for what in ("quarter", "image") for where in ("random", "head", "tail")},
    **{f"{what}_head_tail": 0.05 for what in ("quarter", "image")},
})  # fmt: skip


def _v1_2(random: float, rest: float, *images: float) -> dict[str, float]:
    names = ("image_random", "image_head", "image_tail", "image_head_tail")
    whole = {"random": random, "interpolate": rest, **dict.fromkeys(_QUARTERS, rest)}
    return _with_nothing({**whole, **dict(zip(names, images, strict=True))})


_DROPS = {"cond": 0.05, "text": 0.05, "null": 0.05, "keep": 0.85}
_OF_IMAGES = Stage(
    masks={"i2v_head": 5, "i2v_tail": 2, "i2v_loop": 2, "v2v_head": 1, "v2v_head_noisy": 2, "v2v_tail": 1, "other": 1,
           NOTHING: 2},
    drops=_DROPS, warmup=1000,
)  # fmt: skip
_HIGH_QUALITY = Stage(
    masks={NOTHING: 8, "i2v_head": 2, "i2v_tail": 2, "i2v_loop": 2, "v2v_head": 1, "v2v_tail": 1, "other": 1},
    drops=_DROPS, warmup=1000,
)  # fmt: skip
_FIRST = Stage(2e-5, ema=0.9999)
_SECOND = Stage(2e-5, _V1_1, ema=0.9999)
_EARLY = _v1_2(0.05, 0.005, 0.025, 0.05, 0.025, 0.025)

STAGES: Mapping[Version, Mapping[str, Stage]] = {
    "1.0": {"base": _FIRST},
    "1.1": {"stage1": _SECOND, "stage2": _SECOND, "stage3": _SECOND},
    "1.2": {
        "adapt": Stage(masks=_v1_2(0.2, 0.01, 0.05, 0.1, 0.05, 0.05)),
        "stage1": Stage(masks=_EARLY, warmup=1000),
        "stage2": Stage(masks=_EARLY),
        "stage3": Stage(masks=_v1_2(0.01, 0.002, 0.0, 0.22, 0.005, 0.005), warmup=1000),
    },
    "1.3": {
        "stage1": Stage(),
        "stage1-hq": _HIGH_QUALITY,
        "stage2": Stage(5e-5, warmup=1000),
        "adapt-i2v": _OF_IMAGES,
    },
}
"""By version and name; the last of a version is its default. The stages of 1.1 differ in their buckets alone."""


def stage_of(version: Version, name: str) -> Stage | None:
    """The named stage, the default for ""; None if the version has no such stage."""
    stages = STAGES[version]
    return [*stages.values()][-1] if not name else stages.get(name)
