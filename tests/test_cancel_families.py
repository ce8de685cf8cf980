"""Each family is cancelled while it samples and decodes, in every stage: soon, with what is kept, and without effects.

A few random moments per model; ``KINEMA_TRIES=30 pytest tests/test_cancel_families.py`` tries thirty in each phase.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kinema.api import Model, load
from kinema.cancel import Cancel
from kinema.events import Event, Phase, Step
from kinema.schema import Cancelled, Clip, Request
from kinema.stages import opened_once

TRIES = int(os.environ.get("KINEMA_TRIES", "1"))
SMALL: dict[str, Any] = {"prompt": "a red ball", "seed": 5, "steps": 2}
CASES: dict[str, dict[str, Any]] = {
    "animatediff/tiny": {},
    "lumiere/tiny": {},
    "lumiere/tiny + lumiere/tiny-sr": {"super_resolution": "lumiere/tiny-sr", "frames": 10, "steps": 1},
    "opensora/tiny": {"extra": {"decode_chunk": 2}},
    "opensora/tiny + image": {"task": "animate", "image_model": "opensora/tiny-1.0", "frames": 5},
    "opensora/tiny-dc-ae": {"frames": 5},
    "opensora/tiny-1.0": {},
    "opensora/tiny-1.1": {},
    "opensora/tiny-1.2": {},
    "opensora/tiny-1.3": {"frames": 33},
    "svd/tiny": {"task": "animate", "image": "image.png", "prompt": "", "extra": {"decode_chunk": 4}},
    "vdm/tiny": {},
    "zoetrope/tiny": {},
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass
class Run:
    """What is heard and called in a run. ``act`` is called at the start of call number ``at``."""

    at: int = -1
    act: Callable[[], Any] = lambda: None
    calls: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    """The phase of each call."""
    steps: list[Step] = field(default_factory=list)
    """Steps of the current stage."""
    phase: str = ""

    def hear(self, event: Event) -> None:
        if isinstance(event, Phase):
            self.phase = event.name
            if event.name == "load":
                self.steps.clear()
        elif isinstance(event, Step):
            self.steps.append(event)

    def note(self, name: str) -> None:
        self.calls.append(name)
        self.phases.append(self.phase)
        if len(self.calls) - 1 == self.at:
            self.act()

    @contextmanager
    def watching(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        hooks = [
            module.register_forward_pre_hook(lambda *_args, name=name: self.note(name))
            for name, module in modules.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def opened(case: str) -> tuple[Model, Request, dict[str, nn.Module]]:
    """The model with no weight zero, the request, and the denoisers and decoders of all its stages."""
    family, preset = case.partition(" ")[0].split("/")
    model, request = load(family, preset=preset), Request(**SMALL | CASES[case])
    others = [name for name in (request.super_resolution, request.image_model) if name]
    systems = {"": model.system} | {name: opened_once(model.system, name) for name in others}
    modules: dict[str, nn.Module] = {}
    for name, system in systems.items():
        network: Any = system.model
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
        denoiser = next((part for part in ("unet", "transformer") if hasattr(network, part)), None)
        modules[f"{name} denoiser"] = getattr(network, denoiser) if denoiser else network
        modules |= {f"{name} {part}": module for part, module in network.named_modules() if part.endswith(".decoder")}
    return model, request, modules


def moments(whole: Run, draw: random.Random) -> Iterator[tuple[str, int]]:
    """Random calls while sampling and while decoding, without a stage's last decoding call: then it is finished."""
    for phase in ("sample", "decode"):
        pairs = enumerate(zip(whole.phases, [*whole.phases[1:], "sample"], strict=True))
        found = [at for at, (now, following) in pairs if now == phase and (now, following) != ("decode", "sample")]
        for at in draw.choices(found, k=TRIES) if found else []:
            yield phase, at


@pytest.mark.parametrize("case", CASES)
def test_a_cancelled_run_ends_within_one_call_and_keeps_its_clip(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Clip(torch.rand(1, 3, 1, 32, 32) * 2 - 1).save(Path("image.png"))
    model, request, modules = opened(case)
    whole, draw = Run(), random.Random(case)
    with whole.watching(modules):
        fresh = model.run(request, on_event=whole.hear).video
    for phase, at in moments(whole, draw):
        token, run = Cancel(keep_partial=draw.random() < 0.75), Run(at)
        run.act = token.cancel
        with run.watching(modules), pytest.raises(Cancelled) as ended:
            model.run(request, on_event=run.hear, cancel=token)
        assert token.keep_partial or len(run.calls) - at <= 2, (phase, at)
        assert sum(name.endswith("denoiser") for name in run.calls[at + 1 :]) <= 1, (phase, at)
        clip = ended.value.clip
        assert (clip is not None) == (token.keep_partial and bool(run.steps)), (phase, at)
        if clip is not None:
            assert clip.video.isfinite().all()
            assert clip.recipe["partial"]["step"] == run.steps[-1].index
    assert torch.equal(model.run(request).video, fresh)
